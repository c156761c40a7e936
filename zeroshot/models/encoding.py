"""What every encoder does around its network: batches, order, duplicates, unit vectors."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from zeroshot.errors import ZeroshotError
from zeroshot.models.base import Pixels
from zeroshot.models.isolation import FrozenModel
from zeroshot.models.preprocessing import Preprocessing
from zeroshot.ops import normalize

__all__ = [
    "WithPreprocessing",
    "encode_images",
    "encode_pixels",
    "encode_texts",
    "unit_vectors",
    "unit_vectors_unread",
]

IMAGES_AT_ONCE = 64
TEXTS_AT_ONCE = 256

T = TypeVar("T")
Item = TypeVar("Item", str, Image.Image)


class WithPreprocessing(FrozenModel):
    """Mixin of `base.PixelEncoder`: `preprocessing` in threads, `_image_features` on the device."""

    preprocessing: Preprocessing
    _image_features: Callable[[list[Pixels]], Tensor]
    """Embeddings `[b d]` of a batch, of any length."""

    @property
    def shortcuts(self) -> str:
        """As `base.PixelEncoder`."""
        return self.preprocessing.shortcuts

    @property
    def draft_side(self) -> int | None:
        """As `base.PixelEncoder`."""
        return self.preprocessing.draft_side

    def pixels(self, image: Image.Image) -> Pixels:
        """As `base.PixelEncoder`."""
        return self.preprocessing.pixels(image)

    def encode_pixels(self, pixels: Sequence[Pixels]) -> Float[Tensor, "n d"]:
        """As `base.PixelEncoder`."""
        return encode_pixels(pixels, self._image_features)

    def encode_images(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """As `base.ImageEncoder`."""
        return encode_images(images, self.pixels, self._image_features)


def encode_images(
    images: Sequence[Image.Image],
    pixels: Callable[[Image.Image], Pixels],
    features: Callable[[list[Pixels]], Tensor],
) -> Float[Tensor, "n d"]:
    """Unit vectors in float32 on the CPU, in order.

    `pixels` preprocesses one image; `features` maps a batch of pixels to embeddings `[b d]`.
    """
    if not images:  # a blank image shows the width
        return encode_images([Image.new("RGB", (64, 64), "gray")], pixels, features)[:0]
    return _encode(
        list(images),
        lambda batch: features([pixels(image) for image in batch]),
        IMAGES_AT_ONCE,
    )


def encode_pixels(
    pixels: Sequence[Pixels], features: Callable[[list[Pixels]], Tensor]
) -> Float[Tensor, "n d"]:
    """As `encode_images`, from one or more preprocessed images."""
    embeddings = _in_batches(list(pixels), features, IMAGES_AT_ONCE)
    return unit_vectors(embeddings, [f"image {number}" for number in range(len(pixels))])


def encode_texts(
    texts: Sequence[str], features: Callable[[list[str]], Tensor]
) -> Float[Tensor, "n d"]:
    """Unit vectors in float32 on the CPU, in order; `features` maps a batch to embeddings `[b d]`.

    Each different text is encoded once, in a batch of texts of similar length to save padding.
    """
    if not texts:
        return encode_texts(["a"], features)[:0]
    unique = sorted(set(texts), key=lambda text: (len(text), text))
    embeddings = _encode(unique, features, TEXTS_AT_ONCE)
    index = {text: i for i, text in enumerate(unique)}
    return embeddings[[index[text] for text in texts]]


def unit_vectors(
    embeddings: Float[Tensor, "n d"], items: Sequence[str | Image.Image]
) -> Float[Tensor, "n d"]:
    """Embeddings scaled to length 1; ZeroshotError, naming the first input, if that fails."""
    broken = ~(embeddings.isfinite().all(dim=1) & embeddings.any(dim=1))
    if broken.any():
        first = items[int(broken.nonzero()[0])]
        raise ZeroshotError(
            f"the model's embedding is zero or not finite for {int(broken.sum())} of {len(items)} "
            f"inputs, first for {first!r}; in half precision, fp32 may help"
        )
    return normalize(embeddings)


def unit_vectors_unread(embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """As `unit_vectors`, without waiting for the device: a row for which it fails is NaN."""
    whole = embeddings.isfinite().all(dim=1) & embeddings.any(dim=1)
    return torch.where(whole[:, None], normalize(embeddings), torch.nan)


def _encode(
    items: list[Item], features: Callable[[list[Item]], Tensor], batch_size: int
) -> Float[Tensor, "n d"]:
    return unit_vectors(_in_batches(items, features, batch_size), items)


def _in_batches(
    items: list[T], features: Callable[[list[T]], Tensor], batch_size: int
) -> Float[Tensor, "n d"]:
    starts = range(0, len(items), batch_size)
    with torch.inference_mode():
        return torch.cat([features(items[s : s + batch_size]).float().cpu() for s in starts])
