"""Pictures for models that read pixels together with a text: opened, batch by batch.

Their answers depend on text and pixels at once, so that no row of the picture alone can be kept.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from zeroshot.errors import UnreadableImageError
from zeroshot.images.reading import read_ahead
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.models.base import Image
from zeroshot.results.result import Failure

__all__ = ["ImageBatch", "load_batches"]


@dataclass(frozen=True)
class ImageBatch:
    """A batch of pictures by their place; `failures[i]` says why one is not among them."""

    sources: Sequence[Source]
    ids: Sequence[str | None]
    images: Mapping[int, Image]
    failures: Sequence[Failure | None]


def load_batches(sources: Iterable[Source], meter: Meter, batch_size: int) -> Iterator[ImageBatch]:
    """Every picture, in order; what cannot be opened is a failure.

    Later ones are read while the caller works on a batch.
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
        for i, read in enumerate(batch):
            if isinstance(read, UnreadableImageError):
                failures[i] = Failure.of(read)
            else:
                ids[i], images[i] = read.id, read.image
        meter.pictures += len(batch)
        meter.failed += len(batch) - len(images)
        yield ImageBatch([seen.popleft() for _ in batch], ids, images, failures)
