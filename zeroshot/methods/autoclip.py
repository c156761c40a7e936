"""AutoCLIP: each picture weighs the prompt templates for itself.

Metzen et al. 2024, "AutoCLIP: Auto-tuning Zero-Shot Classifiers for Vision-Language Models", TMLR,
arXiv:2309.16414; authors' code: boschresearch/autoclip (AGPL-3.0, not used here).

    s_ct    = m x . e_ct                                       m: sim_multiplier
    p       = softmax_c(mean_t s_ct)
    g_t     = (m_t - mean_t m_t) / T       m_t = sum_c p_c s_ct
    w       = softmax(a g)                 a such that entropy(w) = beta log T
    score_c = sum_t w_t s_ct / m

`g` is the gradient of `logsumexp_c sum_t w_t s_ct` in the logits of `w` at equal weights, in
closed form; one step along it, as long as the entropy allows. `a` is found for all pictures of a
block at once by bisection.

| here | paper |
|---|---|
| beta | beta, entropy of the weights as a share of the largest possible |
| sim_multiplier | 1: raw cosines, so that `p` is nearly uniform; the logit scale makes it sharp |

Departures from the authors' code. The bisection ends at the precision of the numbers; theirs at an
error of 1 % of the step (`compat=True`; cosines differ by up to 5e-4 in the parity data). Their
released simulation aligns the weights with the classes when it is called with more than one class;
this is the paper's algorithm. A template that a class lacks (ragged prompts) counts with the
class's mean prompt.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._protocols import Output
from zeroshot.ops import filled

CELLS = 1 << 22
"""Cosines held at a time: images of a block x classes x templates."""
LARGEST_STEP = 1e7


@dataclass(frozen=True)
class AutoCLIP:
    """Scores by prompts that each picture weighs."""

    beta: float = 0.85
    """entropy of the weights as a share of the largest possible; 1 is the plain mean"""
    sim_multiplier: float = 1.0
    """factor of the cosines in the softmax over classes"""
    compat: bool = False
    """the authors' tolerance of 1 % in the step size"""

    transductive: ClassVar[bool] = False

    @property
    def output(self) -> Output:
        """A weighted mean of cosines."""
        return "similarity"

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Weighted mean of the cosines with a class's prompts, weights of each row its own."""
        parts = [
            torch.einsum("nct,nt->nc", cosine, self._weights(cosine)[0])
            for cosine in _cosines(images, filled(texts, text_mask))
        ]
        return torch.cat(parts) if parts else images.new_empty(0, len(texts))

    def weights(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
    ) -> tuple[Float[Tensor, "n t"], Float[Tensor, " n"]]:
        """Each picture's weights of the templates, and its step size."""
        parts = [self._weights(cosine) for cosine in _cosines(images, filled(texts, text_mask))]
        weights, steps = zip(*parts, strict=True)
        return torch.cat(weights), torch.cat(steps)

    def _weights(
        self, cosine: Float[Tensor, "n c t"]
    ) -> tuple[Float[Tensor, "n t"], Float[Tensor, " n"]]:
        gradient = gradients(self.sim_multiplier * cosine)
        step = self._steps(gradient)
        return (step[:, None] * gradient).softmax(1), step

    def _steps(self, gradient: Float[Tensor, "n t"]) -> Float[Tensor, " n"]:
        """The step of each row at which its entropy has fallen to the share `beta`."""
        precision = torch.finfo(gradient.dtype).eps
        xtol, rtol = (1e-2, 1e-2) if self.compat else (precision, 4 * precision)
        wanted = self.beta * torch.log2(gradient.new_tensor(float(gradient.shape[1])))
        low = gradient.new_zeros(len(gradient))
        width = torch.full_like(low, LARGEST_STEP)
        done = torch.zeros_like(low, dtype=torch.bool)
        found = torch.zeros_like(low)
        for _ in range(100):  # 1e7 is halved into nothing by then
            width = width / 2
            middle = low + width
            weights = (middle[:, None] * gradient).softmax(1)
            excess = entropy(weights) - wanted
            low = torch.where(excess >= 0, middle, low)
            ends = (width < xtol + rtol * middle) | (excess == 0)
            found = torch.where(ends & ~done, middle, found)
            done = done | ends
            if bool(done.all()):
                break
        return found


def gradients(similarity: Float[Tensor, "n c t"]) -> Float[Tensor, "n t"]:
    """Gradient of the log-sum-exp over classes in the template logits, at equal weights."""
    probability = similarity.mean(2).softmax(1)
    matched = torch.einsum("nc,nct->nt", probability, similarity)
    return (matched - matched.mean(1, keepdim=True)) / similarity.shape[2]


def entropy(weights: Float[Tensor, "n t"]) -> Float[Tensor, " n"]:
    """In bits; the authors' 1e-10 keeps the logarithm finite."""
    return -(weights * torch.log2(weights + 1e-10)).sum(1)


def _cosines(
    images: Float[Tensor, "n d"], texts: Float[Tensor, "c t d"]
) -> Iterator[Float[Tensor, "b c t"]]:
    """Cosines of all pairs, a block of images at a time."""
    rows = max(1, CELLS // texts[..., 0].numel())
    for block in torch.split(images, rows):
        yield (block @ texts.flatten(0, 1).T).view(len(block), *texts.shape[:2])
