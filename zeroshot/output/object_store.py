"""An output folder in an object store, or in another file system of fsspec that can share work.

An object is written whole or not at all, and can be created only if it does not exist (S3:
`If-None-Match: *`, Google: `ifGenerationMatch=0`, Azure: `If-None-Match`). Claims need no more.
Drivers without this condition are refused: most drivers of fsspec check first and write later, so
that two workers could both create the object.
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
from zeroshot.output import atomic
from zeroshot.output.filesystem import WORK, default_root

T = TypeVar("T")
TRIES = 3
"""Attempts to publish if no process succeeded: stores may refuse two that collide."""
SCRATCH_SECONDS = 7 * 86400.0
"""Unfinished rows of an abandoned run are removed after this time."""
_memory_lock = threading.Lock()
"""For memory://, whose driver checks first; only threads of one process share it."""


@dataclass(frozen=True)
class Bucket:
    """A folder such as `s3://bucket/folder`, without a slash at the end.

    Every error of a driver becomes an OutputError, except FileNotFoundError when reading.
    """

    address: str

    def __post_init__(self) -> None:
        """Check the address; UserError if it cannot be a folder."""
        scheme, _, path = self.address.partition("://")
        path = path.rstrip("/")
        object.__setattr__(self, "address", f"{scheme.lower()}://{path}")
        if URL.match(self.address):
            raise UserError(f"--out {self.address}: cannot write to a web address")
        if scheme.lower() in ("file", "local"):
            raise UserError(f"--out {self.address}: for this machine, give only the path")
        if "::" in self.address:
            raise UserError(
                f"--out {self.address}: chains of file systems ('::') are not supported"
            )
        if any(part in ("", ".", "..") for part in path.split("/")) or set(path) & set("*?[]#"):
            raise UserError(
                f"--out {self.address}: expected {scheme}://BUCKET/FOLDER/ with no part that is "
                "empty, '.' or '..', and none of * ? [ ] #"
            )

    def __str__(self) -> str:
        return self.address

    @property
    def shared(self) -> bool:
        """Whether other processes can see it."""
        return fsspec_files.scheme_of(self.address) != "memory"

    def begin(self) -> None:
        """Check that creating an object fails if the object exists.

        Raises:
            UserError: it does not fail, the driver gives no time of writing, or there is no bucket.
            NotAvailableError: no driver. OutputError: no credentials or no network.
        """
        try:
            system, path = self._reach(f"{WORK}/.{secrets.token_hex(8)}.probe")
            if not _creates(system):
                raise self._no_claims("cannot create an object only if it does not exist")
            try:
                system.pipe_file(path, b"first", mode="create")
                if not self._refuses_a_second(system, path):
                    raise self._no_claims("overwrites an object that it should only create")
                if fsspec_files.modified(system.info(path)) is None:
                    raise self._no_claims("does not say when an object was written")
            finally:
                _remove(system, path)
        except FileNotFoundError as error:
            raise UserError(
                f"cannot write to '{self}': {fsspec_files.why(error)}; does the bucket exist?"
            ) from error
        except ZeroshotError:
            raise
        except Exception as error:  # see `fsspec_files.failures`
            raise self._failed("write to", error) from error

    def _refuses_a_second(self, system: Any, path: str) -> bool:
        try:
            system.pipe_file(path, b"second", mode="create")
        except Exception:  # of many types: the content of the object decides
            return bytes(system.cat_file(path)) == b"first"
        return False

    def _no_claims(self, why: str) -> UserError:
        return UserError(
            f"cannot share work in '{self}': its driver {why}, so two workers might process the "
            "same shard; write to a disk and copy the finished shards, which never change"
        )

    def below(self, name: str) -> "Bucket":
        """A folder in this one."""
        return Bucket(f"{self.address}/{name}")

    def scratch(self, run: str) -> Path:
        """In the cache: this machine continues after the last batch, others repeat the shard."""
        return _scratch(self.address, run)

    def full(self, name: str) -> str:
        """The address of an object."""
        return f"{self.address}/{name}"

    def names(self) -> list[str]:
        """Names of the objects directly in the folder."""
        return list(self.sizes())

    def sizes(self) -> dict[str, int]:
        """The size of each object directly in the folder, from one listing."""

        def listed(system: Any, path: str) -> dict[str, int]:
            return {
                info["name"].rpartition("/")[2]: int(info.get("size") or 0)
                for info in system.ls(path, detail=True)
                if info["type"] == "file" and _inside(info["name"], path)
            }

        try:
            return self._call("list", listed)
        except FileNotFoundError:
            return {}

    def read(self, name: str) -> bytes:
        """The bytes of an object."""
        return self._call("read", lambda system, path: bytes(system.cat_file(path)), name)

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """Read all objects at once if the driver can."""

        def read(system: Any, path: str) -> list[Any]:
            paths = [f"{path}/{name}" for name in names]
            nothing = [None] * len(paths)
            return list(system.cat_ranges(paths, nothing, nothing, on_error="return"))

        contents = {}
        for name, data in zip(names, self._call("read", read) if names else [], strict=True):
            if isinstance(data, FileNotFoundError):
                continue
            if isinstance(data, Exception):
                raise self._failed("read", data) from data
            contents[name] = bytes(data)
        return contents

    def replace(self, name: str, data: bytes) -> None:
        """Put the object."""
        self._write(lambda system, path: system.pipe_file(path, data), name)

    def _write(self, put: Callable[[Any, str], T], name: str) -> None:
        try:
            self._call("write to", put, name)
        except FileNotFoundError as error:  # the bucket
            raise self._failed("write to", error) from error

    @contextlib.contextmanager
    def whole(self, name: str) -> Iterator[BinaryIO]:
        """A temporary file on this machine, which is put when the block is done."""
        local = atomic.part_of(Path(tempfile.gettempdir()) / "zeroshot-object")
        try:
            with open(local, "xb") as file:
                yield file
            self._write(lambda system, path: system.put_file(str(local), path), name)
        finally:
            local.unlink(missing_ok=True)

    def publish(self, name: str, data: bytes) -> bool:
        """Create the object if it does not exist.

        A failure may be a success whose answer was lost, so the content of the object decides.
        """
        for number in range(1, TRIES + 1):
            try:
                system, path = self._reach(name)
                with _memory_lock:
                    system.pipe_file(path, data, mode="create")
            except Exception as error:
                try:
                    return self.read(name) == data
                except FileNotFoundError:
                    if number == TRIES:
                        raise self._failed("write to", error) from error
                time.sleep(0.1 * number)
            else:
                return True
        raise AssertionError("unreachable")

    def remove(self, *names: str) -> None:
        """Remove objects."""
        if len(names) > 1:
            self._call("write to", lambda s, path: s.rm([f"{path}/{name}" for name in names]))
            return
        for name in names:
            self._call("write to", _remove, name)

    def remove_empty(self, name: str) -> None:
        """Does nothing: a store has no empty folders."""

    def has_below(self, name: str) -> bool:
        """Whether there is an object below a name."""
        return self._call("list", lambda system, path: bool(system.isdir(path)), name)

    def touch(self, name: str) -> None:
        """Put the object again."""
        self.replace(name, self.read(name))

    def age(self, name: str) -> float:
        """Age by the store's clock, which is the time of a new object."""
        then = self._modified(name)
        clock = f".{secrets.token_hex(8)}.clock"
        self.replace(clock, b"")
        try:
            return self._modified(clock) - then
        finally:
            self.remove(clock)

    def _modified(self, name: str) -> float:
        info = self._call("read", lambda system, path: system.info(path), name)
        if (then := fsspec_files.modified(info)) is None:
            raise self._no_claims("does not say when an object was written")
        return then

    def _reach(self, name: str = "") -> tuple[Any, str]:
        """The file system, without cached listings because others write here as well; the path."""
        address = f"{self.address}/{name}" if name else self.address
        return fsspec_files.connect(address, use_listings_cache=False)

    def _call(self, verb: str, function: Callable[[Any, str], T], name: str = "") -> T:
        system, path = self._reach(name)
        try:
            return function(system, path)
        except FileNotFoundError:
            raise
        except Exception as error:  # see `fsspec_files.failures`
            raise self._failed(verb, error) from error

    def _failed(self, verb: str, error: Exception) -> OutputError:
        if isinstance(error, OutputError):
            return error
        return OutputError(
            f"cannot {verb} '{self}': {fsspec_files.why(error)}; complete files are kept: check "
            "the credentials and the network, and run the same command again"
        )


def _creates(system: Any) -> bool:
    """Whether a driver has its own `pipe_file`: fsspec's checks first and writes later."""
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
    except Exception:  # some drivers raise other errors for a missing object
        if system.exists(path):
            raise


def _inside(name: str, folder: str) -> bool:
    return name.lstrip("/").startswith(folder.strip("/") + "/")


@functools.cache
def _scratch(address: str, run: str) -> Path:
    """A folder of this user for unfinished rows; a temporary one if the cache is not writable."""
    root = default_root() / "unfinished"
    folder = root / hashlib.sha256(f"{address}\n{run}".encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in root.iterdir():
            if old != folder and time.time() - old.stat().st_mtime > SCRATCH_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="zeroshot-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="zeroshot-"))
