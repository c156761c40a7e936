"""Class priors: given, uniform on request, or estimated; and the warning that uniform is wrong.

The estimate is the maximum-likelihood prior of Saerens et al. 2002, "Adjusting the Outputs of a
Classifier to New a Priori Probabilities", Neural Computation 14:

    pi_c <- mean_i softmax_c(logits_ic + log pi_c)     from the uniform prior, until convergence
"""

import warnings
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import FewClassesWarning, UnsuitableWarning, UserError

Assume = Literal["given", "uniform", "estimated"]
"""Without a prior: refuse, assume that all classes are equally frequent, or estimate."""


def resolve(
    method: str, prior: Float[Tensor, " c"] | None, assume: Assume, logits: Float[Tensor, "n c"]
) -> Float[Tensor, " c"]:
    """The prior to use, summing to 1.

    Raises:
        UserError: none was given and none may be assumed.
    """
    if prior is not None:
        return prior.to(logits.dtype) / prior.sum()
    if assume == "given":
        raise UserError(
            f"{method} needs the array prior [c], how frequent each class is; without one, "
            "-o assume=estimated estimates it, and -o assume=uniform takes all classes as equally "
            "frequent, which goes badly wrong where some are absent"
        )
    if assume == "estimated":
        warn_if_unsure(method, logits)
        return estimate(logits)
    warn_if_few(method, logits)
    return torch.full_like(logits[0], 1 / logits.shape[1])


def estimate(
    logits: Float[Tensor, "n c"], most: int = 200, tolerance: float = 1e-6
) -> Float[Tensor, " c"]:
    """The prior under which these logits, computed with a uniform one, are most likely."""
    prior = torch.full_like(logits[0], 1 / logits.shape[1])
    smallest = torch.finfo(logits.dtype).tiny
    for _ in range(most):
        after = (logits + prior.clamp_min(smallest).log()).softmax(1).mean(0)
        change = float((after - prior).abs().sum())
        prior = after
        if change < tolerance:
            break
    return prior


SURE = 0.7
"""Mean confidence below which an estimated prior is no use: it was on each of six sets."""


def warn_if_unsure(method: str, logits: Float[Tensor, "n c"]) -> None:
    """Warn if the scores are too unsure to estimate a prior from.

    The estimate takes a model's preference for some classes for their frequency, and strengthens
    it. The surer the scores, the smaller that preference is beside what images show.
    """
    confidence = float(logits.softmax(1).amax(1).mean())
    if confidence < SURE:
        warnings.warn(
            f"{method} estimates how frequent the classes are from unsure scores (mean confidence "
            f"{confidence:.2f}), which mostly strengthens what the model favours anyway: expect it "
            "to lose accuracy; give a prior, or use center",
            UnsuitableWarning,
            stacklevel=2,
        )


def presence(logits: Float[Tensor, "n c"]) -> tuple[float, float]:
    """How many classes seem present, and how many to expect if all are equally frequent.

    The first is the exponential of the entropy of the estimated prior. The second is the expected
    number of different classes among n images of c equally frequent classes.
    """
    prior = estimate(logits)
    present = float(torch.exp(-torch.special.xlogy(prior, prior).sum()))
    images, classes = logits.shape
    return present, classes * (1 - (1 - 1 / classes) ** images)


def warn_if_few(method: str, logits: Float[Tensor, "n c"]) -> None:
    """Warn if two thirds of the classes to expect under a uniform prior seem to be absent.

    A model's class bias makes the estimated prior uneven too: on balanced images it reached half
    of the classes.
    """
    present, expected = presence(logits)
    if present < expected / 3:
        warnings.warn(
            f"{method} takes all {logits.shape[1]} classes as equally frequent, but about "
            f"{present:.0f} seem present among {logits.shape[0]} rows: expect it to lose accuracy; "
            "give a prior, or use center, dn or stata",
            FewClassesWarning,
            stacklevel=2,
        )
