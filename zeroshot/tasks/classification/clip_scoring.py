"""Clips and labels to scores, where a text's row depends on the clip: X-CLIP, attention."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.images.clips import VERSION, frames_of
from zeroshot.inference.embedding import AUTO_BATCH, TEXT_KIND, embed_pictures
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.models.base import ClipScorer, Image, Pixels, VideoFile
from zeroshot.results.result import ClassifyResult, Reason
from zeroshot.tasks.classification.heads import Head, headed, label, own_head, see_to_multi


@dataclass(frozen=True)
class ScoredClips:
    """A model of clips as what the cache and the pipeline know: `models.base.ClipEncoder`."""

    scorer: ClipScorer

    @property
    def name(self) -> str:
        """The model's."""
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
        """A picture is a clip that stands still."""
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
    """Prompts of each label, and one of each text that labels are weighed against."""
    head: Head = "softmax"
    explained: int = 0

    def __call__(
        self, rows: Float[Tensor, "n d"], views: Float[Tensor, "n v d"] | None = None
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        """Scores as the head defines them, and cosines: the mean over each label's prompts."""
        found = self.scorer.cosines(rows, self.texts)
        parts = torch.split(found, list(self.counts), 1)
        cosines = torch.stack([part.mean(1) for part in parts], dim=1)
        labels = len(self.labels)
        if self.head == "cosine":
            return cosines, cosines
        logits = self.scorer.logit_scale * cosines
        scores = headed(logits, self.head, self.scorer.logit_bias, labels)
        return scores, cosines[:, :labels]

    @property
    def used(self) -> dict[str, str]:
        """Canonical names, for rows."""
        return {"clip_model": self.scorer.name, "clips": ScoredClips(self.scorer).clip_kind}

    @property
    def name(self) -> str:
        """What rows call the method."""
        return self.scorer.method

    def because(self, row: Float[Tensor, " d"], label: int, cosine: float) -> tuple[Reason, ...]:
        """Nothing: there are no anchors."""
        return ()


def clip_classifier(
    scorer: ClipScorer,
    labels: Sequence[str],
    sentences: Sequence[Sequence[str]],
    cache: EmbeddingCache,
    meter: Meter,
    *,
    head: Head | None = None,
    multi: bool = False,
    against: Sequence[str] = (),
) -> ClipClassifier:
    """Encode the prompts; options as of `classify.classifier`.

    Raises:
        UserError: a prompt that is too long, or options that do not fit each other.
    """
    see_to_multi(multi, head, against)
    each = [*sentences, *([other] for other in against)]
    flat = [sentence for own in each for sentence in own]
    ids = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in flat]
    with meter.stage("encoder"):
        rows = cache(scorer.encode_texts, flat, ids=ids, encoder=scorer.name, kind=TEXT_KIND)
    head = head or own_head(scorer.logit_bias, multi, bool(against))
    return ClipClassifier(scorer, labels, rows, [len(own) for own in each], head)


def classify_clips(
    sources: Iterable[Source],
    classifier: ClipClassifier,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
    top_k: int = 5,
    least: float | None = None,
) -> Iterator[ClassifyResult]:
    """One result per clip, in order, with the `top_k` best labels, of those from `least` on."""
    encoder = ScoredClips(classifier.scorer)
    for batch in embed_pictures(sources, encoder, cache, meter, batch_size):
        yield from label(batch, classifier, meter, top_k, least=least)


def settings(classifier: ClipClassifier) -> dict[str, Any]:
    """What decides the scores, but for the prompts."""
    return {
        "models": classifier.used,
        "method": classifier.scorer.method,
        "score": classifier.head,
    }
