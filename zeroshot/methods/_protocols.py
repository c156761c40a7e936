"""What a method is: protocols, one per kind, and the types of what methods take and give."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from zeroshot.methods._caption_pool import Pool
from zeroshot.models.base import DualEncoder, LanguageModel
from zeroshot.trace import Trace

Output = Literal["similarity", "logit", "probability"]
"""What a scorer's numbers are. A *similarity* needs the model's logit scale before a softmax, a
*logit* has been scaled, a *probability* needs no softmax."""


def as_logits(
    scores: Float[Tensor, "n c"], output: Output, logit_scale: float
) -> Float[Tensor, "n c"]:
    """Scores of any kind as logits; the logarithm of a probability is one."""
    if output == "similarity":
        return scores * logit_scale
    if output == "logit":
        return scores
    return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()


@runtime_checkable
class Scorer(Protocol):
    """Embeddings to class scores, higher is better."""

    @property
    def transductive(self) -> bool:
        """Whether an image's score depends on the other images; then they are scored together."""

    @property
    def output(self) -> Output:
        """What the numbers of `scores` are."""

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Score `n` unit image embeddings for `c` classes of up to `t` unit prompt embeddings."""


@runtime_checkable
class Refiner(Scorer, Protocol):
    """A scorer that improves the prompts, so that another method can score by them."""

    def refine(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> tuple[Float[Tensor, "c u d"], Bool[Tensor, "c u"] | None]:
        """Unit prompt embeddings to score with instead, and which of them exist."""


@runtime_checkable
class Adjuster(Scorer, Protocol):
    """A scorer that corrects logits, whichever method they come from.

    Its own `scores` adjust the zero-shot logits, and `adjust` gives what `output` says.
    """

    def adjust(
        self, logits: Float[Tensor, "n c"], bank: Float[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "n c"]:
        """Corrected logits; `bank` holds the logits of the unlabelled images it was fitted with."""


@runtime_checkable
class Coupling(Scorer, Protocol):
    """A scorer fitted on anchor pairs that maps images and texts into one joint space.

    The dot product of an image vector and a text vector there is the score. So two unimodal
    encoders and a coupling can replace a dual encoder.
    """

    def fit(
        self, anchor_images: Real[Tensor, "a d"], anchor_texts: Real[Tensor, "_a e"]
    ) -> "Coupling":
        """A copy fitted to these pairs; row i of both belongs together."""

    def add(self, images: Float[Tensor, "m d"], texts: Float[Tensor, "_m e"]) -> "Coupling":
        """A copy with these pairs appended."""

    def remove(self, index: Int[Tensor, " m"]) -> "Coupling":
        """A copy without the pairs at `index`; the others keep their order."""

    def map_images(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """Image embeddings in the joint space."""

    def map_texts(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n m"]:
        """Text embeddings in the joint space."""

    def cosines(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None = None,
    ) -> Float[Tensor, "n c"]:
        """As `scores`, with the joint vectors of both sides at unit length."""

    def match(
        self, images: Float[Tensor, "b m"], texts: Float[Tensor, "b k e"]
    ) -> Float[Tensor, "b k"]:
        """Cosines of joint image vectors with `k` text embeddings each, for guided decoding."""


@dataclass(frozen=True)
class Explanation:
    """The anchors with the largest shares of a score, largest first; all shares sum to `score`."""

    anchors: tuple[int, ...]
    """Their indices."""
    shares: tuple[float, ...]
    score: float

    @classmethod
    def from_shares(cls, shares: Float[Tensor, " a"], count: int) -> "Explanation":
        """The `count` anchors whose shares have the largest absolute value."""
        largest = shares.abs().topk(min(count, len(shares))).indices
        return cls(tuple(largest.tolist()), tuple(shares[largest].tolist()), float(shares.sum()))


@dataclass(frozen=True)
class Caption:
    """One caption and the cosine of its embedding with the image's."""

    text: str
    score: float
    tokens: tuple[int, ...] = ()
    trace: Trace | None = field(default=None, repr=False, compare=False)
    """Every choice of the decoding, on request."""


@runtime_checkable
class Captioner(Protocol):
    """Image embeddings to captions."""

    needs: ClassVar[frozenset[str]]
    """Which of `language_model` and `pool` must be given."""

    takes: ClassVar[frozenset[str]]
    """Which of `prompts`, `trace` and `written` may be given."""

    def caption(
        self,
        images: Float[Tensor, "n d"],
        encoder: DualEncoder,
        *,
        language_model: LanguageModel | None = None,
        pool: Pool | None = None,
        prompts: Sequence[str] | None = None,
        trace: bool = False,
    ) -> list[Caption]:
        """One caption for each of `images`, which are `encoder`'s unit image embeddings.

        `prompts`, one per image, are beginnings or titles; `trace` records every choice. A method
        that takes `written` calls it with an image's index and its text so far.
        """


@runtime_checkable
class Dense(Protocol):
    """Another attention in a vision transformer's last block, for an embedding of each patch."""

    @property
    def whole_block(self) -> bool:
        """Whether the last block keeps its residual connections and its feed-forward part."""

    @property
    def scale(self) -> float:
        """The factor of the cosines of patches and labels before the softmax."""

    def attend(
        self,
        query: Float[Tensor, "b h s d"],
        key: Float[Tensor, "b h s d"],
        value: Float[Tensor, "b h s d"],
        grid: tuple[int, int],
    ) -> Float[Tensor, "b h s d"]:
        """As `base.Attend`; one that `needs_features` takes those of a second encoder too."""


@runtime_checkable
class Propagating(Dense, Protocol):
    """A dense method whose scores spread over the patches."""

    def propagate(
        self,
        scores: Float[Tensor, "n c"],
        features: Float[Tensor, "n e"],
        positions: Float[Tensor, "n 2"],
    ) -> Float[Tensor, "n c"]:
        """Scores of patches after they spread to patches with like features, at these pixels."""
