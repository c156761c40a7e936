"""InMaP: a class's text row replaced by one that fits the pictures.

Qian, Xu and Hu 2023, "Intra-Modal Proxy Learning for Zero-Shot Visual Categorization with CLIP",
NeurIPS, arXiv:2310.19752; authors' code: github.com/idstcv/InMaP (Apache-2.0).

    P = Sinkhorn(softmax(x . w / tau_t)), rows beyond alpha made one-hot
    V <- norm(V - lr / (n tau_i) X' (softmax(X V / tau_i) - P)),  starting at the texts
    score = x . v_c

Sinkhorn's columns sum to `share_c^gamma`, brought to sum 1: `gamma=0` takes all classes as equally
frequent, `gamma=1` leaves the softmax as it is. The step `lr` halves whenever the gradient grows.

This is optimisation, though only of one row per class: `iters_proxy` steps of two matrix products
each.

| here | paper |
|---|---|
| V | vision proxy W |
| tau_t, tau_i | temperatures of the text and the vision proxy |
| alpha | threshold of the pseudo-labels |

Departures from the authors' code. The default is 200 steps, for a CPU; theirs is 2000, on a GPU
(`iters_proxy=2000`; in the parity data cosines after 200 steps differ from those after 2000 by up
to 0.07, and 1 of 72 answers does). In float32 the late halvings hang on rounding: scores after
2000 steps differ by up to 0.005 from those in float64, answers by none. With `gamma=0` and few
classes present it warns: pictures are forced into the absent ones.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._prior import warn_if_few
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble
from zeroshot.ops import normalize


@dataclass(frozen=True)
class InMaP:
    """Cosines with learned class rows, of all pictures together."""

    tau_t: float = 0.01
    """temperature of the texts' softmax; 0: the model's own"""
    tau_i: float = 0.04
    """temperature of the learned rows' softmax"""
    alpha: float = 0.6
    """pseudo-labels above this become certain"""
    lr: float = 10.0
    """first step size"""
    iters_proxy: int = 200
    """steps; the authors take 2000"""
    iters_sinkhorn: int = 20
    """rounds of balancing; 0: none"""
    gamma: float = 0.0
    """classes are balanced to their predicted share to this power: 0 evenly, 1 not at all"""

    transductive: ClassVar[bool] = True

    @property
    def output(self) -> Output:
        """Cosines with rows on the pictures' side, which are higher than those with texts."""
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
        return images @ self.proxy(images, texts, text_mask, logit_scale, initial).T

    def proxy(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
        initial: Float[Tensor, "n c"] | None = None,
    ) -> Float[Tensor, "c d"]:
        """The learned row of each class."""
        rows = Ensemble().classifier(texts, text_mask)
        if initial is None:
            initial = images @ rows.T * (1 / self.tau_t if self.tau_t else logit_scale)
        if self.gamma == 0 and self.iters_sinkhorn:
            warn_if_few("inmap", initial[:: 1 + len(initial) // 1024])
        labels = self.labels(initial)
        target = labels.T @ images  # [c, d]
        step, before = self.lr, torch.inf
        for _ in range(self.iters_proxy):
            gradient = (images @ rows.T).div_(self.tau_i).softmax(1).T @ images - target
            length = float(gradient.norm())
            step = step / 2 if length > before else step
            before = length
            rows = normalize(rows - step / (len(images) * self.tau_i) * gradient)
        return rows

    def labels(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Pseudo-labels: balanced, the sure ones made certain."""
        balanced = balance(logits.softmax(1), self.gamma, self.iters_sinkhorn)
        most, best = balanced.max(1, keepdim=True)
        certain = torch.zeros_like(balanced).scatter_(1, best, 1)
        return torch.where(most > self.alpha, certain, balanced)


def balance(probability: Float[Tensor, "n c"], gamma: float, rounds: int) -> Float[Tensor, "n c"]:
    """Sinkhorn: columns of mass `share^gamma` (in sum `n`), rows of mass one; rows come last."""
    wanted = probability.mean(0) ** gamma
    wanted = len(probability) * wanted / wanted.sum()
    least = torch.finfo(probability.dtype).tiny
    for _ in range(rounds):
        probability = probability * (wanted / probability.sum(0).clamp_min(least))
        probability = probability / probability.sum(1, keepdim=True).clamp_min(least)
    return probability
