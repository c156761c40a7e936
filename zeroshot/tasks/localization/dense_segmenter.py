"""Segmentation without a segmentation model: a dual encoder's patches are compared with its texts.

An image is resized and cut into windows that overlap by half, as SCLIP and NACLIP do, or encoded as
a whole. If a patch lies in several windows, its unit embeddings are averaged before they are
compared with the labels. So its cosine is the mean of the windows' cosines.

A second encoder, which says which patches are alike, sees the whole image, in the size at which a
whole number of its patches lies along each patch of the first.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from PIL.Image import Image, Resampling
from torch import Tensor
from torch.nn.functional import interpolate

from zeroshot.errors import UserError
from zeroshot.inference.embedding import long_text_failure
from zeroshot.methods import Dense, Propagating, name_of
from zeroshot.methods.naclip import NACLIP
from zeroshot.models.base import DenseEncoder, PatchEncoder, SegmenterHead
from zeroshot.ops import normalize

__all__ = ["DenseSegmenter"]

AS_TRAINED = NACLIP(attention="vanilla", block="whole")
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
    second: PatchEncoder | None = None
    """The encoder whose patches the method compares with each other."""

    head: ClassVar[SegmenterHead] = "softmax"

    def __post_init__(self) -> None:
        for name, value in (("resolution", self.resolution), ("window", self.window or 0)):
            if value and value < self.encoder.patch_size:
                raise UserError(
                    f"--{name} {value}: patches of {self.encoder.name} are "
                    f"{self.encoder.patch_size} pixels wide; give at least that"
                )
        if self._attends_by_features and self.second is None:
            raise UserError(
                f"{name_of(self.method)} compares the patches of a second vision encoder: name it "
                "by --patches-by, such as hf:facebook/dinov2-base"
            )
        takes = self._attends_by_features or isinstance(self.method, Propagating)
        if self.second is not None and not takes:
            raise UserError(
                f"{name_of(self.method)} compares no patches of a second encoder (--patches-by); "
                "proxyclip and lposs do"
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
        resized = self._resized(images)
        features, scaled = self._features(resized), self.method.scale * normalize(prompts)
        found = []
        for i, patches in enumerate(self._patches(resized, features)):
            logits = torch.einsum("hwd,cd->chw", patches, scaled)
            if features is not None and isinstance(self.method, Propagating):
                logits = self._propagated(logits, features[i])
            found.append(logits)
        return found

    def patches(self, images: Sequence[Image]) -> list[Float[Tensor, "h w d"]]:
        """Embeddings of each image's patches; shorter than unit length where windows overlap.

        With a method that attends by a second encoder, of that encoder's patches.
        """
        resized = self._resized(images)
        return self._patches(resized, self._features(resized))

    @property
    def _attends_by_features(self) -> bool:
        return getattr(self.method, "needs_features", False)

    @property
    def _fine(self) -> int:
        """Patches of the second encoder along one of the first's."""
        if self.second is None:
            return 1
        return max(1, round(self.encoder.patch_size / self.second.patch_size))

    def _resized(self, images: Sequence[Image]) -> list[Image]:
        return [_resize(image, self.size[0], self.encoder.patch_size) for image in images]

    def _features(self, resized: Sequence[Image]) -> list[Float[Tensor, "y x e"]] | None:
        """Of the patches that the method compares, of the whole images.

        Without a second encoder these are the encoder's own, as it was trained.
        """
        if self.second is None:
            if not isinstance(self.method, Propagating):
                return None
            own = self.encoder.encode_patches
            return [own([image], AS_TRAINED.attend, whole_block=True)[0] for image in resized]
        found = []
        for image in resized:
            columns, rows = (
                length // self.encoder.patch_size * self._fine for length in image.size
            )
            size = (columns * self.second.patch_size, rows * self.second.patch_size)
            same = image if size == image.size else image.resize(size, Resampling.BICUBIC)
            features = self.second.patch_features([same])
            if features.shape[:3] != (1, rows, columns):
                raise UserError(
                    f"{self.second.name} gives features of shape {list(features.shape)} for an "
                    f"image of {rows} x {columns} patches of {self.second.patch_size} pixels; "
                    f"expected [1, {rows}, {columns}, width]"
                )
            found.append(features[0])
        return found

    def _propagated(
        self, logits: Float[Tensor, "c h w"], features: Float[Tensor, "y x e"]
    ) -> Float[Tensor, "c y x"]:
        """The logits after they spread over the patches that `features` are of."""
        assert isinstance(self.method, Propagating)
        grid = (features.shape[0], features.shape[1])
        if grid != logits.shape[1:]:
            logits = interpolate(logits[None], size=grid, mode="bilinear")[0]
        places = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))
        positions = places * (self.encoder.patch_size / self._fine)
        rows = self.method.propagate(logits.flatten(1).T, features.flatten(0, 1), positions)
        return rows.T.reshape(-1, *grid)

    def _patches(
        self, resized: Sequence[Image], features: Sequence[Float[Tensor, "y x e"]] | None
    ) -> list[Float[Tensor, "h w d"]]:
        patch, window = self.encoder.patch_size, self.size[1]
        attends = self._attends_by_features and features is not None
        fine = self._fine if attends else 1
        windows: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
        for i, image in enumerate(resized):
            across, down = (_window_starts(length, window, patch) for length in image.size)
            shape = (min(window or image.width, image.width), min(window or 1 << 30, image.height))
            windows[shape] += [(i, left, top) for top in down for left in across]
        grids = [(s.height // patch * fine, s.width // patch * fine) for s in resized]
        sums = [torch.zeros(*grid, self._width) for grid in grids]
        counts = [torch.zeros(*total.shape[:2], 1) for total in sums]
        for (width, height), corners in windows.items():
            crops = [resized[i].crop((x, y, x + width, y + height)) for i, x, y in corners]
            rows, columns = height // patch * fine, width // patch * fine
            areas = [
                (i, slice(y, y + rows), slice(x, x + columns))
                for i, x, y in ((i, x // patch * fine, y // patch * fine) for i, x, y in corners)
            ]
            more: dict[str, Any] = {}
            if attends and features is not None:
                more["features"] = torch.stack(
                    [features[i][down, across] for i, down, across in areas]
                )
            encoded = self.encoder.encode_patches(
                crops, self.method.attend, whole_block=self.method.whole_block, **more
            )
            for (i, *area), embeddings in zip(areas, encoded, strict=True):
                sums[i][tuple(area)] += embeddings
                counts[i][tuple(area)] += 1
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
