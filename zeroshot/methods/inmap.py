"""InMaP: a class's text embedding is replaced by a proxy learned from the images.

Qian, Xu and Hu 2023, "Intra-Modal Proxy Learning for Zero-Shot Visual Categorization with CLIP",
NeurIPS, arXiv:2310.19752; authors' code: github.com/idstcv/InMaP (Apache-2.0).

    P = Sinkhorn(softmax(x . w / tau_t)), rows with a maximum above alpha made one-hot      (1)
    V <- norm(V - lr / (n tau_i) X' (softmax(X V / tau_i) - P)),  starting at the texts     (2)
    score = x . v_c                                                                         (3)

Sinkhorn's columns sum to `share_c^gamma`, scaled to sum 1: `gamma=0` assumes that all classes are
equally frequent, `gamma=1` leaves the softmax unchanged. The step `lr` halves whenever the gradient
grows.

This is an optimization, but of one vector per class only: `iters_proxy` steps of two matrix
products each.

| here | paper |
|---|---|
| V | vision proxy W |
| tau_t, tau_i | temperatures of the text and the vision proxy |
| alpha | threshold of the pseudo-labels |

Departures from the authors' code. The default is 200 steps, for a CPU; theirs is 2000, on a GPU
(`iters_proxy=2000`; in the parity data cosines after 200 steps differ from those after 2000 by up
to 0.07, and 1 of 72 answers does). In float32 the late halvings depend on rounding: scores after
2000 steps differ by up to 0.005 from those in float64, answers by none. With `gamma=0` and few
classes present it warns: images are forced into the absent ones.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._door import Method
from zeroshot.methods._prior import warn_if_few
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble
from zeroshot.ops import normalize


@dataclass(frozen=True)
class InMaP(Method):
    """Cosines with class proxies that are learned from all images together."""

    tau_t: float = 0.01
    """temperature of the texts' softmax; 0: the model's own"""
    tau_i: float = 0.04
    """temperature of the proxies' softmax"""
    alpha: float = 0.6
    """pseudo-labels above this probability become one-hot"""
    lr: float = 10.0
    """first step size"""
    iters_proxy: int = 200
    """steps; the authors take 2000"""
    iters_sinkhorn: int = 20
    """rounds of Sinkhorn; 0: none"""
    gamma: float = 0.0
    """exponent of the predicted class shares in Sinkhorn: 0 balances evenly, 1 not at all"""

    transductive: ClassVar[bool] = True

    @property
    def output(self) -> Output:
        """Cosines with proxies, which lie near the images and so are higher than with texts."""
        return "similarity"

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
        initial: Float[Tensor, "n c"] | None = None,
    ) -> Float[Tensor, "n c"]:
        """Cosines; pseudo-labels come from the logits `initial` instead of the texts, if given."""
        return images @ self.proxy(images, texts, text_mask, logit_scale, initial).T  # (3)

    def proxy(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
        initial: Float[Tensor, "n c"] | None = None,
    ) -> Float[Tensor, "c d"]:
        """The learned vector of each class."""
        v = Ensemble().classifier(texts, text_mask)
        if initial is None:
            initial = images @ v.T * (1 / self.tau_t if self.tau_t else logit_scale)
        if self.gamma == 0 and self.iters_sinkhorn:
            warn_if_few("inmap", initial[:: 1 + len(initial) // 1024])
        labels = self.labels(initial)
        target = labels.T @ images  # [c, d]
        step, before = self.lr, torch.inf
        for _ in range(self.iters_proxy):
            gradient = (images @ v.T).div_(self.tau_i).softmax(1).T @ images - target
            length = float(gradient.norm())
            step = step / 2 if length > before else step
            before = length
            v = normalize(v - step / (len(images) * self.tau_i) * gradient)  # (2)
        return v

    def labels(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """(1): pseudo-labels, balanced; confident ones are one-hot."""
        balanced = balance(logits.softmax(1), self.gamma, self.iters_sinkhorn)
        confidence, best = balanced.max(1, keepdim=True)
        hard = torch.zeros_like(balanced).scatter_(1, best, 1)
        return torch.where(confidence > self.alpha, hard, balanced)


def balance(probability: Float[Tensor, "n c"], gamma: float, rounds: int) -> Float[Tensor, "n c"]:
    """Sinkhorn: columns of mass `share^gamma` (in sum `n`), rows of mass one; rows come last."""
    mass = probability.mean(0) ** gamma
    mass = len(probability) * mass / mass.sum()
    least = torch.finfo(probability.dtype).tiny
    for _ in range(rounds):
        probability = probability * (mass / probability.sum(0).clamp_min(least))
        probability = probability / probability.sum(1, keepdim=True).clamp_min(least)
    return probability
