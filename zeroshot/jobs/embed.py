"""Pictures to unit rows, as a job."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from zeroshot.images import Source
from zeroshot.model_set import ModelSet
from zeroshot.results import EmbedResult
from zeroshot.store import EmbeddingCache
from zeroshot.tasks import embed as task
from zeroshot.tasks.embedding import AUTO_BATCH
from zeroshot.tasks.meter import Meter


@dataclass(frozen=True)
class EmbedJob:
    """Rows of the set's image encoder."""

    models: ModelSet

    schema: ClassVar[str] = EmbedResult.schema

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
        return task.settings(self.job.models)

    def __call__(self, sources: Sequence[Source], meter: Meter) -> Iterator[EmbedResult]:
        """One result per picture, in order."""
        return task.embed(sources, self.job.models, self.cache, meter, batch_size=self.batch_size)
