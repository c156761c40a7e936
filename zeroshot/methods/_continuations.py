"""What follows what in some texts, and a guide made of it.

An interpolated n-gram model over the language model's own tokens, of texts that have weights: after
a context of `n` tokens it trusts what followed them by `mass / (mass + DOUBT)`, where `mass` is the
weight of the texts that hold the context, and shorter contexts with the rest (Witten and Bell 1991;
beside a neural model as in kNN-LM, Khandelwal et al. 2020, arXiv:1911.00172).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

ORDER = 4
"""Tokens that an n-gram holds at most."""
DOUBT = 0.3
"""Weight of texts, of 1 in all, at which a context is trusted by half."""

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Continuations:
    """The next token after any text, as weighted texts have it."""

    texts: Sequence[Sequence[int]]
    """Tokens, from the start token to the end token."""
    weights: Sequence[float]

    def after(self, text: Sequence[int]) -> Mapping[int, float]:
        """Probability of each token that some text has; `text` begins with the start token."""
        context = tuple(text[-(ORDER - 1) :])
        known = self._known.get(context)
        if known is None:
            known = self._known[context] = self._interpolated(context)
        return known

    def _interpolated(self, context: Tokens) -> Mapping[int, float]:
        probability: dict[int, float] = defaultdict(float)
        left = 1.0
        for begin in range(len(context) + 1):
            followers = self._followers.get(context[begin:])
            if followers is None:
                continue
            mass = sum(followers.values())
            trust = 1.0 if begin == len(context) else mass / (mass + DOUBT)
            for token, weight in followers.items():
                probability[token] += left * trust * weight / mass
            left *= 1 - trust
        return probability

    @cached_property
    def _followers(self) -> Mapping[Tokens, Mapping[int, float]]:
        """Weight of each token after each context of up to `ORDER - 1` tokens."""
        followers: dict[Tokens, dict[int, float]] = {}
        for text, weight in zip(self.texts, self.weights, strict=True):
            for place in range(1, len(text)):
                for begin in range(max(0, place - ORDER + 1), place + 1):
                    table = followers.setdefault(tuple(text[begin:place]), {})
                    table[text[place]] = table.get(text[place], 0.0) + weight
        return followers

    @cached_property
    def _known(self) -> dict[Tokens, Mapping[int, float]]:
        """Answers so far."""
        return {}


@dataclass(frozen=True)
class ContinuationGuide:
    """`beta` times the probability that a row's own n-gram model gives each candidate."""

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
        for row, tokens, asked in zip(rows, generated, candidates.tolist(), strict=True):
            likely = self.models[row].after([*self.prefixes[row], *tokens])
            scores.append([likely.get(token, 0.0) for token in asked])
        return self.beta * torch.tensor(scores, device=candidates.device)
