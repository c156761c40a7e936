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

PromptOf = Callable[[Source], str]


@dataclass(frozen=True, kw_only=True)
class NativeCaption(Task[CaptionOptions]):
    """Captions by a trained captioner, to compare training-free captions with."""

    schema: ClassVar[str] = CaptionResult.schema

    @classmethod
    def from_options(cls, models: ModelSet, options: CaptionOptions) -> "NativeCaption":
        """See `Task`."""
        of_methods = (options.options, options.preset, options.lm, options.trace, options.coupling)
        if any(of_methods) or options.remember_texts:
            raise UserError(
                "a trained captioner has no -o, --preset, --lm, --coupling, --trace and "
                "--remember-texts"
            )
        if isinstance(options.prompt, Sequence) and not isinstance(options.prompt, str):
            raise UserError("a trained captioner has one prompt for all images, or one by path")
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
        settings = {"models": {"captioner": self.writer.name}, "method": "native"}
        return settings | prompt_settings(self.task.options)

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[CaptionResult]:
        """One result per image, in order; a score is the mean probability of a text's tokens."""
        if isinstance(sources, Sequence):
            self.task.options.check_prompts(sources)
        prompt_of = self.task.options.prompt_of()
        for batch, i, text in _write(sources, self.writer, meter, self.batch_size, prompt_of):
            yield CaptionResult(
                source=batch.sources[i],
                id=batch.ids[i],
                error=batch.failures[i],
                models={"captioner": self.writer.name},
                method="native",
                caption=text.text if text else None,
                score=text.score if text else None,
                scored="probability",
                prompt=prompt_of(batch.sources[i]) if prompt_of else None,
            )


def prompt_settings(options: CaptionOptions) -> dict[str, Any]:
    """The fingerprint of each image's own prompt, for the settings; empty if there are none."""
    if not options.prompts:
        return {}
    pairs = [[str(x) for x in pair] for pair in options.prompts.items()]
    return {"prompts": prompts.fingerprint(pairs)}


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
        for batch, i, text in _write(sources, self.reader, meter, self.batch_size, None):
            yield ReadResult(
                source=batch.sources[i],
                id=batch.ids[i],
                error=batch.failures[i],
                models={"reader": self.reader.name},
                method="read",
                text=text.text if text else None,
                score=text.score if text else None,
            )


def _write(
    sources: Iterable[Source],
    writer: Writer,
    meter: Meter,
    batch_size: int,
    prompt_of: PromptOf | None,
) -> Iterator[tuple[ImageBatch, int, Answer | None]]:
    """Each image's batch, its index in it, and its text; None if it cannot be read."""

    def work(pairs: Sequence[tuple[Image, str]]) -> list[Answer]:
        images, texts = zip(*pairs, strict=True)
        return writer.write(images, texts if prompt_of else None)

    for batch in load_batches(sources, meter, batch_size):
        pairs = [
            (image, prompt_of(batch.sources[i]) if prompt_of else "")
            for i, image in batch.images.items()
        ]
        with meter.stage("language model"):
            parts = batched_with_oom_retry(work, pairs, batch_size)
            texts = dict(zip(batch.images, [one for _, part in parts for one in part], strict=True))
        for i in range(len(batch.sources)):
            yield batch, i, texts.get(i)
