"""Pictures to texts by one trained model, as jobs: native captions, and reading."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from zeroshot import prompts
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import Writer
from zeroshot.results.result import CaptionResult
from zeroshot.results.text import ReadResult
from zeroshot.tasks.captioning import trained as task


@dataclass(frozen=True)
class NativeCaptionJob:
    """Captions by a trained captioner: the yardstick beside those that nothing was trained for."""

    models: ModelSet
    model: str
    prompts: str | Mapping[str, str] | None = None
    """What captions begin with: one for all, or one for each path."""

    schema: ClassVar[str] = CaptionResult.schema

    def on(self, device: str) -> "NativeCaptionJob":
        """The same job on another device."""
        return replace(self, models=replace(self.models, device=device))

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "NativeCaptionWorker":
        """Load the captioner."""
        return NativeCaptionWorker(self, self.models.writer(self.model), batch_size)


@dataclass(frozen=True)
class NativeCaptionWorker:
    """A captioner, loaded."""

    job: NativeCaptionJob
    writer: Writer
    batch_size: int

    def settings(self) -> dict[str, Any]:
        """What decides the words."""
        begun = self.job.prompts
        told: dict[str, Any] = {"models": {"captioner": self.writer.name}, "method": "native"}
        if isinstance(begun, str):
            told["prompt"] = begun
        elif begun:
            told["prompts"] = prompts.fingerprint([list(pair) for pair in begun.items()])
        return told

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[CaptionResult]:
        """One result per picture, in order."""
        asked = self.job.prompts
        begun: task.Prompts | None = None
        if isinstance(asked, str):
            begun = lambda source: asked  # noqa: E731
        elif asked:
            begun = lambda source: asked[source.path or ""]  # noqa: E731
        return task.caption(sources, self.writer, meter, batch_size=self.batch_size, prompts=begun)


@dataclass(frozen=True)
class ReadJob:
    """The text that pictures of a line show."""

    models: ModelSet
    model: str

    schema: ClassVar[str] = ReadResult.schema

    def on(self, device: str) -> "ReadJob":
        """The same job on another device."""
        return replace(self, models=replace(self.models, device=device))

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "ReadWorker":
        """Load the reader."""
        return ReadWorker(self, self.models.writer(self.model), batch_size)


@dataclass(frozen=True)
class ReadWorker:
    """A reader, loaded."""

    job: ReadJob
    reader: Writer
    batch_size: int

    def settings(self) -> dict[str, Any]:
        """What decides the text."""
        return {"models": {"reader": self.reader.name}}

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[ReadResult]:
        """One result per picture, in order."""
        return task.read(sources, self.reader, meter, batch_size=self.batch_size)
