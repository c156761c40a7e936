"""Embeddings on disk, found again by content: encoder name + kind + id (sha256) -> a row.

Rows lie in append-only segment files, float32 one after another; an SQLite index says where, with
a checksum of each row. The index is what counts: a row is appended and synced first and indexed
afterwards, in one transaction that also keeps other writers out. A crash in between leaves bytes
that nobody refers to, and bytes that changed, went missing or belong to another row fail their
checksum: such a row is missing, never wrong.

Segments are read, not mapped, since a mapped file that somebody cuts short ends the process.
"""

import contextlib
import errno
import hashlib
import itertools
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.cache.export import Verified, export, verify
from zeroshot.cache.index import Index, add_batch, forget, last_segment, new_segment, space_id
from zeroshot.cache.lookup import Digests
from zeroshot.cache.segments import all_finite, append_rows, checksums_of, read_rows
from zeroshot.errors import UserError
from zeroshot.inputs.local_files import settled, stamp_of
from zeroshot.output.filesystem import default_root

T = TypeVar("T")

INDEX = "index.sqlite"
SEGMENTS = "segments"
SEGMENT_BYTES = 256 << 20
"""A segment that has grown to this takes no more rows; pruning frees whole segments."""


@dataclass(frozen=True)
class SpaceInfo:
    """What the cache holds of one encoder and kind."""

    encoder: str
    kind: str
    rows: int
    dim: int
    bytes: int
    used: float
    """Seconds since the epoch, to the hour."""


@dataclass(frozen=True)
class CacheInfo:
    """What the cache holds."""

    root: Path | None
    spaces: tuple[SpaceInfo, ...]
    files: int
    """Files whose hash is remembered."""
    bytes: int
    """On disk, index included."""


def erase(root: Path | None = None) -> None:
    """Remove a cache without opening it, damaged or not. Files that are not its own stay."""
    root = root or default_root()
    for path in [*root.glob(f"{INDEX}*"), *root.glob(f"{SEGMENTS}/*.f32")]:
        path.unlink(missing_ok=True)


def _stat(path: Path | str) -> os.stat_result:
    """As `os.stat`, with an OSError also for a path that no system takes."""
    try:
        return os.stat(path)
    except ValueError as error:  # a null byte
        raise FileNotFoundError(errno.ENOENT, str(error)) from error


def hash_file(path: Path | str) -> str:
    """sha256 of the file's bytes, in hexadecimal. OSError as `open` raises it, also for a pipe."""
    if not stat.S_ISREG(_stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    """In bytes; 0 for a file that is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


class EmbeddingCache:
    """Rows by encoder name, kind and content id. Several threads and processes may share one.

    `trouble` says why nothing more is kept (disk full, folder read-only), once that happened:
    reading goes on, and whoever prints should show it. A damaged index is a UserError.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"no cache can be kept in '{self.root}' ({error.strerror}); choose another "
                "folder with ZEROSHOT_CACHE, or go without (--no-cache)"
            ) from error
        self._index = Index(self.root / INDEX)

    @property
    def trouble(self) -> str | None:
        """Why nothing more is kept, if so."""
        return self._index.trouble

    @property
    def _folder(self) -> Path:
        return self.root / SEGMENTS

    def file_id(self, path: Path | str) -> str:
        """sha256 of a file's bytes; an unchanged file (size, times, inode) is not read again.

        Raises OSError as `open` does.
        """
        name = os.fsencode(os.path.abspath(path))
        found = _stat(path)
        stamp = stamp_of(found)
        known = self._index.hash_of(name, stamp)
        if known is not None:
            return known
        lasting = settled(found)
        id = hash_file(path)  # should the file change now, its stamp will be another one
        if lasting:
            self._index.remember(name, stamp, id)
        return id

    def file_ids(self, paths: Sequence[Path | str]) -> list[str | None]:
        """`file_id` of each path, those that are known looked up together; None for no file."""
        names = [os.fsencode(os.path.abspath(path)) for path in paths]
        known = self._index.hashes_of(names)
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
        """sha256 of the bytes that bore this stamp (`images.Blob`), if `remember_blob` noted it."""
        place, _, state = stamp.rpartition("\0")
        return self._index.hash_of(os.fsencode(place), state)

    def remember_blob(self, stamp: str, id: str) -> None:
        """Note the id of bytes that were read after their stamp was asked for."""
        place, _, state = stamp.rpartition("\0")
        self._index.remember(os.fsencode(place), state, id)

    def get(
        self, encoder: str, kind: str, ids: Sequence[str]
    ) -> tuple[Float[Tensor, "m d"], Bool[Tensor, " n"]]:
        """The rows that are held, in the order of `ids`, and which of `ids` they belong to.

        With nothing held yet under this encoder and kind, `d` is 0.
        """
        digests = Digests.of(ids)
        entries = self._index.entries(encoder, kind, digests.keys)
        if entries is None:
            return torch.empty(0, 0), torch.zeros(len(ids), dtype=torch.bool)
        found = entries.found
        order = np.lexsort((found.places, found.segments))  # as they lie in the files
        order = order[found.segments[order] >= 0]
        rows = np.zeros((len(order), entries.dim), dtype=np.float32)
        segments = found.segments[order]
        breaks = (np.diff(segments).nonzero()[0] + 1).tolist()
        for first, end in itertools.pairwise([0, *breaks, len(order)] if len(order) else [0]):
            name = entries.names.get(int(segments[first]), "gone")
            read_rows(self._folder / name, found.places[order[first:end]], rows[first:end])
        whole = checksums_of(digests.seeds[order], rows) == found.checksums[order]
        self._index.touch(np.unique(segments).tolist())
        hits = np.zeros(len(ids), dtype=bool)
        hits[order[whole]] = True
        if not (whole.all() and (np.diff(order) > 0).all()):
            rows = rows[whole.nonzero()[0][np.argsort(order[whole])]]
        return torch.from_numpy(rows), torch.from_numpy(hits)

    def put(self, encoder: str, kind: str, ids: Sequence[str], rows: Float[Tensor, "n d"]) -> None:
        """Keep finite rows, as float32; they outlive a crash once this returns.

        An id that is held already gets the new row. UserError when the encoder's earlier rows
        have another width.
        """
        if len(ids) != len(rows):
            raise ValueError(f"{len(ids)} ids for {len(rows)} rows")
        values = np.ascontiguousarray(rows.detach().float().cpu().numpy())
        if not all_finite(values):
            raise ValueError(f"encoder '{encoder}' gave rows that are not finite")

        digests = Digests.of(ids)
        checksums = checksums_of(digests.seeds, values)

        def change(db: sqlite3.Connection) -> None:
            space = space_id(db, encoder, kind, values.shape[1])
            segment, name = self._segment(db, space)
            first = append_rows(self._folder / name, values)
            add_batch(db, space, segment, first, ids, digests, checksums)
            self._index.save_hashes(db)

        if ids:
            self._index.write(change)

    def _segment(self, db: sqlite3.Connection, space: int) -> tuple[int, str]:
        """Id and name of the segment that takes the next rows of this space."""
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
    ) -> Float[Tensor, "n d"]:
        """The row of each item: held ones as they are, the others encoded (once each) and kept.

        `ids` name the items' contents. Batches are kept as they come, so that an interrupted call
        goes on where it was.
        """
        if len(items) != len(ids):
            raise ValueError(f"{len(ids)} ids for {len(items)} items")
        rows, found = self.get(encoder, kind, ids)
        hits = found.tolist()
        missing = {id: item for id, item, hit in zip(ids, items, hits, strict=True) if not hit}
        if not missing:
            return rows
        fresh = []
        names = list(missing)
        for start in range(0, len(names), batch_size):
            batch = names[start : start + batch_size]
            fresh.append(encode([missing[id] for id in batch]).detach().float().cpu())
            self.put(encoder, kind, batch, fresh[-1])
        number = {id: i for i, id in enumerate(names)}
        encoded = torch.cat(fresh)
        out = encoded.new_empty(len(ids), encoded.shape[1])
        out[found] = rows if len(rows) else out[found]
        out[~found] = encoded[[number[id] for id, hit in zip(ids, hits, strict=True) if not hit]]
        return out

    def info(self) -> CacheInfo:
        """What is held, by encoder and kind, and how much room it takes."""
        with self._index.reading() as db:
            spaces = db.execute(
                "SELECT id, encoder, kind, dim FROM spaces ORDER BY encoder, kind"
            ).fetchall()
            segments = db.execute("SELECT space, name, used FROM segments").fetchall()
            files = db.execute("SELECT count(*) FROM files").fetchone()[0]
        held = []
        for id, encoder, kind, dim in spaces:
            own = [(name, used) for space, name, used in segments if space == id]
            size = sum(_size(self._folder / name) for name, _ in own)
            used = max(used for _, used in own)
            held.append(SpaceInfo(encoder, kind, self._index.count(id), dim, size, used))
        index = _size(self.root / INDEX)
        return CacheInfo(self.root, tuple(held), files, index + sum(space.bytes for space in held))

    def verify(self) -> Verified:
        """Read every row and check it; others may read and write meanwhile."""
        return verify(self._index, self._folder)

    def export(self, target: Path, encoder: str, kind: str, *, half: bool = False) -> int:
        """Write all rows of an encoder and kind to a file: see `listing.export`."""
        return export(self._index, self._folder, target, encoder, kind, half=half)

    def prune(
        self,
        *,
        encoder: str | None = None,
        older_than_days: float | None = None,
        max_bytes: int | None = None,
    ) -> int:
        """Free whole segments and say how many bytes; others may read and write meanwhile.

        `encoder` and `older_than_days` (since the last use) together choose what goes; then the
        least recently used segments go until the rows take at most `max_bytes`. Without any of
        them only leftovers go: segments without an index entry, hashes of files that are no more.
        """
        before = self._segment_bytes()
        self._index.write(lambda db: self._forget(db, encoder, older_than_days, max_bytes))
        self._index.write(self._sweep)
        if self.trouble is not None:
            raise UserError(self.trouble)
        with self._index.reading() as db:
            db.execute("VACUUM")
        return before - self._segment_bytes()

    def _forget(
        self,
        db: sqlite3.Connection,
        encoder: str | None,
        older_than_days: float | None,
        max_bytes: int | None,
    ) -> None:
        segments = db.execute(
            "SELECT segments.id, name, used, encoder FROM segments "
            "JOIN spaces ON spaces.id = segments.space ORDER BY used DESC, segments.id DESC"
        ).fetchall()
        oldest = None if older_than_days is None else time.time() - older_than_days * 86400
        total = 0
        doomed = []
        for id, name, used, owner in segments:
            chosen = (encoder is not None or oldest is not None) and (
                encoder in (None, owner) and (oldest is None or used < oldest)
            )
            size = _size(self._folder / name)
            if chosen or (max_bytes is not None and total + size > max_bytes):
                doomed.append(int(id))
            else:
                total += size
        forget(db, doomed)

    def _sweep(self, db: sqlite3.Connection) -> None:
        """Remove segment files without an index entry; the transaction keeps new ones away."""
        known = {name for (name,) in db.execute("SELECT name FROM segments")}
        for path in self._folder.glob("*.f32"):
            if path.name not in known:
                with contextlib.suppress(OSError):  # open elsewhere, on Windows: the next sweep
                    path.unlink()

    def _segment_bytes(self) -> int:
        return sum(_size(path) for path in self._folder.glob("*.f32"))

    def close(self) -> None:
        """Save what was learned of files, and leave the index."""
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
    """Holds nothing and touches no disk: `--no-cache`."""

    def __init__(self) -> None:
        """Opens nothing."""

    @property
    def trouble(self) -> str | None:
        """None: nothing was to be kept."""
        return None

    def file_id(self, path: Path | str) -> str:
        """sha256 of the file's bytes, each time anew."""
        return hash_file(path)

    def file_ids(self, paths: Sequence[Path | str]) -> list[str | None]:
        """As `file_id`, each time anew; None for what cannot be read."""
        ids: list[str | None] = []
        for path in paths:
            try:
                ids.append(hash_file(path))
            except (OSError, ValueError):
                ids.append(None)
        return ids

    def blob_id(self, stamp: str) -> str | None:
        """None: nothing was noted."""
        return None

    def remember_blob(self, stamp: str, id: str) -> None:
        """Nothing is noted."""

    def get(
        self, encoder: str, kind: str, ids: Sequence[str]
    ) -> tuple[Float[Tensor, "m d"], Bool[Tensor, " n"]]:
        """Nothing."""
        return torch.empty(0, 0), torch.zeros(len(ids), dtype=torch.bool)

    def put(self, encoder: str, kind: str, ids: Sequence[str], rows: Float[Tensor, "n d"]) -> None:
        """Nothing is kept."""

    def info(self) -> CacheInfo:
        """Nothing is held."""
        return CacheInfo(None, (), 0, 0)

    def verify(self) -> Verified:
        """Nothing to check."""
        return Verified((), (), ())

    def export(self, target: Path, encoder: str, kind: str, *, half: bool = False) -> int:
        """UserError: nothing is held."""
        raise UserError("this cache holds nothing to export")

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
        """Nothing to leave."""
