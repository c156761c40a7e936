"""Segmentation without a segmentation model: patches of a dual encoder against its texts.

An image is brought to a size of its own and looked at through windows that overlap by half, as
SCLIP and NACLIP do, or as a whole. Where windows overlap, the unit rows of a patch are averaged
before they meet the labels: its cosine is then the mean of the windows' cosines.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from PIL.Image import Image, Resampling
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods import Dense
from zeroshot.models.base import DenseEncoder, Head
from zeroshot.ops import normalize

__all__ = ["DenseSegmenter"]

ENLARGED = 1.5
"""Shorter side of the image to the encoder's own: the papers bring 224 pixels to 336."""


@dataclass(frozen=True)
class DenseSegmenter:
    """A dual encoder that stands where a segmentation model stands (`base.Segmenter`)."""

    encoder: DenseEncoder
    method: Dense
    resolution: int = 0
    """Shorter side in pixels that images are brought to; 0 for half more than the encoder's."""
    window: int | None = None
    """Side of the windows in pixels, 0 for the image as a whole, the encoder's own without."""

    head: ClassVar[Head] = "softmax"

    def __post_init__(self) -> None:
        for name, value in (("resolution", self.resolution), ("window", self.window or 0)):
            if value and value < self.encoder.patch_size:
                raise UserError(
                    f"--{name} {value}: patches of {self.encoder.name} are "
                    f"{self.encoder.patch_size} pixels wide; give at least that"
                )

    @property
    def name(self) -> str:
        """The encoder's, whose rows of texts are those of every other task."""
        return self.encoder.name

    @property
    def size(self) -> tuple[int, int]:
        """Shorter side of images, and side of windows (0 for none), both whole patches."""
        patch, own = self.encoder.patch_size, self.encoder.image_size
        side = self.resolution or round(ENLARGED * own)
        window = own if self.window is None else self.window
        return max(1, round(side / patch)) * patch, window // patch * patch

    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "c d"]:
        """As `base.Segmenter`; UserError for a prompt longer than the encoder reads."""
        most = self.encoder.context_length
        for prompt, length in zip(prompts, self.encoder.count_tokens(prompts), strict=True):
            if most is not None and length > most:
                raise UserError(
                    f"a prompt of {length} tokens, but the text encoder reads {most}: "
                    f"'{prompt[:60]}'; shorten it"
                )
        return self.encoder.encode_texts(prompts)

    def encode_examples(self, examples: Sequence[Image]) -> Float[Tensor, "c d"]:
        """UserError: next to an image's row every text's loses."""
        raise UserError(
            "a dual encoder takes no examples: its images and its texts lie apart in their "
            "space, and any patch is nearer to an example than to a text. CLIPSeg takes them: "
            "--model hf:CIDAS/clipseg-rd64-refined"
        )

    def maps(
        self, images: Sequence[Image], prompts: Float[Tensor, "c d"]
    ) -> list[Float[Tensor, "c h w"]]:
        """As `base.Segmenter`."""
        rows = self.method.scale * normalize(prompts)
        return [torch.einsum("hwd,cd->chw", patches, rows) for patches in self.patches(images)]

    def patches(self, images: Sequence[Image]) -> list[Float[Tensor, "h w d"]]:
        """Rows of each image's patches, not quite of unit length where windows overlap."""
        patch, (side, window) = self.encoder.patch_size, self.size
        sized = [_resized(image, side, patch) for image in images]
        parts: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
        for number, image in enumerate(sized):
            across, down = (_windows(length, window, patch) for length in image.size)
            shape = (min(window or image.width, image.width), min(window or 1 << 30, image.height))
            parts[shape] += [(number, left, top) for top in down for left in across]
        sums = [torch.zeros(s.height // patch, s.width // patch, self._width) for s in sized]
        counts = [torch.zeros(*total.shape[:2], 1) for total in sums]
        for (width, height), places in parts.items():
            cut = [sized[n].crop((x, y, x + width, y + height)) for n, x, y in places]
            found = self.encoder.encode_patches(
                cut, self.method.attend, whole_block=self.method.whole_block
            )
            for (number, left, top), rows in zip(places, found, strict=True):
                x, y = left // patch, top // patch
                here = (slice(y, y + rows.shape[0]), slice(x, x + rows.shape[1]))
                sums[number][here] += rows
                counts[number][here] += 1
        return [total / count for total, count in zip(sums, counts, strict=True)]

    @property
    def _width(self) -> int:
        return self.encoder.encode_texts([]).shape[1]


def _resized(image: Image, side: int, patch: int) -> Image:
    """The image with its shorter side at `side`, both sides of whole patches."""
    factor = side / min(image.size)
    size = [max(1, round(factor * length / patch)) * patch for length in image.size]
    return image.resize((size[0], size[1]), Resampling.BICUBIC)


def _windows(length: int, window: int, patch: int) -> list[int]:
    """Where windows begin that overlap by half and end with the image; whole patches."""
    if not 0 < window < length:
        return [0]
    step = max(1, window // patch // 2) * patch
    return [*range(0, length - window, step), length - window]
