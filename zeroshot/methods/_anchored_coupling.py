"""Couplings that learn from anchor pairs: fit, add, remove, and what they raise before `fit`."""

from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

from jaxtyping import Float, Int, Real
from torch import Tensor

from zeroshot.methods._anchor_checks import check_added, check_pairs, check_removed
from zeroshot.methods._anchor_matrix import AnchorMatrix
from zeroshot.methods._door import Method
from zeroshot.methods._registry import name_of

T = TypeVar("T")
Self = TypeVar("Self", bound="AnchoredCoupling")


def fitted(method: object, learned: T | None) -> T:
    """What `fit` learned; RuntimeError before it."""
    if learned is None:
        name = type(method).__name__
        raise RuntimeError(f"this {name} has no anchors yet: call fit(anchor_images, anchor_texts)")
    return learned


@dataclass(frozen=True)
class AnchoredCoupling(Method):
    """A coupling that keeps its anchors; a subclass says in `_learn` how it learns from them."""

    anchor_images_: AnchorMatrix | None = field(
        default=None, kw_only=True, repr=False, compare=False
    )
    anchor_texts_: AnchorMatrix | None = field(
        default=None, kw_only=True, repr=False, compare=False
    )

    least_pairs: ClassVar[int] = 1

    def _learn(self: Self, images: AnchorMatrix, texts: AnchorMatrix) -> Self:
        """A copy fitted to these anchors, which have been checked."""
        raise NotImplementedError

    def fit(
        self: Self, anchor_images: Real[Tensor, "a d"], anchor_texts: Real[Tensor, "_a e"]
    ) -> Self:
        """A copy fitted to these anchor pairs; row i of both belongs together.

        The embeddings are not copied: they may be in half precision, or in a mapped file.

        Raises:
            UserError: too few pairs, an embedding that is zero or not finite, an option out of
                range.
        """
        check_pairs(name_of(self), anchor_images, anchor_texts, self.least_pairs)
        images, texts = map(AnchorMatrix.from_embeddings, (anchor_images, anchor_texts))
        return self._learn(images, texts)

    def add(self: Self, images: Float[Tensor, "m d"], texts: Float[Tensor, "_m e"]) -> Self:
        """With these pairs appended, as if fitted with all of them."""
        check_added(images, texts, self._images, self._texts)
        return self._learn_edited(self._images.add(images), self._texts.add(texts))

    def remove(self: Self, index: Int[Tensor, " m"]) -> Self:
        """Without the pairs at `index`; the others keep their order."""
        removed = check_removed(index, len(self._images))
        return self._learn_edited(self._images.remove(removed), self._texts.remove(removed))

    def _learn_edited(self: Self, images: AnchorMatrix, texts: AnchorMatrix) -> Self:
        """As `_learn`, for the anchors after an edit."""
        return self._learn(images, texts)

    @property
    def _images(self) -> AnchorMatrix:
        return fitted(self, self.anchor_images_)

    @property
    def _texts(self) -> AnchorMatrix:
        return fitted(self, self.anchor_texts_)
