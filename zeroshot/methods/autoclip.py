"""AutoCLIP: each image has its own weights for the prompt templates.

Metzen et al. 2024, "AutoCLIP: Auto-tuning Zero-Shot Classifiers for Vision-Language Models", TMLR,
arXiv:2309.16414; authors' code: boschresearch/autoclip (AGPL-3.0, not used here).

    s_ct    = m x . e_ct                                       m: sim_multiplier     (1)
    p       = softmax_c(mean_t s_ct)                                                 (2)
    g_t     = (m_t - mean_t m_t) / T       m_t = sum_c p_c s_ct                      (3)
    w       = softmax(a g)                 a such that entropy(w) = beta log T       (4)
    score_c = sum_t w_t s_ct / m                                                     (5)

`g` is the gradient of `logsumexp_c sum_t w_t s_ct` in the logits of `w` at equal weights, in
closed form. The method takes one step along it, and `beta` sets its length `a`: a bisection finds
it for all images of a block at once.

| here | paper |
|---|---|
| beta | beta, entropy of the weights as a share of the largest possible |
| sim_multiplier | 1: raw cosines, so that `p` is nearly uniform; the logit scale makes it sharp |

Departures from the authors' code. The bisection ends at the precision of the numbers; theirs at an
error of 1 % of the step (`compat=True`; cosines differ by up to 5e-4 in the parity data). Their
released simulation aligns the weights with the classes if it is called with more than one class;
ours is the paper's algorithm. A template that a class lacks (ragged prompts) is replaced by the
class's mean prompt.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._door import Method
from zeroshot.methods._protocols import Output
from zeroshot.ops import filled

CELLS = 1 << 22
"""Cosines computed at a time: images of a block x classes x templates."""
LARGEST_STEP = 1e7


@dataclass(frozen=True)
class AutoCLIP(Method):
    """Scores by prompts that are weighted for each image."""

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
        """(5): mean of the cosines with a class's prompts, weighted for each image."""
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
        """Each image's weights of the templates, and its step size."""
        parts = [self._weights(cosine) for cosine in _cosines(images, filled(texts, text_mask))]
        weights, steps = zip(*parts, strict=True)
        return torch.cat(weights), torch.cat(steps)

    def _weights(
        self, cosine: Float[Tensor, "n c t"]
    ) -> tuple[Float[Tensor, "n t"], Float[Tensor, " n"]]:
        gradient = gradients(self.sim_multiplier * cosine)
        step = self._steps(gradient)
        return (step[:, None] * gradient).softmax(1), step  # (4)

    def _steps(self, gradient: Float[Tensor, "n t"]) -> Float[Tensor, " n"]:
        """`a`: the step of each image at which the entropy has fallen to the share `beta`."""
        precision = torch.finfo(gradient.dtype).eps
        xtol, rtol = (1e-2, 1e-2) if self.compat else (precision, 4 * precision)
        goal = self.beta * torch.log2(gradient.new_tensor(float(gradient.shape[1])))
        low = gradient.new_zeros(len(gradient))
        width = torch.full_like(low, LARGEST_STEP)
        done = torch.zeros_like(low, dtype=torch.bool)
        step = torch.zeros_like(low)
        for _ in range(100):  # 1e7 is halved into nothing by then
            width = width / 2
            middle = low + width
            weights = (middle[:, None] * gradient).softmax(1)
            excess = entropy(weights) - goal
            low = torch.where(excess >= 0, middle, low)
            ends = (width < xtol + rtol * middle) | (excess == 0)
            step = torch.where(ends & ~done, middle, step)
            done = done | ends
            if bool(done.all()):
                break
        return step


def gradients(similarity: Float[Tensor, "n c t"]) -> Float[Tensor, "n t"]:
    """Gradient of the log-sum-exp over classes in the template logits, at equal weights."""
    p = similarity.mean(2).softmax(1)  # (2)
    m = torch.einsum("nc,nct->nt", p, similarity)
    return (m - m.mean(1, keepdim=True)) / similarity.shape[2]  # (3)


def entropy(weights: Float[Tensor, "n t"]) -> Float[Tensor, " n"]:
    """In bits; with the authors' 1e-10 the logarithm is finite."""
    return -(weights * torch.log2(weights + 1e-10)).sum(1)


def _cosines(
    images: Float[Tensor, "n d"], texts: Float[Tensor, "c t d"]
) -> Iterator[Float[Tensor, "b c t"]]:
    """Cosines of all pairs, a block of images at a time."""
    size = max(1, CELLS // texts[..., 0].numel())
    for block in torch.split(images, size):
        yield (block @ texts.flatten(0, 1).T).view(len(block), *texts.shape[:2])
