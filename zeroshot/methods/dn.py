"""Distribution normalisation: a share of its mean is subtracted from either side.

Zhou et al. 2023, "Test-Time Distribution Normalization for Contrastively Learned Vision-language
Models", NeurIPS, arXiv:2302.11084; authors' code: fengyuli-dev/distribution-normalization (no
licence file, not used here).

    score = norm(x - lam mean_j x_j) . norm(w_c - lam mean_c w_c)

The dot product approximates the contrastive loss a model was trained with; the means restore, to
first order, the negatives that the dot product leaves out.

| here | paper |
|---|---|
| lam | lambda: 1/2 in theory, 0.25 in the authors' code and tables |
| bank | 100 unlabelled images of the test distribution |

Departures from the authors' code. Theirs works on embeddings before they are normalized; so does
this one on arrays, which it takes as they are. Embeddings from the cache are normalized, so the
means weigh every image equally. A class of several prompts has their mean direction and their mean
length. Without a bank the mean is that of the images themselves.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._door import Method
from zeroshot.methods._protocols import Output
from zeroshot.ops import masked_mean, normalize


@dataclass(frozen=True)
class DN(Method):
    """Cosines of embeddings less a share of their means."""

    lam: float = 0.25
    """share of the means that is subtracted"""

    image_mean_: Float[Tensor, " d"] | None = field(default=None, repr=False, compare=False)

    wants_unnormalized: ClassVar[bool] = True
    """arrays are not normalized before"""

    @property
    def transductive(self) -> bool:
        """Unless a bank gives the mean of the images."""
        return self.image_mean_ is None

    @property
    def output(self) -> Output:
        """Cosines."""
        return "similarity"

    def fit(self, bank: Float[Tensor, "b d"] | None = None) -> "DN":
        """A copy with the mean of these unlabelled images, if there are any."""
        return self if bank is None else replace(self, image_mean_=bank.mean(0))

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Cosines; the embeddings need not have unit length."""
        mean = images.mean(0) if self.image_mean_ is None else self.image_mean_
        length = texts.norm(dim=-1, keepdim=True)  # [c, t, 1]
        # The mean of unit prompts as one product, so that no normalized copy of them exists.
        weight = 1 / torch.where(length > 0, length, 1)
        if text_mask is not None:
            weight = weight * text_mask[..., None]
        direction = normalize((weight.transpose(1, 2) @ texts)[:, 0])
        classes = masked_mean(length, text_mask) * direction
        shifted = normalize(classes - self.lam * classes.mean(0))
        return normalize(images - self.lam * mean) @ shifted.T
