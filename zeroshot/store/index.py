"""What SQLite knows of a cache: where each row lies, and which files were hashed.

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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from zeroshot.errors import UserError

USED_SECONDS = 3600
"""How exactly the time of last use is kept."""
LAYOUT = 1
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
CREATE TABLE rows (space INTEGER, id TEXT, segment INTEGER, place INTEGER, checksum INTEGER,
                   PRIMARY KEY (space, id)) WITHOUT ROWID;
CREATE TABLE files (path BLOB PRIMARY KEY, stamp TEXT, id TEXT) WITHOUT ROWID;
"""


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary error code; 0 for what the Python module itself complains of."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


class Entry(NamedTuple):
    """Where the index says a row lies; sorts in the order of the files."""

    segment: str
    place: int
    id: str
    checksum: int


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


def forget(db: sqlite3.Connection, segments: Sequence[int]) -> None:
    """Take segments out, with all that refers to them, and the hashes of files that are no more."""
    ids = [(id,) for id in segments]
    db.executemany("DELETE FROM rows WHERE segment = ?", ids)
    db.executemany("DELETE FROM segments WHERE id = ?", ids)
    db.execute("DELETE FROM spaces WHERE id NOT IN (SELECT space FROM segments)")
    paths = [path for (path,) in db.execute("SELECT path FROM files")]
    there = functools.cache(_may_be_there)
    gone = [(path,) for path in paths if not there(path.partition(b"\0")[0])]
    db.executemany("DELETE FROM files WHERE path = ?", gone)


def _may_be_there(file: bytes) -> bool:
    """Whether a file exists, itself or as what holds a blob; of a remote one nothing is known."""
    return b"://" in file or os.path.exists(file)


class Index:
    """One SQLite file, shared by threads and processes. `trouble` as in `EmbeddingCache`."""

    def __init__(self, path: Path) -> None:
        self.trouble: str | None = None
        self._path = path
        self._lock = threading.RLock()
        self._process = os.getpid()
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
                f"reads {LAYOUT}; choose another folder with ZEROSHOT_CACHE"
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

    def entries(self, encoder: str, kind: str, ids: Sequence[str]) -> tuple[int, list[Entry]]:
        """Width of the rows (0 while there are none), and where those lie that are held."""
        with self.reading() as db:
            space = db.execute(
                "SELECT id, dim FROM spaces WHERE encoder = ? AND kind = ?", (encoder, kind)
            ).fetchone()
            if space is None:
                return 0, []
            distinct = list(dict.fromkeys(ids))
            found: list[Entry] = []
            for start in range(0, len(distinct), 1000):  # SQLite limits the number of parameters
                chunk = distinct[start : start + 1000]
                rows = db.execute(
                    "SELECT name, place, rows.id, checksum FROM rows "
                    "JOIN segments ON segments.id = rows.segment "
                    f"WHERE rows.space = ? AND rows.id IN ({', '.join('?' * len(chunk))})",
                    (space[0], *chunk),
                )
                found.extend(Entry(*row) for row in rows)
        return int(space[1]), sorted(found)

    def touch(self, segments: set[str]) -> None:
        """Note that these segments are in use, if that was not noted within the hour."""
        now = int(time.time())
        with self.reading() as db:
            used = dict(db.execute("SELECT name, used FROM segments"))
        stale = [(now, name) for name in segments if used.get(name, now) < now - USED_SECONDS]
        if stale:
            self.write(
                lambda db: db.executemany("UPDATE segments SET used = ? WHERE name = ?", stale)
            )

    def hash_of(self, path: bytes, stamp: str) -> str | None:
        """The id of the file as it was when it bore this stamp, if that is known."""
        with self.reading() as db:
            known = (
                self._hashes.get(path)
                or db.execute("SELECT stamp, id FROM files WHERE path = ?", (path,)).fetchone()
            )
        return str(known[1]) if known and known[0] == stamp else None

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
