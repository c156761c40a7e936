"""Write files and folders whole: complete or absent, even if the process or machine fails.

A file is written under another name in the same folder, synced and renamed: `whole`. That name has
the process that writes it, so that the next one removes what a dead process left there.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from zeroshot.errors import OutputError, UserError, ZeroshotError
from zeroshot.output.holders import has_exited, ourselves

__all__ = [
    "NewFolder",
    "check_place",
    "is_abandoned",
    "part_of",
    "publish",
    "replace",
    "start_error",
    "sweep",
    "sync",
    "whole",
    "whole_folder",
    "writing",
]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PART = re.compile(r"\..*\.([0-9a-f]{8}-\d+-\w*)-[0-9a-f]{8}\.new", re.DOTALL)
"""An unfinished file: `.NAME.PROCESS-TOKEN.new`."""
PART_NAME_BYTES = 120
ABANDONED = 86400.0
"""Seconds without a write after which an unfinished file of another machine is removed."""

_swept: set[Path] = set()


def check_place(path: Path, *, folder: bool = False) -> None:
    """UserError if no file, or no `folder`, can be made at `path`, as far as it is known before."""
    whole = path.absolute()
    for above in (whole, *whole.parents) if folder else whole.parents:
        if above.is_dir():
            if not os.access(above, os.W_OK | os.X_OK):
                raise UserError(f"cannot write '{path}': no permission to write into '{above}'")
            return
        if os.path.lexists(above):
            raise UserError(f"cannot write '{path}': '{above}' is no folder")


@contextlib.contextmanager
def whole(path: Path, *, overwrite: bool = True, begins: bool = True) -> Iterator[BinaryIO]:
    """A file to write to, which gets the name `path` when the block is done.

    If the block or a write fails, nothing changes: an earlier file stays as it was.

    Args:
        overwrite: replace an earlier file, also one that appeared during the block.
        begins: this is the first use of a path that the user gave. Its folder is made, and a path
            that cannot be is wrong usage.

    Raises:
        UserError: there is a file and it may not be replaced, or no file can be at this path.
        OutputError: the file cannot be written, for example because the disk is full.
    """
    try:
        if begins:
            path.parent.mkdir(parents=True, exist_ok=True)
        new = part_of(path)
        file = open(new, "xb")  # noqa: SIM115
    except OSError as error:
        raise (start_error if begins else _write_error)(path, error) from error
    try:
        with writing(path):
            with file:
                yield file
                file.flush()
                sync(file.fileno())
            if overwrite:
                os.replace(new, path)
            elif not _link(new, path):
                raise UserError(f"'{path}' exists; --overwrite replaces it")
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


@dataclass(frozen=True)
class NewFolder:
    """A folder that is not finished yet."""

    path: Path

    def write(self, name: str, data: bytes) -> None:
        """Write a file; its folders are made."""
        self._place(name).write_bytes(data)

    def link(self, name: str, target: str) -> None:
        """Make a symbolic link; its folders are made."""
        self._place(name).symlink_to(target)

    def _place(self, name: str) -> Path:
        if os.path.isabs(name) or os.pardir in name.split("/"):
            raise ValueError(f"{name!r} is not below the folder")
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        return file


@contextlib.contextmanager
def whole_folder(path: Path, *, overwrite: bool = False) -> Iterator[NewFolder]:
    """A new folder to fill, which gets the name `path` when the block is done; raises as `whole`.

    If the process is killed while an earlier folder is replaced, that one may be left beside it as
    `.NAME.PROCESS-TOKEN.old`; the new one is complete or absent.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = part_of(path)
        new.mkdir()
    except OSError as error:
        raise start_error(path, error) from error
    try:
        with writing(path):
            yield NewFolder(new)
            os.sync()  # one call for all files
            sync(new)
            if (
                not overwrite
                and os.path.lexists(path)
                and (not path.is_dir() or any(path.iterdir()))
            ):
                raise UserError(f"'{path}' exists; --overwrite replaces it")
            old = new.with_suffix(".old")
            if os.path.lexists(path):
                os.rename(path, old)
            try:
                os.rename(new, path)
            except OSError:
                os.rename(old, path)
                raise
            sync(path.parent)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def replace(path: Path, data: bytes | memoryview) -> None:
    """Replace the content of `path`, in a folder that exists; otherwise as `whole`."""
    with whole(path, begins=False) as file:
        file.write(data)


def publish(path: Path, data: bytes) -> bool:
    """Create the file `path`; False, and no change, if it exists.

    Raises:
        OSError: it cannot be written.
    """
    new = part_of(path)
    try:
        with open(new, "xb") as file:
            file.write(data)
            file.flush()
            sync(file.fileno())
        os.link(new, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in FULL:
            raise
        return _create(path, data)  # a file system without links
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
    return True


def _create(path: Path, data: bytes) -> bool:
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            sync(file.fileno())
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _link(new: Path, path: Path) -> bool:
    """Name a file `path` unless there is one; without links, with a gap between look and rename."""
    try:
        os.link(new, path)
    except FileExistsError:
        return False
    except OSError:
        if os.path.lexists(path):
            return False
        os.replace(new, path)
    return True


def part_of(path: Path) -> Path:
    """An unused name beside `path` for its unfinished content, after leftovers are removed.

    It begins with a dot and ends with `.new`.
    """
    sweep(path.parent)
    name = os.fsdecode(os.fsencode(path.name)[:PART_NAME_BYTES])
    return path.with_name(f".{name}.{ourselves().mark}-{secrets.token_hex(4)}.new")


def sweep(folder: Path) -> None:
    """Remove the unfinished files of dead processes, once for each folder."""
    folder = folder.absolute()
    if folder in _swept:
        return
    _swept.add(folder)
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            part = PART.fullmatch(entry.name)
            if part is None or entry.is_symlink():
                continue
            with contextlib.suppress(OSError):
                if is_abandoned(part[1], entry.stat().st_mtime):
                    (shutil.rmtree if entry.is_dir() else os.unlink)(entry.path)


def is_abandoned(mark: str, modified: float) -> bool:
    """Whether the process with this `Holder.mark` will not finish a file, last written then."""
    exited = has_exited(mark)
    return time.time() - modified > ABANDONED if exited is None else exited


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
        if isinstance(error, ZeroshotError):
            raise
        raise _write_error(place, error) from error


def start_error(place: object, error: OSError) -> UserError | OutputError:
    """The error to raise if an output cannot be started: a full disk, or a wrong path."""
    if isinstance(error, OutputError):
        return error
    if error.errno in FULL:
        return _write_error(place, error)
    return UserError(f"cannot write '{place}': {error.strerror}")


def _write_error(place: object, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write to '{place}': {error.strerror or error}; complete files are kept: fix the "
        "cause and run the same command again"
    )
