"""Pictures to unit rows, as a job."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.results.result import EmbedResult
from zeroshot.tasks import embed as task


@dataclass(frozen=True)
class EmbedJob:
    """Rows of the set's image encoder."""

    models: ModelSet
    captions: bool = False
    """Those that come with pictures too, by the text encoder."""

    schema: ClassVar[str] = EmbedResult.schema

    def on(self, device: str) -> "EmbedJob":
        """The same job on another device."""
        return replace(self, models=replace(self.models, device=device))

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "EmbedWorker":
        """Load the encoder."""
        self.models.require(language_model=False)
        return EmbedWorker(self, cache, batch_size)


@dataclass(frozen=True)
class EmbedWorker:
    """A set with its encoder loaded."""

    job: EmbedJob
    cache: EmbeddingCache
    batch_size: int

    def settings(self) -> dict[str, Any]:
        """What decides the rows."""
        return task.settings(self.job.models, self.job.captions)

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[EmbedResult]:
        """One result per picture, in order."""
        return task.embed(
            sources,
            self.job.models,
            self.cache,
            meter,
            batch_size=self.batch_size,
            captions=self.job.captions,
        )
