"""Pictures to texts by one trained model: captions, and the lines that pictures show."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from zeroshot.inference.batching import in_batches
from zeroshot.inference.decoded_images import Opened, open_pictures
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.models.base import Answer, Image, Writer
from zeroshot.results.result import CaptionResult
from zeroshot.results.text import ReadResult

__all__ = ["caption", "read"]

Prompts = Callable[[Source], str]


def caption(
    sources: Iterable[Source],
    writer: Writer,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
    prompts: Prompts | None = None,
) -> Iterator[CaptionResult]:
    """One result per picture, in order; a text's score is the mean probability of its tokens.

    UserError for prompts where the model takes none.
    """
    for written in _written(sources, writer, meter, batch_size, prompts):
        yield CaptionResult(
            source=written.source,
            id=written.id,
            error=written.batch.failures[written.place],
            models={"captioner": writer.name},
            method="native",
            caption=written.answer.text if written.answer else None,
            score=written.answer.score if written.answer else None,
            scored="probability",
            prompt=prompts(written.source) if prompts else None,
        )


def read(
    sources: Iterable[Source], reader: Writer, meter: Meter, *, batch_size: int = AUTO_BATCH
) -> Iterator[ReadResult]:
    """One result per picture, in order."""
    for written in _written(sources, reader, meter, batch_size, None):
        yield ReadResult(
            source=written.source,
            id=written.id,
            error=written.batch.failures[written.place],
            models={"reader": reader.name},
            method="read",
            text=written.answer.text if written.answer else None,
            score=written.answer.score if written.answer else None,
        )


@dataclass(frozen=True)
class _Written:
    """A picture's place in its batch, and the text of it."""

    batch: Opened
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
    prompts: Prompts | None,
) -> Iterator[_Written]:
    def work(rows: Sequence[tuple[Image, str]]) -> list[Answer]:
        images, begun = zip(*rows, strict=True)
        return writer.write(images, begun if prompts else None)

    for batch in open_pictures(sources, meter, batch_size):
        rows = [
            (image, prompts(batch.sources[i]) if prompts else "")
            for i, image in batch.images.items()
        ]
        with meter.stage("language model"):
            answers = [a for _, said in in_batches(work, rows, batch_size) for a in said]
        found = dict(zip(batch.images, answers, strict=True))
        for place in range(len(batch.sources)):
            yield _Written(batch, place, found.get(place))
