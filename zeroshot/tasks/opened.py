"""Pictures themselves, a few at a time, for models that look at more than an embedding."""

from collections.abc import Iterable, Iterator
from itertools import islice

from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.images import Picture, Source, read, read_ahead
from zeroshot.models.base import Image
from zeroshot.results import Failure
from zeroshot.tasks.meter import Meter

__all__ = ["open_all", "open_pictures"]

Opened = tuple[Source, Picture | Failure]

TOGETHER = 8
"""Pictures of full size that are held at a time."""


def open_pictures(
    sources: Iterable[Source], meter: Meter, batch_size: int
) -> Iterator[list[Opened]]:
    """Pictures in order, at most `batch_size` and never more than `TOGETHER` at a time.

    Later ones are read while the caller works. One that cannot be read comes as its failure.
    """
    seen: list[Source] = []

    def noted() -> Iterator[Source]:
        for source in sources:
            seen.append(source)
            yield source

    pictures = read_ahead(noted())
    size = min(batch_size, TOGETHER)
    while True:
        with meter.stage("decoding"):
            batch = list(islice(pictures, size))
        if not batch:
            return
        opened: list[Opened] = []
        for picture in batch:
            failed = isinstance(picture, UnreadableImageError)
            meter.failed += failed
            meter.images_encoded += not failed
            meter.pictures += 1
            opened.append(
                (
                    seen.pop(0),
                    Failure.of(picture) if isinstance(picture, UnreadableImageError) else picture,
                )
            )
        yield opened


def open_all(sources: Iterable[Source], what: str) -> list[Image]:
    """Pictures that a run cannot do without; UserError for one that cannot be read."""
    images = []
    for source in sources:
        try:
            images.append(read(source).image)
        except UnreadableImageError as error:
            raise UserError(f"{what} '{source.path}': {error}") from error
    return images
