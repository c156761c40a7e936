"""Prompt ensembles: several prompts per class, one score.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"
(CLIP), section 3.1.4 and the authors' notebook (`embed`); Menon and Vondrick 2023, "Visual
Classification via Description from Large Language Models" (`score`).

    embed: x . norm(mean_t e_ct)     score: mean_t x . e_ct
    max:   max_t x . e_ct            prob:  mean_t softmax_c(logit_scale x . e_ct)

`embed` and `score` differ only by the length of the mean: it is short if the prompts of a class
disagree, and `embed` normalizes it. With ragged prompts, a class without a t-th prompt has its mean
cosine in the t-th softmax of `prob`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._door import Method
from zeroshot.methods._protocols import Output
from zeroshot.ops import masked_mean, normalize


@dataclass(frozen=True)
class Ensemble(Method):
    """Scores of images against the prompts of each class, ragged or not."""

    mode: Literal["embed", "score", "prob", "max"] = "embed"
    """average over a class's prompts: of embeddings, scores or probabilities; or the maximum"""

    transductive: ClassVar[bool] = False

    @property
    def output(self) -> Output:
        """Probabilities for `prob`, else cosines."""
        return "probability" if self.mode == "prob" else "similarity"

    def classifier(
        self, texts: Float[Tensor, "c t d"], text_mask: Bool[Tensor, "c t"] | None = None
    ) -> Float[Tensor, "c d"]:
        """One vector per class, whose dot product with an image is the `embed` or `score` score."""
        mean = masked_mean(texts, text_mask)
        return normalize(mean) if self.mode == "embed" else mean

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Cosines, or probabilities for `prob`; `max` and `prob` need memory for `n x c x t`."""
        if self.mode in ("embed", "score"):
            return images @ self.classifier(texts, text_mask).T
        cosine = torch.einsum("nd,ctd->nct", images, texts)
        present = torch.ones_like(cosine[0], dtype=torch.bool) if text_mask is None else text_mask
        if self.mode == "max":
            return cosine.masked_fill(~present, -torch.inf).amax(-1)
        mean = images @ masked_mean(texts, text_mask).T  # [n, c]
        cosine = torch.where(present, cosine, mean[..., None])
        probability = (logit_scale * cosine).softmax(1)  # [n, c, t]
        weight = present.to(images.dtype)
        return torch.einsum("nct,ct->nc", probability, weight / weight.sum(-1, keepdim=True))
