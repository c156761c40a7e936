"""A dual encoder made of two unimodal encoders and a coupling."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int, Real
from torch import Tensor

from zeroshot.methods import Coupling
from zeroshot.methods._conse import ConSE
from zeroshot.models.base import (
    ClassifyingEncoder,
    Image,
    ImageEncoder,
    IncrementalTextEncoder,
    Matcher,
    TextEncoder,
)
from zeroshot.models.isolation import own_state
from zeroshot.ops import hold_out, matching_scale, normalize

BEYOND_CHANCE = 3.0
"""A classifier is used if its mean reciprocal rank is at least this multiple of chance."""


@dataclass(frozen=True)
class CoupledEncoder:
    """An image encoder, a text encoder and a coupling that is fitted to both.

    Its embeddings are unit vectors in the coupling's joint space, so that their dot product is the
    cosine that every task expects of a dual encoder.
    """

    image_encoder: ImageEncoder
    text_encoder: TextEncoder
    coupling: Coupling
    logit_scale: float
    anchors: str
    """Fingerprint of the anchor pairs; part of the name."""
    logit_bias: float | None = None

    @property
    def name(self) -> str:
        """`asif(k=50, p=2.0, ...)[image encoder + text encoder, anchors 0123456789ab]`."""
        parts = f"{self.image_encoder.name} + {self.text_encoder.name}, anchors {self.anchors}"
        return f"{self.coupling!r}[{parts}]"

    @property
    def context_length(self) -> int | None:
        """The text encoder's."""
        return self.text_encoder.context_length

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The text encoder's."""
        return self.text_encoder.count_tokens(texts)

    @own_state()
    def project_images(self, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """Embeddings of the image encoder, in the joint space."""
        return normalize(self.coupling.map_images(embeddings))

    @own_state()
    def project_texts(self, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """Embeddings of the text encoder, in the joint space."""
        return normalize(self.coupling.map_texts(embeddings))

    def session(self) -> IncrementalTextEncoder:
        """See `models.base.TextEncoder`; only the text encoder's embeddings are cached."""
        encode = self.text_encoder.session()
        return lambda texts: self.project_texts(encode(texts).cpu())

    def matcher(self) -> Matcher:
        """See `models.base.DualEncoder`.

        ASIF takes these cosines over the image's own anchors only; `methods.asif` says how close
        that is to `project_images @ project_texts`.
        """
        encode = self.text_encoder.session()

        @own_state()
        def match(
            images: Float[Tensor, "b m"], texts: Sequence[Sequence[str]]
        ) -> Float[Tensor, "b k"]:
            flat = encode([text for row in texts for text in row]).cpu()
            count = len(flat) // len(texts) if texts else 0
            return self.coupling.match(images, flat.view(len(texts), count, flat.shape[1]))

        return match

    def encode_images(self, images: Sequence[Image]) -> Float[Tensor, "n m"]:
        """See `models.base.ImageEncoder`."""
        return self.project_images(self.image_encoder.encode_images(images))

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n m"]:
        """See `models.base.TextEncoder`."""
        return self.project_texts(self.text_encoder.encode_texts(texts))


def with_classifier_head(
    coupling: Coupling,
    image_encoder: ImageEncoder,
    encode_texts: Callable[[Sequence[str]], Float[Tensor, "n e"]],
    anchor_images: Real[Tensor, "a d"],
    anchor_texts: Real[Tensor, "a e"],
    weight: float = 0.5,
) -> Coupling:
    """The fitted coupling, together with the image encoder's classifier if that is good enough.

    The classifier is used if, on held-out anchors, its class names alone retrieve the matching text
    with a mean reciprocal rank of at least `BEYOND_CHANCE` times chance. Whether it improves on the
    anchors is not tested: images like the anchors need it least. The coupling is returned as it is
    if the encoder has no classifier, or if there are too few anchors for the test. `encode_texts`
    gives the text encoder's embeddings of class names, and `weight` is that of `ConSE`.
    """
    head = image_encoder.classes if isinstance(image_encoder, ClassifyingEncoder) else None
    few = _held_out(anchor_images, anchor_texts) is None
    if head is None or few or head.weights.shape[1] != anchor_images.shape[1]:
        return coupling
    names = encode_texts(head.names)
    return with_classes(coupling, head.weights, names, anchor_images, anchor_texts, weight)


def with_classes(
    coupling: Coupling,
    weights: Float[Tensor, "c d"],
    names: Float[Tensor, "c e"],
    anchor_images: Real[Tensor, "a d"],
    anchor_texts: Real[Tensor, "a e"],
    weight: float = 0.5,
) -> Coupling:
    """As `with_classifier_head`, of a classifier's weights and the embeddings of its names."""
    test = _held_out(anchor_images, anchor_texts)
    if test is None:
        return coupling
    combined = ConSE(coupling, weights, names, weight)
    without_test = combined.remove(test.indices)
    texts = normalize(without_test.map_texts(test.texts))
    rank = reciprocal_rank(without_test.named(test.images) @ texts.T)
    count = len(test.indices)
    chance = sum(1 / position for position in range(1, count + 1)) / count
    return combined if rank > BEYOND_CHANCE * chance else coupling


def calibrate(
    coupling: Coupling, anchor_images: Real[Tensor, "a d"], anchor_texts: Real[Tensor, "a e"]
) -> float:
    """The logit scale that a dual encoder would have learned, from held-out anchors.

    `coupling` is fitted on all anchors; the held-out ones are removed from it first. A coupling's
    cosines have no scale, but a guide and a softmax need one: this is the factor with which
    held-out images most probably select their own texts.
    """
    test = _held_out(anchor_images, anchor_texts)
    if test is None:
        return 20.0
    cosines = coupling.remove(test.indices).cosines(test.images, test.texts[:, None])
    return matching_scale(cosines)


def reciprocal_rank(similarity: Float[Tensor, "n n"]) -> float:
    """Mean of 1 / the rank of text i for image i; equal similarities share the last rank."""
    matching = similarity.diagonal()[:, None]
    return float((1 / (similarity >= matching).sum(1)).mean())


@dataclass(frozen=True)
class _HeldOutAnchors:
    indices: Int[Tensor, " h"]
    images: Float[Tensor, "h d"]
    texts: Float[Tensor, "h e"]


def _held_out(
    anchor_images: Real[Tensor, "a d"], anchor_texts: Real[Tensor, "a e"]
) -> _HeldOutAnchors | None:
    """Anchors to test a coupling with; None if there are too few."""
    indices, _ = hold_out(len(anchor_images))
    if len(indices) < 10:
        return None
    images, texts = (
        # anchors of fewer bits stand for unit vectors
        side[indices] if side.dtype.itemsize >= 4 else normalize(side[indices].float())
        for side in (anchor_images, anchor_texts)
    )
    return _HeldOutAnchors(indices, images, texts)
