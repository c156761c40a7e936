"""Files that are whole or not there, whatever happens to the process or the machine."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from zeroshot.errors import OutputError, UserError

__all__ = ["publish", "refusal", "replace", "sync", "whole", "writing"]


def replace(path: Path, data: bytes | memoryview) -> None:
    """Give `path` new content that outlives a crash of the machine: all of it, or none."""
    new = _beside(path, data)
    try:
        os.replace(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    sync(path.parent)


def publish(path: Path, data: bytes) -> bool:
    """Make the file `path` with this content; False when somebody was first, who is left alone."""
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
    """A synced file in the same folder."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    try:
        with open(new, "xb") as file:
            file.write(data)
            file.flush()
            sync(file.fileno())
    except OSError:
        new.unlink(missing_ok=True)
        raise
    return new


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the name `path` once the block is done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    try:
        with open(new, "xb") as file:
            yield file
            file.flush()
            sync(file.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(what: int | Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
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
    """A block that writes to `place`: what the system refuses is an OutputError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise _stopped(place, error) from error


def refusal(place: object, error: OSError) -> UserError | OutputError:
    """What to raise when an output cannot be begun: there is no room, or the place is wrong."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return _stopped(place, error)
    return UserError(f"cannot write '{place}': {error.strerror}")


def _stopped(place: object, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write to '{place}': {error.strerror or error}; what is complete there stays: "
        "see to it and run the same command again"
    )
