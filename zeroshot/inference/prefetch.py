"""Pictures to rows, later ones being read while earlier ones are encoded.

Three things go on at once. Threads find out which pictures the cache knows; others read, decode and
preprocess those it does not; the caller's thread encodes. What waits is bounded everywhere. A batch
of the encoder takes the next pictures without a row, however many with one lie between them, so
that it is full also where the cache holds most; results keep the order of the sources all the same.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from time import perf_counter

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UnreadableImageError
from zeroshot.images.clips import open_clip
from zeroshot.images.reading import VERSION, fetch
from zeroshot.inference.batching import batched_with_oom_retry
from zeroshot.inference.content_ids import known_ids
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Blob, Picture, Source
from zeroshot.models.base import ClipEncoder, Image, ImageEncoder, PixelEncoder, Pixels
from zeroshot.results.result import Failure

IMAGE_KIND = f"image/{VERSION}"
LOOK_UP = 128
"""Pictures that are asked for in one question to the cache."""
WINDOW = 16
"""Batches of pictures that may wait for one that has to be encoded first."""


def image_kind(encoder: ImageEncoder) -> str:
    """What rows of pictures are called in the cache, beside the encoder's name."""
    if isinstance(encoder, ClipEncoder):
        return encoder.clip_kind
    shortcuts = encoder.shortcuts if isinstance(encoder, PixelEncoder) else ""
    return f"{IMAGE_KIND}/{shortcuts}" if shortcuts else IMAGE_KIND


def workers() -> int:
    """Threads that decode: one for each core this process may use, four to sixteen."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        cores = os.cpu_count() or 1
    return min(16, max(4, cores))


@dataclass(frozen=True)
class EmbeddingBatch:
    """A batch of pictures: `rows[i]` belongs to `sources[i]`; `failures[i]` says why it does not.

    A failed picture's row is zero.
    """

    sources: Sequence[Source]
    ids: Sequence[str | None]
    rows: Float[Tensor, "n d"]
    failures: Sequence[Failure | None]
    views: Float[Tensor, "n v d"] | None = None
    """The picture itself and random parts of it."""

    @property
    def readable(self) -> list[int]:
        """Places of the pictures that have a row."""
        return [i for i, failure in enumerate(self.failures) if failure is None]


@dataclass(frozen=True)
class _Read:
    """A picture that was read: preprocessed, or known to the cache by what it turned out to be."""

    id: str
    pixels: Pixels
    """None where there is a row; of an encoder whose preprocessing is no step, the picture."""
    row: Float[Tensor, " d"] | None


@dataclass(eq=False)
class _Slot:
    """A picture on its way."""

    source: Source
    id: str | None
    row: Float[Tensor, " d"] | None = None
    failure: Failure | None = None
    reading: "Future[_Read | UnreadableImageError] | None" = None
    twin: "_Slot | None" = None
    """An earlier picture of the same content, whose row this one gets."""

    @property
    def done(self) -> bool:
        return self.row is not None or self.failure is not None


class EmbeddingPipeline:
    """One pass over `sources`; iterate once, and `close` whatever happens.

    At most `batch_size` pictures are encoded at a time and as many wait, decoded and preprocessed;
    of an encoder whose preprocessing is no step of its own, two for each thread, since those wait
    in full size.
    """

    def __init__(
        self,
        sources: Iterable[Source],
        encoder: ImageEncoder,
        cache: EmbeddingCache,
        meter: Meter,
        batch_size: int,
    ) -> None:
        threads = workers()
        self._encoder = encoder
        self._kind = image_kind(encoder)
        self._cache = cache
        self._meter = meter
        self._batch_size = batch_size
        self._fits = batch_size
        """Pictures that memory has room for at once, as far as is known."""
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
        self._askers = ThreadPoolExecutor(4, thread_name_prefix="read-ahead-id")
        self._sources = iter(sources)
        self._asked: deque[tuple[list[Source], Future[list[str | None]]]] = deque()
        self._known: deque[_Slot] = deque()  # looked up, not yet under way
        self._slots: deque[_Slot] = deque()  # under way, in order
        self._waiting: deque[_Slot] = deque()  # of those, what is being read
        self._coming: dict[str, _Slot] = {}  # the first of each content under way
        split = isinstance(encoder, PixelEncoder)
        self._ahead = batch_size if split else min(batch_size, 2 * threads)

    def close(self) -> None:
        """Leave no thread behind."""
        for pool in (self._readers, self._askers):
            pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        self._fill()
        while self._slots:
            first = list(islice(self._slots, self._batch_size))
            if all(slot.done for slot in first):
                for _ in first:
                    self._slots.popleft()
                self._fill()
                yield self._embedded(first)
            else:
                assert self._waiting, "what is not done is being read, or the twin of one that is"
                self._encode(self._gather())

    def _fill(self) -> None:
        """Get pictures under way until enough wait for the encoder, or for one another."""
        room = WINDOW * self._batch_size
        while len(self._waiting) < self._ahead and len(self._slots) < room:
            if not self._known and not self._look_up():
                return
            slot = self._known.popleft()
            self._slots.append(slot)
            if slot.row is None:
                self._start(slot)

    def _start(self, slot: _Slot) -> None:
        """Have a picture read, unless one of the same content is under way or was just encoded.

        Where that one came to nothing, or its file changed meanwhile, this one takes its place.
        """
        twin = self._coming.get(slot.id) if slot.id is not None else None
        if twin is None or (twin.done and (twin.row is None or twin.id != slot.id)):
            if slot.id is not None:
                self._coming[slot.id] = slot
            slot.twin = None
            slot.reading = self._readers.submit(self._read, slot.source, slot.id)
            self._waiting.append(slot)
        elif twin.row is None:
            slot.twin = twin
        else:
            slot.row = twin.row
            self._meter.images_cached += 1

    # Looking up

    def _look_up(self) -> bool:
        """What the cache knows of the next pictures; False where there are none."""
        self._ask()
        if not self._asked:
            return False
        with self._meter.stage("cache"):
            sources, asked = self._asked.popleft()
            ids = asked.result()
            self._ask()
            self._coming = {id: slot for id, slot in self._coming.items() if not slot.done}
            rows, found = self._cache.get(
                self._encoder.name, self._kind, [id for id in ids if id is not None]
            )
        hits, held = iter(found.tolist()), iter(rows)
        for source, id in zip(sources, ids, strict=True):
            row = next(held) if id is not None and next(hits) else None
            self._meter.images_cached += row is not None
            self._known.append(_Slot(source, id, row))
        return True

    def _ask(self) -> None:
        """Keep the ids of some pictures on their way."""
        while len(self._asked) < 4 and (some := self._some()):
            self._asked.append((some, self._askers.submit(known_ids, some, self._cache)))

    def _some(self) -> list[Source]:
        """The next sources; few of pictures in memory, which a generator may be making."""
        some: list[Source] = []
        in_memory = 0
        for source in self._sources:
            some.append(source)
            in_memory += isinstance(source.content, bytes | Image | Picture)
            if len(some) == LOOK_UP or in_memory == self._batch_size:
                break
        return some

    # Reading, in a thread

    def _read(self, source: Source, id: str | None) -> _Read | UnreadableImageError:
        """A picture as the encoder wants it, or its row where only its content shows who it is."""
        begin = perf_counter()
        try:
            if isinstance(self._encoder, ClipEncoder):
                return self._read_clip(source, id, self._encoder)
            stamp = source.content.stamp if isinstance(source.content, Blob) else None
            fetched = fetch(source)
            if stamp is not None:
                self._cache.remember_blob(stamp, fetched.id)
            if fetched.id != id:
                rows, found = self._cache.get(self._encoder.name, self._kind, [fetched.id])
                if found.all():
                    return _Read(fetched.id, None, rows[0])
            if not isinstance(self._encoder, PixelEncoder):
                return _Read(fetched.id, fetched.decoded(), None)
            image = fetched.decoded(draft_side=self._encoder.draft_side)
            return _Read(fetched.id, self._encoder.pixels(image), None)
        except UnreadableImageError as error:
            error.__cause__ = error.__context__ = None
            return error.with_traceback(None)  # tracebacks would keep the file's bytes alive
        finally:
            self._meter.add_thread_seconds("decoding", perf_counter() - begin)

    def _read_clip(self, source: Source, id: str | None, encoder: ClipEncoder) -> _Read:
        with open_clip(source) as clip:
            if clip.id != id:
                rows, found = self._cache.get(encoder.name, self._kind, [clip.id])
                if found.all():
                    return _Read(clip.id, None, rows[0])
            return _Read(clip.id, encoder.read_clip(clip.file), None)

    # Encoding

    def _gather(self) -> list[tuple[_Slot, _Read]]:
        """The next pictures to encode: a full batch if so many are under way.

        One that cannot be read keeps its place in the batch, so that shards and whole runs make
        the same batches, on which the last digit of a number may depend.
        """
        batch: list[tuple[_Slot, _Read]] = []
        for _ in range(self._batch_size):
            if not self._waiting:
                break
            slot = self._waiting.popleft()
            assert slot.reading is not None
            with self._meter.stage("decoding"):
                read = slot.reading.result()
            slot.reading = None
            if isinstance(read, UnreadableImageError):
                slot.failure = Failure.of(read)
            else:
                slot.id, slot.row = read.id, read.row
                self._meter.images_cached += read.row is not None
                if read.row is None:
                    batch.append((slot, read))
            self._fill()
        return batch

    def _encode(self, batch: list[tuple[_Slot, _Read]]) -> None:
        """Rows of a batch, kept as they come."""
        done = 0
        with self._meter.stage("encoder"):
            for part, rows in batched_with_oom_retry(self._rows, batch, self._fits):
                if len(part) < min(self._fits, len(batch) - done):
                    self._fits = len(part)
                done += len(part)
                ids = [read.id for _, read in part]
                self._cache.put(self._encoder.name, self._kind, ids, rows)
                for (slot, _), row in zip(part, rows, strict=True):
                    slot.row = row
        self._meter.images_encoded += len(batch)
        for slot in self._slots:
            if slot.twin is not None and slot.twin.done and not slot.done:
                self._start(slot)

    def _rows(self, batch: Sequence[tuple[_Slot, _Read]]) -> Float[Tensor, "n d"]:
        pixels: list[Pixels] = [read.pixels for _, read in batch]
        if isinstance(self._encoder, ClipEncoder):
            return self._encoder.encode_clips(pixels)
        if isinstance(self._encoder, PixelEncoder):
            return self._encoder.encode_pixels(pixels)
        return self._encoder.encode_images(pixels)

    # Handing out

    def _embedded(self, slots: Sequence[_Slot]) -> EmbeddingBatch:
        self._meter.pictures += len(slots)
        self._meter.failed += sum(slot.failure is not None for slot in slots)
        rows = [slot.row for slot in slots if slot.row is not None]
        out = torch.zeros(len(slots), len(rows[0]) if rows else 0)
        if rows:
            out[[i for i, slot in enumerate(slots) if slot.row is not None]] = torch.stack(rows)
        return EmbeddingBatch(
            [slot.source for slot in slots],
            [slot.id for slot in slots],
            out,
            [slot.failure for slot in slots],
        )
