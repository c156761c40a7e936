"""Decoded images, batch by batch, for models that need more than an embedding."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.images.reading import read, read_ahead
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Picture, Source
from zeroshot.models.base import Image
from zeroshot.results.result import Failure

FULL_SIZE = 8
"""Images of full size that are in memory at a time."""


@dataclass(frozen=True)
class ImageBatch:
    """A batch of images by their index; `failures[i]` says why image `i` is missing."""

    sources: Sequence[Source]
    ids: Sequence[str | None]
    images: Mapping[int, Image]
    failures: Sequence[Failure | None]


def load_batches(sources: Iterable[Source], meter: Meter, batch_size: int) -> Iterator[ImageBatch]:
    """Every image, in order; one that cannot be read is a failure.

    Later images are read while the caller works on a batch.
    """
    seen: deque[Source] = deque()

    def noted() -> Iterator[Source]:
        for source in sources:
            seen.append(source)
            yield source

    pictures = read_ahead(noted())
    while True:
        with meter.stage("decoding"):
            batch = list(islice(pictures, batch_size))
        if not batch:
            return
        ids: list[str | None] = [None] * len(batch)
        failures: list[Failure | None] = [None] * len(batch)
        images: dict[int, Image] = {}
        for i, found in enumerate(batch):
            if isinstance(found, UnreadableImageError):
                failures[i] = Failure.of(found)
            else:
                ids[i], images[i] = found.id, found.image
        meter.pictures += len(batch)
        meter.failed += len(batch) - len(images)
        yield ImageBatch([seen.popleft() for _ in batch], ids, images, failures)


def load_images(
    sources: Iterable[Source], meter: Meter, batch_size: int
) -> Iterator[list[tuple[Source, Picture | Failure]]]:
    """Each image with its source, at most `FULL_SIZE` at a time; a failure if it cannot be read."""
    for batch in load_batches(sources, meter, min(batch_size, FULL_SIZE)):
        meter.images_encoded += len(batch.images)
        yield [
            (source, failure or Picture(id or "", batch.images[i]))
            for i, (source, id, failure) in enumerate(
                zip(batch.sources, batch.ids, batch.failures, strict=True)
            )
        ]


def load_all(sources: Iterable[Source], what: str) -> list[Image]:
    """Images that a run cannot do without; UserError if one cannot be read."""
    images = []
    for source in sources:
        try:
            images.append(read(source).image)
        except UnreadableImageError as error:
            raise UserError(f"{what} '{source.path}': {error}") from error
    return images
