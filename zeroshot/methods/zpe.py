"""ZPE: prompt templates are weighted by how well they separate the images, without labels.

Allingham et al. 2023, "A Simple Zero-shot Prompt Weighting Technique to Improve Prompt Ensembling
in Text-Image Models", ICML, arXiv:2302.06235; authors' code: google/uncertainty-baselines,
experimental/multimodal (Apache-2.0).

    z_ipc   = s x_i . e_pc                                                                    (1)
    score_p = mean_i max_c (z_ipc - b_pc)      b_pc = (mean_i z_ipc + mean_j z'_jpc) / 2      (2)
    w       = softmax_p(score_p / temperature)                                                (3)
    score_c = sum_p w_p x . e_pc                                                              (4)

A template is not good just because every image matches some class: so the mean logit over the
images and over a bank of unrelated images (z') is subtracted first. Means are linear, so b costs
two mean vectors and no second pass.

| here | paper |
|---|---|
| bank | images of the pre-training distribution (20 000 of LAION-400m) |
| debias | which mean is subtracted; `pretrain_star` has one value for all classes |
| threshold | tau of the median rule: keep p where (score_p - median) / MAD > tau |

Departures from the authors' code. Their logits are the mean over the P templates of `w_p z_p`, P
times smaller than the weighted mean: the ranking is the same, but a softmax of it is far too flat.
Their softmax of the weights runs over all templates before some are selected, ours over the
selected ones. `compat=True` gives theirs in both cases. Without a bank `both` and the pretrain
variants cannot be computed; `auto` is `both` with a bank and `test` without. A template that a
class lacks (ragged prompts) is replaced by the class's mean prompt.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._door import Method
from zeroshot.methods._protocols import Output
from zeroshot.ops import filled, normalize

BLOCK = 4096
"""Images at a time; the temporary is this times the number of classes."""


@dataclass(frozen=True)
class ZPE(Method):
    """Weights for prompt templates, and scores by the weighted prompts."""

    debias: Literal["auto", "both", "test", "pretrain", "pretrain_star", "none"] = "auto"
    """mean logits to subtract: of the images (test), of the bank (pretrain), or half of each"""
    weighting: Literal["softmax", "scores", "equal"] = "softmax"
    """how scores become weights; equal makes sense with a threshold"""
    temperature: float = 1.0
    """temperature of the softmax over the templates"""
    threshold: float | None = None
    """keep templates this many MADs above the median (authors: 0.5 for ImageNet, 2 fine-grained)"""
    compat: bool = False
    """the authors' mean over all templates instead of a weighted mean"""

    bank_mean_: Float[Tensor, " d"] | None = field(default=None, repr=False, compare=False)

    @property
    def transductive(self) -> bool:
        """The weights come from all images together."""
        return True

    @property
    def output(self) -> Output:
        """A weighted mean of cosines."""
        return "similarity"

    def fit(self, bank: Float[Tensor, "b d"] | None = None) -> "ZPE":
        """A copy with the mean of these unrelated images, if there are any."""
        return self if bank is None else replace(self, bank_mean_=bank.mean(0))

    def template_scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, " t"]:
        """(2): how well each template separates the images."""
        texts = filled(texts, text_mask)
        bias = self._bias(images, texts)  # [c, t]
        totals = []
        for t in range(texts.shape[1]):
            prompts = texts[:, t].T
            scores = (block @ prompts - bias[:, t] for block in torch.split(images, BLOCK))
            totals.append(torch.stack([score.amax(1).sum() for score in scores]).sum())
        return logit_scale * torch.stack(totals) / len(images)

    def weights(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, " t"]:
        """(3): a weight for each template, zero for those not selected.

        Raises:
            UserError: a threshold that no template passes, or a mean that needs the bank.
        """
        scores = self.template_scores(images, texts, text_mask, logit_scale)
        selected = self._select(scores)
        if self.weighting == "equal":
            return selected / selected.sum()
        if self.weighting == "scores":
            return scores * selected / (1 if self.compat else (scores * selected).sum())
        if self.compat:
            return (scores / self.temperature).softmax(0) * selected
        return (scores / self.temperature).masked_fill(selected == 0, -torch.inf).softmax(0)

    def refine(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> tuple[Float[Tensor, "c 1 d"], None]:
        """One unit prototype per class: the weighted mean of its prompts."""
        weights = self.weights(images, texts, text_mask, logit_scale)
        return normalize(_prototypes(weights, filled(texts, text_mask)))[:, None], None

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Weighted mean of the cosines with a class's prompts."""
        weights = self.weights(images, texts, text_mask, logit_scale)
        prototypes = _prototypes(weights, filled(texts, text_mask))
        if self.compat:
            prototypes = prototypes / (1 if self.weighting == "equal" else self._count(weights))
        return images @ prototypes.T  # (4)

    def _count(self, weights: Tensor) -> int:
        """Number of templates in the authors' mean: of the selected ones."""
        return int((weights != 0).sum())

    def _bias(
        self, images: Float[Tensor, "n d"], texts: Float[Tensor, "c t d"]
    ) -> Float[Tensor, "c t"]:
        """`b`, as cosines."""
        kind: str = self.debias
        if kind == "auto":
            kind = "test" if self.bank_mean_ is None else "both"
        if kind == "none":
            return torch.zeros_like(texts[..., 0])
        test = texts @ images.mean(0)
        if kind == "test":
            return test
        if self.bank_mean_ is None:
            raise UserError(f"zpe: debias={kind} needs the array bank [b d]; debias=test does not")
        pretrain = texts @ self.bank_mean_
        if kind == "both":
            return (test + pretrain) / 2
        return pretrain if kind == "pretrain" else pretrain.mean(0).expand_as(pretrain)

    def _select(self, scores: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
        """One for each template above the threshold, else zero."""
        if self.threshold is None:
            return torch.ones_like(scores)
        above = scores - _median(scores)
        spread = _median(above.abs())
        selected = (above > self.threshold * spread).to(scores.dtype)
        if not selected.any():
            best = f"{float(above.max() / spread):.2f}" if spread > 0 else "0"
            raise UserError(
                f"zpe: no template passes threshold={self.threshold}; the best one is {best} MADs "
                "above the median"
            )
        return selected


def _median(values: Float[Tensor, " t"]) -> Tensor:
    """Of an even number, the mean of the two in the middle (torch's own takes the lower one)."""
    ordered = values.sort().values
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2


def _prototypes(
    weights: Float[Tensor, " t"], texts: Float[Tensor, "c t d"]
) -> Float[Tensor, "c d"]:
    return torch.einsum("t,ctd->cd", weights, texts)
