"""Images to embeddings. Later images are read while earlier ones are encoded.

Three things happen at once. Some threads look up which images the cache holds. Others read, decode
and preprocess the rest. The caller's thread encodes. Every queue is bounded. A batch of the encoder
is made of the next images without an embedding and skips those that have one, so that it is full
even if the cache holds most images. Results keep the order of the sources.
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
from zeroshot.models.deferred import Deferred
from zeroshot.results.result import Failure

IMAGE_KIND = f"image/{VERSION}"
LOOK_UP = 128
"""Images that are looked up in the cache together."""
WINDOW = 16
"""Batches of images that may be finished, or on their way, before the oldest one is encoded."""


def image_kind(encoder: ImageEncoder) -> str:
    """The kind of the embeddings in the cache, which is part of their key."""
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
    """A batch of images: `embeddings[i]` belongs to `sources[i]`, and is zero if that failed.

    `failures[i]` says why.
    """

    sources: Sequence[Source]
    ids: Sequence[str | None]
    embeddings: Float[Tensor, "n d"]
    failures: Sequence[Failure | None]
    views: Float[Tensor, "n v d"] | None = None
    """The image itself and random parts of it."""

    @property
    def readable(self) -> list[int]:
        """Indices of the images that have an embedding."""
        return [i for i, failure in enumerate(self.failures) if failure is None]


@dataclass(frozen=True)
class _Read:
    """An image that was read: its pixels, or the embedding that the cache has of its content."""

    id: str
    pixels: Pixels
    """None if there is an embedding. The image itself if its encoder has no separate step of
    preprocessing."""
    embedding: Float[Tensor, " d"] | None


@dataclass(eq=False)
class _Slot:
    """An image on its way."""

    source: Source
    id: str | None
    embedding: Float[Tensor, " d"] | None = None
    failure: Failure | None = None
    reading: "Future[_Read | UnreadableImageError] | None" = None
    twin: "_Slot | None" = None
    """An earlier image of the same content, whose embedding this one gets."""

    @property
    def done(self) -> bool:
        return self.embedding is not None or self.failure is not None


class EmbeddingPipeline:
    """One pass over `sources`. Iterate once, and call `close` in any case.

    At most `batch_size` images are encoded at a time, and at most as many are queued, decoded and
    preprocessed. For encoders without separate preprocessing at most two images per thread are
    queued, because they are held at full resolution.
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
        """Images that memory has room for, as far as is known."""
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
        self._id_readers = ThreadPoolExecutor(4, thread_name_prefix="read-ahead-id")
        self._sources = iter(sources)
        self._ids: deque[tuple[list[Source], Future[list[str | None]]]] = deque()
        self._known: deque[_Slot] = deque()  # looked up in the cache, not yet in `_slots`
        self._slots: deque[_Slot] = deque()  # on their way, in order
        self._waiting: deque[_Slot] = deque()  # those of `_slots` that are being read
        self._first: dict[str, _Slot] = {}  # the first slot of each content
        split = isinstance(encoder, PixelEncoder)
        self._ahead = batch_size if split else min(batch_size, 2 * threads)

    def close(self) -> None:
        """Leave no thread behind."""
        for pool in (self._readers, self._id_readers):
            pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        self._fill()
        while self._slots:
            first = list(islice(self._slots, self._batch_size))
            if all(slot.done for slot in first):
                for _ in first:
                    self._slots.popleft()
                self._fill()
                yield self._batch(first)
            else:
                assert self._waiting, "a slot that is not done is being read, or its twin is"
                self._encode(self._next_batch())

    def _fill(self) -> None:
        """Start images until enough of them wait for the encoder, or for an earlier image."""
        room = WINDOW * self._batch_size
        while len(self._waiting) < self._ahead and len(self._slots) < room:
            if not self._known and not self._look_up():
                return
            slot = self._known.popleft()
            self._slots.append(slot)
            if slot.embedding is None:
                self._start(slot)

    def _start(self, slot: _Slot) -> None:
        """Read an image, unless one of the same content is on its way or was just encoded.

        If that one failed, or its file changed meanwhile, this one takes its place.
        """
        twin = self._first.get(slot.id) if slot.id is not None else None
        if twin is None or (twin.done and (twin.embedding is None or twin.id != slot.id)):
            if isinstance(self._encoder, Deferred):
                self._encoder.load()  # now, and not in a thread that reads
            if slot.id is not None:
                self._first[slot.id] = slot
            slot.twin = None
            slot.reading = self._readers.submit(self._read, slot.source, slot.id)
            self._waiting.append(slot)
        elif twin.embedding is None:
            slot.twin = twin
        else:
            slot.embedding = twin.embedding
            self._meter.images_cached += 1

    # Looking up

    def _look_up(self) -> bool:
        """Look up the next images in the cache; False if there are no more images."""
        self._request_ids()
        if not self._ids:
            return False
        with self._meter.stage("cache"):
            sources, future = self._ids.popleft()
            ids = future.result()
            self._request_ids()
            self._first = {id: slot for id, slot in self._first.items() if not slot.done}
            embeddings, found = self._cache.get(
                self._encoder.name, self._kind, [id for id in ids if id is not None]
            )
        hits, cached = iter(found.tolist()), iter(embeddings)
        for source, id in zip(sources, ids, strict=True):
            embedding = next(cached) if id is not None and next(hits) else None
            self._meter.images_cached += embedding is not None
            self._known.append(_Slot(source, id, embedding))
        return True

    def _request_ids(self) -> None:
        """Let threads find the ids of the next images."""
        while len(self._ids) < 4 and (sources := self._next_sources()):
            self._ids.append((sources, self._id_readers.submit(known_ids, sources, self._cache)))

    def _next_sources(self) -> list[Source]:
        """The next sources; few if images are in memory, because a generator may make them."""
        sources: list[Source] = []
        in_memory = 0
        for source in self._sources:
            sources.append(source)
            in_memory += isinstance(source.content, bytes | Image | Picture)
            if len(sources) == LOOK_UP or in_memory == self._batch_size:
                break
        return sources

    # Reading, in a thread

    def _read(self, source: Source, id: str | None) -> _Read | UnreadableImageError:
        """An image's pixels, or its embedding if the cache turns out to have its content."""
        begin = perf_counter()
        try:
            if isinstance(self._encoder, ClipEncoder):
                return self._read_clip(source, id, self._encoder)
            stamp = source.content.stamp if isinstance(source.content, Blob) else None
            fetched = fetch(source)
            if stamp is not None:
                self._cache.remember_blob(stamp, fetched.id)
            if fetched.id != id and (cached := self._cached(fetched.id)) is not None:
                return _Read(fetched.id, None, cached)
            if not isinstance(self._encoder, PixelEncoder):
                with fetched.decoded() as picture:
                    return _Read(fetched.id, picture.image, None)
            with fetched.decoded(draft_side=self._encoder.draft_side) as picture:
                return _Read(fetched.id, self._encoder.pixels(picture.image), None)
        except UnreadableImageError as error:
            error.__cause__ = error.__context__ = None
            return error.with_traceback(None)  # a traceback would keep the file's bytes alive
        finally:
            self._meter.add_thread_seconds("decoding", perf_counter() - begin)

    def _read_clip(self, source: Source, id: str | None, encoder: ClipEncoder) -> _Read:
        with open_clip(source) as clip:
            if clip.id != id and (cached := self._cached(clip.id)) is not None:
                return _Read(clip.id, None, cached)
            return _Read(clip.id, encoder.read_clip(clip.file), None)

    def _cached(self, id: str) -> Float[Tensor, " d"] | None:
        embeddings, found = self._cache.get(self._encoder.name, self._kind, [id])
        return embeddings[0] if found.all() else None

    # Encoding

    def _next_batch(self) -> list[tuple[_Slot, _Read]]:
        """The next images to encode: a full batch if enough are on their way.

        An image that cannot be read takes a place in the batch. So shards and whole runs make the
        same batches, on which the last digit of a number may depend.
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
                slot.failure = Failure.from_error(read)
            else:
                slot.id, slot.embedding = read.id, read.embedding
                self._meter.images_cached += read.embedding is not None
                if read.embedding is None:
                    batch.append((slot, read))
            self._fill()
        return batch

    def _encode(self, batch: list[tuple[_Slot, _Read]]) -> None:
        """Encode a batch; every part of it goes to the cache at once."""
        done = 0
        with self._meter.stage("encoder"):
            for part, embeddings in batched_with_oom_retry(self._embed, batch, self._fits):
                if len(part) < min(self._fits, len(batch) - done):
                    self._fits = len(part)
                done += len(part)
                ids = [read.id for _, read in part]
                self._cache.put(self._encoder.name, self._kind, ids, embeddings)
                for (slot, _), embedding in zip(part, embeddings, strict=True):
                    slot.embedding = embedding
        self._meter.images_encoded += len(batch)
        for slot in self._slots:
            if slot.twin is not None and slot.twin.done and not slot.done:
                self._start(slot)

    def _embed(self, batch: Sequence[tuple[_Slot, _Read]]) -> Float[Tensor, "n d"]:
        pixels: list[Pixels] = [read.pixels for _, read in batch]
        if isinstance(self._encoder, ClipEncoder):
            return self._encoder.encode_clips(pixels)
        if isinstance(self._encoder, PixelEncoder):
            return self._encoder.encode_pixels(pixels)
        return self._encoder.encode_images(pixels)

    def _batch(self, slots: Sequence[_Slot]) -> EmbeddingBatch:
        self._meter.pictures += len(slots)
        self._meter.failed += sum(slot.failure is not None for slot in slots)
        known = {i: slot.embedding for i, slot in enumerate(slots) if slot.embedding is not None}
        embeddings = torch.zeros(len(slots), len(next(iter(known.values()), ())))
        if known:
            embeddings[list(known)] = torch.stack(list(known.values()))
        return EmbeddingBatch(
            [slot.source for slot in slots],
            [slot.id for slot in slots],
            embeddings,
            [slot.failure for slot in slots],
        )
