"""Image encoders as encoders of video clips, frame by frame.

A clip's embedding is the normalized mean of its frames' unit vectors: the parameter-free pooling of
CLIP4Clip (Luo et al. 2021, arXiv:2104.08860), which needs no training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.images.clips import VERSION, frames_of
from zeroshot.model_set.coupled_encoder import CoupledEncoder
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import (
    ClassifierHead,
    ClassifyingEncoder,
    DualEncoder,
    Image,
    ImageEncoder,
    IncrementalTextEncoder,
    Matcher,
    PixelEncoder,
    Pixels,
    VideoFile,
)
from zeroshot.models.isolation import once, own_state
from zeroshot.ops import normalize

__all__ = [
    "ClipModels",
    "FrameAttentionScorer",
    "FrameDualEncoder",
    "FrameEncoder",
    "attention_cosines",
    "mean_pooling",
]

FRAMES = 8
"""Default number of frames of a clip."""
FRAMES_AT_ONCE = 32


def mean_pooling(frames: Float[Tensor, "n f d"]) -> Float[Tensor, "n d"]:
    """Unit vectors of clips: the mean of the unit vectors of their frames."""
    return normalize(frames.mean(1))


TEMPERATURE = 0.1
"""Temperature of the attention over frames; with a higher one all weights are nearly equal."""


def attention_cosines(
    frames: Float[Tensor, "n f d"], texts: Float[Tensor, "t d"], temperature: float = TEMPERATURE
) -> Float[Tensor, "n t"]:
    """Cosines of texts with clips whose frames are weighted by how well they fit the text.

    The weights are the softmax over frames of cosine / temperature: the query-scoring of Bain et
    al. 2022, "A CLIP-Hitchhiker's Guide to Long Video Retrieval" (arXiv:2205.08508). `frames` and
    `texts` are unit vectors; the weighted mean is normalized too.
    """
    weights = (torch.einsum("nfd,td->nft", frames, texts) / temperature).softmax(1)
    pooled = normalize(torch.einsum("nft,nfd->ntd", weights, frames))
    return torch.einsum("ntd,td->nt", pooled, texts)


def _shortcuts(encoder: ImageEncoder | CoupledEncoder) -> str:
    return encoder.shortcuts if isinstance(encoder, PixelEncoder) else ""


def _pixels(encoder: ImageEncoder | CoupledEncoder, frames: Sequence[Image]) -> list[Pixels]:
    """Preprocessed frames, or the frames if the encoder has no separate preprocessing."""
    if isinstance(encoder, PixelEncoder):
        return [encoder.pixels(frame) for frame in frames]
    return list(frames)


def _encode(
    encoder: ImageEncoder | CoupledEncoder, clips: Sequence[Sequence[Pixels]]
) -> Float[Tensor, "m d"]:
    """Unit vectors of all frames of all clips, in order."""
    encode: Callable[[Sequence[Any]], Tensor] = (
        encoder.encode_pixels if isinstance(encoder, PixelEncoder) else encoder.encode_images
    )
    frames = [frame for clip in clips for frame in clip]
    starts = range(0, len(frames), FRAMES_AT_ONCE)
    return torch.cat([encode(frames[start : start + FRAMES_AT_ONCE]) for start in starts])


@dataclass(frozen=True)
class FrameEncoder:
    """An image encoder as `models.base.FramewiseEncoder`."""

    encoder: ImageEncoder
    frames: int = FRAMES

    @property
    def name(self) -> str:
        """The image encoder's; cache keys of clips also contain `clip_kind`."""
        return self.encoder.name

    @property
    def clip_kind(self) -> str:
        """See `models.base.ClipEncoder`."""
        kind, shortcuts = f"{VERSION}/{self.frames}-middles/mean", _shortcuts(self.encoder)
        return f"{kind}/{shortcuts}" if shortcuts else kind

    @property
    def classes(self) -> ClassifierHead | None:
        """The image encoder's, which also fits a mean of frames."""
        return self.encoder.classes if isinstance(self.encoder, ClassifyingEncoder) else None

    def read_clip(self, file: VideoFile) -> list[Pixels]:
        """See `models.base.ClipEncoder`."""
        return _pixels(self.encoder, frames_of(file, self.frames))

    @own_state()
    def encode_clips(self, clips: Sequence[Pixels]) -> Float[Tensor, "n d"]:
        """See `models.base.ClipEncoder`."""
        return mean_pooling(self.encode_frames(clips))

    def encode_frames(self, clips: Sequence[Pixels]) -> Float[Tensor, "n f d"]:
        """See `models.base.FramewiseEncoder`."""
        return _encode(self.encoder, clips).view(len(clips), self.frames, -1)

    def encode_images(self, images: Sequence[Image]) -> Float[Tensor, "n d"]:
        """The image encoder's."""
        return self.encoder.encode_images(images)


@dataclass(frozen=True)
class FrameDualEncoder(FrameEncoder):
    """A dual encoder that also encodes clips, frame by frame."""

    encoder: DualEncoder

    @property
    def logit_scale(self) -> float:
        """The dual encoder's."""
        return self.encoder.logit_scale

    @property
    def logit_bias(self) -> float | None:
        """The dual encoder's."""
        return self.encoder.logit_bias

    @property
    def trained_scale(self) -> bool:
        """The dual encoder's."""
        return bool(getattr(self.encoder, "trained_scale", True))

    @property
    def context_length(self) -> int | None:
        """The dual encoder's."""
        return self.encoder.context_length

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The dual encoder's."""
        return self.encoder.count_tokens(texts)

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """The dual encoder's."""
        return self.encoder.encode_texts(texts)

    def session(self) -> IncrementalTextEncoder:
        """The dual encoder's."""
        return self.encoder.session()

    def matcher(self) -> Matcher:
        """The dual encoder's."""
        return self.encoder.matcher()


@dataclass(frozen=True)
class FrameAttentionScorer:
    """A dual encoder as `models.base.ClipScorer`: each text attends to the frames that fit it."""

    encoder: "DualEncoder | CoupledEncoder"
    frames: int = FRAMES
    method: str = "attention"

    @property
    def name(self) -> str:
        """The encoder's, and its preprocessing shortcuts."""
        shortcuts = _shortcuts(self.encoder)
        return f"{self.encoder.name}/{shortcuts}" if shortcuts else self.encoder.name

    @property
    def logit_scale(self) -> float:
        """The encoder's."""
        return self.encoder.logit_scale

    @property
    def logit_bias(self) -> float | None:
        """The encoder's."""
        return self.encoder.logit_bias

    def pixels(self, frames: Sequence[Image]) -> Pixels:
        """See `models.base.ClipScorer`."""
        return _pixels(self.encoder, frames)

    def encode_frames(self, clips: Sequence[Pixels]) -> Float[Tensor, "n d"]:
        """The unit vectors of each clip's frames, concatenated."""
        return _encode(self.encoder, clips).view(len(clips), -1)

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "t e"]:
        """See `models.base.ClipScorer`."""
        longest, limit = max(self.encoder.count_tokens(texts)), self.encoder.context_length
        if limit is not None and longest > limit:
            raise UserError(
                f"a prompt of {longest} tokens, but the encoder reads {limit}; shorten it"
            )
        return self.encoder.encode_texts(texts)

    @own_state()
    def cosines(
        self, clips: Float[Tensor, "n d"], texts: Float[Tensor, "t e"]
    ) -> Float[Tensor, "n t"]:
        """See `models.base.ClipScorer`."""
        return attention_cosines(clips.view(len(clips), self.frames, -1), texts)


@dataclass(frozen=True)
class ClipModels(ModelSet):
    """A model set whose image encoder reads clips, so that tasks on images also work on clips."""

    frames: int = FRAMES

    @classmethod
    def from_model_set(cls, models: ModelSet, frames: int) -> "ClipModels":
        """The same models, with `frames` frames of a clip."""
        values: dict[str, Any] = {f.name: getattr(models, f.name) for f in fields(ModelSet)}
        return cls(**values, frames=frames)

    @once
    def encoder(self) -> "DualEncoder | CoupledEncoder":
        """The set's dual encoder on frames, or its coupled pair if it has none."""
        if self.spec.encoder is None:
            return self.coupled
        return FrameDualEncoder(super().encoder, self.frames)

    @once
    def coupled(self) -> CoupledEncoder:
        """The set's coupled pair, whose image encoder reads frames."""
        pair = super().coupled
        return replace(pair, image_encoder=FrameEncoder(pair.image_encoder, self.frames))
