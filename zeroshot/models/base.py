"""Protocols of frozen models: what they offer to the rest of the package.

Three conventions hold everywhere. Embeddings leave an encoder as unit vectors in float32. Images
are upright RGB images of PIL. A language model works on token ids.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor

from zeroshot.boxes import clip_to_image

__all__ = [
    "Answer",
    "Answerer",
    "Attend",
    "ChatModel",
    "ClassifierHead",
    "ClassifyingEncoder",
    "ClipEncoder",
    "ClipScorer",
    "DenseEncoder",
    "Detections",
    "Detector",
    "DualEncoder",
    "FramewiseEncoder",
    "Grounder",
    "Guidance",
    "GuidedWriter",
    "Image",
    "ImageEncoder",
    "IncrementalTextEncoder",
    "KeyValueCache",
    "LanguageModel",
    "LanguageModelOutput",
    "LogitCorrection",
    "Matcher",
    "PairScorer",
    "Phrase",
    "PixelEncoder",
    "Pixels",
    "RegionAnswerer",
    "Regions",
    "Segmenter",
    "TextEncoder",
    "Writer",
]

KeyValueCache = Any
"""Keys and values of a language model; only the model that made them looks inside."""

Pixels = Any
"""A preprocessed image; only the encoder that made it looks inside."""

IncrementalTextEncoder = Callable[[Sequence[str]], Float[Tensor, "n d"]]
"""Texts to unit vectors, float32, on the encoder's device; reuses what earlier calls computed."""

Matcher = Callable[[Float[Tensor, "b m"], Sequence[Sequence[str]]], Float[Tensor, "b k"]]
"""Unit vectors of images, and `k` texts for each image, to the cosines of each image and text."""

Attend = Callable[
    [
        Float[Tensor, "b h s d"],
        Float[Tensor, "b h s d"],
        Float[Tensor, "b h s d"],
        tuple[int, int],
    ],
    Float[Tensor, "b h s d"],
]
"""The attention of a vision transformer's block: queries, keys and values of its heads, and the
number of rows and columns of patches. Tokens that are no patches (the class token) come first."""


@runtime_checkable
class ImageEncoder(Protocol):
    """Images to unit vectors."""

    @property
    def name(self) -> str:
        """Canonical name; it changes whenever the numbers would.

        It contains the model's name, its revision (hub commit or content hash), the preprocessing
        and the precision. Cache keys contain it.
        """

    def encode_images(self, images: Sequence[Image]) -> Float[Tensor, "n d"]:
        """Unit vectors, float32, on the CPU, in the order of `images` (RGB, upright)."""


@dataclass(frozen=True)
class ClassifierHead:
    """The last layer of a classifier: a weight vector and a name for each class."""

    weights: Float[Tensor, "c d"]
    names: tuple[str, ...]


@runtime_checkable
class ClassifyingEncoder(ImageEncoder, Protocol):
    """An image encoder that may have a classifier on top of its embeddings."""

    @property
    def classes(self) -> ClassifierHead | None:
        """None if it has no classifier, or one whose classes have no names."""


@runtime_checkable
class PixelEncoder(ImageEncoder, Protocol):
    """An image encoder with separate preprocessing, which threads can run ahead of the network.

    `encode_images(images)` equals `encode_pixels([pixels(image) for image in images])` bit for bit.
    """

    @property
    def shortcuts(self) -> str:
        """Names what makes pixels differ from the model's own preprocessing; empty if nothing does.

        Cache keys of image embeddings contain it beside `name`, which texts share.
        """

    @property
    def draft_side(self) -> int | None:
        """JPEG files may be decoded at reduced size as long as no side is shorter than this."""

    def pixels(self, image: Image) -> Pixels:
        """The network's input for one image (RGB, upright), on the CPU."""

    def encode_pixels(self, pixels: Sequence[Pixels]) -> Float[Tensor, "n d"]:
        """The embeddings of `encode_images`, in the order of `pixels`."""


VideoFile = BinaryIO | BytesIO
"""An open video file, or one in memory."""


@runtime_checkable
class ClipEncoder(ImageEncoder, Protocol):
    """An image encoder that also encodes video clips."""

    @property
    def clip_kind(self) -> str:
        """Names frames, sampling and pooling of a clip. Cache keys of clips contain it."""

    def read_clip(self, file: VideoFile) -> Pixels:
        """The network's input for one clip, on the CPU.

        UnreadableImageError with the reason, without the path.
        """

    def encode_clips(self, clips: Sequence[Pixels]) -> Float[Tensor, "n d"]:
        """Embeddings, float32, on the CPU, in the order of `clips`."""


@runtime_checkable
class FramewiseEncoder(ClipEncoder, Protocol):
    """A `ClipEncoder` that encodes each frame by itself."""

    @property
    def frames(self) -> int:
        """Number of frames of a clip."""

    def encode_frames(self, clips: Sequence[Pixels]) -> Float[Tensor, "n f d"]:
        """Unit vectors of every frame, float32, on the CPU, in the order of `clips`."""


@runtime_checkable
class TextEncoder(Protocol):
    """Texts to unit vectors."""

    @property
    def name(self) -> str:
        """As `ImageEncoder.name`."""

    @property
    def context_length(self) -> int | None:
        """Maximum number of tokens, special tokens included; further tokens are cut off."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each whole text, special tokens included."""

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit vectors, float32, on the CPU, in the order of `texts`."""

    def session(self) -> IncrementalTextEncoder:
        """`encode_texts` for texts that come back and grow, as in guided decoding.

        Its embeddings differ from those of `encode_texts` only by rounding.
        """


@runtime_checkable
class DualEncoder(ImageEncoder, TextEncoder, Protocol):
    """An image encoder and a text encoder with one embedding space."""

    @property
    def logit_scale(self) -> float:
        """The model's factor of cosines (exp of its parameter), read from its weights."""

    @property
    def logit_bias(self) -> float | None:
        """Added to the scaled cosine before a sigmoid (SigLIP); None means softmax."""

    def matcher(self) -> Matcher:
        """Cosines of images with growing texts, by `session` and a dot product or better."""


@runtime_checkable
class DenseEncoder(DualEncoder, Protocol):
    """A dual encoder that also gives an embedding for each patch of an image."""

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""

    @property
    def image_size(self) -> int:
        """Side in pixels of the square images that the encoder was trained on."""

    def encode_patches(
        self, images: Sequence[Image], attend: Attend, *, whole_block: bool = False
    ) -> Float[Tensor, "n h w d"]:
        """Unit vectors of patches in the space of the texts, float32, on the CPU.

        All `images` have the same size, whose sides are multiples of `patch_size`; position
        embeddings are interpolated if it is not the encoder's own size. `attend` replaces the
        last block's attention. `whole_block` keeps that block's residual connections and
        feed-forward part, which are left out otherwise.

        UserError if the encoder has no such patches.
        """


SegmenterHead = Literal["softmax", "sigmoid"]


@runtime_checkable
class Segmenter(Protocol):
    """Images and prompts to score maps."""

    @property
    def name(self) -> str:
        """As `ImageEncoder.name`."""

    @property
    def head(self) -> SegmenterHead:
        """Whether prompts compete for a pixel (softmax) or each is scored by itself (sigmoid)."""

    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "c d"]:
        """Prompt embeddings for `maps`, float32, on the CPU, at the length the model gives them."""

    def encode_examples(self, examples: Sequence[Image]) -> Float[Tensor, "c d"]:
        """Embeddings of example images of the target; UserError if the model takes none."""

    def maps(
        self, images: Sequence[Image], prompts: Float[Tensor, "c d"]
    ) -> list[Float[Tensor, "c h w"]]:
        """Logits over each whole image, at the model's resolution, float32, on the CPU."""


@dataclass(frozen=True)
class Detections:
    """Boxes in one image, best first."""

    boxes: Float[Tensor, "k 4"]
    """Left, top, right and bottom in pixels, within the image."""
    scores: Float[Tensor, " k"]
    """Between 0 and 1."""
    labels: Int[Tensor, " k"]
    """Indices of the prompts."""

    @classmethod
    def within(
        cls,
        size: tuple[int, int],
        boxes: Float[Tensor, "k 4"],
        scores: Float[Tensor, " k"],
        labels: Int[Tensor, " k"],
    ) -> "Detections":
        """Boxes sorted by score and clipped to an image of this width and height."""
        order = torch.argsort(scores, descending=True, stable=True)
        return cls(clip_to_image(boxes[order], *size), scores[order], labels[order])


@runtime_checkable
class Detector(Protocol):
    """Images and prompts to boxes."""

    @property
    def name(self) -> str:
        """As `ImageEncoder.name`."""

    @property
    def template(self) -> str:
        """The prompt template that the model was trained with; `{}` stands for the label."""

    def encode_prompts(self, prompts: Sequence[str]) -> Any:
        """Encoded prompts for `detect`; each prompt is encoded only once, here."""

    def encode_examples(self, examples: Sequence[Image]) -> Any:
        """As `encode_prompts`, for images of one object each; UserError if it takes none."""

    def detect(self, images: Sequence[Image], prompts: Any, threshold: float) -> list[Detections]:
        """Boxes with at least this score, including boxes that overlap."""


@dataclass(frozen=True)
class Phrase:
    """A box and the words of the sentence that name it."""

    box: tuple[float, float, float, float]
    """As a row of `Detections.boxes`."""
    score: float
    spans: tuple[tuple[int, int], ...]
    """Start and end of the words in the sentence, in characters."""


@runtime_checkable
class Grounder(Detector, Protocol):
    """A detector that reads a whole sentence."""

    def ground(
        self, images: Sequence[Image], sentence: str, threshold: float, word_threshold: float
    ) -> list[list[Phrase]]:
        """Boxes with at least `threshold`, with the words of at least `word_threshold`."""


@dataclass(frozen=True)
class LanguageModelOutput:
    """The output of one forward pass of a language model."""

    hidden: Float[Tensor, "b s e"]
    """The last layer's hidden states of the new tokens, after the final norm."""
    cache: KeyValueCache


@runtime_checkable
class LanguageModel(Protocol):
    """A causal language model on token ids: batched, cached, without padding.

    All texts of one call have the same length: callers group texts by length instead of padding
    them. So there is no attention mask, and no padded position can be mistaken for context.
    """

    @property
    def name(self) -> str:
        """As `ImageEncoder.name`."""

    @property
    def start(self) -> int:
        """`<-start_of_text->` if the vocabulary has it, else the beginning-of-sequence id."""

    @property
    def end(self) -> int:
        """The id that ends a text."""

    @property
    def context_length(self) -> int:
        """Number of the model's positions."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text` without special tokens."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, special tokens included.

        Spaces before punctuation are removed if the tokenizer's configuration says so.
        """

    def forward(
        self, tokens: Int[Tensor, "b s"], cache: KeyValueCache | None = None
    ) -> LanguageModelOutput:
        """Feed `tokens` after those of `cache`, which itself stays as it was."""

    def logits(self, hidden: Float[Tensor, "b e"]) -> Float[Tensor, "b v"]:
        """Float32 scores of the vocabulary; not part of `forward` because few states need them."""

    def select(self, cache: KeyValueCache, rows: Int[Tensor, " r"]) -> KeyValueCache:
        """A new cache with `rows` of the old one, in this order; rows may be repeated."""


@runtime_checkable
class ChatModel(LanguageModel, Protocol):
    """A language model that may have learned to answer messages."""

    @property
    def turn_end(self) -> int:
        """The id that ends an answer; `end` if the model has no chat template."""

    def encode_chat(self, message: str) -> list[int] | None:
        """Ids up to where the answer to a user's message begins, by the model's chat template.

        None if it has none.
        """


@dataclass(frozen=True)
class Answer:
    """A text that a model writes about an image, and its score."""

    text: str
    score: float | None = None
    """What the model's `scored` says; None if the model gives no score."""


@dataclass(frozen=True)
class Regions:
    """A detector's output for one image: a feature vector and a box for each region."""

    features: Float[Tensor, "r f"]
    boxes: Float[Tensor, "r 4"] | None = None
    """Left, top, right and bottom as fractions of the image's sides."""


LogitCorrection = Callable[[Sequence[int], Sequence[Sequence[int]], Float[Tensor, "b v"]], Tensor]
"""Rows, their new tokens and the model's logits to other logits `[b v]`."""

Guidance = Callable[[Callable[[Sequence[int]], str], Collection[int]], LogitCorrection]
"""A model's decoding of tokens and the tokens that end a text, to what corrects its logits."""


class ImageTextModel(Protocol):
    """A model that reads an image and a text together."""

    @property
    def name(self) -> str:
        """As `ImageEncoder.name`."""

    @property
    def context_length(self) -> int | None:
        """Maximum number of tokens of a text, special tokens included; None for no limit.

        Nothing is cut off: a longer text is a UserError.
        """

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, special tokens included."""


@runtime_checkable
class PairScorer(ImageTextModel, Protocol):
    """Scores how well a text fits its image or images."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The meaning of each score column."""

    @property
    def scored(self) -> str:
        """What a score is: `probability`, `cosine`, `logit`."""

    @property
    def positive(self) -> int:
        """Index of the column whose label says that the text fits."""

    @property
    def pictures(self) -> int:
        """Number of images for each text: 1, or 2 for NLVR2."""

    def score_pairs(
        self, pictures: Sequence[Sequence[Image]], texts: Sequence[str]
    ) -> Float[Tensor, "n k"]:
        """A row for each text and its images, a column for each label, on the CPU."""


@runtime_checkable
class Answerer(ImageTextModel, Protocol):
    """Answers questions about images."""

    @property
    def scored(self) -> str:
        """What an answer's score is: `sigmoid`, `softmax`, or the `probability` of its tokens."""

    def answer(
        self, images: Sequence[Image], questions: Sequence[str], top_k: int = 1
    ) -> list[tuple[Answer, ...]]:
        """Up to `top_k` answers for each image and its question, best first."""


@runtime_checkable
class RegionAnswerer(ImageTextModel, Protocol):
    """Answers questions from a detector's regions (LXMERT, VisualBERT)."""

    @property
    def scored(self) -> str:
        """As `Answerer.scored`."""

    @property
    def answers(self) -> int:
        """Number of answers of the model's head."""

    @property
    def width(self) -> int:
        """Width of a region's feature vector."""

    @property
    def boxed(self) -> bool:
        """Whether the model reads the regions' boxes."""

    def answer_regions(
        self, regions: Sequence[Regions], questions: Sequence[str], top_k: int = 1
    ) -> list[tuple[Answer, ...]]:
        """As `Answerer.answer`."""


@runtime_checkable
class ClipScorer(Protocol):
    """Scores how well texts fit clips; text embeddings may depend on the clip (X-CLIP)."""

    @property
    def name(self) -> str:
        """As `ImageEncoder.name`."""

    @property
    def method(self) -> str:
        """Name of this way of scoring in result rows."""

    @property
    def frames(self) -> int:
        """Number of frames of a clip that the model was trained with."""

    @property
    def logit_scale(self) -> float:
        """As `DualEncoder.logit_scale`."""

    @property
    def logit_bias(self) -> float | None:
        """As `DualEncoder.logit_bias`."""

    def pixels(self, frames: Sequence[Image]) -> Pixels:
        """The network's input for the frames of one clip, on the CPU."""

    def encode_frames(self, clips: Sequence[Pixels]) -> Float[Tensor, "n d"]:
        """What `cosines` needs of each clip, as one vector, float32, on the CPU."""

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "t e"]:
        """What `cosines` needs of each text; UserError for a text that is too long."""

    def cosines(
        self, clips: Float[Tensor, "n d"], texts: Float[Tensor, "t e"]
    ) -> Float[Tensor, "n t"]:
        """Cosine of every clip and every text, on the CPU."""


@runtime_checkable
class Writer(Protocol):
    """Writes one text for each image: a trained captioner, or a reader of printed lines."""

    @property
    def name(self) -> str:
        """As `ImageEncoder.name`."""

    def write(self, images: Sequence[Image], prompts: Sequence[str] | None = None) -> list[Answer]:
        """A text for each image, which begins with its prompt.

        The score is the geometric mean of the probabilities of the new tokens. UserError for
        prompts if the model takes none.
        """


@runtime_checkable
class GuidedWriter(Writer, Protocol):
    """A writer whose logits can be corrected token by token."""

    def guided_by(self, guidance: Guidance) -> Writer:
        """The same writer, corrected; the rows of a correction are the images of `write`.

        A score stays the model's own probability of the tokens.
        """
