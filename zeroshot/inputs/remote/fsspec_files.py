"""Files wherever they lie: on this machine, or behind any file system that fsspec knows.

`s3://bucket/x`, `gs://bucket/x`, `memory://x`: what a driver needs to be told (keys, end points) it
takes from its own environment variables and from fsspec's configuration.
"""

import io
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from zeroshot.errors import NotAvailableError, UnreadableImageError, UserError
from zeroshot.inputs import local_files
from zeroshot.inputs.remote import cached_files
from zeroshot.inputs.source import MAX_BYTES, PICTURES, SCHEME, URL, File
from zeroshot.packaging.extras import how_to_install

BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "hf"}
"""Object stores: what a manifest may name as well. Other file systems only a person names."""
STATES = (
    *("ETag", "etag", "md5Hash", "md5", "generation", "version_id"),
    *("mtime", "updated", "LastModified", "last_modified", "modified"),
)
"""What drivers say of a file that changes when its bytes do."""
TIMES = ("LastModified", "last_modified", "modified", "updated", "mtime", "created")
"""Under what name drivers say when a file was written; the first that there is."""


def is_remote(name: str) -> bool:
    """Whether this is no path of this machine and no web address."""
    return SCHEME.match(name) is not None and not URL.match(name)


def asks_the_network(name: str) -> bool:
    """Whether a remote name may lead off this machine."""
    return scheme_of(name) not in ("memory", "local")


def scheme_of(name: str) -> str:
    """`s3` of `s3://bucket/x`."""
    return name.partition("://")[0].lower()


def connect(name: str, **options: Any) -> tuple[Any, str]:
    """The file system of a name, and the path in it; `options` are for its driver.

    Raises:
        NotAvailableError: its driver is not installed. UserError: there is no such file system.
    """
    scheme = scheme_of(name)
    if "::" in name:
        raise UserError(f"'{name}': one file system at a time, not a chain of them by '::'")
    try:
        import fsspec
    except ImportError as error:
        raise NotAvailableError(f"'{scheme}://' needs fsspec: {how_to_install('data')}") from error
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(name, **options)
        return found
    except ImportError as error:
        raise NotAvailableError(
            f"'{name}': {error}; 'pip install' the driver of '{scheme}://' beside zeroshot"
        ) from error
    except ValueError as error:
        known = ", ".join(sorted(fsspec.available_protocols()))
        raise UserError(f"'{name}': {error}; known: {known}") from error


def open_file(name: str) -> File:
    """A file, to be read and sought in; OSError, or what the driver raises."""
    if (copy := _held.get(name)) is not None:
        return io.BufferedReader(cached_files.Reader(copy))
    if is_remote(name):
        system, path = connect(name)
        remote: File = system.open(path, "rb")
        return remote
    if not stat.S_ISREG(os.stat(name).st_mode):
        raise OSError(f"'{name}' is no regular file")
    return open(name, "rb")


def read_range(name: str, start: int, size: int) -> bytes:
    """`size` bytes from `start` on, or what there is of them."""
    if (copy := _held.get(name)) is not None:
        return copy.read(start, size)
    if is_remote(name):
        system, path = connect(name)
        return bytes(system.cat_file(path, start=start, end=start + size))
    with open(name, "rb") as file:
        file.seek(start)
        return file.read(size)


def state_of(name: str) -> str | None:
    """Changes when the file does; None where nothing says so, or where it changed just now."""
    if (copy := _held.get(name)) is not None:
        return copy.state
    if is_remote(name):
        system, path = connect(name)
        return remote_state(system.info(path))
    found = os.stat(name)
    return local_files.stamp_of(found) if local_files.settled(found) else None


def remote_state(info: Mapping[str, Any]) -> str | None:
    """As `state_of`, of what a driver said of a file."""
    known = [f"{key} {info[key]}" for key in STATES if info.get(key) is not None]
    return " ".join([str(info.get("size")), *known]) if known else None


def modified(info: Mapping[str, Any]) -> float | None:
    """When a file was written, in seconds since 1970, of what a driver said of it."""
    said = next((info[key] for key in TIMES if info.get(key) is not None), None)
    if isinstance(said, int | float):
        return float(said)
    try:
        when = datetime.fromisoformat(said) if isinstance(said, str) else said
    except ValueError:
        return None
    if not isinstance(when, datetime):
        return None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def version_of(name: str) -> str:
    """Size and state of a file that is there, to tell whether it is the one of an earlier run.

    Of a local file, size and time of change: other machines may see other inodes.
    """
    if is_remote(name):
        return version(_info(*connect(name)))
    found = os.stat(name)
    return f"{found.st_size} mtime {found.st_mtime_ns}"


def version(info: Mapping[str, Any]) -> str:
    """As `version_of`, of what a driver said of a file."""
    return remote_state(info) or str(info.get("size"))


def _info(system: Any, path: str) -> Mapping[str, Any]:
    """What a driver says of a file now, whatever it remembers of a listing."""
    system.invalidate_cache(path)
    info: Mapping[str, Any] = system.info(path)
    return info


_held: dict[str, cached_files.RemoteCopy] = {}


def hold(name: str) -> str:
    """Have each part of a remote file fetched once, until it is let go; its `version_of`.

    Where there is no room for it, it is read as it would be.
    """
    if not is_remote(name):
        return version_of(name)
    system, path = connect(name)
    info = _info(system, path)
    size = info.get("size")
    if isinstance(size, int) and size <= min(cached_files.LARGEST, _room()):
        _held[name] = cached_files.RemoteCopy(system, path, size, remote_state(info))
    return version(info)


def release(name: str) -> None:
    """Forget what is held of a file."""
    _held.pop(name, None)


def is_held(name: str) -> bool:
    """Whether a remote file's bytes are here, or will be."""
    return name in _held


def _room() -> int:
    return shutil.disk_usage(tempfile.gettempdir()).free // 2


if hasattr(os, "register_at_fork"):  # a child's file would share its place with its parent's
    os.register_at_fork(after_in_child=_held.clear)


def failures(name: str) -> tuple[type[Exception], ...]:
    """What reading a file may raise: drivers raise whatever their libraries do."""
    return (Exception,) if is_remote(name) else (OSError, ValueError)


def why(error: Exception) -> str:
    """An error of a driver or of the system in one line."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split())[:200] or type(error).__name__


@dataclass(frozen=True, slots=True)
class Remote:
    """A picture that is a file of a remote file system; `state` as it was listed."""

    name: str
    state: str | None = None

    @property
    def stamp(self) -> str | None:
        """Place and state; None where the driver says nothing of a state."""
        return None if self.state is None else f"{self.name}\0\0{self.state}"

    def read(self) -> bytes:
        """The bytes; UnreadableImageError with the reason."""
        try:
            with open_file(self.name) as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            raise UnreadableImageError("no such file") from None
        except Exception as error:  # see `failures`
            raise UnreadableImageError(f"cannot be read: {why(error)}") from error
        if len(data) > MAX_BYTES:
            raise UnreadableImageError(f"larger than {MAX_BYTES >> 20} MiB")
        return data


def listed(
    name: str, also: str = "", suffixes: re.Pattern[str] = PICTURES
) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """Files that a remote folder, pattern or file stands for, and those left out.

    With what the driver says of each; of a file that is not there, nothing.

    Raises:
        UserError: none are there. NotAvailableError: the driver is absent or its service fails.
    """
    system, path = connect(name)
    pattern = any(sign in path for sign in "*?[")
    try:
        if pattern:
            found = system.glob(path, detail=True)
        elif system.isdir(path):
            found = system.find(path, detail=True)
        else:
            return {name: _said(system, path)}, []
    except Exception as error:  # as above
        raise NotAvailableError(f"cannot list '{name}': {why(error)}") from error
    scheme = scheme_of(name)
    infos = {
        f"{scheme}://{there.lstrip('/')}": info
        for there, info in found.items()
        if info.get("type") != "directory" and not _hidden(there, path)
    }
    kept, left_out = local_files.without_data(local_files.in_order(infos), also, suffixes)
    if not kept:
        raise local_files.nothing_in(name, "pattern" if pattern else "folder", left_out)
    return {file: infos[file] for file in kept}, left_out


def _said(system: Any, path: str) -> Mapping[str, Any]:
    """Of one file; nothing where it is not there either: reading it will say so."""
    try:
        info: Mapping[str, Any] = system.info(path)
    except FileNotFoundError:
        return {}
    return info


def _hidden(path: str, folder: str) -> bool:
    return any(part.startswith(".") for part in path.removeprefix(folder).split("/"))
