"""ZERO: the most confident views of an image vote.

Farina et al. 2024, "Frustratingly Easy Test-Time Adaptation of Vision-Language Models", NeurIPS,
arXiv:2405.18330; authors' code: github.com/FarinaMatteo/zero (MIT).

    voters  = the floor(gamma v) views with the lowest entropy of softmax(logit_scale x_v . w)   (1)
    score_c = share of the voters whose best class is c                                          (2)

If classes tie, the other views follow in the order of their entropy, and the first whose best class
is among the tied ones adds one vote.

| here | paper |
|---|---|
| views | augmented views |
| gamma | gamma, share of views that vote |

Departures from the authors' code: votes are divided by their number.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.methods._door import Method
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble

BLOCK = 4_000_000
"""Logits of views that are computed at a time."""


@dataclass(frozen=True)
class Zero(Method):
    """Shares of votes for images with several embedded views."""

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
        """Shares of votes; the image itself is one of its `views`, `images` is not read."""
        votes = self.votes(views, texts, text_mask, logit_scale)
        return votes / votes.sum(1, keepdim=True)

    def votes(
        self,
        views: Float[Tensor, "n v d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Numbers of votes, including a vote that breaks a tie."""
        prototypes = logit_scale * Ensemble().classifier(texts, text_mask)
        count = views.shape[1]
        parts = []
        for block in torch.split(views, max(1, BLOCK // (count * len(texts)))):
            logits = block @ prototypes.T  # [b, v, c]
            order = entropy(logits).argsort(dim=1, stable=True)
            best = logits.argmax(-1).gather(1, order)  # [b, v], the most confident view first
            voters = max(1, int(count * self.gamma))  # (1)
            parts.append(_count(best[:, :voters], best[:, voters:], len(texts), views.dtype))
        return torch.cat(parts)


def entropy(logits: Float[Tensor, "*n c"]) -> Float[Tensor, "*n"]:
    """Of the softmax, in nats."""
    log_probability = logits.log_softmax(-1)
    return -(log_probability.exp() * log_probability).sum(-1)


def _count(
    voters: Int[Tensor, "n k"], others: Int[Tensor, "n r"], classes: int, dtype: torch.dtype
) -> Float[Tensor, "n c"]:
    """(2), as numbers of votes, ties broken."""
    votes = torch.zeros(len(voters), classes, dtype=dtype, device=voters.device)
    votes.scatter_add_(1, voters, torch.ones_like(voters, dtype=dtype))
    tied = votes == votes.amax(1, keepdim=True)
    eligible = tied.gather(1, others) & (tied.sum(1, keepdim=True) > 1)  # [n, r]
    first = eligible & (eligible.cumsum(1) == 1)
    return votes.scatter_add_(1, others, first.to(dtype))
