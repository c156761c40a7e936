"""Methods: one paper, one file; the file's name is the method's name.

A method is a frozen dataclass whose fields are its options. Two kinds exist, told apart by the
verb they have: a *scorer* (`scores`) turns embeddings into class scores, a *captioner*
(`caption`) turns image embeddings into texts. A scorer that learns from arrays (anchors, shots,
unlabelled images) has `fit`, which returns a NEW object; the names of `fit`'s parameters are the
names of the arrays in docs/embeddings.md, and learned fields end in `_`.

A method meets `ops`, `decoding` and `models.base` only: never a model, a file or the screen.
"""

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.errors import unknown
from zeroshot.models.base import DualEncoder, LanguageModel

Output = Literal["similarity", "logit", "probability"]
"""What a scorer's numbers are: a *similarity* still wants the model's logit scale before a
softmax, a *logit* has it, a *probability* needs neither."""


@runtime_checkable
class Scorer(Protocol):
    """Embeddings to class scores, higher is better."""

    transductive: ClassVar[bool]
    """Whether a row's score depends on the other rows; such a method is never split."""

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
        """Score `n` unit image rows against `c` classes of up to `t` unit prompt rows each."""


@runtime_checkable
class Coupling(Scorer, Protocol):
    """A scorer fitted on anchor pairs: it maps both sides into one space.

    There the dot product of an image row and a text row is the score, so that a coupled pair of
    unimodal encoders stands wherever a dual encoder stands.
    """

    def map_images(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """Image embeddings in the joint space."""

    def map_texts(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n m"]:
        """Text embeddings in the joint space."""


@dataclass(frozen=True)
class Caption:
    """One caption and the cosine of its embedding with the picture's."""

    text: str
    score: float
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pool:
    """Captions to choose from, with their embeddings in the encoder's joint space."""

    texts: Sequence[str]
    embeddings: Float[Tensor, "m d"]


@runtime_checkable
class Captioner(Protocol):
    """Image embeddings to captions."""

    needs: ClassVar[frozenset[str]]
    """Which of `language_model` and `pool` must be given."""

    def caption(
        self,
        images: Float[Tensor, "n d"],
        encoder: DualEncoder,
        *,
        language_model: LanguageModel | None = None,
        pool: Pool | None = None,
    ) -> list[Caption]:
        """One caption for each row of `images`, which are `encoder`'s unit image rows."""


def names() -> list[str]:
    """Every method there is, found by listing this folder; nothing is imported."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> type[Any]:
    """The method called `name`: the class in its file whose lower-case name equals the file's."""
    if name not in names():
        raise unknown("method", name, names())
    module = importlib.import_module(f"{__name__}.{name}")
    found = [c for n, c in vars(module).items() if n.lower() == name.replace("_", "")]
    return found[0]
