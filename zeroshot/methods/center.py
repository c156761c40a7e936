"""Centred scores: a class that is a little similar to every image gains nothing from it.

Mean subtraction of logits, the simplest correction for class bias. The same step is part of
Allingham et al. 2023 (ZPE, arXiv:2302.06235) and of hubness reduction by centring (Suzuki et al.
2013, "Centering Similarity Measures to Reduce Hubs", EMNLP).

    m_c   = mean_j L_jc - mean_jk L_jk          (1)
    L_ic <- L_ic - lam (1 - pi_c) m_c           (2)

The mean runs over the images themselves or, once fitted, over a bank of unlabelled images; then the
score of an image does not depend on the others.

`pi_c` is ours: an estimate of the frequency of the class (Saerens et al. 2002, four steps on at
most 1024 of the images). The mean of a class is also high if most images belong to it, and without
`pi_c` it would lose them: on synthetic batches of a single class, `lam = 1` lowered the accuracy
from 56 to 1 %, and with `pi_c` raised it to 62 % (benchmarks/few_classes.py). `guard=false` is the
plain mean.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._bank import OptionalBank
from zeroshot.methods._prior import estimate
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble

SAMPLE, STEPS = 1024, 4
"""Images and steps for the estimated frequencies: no more than the scores themselves cost."""


@dataclass(frozen=True)
class Center(OptionalBank):
    """Logits minus a share of each class's mean logit."""

    lam: float = 0.5
    """share of the mean that is subtracted, 0 to 1"""
    guard: bool = True
    """spare a class in proportion to its estimated frequency"""

    @property
    def output(self) -> Output:
        """Logits less a constant for each class."""
        return "logit"

    def adjust(
        self, logits: Float[Tensor, "n c"], bank: Float[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "n c"]:
        """Centred logits, of any method."""
        return logits - self._excess(logits if bank is None else bank)

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Centred zero-shot logits."""
        classifier = logit_scale * Ensemble().classifier(texts, text_mask)
        bank = None if self.bank_ is None else self.bank_ @ classifier.T
        return self.adjust(images @ classifier.T, bank)

    def _excess(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " c"]:
        """What to subtract from each class."""
        mean = logits.mean(0)
        excess = self.lam * (mean - mean.mean())  # (1), (2)
        if not self.guard:
            return excess
        sample = logits[:: -(-len(logits) // SAMPLE)]
        return excess * (1 - estimate(sample, most=STEPS))
