"""ASIF in CSA coordinates: neighbours among anchors, measured where both encoders agree.

No paper: ASIF (Norelli et al. 2023) on the coordinates of CSA (Li et al. 2025).

    g(x) = norm(sqrt(rho) A (x - mean)),   h(y) = norm(sqrt(rho) B (y - mean))       (1)
    score = ASIF of g and h, with the anchors' own g and h                            (2)

| here | there |
|---|---|
| k, p | k, p of ASIF |
| s, lam | directions of CSA and its ridge, in units of each side's mean variance |

CSA is linear and stops improving once its covariances are well estimated. ASIF improves with every
anchor but compares embeddings by all their directions, including those that do not correlate with
the other encoder. In synthetic data of 300 to 30 000 anchors the two together were better than ASIF
in every cell tried, at a third of the work, since `s` is small.
An edit moves the coordinates of all anchors, so it costs a rebuild.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._anchor_matrix import BLOCK, AnchorMatrix
from zeroshot.methods._anchored_coupling import AnchoredCoupling, fitted
from zeroshot.methods._joint_space import JointSpace, TemplateMode, map_present
from zeroshot.methods._protocols import Explanation, Output
from zeroshot.methods.asif import ASIF
from zeroshot.methods.csa import CSA


@dataclass(frozen=True)
class CSAASIF(AnchoredCoupling, JointSpace):
    """ASIF in few dimensions; `fit` gives it its anchors."""

    s: int = 256
    """number of directions of CSA; 0 for all that both sides have"""
    lam: float = 1.0
    """ridge of CSA in units of each side's mean variance"""
    k: int = 100
    """nearest anchors of an image or text that count"""
    p: float = 8.0
    """exponent of their similarities"""
    templates: TemplateMode = "mean"
    """how the scores of a class's prompts become one"""

    csa_: CSA | None = field(default=None, repr=False, compare=False)
    asif_: ASIF | None = field(default=None, repr=False, compare=False)

    transductive: ClassVar[bool] = False
    least_pairs: ClassVar[int] = 2

    @property
    def output(self) -> Output:
        """A similarity, as ASIF's."""
        return "similarity"

    def _learn(self, images: AnchorMatrix, texts: AnchorMatrix) -> "CSAASIF":
        csa = CSA(s=self.s, lam=self.lam, weighting="cosine")._learn(images, texts)
        left, right = joint_anchors(csa, images, texts)
        # An anchor at the mean has no direction in these coordinates and is similar to nothing:
        # among the k nearest it would have a similarity of 0, which changes no score.
        asif = ASIF(k=self.k, p=self.p, templates=self.templates)._learn(left, right)
        return replace(self, anchor_images_=images, anchor_texts_=texts, csa_=csa, asif_=asif)

    def image_coordinates(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n s"]:
        """`g`, unit vectors."""
        return fitted(self, self.csa_).map_images(images)

    def text_coordinates(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n s"]:
        """`h`, unit vectors."""
        return fitted(self, self.csa_).map_texts(texts)

    def map_images(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n a"]:
        """Relative representations of images in full."""
        return self._asif.map_images(self.image_coordinates(images))

    def map_texts(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n a"]:
        """Relative representations of texts in full, at unit length."""
        return self._asif.map_texts(self.text_coordinates(texts))

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """See `ASIF.scores`."""
        return self._asif.scores(self.image_coordinates(images), self._prompts(texts), text_mask)

    def cosines(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None = None,
    ) -> Float[Tensor, "n c"]:
        """See `ASIF.cosines`."""
        return self._asif.cosines(self.image_coordinates(images), self._prompts(texts), text_mask)

    def match(
        self, images: Float[Tensor, "b m"], texts: Float[Tensor, "b k e"]
    ) -> Float[Tensor, "b k"]:
        """See `ASIF.match`."""
        return self._asif.match(images, self._prompts(texts))

    def explain(
        self, image: Float[Tensor, " d"], texts: Float[Tensor, "t e"], count: int = 5
    ) -> Explanation:
        """See `ASIF.explain`."""
        left, right = self.image_coordinates(image[None])[0], self.text_coordinates(texts)
        return self._asif.explain(left, right, count)

    def _prompts(self, texts: Float[Tensor, "c t e"]) -> Float[Tensor, "c t s"]:
        """Coordinates of prompts; those of a missing prompt (all zero) stay zero."""
        return map_present(self.text_coordinates, texts, texts.any(-1))

    @property
    def _asif(self) -> ASIF:
        return fitted(self, self.asif_)


def joint_anchors(
    csa: CSA, images: AnchorMatrix, texts: AnchorMatrix
) -> tuple[AnchorMatrix, AnchorMatrix]:
    """The anchors in a fitted CSA's joint space: `g` of the images and `h` of the texts."""
    left = torch.cat([csa.map_images(block) for block in images.iter_raw(BLOCK)])
    right = torch.cat([csa.map_texts(block) for block in texts.iter_raw(BLOCK)])
    return AnchorMatrix.from_embeddings(left), AnchorMatrix.from_embeddings(right)
