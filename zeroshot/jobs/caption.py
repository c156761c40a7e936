"""Pictures to captions, as a job."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from zeroshot import prompts as texts
from zeroshot.errors import UserError
from zeroshot.images import Source
from zeroshot.methods import Captioner, Pool
from zeroshot.model_set import ModelSet
from zeroshot.results import CaptionResult
from zeroshot.store import EmbeddingCache
from zeroshot.tasks import caption as task
from zeroshot.tasks.embedding import AUTO_BATCH
from zeroshot.tasks.meter import Meter


@dataclass(frozen=True)
class CaptionJob:
    """Captions by a method that writes or chooses them."""

    models: ModelSet
    method: str | None = None
    """Without one the set's own, else `magic`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    """Named settings of the method."""
    prompts: str | Mapping[str, str] | Sequence[str] | None = None
    """What texts begin with: one for all, one for each path, or one each in the order of a run."""
    trace: bool = False
    """Keep every choice."""

    schema: ClassVar[str] = CaptionResult.schema

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "CaptionWorker":
        """Load the models, and the captions that a method chooses among."""
        method = task.captioner(self.models, self.method, dict(self.options), self.preset)
        given = {"prompts": self.prompts is not None, "trace": self.trace}
        task.refuse(method, given)
        self.models.require(language_model="language_model" in method.needs)
        pool = task.pool_of(self.models, cache, meter) if "pool" in method.needs else None
        return CaptionWorker(self, method, pool, cache, batch_size)


@dataclass(frozen=True)
class CaptionWorker:
    """A captioner with its models."""

    job: CaptionJob
    method: Captioner
    pool: Pool | None
    cache: EmbeddingCache
    batch_size: int

    def settings(self) -> dict[str, Any]:
        """What decides the words."""
        prompts = self.job.prompts
        if not prompts:
            asked: dict[str, Any] = {}
        elif isinstance(prompts, str):
            asked = {"prompt": prompts}
        else:
            each = prompts.items() if isinstance(prompts, Mapping) else enumerate(prompts)
            asked = {"prompts": texts.fingerprint([[str(x) for x in pair] for pair in each])}
        return task.settings(self.job.models, self.method) | asked

    def __call__(self, sources: Sequence[Source], meter: Meter) -> Iterator[CaptionResult]:
        """One result per picture, in order.

        Raises:
            UserError: pictures without a prompt of their own where others have one.
        """
        return task.caption(
            sources,
            self.job.models,
            self.method,
            self.cache,
            meter,
            batch_size=self.batch_size,
            prompts=self._prompts(sources),
            trace=self.job.trace,
            pool=self.pool,
        )

    def _prompts(self, sources: Sequence[Source]) -> Sequence[str] | None:
        given = self.job.prompts
        if given is None:
            return None
        if isinstance(given, str):
            return [given] * len(sources)
        if isinstance(given, Mapping):
            return [given[source.path or ""] for source in sources]
        if len(given) != len(sources):
            raise UserError(f"{len(given)} prompts for {len(sources)} pictures")
        return given
