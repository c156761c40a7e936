"""Where the files of an output folder are: on this machine, or in an object store (`buckets`).

What both can do is little: files are written whole, one can be published that only one process
gets to make, and each has an age. Nothing is appended and nothing is renamed.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import platformdirs

from zeroshot.output import atomic

WORK = ".work"
"""Of claims, and on this machine of unfinished rows."""


def default_root() -> Path:
    """`$ZEROSHOT_CACHE`, else the platform's cache folder of the user."""
    return Path(os.environ.get("ZEROSHOT_CACHE") or platformdirs.user_cache_dir("zeroshot"))


@runtime_checkable
class Location(Protocol):
    """A folder of files that several processes share; a name may lead into a folder below.

    What cannot be written is an OSError or an OutputError. Small and picklable.
    """

    def begin(self) -> None:
        """Make sure that files can be written and published here."""

    def below(self, name: str) -> "Location":
        """A folder in this one."""

    def scratch(self, run: str) -> Path:
        """Where, on this machine, what a run has not finished is appended to."""

    def full(self, name: str) -> str:
        """What a person calls a file."""

    def names(self) -> list[str]:
        """Of the files directly in it; none if there is no such folder."""

    def read(self, name: str) -> bytes:
        """A whole file; FileNotFoundError."""

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """Several, without those that are not there."""

    def replace(self, name: str, data: bytes) -> None:
        """Give a file new content: all of it, or none."""

    def whole(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to write to, however large, which is there once the block is done."""

    def publish(self, name: str, data: bytes) -> bool:
        """Make a file; False when somebody was first. Only one process ever hears True.

        What claims something must have bytes that nobody else would write.
        """

    def remove(self, *names: str) -> None:
        """Remove files, if they are there."""

    def remove_below(self, name: str) -> None:
        """Remove a folder in this one, if it is there."""

    def has_below(self, name: str) -> bool:
        """Whether there is such a folder."""

    def touch(self, name: str) -> None:
        """Make a file young; FileNotFoundError."""

    def age(self, name: str) -> float:
        """Seconds since it was written or touched, by the clock of the place; FileNotFoundError."""


@dataclass(frozen=True)
class Disk:
    """A folder of this machine, or of a network file system that it sees as one."""

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
        """In the folder, so that any machine goes on with it."""
        return self.path / WORK

    def full(self, name: str) -> str:
        """Its path."""
        return str(self.path / name)

    def names(self) -> list[str]:
        """Of files, hidden ones included."""
        try:
            with os.scandir(self.path) as found:
                return [entry.name for entry in found if entry.is_file()]
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        """A whole file."""
        return (self.path / name).read_bytes()

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """One after another."""
        held = {}
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                held[name] = self.read(name)
        return held

    def replace(self, name: str, data: bytes) -> None:
        """As `durable.replace`."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        atomic.replace(path, data)

    def whole(self, name: str) -> AbstractContextManager[BinaryIO]:
        """As `durable.whole`."""
        return atomic.whole(self.path / name)

    def publish(self, name: str, data: bytes) -> bool:
        """As `durable.publish`."""
        return atomic.publish(self.path / name, data)

    def remove(self, *names: str) -> None:
        """Unlink them."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def remove_below(self, name: str) -> None:
        """Remove the tree."""
        if self.has_below(name):
            shutil.rmtree(self.path / name)

    def has_below(self, name: str) -> bool:
        """Whether it is a folder."""
        return (self.path / name).is_dir()

    def touch(self, name: str) -> None:
        """Set its time to now."""
        os.utime(self.path / name)

    def age(self, name: str) -> float:
        """As the file system tells the time, which on a network is not this machine's."""
        then = (self.path / name).stat().st_mtime
        probe = self.path / f".{secrets.token_hex(8)}.clock"
        probe.touch()
        try:
            return probe.stat().st_mtime - then
        finally:
            probe.unlink(missing_ok=True)


def at(place: "Path | Location") -> Location:
    """The location of a path; a location as it is."""
    return Disk(place) if isinstance(place, Path) else place
