"""Clips and labels to scores, where a text's row depends on the clip: X-CLIP, attention."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.clips import VERSION, frames_of
from zeroshot.images import Source
from zeroshot.models.base import ClipScorer, Image, Pixels
from zeroshot.results import ClassifyResult, Label
from zeroshot.store import EmbeddingCache
from zeroshot.tasks.embedding import AUTO_BATCH, TEXT_KIND, embed_pictures
from zeroshot.tasks.meter import Meter


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

    def read_clip(self, file: BinaryIO) -> Pixels:
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
    """A model of clips with the prompts of every label, encoded."""

    scorer: ClipScorer
    labels: Sequence[str]
    texts: Float[Tensor, "t d"]
    counts: Sequence[int]
    """Prompts of each label."""

    def cosines(self, clips: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """The mean over each label's prompts."""
        found = self.scorer.cosines(clips, self.texts)
        return torch.stack(
            [part.mean(1) for part in torch.split(found, list(self.counts), 1)], dim=1
        )

    @property
    def used(self) -> dict[str, str]:
        """Canonical names, for rows."""
        return {"clip_model": self.scorer.name, "clips": ScoredClips(self.scorer).clip_kind}


def clip_classifier(
    scorer: ClipScorer,
    labels: Sequence[str],
    sentences: Sequence[Sequence[str]],
    cache: EmbeddingCache,
    meter: Meter,
) -> ClipClassifier:
    """Encode the prompts; UserError for one that is too long."""
    flat = [sentence for each in sentences for sentence in each]
    ids = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in flat]
    with meter.stage("encoder"):
        rows = cache(scorer.encode_texts, flat, ids=ids, encoder=scorer.name, kind=TEXT_KIND)
    return ClipClassifier(scorer, labels, rows, [len(each) for each in sentences])


def classify_clips(
    sources: Iterable[Source],
    classifier: ClipClassifier,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
    top_k: int = 5,
) -> Iterator[ClassifyResult]:
    """One result per clip, in order, with the `top_k` best labels."""
    scorer = classifier.scorer
    for batch in embed_pictures(sources, ScoredClips(scorer), cache, meter, batch_size):
        labels: dict[int, tuple[Label, ...]] = {}
        with meter.stage("scoring"):
            if good := batch.readable:
                cosines = classifier.cosines(batch.rows[good])
                scores = (scorer.logit_scale * cosines).softmax(1)
                for i, score, cosine in zip(good, scores, cosines, strict=True):
                    best = score.topk(min(top_k, len(score))).indices.tolist()
                    labels[i] = tuple(
                        Label(classifier.labels[c], float(score[c]), float(cosine[c])) for c in best
                    )
        for i, source in enumerate(batch.sources):
            yield ClassifyResult(
                source=source,
                id=batch.ids[i],
                error=batch.failures[i],
                models=classifier.used,
                method=scorer.method,
                labels=labels.get(i, ()),
            )


def settings(classifier: ClipClassifier) -> dict[str, Any]:
    """What decides the scores, but for the prompts."""
    return {"models": classifier.used, "method": classifier.scorer.method}
