"""Pictures to captions, as a job."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from zeroshot import prompts as texts
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.methods import Captioner, Pool
from zeroshot.model_set.model_set import ModelSet
from zeroshot.results.result import CaptionResult
from zeroshot.tasks.captioning import captioner as task


@dataclass(frozen=True)
class CaptionJob:
    """Captions by a method that writes or chooses them."""

    models: ModelSet
    method: str | None = None
    """Without one the set's own, else `mbr` or `magic` (`tasks.captioning.captioner.captioner`)."""
    options: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    """Named settings of the method."""
    prompts: str | Mapping[str, str] | Sequence[str] | None = None
    """What texts begin with: one for all, one for each path, or one each in the order of a run."""
    trace: bool = False
    """Keep every choice."""
    coupling: str | None = None
    """In place of the set's; see `tasks.captioning.captioner.captioning_models`."""

    schema: ClassVar[str] = CaptionResult.schema

    def on(self, device: str) -> "CaptionJob":
        """The same job on another device."""
        return replace(self, models=replace(self.models, device=device))

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "CaptionWorker":
        """Load the models, and the captions that a method chooses among."""
        given = {"prompts": self.prompts is not None, "trace": self.trace}
        method = task.captioner(self.models, self.method, dict(self.options), self.preset, given)
        task.refuse(method, given)
        self.models.require(language_model="language_model" in method.needs)
        models = task.captioning_models(self.models, self.coupling, cache, meter)
        pool = task.pool_of(models, cache, meter) if "pool" in method.needs else None
        return CaptionWorker(self, models, method, pool, cache, batch_size)


@dataclass(frozen=True)
class CaptionWorker:
    """A captioner with its models."""

    job: CaptionJob
    models: ModelSet
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
        return task.settings(self.models, self.method) | asked

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[CaptionResult]:
        """One result per picture, in order."""
        return task.caption(
            sources,
            self.models,
            self.method,
            self.cache,
            meter,
            batch_size=self.batch_size,
            prompts=self._prompts(sources),
            trace=self.job.trace,
            pool=self.pool,
        )

    def _prompts(self, sources: Iterable[Source]) -> Callable[[Source], str] | None:
        given = self.job.prompts
        if given is None:
            return None
        if isinstance(given, str):
            return lambda source: given
        if isinstance(given, Mapping):
            return lambda source: given[source.path or ""]
        if isinstance(sources, Sized) and len(given) != len(sources):
            raise UserError(f"{len(given)} prompts for {len(sources)} pictures")
        each = iter(given)
        return lambda source: next(each)
