"""ConSE beside a coupling: the class names that an image encoder's classifier predicts, as texts.

Norouzi et al. 2014, "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR,
arXiv:1312.5650. A classifier knows a thousand classes that a few anchors do not show, and the text
encoder can encode their names:

    p(x)     = softmax of W x, brought to mean 0 and variance 1                                  (1)
    e(x)     = sum_c p_c(x) y_c, at unit length                                                  (2)
    b(x)     = B e(x) - mean over anchors of B e                                                 (3)
    image(x) = A x / |A x| + weight * b(x) / |b(x)|                                              (4)

| here | paper |
|---|---|
| y_c | s(y_c), the unit text embedding of the class's name |
| p | the classifier's softmax |
| A, B | none: `map_images` and `map_texts` of a coupling of the same encoders |

Departures. All classes are taken, not the ten most likely. Embeddings of an encoder have unit
length, so the classifier's own temperature (and its bias, which belongs to raw embeddings) is lost;
standard scores replace it. Names pass through the coupling's text map, where the directions that
images vary in count most, and their mean is subtracted, since a text encoder places all names of
things close together.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._anchor_matrix import BLOCK
from zeroshot.methods._joint_space import JointSpace, TemplateMode
from zeroshot.methods._protocols import Output
from zeroshot.ops import normalize


@dataclass(frozen=True, eq=False)
class ConSE(JointSpace):
    """A coupling whose joint image vectors also hold the classes that a classifier predicts."""

    coupling: Any
    """a `methods.Coupling` whose joint space has few dimensions, fitted or not"""
    classes: Float[Tensor, "c d"] = field(repr=False)
    """the classifier's weights `W`, for image embeddings"""
    names: Float[Tensor, "_c e"] = field(repr=False)
    """the unit text embedding of each class's name"""
    weight: float = 0.5
    """of the predicted class names, against the coupling's own vector"""
    templates: TemplateMode = "mean"
    """how the scores of a class's prompts become one"""

    transductive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.names) or len(self.names) < 2:
            raise UserError(
                f"{len(self.classes)} classes and {len(self.names)} names: "
                "as many of one as of the other, and at least two"
            )

    @property
    def output(self) -> Output:
        """A similarity."""
        return "similarity"

    def fit(
        self, anchor_images: Real[Tensor, "a d"], anchor_texts: Real[Tensor, "_a e"]
    ) -> "ConSE":
        """As `methods.Coupling`; the classifier learns nothing."""
        return replace(self, coupling=self.coupling.fit(anchor_images, anchor_texts))

    def add(self, images: Float[Tensor, "m d"], texts: Float[Tensor, "_m e"]) -> "ConSE":
        """As `methods.Coupling`."""
        return replace(self, coupling=self.coupling.add(images, texts))

    def remove(self, index: Int[Tensor, " m"]) -> "ConSE":
        """As `methods.Coupling`."""
        return replace(self, coupling=self.coupling.remove(index))

    def map_images(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """See `methods.Coupling`."""
        return normalize(self.coupling.map_images(images)) + self.weight * self.named(images)  # (4)

    def map_texts(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n m"]:
        """See `methods.Coupling`; the coupling's own."""
        return self.coupling.map_texts(texts)  # type: ignore[no-any-return]

    def named(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """The classifier's part alone: `b`, at unit length."""
        names = self._map_names(images)
        return normalize(names - self._mean.to(names.dtype))  # (3)

    def _map_names(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """`B e`."""
        p = standard_scores(images @ self.classes.T.to(images.dtype)).softmax(1)  # (1), [n, c]
        return self.map_texts(normalize(p @ self.names.to(images.dtype)))  # (2)

    @cached_property
    def _mean(self) -> Float[Tensor, " m"]:
        """The mean of `B e` over the anchors."""
        anchors = self.coupling._images
        sums = [self._map_names(block).sum(0) for block in anchors.iter_raw(BLOCK)]
        return torch.stack(sums).sum(0) / len(anchors)


def standard_scores(scores: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """Each row with mean 0 and variance 1; a constant row becomes 0."""
    centred = scores - scores.mean(1, keepdim=True)
    return centred / centred.std(1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
