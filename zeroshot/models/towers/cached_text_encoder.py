"""Text encoders that reuse their work: texts that come back, begin alike and grow."""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.models.base import IncrementalTextEncoder, Matcher
from zeroshot.models.devices import on_device, sent, ways_of
from zeroshot.models.encoding import encode_texts, unit_vectors, unit_vectors_unread
from zeroshot.models.isolation import FrozenModel
from zeroshot.models.towers.text_tower import (
    PROBES,
    Tokens,
    TokenTree,
    Tower,
    encode_paths,
    is_causal,
)

__all__ = ["CachedTextEncoder", "EmbeddingMemory"]

TREE_FROM = 64
"""Smallest number of texts for which `encode_texts` uses the tree of a causal tower: testing
whether the tower is causal costs as much as encoding a few texts."""


Before = Callable[[Sequence[str]], tuple[Float[Tensor, "m d"], Bool[Tensor, " n"]]]
"""Texts to the vectors of those that it has, and which these are."""


class EmbeddingMemory:
    """Unit vectors of the most recently used texts.

    A caption by MaGiC has some 500 candidates, of which 300 are new (docs/performance.md): there is
    room for 200 images. It takes 134 MB at 512 numbers each, once it is full.
    """

    def __init__(self, capacity: int = 65536, before: "Before | None" = None) -> None:
        self.capacity = capacity
        self.before = before
        """What an earlier run remembered."""
        self.encoded: list[str] = []
        """Texts that were in neither, since they were last `taken`."""
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._vectors: Tensor | None = None  # [capacity, d]; pages are touched as they fill

    def __call__(
        self, texts: Sequence[str], encode: Callable[[list[str]], Tensor]
    ) -> Float[Tensor, "n d"]:
        """A vector for each text; `encode` computes those that the memory lacks."""
        different = dict.fromkeys(texts)
        known = [text for text in different if text in self._slots]
        new = [text for text in different if text not in self._slots]
        fresh = self._fresh(new, encode) if new else None
        if fresh is not None and self._vectors is None:
            self._vectors = fresh.new_empty(self.capacity, fresh.shape[1])
        assert self._vectors is not None
        found = [self._slots[text] for text in known]
        for text in known:
            self._slots.move_to_end(text)
        stored = new[-self.capacity :]
        slots = self._room(len(stored))
        place = {text: i for i, text in enumerate([*new, *known])}
        order = [place[text] for text in texts]
        at, to, order_at = on_device(self._vectors.device, found, slots, order)
        rows = self._vectors.index_select(0, at)
        if fresh is not None:
            rows = torch.cat([fresh, rows])
            self._vectors.index_copy_(0, to, fresh[len(new) - len(stored) :])
            self._slots.update(zip(stored, slots, strict=True))
        return rows.index_select(0, order_at)

    def __len__(self) -> int:
        return len(self._slots)

    def taken(self) -> tuple[list[str], Float[Tensor, "n d"]]:
        """The texts in `encoded` that are still remembered, which it then lists no more."""
        texts = [text for text in dict.fromkeys(self.encoded) if text in self._slots]
        self.encoded.clear()
        rows = [self._slots[text] for text in texts]
        return texts, torch.empty(0, 0) if self._vectors is None else self._vectors[rows]

    def _fresh(self, new: list[str], encode: Callable[[list[str]], Tensor]) -> Float[Tensor, "n d"]:
        """Of texts that are not remembered: from before, or encoded."""
        if self.before is None:
            return encode(new)
        stored, hits = self.before(new)
        known = hits.tolist()
        if self._vectors is None:  # encoding one shows the device
            stored, known[0] = stored[int(known[0]) :], False
        lacking = [text for text, hit in zip(new, known, strict=True) if not hit]
        self.encoded += lacking
        if not len(stored):
            return encode(new)
        rows = encode(lacking) if lacking else stored[:0]
        device = rows.device if self._vectors is None else self._vectors.device
        rank = {text: i for i, text in enumerate(lacking)}
        others = {text: len(lacking) + i for i, text in enumerate(t for t in new if t not in rank)}
        [order] = on_device(device, [(rank | others)[text] for text in new])
        return torch.cat([rows.to(device), sent(stored, device)]).index_select(0, order)

    def _room(self, count: int) -> list[int]:
        """Slots for so many texts; the least recently used make room."""
        full = len(self._slots)
        slots = list(range(full, min(full + count, self.capacity)))
        while len(slots) < count:
            slots.append(self._slots.popitem(last=False)[1])
        return slots


class CachedTextEncoder(FrozenModel):
    """Mixin of `base.TextEncoder` and `base.DualEncoder.matcher`.

    An encoder with a causal text tower provides it by `_tower`, and the tokens of texts by
    `_paths`. Other encoders encode each new text in full.
    """

    trained_scale = True
    """Whether a dual encoder's scale is one of its own, so that its softmax is a probability."""
    _text_features: Callable[[list[str]], Tensor]
    """Embeddings `[b d]` of a batch, of any length."""

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """As `base.TextEncoder`; tokens beyond `context_length` are cut off.

        On a CPU, many texts go through a causal tower as a tree, which takes less arithmetic;
        their embeddings differ from those of few texts by rounding.
        """
        unique = list(dict.fromkeys(texts))
        tower = self._causal_tower if len(unique) >= TREE_FROM else None
        if tower is None or tower.device.type != "cpu":
            return encode_texts(texts, self._text_features)
        embeddings = unit_vectors(encode_paths(tower, self._paths(unique)).float(), unique)
        index = {text: i for i, text in enumerate(unique)}
        return embeddings[[index[text] for text in texts]]

    def session(self) -> IncrementalTextEncoder:
        """As `base.TextEncoder`."""
        tower = self._causal_tower
        tree = None if tower is None else self._trees.pop() if self._trees else TokenTree(tower)
        unread = tower is not None and ways_of(tower.device).one_read

        def encode(texts: Sequence[str]) -> Tensor:
            if tree is None:
                return self.encode_texts(texts)
            rows = tree(self._paths(texts)).float().clone()
            return unit_vectors_unread(rows) if unread else unit_vectors(rows, texts)

        def session(texts: Sequence[str]) -> Float[Tensor, "n d"]:
            with self.own_turn():
                return self.memory(texts, encode)

        if tree is not None and ways_of(tree.tower.device).static:
            weakref.finalize(session, self._trees.append, tree)
        return session

    def matcher(self) -> Matcher:
        """As `base.DualEncoder`."""
        encode = self.session()

        def match(
            images: Float[Tensor, "b m"], texts: Sequence[Sequence[str]]
        ) -> Float[Tensor, "b k"]:
            with self.own_turn():
                embeddings = encode([text for row in texts for text in row])
                embeddings = embeddings.view(len(texts), -1, embeddings.shape[1])  # [b, k, m]
                return (embeddings @ sent(images, embeddings.device)[:, :, None])[..., 0]

        return match

    def _tower(self) -> Tower | None:
        """The text tower as `Tower`, if it may be causal."""
        return None

    def _paths(self, texts: Sequence[str]) -> list[Tokens]:
        """Each text's tokens up to the one whose state is its embedding."""
        raise NotImplementedError

    @cached_property
    def _causal_tower(self) -> Tower | None:
        """The tower, if a test shows that its embeddings are the model's own."""
        tower = self._tower()
        if tower is None:
            return None
        with torch.inference_mode():
            features = torch.cat([self._text_features([text]) for text in PROBES])
            half = features.dtype != torch.float32
            same = is_causal(tower, self._paths(PROBES), features, 0.1 if half else 1e-3)
        return tower if same else None

    @cached_property
    def _trees(self) -> list[TokenTree]:
        """Of sessions that are over: what was captured for them goes on being used."""
        return []

    @cached_property
    def memory(self) -> EmbeddingMemory:
        """Shared by all sessions, so that what a run's images have in common is encoded once."""
        return EmbeddingMemory()
