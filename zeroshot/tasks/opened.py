"""Pictures themselves, a few at a time, for models that look at more than an embedding."""

from collections.abc import Iterable, Iterator

from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.images import Picture, Source, read
from zeroshot.models.base import Image
from zeroshot.results import Failure
from zeroshot.tasks import pictures
from zeroshot.tasks.meter import Meter

__all__ = ["open_all", "open_pictures"]

Opened = tuple[Source, Picture | Failure]

TOGETHER = 8
"""Pictures of full size that are held at a time."""


def open_pictures(
    sources: Iterable[Source], meter: Meter, batch_size: int
) -> Iterator[list[Opened]]:
    """Pictures in order, at most `batch_size` and never more than `TOGETHER` at a time.

    One that cannot be read comes as its failure.
    """
    for batch in pictures.open_pictures(sources, meter, min(batch_size, TOGETHER)):
        meter.images_encoded += len(batch.images)
        yield [
            (source, failure or Picture(id or "", batch.images[i]))
            for i, (source, id, failure) in enumerate(
                zip(batch.sources, batch.ids, batch.failures, strict=True)
            )
        ]


def open_all(sources: Iterable[Source], what: str) -> list[Image]:
    """Pictures that a run cannot do without; UserError for one that cannot be read."""
    images = []
    for source in sources:
        try:
            images.append(read(source).image)
        except UnreadableImageError as error:
            raise UserError(f"{what} '{source.path}': {error}") from error
    return images
