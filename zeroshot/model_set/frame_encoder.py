"""Encoders of pictures as encoders of clips: a clip is the mean of its frames.

The mean of unit frame rows, itself brought to unit length, is CLIP4Clip's parameter-free pooling
(Luo et al. 2021, arXiv:2104.08860), which needs no training.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.images.clips import VERSION, frames_of
from zeroshot.model_set.coupled_encoder import CoupledEncoder
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import (
    Classes,
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
from zeroshot.ops import normalize

__all__ = [
    "AttendedFrames",
    "ClipModels",
    "FrameDualEncoder",
    "FrameEncoder",
    "attended_cosines",
    "mean_of_frames",
]

FRAMES = 8
"""Of a clip, where nobody says how many."""
AT_ONCE = 32
"""Frames that are encoded together."""


def mean_of_frames(frames: Float[Tensor, "n f d"]) -> Float[Tensor, "n d"]:
    """Unit rows of clips: the mean of the unit rows of their frames."""
    return normalize(frames.mean(1))


TEMPERATURE = 0.1
"""Of the attention over frames; without one as low, the weights of cosines are all alike."""


def attended_cosines(
    frames: Float[Tensor, "n f d"], texts: Float[Tensor, "t d"], temperature: float = TEMPERATURE
) -> Float[Tensor, "n t"]:
    """Cosines of texts with clips whose frames are weighed by how well they fit the text.

    Weights are the softmax over frames of their cosines by the temperature, the query-scoring of
    Bain et al. 2022, "A CLIP-Hitchhiker's Guide to Long Video Retrieval" (arXiv:2205.08508).
    Rows are unit rows; so is the weighed mean, before its cosine is taken.
    """
    weights = (torch.einsum("nfd,td->nft", frames, texts) / temperature).softmax(1)
    pooled = normalize(torch.einsum("nft,nfd->ntd", weights, frames))
    return torch.einsum("ntd,td->nt", pooled, texts)


@dataclass(frozen=True)
class FrameEncoder:
    """An image encoder that reads clips, frame by frame: `models.base.FramewiseEncoder`."""

    encoder: ImageEncoder
    frames: int = FRAMES

    @property
    def name(self) -> str:
        """The image encoder's; `clip_kind` tells its rows of clips from those of pictures."""
        return self.encoder.name

    @property
    def clip_kind(self) -> str:
        """See `models.base.ClipEncoder`."""
        kind = f"{VERSION}/{self.frames}-middles/mean"
        shortcuts = self.encoder.shortcuts if isinstance(self.encoder, PixelEncoder) else ""
        return f"{kind}/{shortcuts}" if shortcuts else kind

    @property
    def classes(self) -> Classes | None:
        """The image encoder's: a mean of frames is a row as theirs are."""
        return self.encoder.classes if isinstance(self.encoder, ClassifyingEncoder) else None

    def read_clip(self, file: VideoFile) -> list[Pixels]:
        """See `models.base.ClipEncoder`."""
        frames = frames_of(file, self.frames)
        if isinstance(self.encoder, PixelEncoder):
            return [self.encoder.pixels(frame) for frame in frames]
        return list(frames)

    def encode_clips(self, clips: Sequence[Pixels]) -> Float[Tensor, "n d"]:
        """See `models.base.ClipEncoder`."""
        return mean_of_frames(self.encode_frames(clips))

    def encode_frames(self, clips: Sequence[Pixels]) -> Float[Tensor, "n f d"]:
        """See `models.base.FramewiseEncoder`."""
        flat = [frame for clip in clips for frame in clip]
        rows = [self._encode(flat[i : i + AT_ONCE]) for i in range(0, len(flat), AT_ONCE)]
        return torch.cat(rows).view(len(clips), self.frames, -1)

    def _encode(self, frames: Sequence[Any]) -> Float[Tensor, "n d"]:
        if isinstance(self.encoder, PixelEncoder):
            return self.encoder.encode_pixels(frames)
        return self.encoder.encode_images(frames)

    def encode_images(self, images: Sequence[Image]) -> Float[Tensor, "n d"]:
        """Pictures, as the image encoder has them."""
        return self.encoder.encode_images(images)


@dataclass(frozen=True)
class FrameDualEncoder(FrameEncoder):
    """A dual encoder that reads clips frame by frame; its texts are its own."""

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
class AttendedFrames:
    """A dual encoder as `models.base.ClipScorer`: each text attends to the frames that fit it."""

    encoder: "DualEncoder | CoupledEncoder"
    frames: int = FRAMES
    method: str = "attention"

    @property
    def name(self) -> str:
        """The encoder's, with what makes its pixels differ."""
        shortcuts = self.encoder.shortcuts if isinstance(self.encoder, PixelEncoder) else ""
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
        if isinstance(self.encoder, PixelEncoder):
            return [self.encoder.pixels(frame) for frame in frames]
        return list(frames)

    def encode_frames(self, clips: Sequence[Pixels]) -> Float[Tensor, "n d"]:
        """The unit rows of each clip's frames, one after another."""
        flat = [frame for clip in clips for frame in clip]
        rows = [self._encode(flat[i : i + AT_ONCE]) for i in range(0, len(flat), AT_ONCE)]
        return torch.cat(rows).view(len(clips), -1)

    def _encode(self, frames: Sequence[Any]) -> Float[Tensor, "n d"]:
        if isinstance(self.encoder, PixelEncoder):
            return self.encoder.encode_pixels(frames)
        return self.encoder.encode_images(frames)

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "t e"]:
        """See `models.base.ClipScorer`."""
        longest, most = max(self.encoder.count_tokens(texts)), self.encoder.context_length
        if most is not None and longest > most:
            raise UserError(f"a prompt of {longest} tokens, but the encoder reads {most}")
        return self.encoder.encode_texts(texts)

    def cosines(
        self, clips: Float[Tensor, "n d"], texts: Float[Tensor, "t e"]
    ) -> Float[Tensor, "n t"]:
        """See `models.base.ClipScorer`."""
        return attended_cosines(clips.view(len(clips), self.frames, -1), texts)


@dataclass(frozen=True)
class ClipModels(ModelSet):
    """A model set whose image encoder reads clips, so that tasks on pictures work on clips."""

    frames: int = FRAMES

    @classmethod
    def of(cls, models: ModelSet, frames: int) -> "ClipModels":
        """The same models, reading `frames` frames of a clip."""
        how: dict[str, Any] = {f.name: getattr(models, f.name) for f in fields(ModelSet)}
        return cls(**how | {"frames": frames})

    @cached_property
    def encoder(self) -> "DualEncoder | CoupledEncoder":
        """The set's dual encoder on frames, or its coupled pair where it has none."""
        if self.spec.encoder is None:
            return self.coupled
        return FrameDualEncoder(super().encoder, self.frames)

    @cached_property
    def coupled(self) -> CoupledEncoder:
        """The set's coupled pair, whose image encoder reads frames."""
        pair = super().coupled
        return replace(pair, image_encoder=FrameEncoder(pair.image_encoder, self.frames))
