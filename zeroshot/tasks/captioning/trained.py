"""Images to texts by one trained model: captions, and the lines of text that images show."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from zeroshot import prompts
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.batching import batched_with_oom_retry
from zeroshot.inference.decoded_images import ImageBatch, load_batches
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import Answer, Image, Writer
from zeroshot.results.result import CaptionResult
from zeroshot.results.text import ReadResult
from zeroshot.tasks.captioning.caption_options import CaptionOptions, ReadOptions
from zeroshot.tasks.task import OpenedTask, Task

Prompts = Callable[[Source], str]


@dataclass(frozen=True, kw_only=True)
class NativeCaption(Task[CaptionOptions]):
    """Captions by a trained captioner, to compare training-free captions with."""

    schema: ClassVar[str] = CaptionResult.schema

    @classmethod
    def from_options(cls, models: ModelSet, options: CaptionOptions) -> "NativeCaption":
        """See `Task`."""
        if any((options.options, options.preset, options.lm, options.trace, options.coupling)):
            raise UserError("a trained captioner has no -o, --preset, --lm, --coupling and --trace")
        return cls(models=models, options=options)

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "NativeCaptionRunner":
        """Load the captioner."""
        writer = self.models.writer(self.options.model or "")
        return NativeCaptionRunner(task=self, writer=writer, cache=cache, batch_size=batch_size)


@dataclass(frozen=True, kw_only=True)
class NativeCaptionRunner(OpenedTask[NativeCaption]):
    """A captioner, loaded."""

    writer: Writer

    def resolved(self) -> dict[str, Any]:
        """See `OpenedTask`."""
        found: dict[str, Any] = {"models": {"captioner": self.writer.name}, "method": "native"}
        if each := self.task.options.prompts:
            pairs = [[str(x) for x in pair] for pair in each.items()]
            found["prompts"] = prompts.fingerprint(pairs)
        return found

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[CaptionResult]:
        """One result per image, in order; a score is the mean probability of a text's tokens."""
        begun = self.task.options.prompt_of()
        for written in _written(sources, self.writer, meter, self.batch_size, begun):
            yield CaptionResult(
                source=written.source,
                id=written.id,
                error=written.batch.failures[written.place],
                models={"captioner": self.writer.name},
                method="native",
                caption=written.answer.text if written.answer else None,
                score=written.answer.score if written.answer else None,
                scored="probability",
                prompt=begun(written.source) if begun else None,
            )


@dataclass(frozen=True, kw_only=True)
class Read(Task[ReadOptions]):
    """The line of text that each image shows."""

    schema: ClassVar[str] = ReadResult.schema

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "ReadRunner":
        """Load the reader."""
        reader = self.models.writer(self.options.model)
        return ReadRunner(task=self, reader=reader, cache=cache, batch_size=batch_size)


@dataclass(frozen=True, kw_only=True)
class ReadRunner(OpenedTask[Read]):
    """A reader, loaded."""

    reader: Writer

    def resolved(self) -> dict[str, Any]:
        """See `OpenedTask`."""
        return {"models": {"reader": self.reader.name}}

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[ReadResult]:
        """One result per image, in order."""
        for written in _written(sources, self.reader, meter, self.batch_size, None):
            yield ReadResult(
                source=written.source,
                id=written.id,
                error=written.batch.failures[written.place],
                models={"reader": self.reader.name},
                method="read",
                text=written.answer.text if written.answer else None,
                score=written.answer.score if written.answer else None,
            )


@dataclass(frozen=True)
class _Written:
    """An image's index in its batch, and its text."""

    batch: ImageBatch
    place: int
    answer: Answer | None

    @property
    def source(self) -> Source:
        return self.batch.sources[self.place]

    @property
    def id(self) -> str | None:
        return self.batch.ids[self.place]


def _written(
    sources: Iterable[Source],
    writer: Writer,
    meter: Meter,
    batch_size: int,
    begun: Prompts | None,
) -> Iterator[_Written]:
    def work(rows: Sequence[tuple[Image, str]]) -> list[Answer]:
        images, beginnings = zip(*rows, strict=True)
        return writer.write(images, beginnings if begun else None)

    for batch in load_batches(sources, meter, batch_size):
        rows = [
            (image, begun(batch.sources[i]) if begun else "") for i, image in batch.images.items()
        ]
        with meter.stage("language model"):
            answers = [
                a for _, said in batched_with_oom_retry(work, rows, batch_size) for a in said
            ]
        found = dict(zip(batch.images, answers, strict=True))
        for place in range(len(batch.sources)):
            yield _Written(batch, place, found.get(place))
