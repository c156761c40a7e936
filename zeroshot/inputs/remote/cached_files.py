"""A temporary copy of a remote file, of which each block is fetched once.

A tar file is listed from header to header and read image by image. Through a driver of fsspec the
listing reads the whole file, because drivers read ahead, and every image is a request. Here both
read one copy, which is fetched in blocks, some of them ahead if it is read in order.
"""

import io
import tempfile
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

BLOCK = 8 << 20
"""Size of a request in bytes."""
AHEAD = 4
"""Number of blocks that are fetched at a time."""
LARGEST = 16 << 30
"""Size limit of a file that is copied, in bytes. A larger one is read range by range."""


class RemoteCopy:
    """The copy of one file. Any number of threads may read it."""

    def __init__(self, system: Any, path: str, size: int, state: str | None) -> None:
        self.size, self.state = size, state
        self._system, self._path = system, path
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="remote-blocks")
        self._blocks: dict[int, Future[None]] = {}
        self._last = -1
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._file, self._pool)

    def read(self, start: int, size: int) -> bytes:
        """At most `size` bytes from `start` on. Raises the driver's errors."""
        stop = min(start + size, self.size)
        if start >= stop:
            return b""
        for block in self._requested(start // BLOCK, (stop - 1) // BLOCK):
            block.result()
        with self._lock:
            self._file.seek(start)
            return self._file.read(stop - start)

    def _requested(self, first: int, last: int) -> list["Future[None]"]:
        """These blocks; requests further ones as well if the block before was the last one read."""
        with self._lock:
            ahead = AHEAD - 1 if first in (self._last, self._last + 1) else 0
            self._last = last
            wanted = range(first, min(last + ahead, (self.size - 1) // BLOCK) + 1)
            for block in wanted:
                done = self._blocks.get(block)
                if done is None or (done.done() and done.exception() is not None):
                    self._blocks[block] = self._pool.submit(self._fetch, block)
            return [self._blocks[block] for block in range(first, last + 1)]

    def _fetch(self, block: int) -> None:
        start = block * BLOCK
        stop = min(start + BLOCK, self.size)
        data = self._system.cat_file(self._path, start=start, end=stop)
        if len(data) != stop - start:
            raise OSError(f"{len(data)} bytes came instead of {stop - start}: it has changed")
        with self._lock:
            self._file.seek(start)
            self._file.write(data)


def _close(file: Any, pool: ThreadPoolExecutor) -> None:
    pool.shutdown(wait=False, cancel_futures=True)
    file.close()


class Reader(io.RawIOBase):
    """A copy as an open file."""

    def __init__(self, copy: RemoteCopy) -> None:
        self._copy, self._place = copy, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The place."""
        return self._place

    def seek(self, place: int, whence: int = 0, /) -> int:
        """Go to a place, and say which."""
        self._place = place + (0, self._place, self._copy.size)[whence]
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        """Read from here on into a buffer; the number of bytes."""
        data = self._copy.read(self._place, len(buffer))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)
