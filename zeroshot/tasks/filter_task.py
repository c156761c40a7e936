"""Image-text pairs to those worth keeping, as a job."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.embedding import AUTO_BATCH, canonical_names, text_side
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import Embedded
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.results.result import FilterResult
from zeroshot.tasks.classification.classifier import gather
from zeroshot.tasks.filter import caption_of, is_cut, score_pairs
from zeroshot.tasks.filtering import above, best_share


@dataclass(frozen=True)
class FilterJob:
    """Pairs by the cosine of picture and caption: at least `min_score`, or the best `keep`."""

    models: ModelSet
    min_score: float | None = None
    keep: float | None = None
    """A share, 0 to 1, of the pairs that have a score."""
    truncate: bool = True
    """Read the beginning of a caption that is too long, and say so; else the pair fails."""

    schema: ClassVar[str] = FilterResult.schema

    def __post_init__(self) -> None:
        """UserError unless there is one rule, and a possible one."""
        if (self.min_score is None) == (self.keep is None):
            raise UserError("give --min-score, the least cosine, or --keep, a share of the pairs")
        if self.keep is not None and not 0 <= self.keep <= 1:
            raise UserError(f"--keep {self.keep}: a share lies between 0 and 1")

    def on(self, device: str) -> "FilterJob":
        """The same job on another device."""
        return replace(self, models=replace(self.models, device=device))

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "FilterWorker":
        """Load the encoder."""
        self.models.require(language_model=False)
        return FilterWorker(self, cache, batch_size)


@dataclass(frozen=True)
class FilterWorker:
    """A set with its encoder loaded."""

    job: FilterJob
    cache: EmbeddingCache
    batch_size: int

    @property
    def transductive(self) -> bool:
        """Whether a pair's fate depends on the others: where a share is kept."""
        return self.job.keep is not None

    @property
    def views(self) -> int:
        """None: cosines alone."""
        return 0

    def settings(self) -> dict[str, Any]:
        """What decides scores and fates."""
        job = self.job
        rule = {"min_score": job.min_score} if job.keep is None else {"keep": job.keep}
        return {
            "models": canonical_names(job.models.encoder),
            "truncate": job.truncate,
            **rule,
        }

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[FilterResult]:
        """One result per pair, in order; where a share is kept, none before the last is scored."""
        batches = self.embed(sources, meter)
        for batch in [gather(batches)] if self.transductive else batches:
            yield from self.score(batch, meter)

    def embed(self, sources: Iterable[Source], meter: Meter) -> Iterator[Embedded]:
        """Cosines, batch by batch."""
        return score_pairs(
            sources,
            self.job.models.encoder,
            self.cache,
            meter,
            batch_size=self.batch_size,
            truncate=self.job.truncate,
        )

    def score(self, everything: Embedded, meter: Meter) -> Iterator[FilterResult]:
        """One result per pair."""
        job, good = self.job, everything.readable
        scores = everything.rows[good].reshape(-1)
        with meter.stage("scoring"):
            if job.keep is None:
                fates = above(scores, job.min_score or 0.0)
            else:
                fates = best_share(scores, job.keep)
        kept = torch.zeros(len(everything.sources), dtype=torch.bool)
        kept[good] = fates
        encoder = text_side(job.models.encoder)
        used = canonical_names(job.models.encoder)
        for i, source in enumerate(everything.sources):
            failure, caption = everything.failures[i], caption_of(source)
            yield FilterResult(
                source=source,
                id=everything.ids[i],
                error=failure,
                models=used,
                method="clip score",
                caption=caption,
                score=0.0 if failure else float(everything.rows[i, 0]),
                kept=bool(kept[i]),
                truncated=failure is None and is_cut(caption, encoder),
            )
