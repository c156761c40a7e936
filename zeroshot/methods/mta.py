"""MTA: the mode of an image's views, with larger weights for views that agree.

Zanella and Ben Ayed 2024, "On the test-time zero-shot generalization of vision-language models: Do
we really need prompt learning?", CVPR, arXiv:2405.02266; authors' code: github.com/MaxZanella/MTA
(MIT).

    K_v = exp(-|x_v - m|^2 / 2 h_v^2)     h_v^2 half the mean of the nearest squared distances   (1)
    y   = softmax((K + lambda_q P P' y) / lambda_y)         P softmax(logit_scale x_v . w)       (2)
    m   = norm(sum_v y_v K_v x_v)                                                                (3)
    L   = logit_scale m . w                                                                      (4)

`y` are the weights of the views, `m` starts at the first view. Both are iterated in turn,
`max_iter` times, each until it changes by less than `tol` or for `inner_iter` steps.

| here | paper |
|---|---|
| y | inlierness scores |
| m | mode |
| lambda_y, lambda_q | lambda_y, lambda |

Departures from the authors' code: none in the numbers. All images are iterated together, and each
stops by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._door import Method
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble
from zeroshot.ops import normalize

BLOCK = 500_000
"""Numbers of views, or of their logits, at a time: they fit into the processor's cache."""


@dataclass(frozen=True)
class Modes:
    """The mode of each image's views, and the weight and bandwidth of each view."""

    mode: Float[Tensor, "n d"]
    inlierness: Float[Tensor, "n v"]
    bandwidth: Float[Tensor, "n v"]


@dataclass(frozen=True)
class MTA(Method):
    """Logits of images with several embedded views."""

    lambda_y: float = 0.2
    """evenness of the views' weights"""
    lambda_q: float = 4.0
    """weight of views that predict alike"""
    max_iter: int = 5
    """alternations of weights and mode"""
    inner_iter: int = 5
    """most steps of each per alternation"""
    tol: float = 1e-6
    """a step shorter than this is the last of its alternation"""
    bandwidth_fraction: float = 0.3
    """share of the other views whose distance sets the width of a view's kernel"""

    transductive: ClassVar[bool] = False

    @property
    def output(self) -> Output:
        """Scaled cosines of the mode."""
        return "logit"

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
        *,
        views: Float[Tensor, "n v d"],
    ) -> Float[Tensor, "n c"]:
        """Logits; the first of an image's `views` is the image itself, `images` is not read."""
        prototypes = logit_scale * Ensemble().classifier(texts, text_mask)
        size = max(1, BLOCK // (views.shape[1] * max(len(texts), views.shape[2])))
        modes = [self.modes(block, prototypes).mode for block in torch.split(views, size)]
        return torch.cat(modes) @ prototypes.T  # (4)

    def modes(self, views: Float[Tensor, "n v d"], prototypes: Float[Tensor, "c d"]) -> Modes:
        """Mode and weights; `prototypes` include the logit scale."""
        affinity = (views @ prototypes.T).softmax(-1)
        affinity = self.lambda_q * affinity @ affinity.mT  # [n, v, v]
        width = self._bandwidth(views)
        weight = torch.full_like(width, 1 / width.shape[1])
        mode = views[:, 0]

        square = views.square().sum(-1)

        def kernel(mode: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
            product = (views @ mode[..., None])[..., 0]  # [n, v]
            distance = square + mode.square().sum(-1, keepdim=True) - 2 * product
            return torch.exp(-distance.clamp_min(0) / (2 * width**2))  # (1)

        def weight_step(k: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda y: (  # (2)
                (k + torch.einsum("nvw,nw->nv", affinity, y)) / self.lambda_y
            ).softmax(1)

        def mode_step(y: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda m: normalize(((y * kernel(m))[:, None] @ views)[:, 0])  # (3)

        for _ in range(self.max_iter):
            weight = self._iterate(weight_step(kernel(mode)), weight)
            mode = self._iterate(mode_step(weight), mode)
        return Modes(mode, weight, width)

    def _iterate(self, step: Callable[[Tensor], Tensor], x: Float[Tensor, "n k"]) -> Tensor:
        """`x` after its steps; a row that moved less than `tol` stops."""
        moving = torch.ones_like(x[:, :1], dtype=torch.bool)
        for _ in range(self.inner_iter):
            after = torch.where(moving, step(x), x)
            moving = moving & ((after - x).norm(dim=1, keepdim=True) >= self.tol)
            x = after
            if not moving.any():
                break
        return x

    def _bandwidth(self, views: Float[Tensor, "n v d"]) -> Float[Tensor, "n v"]:
        count = max(1, min(int(self.bandwidth_fraction * (views.shape[1] - 1)), views.shape[1] - 1))
        square = views.square().sum(-1)
        distance = square[:, None] + square[..., None] - 2 * views @ views.mT  # [n, v, v]
        ascending = distance.clamp_min(0).sort(dim=-1).values
        nearest = ascending[..., 1 : count + 1]  # the view itself is first
        if nearest.shape[-1] == 0:
            nearest = torch.ones_like(distance)  # for a single view any width will do
        return (nearest.mean(-1) / 2).clamp_min(torch.finfo(views.dtype).eps).sqrt()
