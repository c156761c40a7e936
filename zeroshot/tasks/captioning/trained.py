"""Images to texts by one trained model: captions, and the lines of text that images show."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from zeroshot import methods, prompts
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.batching import batched_with_oom_retry
from zeroshot.inference.coupled_models import SENTENCES, with_coupling_for_task
from zeroshot.inference.decoded_images import ImageBatch, load_batches
from zeroshot.inference.embedding import AUTO_BATCH, canonical_names
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.methods.dlc import DLC
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import Answer, DualEncoder, GuidedWriter, Image, Writer
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
        own = options.method == "native" and options.options
        of_methods = (own, options.preset, options.lm, options.trace, options.coupling)
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
        """Load the captioner, and the encoder that corrects it if the method is `dlc`."""
        dlc, encoder = None, None
        if self.options.method != "native":
            dlc = methods.configure(self.options.method, dict(self.options.options))
            self.models.require(language_model=False)
            encoder = with_coupling_for_task(self.models, None, SENTENCES, cache, meter).encoder
        writer = self.models.writer(self.options.model or "")
        if dlc is not None and not isinstance(writer, GuidedWriter):
            raise UserError(
                f"the tokens of {writer.name} cannot be corrected: take a model that writes by "
                "transformers' generate (BLIP, BLIP-2, GIT, LLaVA, ...), or --method native"
            )
        runner: Any = {"task": self, "writer": writer, "cache": cache, "batch_size": batch_size}
        return NativeCaptionRunner(dlc=dlc, encoder=encoder, **runner)


@dataclass(frozen=True, kw_only=True)
class NativeCaptionRunner(OpenedTask[NativeCaption]):
    """A captioner, loaded, and what corrects it token by token, if anything does."""

    writer: Writer
    dlc: DLC | None = None
    encoder: DualEncoder | None = None

    def resolved(self) -> dict[str, Any]:
        """See `OpenedTask`."""
        settings: dict[str, Any] = {"models": self._models, "method": self._method}
        settings |= {} if self.dlc is None else {"options": methods.values(self.dlc)}
        return settings | prompt_settings(self.task.options)

    @property
    def _models(self) -> dict[str, str]:
        own = {"captioner": self.writer.name}
        return own if self.encoder is None else own | canonical_names(self.encoder)

    @property
    def _method(self) -> str:
        return "native" if self.dlc is None else methods.name_of(self.dlc)

    def _corrected(self, images: Sequence[Image]) -> Writer:
        """The captioner for these images."""
        if self.dlc is None or self.encoder is None:
            return self.writer
        assert isinstance(self.writer, GuidedWriter)
        embeddings = self.encoder.encode_images(images)
        return self.writer.guided_by(partial(self.dlc.referee, embeddings, self.encoder))

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[CaptionResult]:
        """One result per image, in order; a score is the mean probability of a text's tokens."""
        if isinstance(sources, Sequence):
            self.task.options.check_prompts(sources)
        prompt_of = self.task.options.prompt_of()
        for batch, i, text in _write(sources, self._corrected, meter, self.batch_size, prompt_of):
            yield CaptionResult(
                source=batch.sources[i],
                id=batch.ids[i],
                error=batch.failures[i],
                models=self._models,
                method=self._method,
                caption=text.text if text else None,
                score=text.score if text else None,
                scored="probability",
                prompt=prompt_of(batch.sources[i]) if prompt_of else None,
            )


def is_dlc(method: object) -> bool:
    """Whether a method, or its name, corrects models that write."""
    return method == "dlc" or isinstance(method, DLC) or method is DLC


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
        for batch, i, text in _write(sources, lambda _: self.reader, meter, self.batch_size, None):
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
    writer: Callable[[Sequence[Image]], Writer],
    meter: Meter,
    batch_size: int,
    prompt_of: PromptOf | None,
) -> Iterator[tuple[ImageBatch, int, Answer | None]]:
    """Each image's batch, its index in it, and its text; None if it cannot be read.

    `writer` gives what writes about these images.
    """

    def work(pairs: Sequence[tuple[Image, str]]) -> list[Answer]:
        images, texts = zip(*pairs, strict=True)
        return writer(images).write(images, texts if prompt_of else None)

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
