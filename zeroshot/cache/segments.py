"""Rows in segment files: read, appended and checked."""

import contextlib
import io
import itertools
import os
import zlib
from pathlib import Path

import numpy as np

from zeroshot.cache.lookup import Checksums, Numbers

Rows = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def checksums_of(seeds: Checksums, rows: Rows) -> Checksums:
    """Of each row and whose it is, so that a row in another's place does not pass."""
    width = rows.shape[1] * 4
    data = rows.data.cast("B") if rows.size else memoryview(b"")
    found = [
        zlib.crc32(data[start : start + width], seed)
        for seed, start in zip(seeds.tolist(), range(0, len(data), width), strict=True)
    ]
    return np.array(found, dtype=np.uint32)


def read_rows(path: Path, places: Numbers, rows: Rows) -> None:
    """Fill `rows`, which comes as zeros, with those at `places` (ascending).

    A row that the file does not have stays zero, and then no checksum passes it.
    """
    breaks = ((np.diff(places) != 1).nonzero()[0] + 1).tolist()  # neighbours are read together
    width = rows.shape[1] * 4
    with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
        for first, end in itertools.pairwise([0, *breaks, len(places)]):
            _read_at(file, int(places[first]) * width, rows[first:end].data.cast("B"))


def _read_at(file: io.FileIO, place: int, into: memoryview) -> None:
    """Fill `into` as far as the file goes; one read of the system may bring less than asked."""
    file.seek(place)
    while into and (count := file.readinto(into)):
        into = into[count:]


def all_finite(rows: Rows) -> bool:
    """Whether all numbers are; their squares, which BLAS sums quickly, mostly tell."""
    with np.errstate(all="ignore"):
        squares = np.vdot(rows, rows)
    return bool(np.isfinite(squares) or np.isfinite(rows).all())


def append_rows(path: Path, rows: Rows) -> int:
    """Write behind all there is, and sync; the place of the first row.

    A torn row at the end, left by a crash, is filled up and never referred to.
    """
    width = rows.shape[1] * 4
    with open(path, "ab") as file:
        place = -(-file.tell() // width)
        file.write(bytes(place * width - file.tell()))
        file.write(rows.data)
        file.flush()
        os.fsync(file.fileno())
    return place
