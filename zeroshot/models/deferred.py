"""Encoders that are loaded when something has to be encoded, and not before.

A run whose embeddings are all in the cache needs of an encoder only its name and a few numbers. So
these are remembered, by the content of the model's files, and the network waits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.models.base import (
    Attend,
    ClassifierHead,
    Image,
    IncrementalTextEncoder,
    Matcher,
    Pixels,
)

__all__ = ["TEXTS", "Deferred", "DeferredTextEncoder", "deferred", "facts_of"]

TextMemory = Callable[[Callable[[Sequence[str]], Tensor], Sequence[str], str, str], Tensor]
"""Rows of texts, perhaps remembered: a function that makes them, the texts, the encoder's name, and
`TEXTS` or `TOKENS`."""
TEXTS, TOKENS = "text", "tokens"
"""Kinds of rows: embeddings, and numbers of tokens."""

_NAMED: dict[str, Any] = {"name": str}
_PIXELS: dict[str, Any] = {"shortcuts": str, "draft_side": (int, type(None))}
_TEXTS: dict[str, Any] = {"context_length": (int, type(None))}
_DUAL: dict[str, Any] = {
    "logit_scale": float,
    "logit_bias": (float, type(None)),
    "trained_scale": bool,
}


class Deferred:
    """What all have: facts, and a function that loads the encoder."""

    FACTS: Mapping[str, Any] = _NAMED
    """The facts that it knows before it is loaded, and their types."""

    def __init__(
        self,
        facts: Mapping[str, Any],
        load: Callable[[], Any],
        memory: TextMemory,
        read_classes: Callable[[], ClassifierHead | None],
    ) -> None:
        self._facts = facts
        self._load = load
        self._encoder: Any = None
        self._memory = memory
        self._read_classes = read_classes

    def load(self) -> Any:
        """The encoder itself; asked for with every image, so it is kept here."""
        if self._encoder is None:
            self._encoder = self._load()
        return self._encoder

    @property
    def name(self) -> str:
        """See `models.base`, as all that follows."""
        return str(self._facts["name"])


class DeferredImageEncoder(Deferred):
    """An image encoder, perhaps with a classifier on top."""

    FACTS = _NAMED | _PIXELS

    @property
    def shortcuts(self) -> str:
        """Remembered."""
        return str(self._facts["shortcuts"])

    @property
    def draft_side(self) -> int | None:
        """Remembered."""
        side: int | None = self._facts["draft_side"]
        return side

    @property
    def classes(self) -> ClassifierHead | None:
        """Read from the files; only the classifier is."""
        return self._read_classes()

    def encode_images(self, images: Sequence[Image]) -> Float[Tensor, "n d"]:
        """By the encoder."""
        rows: Tensor = self.load().encode_images(images)
        return rows

    def pixels(self, image: Image) -> Pixels:
        """By the encoder."""
        return self.load().pixels(image)

    def encode_pixels(self, pixels: Sequence[Pixels]) -> Float[Tensor, "n d"]:
        """By the encoder."""
        rows: Tensor = self.load().encode_pixels(pixels)
        return rows


class DeferredTextEncoder(Deferred):
    """A text encoder."""

    FACTS = _NAMED | _TEXTS

    @property
    def context_length(self) -> int | None:
        """Remembered."""
        length: int | None = self._facts["context_length"]
        return length

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Remembered for each text."""

        def count(texts: Sequence[str]) -> Float[Tensor, "n 1"]:
            return torch.tensor(self.load().count_tokens(texts)).float()[:, None]

        if not texts:
            return []
        counts: list[int] = self._memory(count, texts, self.name, TOKENS)[:, 0].long().tolist()
        return counts

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """By the encoder, but for those that are remembered."""
        if not texts:
            return self.encode_anew(texts)
        return self._memory(self.encode_anew, texts, self.name, TEXTS)

    def encode_anew(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """By the encoder."""
        rows: Tensor = self.load().encode_texts(texts)
        return rows

    def session(self) -> IncrementalTextEncoder:
        """By the encoder."""
        session: IncrementalTextEncoder = self.load().session()
        return session


class DeferredDualEncoder(DeferredTextEncoder):
    """A dual encoder that encodes pixels and patches too."""

    FACTS = _NAMED | _PIXELS | _TEXTS | _DUAL

    shortcuts = DeferredImageEncoder.shortcuts
    draft_side = DeferredImageEncoder.draft_side
    encode_images = DeferredImageEncoder.encode_images
    pixels = DeferredImageEncoder.pixels
    encode_pixels = DeferredImageEncoder.encode_pixels

    @property
    def logit_scale(self) -> float:
        """Remembered."""
        return float(self._facts["logit_scale"])

    @property
    def logit_bias(self) -> float | None:
        """Remembered."""
        bias: float | None = self._facts["logit_bias"]
        return bias

    @property
    def trained_scale(self) -> bool:
        """Remembered."""
        return bool(self._facts["trained_scale"])

    @property
    def patch_size(self) -> int:
        """The encoder's; it is loaded."""
        return int(self.load().patch_size)

    @property
    def image_size(self) -> int:
        """The encoder's; it is loaded."""
        return int(self.load().image_size)

    def matcher(self) -> Matcher:
        """By the encoder."""
        matcher: Matcher = self.load().matcher()
        return matcher

    def encode_patches(
        self, images: Sequence[Image], attend: Attend, *, whole_block: bool = False
    ) -> Float[Tensor, "n h w d"]:
        """By the encoder."""
        patches: Tensor = self.load().encode_patches(images, attend, whole_block=whole_block)
        return patches


KINDS: dict[str, tuple[type[Deferred], tuple[str, ...]]] = {
    "dual encoder": (DeferredDualEncoder, ("encode_patches", "encode_texts", "encode_pixels")),
    "image encoder": (DeferredImageEncoder, ("classes", "encode_pixels")),
    "text encoder": (DeferredTextEncoder, ("encode_texts",)),
}
"""For each role the class, and what an encoder offers that it stands for."""


def facts_of(encoder: Any) -> dict[str, Any] | None:
    """The facts of an encoder, of JSON; None for one that is always loaded."""
    offered = set(dir(type(encoder)))
    for role, (kind, wanted) in KINDS.items():
        if offered.issuperset(wanted):
            facts = {name: getattr(encoder, name) for name in kind.FACTS}
            return {"role": role, **facts} if _valid(facts, kind) else None
    return None


def deferred(
    facts: Any,
    load: Callable[[], Any],
    memory: TextMemory,
    read_classes: Callable[[], ClassifierHead | None],
) -> Any:
    """The encoder with these facts; None if they are not those of an encoder.

    Args:
        facts: of `facts_of`, from wherever they were stored.
        load: returns the encoder, at once if it was loaded before.
        memory: see `TextMemory`.
        read_classes: its classifier, read from its files.
    """
    if not isinstance(facts, dict) or facts.get("role") not in KINDS:
        return None
    kind, _ = KINDS[facts["role"]]
    return kind(facts, load, memory, read_classes) if _valid(facts, kind) else None


def _valid(facts: Mapping[str, Any], kind: type[Deferred]) -> bool:
    values = {name: facts.get(name, ...) for name in kind.FACTS}
    numbers = (value for value in values.values() if isinstance(value, float))
    typed = all(isinstance(values[name], types) for name, types in kind.FACTS.items())
    return typed and all(map(math.isfinite, numbers))
