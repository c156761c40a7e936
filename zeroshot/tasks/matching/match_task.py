"""Pictures and texts to how well they fit, as a job."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from zeroshot import prompts
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inference.embedding import AUTO_BATCH, canonical_names
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import PairScorer
from zeroshot.results.text import MatchResult
from zeroshot.tasks.matching import scoring as task
from zeroshot.tasks.matching.scoring import Matching, Score
from zeroshot.tasks.matching.thresholds import Thresholds


@dataclass(frozen=True)
class MatchJob:
    """Scores of the texts that are given, or that come with the pictures."""

    models: ModelSet
    model: str | None = None
    """A model with a head that reads picture and text together; without one, the set's encoder."""
    texts: Sequence[str] = ()
    against: Sequence[str] = ()
    thresholds: Thresholds | None = None
    score: Score = "cosine"
    """Of an encoder."""
    captions: str | None = None
    """Fingerprint of the captions that come with the pictures: others are another run."""

    schema: ClassVar[str] = MatchResult.schema

    def on(self, device: str) -> "MatchJob":
        """The same job on another device."""
        return replace(self, models=replace(self.models, device=device))

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "MatchWorker":
        """Load what scores."""
        matching = Matching(tuple(self.texts), tuple(self.against), score=self.score)
        if self.model is None:
            self.models.require(language_model=False)
            scored = task.scored_by(self.models.encoder, matching)
            scorer, names = None, canonical_names(self.models.encoder)
        else:
            task.refuse_against(matching)
            scorer = self.models.pair_scorer(self.model)
            names, scored = {"scorer": scorer.name}, scorer.scored
        made_with = task.made_with(names, scored, self.against)
        matching = task.with_thresholds(matching, self.thresholds, made_with)
        return MatchWorker(self, scorer, matching, made_with, cache, batch_size)


@dataclass(frozen=True)
class MatchWorker:
    """A scorer with its model."""

    job: MatchJob
    scorer: PairScorer | None
    matching: Matching
    made_with: str
    """What the scores are, as thresholds remember it."""
    cache: EmbeddingCache
    batch_size: int

    def settings(self) -> dict[str, Any]:
        """What decides the scores."""
        job = self.job
        told: dict[str, Any] = {"scores": self.made_with}
        if job.texts:
            told["texts"] = prompts.fingerprint([list(job.texts)])
        if job.captions is not None:
            told["captions"] = job.captions
        if job.thresholds is not None:
            cuts = {"labels": list(job.thresholds.labels), "cuts": list(job.thresholds.cuts)}
            told["thresholds"] = cuts
        return told

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[MatchResult]:
        """One result per picture, in order."""
        how = (self.matching, self.cache, meter, self.batch_size)
        if self.scorer is None:
            return task.by_encoder(sources, self.job.models.encoder, *how)
        return task.by_head(sources, self.scorer, *how)
