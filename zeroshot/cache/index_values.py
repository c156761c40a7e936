"""What an index of a cache may contain. The file is input: anybody may have written it.

A name of a segment that leads elsewhere would be appended to or removed, a width could fill the
memory, and a trigger or a view would run as part of our own statements.
"""

import os
import re
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from zeroshot.inputs.local_files import without_waiting

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
MAX_NUMBER = 1 << 31
"""A larger index or segment number means that the entry is damaged."""
MAX_WIDTH = 1 << 16
SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")
"""SQLite ends a journal so that names another file, which it would then read and remove."""
SEGMENT = re.compile(r"[0-9a-f]{32}\.f32")

_OWN = ("sqlite_sequence", "sqlite_stat1", "sqlite_stat4")
_VALID: Mapping[str, Callable[[Any], bool]] = {
    "number": lambda value: type(value) is int and 0 <= value < MAX_NUMBER,
    "width": lambda value: type(value) is int and 0 < value <= MAX_WIDTH,
    "time": lambda value: type(value) is int and 0 <= value < 1 << 40,
    "segment": lambda value: isinstance(value, str) and SEGMENT.fullmatch(value) is not None,
    "text": lambda value: isinstance(value, str),
    "path": lambda value: isinstance(value, bytes),
    "hash": lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value)),
}


class DamagedIndexError(sqlite3.DatabaseError):
    """A value that no index of ours contains."""


def checked(rows: Iterable[tuple[Any, ...]], kinds: str) -> Iterator[tuple[Any, ...]]:
    """The rows, if each value is of its kind, for example `number segment time`.

    Raises:
        DamagedIndexError: one is not.
    """
    valid = [(kind, _VALID[kind]) for kind in kinds.split()]
    for row in rows:
        for value, (kind, test) in zip(row, valid, strict=True):
            if not test(value):
                raise DamagedIndexError(f"{value!r:.60} is no {kind}")
        yield row


def check_schema(db: sqlite3.Connection) -> None:
    """DamagedIndexError for other tables than those of `SCHEMA`, a trigger or a view."""
    ours = {" ".join(part.split()) for part in SCHEMA.split(";") if "CREATE" in part}
    there = db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    found = {" ".join(str(sql).split()) for name, sql in there if name not in _OWN}
    if found != ours:
        odd = min(found ^ ours)
        raise DamagedIndexError(f"its tables are not those of a cache: {odd:.60}")


def check_files(path: Path) -> None:
    """DamagedIndexError if the index is a pipe or a device, or its journal names another file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DamagedIndexError("it is no regular file")
        with open(f"{path}-journal", "rb", opener=without_waiting) as journal:
            journal.seek(-len(SUPER_JOURNAL), os.SEEK_END)
            if journal.read() == SUPER_JOURNAL:
                raise DamagedIndexError("its journal names another file")
    except OSError:  # there is none, or an empty one
        return
