"""Checks of anchor pairs and of edits; each raises UserError that says what is wrong."""

from jaxtyping import Float, Int, Real
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._anchor_matrix import BLOCK, AnchorMatrix, at_least_float32


def check_pairs(
    method: str, images: Real[Tensor, "a d"], texts: Real[Tensor, "b e"], least: int = 1
) -> None:
    """As many images as texts, at least `least`, all finite and none of length zero."""
    if len(images) != len(texts) or len(images) < least:
        pairs = "at least one pair" if least == 1 else f"at least {least} pairs"
        raise UserError(
            f"{len(images)} anchor images and {len(texts)} anchor texts: "
            f"{method} needs as many of one as of the other, and {pairs}"
        )
    check_embeddings("anchor images", images)
    check_embeddings("anchor texts", texts)


def check_embeddings(name: str, embeddings: Real[Tensor, "n d"], width: int | None = None) -> None:
    """No embedding of another width, with NaN or infinity, or of length zero."""
    if width is not None and embeddings.shape[1] != width:
        raise UserError(f"{name} of width {embeddings.shape[1]}, but the anchors' width is {width}")
    for start in range(0, len(embeddings), BLOCK):
        length = at_least_float32(embeddings[start : start + BLOCK]).norm(dim=1)
        wrong = ~(length.isfinite() & (length > 0))
        if wrong.any():
            row = start + int(wrong.nonzero()[0])
            fault = "is zero and has no direction" if length[wrong][0] == 0 else "is not finite"
            raise UserError(f"{name}: row {row} {fault}")


def check_added(
    images: Float[Tensor, "m d"],
    texts: Float[Tensor, "_m e"],
    anchor_images: AnchorMatrix,
    anchor_texts: AnchorMatrix,
) -> None:
    """Pairs that can be added to these anchors."""
    check_pairs("an edit", images, texts)
    check_embeddings("anchor images", images, anchor_images.width)
    check_embeddings("anchor texts", texts, anchor_texts.width)


def check_removed(index: Int[Tensor, " m"], count: int) -> Int[Tensor, " m"]:
    """`index` sorted and without repetitions; every one below `count`, and some anchor left."""
    unknown = index[(index < 0) | (index >= count)]
    if len(unknown):
        raise UserError(f"no anchor {int(unknown[0])}: there are {count}, counted from 0")
    removed: Tensor = index.unique()  # type: ignore[no-untyped-call]
    if len(removed) == count:
        raise UserError(f"all {count} anchors would be removed; a coupling needs at least one")
    return removed
