"""Where the files of an output folder are: on this machine, or in an object store (`object_store`).

Both support only a few operations: write a whole file, create a file that only one process can
create, and read the age of a file. No file is appended to or renamed.
"""

import contextlib
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import platformdirs

from zeroshot.errors import UserError
from zeroshot.output import atomic

WORK = ".work"
"""Folder of claims and, on this machine, of unfinished rows."""


def default_root() -> Path:
    """`$ZEROSHOT_CACHE`, where `~` is the home folder, else this platform's folder of caches."""
    given = os.environ.get("ZEROSHOT_CACHE")
    if not given:
        return Path(platformdirs.user_cache_dir("zeroshot"))
    try:
        return Path(given).expanduser()
    except RuntimeError as error:  # a user who does not exist
        raise UserError(f"ZEROSHOT_CACHE is '{given}', but there is no such home folder") from error


@runtime_checkable
class Location(Protocol):
    """A folder of files that several processes share; a name may contain a folder below it.

    A failed write raises OSError or OutputError. Small and picklable.
    """

    def begin(self) -> None:
        """Check that files can be written and published here."""

    def below(self, name: str) -> "Location":
        """A folder in this one."""

    def scratch(self, run: str) -> Path:
        """The folder on this machine for the unfinished rows of a run."""

    def full(self, name: str) -> str:
        """The full name of a file, for messages."""

    def names(self) -> list[str]:
        """Names of the files directly in it; none if the folder does not exist."""

    def read(self, name: str) -> bytes:
        """The bytes of a file; FileNotFoundError."""

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """The bytes of each file that exists."""

    def replace(self, name: str, data: bytes) -> None:
        """Replace the content of a file, all of it or nothing."""

    def whole(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to write to, of any size, which appears when the block is done."""

    def publish(self, name: str, data: bytes) -> bool:
        """Create a file; False if it exists. Of several processes only one gets True.

        The bytes must be unique to the process.
        """

    def remove(self, *names: str) -> None:
        """Remove the files that exist."""

    def sizes(self) -> dict[str, int]:
        """The size in bytes of each file directly in it."""

    def remove_empty(self, name: str) -> None:
        """Remove a folder in this one, if it is empty."""

    def has_below(self, name: str) -> bool:
        """Whether a folder exists in this one."""

    def touch(self, name: str) -> None:
        """Set a file's time to now; FileNotFoundError."""

    def age(self, name: str) -> float:
        """Seconds since the last write or touch, by the location's clock; FileNotFoundError."""


@dataclass(frozen=True)
class Disk:
    """A folder on this machine or on a mounted network file system."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def begin(self) -> None:
        """Make the folder."""
        (self.path / WORK).mkdir(parents=True, exist_ok=True)

    def below(self, name: str) -> "Disk":
        """A folder in this one."""
        return Disk(self.path / name)

    def scratch(self, run: str) -> Path:
        """In the folder itself, so that any machine can continue the run."""
        return self.path / WORK

    def full(self, name: str) -> str:
        """Its path."""
        return str(self.path / name)

    def names(self) -> list[str]:
        """Names of files, including hidden ones."""
        try:
            with os.scandir(self.path) as found:
                return [entry.name for entry in found if entry.is_file()]
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        return (self.path / name).read_bytes()

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """Read the files one after another."""
        contents = {}
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                contents[name] = self.read(name)
        return contents

    def replace(self, name: str, data: bytes) -> None:
        """See `atomic.replace`."""
        with self.whole(name) as file:
            file.write(data)

    def whole(self, name: str) -> AbstractContextManager[BinaryIO]:
        """See `atomic.whole`; makes a folder below this one, but not this one again."""
        path = self.path / name
        if path.parent != self.path:
            path.parent.mkdir(exist_ok=True)
        return atomic.whole(path, begins=False)

    def publish(self, name: str, data: bytes) -> bool:
        """See `atomic.publish`."""
        return atomic.publish(self.path / name, data)

    def remove(self, *names: str) -> None:
        """Unlink the files."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def sizes(self) -> dict[str, int]:
        """One look at each file."""
        try:
            with os.scandir(self.path) as found:
                return {entry.name: entry.stat().st_size for entry in found if entry.is_file()}
        except FileNotFoundError:
            return {}

    def remove_empty(self, name: str) -> None:
        """Remove it unless something is in it, or it is a link."""
        with contextlib.suppress(OSError):
            (self.path / name).rmdir()

    def has_below(self, name: str) -> bool:
        """Whether it is a folder that exists."""
        return (self.path / name).is_dir()

    def touch(self, name: str) -> None:
        """Set its time to now."""
        os.utime(self.path / name)

    def age(self, name: str) -> float:
        """Age by the file system's clock, which on a network is not this machine's."""
        then = (self.path / name).stat().st_mtime
        probe = atomic.part_of(self.path / "clock")
        probe.touch()
        try:
            return probe.stat().st_mtime - then
        finally:
            probe.unlink(missing_ok=True)


def at(place: "Path | Location") -> Location:
    """The location of a path; a location is returned unchanged."""
    return Disk(place) if isinstance(place, Path) else place
