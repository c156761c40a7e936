"""A remote file that is being worked on: each part of it is fetched once, into a temporary file.

A tar file is listed from header to header and read picture by picture. Behind a driver of fsspec
the first reads all of the file, since drivers read ahead, and the second is a request for every
picture. Here both see one copy, which is fetched in blocks, some ahead where it is read in order.
"""

import io
import tempfile
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

BLOCK = 8 << 20
"""Bytes of a request."""
AHEAD = 4
"""Blocks that are fetched at a time."""
LARGEST = 16 << 30
"""Bytes of a file that is held; a larger one is read range by range."""


class RemoteCopy:
    """The copy of one file; any number of threads may read it."""

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
        """`size` bytes from `start` on, or what there is of them; what the driver raises."""
        stop = min(start + size, self.size)
        if start >= stop:
            return b""
        for fetched in self._asked(start // BLOCK, (stop - 1) // BLOCK):
            fetched.result()
        with self._lock:
            self._file.seek(start)
            return self._file.read(stop - start)

    def _asked(self, first: int, last: int) -> list["Future[None]"]:
        """These blocks on their way; and those behind them, where the one before was asked for."""
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
    """A held file as an open one."""

    def __init__(self, held: RemoteCopy) -> None:
        self._held, self._place = held, 0

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
        self._place = place + (0, self._place, self._held.size)[whence]
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        """What there is from here on, at most as much as fits."""
        data = self._held.read(self._place, len(buffer))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)
