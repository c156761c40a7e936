"""Segmentation without a segmentation model: a dual encoder's patches are compared with its texts.

An image is resized and cut into windows that overlap by half, as SCLIP and NACLIP do, or encoded as
a whole. If a patch lies in several windows, its unit embeddings are averaged before they are
compared with the labels. So its cosine is the mean of the windows' cosines.
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
from zeroshot.inference.embedding import long_text_failure
from zeroshot.methods import Dense
from zeroshot.models.base import DenseEncoder, SegmenterHead
from zeroshot.ops import normalize

__all__ = ["DenseSegmenter"]

ENLARGED = 1.5
"""Shorter side of the image, relative to the encoder's: the papers use 336 pixels for 224."""


@dataclass(frozen=True)
class DenseSegmenter:
    """A dual encoder as a segmentation model (`base.Segmenter`)."""

    encoder: DenseEncoder
    method: Dense
    resolution: int = 0
    """Shorter side of the resized image in pixels; 0 for 1.5 times the encoder's."""
    window: int | None = None
    """Side of the windows in pixels; 0 for no windows, None for the encoder's image size."""

    head: ClassVar[SegmenterHead] = "softmax"

    def __post_init__(self) -> None:
        for name, value in (("resolution", self.resolution), ("window", self.window or 0)):
            if value and value < self.encoder.patch_size:
                raise UserError(
                    f"--{name} {value}: patches of {self.encoder.name} are "
                    f"{self.encoder.patch_size} pixels wide; give at least that"
                )

    @property
    def name(self) -> str:
        """The encoder's name, so that cached text embeddings are shared with other tasks."""
        return self.encoder.name

    @property
    def size(self) -> tuple[int, int]:
        """Shorter side of images and side of windows (0 for none), both in whole patches."""
        patch, own = self.encoder.patch_size, self.encoder.image_size
        side = self.resolution or round(ENLARGED * own)
        window = own if self.window is None else self.window
        return max(1, round(side / patch)) * patch, window // patch * patch

    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "c d"]:
        """As `base.Segmenter`; UserError for a prompt longer than the encoder reads."""
        if failure := long_text_failure(prompts, self.encoder, "the text encoder"):
            raise UserError(f"a prompt of {failure.message}; shorten it")
        return self.encoder.encode_texts(prompts)

    def encode_examples(self, examples: Sequence[Image]) -> Float[Tensor, "c d"]:
        """UserError: every patch is more similar to an image than to any text."""
        raise UserError(
            "a dual encoder takes no examples: images and texts lie apart in its space, and any "
            "patch is nearer to an example than to a text. CLIPSeg takes them: "
            "--model hf:CIDAS/clipseg-rd64-refined"
        )

    def maps(
        self, images: Sequence[Image], prompts: Float[Tensor, "c d"]
    ) -> list[Float[Tensor, "c h w"]]:
        """As `base.Segmenter`."""
        scaled = self.method.scale * normalize(prompts)
        return [torch.einsum("hwd,cd->chw", patches, scaled) for patches in self.patches(images)]

    def patches(self, images: Sequence[Image]) -> list[Float[Tensor, "h w d"]]:
        """Embeddings of each image's patches; shorter than unit length where windows overlap."""
        patch, (side, window) = self.encoder.patch_size, self.size
        resized = [_resize(image, side, patch) for image in images]
        windows: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
        for i, image in enumerate(resized):
            across, down = (_window_starts(length, window, patch) for length in image.size)
            shape = (min(window or image.width, image.width), min(window or 1 << 30, image.height))
            windows[shape] += [(i, left, top) for top in down for left in across]
        sums = [torch.zeros(s.height // patch, s.width // patch, self._width) for s in resized]
        counts = [torch.zeros(*total.shape[:2], 1) for total in sums]
        for (width, height), corners in windows.items():
            crops = [resized[i].crop((x, y, x + width, y + height)) for i, x, y in corners]
            encoded = self.encoder.encode_patches(
                crops, self.method.attend, whole_block=self.method.whole_block
            )
            for (i, left, top), embeddings in zip(corners, encoded, strict=True):
                x, y = left // patch, top // patch
                area = (slice(y, y + embeddings.shape[0]), slice(x, x + embeddings.shape[1]))
                sums[i][area] += embeddings
                counts[i][area] += 1
        return [total / count for total, count in zip(sums, counts, strict=True)]

    @property
    def _width(self) -> int:
        return self.encoder.encode_texts([]).shape[1]


def _resize(image: Image, side: int, patch: int) -> Image:
    """Resize the shorter side to `side`; both sides become whole patches."""
    factor = side / min(image.size)
    size = [max(1, round(factor * length / patch)) * patch for length in image.size]
    return image.resize((size[0], size[1]), Resampling.BICUBIC)


def _window_starts(length: int, window: int, patch: int) -> list[int]:
    """The starts of windows that overlap by half, in whole patches; the last ends at `length`."""
    if not 0 < window < length:
        return [0]
    step = max(1, window // patch // 2) * patch
    return [*range(0, length - window, step), length - window]
