"""Small copies of the served images, made when they are first asked for and kept in memory.

They are made from the decoded image, upright, and carry no metadata: no place, no camera, no name.
"""

import hashlib
import io
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

from zeroshot.images.reading import fetch
from zeroshot.inputs.source import Source

SIDES = (96, 320, 640, 1600)
"""Longer sides that are made, in pixels; others would fill the memory."""
MOST_BYTES = 96 << 20
"""Of all copies in memory."""
THREADS = 2


class ThumbnailMaker:
    """Makes WebP copies in threads of its own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="thumbnails")
        self._lock = threading.Lock()
        self._made: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0

    def submit(self, id: str, source: Source, side: int) -> "Future[bytes]":
        """The copy of the image with this id, at least `side` long if it is made so large.

        Raises, in the future:
            UnreadableImageError: the image cannot be read.
        """
        size = next((known for known in SIDES if known >= side), SIDES[-1])
        with self._lock:
            if (made := self._made.get((id, size))) is not None:
                self._made.move_to_end((id, size))
                future: Future[bytes] = Future()
                future.set_result(made)
                return future
        return self._pool.submit(self._make, id, source, size)

    def _make(self, id: str, source: Source, side: int) -> bytes:
        data = thumbnail_of(source, side)
        with self._lock:
            if (id, side) not in self._made:
                self._made[id, side] = data
                self._bytes += len(data)
            while self._bytes > MOST_BYTES:
                self._bytes -= len(self._made.popitem(last=False)[1])
        return data

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)


def thumbnail_of(source: Source, side: int, kind: str = "WEBP") -> bytes:
    """An image of at most `side` pixels in WebP or PNG, without metadata.

    Raises:
        UnreadableImageError: the image cannot be read.
    """
    with fetch(source).decoded(draft_side=side) as decoded:
        image = decoded.image.copy()
    image.thumbnail((side, side))
    data = io.BytesIO()
    image.save(data, kind, quality=82, method=2)
    return data.getvalue()


def id_of(data: bytes) -> str:
    """The id of an image file in memory: the sha256 of its bytes."""
    return hashlib.sha256(data).hexdigest()
