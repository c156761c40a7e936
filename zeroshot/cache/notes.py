"""Small facts that were computed once, by what they were computed from.

Each is a JSON file of its own. The package's files are part of every key, so that another version
computes anew. A note that is missing, damaged or of another key is none; one that cannot be written
is done without.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zeroshot.output.atomic import replace

FOLDER = "notes"
PACKAGE = Path(__file__).parent.parent
LARGEST = 4 << 20
"""Bytes of a note."""
OLD = 90 * 86400
"""Seconds after which a note is a leftover; it is written again when it is needed."""


def read_note(root: Path, *key: object) -> Any:
    """The value that was stored for this key in a cache's folder; None if there is none."""
    text, path = _place(root, key)
    try:
        if path.stat().st_size > LARGEST:
            return None
        stored = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(stored, dict) or stored.get("of") != text:
        return None
    return stored.get("value")


def write_note(root: Path, value: object, *key: object) -> None:
    """Store a value, of JSON, for this key."""
    text, path = _place(root, key)
    content = json.dumps({"of": text, "value": value}).encode()
    if len(content) <= LARGEST:
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, exist_ok=True)
            replace(path, content)


def notes_in(root: Path, age: float = 0.0) -> Iterator[Path]:
    """The notes in a cache's folder that were written at least `age` seconds ago."""
    latest = time.time() - age
    with contextlib.suppress(OSError), os.scandir(root / FOLDER) as found:
        for entry in found:
            if re.fullmatch(r"[0-9a-f]{64}\.json", entry.name) and entry.stat().st_mtime <= latest:
                yield Path(entry.path)


def _place(root: Path, key: tuple[object, ...]) -> tuple[str, Path]:
    text = json.dumps([code(), *key])
    return text, root / FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()}.json"


@functools.cache
def code() -> str:
    """Hash of the names, sizes and times of this package's files."""
    files = sorted(_files(PACKAGE))
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]


def _files(folder: str | Path) -> Iterator[tuple[str, int, int]]:
    with os.scandir(folder) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
            elif entry.name.endswith(".py"):
                status = entry.stat()
                yield entry.path, status.st_size, status.st_mtime_ns
