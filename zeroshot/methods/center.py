"""Centred scores: a class that every picture resembles a little gains nothing from it.

Mean subtraction of logits, the simplest of the corrections for class bias; the same step is part of
Allingham et al. 2023 (ZPE, arXiv:2302.06235) and of hubness reduction by centring (Suzuki et al.
2013, "Centering Similarity Measures to Reduce Hubs", EMNLP).

    L_ic <- L_ic - lam mean_j L_jc

The mean runs over the rows themselves or, once fitted, over a bank of unlabelled rows, after which
every row stands alone. `lam = 1` takes a class's whole mean away, and with it the evidence for a
class that makes up most of the rows; the default keeps most of it.
"""

from dataclasses import dataclass, field, replace

from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods import Output
from zeroshot.methods.ensemble import Ensemble


@dataclass(frozen=True)
class Center:
    """Logits minus a share of each class's mean logit."""

    lam: float = 0.25
    """share of the mean that is subtracted, 0 to 1"""

    bank_: Float[Tensor, "b d"] | None = field(default=None, repr=False, compare=False)

    @property
    def transductive(self) -> bool:
        """Unless a bank gives the means."""
        return self.bank_ is None

    @property
    def output(self) -> Output:
        """Logits less a constant for each class."""
        return "logit"

    def fit(self, bank: Float[Tensor, "b d"] | None = None) -> "Center":
        """A copy whose means are those of the bank."""
        return replace(self, bank_=bank)

    def adjust(
        self, logits: Float[Tensor, "n c"], bank: Float[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "n c"]:
        """Centred logits, of whatever method."""
        return logits - self.lam * (logits if bank is None else bank).mean(0)

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Centred zero-shot logits; a mean of dot products is the product with the mean row."""
        classifier = logit_scale * Ensemble().classifier(texts, text_mask)
        rows = images if self.bank_ is None else self.bank_
        return images @ classifier.T - self.lam * (classifier @ rows.mean(0))
