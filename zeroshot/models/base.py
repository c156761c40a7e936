"""What a frozen model offers to the rest of the package: protocols, no models.

Conventions are settled here once. Embeddings leave an encoder as unit rows in float32; images
arrive as RGB PIL pictures, upright; a language model meets token ids and nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor

from zeroshot.models.boxes import clipped

__all__ = [
    "Answer",
    "Answerer",
    "Attend",
    "Cache",
    "Classes",
    "ClassifyingEncoder",
    "ClipEncoder",
    "ClipScorer",
    "DenseEncoder",
    "Detections",
    "Detector",
    "DualEncoder",
    "FramewiseEncoder",
    "Grounder",
    "Image",
    "ImageEncoder",
    "IncrementalTextEncoder",
    "LanguageModel",
    "Matcher",
    "PairScorer",
    "Phrase",
    "PixelEncoder",
    "Pixels",
    "RegionAnswerer",
    "Regions",
    "Segmenter",
    "Step",
    "TextEncoder",
    "Writer",
]

Cache = Any
"""Keys and values of a language model, opaque to everyone but the model that made them."""

Pixels = Any
"""A picture preprocessed for an encoder, opaque to everyone but the encoder that made it."""

IncrementalTextEncoder = Callable[[Sequence[str]], Float[Tensor, "n d"]]
"""Texts to unit rows, float32, on the encoder's device; remembers what the next call can use."""

Matcher = Callable[[Float[Tensor, "b m"], Sequence[Sequence[str]]], Float[Tensor, "b k"]]
"""Unit image rows and `k` texts for each of them to their cosines."""

Attend = Callable[
    [
        Float[Tensor, "b h s d"],
        Float[Tensor, "b h s d"],
        Float[Tensor, "b h s d"],
        tuple[int, int],
    ],
    Float[Tensor, "b h s d"],
]
"""Queries, keys and values of a vision transformer's heads, and its rows and columns of patches,
to what each token gathers. Tokens that are no patches (the class token) come first."""


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


@dataclass(frozen=True)
class Classes:
    """The last layer of a classifier: what each class looks for in a row, and what it is called."""

    weights: Float[Tensor, "c d"]
    names: tuple[str, ...]


@runtime_checkable
class ClassifyingEncoder(ImageEncoder, Protocol):
    """An image encoder that came with a classifier of its rows, or may have."""

    @property
    def classes(self) -> Classes | None:
        """None where it has none, or none whose classes have names."""


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


VideoFile = BinaryIO | BytesIO
"""An open file of video, or one in memory."""


@runtime_checkable
class ClipEncoder(ImageEncoder, Protocol):
    """An image encoder that stands for one of clips: what it is given are files of video."""

    @property
    def clip_kind(self) -> str:
        """Names how a clip becomes a row: frames, sampling, pooling. Part of a row's cache key."""

    def read_clip(self, file: VideoFile) -> Pixels:
        """What the network reads of a clip, small and on the CPU.

        UnreadableImageError with the reason, without the path.
        """

    def encode_clips(self, clips: Sequence[Pixels]) -> Float[Tensor, "n d"]:
        """Rows, float32, on the CPU, in the order of `clips`."""


@runtime_checkable
class FramewiseEncoder(ClipEncoder, Protocol):
    """A `ClipEncoder` that sees each frame by itself."""

    @property
    def frames(self) -> int:
        """Of a clip."""

    def encode_frames(self, clips: Sequence[Pixels]) -> Float[Tensor, "n f d"]:
        """Unit rows of every frame, float32, on the CPU, in the order of `clips`."""


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

    def session(self) -> IncrementalTextEncoder:
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


@runtime_checkable
class DenseEncoder(DualEncoder, Protocol):
    """A dual encoder that also says what is where: a row for each patch of a picture."""

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""

    @property
    def image_size(self) -> int:
        """Side in pixels of the square pictures that the encoder was trained on."""

    def encode_patches(
        self, images: Sequence[Image], attend: Attend, *, whole_block: bool = False
    ) -> Float[Tensor, "n h w d"]:
        """Unit rows of patches in the space of the texts, float32, on the CPU.

        `images` are of one size, whose sides are multiples of `patch_size`; position embeddings
        are interpolated where that size is not the encoder's own. `attend` takes the place of the
        last block's attention; `whole_block` keeps that block's residual connections and
        feed-forward part, which otherwise are left out.

        UserError for an encoder that has no such patches.
        """


Head = Literal["softmax", "sigmoid"]


@runtime_checkable
class Segmenter(Protocol):
    """Pictures and prompts to maps of scores."""

    @property
    def name(self) -> str:
        """As `ImageEncoder.name`."""

    @property
    def head(self) -> Head:
        """Whether prompts compete for a pixel (softmax) or are judged one by one (sigmoid)."""

    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "c d"]:
        """Rows that `maps` takes, float32, on the CPU; as long as the model makes them."""

    def encode_examples(self, examples: Sequence[Image]) -> Float[Tensor, "c d"]:
        """Rows of pictures that show what is looked for; UserError if the model takes none."""

    def maps(
        self, images: Sequence[Image], prompts: Float[Tensor, "c d"]
    ) -> list[Float[Tensor, "c h w"]]:
        """Logits over all of each picture, at the model's own resolution, float32, on the CPU."""


@dataclass(frozen=True)
class Detections:
    """Boxes in one picture, best first."""

    boxes: Float[Tensor, "k 4"]
    """Left, top, right, bottom in pixels of the picture, and within it."""
    scores: Float[Tensor, " k"]
    """Between 0 and 1."""
    labels: Int[Tensor, " k"]
    """Places of the prompts."""

    @classmethod
    def within(
        cls,
        size: tuple[int, int],
        boxes: Float[Tensor, "k 4"],
        scores: Float[Tensor, " k"],
        labels: Int[Tensor, " k"],
    ) -> "Detections":
        """In order of their scores, cut at the borders of a picture of this width and height."""
        order = torch.argsort(scores, descending=True, stable=True)
        return cls(clipped(boxes[order], *size), scores[order], labels[order])


@runtime_checkable
class Detector(Protocol):
    """Pictures and prompts to boxes."""

    @property
    def name(self) -> str:
        """As `ImageEncoder.name`."""

    @property
    def template(self) -> str:
        """The sentence that the model knows labels in, with `{}` for the label."""

    def encode_prompts(self, prompts: Sequence[str]) -> Any:
        """What `detect` takes for these prompts; each is encoded here and never again."""

    def encode_examples(self, examples: Sequence[Image]) -> Any:
        """As `encode_prompts`, of pictures of one thing each; UserError if the model takes none."""

    def detect(self, images: Sequence[Image], prompts: Any, threshold: float) -> list[Detections]:
        """Boxes of at least this score, overlapping ones included."""


@dataclass(frozen=True)
class Phrase:
    """A box and the words of the sentence that name it."""

    box: tuple[float, float, float, float]
    """As a row of `Detections.boxes`."""
    score: float
    spans: tuple[tuple[int, int], ...]
    """Where the words begin and end in the sentence, in characters."""


@runtime_checkable
class Grounder(Detector, Protocol):
    """A detector that reads a whole sentence."""

    def ground(
        self, images: Sequence[Image], sentence: str, threshold: float, word_threshold: float
    ) -> list[list[Phrase]]:
        """Boxes of at least `threshold`, with the words of at least `word_threshold`."""


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


@dataclass(frozen=True)
class Answer:
    """A text that a model gives about a picture, and how much it believes it."""

    text: str
    score: float | None = None
    """What the model's `scored` says; None where it has none."""


@dataclass(frozen=True)
class Regions:
    """What a detector saw in one picture: a feature row and a box for each region."""

    features: Float[Tensor, "r f"]
    boxes: Float[Tensor, "r 4"] | None = None
    """Left, top, right, bottom as shares of the picture's sides."""


class ReadsTexts(Protocol):
    """What models that meet a picture and a text together tell about their texts."""

    @property
    def name(self) -> str:
        """As `ImageEncoder.name`."""

    @property
    def context_length(self) -> int | None:
        """Tokens of a text that the model reads, special tokens included; None for no limit.

        Nothing is cut off: a longer text is a UserError.
        """

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Length of each text in tokens, special tokens included."""


@runtime_checkable
class PairScorer(ReadsTexts, Protocol):
    """Says how well a text fits the picture, or the pictures, that come with it."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What each column of the scores stands for."""

    @property
    def scored(self) -> str:
        """What a score is: `probability`, `cosine`, `logit`."""

    @property
    def positive(self) -> int:
        """The column that says that the text fits."""

    @property
    def pictures(self) -> int:
        """How many pictures a text speaks of: 1, or 2 for NLVR2."""

    def score_pairs(
        self, pictures: Sequence[Sequence[Image]], texts: Sequence[str]
    ) -> Float[Tensor, "n k"]:
        """One row for each text and its pictures, one column for each label, on the CPU."""


@runtime_checkable
class Answerer(ReadsTexts, Protocol):
    """Answers questions about pictures."""

    @property
    def scored(self) -> str:
        """What an answer's score is: `sigmoid`, `softmax`, or the `probability` of its tokens."""

    def answer(
        self, images: Sequence[Image], questions: Sequence[str], top_k: int = 1
    ) -> list[tuple[Answer, ...]]:
        """Up to `top_k` answers for each picture and its question, best first."""


@runtime_checkable
class RegionAnswerer(ReadsTexts, Protocol):
    """Answers questions from what a detector saw in pictures (LXMERT, VisualBERT)."""

    @property
    def scored(self) -> str:
        """As `Answerer.scored`."""

    @property
    def answers(self) -> int:
        """How many answers its head knows."""

    @property
    def width(self) -> int:
        """Width of a region's feature row."""

    @property
    def boxed(self) -> bool:
        """Whether it reads the regions' boxes."""

    def answer_regions(
        self, regions: Sequence[Regions], questions: Sequence[str], top_k: int = 1
    ) -> list[tuple[Answer, ...]]:
        """As `Answerer.answer`."""


@runtime_checkable
class ClipScorer(Protocol):
    """Says how well texts fit clips, where a text's row depends on the clip (X-CLIP)."""

    @property
    def name(self) -> str:
        """As `ImageEncoder.name`."""

    @property
    def method(self) -> str:
        """What rows call this way of scoring."""

    @property
    def frames(self) -> int:
        """Of a clip, as many as the model was made for."""

    @property
    def logit_scale(self) -> float:
        """As `DualEncoder.logit_scale`."""

    @property
    def logit_bias(self) -> float | None:
        """As `DualEncoder.logit_bias`."""

    def pixels(self, frames: Sequence[Image]) -> Pixels:
        """The frames of one clip as the network reads them, small and on the CPU."""

    def encode_frames(self, clips: Sequence[Pixels]) -> Float[Tensor, "n d"]:
        """All that `cosines` needs of each clip as a row, float32, on the CPU."""

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "t e"]:
        """All that `cosines` needs of each text; UserError for one that is too long."""

    def cosines(
        self, clips: Float[Tensor, "n d"], texts: Float[Tensor, "t e"]
    ) -> Float[Tensor, "n t"]:
        """Of every clip with every text, on the CPU."""


@runtime_checkable
class Writer(Protocol):
    """Writes one text for each picture: a trained captioner, or a reader of printed lines."""

    @property
    def name(self) -> str:
        """As `ImageEncoder.name`."""

    def write(self, images: Sequence[Image], prompts: Sequence[str] | None = None) -> list[Answer]:
        """A text per picture, which begins with its prompt; the score is the geometric mean of
        the probabilities of the tokens written.

        UserError for prompts where the model takes none.
        """
