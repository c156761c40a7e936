"""A pool of captions, and retrieval from it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.metrics.captioning import (
    DocumentFrequency,
    document_frequency,
    frequency_of_words,
)
from zeroshot.ops import topk_stream

FREQUENCY_SAMPLE = 20_000
"""Word frequencies of a pool are counted in this many of its captions, at most."""


@dataclass(frozen=True)
class Pool:
    """Captions to choose from, with their embeddings in the encoder's joint space."""

    texts: Sequence[str]
    embeddings: Float[Tensor, "m d"]
    words: Sequence[Sequence[str]] | None = None
    """The texts tokenized by `metrics.ptb_tokenizer`; they are if it is None."""

    @cached_property
    def unique(self) -> "Pool":
        """Each caption once, where it comes first."""
        first = {text: i for i, text in reversed(list(enumerate(self.texts)))}
        if len(first) == len(self.texts):
            return self
        index = sorted(first.values())
        words = None if self.words is None else [self.words[i] for i in index]
        return Pool([self.texts[i] for i in index], self.embeddings[index], words)

    @cached_property
    def frequency(self) -> DocumentFrequency:
        """Number of captions that contain an n-gram, of `FREQUENCY_SAMPLE` captions at most.

        The sample depends on the captions alone, not on their order.
        """
        texts = self.texts
        if len(texts) > FREQUENCY_SAMPLE:
            by_hash = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
            texts = by_hash[:FREQUENCY_SAMPLE]
        elif self.words is not None:
            return frequency_of_words([[words] for words in self.words])
        return document_frequency([[text] for text in texts])


@dataclass(frozen=True)
class RetrievedCaptions:
    """The captions of a pool that are most similar to an image, and how much each counts."""

    texts: list[str]
    weights: Float[Tensor, " k"]
    cosine: Float[Tensor, " k"]


def unique_captions(pool: Pool | None) -> Pool:
    """The pool with each caption once; UserError without a pool."""
    if pool is None or not pool.texts:
        raise UserError("a pool of captions to learn from is needed")
    return pool.unique


def retrieve(
    images: Float[Tensor, "n d"], pool: Pool, neighbours: int, sharpness: float
) -> list[RetrievedCaptions]:
    """The nearest captions of each image.

    Weights are the softmax of `sharpness` times the cosines and sum to 1.

    Raises:
        UserError: options out of range.
    """
    if neighbours < 1 or sharpness < 0:
        raise UserError(f"neighbours={neighbours}, sharpness={sharpness}: at least 1 and 0")
    cosine, index = topk_stream(images, pool.embeddings, neighbours)
    weights = (sharpness * cosine).softmax(1)
    return [
        RetrievedCaptions([pool.texts[j] for j in own], own_weights, own_cosine)
        for own, own_weights, own_cosine in zip(
            index.tolist(), weights.cpu(), cosine.cpu(), strict=True
        )
    ]
