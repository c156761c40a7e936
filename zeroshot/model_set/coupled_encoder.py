"""Two unimodal encoders and a coupling, standing where a dual encoder stands."""

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
from zeroshot.ops import hold_out, matching_scale, normalize

BEYOND_CHANCE = 3.0
"""How much better than by chance a classifier must find texts to be believed."""


@dataclass(frozen=True)
class CoupledEncoder:
    """A dual encoder made of an image encoder, a text encoder and a coupling fitted to both.

    Its rows lie in the coupling's joint space at unit length, so their dot product is the cosine
    every task expects of a dual encoder.
    """

    image_encoder: ImageEncoder
    text_encoder: TextEncoder
    coupling: Coupling
    logit_scale: float
    anchors: str
    """Fingerprint of the anchor pairs, part of the name."""
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

    def project_images(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """Rows of the image encoder, in the joint space."""
        return normalize(self.coupling.map_images(rows))

    def project_texts(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """Rows of the text encoder, in the joint space."""
        return normalize(self.coupling.map_texts(rows))

    def session(self) -> IncrementalTextEncoder:
        """See `models.base.TextEncoder`; only the text encoder remembers."""
        encode = self.text_encoder.session()
        return lambda texts: self.project_texts(encode(texts).cpu())

    def matcher(self) -> Matcher:
        """See `models.base.DualEncoder`.

        For ASIF these cosines look at the image's own anchors alone; `methods.asif` says how near
        that is to `project_images @ project_texts`.
        """
        encode = self.text_encoder.session()

        def match(
            images: Float[Tensor, "b m"], texts: Sequence[Sequence[str]]
        ) -> Float[Tensor, "b k"]:
            rows = encode([text for row in texts for text in row]).cpu()
            count = len(rows) // len(texts) if texts else 0
            return self.coupling.match(images, rows.view(len(texts), count, rows.shape[1]))

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
    read: Callable[[Sequence[str]], Float[Tensor, "n e"]],
    anchor_images: Real[Tensor, "a d"],
    anchor_texts: Real[Tensor, "a e"],
) -> Coupling:
    """The fitted coupling with the picture encoder's own classifier beside it, if that can be read.

    It can if what the classifier names is enough for pictures of anchors set aside to find their
    own texts `BEYOND_CHANCE` times better than by chance, by the mean reciprocal rank. Whether it
    adds to what the anchors taught is not asked: pictures like the anchors need it least. The
    coupling stays as it was for an encoder without a classifier, or too few anchors to tell.
    `read` gives the names' rows of the text encoder.
    """
    classes = image_encoder.classes if isinstance(image_encoder, ClassifyingEncoder) else None
    held = _held_out(anchor_images, anchor_texts)
    if classes is None or held is None or classes.weights.shape[1] != anchor_images.shape[1]:
        return coupling
    beside = ConSE(coupling, classes.weights, read(classes.names))
    test, images, texts = held
    kept = beside.remove(test)
    found = reciprocal_rank(kept.named(images) @ normalize(kept.map_texts(texts)).T)
    chance = sum(1 / place for place in range(1, len(test) + 1)) / len(test)
    return beside if found > BEYOND_CHANCE * chance else coupling


def calibrate(
    coupling: Coupling, anchor_images: Real[Tensor, "a d"], anchor_texts: Real[Tensor, "a e"]
) -> float:
    """The logit scale a dual encoder would have learned, from anchors set aside.

    `coupling` is fitted on all of them, and forgets these for the occasion. Its cosines have no
    scale of their own, and a guide or a softmax needs one: this is the factor under which held-out
    pictures most probably pick their own texts.
    """
    held = _held_out(anchor_images, anchor_texts)
    if held is None:
        return 20.0
    test, images, texts = held
    return matching_scale(coupling.remove(test).cosines(images, texts[:, None]))


def reciprocal_rank(similarity: Float[Tensor, "n n"]) -> float:
    """Mean of 1 / the place that text i takes for picture i; equals share the last place."""
    own = similarity.diagonal()[:, None]
    return float((1 / (similarity >= own).sum(1)).mean())


def _held_out(
    anchor_images: Real[Tensor, "a d"], anchor_texts: Real[Tensor, "a e"]
) -> tuple[Int[Tensor, " h"], Float[Tensor, "h d"], Float[Tensor, "h e"]] | None:
    """Places and rows of pairs to judge by; None where the anchors are too few."""
    test, _ = hold_out(len(anchor_images))
    if len(test) < 10:
        return None
    images, texts = (
        # rows kept in fewer bits stand for unit rows
        side[test] if side.dtype.itemsize >= 4 else normalize(side[test].float())
        for side in (anchor_images, anchor_texts)
    )
    return test, images, texts
