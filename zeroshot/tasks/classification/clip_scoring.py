"""Scores of labels for videos, by video models: X-CLIP and VideoPrism."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.images.clips import VERSION, frames_of
from zeroshot.inference.embedding import encode_through_cache
from zeroshot.inference.meter import Meter
from zeroshot.models.base import ClipScorer, Image, Pixels, VideoFile
from zeroshot.results.result import AnchorContribution
from zeroshot.tasks.classification.classify_options import ClassifyOptions
from zeroshot.tasks.classification.heads import (
    Head,
    apply_head,
    check_alone,
    check_multilabel,
    default_head,
)
from zeroshot.tasks.options import several


@dataclass(frozen=True)
class ScoredClips:
    """A video model as a `models.base.ClipEncoder`, which the cache and the pipeline use."""

    scorer: ClipScorer

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.scorer.name

    @property
    def clip_kind(self) -> str:
        """See `models.base.ClipEncoder`."""
        return f"{VERSION}/{self.scorer.frames}-middles/own"

    def read_clip(self, file: VideoFile) -> Pixels:
        """See `models.base.ClipEncoder`."""
        return self.scorer.pixels(frames_of(file, self.scorer.frames))

    def encode_clips(self, clips: Sequence[Pixels]) -> Float[Tensor, "n d"]:
        """See `models.base.ClipEncoder`."""
        return self.scorer.encode_frames(clips)

    def encode_images(self, images: Sequence[Image]) -> Float[Tensor, "n d"]:
        """An image is a video in which every frame is that image."""
        return self.scorer.encode_frames(
            [self.scorer.pixels([image] * self.scorer.frames) for image in images]
        )


@dataclass(frozen=True)
class ClipClassifier:
    """A video model with the encoded prompts of every label, as a `heads.Labeller`."""

    scorer: ClipScorer
    labels: Sequence[str]
    texts: Float[Tensor, "t d"]
    counts: Sequence[int]
    """Prompts of each label, then 1 for each negative prompt."""
    head: Head = "softmax"
    num_explanations: int = 0

    def __call__(
        self, videos: Float[Tensor, "n d"], views: Float[Tensor, "n v d"] | None = None
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        """Scores as the head defines them, and cosines: the mean over each label's prompts."""
        parts = torch.split(self.scorer.cosines(videos, self.texts), list(self.counts), 1)
        cosines = torch.stack([part.mean(1) for part in parts], dim=1)
        labels = len(self.labels)
        if self.head == "cosine":
            return cosines, cosines
        logits = self.scorer.logit_scale * cosines
        scores = apply_head(logits, self.head, self.scorer.logit_bias, labels)
        return scores, cosines[:, :labels]

    @property
    def scored(self) -> str:
        """The head."""
        return self.head

    @property
    def used(self) -> dict[str, str]:
        """Canonical names, for rows."""
        return {"clip_model": self.scorer.name, "clips": ScoredClips(self.scorer).clip_kind}

    @property
    def name(self) -> str:
        """The name of the method, for rows."""
        return self.scorer.method

    def explain(
        self, image: Float[Tensor, " d"], label: int, cosine: float
    ) -> tuple[AnchorContribution, ...]:
        """Nothing: there are no anchors."""
        return ()


def load_clip_classifier(
    scorer: ClipScorer,
    labels: Sequence[str],
    prompts: Sequence[Sequence[str]],
    options: ClassifyOptions,
    cache: EmbeddingCache,
    meter: Meter,
) -> ClipClassifier:
    """Encode the prompts; see `classifier.load_classifier`.

    Raises:
        UserError: a prompt that is too long, or options that do not fit each other.
    """
    negatives = several(options.against)
    head = options.head
    check_multilabel(options.multi, head, negatives)
    groups = [*prompts, *([text] for text in negatives)]
    flat = [text for group in groups for text in group]
    encoded = encode_through_cache(scorer.encode_texts, flat, scorer.name, cache, meter)
    used = head or default_head(scorer.logit_bias, options.multi, bool(negatives))
    check_alone(labels, used)
    counts = [len(group) for group in groups]
    return ClipClassifier(scorer, labels, encoded, counts, used)


def settings(classifier: ClipClassifier) -> dict[str, Any]:
    """The settings that decide the scores, except the prompts."""
    return {
        "models": classifier.used,
        "method": classifier.scorer.method,
        "score": classifier.head,
    }
