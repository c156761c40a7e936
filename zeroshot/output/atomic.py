"""Write files atomically: a file is complete or absent, even if the process or machine fails."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from zeroshot.errors import OutputError, UserError

__all__ = ["publish", "replace", "start_error", "sync", "whole", "writing"]


def replace(path: Path, data: bytes | memoryview) -> None:
    """Replace the content of `path` durably: after a crash the file is the old or the new one."""
    _rename(_beside(path, data), path)


def _rename(new: Path, path: Path) -> None:
    try:
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync(path.parent)


def publish(path: Path, data: bytes) -> bool:
    """Create the file `path`; False, and no change, if it exists."""
    new = _beside(path, data)
    try:
        os.link(new, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        return _create(path, data)
    finally:
        new.unlink(missing_ok=True)
    return True


def _create(path: Path, data: bytes) -> bool:
    try:
        with open(path, "xb") as file:
            file.write(data)
            sync(file.fileno())
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _beside(path: Path, data: bytes | memoryview) -> Path:
    """A synced temporary file in the same folder."""
    with _temporary(path) as (new, file):
        file.write(data)
    return new


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A file beside `path`, synced when the block is done; removed if it fails."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    try:
        with open(new, "xb") as file:
            yield new, file
            file.flush()
            sync(file.fileno())
    except BaseException:
        new.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which gets the name `path` when the block is done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path) as (new, file):
        yield file
    _rename(new, path)


def sync(what: int | Path) -> None:
    """Wait until a file, or the list of files in a folder, is on the disk."""
    if isinstance(what, int):
        os.fsync(what)
        return
    with contextlib.suppress(OSError):  # not every system syncs folders
        handle = os.open(what, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def writing(place: object) -> Iterator[None]:
    """A block that writes to `place`; an OSError in it becomes an OutputError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise _write_error(place, error) from error


def start_error(place: object, error: OSError) -> UserError | OutputError:
    """The error to raise if an output cannot be started: a full disk, or a wrong path."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return _write_error(place, error)
    return UserError(f"cannot write '{place}': {error.strerror}")


def _write_error(place: object, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write to '{place}': {error.strerror or error}; complete files are kept: fix the "
        "cause and run the same command again"
    )
