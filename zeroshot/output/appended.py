"""A file that one process appends to, watched for others that remove, replace or change it."""

import contextlib
import os
from pathlib import Path

from zeroshot.errors import OutputError
from zeroshot.output import atomic

__all__ = ["AppendedFile"]


class AppendedFile:
    """The file at `path`, made if needed, to which this process alone appends.

    What is appended is in the file whole or not at all, unless the process is killed meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._handle: int | None = os.open(path, flags, 0o666)
        self.size = os.fstat(self._handle).st_size

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._handle is None

    def check(self) -> None:
        """Check that `path` is still this file, with nothing in it that others wrote.

        Raises:
            OutputError: it is not.
        """
        assert self._handle is not None
        own = os.fstat(self._handle)
        try:
            there = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise self._error("removed") from None
        if not os.path.samestat(own, there):
            raise self._error("replaced by another file")
        if own.st_size != self.size:
            raise self._error("cut" if own.st_size < self.size else "written to by another process")

    def _error(self, what: str) -> OutputError:
        return OutputError(
            f"'{self.path}' was {what} during the run, so the run ends and writes nothing more to "
            "it; run the same command again to make the rows that are missing"
        )

    def append(self, data: bytes | bytearray) -> None:
        """Append to the file.

        Raises:
            OutputError: see `check`; or it cannot be written, for example on a full disk.
        """
        with atomic.writing(self.path):
            self.check()
            assert self._handle is not None
            left = memoryview(data)
            try:
                while left:
                    left = left[os.write(self._handle, left) :]
            except BaseException:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._handle, self.size)
                raise
            self.size += len(data)

    def cut(self, size: int) -> None:
        """Cut the file to a size; raises as `append`."""
        with atomic.writing(self.path):
            self.check()
            assert self._handle is not None
            os.ftruncate(self._handle, size)
            self.size = size

    def sync(self) -> None:
        """Check the file, and wait until it is on the disk; raises as `append`."""
        with atomic.writing(self.path):
            self.check()
            assert self._handle is not None
            atomic.sync(self._handle)

    def close(self) -> None:
        """Close the file."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            os.close(handle)

    def __del__(self) -> None:
        """Close the file if nobody has."""
        with contextlib.suppress(OSError, AttributeError):
            self.close()
