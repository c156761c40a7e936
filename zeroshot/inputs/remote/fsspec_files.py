"""Files on this machine or on any file system of fsspec: `s3://bucket/x`, `memory://x`.

A driver takes its settings (keys, end points) from its own environment variables and from fsspec's
configuration.
"""

import io
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from zeroshot.errors import NotAvailableError, UnreadableImageError, UserError
from zeroshot.inputs import local_files
from zeroshot.inputs.remote import cached_files
from zeroshot.inputs.remote.public_names import public
from zeroshot.inputs.source import MAX_BYTES, PICTURES, SCHEME, URL, File
from zeroshot.packaging.extras import how_to_install

BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "hf"}
"""Object stores, which a table may name. Other file systems can only be named by the user."""
STATES = (
    *("ETag", "etag", "md5Hash", "md5", "generation", "version_id"),
    *("mtime", "updated", "LastModified", "last_modified", "modified"),
)
"""Entries in a driver's information on a file that change when its bytes do."""
POINTER = b"version https://git-lfs"
"""Begins the text that Git LFS leaves in place of a file that it has not fetched."""
TIMES = ("LastModified", "last_modified", "modified", "updated", "mtime", "created")
"""Names under which drivers state when a file was written; the first one is used."""


def is_remote(name: str) -> bool:
    """Whether a name is neither a path of this machine nor a web address."""
    return SCHEME.match(name) is not None and not URL.match(name)


def asks_the_network(name: str) -> bool:
    """Whether reading a remote file uses the network."""
    return scheme_of(name) not in ("memory", "local")


def scheme_of(name: str) -> str:
    """`s3` of `s3://bucket/x`."""
    return name.partition("://")[0].lower()


def connect(name: str, **options: Any) -> tuple[Any, str]:
    """The file system of a name, and the path in it; `options` are for its driver.

    Raises:
        NotAvailableError: its driver is not installed, or cannot reach it.
        UserError: there is no such file system, or the name has a password.
    """
    scheme = scheme_of(name)
    if public(name) != name:
        raise UserError(
            f"'{public(name)}' has a password or a signature in its name, which rows and records "
            "would show; give it to the driver, in its environment variables or in fsspec's "
            "configuration"
        )
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
    except Exception as error:  # some drivers connect at once
        raise NotAvailableError(f"'{name}' cannot be reached: {why(error)}") from error


def open_file(name: str) -> File:
    """Open a file for reading and seeking. Raises OSError or the driver's errors."""
    if (copy := _copies.get(name)) is not None:
        return io.BufferedReader(cached_files.Reader(copy))
    if is_remote(name):
        system, path = connect(name)
        remote: File = system.open(path, "rb")
        return remote
    file = local_files.open_file(name)
    if isinstance(file, io.BufferedReader) and file.peek().startswith(POINTER):
        file.close()
        raise OSError("it is a Git LFS pointer; fetch the file with: git lfs pull")
    return file


def read_range(name: str, start: int, size: int) -> bytes:
    """At most `size` bytes from `start` on."""
    if (copy := _copies.get(name)) is not None:
        return copy.read(start, size)
    if is_remote(name):
        system, path = connect(name)
        return bytes(system.cat_file(path, start=start, end=start + size))
    with local_files.open_file(name) as file:
        file.seek(start)
        return file.read(size)


def state_of(name: str) -> str | None:
    """Changes when the file does. None if the driver does not tell, or if it changed just now."""
    if (copy := _copies.get(name)) is not None:
        return copy.state
    if is_remote(name):
        system, path = connect(name)
        return remote_state(system.info(path))
    info = os.stat(name)
    return local_files.stamp_of(info) if local_files.settled(info) else None


def remote_state(info: Mapping[str, Any]) -> str | None:
    """As `state_of`, from a driver's information on a file."""
    known = [f"{key} {info[key]}" for key in STATES if info.get(key) is not None]
    return " ".join([str(info.get("size")), *known]) if known else None


def modified(info: Mapping[str, Any]) -> float | None:
    """When a file was written, in seconds since 1970, from a driver's information on it."""
    time = next((info[key] for key in TIMES if info.get(key) is not None), None)
    if isinstance(time, int | float):
        return float(time)
    try:
        when = datetime.fromisoformat(time) if isinstance(time, str) else time
    except ValueError:
        return None
    if not isinstance(when, datetime):
        return None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def version_of(name: str) -> str:
    """Size and state of a file that exists, to recognize it in a later run.

    For a local file these are size and time of change, as other machines may see other inodes.
    """
    if is_remote(name):
        return version(_info(*connect(name)))
    info = os.stat(name)
    return f"{info.st_size} mtime {info.st_mtime_ns}"


def version(info: Mapping[str, Any]) -> str:
    """As `version_of`, from a driver's information on a file."""
    return remote_state(info) or str(info.get("size"))


def _info(system: Any, path: str) -> Mapping[str, Any]:
    """A driver's information on a file now, not from its cache of a listing."""
    system.invalidate_cache(path)
    info: Mapping[str, Any] = system.info(path)
    return info


_copies: dict[str, cached_files.RemoteCopy] = {}


def hold(name: str) -> str:
    """Fetch each block of a remote file once, until `release`; returns its `version_of`.

    Without room on the disk for a copy, the file is read through the driver.
    """
    if not is_remote(name):
        return version_of(name)
    system, path = connect(name)
    info = _info(system, path)
    size = info.get("size")
    if isinstance(size, int) and size <= min(cached_files.LARGEST, _room()):
        _copies[name] = cached_files.RemoteCopy(system, path, size, remote_state(info))
    return version(info)


def release(name: str) -> None:
    """Delete the copy of a file."""
    _copies.pop(name, None)


def has_copy(name: str) -> bool:
    """Whether this process has a copy of a remote file."""
    return name in _copies


def _room() -> int:
    return shutil.disk_usage(tempfile.gettempdir()).free // 2


if hasattr(os, "register_at_fork"):  # a child's file would share its place with its parent's
    os.register_at_fork(after_in_child=_copies.clear)


def failures(name: str) -> tuple[type[Exception], ...]:
    """The exceptions of reading a file: drivers pass on those of their libraries."""
    return (Exception,) if is_remote(name) else (OSError, ValueError)


def why(error: Exception) -> str:
    """The message of an error in one line."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(message.split())[:200] or type(error).__name__


@dataclass(frozen=True, slots=True)
class Remote:
    """An image file of a remote file system, and its state when it was listed."""

    name: str
    state: str | None = None

    @property
    def stamp(self) -> str | None:
        """Name and state; None if the driver does not tell a state."""
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
    """The files of a remote folder, a pattern or one file, and the names of those left out.

    Each comes with the driver's information, which is empty for a file that does not exist.

    Raises:
        UserError: there are none. NotAvailableError: the driver is absent or its service fails.
    """
    system, path = connect(name)
    pattern = any(sign in path for sign in "*?[")
    try:
        if pattern:
            found = system.glob(path, detail=True)
        elif system.isdir(path):
            found = system.find(path, detail=True)
        else:
            return {name: _info_or_nothing(system, path)}, []
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


def _info_or_nothing(system: Any, path: str) -> Mapping[str, Any]:
    """Information on one file; empty if it does not exist, which reading it will report."""
    try:
        info: Mapping[str, Any] = system.info(path)
    except FileNotFoundError:
        return {}
    return info


def _hidden(path: str, folder: str) -> bool:
    return any(map(local_files.is_hidden, path.removeprefix(folder).split("/")))
