"""What every encoder does around its network: batches, order, duplicates, unit rows."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from zeroshot.errors import ZeroshotError
from zeroshot.models.base import IncrementalTextEncoder, Matcher, Pixels
from zeroshot.models.towers.text_tower import (
    PROBES,
    Tokens,
    TokenTree,
    Tower,
    encode_paths,
    is_causal,
)
from zeroshot.ops import normalize

__all__ = [
    "CachedTextEncoder",
    "TextMemory",
    "encode_images",
    "encode_pixels",
    "encode_texts",
    "unit_rows",
]

IMAGES_AT_ONCE = 64
TEXTS_AT_ONCE = 256
SHARED_FROM = 64
"""Texts from which on a causal tower is taken apart to run what they share once: trying whether it
is causal costs as much as some of them."""

T = TypeVar("T")
Item = TypeVar("Item", str, Image.Image)


def encode_images(
    images: Sequence[Image.Image],
    pixels: Callable[[Image.Image], Pixels],
    features: Callable[[list[Pixels]], Tensor],
) -> Float[Tensor, "n d"]:
    """Unit float32 rows on the CPU, in order.

    `pixels` preprocesses one picture, `features` maps a batch of those to raw rows `[b d]`.
    """
    if not images:  # a blank picture tells the width
        return encode_images([Image.new("RGB", (64, 64), "gray")], pixels, features)[:0]
    return _encode(
        list(images),
        lambda batch: features([pixels(image) for image in batch]),
        IMAGES_AT_ONCE,
    )


def encode_pixels(
    pixels: Sequence[Pixels], features: Callable[[list[Pixels]], Tensor]
) -> Float[Tensor, "n d"]:
    """As `encode_images`, of at least one picture that is preprocessed already."""
    rows = _raw(list(pixels), features, IMAGES_AT_ONCE)
    return unit_rows(rows, [f"picture {number}" for number in range(len(pixels))])


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


class TextMemory:
    """Unit rows of the texts seen last, so that a text that comes back is not encoded again."""

    def __init__(self, capacity: int = 16384) -> None:
        self.capacity = capacity
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._rows: Tensor | None = None  # [capacity, d]; pages are touched as they fill

    def __call__(
        self, texts: Sequence[str], encode: Callable[[list[str]], Tensor]
    ) -> Float[Tensor, "n d"]:
        """A row per text; `encode` gives those of the texts that are not held."""
        distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        held = [text for text in distinct if text in self._slots]
        new = [text for text in distinct if text not in self._slots]
        fresh = encode(new) if new else None
        if fresh is not None and self._rows is None:
            self._rows = fresh.new_empty(self.capacity, fresh.shape[1])
        assert self._rows is not None
        if fresh is None:
            rows = self._rows[[self._slots[text] for text in distinct]]
        else:
            rows = fresh.new_empty(len(distinct), fresh.shape[1])
            rows[[distinct[text] for text in new]] = fresh
            rows[[distinct[text] for text in held]] = self._rows[[self._slots[t] for t in held]]
        for text in held:
            self._slots.move_to_end(text)
        if fresh is not None:
            self._store(new[-self.capacity :], fresh[-self.capacity :])
        return rows[[distinct[text] for text in texts]]

    def _store(self, texts: list[str], rows: Float[Tensor, "n d"]) -> None:
        assert self._rows is not None
        slots = list(range(len(self._slots), self.capacity))[: len(texts)]
        while len(slots) < len(texts):  # full: the text that was not asked for longest goes
            slots.append(self._slots.popitem(last=False)[1])
        self._rows[slots] = rows
        self._slots.update(zip(texts, slots, strict=True))


class CachedTextEncoder:
    """What text encoders share: texts that begin alike, come back and grow.

    An encoder whose text tower is causal gives it by `_tower` and its texts' tokens by `_paths`;
    for the others a new text is encoded in full.
    """

    _text_features: Callable[[list[str]], Tensor]

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """As `base.TextEncoder`; tokens beyond `context_length` are cut off.

        Many texts go through a causal tower as a tree, on a CPU, where less arithmetic is less
        time; their rows differ from those of few by rounding.
        """
        distinct = list(dict.fromkeys(texts))
        tower = self._causal_tower if len(distinct) >= SHARED_FROM else None
        if tower is None or tower.device.type != "cpu":
            return encode_texts(texts, self._text_features)
        rows = unit_rows(encode_paths(tower, self._paths(distinct)).float(), distinct)
        place = {text: row for row, text in enumerate(distinct)}
        return rows[[place[text] for text in texts]]

    def session(self) -> IncrementalTextEncoder:
        """As `base.TextEncoder`."""
        tower = self._causal_tower
        if tower is None:
            return lambda texts: self._memory(texts, self.encode_texts)
        tree = TokenTree(tower)

        def encode(texts: Sequence[str]) -> Tensor:
            return unit_rows(tree(self._paths(texts)).float().clone(), texts)

        return lambda texts: self._memory(texts, encode)

    def matcher(self) -> Matcher:
        """As `base.DualEncoder`."""
        encode = self.session()

        def match(
            images: Float[Tensor, "b d"], texts: Sequence[Sequence[str]]
        ) -> Float[Tensor, "b k"]:
            rows = encode([text for row in texts for text in row])
            rows = rows.view(len(texts), -1, rows.shape[1])  # [b, k, d]
            return (rows @ images.to(rows.device)[:, :, None])[..., 0]

        return match

    def _tower(self) -> Tower | None:
        """The text tower taken apart, if it may be causal."""
        return None

    def _paths(self, texts: Sequence[str]) -> list[Tokens]:
        """Each text's tokens up to the one whose state is its embedding."""
        raise NotImplementedError

    @cached_property
    def _causal_tower(self) -> Tower | None:
        """The tower, if its rows are those of the model itself: tried, not believed."""
        tower = self._tower()
        if tower is None:
            return None
        with torch.inference_mode():
            features = torch.cat([self._text_features([text]) for text in PROBES])
            half = features.dtype != torch.float32
            same = is_causal(tower, self._paths(PROBES), features, 0.1 if half else 1e-3)
        return tower if same else None

    @cached_property
    def _memory(self) -> TextMemory:
        """Shared by all sessions: what one run's pictures have in common is encoded once."""
        return TextMemory()


def unit_rows(
    rows: Float[Tensor, "n d"], items: Sequence[str | Image.Image]
) -> Float[Tensor, "n d"]:
    """Rows at unit length; ZeroshotError, naming the first such input, where one has none."""
    broken = ~(rows.isfinite().all(dim=1) & rows.any(dim=1))
    if broken.any():
        first = items[int(broken.nonzero()[0])]
        raise ZeroshotError(
            f"the model's embedding is zero or not finite for {int(broken.sum())} of {len(items)} "
            f"inputs, first for {first!r}; in half precision, fp32 may help"
        )
    return normalize(rows)


def _encode(
    items: list[Item], features: Callable[[list[Item]], Tensor], at_once: int
) -> Float[Tensor, "n d"]:
    return unit_rows(_raw(items, features, at_once), items)


def _raw(
    items: list[T], features: Callable[[list[T]], Tensor], at_once: int
) -> Float[Tensor, "n d"]:
    starts = range(0, len(items), at_once)
    with torch.inference_mode():
        return torch.cat([features(items[s : s + at_once]).float().cpu() for s in starts])
