"""What every encoder does around its network: batches, order, duplicates, unit rows."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from zeroshot.errors import ZeroshotError
from zeroshot.ops import normalize

__all__ = ["encode_images", "encode_texts"]

IMAGES_AT_ONCE = 64
TEXTS_AT_ONCE = 256

Item = TypeVar("Item", str, Image.Image)


def encode_images(
    images: Sequence[Image.Image], features: Callable[[list[Image.Image]], Tensor]
) -> Float[Tensor, "n d"]:
    """Unit float32 rows on the CPU, in order; `features` maps a batch to raw rows `[b d]`."""
    if not images:  # a blank picture tells the width
        return encode_images([Image.new("RGB", (64, 64), "gray")], features)[:0]
    return _encode(list(images), features, IMAGES_AT_ONCE)


def encode_texts(
    texts: Sequence[str], features: Callable[[list[str]], Tensor]
) -> Float[Tensor, "n d"]:
    """Unit float32 rows on the CPU, in order; `features` maps a batch to raw rows `[b d]`.

    Each different text is encoded once, among texts of about its length, so that little is padding.
    """
    if not texts:
        return encode_texts(["a"], features)[:0]
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    rows = _encode(distinct, features, TEXTS_AT_ONCE)
    place = {text: row for row, text in enumerate(distinct)}
    return rows[[place[text] for text in texts]]


def _encode(
    items: list[Item], features: Callable[[list[Item]], Tensor], at_once: int
) -> Float[Tensor, "n d"]:
    starts = range(0, len(items), at_once)
    with torch.inference_mode():
        rows = torch.cat([features(items[s : s + at_once]).float().cpu() for s in starts])
    broken = ~(rows.isfinite().all(dim=1) & rows.any(dim=1))
    if broken.any():
        first = items[int(broken.nonzero()[0])]
        raise ZeroshotError(
            f"the model's embedding is zero or not finite for {int(broken.sum())} of {len(items)} "
            f"inputs, first for {first!r}; in half precision, fp32 may help"
        )
    return normalize(rows)
