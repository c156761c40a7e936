"""An n-gram model of weighted texts, and a guide for decoding made of it.

The model interpolates n-grams over the language model's own tokens: a context of `n` tokens has the
weight `mass / (mass + DOUBT)`, where `mass` is the weight of the texts that contain the context,
and shorter contexts share the rest (Witten and Bell 1991; beside a neural model as in kNN-LM,
Khandelwal et al. 2020, arXiv:1911.00172).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

ORDER = 4
"""Tokens of an n-gram, at most."""
DOUBT = 0.3
"""Weight of texts, of 1 in all, at which a context counts by half."""

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Continuations:
    """Probabilities of the next token after any text, counted in weighted texts."""

    texts: Sequence[Sequence[int]]
    """Their tokens, from the start token to the end token."""
    weights: Sequence[float]

    def after(self, text: Sequence[int]) -> Mapping[int, float]:
        """Probability of each token seen next in some text; `text` begins with the start token."""
        context = tuple(text[-(ORDER - 1) :])
        probability = self._cache.get(context)
        if probability is None:
            probability = self._cache[context] = self._interpolate(context)
        return probability

    def _interpolate(self, context: Tokens) -> Mapping[int, float]:
        probability: dict[int, float] = defaultdict(float)
        rest = 1.0
        for begin in range(len(context) + 1):
            followers = self._followers.get(context[begin:], {})
            mass = sum(followers.values())
            if mass == 0:  # unseen, or only in texts whose weight underflowed
                continue
            trust = 1.0 if begin == len(context) else mass / (mass + DOUBT)
            for token, weight in followers.items():
                probability[token] += rest * trust * weight / mass
            rest *= 1 - trust
        return probability

    @cached_property
    def _followers(self) -> Mapping[Tokens, Mapping[int, float]]:
        """Weight of each token after each context of up to `ORDER - 1` tokens."""
        followers: dict[Tokens, dict[int, float]] = {}
        for text, weight in zip(self.texts, self.weights, strict=True):
            for position, token in enumerate(text[1:], 1):
                for begin in range(max(0, position - ORDER + 1), position + 1):
                    table = followers.setdefault(tuple(text[begin:position]), {})
                    table[token] = table.get(token, 0.0) + weight
        return followers

    @cached_property
    def _cache(self) -> dict[Tokens, Mapping[int, float]]:
        """Probabilities by context, filled by `after`."""
        return {}


@dataclass(frozen=True)
class ContinuationGuide:
    """`beta` times each candidate's probability under the n-gram model of its row."""

    models: Sequence[Continuations]
    """One for each row of `prefixes`."""
    prefixes: Sequence[Sequence[int]]
    beta: float

    def __call__(
        self,
        rows: Sequence[int],
        generated: Sequence[Sequence[int]],
        candidates: Int[Tensor, "b k"],
    ) -> Float[Tensor, "b k"]:
        """See `decoding.Guide`."""
        scores = []
        for row, tokens, own in zip(rows, generated, candidates.tolist(), strict=True):
            probability = self.models[row].after([*self.prefixes[row], *tokens])
            scores.append([probability.get(token, 0.0) for token in own])
        return self.beta * torch.tensor(scores, device=candidates.device)
