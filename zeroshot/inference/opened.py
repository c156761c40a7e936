"""Pictures themselves, a few at a time, for models that look at more than an embedding."""

from collections.abc import Iterable, Iterator

from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.images.reading import read
from zeroshot.inference import decoded_images
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Picture, Source
from zeroshot.models.base import Image
from zeroshot.results.result import Failure

__all__ = ["load_all", "load_images"]

Opened = tuple[Source, Picture | Failure]

TOGETHER = 8
"""Pictures of full size that are held at a time."""


def load_images(sources: Iterable[Source], meter: Meter, batch_size: int) -> Iterator[list[Opened]]:
    """Pictures in order, at most `batch_size` and never more than `TOGETHER` at a time.

    One that cannot be read comes as its failure.
    """
    for batch in decoded_images.load_batches(sources, meter, min(batch_size, TOGETHER)):
        meter.images_encoded += len(batch.images)
        yield [
            (source, failure or Picture(id or "", batch.images[i]))
            for i, (source, id, failure) in enumerate(
                zip(batch.sources, batch.ids, batch.failures, strict=True)
            )
        ]


def load_all(sources: Iterable[Source], what: str) -> list[Image]:
    """Pictures that a run cannot do without; UserError for one that cannot be read."""
    images = []
    for source in sources:
        try:
            images.append(read(source).image)
        except UnreadableImageError as error:
            raise UserError(f"{what} '{source.path}': {error}") from error
    return images
