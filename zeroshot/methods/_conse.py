"""ConSE beside a coupling: what a picture encoder's own classifier sees, told to the texts.

Norouzi et al. 2014, "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR,
arXiv:1312.5650. A classifier knows a thousand things that a few anchors do not show, and its
classes have names, which the text encoder can read:

    p(x)     = softmax of W x, brought to mean 0 and variance 1
    e(x)     = sum_c p_c(x) y_c, at unit length
    image(x) = A x / |A x| + weight * b(x) / |b(x)|,   b(x) = B e(x) - mean over anchors of B e

| here | paper |
|---|---|
| y_c | s(y_c), the unit text row of the class's name |
| p | the classifier's softmax |
| A, B | none: `map_images` and `map_texts` of a coupling of the same encoders |

Departures. All classes are taken, not the likeliest ten. Rows of an encoder have unit length, so
that the classifier's own temperature (and its bias, which is of raw rows) is lost; standard scores
stand in for it. The result meets texts through the coupling's text map, where what pictures show
counts most, and leaves out what all pictures have in common there: a text encoder puts all names
of things in one corner.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods import Output
from zeroshot.methods._pairs import BLOCK, Dense, Templates
from zeroshot.ops import normalize


@dataclass(frozen=True, eq=False)
class ConSE(Dense):
    """A coupling whose image rows also hold what a classifier of the pictures names."""

    coupling: Any
    """a `methods.Coupling` with short joint rows, fitted or not"""
    classes: Float[Tensor, "c d"] = field(repr=False)
    """what each class looks for in an image row"""
    names: Float[Tensor, "_c e"] = field(repr=False)
    """the unit text row of each class's name"""
    weight: float = 0.5
    """of what the classifier names, against the coupling's own row"""
    templates: Templates = "mean"
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
        return normalize(self.coupling.map_images(images)) + self.weight * self.named(images)

    def map_texts(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n m"]:
        """Those of the coupling."""
        return self.coupling.map_texts(texts)  # type: ignore[no-any-return]

    def named(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """What the classifier says alone: `b`, at unit length."""
        named = self._named(images)
        return normalize(named - self._usual.to(named.dtype))

    def _named(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """`B e`."""
        seen = standard_scores(images @ self.classes.T.to(images.dtype)).softmax(1)  # [n, c]
        return self.map_texts(normalize(seen @ self.names.to(images.dtype)))

    @cached_property
    def _usual(self) -> Float[Tensor, " m"]:
        """The mean of `B e` over the anchors."""
        anchors = self.coupling._images
        blocks = anchors.raw_blocks(BLOCK)
        return torch.stack([self._named(block).sum(0) for block in blocks]).sum(0) / len(anchors)


def standard_scores(scores: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """Each row with mean 0 and variance 1; one without any variance is 0."""
    apart = scores - scores.mean(1, keepdim=True)
    return apart / apart.std(1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
