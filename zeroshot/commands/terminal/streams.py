r"""Standard output and standard error as a unix tool has them.

| what happens | what follows |
|---|---|
| the reader of standard output is gone (`\| head`) | the run ends without a word, code 141 |
| standard output cannot be written (closed, a full disk) | OutputError, code 4 |
| standard error cannot be written | messages are dropped, and the run continues |
| a character is not in the encoding of a stream | it is written as `\u4e2d` |
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from zeroshot.errors import OutputError, ZeroshotError


class ReaderGoneError(ZeroshotError):
    """Nobody reads standard output any more. There is nothing to say, and nobody to say it to."""

    exit_code = 128 + 13  # as a process that SIGPIPE ended


class _Closed:
    """A stream that was closed before the process began."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "it is closed")

    def flush(self) -> None:
        """Nothing was written."""

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        raise OSError(errno.EBADF, "it is closed")


class _Guarded:
    """A stream of text whose failures follow the table of this module."""

    def __init__(self, stream: Any) -> None:
        self._stream = _Closed() if stream is None else stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._discard()
            self.fail(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._discard()
            self.fail(error)

    def fail(self, error: OSError) -> None:
        """What follows a failure; nothing, so that messages are dropped."""

    def _discard(self) -> None:
        """Let what is left in buffers go nowhere: the interpreter would write it at its end."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


class _Output(_Guarded):
    """Standard output: what it lacks would be missing in the answer."""

    def fail(self, error: OSError) -> None:
        """Raise what ends the run."""
        if isinstance(error, BrokenPipeError):
            raise ReaderGoneError from None
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write to standard output: {reason}") from None


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """A block in which standard output and standard error behave as this module says."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (
        cast(TextIO, _Output(before[0])),
        cast(TextIO, _Guarded(before[1])),
    )
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def fill_descriptors() -> None:
    """Open the null device for what is closed of 0, 1 and 2; no file may get such a number.

    A library in C that complains on standard error would else write into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)  # the lowest free one


def is_utf8(stream: Any) -> bool:
    """Whether text is written to the stream as UTF-8."""
    return (stream.encoding or "").lower().replace("_", "-") in ("utf-8", "utf8", "utf-8-sig")


def one_terminal() -> bool:
    """Whether standard output and standard error are the same terminal."""
    try:
        if not (sys.stdout.isatty() and sys.stderr.isatty()):
            return False
        return os.ttyname(sys.stdout.fileno()) == os.ttyname(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # no files; Windows, whose console is one
        return os.name == "nt"
