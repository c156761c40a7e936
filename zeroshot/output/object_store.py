"""A folder in an object store, or in any other file system of fsspec that can share work.

Objects are put whole or not at all, and can be put on the condition that there is none of that name
(S3: `If-None-Match: *`, Google: `ifGenerationMatch=0`, Azure: `If-None-Match`). That is all that
claims need. Drivers that do not put that condition are refused: most of fsspec's look first and
write then, between which two workers fit.
"""

import contextlib
import functools
import hashlib
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from zeroshot.errors import OutputError, UserError, ZeroshotError
from zeroshot.inputs.remote import fsspec_files
from zeroshot.inputs.source import URL
from zeroshot.output.filesystem import WORK, default_root

T = TypeVar("T")
TRIES = 3
"""To publish, where neither we nor anybody else succeeded: stores answer so when two collide."""
KEPT = 7 * 86400.0
"""Seconds after which unfinished rows of a run that was given up are removed."""
_alone = threading.Lock()
"""Of memory://, whose driver looks first; only threads of one process meet there."""


@dataclass(frozen=True)
class Bucket:
    """`s3://bucket/folder` and the like, without a slash at its end.

    Whatever a driver raises is an OutputError, except for FileNotFoundError where one reads.
    """

    address: str

    def __post_init__(self) -> None:
        """UserError: no name for a folder."""
        scheme, _, path = self.address.partition("://")
        path = path.rstrip("/")
        object.__setattr__(self, "address", f"{scheme.lower()}://{path}")
        if URL.match(self.address):
            raise UserError(f"--out {self.address}: a web address is not written to")
        if scheme.lower() in ("file", "local"):
            raise UserError(f"--out {self.address}: of this machine, give the path alone")
        if "::" in self.address:
            raise UserError(f"--out {self.address}: one file system, not a chain of them by '::'")
        if any(part in ("", ".", "..") for part in path.split("/")) or set(path) & set("*?[]#"):
            raise UserError(
                f"--out {self.address}: expected {scheme}://BUCKET/FOLDER/ with no part that is "
                "empty, '.' or '..', and none of * ? [ ] #"
            )

    def __str__(self) -> str:
        return self.address

    @property
    def shared(self) -> bool:
        """Whether other processes see it."""
        return fsspec_files.scheme_of(self.address) != "memory"

    def begin(self) -> None:
        """See that an object that is there is not written over by who wants to create it.

        Raises:
            UserError: it is, or nothing says when an object was written; or there is no bucket.
            NotAvailableError: no driver. OutputError: no credentials, no network.
        """
        try:
            system, path = self._reach(f"{WORK}/.{secrets.token_hex(8)}.probe")
            if not _creates(system):
                raise self._no_claims("cannot create an object on condition that there is none")
            try:
                system.pipe_file(path, b"first", mode="create")
                if not self._refuses_a_second(system, path):
                    raise self._no_claims("writes over an object that it was told only to create")
                if fsspec_files.modified(system.info(path)) is None:
                    raise self._no_claims("does not say when an object was written")
            finally:
                _remove(system, path)
        except FileNotFoundError as error:
            raise UserError(
                f"cannot write to '{self}': {fsspec_files.why(error)}; is there such a bucket?"
            ) from error
        except ZeroshotError:
            raise
        except Exception as error:  # drivers raise whatever their libraries do
            raise self._stopped("write to", error) from error

    def _refuses_a_second(self, system: Any, path: str) -> bool:
        try:
            system.pipe_file(path, b"second", mode="create")
        except Exception:  # of many kinds: what counts is what is there
            return bytes(system.cat_file(path)) == b"first"
        return False

    def _no_claims(self, why: str) -> UserError:
        return UserError(
            f"cannot share work in '{self}': its driver {why}, so that two workers might make one "
            "shard; write to a disk and copy the finished shards, which never change"
        )

    def below(self, name: str) -> "Bucket":
        """A folder in this one."""
        return Bucket(f"{self.address}/{name}")

    def scratch(self, run: str) -> Path:
        """In the cache: the same machine goes on behind the last batch, another with the shard."""
        return _scratch(self.address, run)

    def full(self, name: str) -> str:
        """Its address."""
        return f"{self.address}/{name}"

    def names(self) -> list[str]:
        """Of objects with no further slash."""

        def listed(system: Any, path: str) -> list[str]:
            return [
                info["name"].rpartition("/")[2]
                for info in system.ls(path, detail=True)
                if info["type"] == "file" and _inside(info["name"], path)
            ]

        try:
            return self._ask("list", listed)
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        """A whole object."""
        return self._ask("read", lambda system, path: bytes(system.cat_file(path)), name)

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """Many at once, where the driver can."""

        def read(system: Any, path: str) -> list[Any]:
            paths = [f"{path}/{name}" for name in names]
            nothing = [None] * len(paths)
            return list(system.cat_ranges(paths, nothing, nothing, on_error="return"))

        held = {}
        for name, data in zip(names, self._ask("read", read) if names else [], strict=True):
            if isinstance(data, FileNotFoundError):
                continue
            if isinstance(data, Exception):
                raise self._stopped("read", data) from data
            held[name] = bytes(data)
        return held

    def replace(self, name: str, data: bytes) -> None:
        """Put it."""
        try:
            self._ask("write to", lambda system, path: system.pipe_file(path, data), name)
        except FileNotFoundError as error:  # the bucket
            raise self._stopped("write to", error) from error

    @contextlib.contextmanager
    def whole(self, name: str) -> Iterator[BinaryIO]:
        """A temporary file of this machine, put once the block is done."""
        with tempfile.TemporaryDirectory(prefix="zeroshot-") as folder:
            made = os.path.join(folder, "made")
            with open(made, "xb") as file:
                yield file
            try:
                self._ask("write to", lambda system, path: system.put_file(made, path), name)
            except FileNotFoundError as error:  # the bucket
                raise self._stopped("write to", error) from error

    def publish(self, name: str, data: bytes) -> bool:
        """Put it on condition that there is none.

        A refusal may follow from a success whose answer was lost, so what is there decides.
        """
        for number in range(1, TRIES + 1):
            try:
                system, path = self._reach(name)
                with _alone:
                    system.pipe_file(path, data, mode="create")
            except Exception as error:
                try:
                    return self.read(name) == data
                except FileNotFoundError:
                    if number == TRIES:
                        raise self._stopped("write to", error) from error
                time.sleep(0.1 * number)
            else:
                return True
        raise AssertionError("unreachable")

    def remove(self, *names: str) -> None:
        """Remove objects."""
        if len(names) > 1:
            self._ask("write to", lambda s, path: s.rm([f"{path}/{name}" for name in names]))
            return
        for name in names:
            self._ask("write to", _remove, name)

    def remove_below(self, name: str) -> None:
        """All objects whose names begin so."""

        def remove(system: Any, path: str) -> None:
            if found := system.find(path):
                system.rm(found)

        self._ask("write to", remove, name)

    def has_below(self, name: str) -> bool:
        """Whether there is an object whose name begins so."""
        return self._ask("list", lambda system, path: bool(system.isdir(path)), name)

    def touch(self, name: str) -> None:
        """Put it again."""
        self.replace(name, self.read(name))

    def age(self, name: str) -> float:
        """By the store's clock, which a new object tells."""
        then = self._modified(name)
        clock = f".{secrets.token_hex(8)}.clock"
        self.replace(clock, b"")
        try:
            return self._modified(clock) - then
        finally:
            self.remove(clock)

    def _modified(self, name: str) -> float:
        info = self._ask("read", lambda system, path: system.info(path), name)
        if (then := fsspec_files.modified(info)) is None:
            raise self._no_claims("does not say when an object was written")
        return then

    def _reach(self, name: str = "") -> tuple[Any, str]:
        """The file system, which remembers no listing: others write here as well; and the path."""
        address = f"{self.address}/{name}" if name else self.address
        return fsspec_files.connect(address, use_listings_cache=False)

    def _ask(self, verb: str, what: Callable[[Any, str], T], name: str = "") -> T:
        system, path = self._reach(name)
        try:
            return what(system, path)
        except FileNotFoundError:
            raise
        except Exception as error:  # see `storage.failures`
            raise self._stopped(verb, error) from error

    def _stopped(self, verb: str, error: Exception) -> OutputError:
        if isinstance(error, OutputError):
            return error
        return OutputError(
            f"cannot {verb} '{self}': {fsspec_files.why(error)}; what is complete there stays: "
            "check its credentials and the network, and run the same command again"
        )


def _creates(system: Any) -> bool:
    """Whether a driver has a `pipe_file` of its own: that of fsspec looks first and writes then."""
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

    theirs = (AbstractFileSystem.pipe_file, AsyncFileSystem._pipe_file)
    own = (getattr(type(system), name, None) for name in ("_pipe_file", "pipe_file"))
    return any(put is not None and put not in theirs for put in own)


def _remove(system: Any, path: str) -> None:
    try:
        system.rm_file(path)
    except FileNotFoundError:
        return
    except Exception:  # some drivers say it in other words
        if system.exists(path):
            raise


def _inside(name: str, folder: str) -> bool:
    return name.lstrip("/").startswith(folder.strip("/") + "/")


@functools.cache
def _scratch(address: str, run: str) -> Path:
    """A folder of this user for what a run has not finished; a temporary one if need be."""
    root = default_root() / "unfinished"
    folder = root / hashlib.sha256(f"{address}\n{run}".encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in root.iterdir():
            if old != folder and time.time() - old.stat().st_mtime > KEPT:
                shutil.rmtree(old, ignore_errors=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="zeroshot-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="zeroshot-"))
