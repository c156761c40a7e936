"""The SQLite index of a cache: the location of each batch of embeddings, and the hashes of files.

Embeddings that were stored together are one entry: the location of the first, and the keys and
checksums of all. A process reads the entries of an encoder once, later only new ones, and looks up
embeddings in memory (`lookup`). Their ids are in a separate table, which only `export` reads.

The journal is SQLite's rollback journal, because the shared memory of its write-ahead log does not
work on network file systems.
"""

import contextlib
import errno
import functools
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zeroshot.cache.index_values import (
    MAX_NUMBER,
    SCHEMA,
    DamagedIndexError,
    check_files,
    check_schema,
    checked,
)
from zeroshot.cache.lookup import (
    Checksums,
    Digests,
    Locations,
    Lookup,
    LookupKeys,
    Numbers,
    Run,
    packed,
    unpacked,
)
from zeroshot.errors import NoCacheError, UserError

USED_SECONDS = 3600
"""Resolution of the time of last use."""
LAYOUT = 2
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
)


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary error code; 0 for an error of the Python module itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_full(error: OSError | sqlite3.Error) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    return _code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def ways_out(*ways: str, optional: bool) -> str:
    """What a user can do; go without a cache as well, if it is `optional`."""
    *others, last = (*ways, "use --no-cache") if optional else ways
    return f"{', '.join(others)}, or {last}" if others else last


@dataclass(frozen=True)
class Entries:
    """The locations of the requested embeddings, in their order, and the names of segments."""

    dim: int
    locations: Locations
    names: dict[int, str]


@dataclass(frozen=True)
class StoredSegment:
    """A segment in the index."""

    id: int
    space: int
    name: str
    used: int
    """Time of last use."""


@dataclass(frozen=True)
class Batch:
    """Embeddings that were stored together, for `export`."""

    segment: str
    indices: Numbers
    ids: Sequence[str]
    checksums: Checksums
    current: np.ndarray[tuple[int], np.dtype[np.bool_]]
    """Which of them were not replaced by a later batch."""


def space_id(db: sqlite3.Connection, encoder: str, kind: str, dim: int) -> int:
    """Id of the space of this encoder and kind, which is added if needed."""
    db.execute(
        "INSERT OR IGNORE INTO spaces (encoder, kind, dim) VALUES (?, ?, ?)", (encoder, kind, dim)
    )
    rows = db.execute("SELECT id, dim FROM spaces WHERE encoder = ? AND kind = ?", (encoder, kind))
    id, stored = next(checked(rows, "number width"))
    if stored != dim:
        raise UserError(
            f"encoder '{encoder}' gives {kind} embeddings of width {dim}, but the cache has "
            f"some of width {stored}; remove them with 'zeroshot cache prune --encoder {encoder}'"
        )
    return int(id)


def last_segment(db: sqlite3.Connection, space: int) -> tuple[int, str] | None:
    """Id and name of the newest segment of a space."""
    rows = db.execute(
        "SELECT id, name FROM segments WHERE space = ? ORDER BY id DESC LIMIT 1", (space,)
    )
    return next(((id, name) for id, name in checked(rows, "number segment")), None)


def new_segment(db: sqlite3.Connection, space: int) -> tuple[int, str]:
    """Id and name of a new segment; the name is random, so that no file of an old index is used."""
    name = f"{uuid.uuid4().hex}.f32"
    added = db.execute(
        "INSERT INTO segments (space, name, used) VALUES (?, ?, ?)", (space, name, int(time.time()))
    )
    assert added.lastrowid is not None
    return added.lastrowid, name


def add_batch(
    db: sqlite3.Connection,
    space: int,
    segment: int,
    index: int,
    ids: Sequence[str],
    digests: Digests,
    checksums: Checksums,
) -> None:
    """Index embeddings that follow one another in a segment, the first at `index`."""
    keys = digests.keys.astype("<u8").tobytes()
    added = db.execute(
        "INSERT INTO batches (space, segment, place, keys, checksums) VALUES (?, ?, ?, ?, ?)",
        (space, segment, index, keys, checksums.astype("<u4").tobytes()),
    )
    db.execute("INSERT INTO ids VALUES (?, ?)", (added.lastrowid, packed(ids)))


def forget(db: sqlite3.Connection, segments: Sequence[StoredSegment]) -> None:
    """Delete segments and their entries, and the hashes of files that do not exist any more."""
    ids = [(segment.id,) for segment in segments]
    db.executemany("DELETE FROM ids WHERE batch IN (SELECT id FROM batches WHERE segment = ?)", ids)
    db.executemany("DELETE FROM batches WHERE segment = ?", ids)
    db.executemany("DELETE FROM segments WHERE id = ?", ids)
    db.execute("DELETE FROM spaces WHERE id NOT IN (SELECT space FROM segments)")
    db.execute("UPDATE forgotten SET times = times + 1")
    paths = [path for (path,) in checked(db.execute("SELECT path FROM files"), "path")]
    may_exist = functools.cache(_may_exist)
    missing = [(path,) for path in paths if not may_exist(path.partition(b"\0")[0])]
    db.executemany("DELETE FROM files WHERE path = ?", missing)


def _may_exist(file: bytes) -> bool:
    """Whether a file, or the file that contains a blob, exists; True for a remote file."""
    return b"://" in file or os.path.exists(file)


def _is_valid(segment: object, index: object, keys: object, checksums: object) -> bool:
    """Whether an entry is undamaged, as far as its types and sizes show."""
    return (
        isinstance(segment, int)
        and isinstance(index, int)
        and isinstance(keys, bytes)
        and isinstance(checksums, bytes)
        and len(keys) == 2 * len(checksums)
        and len(keys) % 8 == 0
        and 0 <= segment < MAX_NUMBER
        and 0 <= index < MAX_NUMBER - len(keys)
    )


class Index:
    """One SQLite file, which threads and processes share. `write_error` as in `EmbeddingCache`."""

    def __init__(self, path: Path, *, optional: bool = True) -> None:
        self.write_error: str | None = None
        self.is_full = False
        """Whether the last write failed because the disk had no room."""
        self._path = path
        self._optional = optional
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._lookups: dict[int, Lookup] = {}
        self._has_listing = False
        self._forgotten: tuple[int] | None = None
        self._hashes: dict[bytes, tuple[str, str]] = {}  # path -> stamp, id; not yet in the file
        with self._user_errors():
            check_files(path)
            self._db = sqlite3.connect(
                path, timeout=60, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        """Create the tables of a new index; UserError for the index of another version."""
        if self._layout() == 0:
            with self._transaction():
                if self._layout() == 0:  # no other process was faster
                    for statement in SCHEMA.split(";"):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {LAYOUT}")
        if self._layout() != LAYOUT:
            raise UserError(
                f"the cache in '{self._path.parent}' has layout {self._layout()}, this version "
                f"reads {LAYOUT}; clear it with 'zeroshot cache prune --all', or choose another "
                "folder with ZEROSHOT_CACHE"
            )
        check_schema(self._db)

    def _layout(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    @contextlib.contextmanager
    def _user_errors(self) -> Iterator[None]:
        """Turn an error of SQLite into a UserError."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            damaged = _code(error) in DAMAGED or isinstance(error, DamagedIndexError)
            state = "is damaged" if damaged else "cannot be used"
            kind = NoCacheError if _code(error) in UNWRITABLE else UserError
            advice = ways_out(
                "clear it with 'zeroshot cache prune --all'",
                "choose another folder with ZEROSHOT_CACHE",
                optional=self._optional,
            )
            raise kind(f"the cache index '{self._path}' {state} ({error}); {advice}") from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit all changes of the block or none; other writers wait."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The index, for one thread at a time."""
        if os.getpid() != self._process:
            raise RuntimeError("this cache was opened before the process forked; open it anew")
        with self._lock, self._user_errors():
            yield self._db

    def write(self, change: Callable[[sqlite3.Connection], object]) -> None:
        """Run `change` in a transaction; if the index is not writable, set `write_error`."""
        if self.write_error is not None:
            return
        with self.reading() as db:
            try:
                with self._transaction():
                    change(db)
            except (OSError, sqlite3.OperationalError) as error:
                if isinstance(error, sqlite3.Error) and _code(error) not in UNWRITABLE:
                    raise
                self.is_full = _is_full(error)
                self.write_error = f"the cache in '{self._path.parent}' is not writable: {error}"

    def write_in_place(self, change: Callable[[sqlite3.Connection], object]) -> None:
        """As `write`, with the journal in memory: it needs no room on the disk.

        A crash meanwhile may leave a damaged index.
        """
        self.write_error = None
        with self.reading() as db:
            db.execute("PRAGMA journal_mode = MEMORY")
            try:
                self.write(change)
            finally:
                db.execute("PRAGMA journal_mode = DELETE")

    def compact(self) -> None:
        """Give back the room of what was deleted; nothing happens if the disk has none for it."""
        with self.reading() as db:
            try:
                db.execute("VACUUM")
            except sqlite3.OperationalError as error:
                if _code(error) not in UNWRITABLE:
                    raise

    def entries(self, encoder: str, kind: str, keys: LookupKeys) -> Entries | None:
        """The locations of embeddings; None if there are none of this encoder and kind."""
        with self.reading() as db:
            spaces = db.execute(
                "SELECT id, dim FROM spaces WHERE encoder = ? AND kind = ?", (encoder, kind)
            )
            for space, dim in checked(spaces, "number width"):
                locations = self._lookup(db, space).find(keys)
                names = db.execute("SELECT id, name FROM segments WHERE space = ?", (space,))
                return Entries(dim, locations, dict(checked(names, "number segment")))
        return None

    def count(self, space: int) -> int:
        """Number of embeddings of a space, each counted once."""
        with self.reading() as db:
            return len(self._lookup(db, space))

    def _lookup(self, db: sqlite3.Connection, space: int) -> Lookup:
        """The locations of a space's embeddings, after reading entries that others have added."""
        forgotten = db.execute("SELECT times FROM forgotten").fetchone()
        if forgotten != self._forgotten:
            self._lookups, self._forgotten = {}, forgotten
        lookup = self._lookups.setdefault(space, Lookup())
        runs, last = [], lookup.last
        for id, segment, first, keys, checksums in db.execute(
            "SELECT id, segment, place, keys, checksums FROM batches "
            "WHERE space = ? AND id > ? ORDER BY id",
            (space, last),
        ):
            if _is_valid(segment, first, keys, checksums):
                numbers = np.frombuffer(keys, "<u8").astype(np.uint64)
                sums = np.frombuffer(checksums, "<u4").astype(np.uint32)
                runs.append(Run(segment, first, numbers, sums))
            last = id
        lookup.add(runs)
        lookup.last = last
        return lookup

    def spaces(self) -> list[tuple[int, str, str, int]]:
        """Id, encoder, kind and width of each space."""
        with self.reading() as db:
            rows = db.execute("SELECT id, encoder, kind, dim FROM spaces ORDER BY encoder, kind")
            return [
                (id, encoder, kind, dim)
                for id, encoder, kind, dim in checked(rows, "number text text width")
            ]

    def segments(self) -> list[StoredSegment]:
        """All segments, the last used first."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT id, space, name, used FROM segments ORDER BY used DESC, id DESC"
            )
            return [StoredSegment(*row) for row in checked(rows, "number number segment time")]

    def number_of_files(self) -> int:
        """Number of files whose hash is stored."""
        with self.reading() as db:
            return int(db.execute("SELECT count(*) FROM files").fetchone()[0])

    def batches(self, space: int) -> Iterator[Batch]:
        """The valid entries of a space, oldest first; damaged ones are skipped."""
        with self.reading() as db:
            numbers = db.execute(
                "SELECT id FROM batches WHERE space = ? ORDER BY id", (space,)
            ).fetchall()
        for number in numbers:
            with self.reading() as db:
                entry = db.execute(
                    "SELECT name, segment, place, keys, checksums, ids FROM batches "
                    "LEFT JOIN segments ON segments.id = segment "
                    "LEFT JOIN ids ON batch = batches.id WHERE batches.id = ?",
                    number,
                ).fetchone()
                lookup = self._lookup(db, space)
                if entry is not None and entry[0] is not None:
                    next(checked([entry[:1]], "segment"))
            if entry is None or not _is_valid(*entry[1:5]):
                continue
            name, segment, first, keys, checksums, packed_ids = entry
            ids = unpacked(packed_ids)
            if len(ids) * 8 == len(keys):
                indices = np.arange(first, first + len(ids))
                newest = lookup.find(np.frombuffer(keys, "<u8").astype(np.uint64))
                current = (newest.segments == segment) & (newest.indices == indices)
                sums = np.frombuffer(checksums, "<u4")
                yield Batch(name or "missing", indices, ids, sums, current)

    def paths_of(self, ids: Sequence[str]) -> dict[str, list[bytes]]:
        """The files with these content ids, among those that were hashed."""
        found: dict[str, list[bytes]] = {}
        with self.reading() as db:
            if not self._has_listing:
                db.execute("CREATE TEMP TABLE listed AS SELECT id, path FROM files ORDER BY path")
                db.execute("CREATE INDEX temp.listed_ids ON listed (id)")
                self._has_listing = True
            for start in range(0, len(ids), 1000):
                chunk = ids[start : start + 1000]
                rows = db.execute(
                    f"SELECT id, path FROM listed WHERE id IN ({', '.join('?' * len(chunk))})",
                    chunk,
                )
                for id, path in checked(rows, "text path"):
                    found.setdefault(id, []).append(path)
        return found

    def touch(self, segments: Iterable[int]) -> None:
        """Update the time of last use of these segments, at most once an hour."""
        now = int(time.time())
        with self.reading() as db:
            used = dict(checked(db.execute("SELECT id, used FROM segments"), "number time"))
        stale = [(now, id) for id in segments if used.get(id, now) < now - USED_SECONDS]
        if stale:
            self.write(
                lambda db: db.executemany("UPDATE segments SET used = ? WHERE id = ?", stale)
            )

    def file_id(self, path: bytes, stamp: str) -> str | None:
        """The stored id of a file, if the file had this stamp."""
        with self.reading() as db:
            rows = db.execute("SELECT stamp, id FROM files WHERE path = ?", (path,))
            known = self._hashes.get(path) or next(checked(rows, "text hash"), None)
        return known[1] if known and known[0] == stamp else None

    def file_ids(self, paths: Sequence[bytes]) -> dict[bytes, tuple[str, str]]:
        """The stored stamp and id of each file; its stamp may have changed since."""
        found: dict[bytes, tuple[str, str]] = {}
        with self.reading() as db:
            ordered = sorted(set(paths) - self._hashes.keys())  # neighbours in the table
            for start in range(0, len(ordered), 1000):  # SQLite limits the number of parameters
                chunk = ordered[start : start + 1000]
                rows = db.execute(
                    "SELECT path, stamp, id FROM files "
                    f"WHERE path IN ({', '.join('?' * len(chunk))})",
                    chunk,
                )
                found |= {path: (stamp, id) for path, stamp, id in checked(rows, "path text hash")}
            found.update({path: self._hashes[path] for path in paths if path in self._hashes})
        return found

    def remember(self, path: bytes, stamp: str, id: str) -> None:
        """Store a file's id; ids are written in large groups, the rest on closing."""
        with self._lock:
            self._hashes[path] = stamp, id
            if len(self._hashes) >= 1000:
                self.write(self.save_hashes)

    def save_hashes(self, db: sqlite3.Connection) -> None:
        """Write the ids that were stored since the last write, as part of a transaction."""
        rows = [(path, stamp, id) for path, (stamp, id) in self._hashes.items()]
        db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows)
        self._hashes.clear()

    def close(self) -> None:
        """Write the stored ids and close the file."""
        if self._hashes:
            self.write(self.save_hashes)
        self._db.close()
