"""Text encoders that reuse their work: texts that come back, begin alike and grow."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.models.base import IncrementalTextEncoder, Matcher
from zeroshot.models.encoding import encode_texts, unit_vectors
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


class EmbeddingMemory:
    """Unit vectors of the most recently used texts.

    A caption by MaGiC has some 500 candidates, of which 300 are new (docs/performance.md): there is
    room for 200 images. It takes 134 MB at 512 numbers each, once it is full.
    """

    def __init__(self, capacity: int = 65536) -> None:
        self.capacity = capacity
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._vectors: Tensor | None = None  # [capacity, d]; pages are touched as they fill

    def __call__(
        self, texts: Sequence[str], encode: Callable[[list[str]], Tensor]
    ) -> Float[Tensor, "n d"]:
        """A vector for each text; `encode` computes those that the memory lacks."""
        index = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        known = [text for text in index if text in self._slots]
        new = [text for text in index if text not in self._slots]
        fresh = encode(new) if new else None
        if fresh is not None and self._vectors is None:
            self._vectors = fresh.new_empty(self.capacity, fresh.shape[1])
        assert self._vectors is not None
        if fresh is None:
            vectors = self._vectors[[self._slots[text] for text in index]]
        else:
            vectors = fresh.new_empty(len(index), fresh.shape[1])
            vectors[[index[text] for text in new]] = fresh
            vectors[[index[text] for text in known]] = self._vectors[
                [self._slots[t] for t in known]
            ]
        for text in known:
            self._slots.move_to_end(text)
        if fresh is not None:
            self._store(new[-self.capacity :], fresh[-self.capacity :])
        return vectors[[index[text] for text in texts]]

    def _store(self, texts: list[str], vectors: Float[Tensor, "n d"]) -> None:
        assert self._vectors is not None
        slots = list(range(len(self._slots), self.capacity))[: len(texts)]
        while len(slots) < len(texts):  # full: the least recently used text makes room
            slots.append(self._slots.popitem(last=False)[1])
        self._vectors[slots] = vectors
        self._slots.update(zip(texts, slots, strict=True))


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
        tree = None if tower is None else TokenTree(tower)

        def encode(texts: Sequence[str]) -> Tensor:
            if tree is None:
                return self.encode_texts(texts)
            return unit_vectors(tree(self._paths(texts)).float().clone(), texts)

        def session(texts: Sequence[str]) -> Float[Tensor, "n d"]:
            with self.own_turn():
                return self._memory(texts, encode)

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
                return (embeddings @ images.to(embeddings.device)[:, :, None])[..., 0]

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
    def _memory(self) -> EmbeddingMemory:
        """Shared by all sessions, so that what a run's images have in common is encoded once."""
        return EmbeddingMemory()
