"""What SQLite knows of a cache: where each batch of rows lies, and which files were hashed.

Rows that were put together are one entry: where the first lies, and the keys and checksums of all.
A process reads the entries of an encoder once, then only those that are new, and finds rows in
memory (`places`); their ids are in a table of their own, which only a listing reads.

The journal is SQLite's rollback journal, not its write-ahead log, whose shared memory does not
work on network file systems.
"""

import contextlib
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

from zeroshot.cache.lookup import (
    Checksums,
    Digests,
    Keys,
    Numbers,
    Places,
    RowLocations,
    Run,
    packed,
    unpacked,
)
from zeroshot.errors import UserError

USED_SECONDS = 3600
"""How exactly the time of last use is kept."""
LAYOUT = 2
MOST = 1 << 31
"""Places and segments beyond this are damage."""
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
UNWRITABLE = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
)

SCHEMA = """
CREATE TABLE spaces (id INTEGER PRIMARY KEY, encoder TEXT, kind TEXT, dim INTEGER,
                     UNIQUE (encoder, kind));
CREATE TABLE segments (id INTEGER PRIMARY KEY AUTOINCREMENT, space INTEGER, name TEXT,
                       used INTEGER);
CREATE TABLE batches (id INTEGER PRIMARY KEY AUTOINCREMENT, space INTEGER, segment INTEGER,
                      place INTEGER, keys BLOB, checksums BLOB);
CREATE INDEX batches_of_a_space ON batches (space, id);
CREATE TABLE ids (batch INTEGER PRIMARY KEY, ids BLOB);
CREATE TABLE forgotten (times INTEGER);
INSERT INTO forgotten VALUES (0);
CREATE TABLE files (path BLOB PRIMARY KEY, stamp TEXT, id TEXT) WITHOUT ROWID;
"""


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary error code; 0 for what the Python module itself complains of."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


@dataclass(frozen=True)
class Entries:
    """Where the rows lie that were asked for, in that order; `names` are those of segments."""

    dim: int
    found: RowLocations
    names: dict[int, str]


@dataclass(frozen=True)
class Batch:
    """Rows that were put together, as a listing finds them."""

    segment: str
    places: Numbers
    ids: Sequence[str]
    checksums: Checksums
    current: np.ndarray[tuple[int], np.dtype[np.bool_]]
    """Which of them no later batch replaced."""


def space_id(db: sqlite3.Connection, encoder: str, kind: str, dim: int) -> int:
    """Id of what holds this encoder's rows of this kind, added if need be."""
    db.execute(
        "INSERT OR IGNORE INTO spaces (encoder, kind, dim) VALUES (?, ?, ?)", (encoder, kind, dim)
    )
    id, held = db.execute(
        "SELECT id, dim FROM spaces WHERE encoder = ? AND kind = ?", (encoder, kind)
    ).fetchone()
    if held != dim:
        raise UserError(
            f"encoder '{encoder}' gives {kind} rows of {dim} numbers, but {held} are held under "
            f"that name; forget those with 'zeroshot cache prune --encoder {encoder}'"
        )
    return int(id)


def last_segment(db: sqlite3.Connection, space: int) -> tuple[int, str] | None:
    """Id and name of the newest segment of a space."""
    found: tuple[int, str] | None = db.execute(
        "SELECT id, name FROM segments WHERE space = ? ORDER BY id DESC LIMIT 1", (space,)
    ).fetchone()
    return found


def new_segment(db: sqlite3.Connection, space: int) -> tuple[int, str]:
    """Id and name of another one. Names are random: no file of an earlier index is met again."""
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
    place: int,
    ids: Sequence[str],
    digests: Digests,
    checksums: Checksums,
) -> None:
    """Rows that lie one after another from `place` on."""
    keys = digests.keys.astype("<u8").tobytes()
    added = db.execute(
        "INSERT INTO batches (space, segment, place, keys, checksums) VALUES (?, ?, ?, ?, ?)",
        (space, segment, place, keys, checksums.astype("<u4").tobytes()),
    )
    db.execute("INSERT INTO ids VALUES (?, ?)", (added.lastrowid, packed(ids)))


def forget(db: sqlite3.Connection, segments: Sequence[int]) -> None:
    """Take segments out, with all that refers to them, and the hashes of files that are no more."""
    ids = [(id,) for id in segments]
    db.executemany("DELETE FROM ids WHERE batch IN (SELECT id FROM batches WHERE segment = ?)", ids)
    db.executemany("DELETE FROM batches WHERE segment = ?", ids)
    db.executemany("DELETE FROM segments WHERE id = ?", ids)
    db.execute("DELETE FROM spaces WHERE id NOT IN (SELECT space FROM segments)")
    db.execute("UPDATE forgotten SET times = times + 1")
    paths = [path for (path,) in db.execute("SELECT path FROM files")]
    there = functools.cache(_may_be_there)
    gone = [(path,) for path in paths if not there(path.partition(b"\0")[0])]
    db.executemany("DELETE FROM files WHERE path = ?", gone)


def _may_be_there(file: bytes) -> bool:
    """Whether a file exists, itself or as what holds a blob; of a remote one nothing is known."""
    return b"://" in file or os.path.exists(file)


def _fits(segment: object, place: object, keys: object, checksums: object) -> bool:
    """Whether an entry can be one: what damage made of it finds nothing."""
    return (
        isinstance(segment, int)
        and isinstance(place, int)
        and isinstance(keys, bytes)
        and isinstance(checksums, bytes)
        and len(keys) == 2 * len(checksums)
        and len(keys) % 8 == 0
        and 0 <= segment < MOST
        and 0 <= place < MOST - len(keys)
    )


class Index:
    """One SQLite file, shared by threads and processes. `trouble` as in `EmbeddingCache`."""

    def __init__(self, path: Path) -> None:
        self.trouble: str | None = None
        self._path = path
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._known: dict[int, Places] = {}
        self._listed = False
        self._forgotten: tuple[int] | None = None
        self._hashes: dict[bytes, tuple[str, str]] = {}  # path -> stamp, id; not yet in the file
        with self._explained():
            self._db = sqlite3.connect(
                path, timeout=60, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        """Lay out a new index, or refuse one that another version of this package laid out."""
        if self._layout() == 0:
            with self._transaction():
                if self._layout() == 0:  # nobody else was faster
                    for statement in SCHEMA.split(";"):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {LAYOUT}")
        if self._layout() != LAYOUT:
            raise UserError(
                f"the cache in '{self._path.parent}' has layout {self._layout()}, this version "
                f"reads {LAYOUT}; empty it with 'zeroshot cache prune --all', or choose another "
                "folder with ZEROSHOT_CACHE"
            )

    def _layout(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            state = "is damaged" if _code(error) in DAMAGED else "cannot be used"
            raise UserError(
                f"the cache index '{self._path}' {state} ({error}); empty it with "
                "'zeroshot cache prune --all', choose another folder with ZEROSHOT_CACHE, or go "
                "without (--no-cache)"
            ) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, while other writers, in this process and others, wait."""
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
        with self._lock, self._explained():
            yield self._db

    def write(self, change: Callable[[sqlite3.Connection], object]) -> None:
        """Run `change` in a transaction; where nothing can be written, say so in `trouble`."""
        if self.trouble is not None:
            return
        with self.reading() as db:
            try:
                with self._transaction():
                    change(db)
            except (OSError, sqlite3.OperationalError) as error:
                if isinstance(error, sqlite3.Error) and _code(error) not in UNWRITABLE:
                    raise
                self.trouble = f"the cache in '{self._path.parent}' keeps nothing more: {error}"

    def entries(self, encoder: str, kind: str, keys: Keys) -> Entries | None:
        """Where the rows lie; None while there are none of this encoder and kind."""
        with self.reading() as db:
            space = db.execute(
                "SELECT id, dim FROM spaces WHERE encoder = ? AND kind = ?", (encoder, kind)
            ).fetchone()
            if space is None:
                return None
            found = self._places(db, int(space[0])).find(keys)
            names = dict(db.execute("SELECT id, name FROM segments WHERE space = ?", space[:1]))
        return Entries(int(space[1]), found, names)

    def count(self, space: int) -> int:
        """Rows of a space, each once."""
        with self.reading() as db:
            return len(self._places(db, space))

    def _places(self, db: sqlite3.Connection, space: int) -> Places:
        """All rows of a space; entries that others added since the last time are read now."""
        forgotten = db.execute("SELECT times FROM forgotten").fetchone()
        if forgotten != self._forgotten:
            self._known, self._forgotten = {}, forgotten
        places = self._known.setdefault(space, Places())
        runs, last = [], places.last
        for id, segment, place, keys, checksums in db.execute(
            "SELECT id, segment, place, keys, checksums FROM batches "
            "WHERE space = ? AND id > ? ORDER BY id",
            (space, last),
        ):
            if _fits(segment, place, keys, checksums):
                known = np.frombuffer(keys, "<u8").astype(np.uint64)
                seeds = np.frombuffer(checksums, "<u4").astype(np.uint32)
                runs.append(Run(segment, place, known, seeds))
            last = id
        places.add(runs)
        places.last = last
        return places

    def spaces(self) -> list[tuple[int, str, str, int]]:
        """Id, encoder, kind and width of all there is."""
        with self.reading() as db:
            return db.execute(
                "SELECT id, encoder, kind, dim FROM spaces ORDER BY encoder, kind"
            ).fetchall()

    def segments(self) -> set[str]:
        """Names of all segments."""
        with self.reading() as db:
            return {str(name) for (name,) in db.execute("SELECT name FROM segments")}

    def batches(self, space: int) -> Iterator[Batch]:
        """The entries of a space, oldest first; those that damage left without sense are none."""
        with self.reading() as db:
            numbers = db.execute(
                "SELECT id FROM batches WHERE space = ? ORDER BY id", (space,)
            ).fetchall()
        for number in numbers:
            with self.reading() as db:
                found = db.execute(
                    "SELECT name, segment, place, keys, checksums, ids FROM batches "
                    "LEFT JOIN segments ON segments.id = segment "
                    "LEFT JOIN ids ON batch = batches.id WHERE batches.id = ?",
                    number,
                ).fetchone()
                places = self._places(db, space)
            if found is None or not _fits(*found[1:5]):
                continue
            name, segment, place, keys, checksums, ids = found
            listed = unpacked(ids)
            if len(listed) * 8 == len(keys):
                at = np.arange(place, place + len(listed))
                held = places.find(np.frombuffer(keys, "<u8").astype(np.uint64))
                current = (held.segments == segment) & (held.places == at)
                yield Batch(name or "gone", at, listed, np.frombuffer(checksums, "<u4"), current)

    def paths_of(self, ids: Sequence[str]) -> dict[str, list[bytes]]:
        """The files that have these contents, as far as they were hashed."""
        found: dict[str, list[bytes]] = {}
        with self.reading() as db:
            if not self._listed:
                db.execute("CREATE TEMP TABLE listed AS SELECT id, path FROM files ORDER BY path")
                db.execute("CREATE INDEX temp.listed_ids ON listed (id)")
                self._listed = True
            for start in range(0, len(ids), 1000):
                chunk = ids[start : start + 1000]
                for id, path in db.execute(
                    f"SELECT id, path FROM listed WHERE id IN ({', '.join('?' * len(chunk))})",
                    chunk,
                ):
                    found.setdefault(id, []).append(path)
        return found

    def touch(self, segments: Iterable[int]) -> None:
        """Note that these segments are in use, if that was not noted within the hour."""
        now = int(time.time())
        with self.reading() as db:
            used = dict(db.execute("SELECT id, used FROM segments"))
        stale = [(now, id) for id in segments if used.get(id, now) < now - USED_SECONDS]
        if stale:
            self.write(
                lambda db: db.executemany("UPDATE segments SET used = ? WHERE id = ?", stale)
            )

    def hash_of(self, path: bytes, stamp: str) -> str | None:
        """The id of the file as it was when it bore this stamp, if that is known."""
        with self.reading() as db:
            known = (
                self._hashes.get(path)
                or db.execute("SELECT stamp, id FROM files WHERE path = ?", (path,)).fetchone()
            )
        return str(known[1]) if known and known[0] == stamp else None

    def hashes_of(self, paths: Sequence[bytes]) -> dict[bytes, tuple[str, str]]:
        """Stamp and id of the files that are known, whatever their stamp is now."""
        found: dict[bytes, tuple[str, str]] = {}
        with self.reading() as db:
            ordered = sorted(set(paths) - self._hashes.keys())  # near one another in the table
            for start in range(0, len(ordered), 1000):  # SQLite limits the number of parameters
                chunk = ordered[start : start + 1000]
                rows = db.execute(
                    "SELECT path, stamp, id FROM files "
                    f"WHERE path IN ({', '.join('?' * len(chunk))})",
                    chunk,
                )
                found.update({path: (stamp, id) for path, stamp, id in rows})
            found.update({path: self._hashes[path] for path in paths if path in self._hashes})
        return found

    def remember(self, path: bytes, stamp: str, id: str) -> None:
        """Note a file's id; many at a time reach the disk, or those that are left on closing."""
        with self._lock:
            self._hashes[path] = stamp, id
            if len(self._hashes) >= 1000:
                self.write(self.save_hashes)

    def save_hashes(self, db: sqlite3.Connection) -> None:
        """Part of a write: what was remembered since the last one."""
        rows = [(path, stamp, id) for path, (stamp, id) in self._hashes.items()]
        db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows)
        self._hashes.clear()

    def close(self) -> None:
        """Save what was remembered, and let go of the file."""
        if self._hashes:
            self.write(self.save_hashes)
        self._db.close()
