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
"""Images that are in memory in full size at a time."""


@dataclass(frozen=True)
class ImageBatch:
    """A batch of images by their index; `failures[i]` says why image `i` is missing."""

    sources: Sequence[Source]
    ids: Sequence[str | None]
    images: Mapping[int, Image]
    failures: Sequence[Failure | None]


def load_batches(sources: Iterable[Source], meter: Meter, batch_size: int) -> Iterator[ImageBatch]:
    """Every image, in order; an image that cannot be read is a failure.

    Later images are read while the caller works on a batch.
    """
    begun: deque[Source] = deque()

    def recorded() -> Iterator[Source]:
        for source in sources:
            begun.append(source)
            yield source

    decoded = read_ahead(recorded())
    while True:
        with meter.stage("decoding"):
            batch = list(islice(decoded, batch_size))
        if not batch:
            return
        ids: list[str | None] = [None] * len(batch)
        failures: list[Failure | None] = [None] * len(batch)
        images: dict[int, Image] = {}
        for i, image in enumerate(batch):
            if isinstance(image, UnreadableImageError):
                failures[i] = Failure.from_error(image)
            else:
                ids[i], images[i] = image.id, image.image
        meter.pictures += len(batch)
        meter.failed += len(batch) - len(images)
        yield ImageBatch([begun.popleft() for _ in batch], ids, images, failures)


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
    """Images that a run needs, all in memory; UserError, beginning with `what`, if one fails."""
    images = []
    for source in sources:
        try:
            images.append(read(source).image)
        except UnreadableImageError as error:
            raise UserError(f"{what} '{source.path}': {error}") from error
    return images
