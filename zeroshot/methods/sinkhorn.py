"""Sinkhorn: class biases under which the predictions have the given class frequencies.

Cuturi 2013, "Sinkhorn Distances", NeurIPS, arXiv:1306.0895. InMaP (Qian et al. 2023,
arXiv:2310.19752) makes CLIP's pseudo-labels this way; OTTER (Shin et al. 2024, arXiv:2404.08461)
is the limit without entropy. Conf-OT (Silva-Rodriguez et al. 2025, arXiv:2505.24693) makes label
sets after three iterations with `first=classes` and class shares from labelled images.

    u_i = -log sum_c exp(L_ic + v_c)                  every image has mass 1            (1)
    v_c = log pi_c - log mean_i exp(L_ic + u_i)       class c gets its share pi_c       (2)
    L_ic <- L_ic + v_c                                                                  (3)

The result of the iteration is one bias per class. With a bank the biases are computed from it, and
the score of an image does not depend on the others. The prior must be given. `assume=uniform` is
what papers use on balanced benchmarks; on a batch with few of the classes it forces images into the
absent ones, and warns. `assume=estimated` first estimates the prior (Saerens et al. 2002).

| here | paper |
|---|---|
| prior | column marginal |
| iterations | 20 in InMaP |
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._door import Method
from zeroshot.methods._prior import Assume, resolve
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble


@dataclass(frozen=True)
class Sinkhorn(Method):
    """Logits plus a bias per class that makes the prior hold."""

    iterations: int = 20
    """rounds of rows and columns"""
    first: Literal["images", "classes"] = "images"
    """what the first half of a round balances: (1), or (2) with u = 0"""
    assume: Assume = "given"
    """without a prior: refuse, assume equally frequent classes, or estimate their frequencies"""

    one_label: ClassVar[bool] = True
    """See `_transduction.Transduction`."""

    prior_: Float[Tensor, " c"] | None = field(default=None, repr=False, compare=False)
    bank_: Float[Tensor, "b d"] | None = field(default=None, repr=False, compare=False)

    @property
    def transductive(self) -> bool:
        """Unless there is a bank."""
        return self.bank_ is None

    @property
    def output(self) -> Output:
        """Logits plus a constant for each class."""
        return "logit"

    def fit(
        self,
        prior: Float[Tensor, " c"] | None = None,
        bank: Float[Tensor, "b d"] | None = None,
    ) -> "Sinkhorn":
        """A copy with these class frequencies, and a bank to balance instead of the images."""
        return replace(self, prior_=prior, bank_=bank)

    def adjust(
        self, logits: Float[Tensor, "n c"], bank: Float[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "n c"]:
        """Balanced logits, of any method."""
        rows = logits if bank is None else bank
        prior = resolve("sinkhorn", self.prior_, self.assume, rows)
        return logits + biases(rows, prior, self.iterations, self.first == "classes")  # (3)

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Balanced zero-shot logits."""
        classifier = logit_scale * Ensemble().classifier(texts, text_mask)
        bank = None if self.bank_ is None else self.bank_ @ classifier.T
        return self.adjust(images @ classifier.T, bank)


def biases(
    logits: Float[Tensor, "n c"],
    prior: Float[Tensor, " c"],
    iterations: int = 20,
    classes_first: bool = False,
) -> Float[Tensor, " c"]:
    """The `v` under which softmax(logits + v) has the column means `prior`, in the limit."""
    log_mass = prior.clamp_min(torch.finfo(prior.dtype).tiny).log() + torch.log(
        torch.tensor(float(len(logits)), dtype=prior.dtype)
    )
    v = torch.zeros_like(prior)
    for round in range(iterations):
        u = -(logits + v).logsumexp(1, keepdim=True)  # (1)
        if classes_first and round == 0:
            u = torch.zeros_like(u)
        v = log_mass - (logits + u).logsumexp(0)  # (2)
    return v
