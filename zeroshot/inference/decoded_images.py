"""Decoded images, batch by batch, for models that need more than an embedding."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.images.reading import read, read_ahead
from zeroshot.inference.batching import batched_with_oom_retry
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Picture, Source
from zeroshot.models.base import Image
from zeroshot.results.result import Failure

FULL_SIZE = 8
"""Images that are in memory in full size at a time."""
MANY_PIXELS = 100_000_000
"""With so many pixels a batch is full, whatever its number of images."""


@dataclass(frozen=True)
class ImageBatch:
    """A batch of images by their index; `failures[i]` says why image `i` is missing."""

    sources: Sequence[Source]
    ids: Sequence[str | None]
    pictures: Mapping[int, Picture]
    failures: Sequence[Failure | None]

    @property
    def images(self) -> Mapping[int, Image]:
        """The decoded images by their index."""
        return {i: picture.image for i, picture in self.pictures.items()}


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
        ids: list[str | None] = []
        failures: list[Failure | None] = []
        pictures: dict[int, Picture] = {}
        room = MANY_PIXELS
        with meter.stage("decoding"):
            for image in islice(decoded, batch_size):
                if isinstance(image, UnreadableImageError):
                    ids.append(None)
                    failures.append(Failure.from_error(image))
                    continue
                pictures[len(ids)] = image
                ids.append(image.id)
                failures.append(None)
                room -= image.image.width * image.image.height
                if room <= 0:
                    break
        if not ids:
            return
        meter.pictures += len(ids)
        meter.failed += len(ids) - len(pictures)
        yield ImageBatch([begun.popleft() for _ in ids], ids, pictures, failures)


Answer = TypeVar("Answer")


def apply_to_images(
    sources: Iterable[Source],
    work: Callable[[Sequence[Image]], Sequence[Answer]],
    meter: Meter,
    batch_size: int,
) -> Iterator[tuple[Source, Failure | tuple[Picture, Answer]]]:
    """Each image with the answer of `work`, or why it cannot be read.

    At most `FULL_SIZE` images are in memory at a time.
    """
    for batch in load_batches(sources, meter, min(batch_size, FULL_SIZE)):
        images = list(batch.images.values())
        with meter.stage("encoder"):
            parts = batched_with_oom_retry(work, images, len(images))
            answers = dict(
                zip(batch.images, [one for _, part in parts for one in part], strict=True)
            )
        meter.images_encoded += len(images)
        for i, source in enumerate(batch.sources):
            failure = batch.failures[i]
            yield source, failure or (batch.pictures[i], answers[i])


def load_all(sources: Iterable[Source], what: str) -> list[Image]:
    """Images that a run needs, all in memory; UserError, beginning with `what`, if one fails."""
    images = []
    for source in sources:
        try:
            images.append(read(source).image)
        except UnreadableImageError as error:
            raise UserError(f"{what} '{source.path}': {error}") from error
    return images
