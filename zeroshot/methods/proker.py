"""ProKeR: kernel ridge regression of the shots around the zero-shot function.

Bendou et al. 2025, "ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large Vision-Language
Models", CVPR, arXiv:2501.11175; executed code: github.com/omarnust/BReg-Adapter (Apache-2.0, a fork
that mirrors the authors' trainer).

    f(x) = x W' + k(x, S) (K / lambda + I)^-1 (Y - S W')       k = exp(-beta (1 - cos))      (1)

A Gaussian kernel interpolates the difference between the shots' labels and their zero-shot scores.
As `Y` is 0 or 1 and `x W'` a cosine, the result is in units of cosines.

| here | paper |
|---|---|
| beta, lmbda | beta, lambda |
| K | kernel between the shots |

Departures from the authors' code: none in the numbers. `beta` and `lmbda` are those that the
authors transfer from ImageNet, by shots per class. The system is solved once, in `fit`, for
`[Y, S]` instead of `Y - S W'`, so that it does not depend on the texts. The target of a class
without shots is the mean target of the other classes.
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.methods._protocols import Output
from zeroshot.methods._shots import FewShot, one_hot, published
from zeroshot.methods.ensemble import Ensemble

TABLE = {1: (3.0, 0.05), 2: (2.6, 0.05), 4: (1.5, 0.05), 8: (1.66, 0.07), 16: (1.7, 0.1)}
"""The authors' beta and lambda, chosen on ImageNet, by shots per class."""

BLOCK = 2048
"""Images whose kernel rows are computed at a time."""


@dataclass(frozen=True)
class ProKeR(FewShot):
    """Corrected cosines; `fit` gives it the shots."""

    beta: float = 0.0
    """narrowness of the kernel; 0: the authors' for this number of shots"""
    lmbda: float = 0.0
    """trust in the texts; 0: the authors' for this number of shots"""

    solved_labels_: Float[Tensor, "m k"] | None = field(default=None, repr=False, compare=False)
    solved_shots_: Float[Tensor, "m d"] | None = field(default=None, repr=False, compare=False)

    @property
    def output(self) -> Output:
        """In units of cosines."""
        return "similarity"

    def fit(self, shots: Float[Tensor, "m d"], shot_labels: Int[Tensor, " m"]) -> "ProKeR":
        """A copy with these shots, for which it solves a system of `m x m` numbers."""
        target = one_hot(shot_labels, int(shot_labels.max()) + 1).to(shots.dtype)
        beta, lmbda = published(TABLE, shot_labels)
        tuned = replace(self, beta=self.beta or beta, lmbda=self.lmbda or lmbda)
        system = tuned._kernel(shots, shots).div_(tuned.lmbda)
        system.diagonal().add_(1)
        both = torch.cat([target, shots], 1)
        solved = torch.cholesky_solve(both, torch.linalg.cholesky(system))
        return replace(
            tuned,
            shots_=shots,
            shot_labels_=shot_labels,
            solved_labels_=solved[:, : target.shape[1]],
            solved_shots_=solved[:, target.shape[1] :],
        )

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Cosines, corrected by near shots."""
        shots, labels = self._labelled(len(texts))
        assert self.solved_labels_ is not None
        assert self.solved_shots_ is not None
        prototypes = Ensemble().classifier(texts, text_mask)
        has_shots = torch.bincount(labels, minlength=len(texts)) > 0
        solved_labels = self.solved_labels_[:, has_shots[: self.solved_labels_.shape[1]]]
        solved_mean = self.solved_labels_.sum(1, keepdim=True) / has_shots.sum()
        scores = []
        for x in torch.split(images, BLOCK):
            k = self._kernel(x, shots)
            target = (k @ solved_mean).expand(-1, len(texts)).clone()  # [n, c]
            target[:, has_shots] = k @ solved_labels
            scores.append((x - k @ self.solved_shots_) @ prototypes.T + target)  # (1)
        return torch.cat(scores)

    def _kernel(self, a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        return (a @ b.T).sub_(1).mul_(self.beta).exp_()
