"""Embeddings on disk, looked up by content: encoder name + kind + id (sha256) -> embedding.

Embeddings are float32 in append-only segment files. An SQLite index has the location and a checksum
of each. An embedding is first appended and synced, then indexed, in one transaction that also locks
out other writers. A crash in between leaves bytes without an index entry. Bytes that changed, are
missing or belong to another embedding fail the checksum. So an embedding may be missing but is
never wrong.

Segments are read and not memory-mapped, because truncating a mapped file kills the process.
"""

import contextlib
import errno
import hashlib
import itertools
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.cache.export import Verified, export, verify
from zeroshot.cache.index import (
    FULL,
    Index,
    StoredSegment,
    add_batch,
    forget,
    last_segment,
    new_segment,
    space_id,
    ways_out,
)
from zeroshot.cache.lookup import Digests
from zeroshot.cache.notes import OLD, notes_in, read_note, write_note
from zeroshot.cache.segments import (
    all_finite,
    append_vectors,
    checksums_of,
    read_vectors,
    segments_in,
)
from zeroshot.errors import NoCacheError, UserError
from zeroshot.inputs.local_files import open_file, settled, stamp_of
from zeroshot.output.filesystem import default_root

T = TypeVar("T")

INDEX = "index.sqlite"
JOURNALS = ("-journal", "-wal", "-shm")
"""Ends of the names of files that SQLite keeps beside an index."""
SEGMENTS = "segments"
NO_ROOM = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""Errors of a folder in which nothing can be stored, although its name is right."""
SEGMENT_BYTES = 256 << 20
"""A segment of this size is full; pruning frees whole segments."""


@dataclass(frozen=True)
class SpaceInfo:
    """The cache's content for one encoder and kind."""

    encoder: str
    kind: str
    rows: int
    dim: int
    bytes: int
    used: float
    """Time of last use in seconds since the epoch, rounded to hours."""


@dataclass(frozen=True)
class CacheInfo:
    """The content and size of a cache."""

    root: Path | None
    spaces: tuple[SpaceInfo, ...]
    files: int
    """Number of files whose hash is stored."""
    bytes: int
    """Size on disk, including the index."""


def erase(root: Path | None = None) -> None:
    """Remove a cache without opening it, so also a damaged one. Other files in the folder stay."""
    root = root or default_root()
    index = [root / f"{INDEX}{end}" for end in ("", *JOURNALS)]
    for path in [*index, *segments_in(root / SEGMENTS), *notes_in(root)]:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            why = error.strerror or error
            raise UserError(
                f"cannot remove '{path}' of the cache ({why}); remove it yourself"
            ) from error


def _stat(path: Path | str) -> os.stat_result:
    """As `os.stat`, but raises OSError also for a path with a null byte."""
    try:
        return os.stat(path)
    except ValueError as error:
        raise FileNotFoundError(errno.ENOENT, str(error)) from error


def hash_file(path: Path | str) -> str:
    """sha256 of a file's bytes in hexadecimal; OSError as from `open`, also for a pipe."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    """Size in bytes; 0 if there is no file."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


class EmbeddingCache:
    """Embeddings by encoder name, kind and content id. Threads and processes may share one cache.

    After a failed write (full disk, read-only folder) the cache still reads but writes no more, and
    `write_error` has the reason to show to the user. A damaged index is a UserError, a folder in
    which no cache can be created a NoCacheError (`open_cache`).
    """

    is_closed = False

    def __init__(self, root: Path | None = None, *, optional: bool = True) -> None:
        """Open or create the cache; one that is `optional` can be left out with `--no-cache`."""
        self.root = root or default_root()
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            kind = NoCacheError if error.errno in NO_ROOM else UserError
            advice = ways_out("choose another folder with ZEROSHOT_CACHE", optional=optional)
            raise kind(
                f"cannot create a cache in '{self.root}' ({error.strerror}); {advice}"
            ) from error
        self._index = Index(self.root / INDEX, optional=optional)

    @property
    def write_error(self) -> str | None:
        """Why the cache writes no more; None while it works."""
        return self._index.write_error

    @property
    def _folder(self) -> Path:
        return self.root / SEGMENTS

    def file_id(self, path: Path | str) -> str:
        """sha256 of a file's bytes; an unchanged file (size, times, inode) is not read again.

        Raises OSError as `open` does.
        """
        name = os.fsencode(os.path.abspath(path))
        status = _stat(path)
        stamp = stamp_of(status)
        known = self._index.file_id(name, stamp)
        if known is not None:
            return known
        is_settled = settled(status)
        id = hash_file(path)  # if the file changes now, its stamp changes as well
        if is_settled:
            self._index.remember(name, stamp, id)
        return id

    def file_ids(self, paths: Sequence[Path | str]) -> list[str | None]:
        """`file_id` of each path, with one lookup for all stored ids; None if there is no file."""
        names = [os.fsencode(os.path.abspath(path)) for path in paths]
        known = self._index.file_ids(names)
        ids: list[str | None] = []
        for path, name in zip(paths, names, strict=True):
            try:
                stamp, id = known.get(name, (None, None))
                if stamp is None or stamp != stamp_of(os.stat(path)):
                    id = self.file_id(path)
            except (OSError, ValueError):
                id = None
            ids.append(id)
        return ids

    def blob_id(self, stamp: str) -> str | None:
        """sha256 of the bytes with this stamp (`images.Blob`), if `remember_blob` stored it."""
        location, _, state = stamp.rpartition("\0")
        return self._index.file_id(os.fsencode(location), state)

    def remember_blob(self, stamp: str, id: str) -> None:
        """Store the id of bytes; their stamp must be taken before they are read."""
        location, _, state = stamp.rpartition("\0")
        self._index.remember(os.fsencode(location), state, id)

    def note(self, *key: object) -> Any:
        """The value that `write_note` stored for this key, of JSON; None if there is none."""
        return read_note(self.root, *key)

    def write_note(self, value: object, *key: object) -> None:
        """Store a small value, of JSON, for this key, unless the cache writes no more."""
        if self.write_error is None:
            write_note(self.root, value, *key)

    def get(
        self, encoder: str, kind: str, ids: Sequence[str]
    ) -> tuple[Float[Tensor, "m d"], Bool[Tensor, " n"]]:
        """The stored embeddings in the order of `ids`, and a mask of the ids that have one.

        `d` is 0 if there are none of this encoder and kind.
        """
        digests = Digests.from_ids(ids)
        entries = self._index.entries(encoder, kind, digests.keys)
        if entries is None:
            return torch.empty(0, 0), torch.zeros(len(ids), dtype=torch.bool)
        locations = entries.locations
        order = np.lexsort((locations.indices, locations.segments))  # their order in the files
        order = order[locations.segments[order] >= 0]
        vectors = np.zeros((len(order), entries.dim), dtype=np.float32)
        segments = locations.segments[order]
        breaks = (np.diff(segments).nonzero()[0] + 1).tolist()
        for first, end in itertools.pairwise([0, *breaks, len(order)] if len(order) else [0]):
            file = self._folder / entries.names.get(int(segments[first]), "missing")
            read_vectors(file, locations.indices[order[first:end]], vectors[first:end])
        valid = checksums_of(digests.seeds[order], vectors) == locations.checksums[order]
        self._index.touch(np.unique(segments).tolist())
        hits = np.zeros(len(ids), dtype=bool)
        hits[order[valid]] = True
        if not (valid.all() and (np.diff(order) > 0).all()):
            vectors = vectors[valid.nonzero()[0][np.argsort(order[valid])]]
        return torch.from_numpy(vectors), torch.from_numpy(hits)

    def put(self, encoder: str, kind: str, ids: Sequence[str], rows: Float[Tensor, "n d"]) -> None:
        """Store embeddings as float32, durably: they survive a crash after this returns.

        The embedding of a known id is replaced.

        Raises:
            UserError: the encoder's earlier embeddings have another width.
            ValueError: a number is not finite.
        """
        if len(ids) != len(rows):
            raise ValueError(f"{len(ids)} ids for {len(rows)} embeddings")
        values = np.ascontiguousarray(rows.detach().float().cpu().numpy())
        if not all_finite(values):
            raise ValueError(f"encoder '{encoder}' gave embeddings that are not finite")

        digests = Digests.from_ids(ids)
        checksums = checksums_of(digests.seeds, values)

        def change(db: sqlite3.Connection) -> None:
            space = space_id(db, encoder, kind, values.shape[1])
            segment, name = self._segment(db, space)
            first = append_vectors(self._folder / name, values)
            add_batch(db, space, segment, first, ids, digests, checksums)
            self._index.save_hashes(db)

        if ids:
            self._index.write(change)

    def _segment(self, db: sqlite3.Connection, space: int) -> tuple[int, str]:
        """Id and name of the segment for the next embeddings of this space."""
        last = last_segment(db, space)
        if last is not None and _size(self._folder / last[1]) < SEGMENT_BYTES:
            return last
        return new_segment(db, space)

    def __call__(
        self,
        encode: Callable[[Sequence[T]], Tensor],
        items: Sequence[T],
        *,
        ids: Sequence[str],
        encoder: str,
        kind: str,
        batch_size: int = 256,
        expect: Callable[[int], object] = bool,
    ) -> Float[Tensor, "n d"]:
        """The embedding of each item, from the cache or encoded (each id once) and then stored.

        `ids` are the content ids of the items. Each batch is stored at once, so that a call can
        continue after an interruption. `expect` is called with the number of items to encode.
        """
        if len(items) != len(ids):
            raise ValueError(f"{len(ids)} ids for {len(items)} items")
        stored, hits = self.get(encoder, kind, ids)
        missing = {
            id: item for id, item, hit in zip(ids, items, hits.tolist(), strict=True) if not hit
        }
        if not missing:
            return stored
        expect(len(missing))
        fresh = []
        names = list(missing)
        for start in range(0, len(names), batch_size):
            batch = names[start : start + batch_size]
            fresh.append(encode([missing[id] for id in batch]).detach().float().cpu())
            self.put(encoder, kind, batch, fresh[-1])
        number = {id: i for i, id in enumerate(names)}
        encoded = torch.cat(fresh)
        out = encoded.new_empty(len(ids), encoded.shape[1])
        out[hits] = stored if len(stored) else out[hits]
        out[~hits] = encoded[[number[id] for id in ids if id in number]]
        return out

    def info(self) -> CacheInfo:
        """The content by encoder and kind, and its size."""
        segments, infos = self._index.segments(), []
        for id, encoder, kind, dim in self._index.spaces():
            own = [segment for segment in segments if segment.space == id]
            size = sum(_size(self._folder / segment.name) for segment in own)
            used = max((segment.used for segment in own), default=0)
            infos.append(SpaceInfo(encoder, kind, self._index.count(id), dim, size, used))
        size = _size(self.root / INDEX) + sum(info.bytes for info in infos)
        return CacheInfo(self.root, tuple(infos), self._index.number_of_files(), size)

    def verify(self) -> Verified:
        """Read and check every embedding; other processes may read and write meanwhile."""
        return verify(self._index, self._folder)

    def export(self, target: Path, encoder: str, kind: str, *, half: bool = False) -> int:
        """Write all embeddings of an encoder and kind to a file: see `export.export`."""
        return export(self._index, self._folder, target, encoder, kind, half=half)

    def prune(
        self,
        *,
        encoder: str | None = None,
        older_than_days: float | None = None,
        max_bytes: int | None = None,
    ) -> int:
        """Remove whole segments; returns the bytes freed. Others may read and write meanwhile.

        Removes segments of `encoder` that were not used for `older_than_days` (both conditions if
        both are given), then the least recently used ones until at most `max_bytes` remain. Always
        removes segments without an index entry and hashes of files that do not exist any more. On a
        full disk the segments are removed before their entries.
        """
        before = self._segment_bytes()

        def chosen() -> list[StoredSegment]:
            return self._chosen(encoder, older_than_days, max_bytes)

        self._index.write(lambda db: forget(db, chosen()))
        if self._index.is_full:
            removed = chosen()
            for segment in removed:
                self._remove(segment.name)
            self._index.write_in_place(lambda db: forget(db, removed))
        self._index.write(lambda _: self._sweep())
        if self.write_error is not None:
            raise UserError(self.write_error)
        self._index.compact()
        return before - self._segment_bytes()

    def _chosen(
        self, encoder: str | None, older_than_days: float | None, max_bytes: int | None
    ) -> list[StoredSegment]:
        """The segments to remove."""
        encoders = {id: name for id, name, _, _ in self._index.spaces()}
        oldest = None if older_than_days is None else time.time() - older_than_days * 86400
        total = 0
        removed = []
        for segment in self._index.segments():
            chosen = (encoder is not None or oldest is not None) and (
                encoder in (None, encoders.get(segment.space))
                and (oldest is None or segment.used < oldest)
            )
            size = _size(self._folder / segment.name)
            if chosen or (max_bytes is not None and total + size > max_bytes):
                removed.append(segment)
            else:
                total += size
        return removed

    def _sweep(self) -> None:
        """Remove segment files without an index entry, and old notes.

        A transaction must block new segments.
        """
        known = {segment.name for segment in self._index.segments()}
        for path in segments_in(self._folder):
            if path.name not in known:
                self._remove(path.name)
        for path in notes_in(self.root, OLD):
            with contextlib.suppress(OSError):
                path.unlink()

    def _remove(self, segment: str) -> None:
        with contextlib.suppress(OSError):  # on Windows an open file stays until the next sweep
            (self._folder / segment).unlink()

    def _segment_bytes(self) -> int:
        return sum(_size(path) for path in segments_in(self._folder))

    def close(self) -> None:
        """Save the hashes of files and close the index."""
        self.is_closed = True
        self._index.close()

    def __enter__(self) -> "EmbeddingCache":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class NullCache(EmbeddingCache):
    """A cache that stores nothing and touches no disk: `--no-cache`."""

    def __init__(self, reason: str | None = None) -> None:
        """Open nothing; `reason` says why, if nobody asked for it."""
        self._reason = reason

    @property
    def write_error(self) -> str | None:
        """Why nothing is written, if nobody asked for it."""
        return self._reason

    def file_id(self, path: Path | str) -> str:
        """sha256 of the file's bytes, computed on every call."""
        return hash_file(path)

    def file_ids(self, paths: Sequence[Path | str]) -> list[str | None]:
        """`file_id` of each path; None if it cannot be read."""
        ids: list[str | None] = []
        for path in paths:
            try:
                ids.append(hash_file(path))
            except (OSError, ValueError):
                ids.append(None)
        return ids

    def blob_id(self, stamp: str) -> str | None:
        """None: no id is stored."""
        return None

    def remember_blob(self, stamp: str, id: str) -> None:
        """Store nothing."""

    def note(self, *key: object) -> Any:
        """None: no value is stored."""
        return None

    def write_note(self, value: object, *key: object) -> None:
        """Store nothing."""

    def get(
        self, encoder: str, kind: str, ids: Sequence[str]
    ) -> tuple[Float[Tensor, "m d"], Bool[Tensor, " n"]]:
        """No embeddings."""
        return torch.empty(0, 0), torch.zeros(len(ids), dtype=torch.bool)

    def put(self, encoder: str, kind: str, ids: Sequence[str], rows: Float[Tensor, "n d"]) -> None:
        """Store nothing."""

    def info(self) -> CacheInfo:
        """An empty cache."""
        return CacheInfo(None, (), 0, 0)

    def verify(self) -> Verified:
        """Nothing to check."""
        return Verified((), (), ())

    def export(self, target: Path, encoder: str, kind: str, *, half: bool = False) -> int:
        """UserError: there is nothing to export."""
        raise UserError("this cache has nothing to export")

    def prune(
        self,
        *,
        encoder: str | None = None,
        older_than_days: float | None = None,
        max_bytes: int | None = None,
    ) -> int:
        """Nothing to free."""
        return 0

    def close(self) -> None:
        """Close nothing."""


def open_cache(wanted: bool = True) -> EmbeddingCache:
    """The user's cache; a `NullCache` if it is not wanted, or if no cache can be created.

    Then `write_error` says why.
    """
    if not wanted:
        return NullCache()
    try:
        return EmbeddingCache()
    except NoCacheError as error:
        return NullCache(f"warning: nothing was kept for the next run: {error}")
