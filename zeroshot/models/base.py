"""What a frozen model offers to the rest of the package: protocols, no models.

Conventions are settled here once. Embeddings leave an encoder as unit rows in float32; images
arrive as RGB PIL pictures, upright; a language model meets token ids and nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor

__all__ = [
    "Cache",
    "DualEncoder",
    "Image",
    "ImageEncoder",
    "LanguageModel",
    "Matcher",
    "PixelEncoder",
    "Pixels",
    "Step",
    "TextEncoder",
    "TextSession",
]

Cache = Any
"""Keys and values of a language model, opaque to everyone but the model that made them."""

Pixels = Any
"""A picture preprocessed for an encoder, opaque to everyone but the encoder that made it."""

TextSession = Callable[[Sequence[str]], Float[Tensor, "n d"]]
"""Texts to unit rows, float32, on the encoder's device; remembers what the next call can use."""

Matcher = Callable[[Float[Tensor, "b m"], Sequence[Sequence[str]]], Float[Tensor, "b k"]]
"""Unit image rows and `k` texts for each of them to their cosines."""


@runtime_checkable
class ImageEncoder(Protocol):
    """Pictures to unit rows."""

    @property
    def name(self) -> str:
        """Canonical name; changes whenever the numbers would.

        It holds the model's name, its revision (hub commit or content hash), the preprocessing
        and the precision, and so serves as part of a cache key.
        """

    def encode_images(self, images: Sequence[Image]) -> Float[Tensor, "n d"]:
        """Unit rows, float32, on the CPU, in the order of `images` (RGB, upright)."""


@runtime_checkable
class PixelEncoder(ImageEncoder, Protocol):
    """An image encoder whose preprocessing is a step of its own, which threads may do ahead.

    `encode_images(images)` is `encode_pixels([pixels(image) for image in images])`, bit for bit.
    """

    @property
    def shortcuts(self) -> str:
        """Names what makes pixels differ from the model's own preprocessing; empty if nothing.

        Part of a row's cache key beside `name`, which texts share.
        """

    @property
    def draft_side(self) -> int | None:
        """JPEG files may be decoded at a fraction of their size, with no side below this."""

    def pixels(self, image: Image) -> Pixels:
        """One picture (RGB, upright) as the network reads it, small and on the CPU."""

    def encode_pixels(self, pixels: Sequence[Pixels]) -> Float[Tensor, "n d"]:
        """Rows as `encode_images` gives them, in the order of `pixels`."""


@runtime_checkable
class TextEncoder(Protocol):
    """Texts to unit rows."""

    @property
    def name(self) -> str:
        """As `ImageEncoder.name`."""

    @property
    def context_length(self) -> int | None:
        """Tokens the model reads, special tokens included; what follows is cut off."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Length of each text in tokens, uncut, special tokens included."""

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit rows, float32, on the CPU, in the order of `texts`."""

    def session(self) -> TextSession:
        """`encode_texts` for texts that come back and grow, as those of guided decoding do.

        Rows differ from those of `encode_texts` by rounding alone.
        """


@runtime_checkable
class DualEncoder(ImageEncoder, TextEncoder, Protocol):
    """An image and a text encoder that share one space."""

    @property
    def logit_scale(self) -> float:
        """What the model multiplies a cosine by (exp of its parameter); read, never assumed."""

    @property
    def logit_bias(self) -> float | None:
        """Added to the scaled cosine before a sigmoid (SigLIP); None means softmax."""

    def matcher(self) -> Matcher:
        """Scores pictures against growing texts: `session` and a dot product, or better."""


@dataclass(frozen=True)
class Step:
    """What one forward pass of a language model leaves behind."""

    hidden: Float[Tensor, "b s e"]
    """Last layer's hidden states of the tokens just fed, after the final norm."""
    cache: Cache


@runtime_checkable
class LanguageModel(Protocol):
    """A causal language model on token ids: batched, cached, without padding.

    Rows of one call have equal length; callers group texts by length instead of padding them,
    so that no mask exists and no padded position can be mistaken for context.
    """

    @property
    def name(self) -> str:
        """As `ImageEncoder.name`."""

    @property
    def start(self) -> int:
        """`<-start_of_text->` where the vocabulary has it, else the beginning-of-sequence id."""

    @property
    def end(self) -> int:
        """The id that ends a text."""

    @property
    def context_length(self) -> int:
        """Positions the model has."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone, no special tokens added."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, special tokens kept, spaces before punctuation cleaned as the
        tokenizer's own configuration asks.
        """

    def forward(self, tokens: Int[Tensor, "b s"], cache: Cache | None = None) -> Step:
        """Feed `tokens` after what `cache` holds; `cache` itself stays as it was."""

    def logits(self, hidden: Float[Tensor, "b e"]) -> Float[Tensor, "b v"]:
        """Float32 scores over the vocabulary; apart from `forward` since few states need them."""

    def select(self, cache: Cache, rows: Int[Tensor, " r"]) -> Cache:
        """A new cache with `rows` of the old one, repeated or reordered as they come."""
