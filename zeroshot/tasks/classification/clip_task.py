"""Clips to labels by a model of clips, or by attention over frames, as a job."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from zeroshot import prompts
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.frame_encoder import FRAMES, FrameAttentionScorer
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import ClipScorer
from zeroshot.results.result import ClassifyResult
from zeroshot.tasks.classification import clip_scoring as task
from zeroshot.tasks.classification.classify_task import (
    labels_shown,
    see_to_threshold,
    told_of_multi,
)
from zeroshot.tasks.classification.heads import Head


@dataclass(frozen=True)
class ClipClassifyJob:
    """The best labels of clips."""

    models: ModelSet
    labels: Sequence[str]
    sentences: Sequence[Sequence[str]]
    """Of each label."""
    model: str | None = None
    """A model of clips: X-CLIP; without one the set's dual encoder attends to frames."""
    frames: int = FRAMES
    """Of each clip; a model of clips has a number of its own."""
    top_k: int | None = None
    """As of `ClassifyJob`, and so are those below."""
    score: Head | None = None
    multi: bool = False
    against: Sequence[str] = ()
    threshold: float | None = None

    schema: ClassVar[str] = ClassifyResult.schema

    def on(self, device: str) -> "ClipClassifyJob":
        """The same job on another device."""
        return replace(self, models=replace(self.models, device=device))

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "ClipClassifyWorker":
        """Load the model and encode the prompts."""
        see_to_threshold(self.threshold, self.multi)
        ready = task.clip_classifier(
            self._scorer(),
            self.labels,
            self.sentences,
            cache,
            meter,
            head=self.score,
            multi=self.multi,
            against=self.against,
        )
        return ClipClassifyWorker(self, ready, cache, batch_size)

    def _scorer(self) -> ClipScorer:
        if self.model is not None:
            return self.models.clip_scorer(self.model)
        self.models.require(language_model=False)
        return FrameAttentionScorer(self.models.encoder, self.frames)


@dataclass(frozen=True)
class ClipClassifyWorker:
    """A model of clips with its prompts."""

    job: ClipClassifyJob
    classifier: task.ClipClassifier
    cache: EmbeddingCache
    batch_size: int

    def settings(self) -> dict[str, Any]:
        """What decides the scores and which of them are shown."""
        job = self.job
        held = task.settings(self.classifier)
        held |= {"prompts": prompts.fingerprint(job.sentences), "top_k": self.shown}
        return held | told_of_multi(job.multi, job.against, job.threshold)

    @property
    def shown(self) -> int:
        """Labels in a row."""
        return labels_shown(self.job.top_k, self.job.multi, len(self.job.labels))

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[ClassifyResult]:
        """One result per clip, in order."""
        return task.classify_clips(
            sources,
            self.classifier,
            self.cache,
            meter,
            batch_size=self.batch_size,
            top_k=self.shown,
            least=self.job.threshold,
        )
