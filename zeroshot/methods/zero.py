"""ZERO: the most confident views of a picture vote.

Farina et al. 2024, "Frustratingly Easy Test-Time Adaptation of Vision-Language Models", NeurIPS,
arXiv:2405.18330; authors' code: github.com/FarinaMatteo/zero (MIT).

    keep the floor(gamma v) views with the lowest entropy of softmax(logit_scale x_v . w)
    score_c = share of the kept views whose best class is c

Where classes tie, the other views are asked in the order of their entropy, and the first whose best
class is among the tied gives it one vote more.

| here | paper |
|---|---|
| views | augmented views |
| gamma | gamma, share of views kept |

Departures from the authors' code: votes are divided by their number.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble

BLOCK = 4_000_000
"""Logits of views that are held at a time."""


@dataclass(frozen=True)
class Zero:
    """Shares of votes for pictures of which several views are embedded."""

    gamma: float = 0.3
    """share of the views that vote, at least one"""

    transductive: ClassVar[bool] = False

    @property
    def output(self) -> Output:
        """Shares of votes."""
        return "probability"

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
        *,
        views: Float[Tensor, "n v d"],
    ) -> Float[Tensor, "n c"]:
        """Shares of votes; `views` has the picture itself among its rows, `images` is not read."""
        votes = self.votes(views, texts, text_mask, logit_scale)
        return votes / votes.sum(1, keepdim=True)

    def votes(
        self,
        views: Float[Tensor, "n v d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Numbers of votes, with the one that breaks a tie."""
        prototypes = logit_scale * Ensemble().classifier(texts, text_mask)
        count = views.shape[1]
        parts = []
        for some in torch.split(views, max(1, BLOCK // (count * len(texts)))):
            logits = some @ prototypes.T  # [b, v, c]
            order = entropy(logits).argsort(dim=1, stable=True)
            best = logits.argmax(-1).gather(1, order)  # [b, v], the most confident view first
            kept = max(1, int(count * self.gamma))
            parts.append(_counted(best[:, :kept], best[:, kept:], len(texts), views.dtype))
        return torch.cat(parts)


def entropy(logits: Float[Tensor, "*n c"]) -> Float[Tensor, "*n"]:
    """Of the softmax, in nats."""
    log_probability = logits.log_softmax(-1)
    return -(log_probability.exp() * log_probability).sum(-1)


def _counted(
    voters: Int[Tensor, "n k"], others: Int[Tensor, "n r"], classes: int, dtype: torch.dtype
) -> Float[Tensor, "n c"]:
    """Votes, ties broken."""
    votes = torch.zeros(len(voters), classes, dtype=dtype, device=voters.device)
    votes.scatter_add_(1, voters, torch.ones_like(voters, dtype=dtype))
    tied = votes == votes.amax(1, keepdim=True)
    asked = tied.gather(1, others) & (tied.sum(1, keepdim=True) > 1)  # [n, r]
    first = asked & (asked.cumsum(1) == 1)
    return votes.scatter_add_(1, others, first.to(dtype))
