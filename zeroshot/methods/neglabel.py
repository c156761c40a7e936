"""NegLabel: labels that share one soft-max with words far from all of them.

Jiang et al. 2024, "Negative Label Guided OOD Detection with Pretrained Vision-Language Models",
ICLR, arXiv:2403.20078; authors' code: XueJiang16/NegLabel (Apache-2.0). CSP (Chen et al. 2024,
arXiv:2410.08611; code without a licence) makes other words, and leaves out those that are nearly a
label.

    d_w   = quantile over classes c of w . w_c                          distance of a word w
    N     = the share of words with the smallest d_w
    p_ic  = exp(s x_i . w_c) / (sum_c exp(s x_i . w_c) + sum_{w in N} exp(s x_i . w))
    S_i   = sum_c p_ic                                              image i is one of the labels

Departures. Their code without groups forgets the soft-max (AUROC 0.64 where it should be 0.91).
With groups, S is the mean over groups of N; they drop the words that do not fill a group, always
the same ones, and draw groups by the global generator. Here groups differ in size by one at most.
They choose nouns and adjectives apart; here all words are one list.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._door import Method
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble


@dataclass(frozen=True)
class NegLabel(Method):
    """Probabilities of the labels; what is left to 1 is the probability that it is none of them."""

    share: float = 0.15
    """share of the words that is kept, those farthest from all labels"""
    quantile: float = 0.95
    """of a word's cosines with the labels: its distance; 1 is the nearest label"""
    nearest: float = 0.95
    """words with a higher cosine with a label are left out (CSP)"""
    groups: int = 1
    """groups of words, over which the probabilities are averaged; 100 in the paper"""

    transductive: ClassVar[bool] = False
    words_: Float[Tensor, "w d"] | None = field(default=None, repr=False, compare=False)

    @property
    def output(self) -> Output:
        """Probabilities that sum to at most 1."""
        return "probability"

    def fit(self, words: Float[Tensor, "w d"]) -> "NegLabel":
        """A copy with unit embeddings of words, of which some will be kept."""
        return replace(self, words_=words)

    def negatives(self, classifier: Float[Tensor, "c d"]) -> Float[Tensor, "n d"]:
        """The words that are farthest from all labels.

        Raises:
            UserError: no words, or none that is kept.
        """
        if self.words_ is None:
            raise UserError("neglabel needs the array words: embeddings of words that are no label")
        chosen = farthest(self.words_, classifier, self.share, self.quantile, self.nearest)
        if not len(chosen):
            raise UserError(
                f"neglabel: no word is left of {len(self.words_)} with share={self.share}; give "
                "more words, or a larger share"
            )
        return self.words_[chosen]

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """The probability of each label; a row sums to S."""
        classifier = Ensemble().classifier(texts, text_mask)
        negatives = self.negatives(classifier)
        parts = negatives[torch.randperm(len(negatives), generator=_seeded())]
        own = logit_scale * images @ classifier.T
        mean = torch.zeros_like(own)
        count = max(1, min(self.groups, len(parts)))
        for part in torch.tensor_split(parts, count):
            every = torch.cat([own, logit_scale * images @ part.T], dim=1)
            mean = mean + every.softmax(1)[:, : own.shape[1]] / count
        return mean


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def farthest(
    words: Float[Tensor, "w d"],
    classifier: Float[Tensor, "c d"],
    share: float = 0.15,
    quantile: float = 0.95,
    nearest: float = 1.0,
) -> Int[Tensor, " n"]:
    """The indices of the words that are kept, the farthest first."""
    cosines = words @ classifier.T
    distance = torch.quantile(cosines, quantile, dim=1)
    distance = torch.where(cosines.amax(1) > nearest, 1.0, distance)
    return distance.argsort(stable=True)[: int(share * len(words))]
