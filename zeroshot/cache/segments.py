"""Read, append and check the embeddings in segment files."""

import contextlib
import errno
import io
import itertools
import os
import stat
import zlib
from pathlib import Path

import numpy as np

from zeroshot.cache.index_values import SEGMENT
from zeroshot.cache.lookup import Checksums, Numbers
from zeroshot.inputs.local_files import without_waiting

Vectors = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def checksums_of(seeds: Checksums, vectors: Vectors) -> Checksums:
    """A checksum of each embedding and its id, so that the embedding of another id fails."""
    width = vectors.shape[1] * 4
    data = vectors.data.cast("B") if vectors.size else memoryview(b"")
    checksums = [
        zlib.crc32(data[start : start + width], seed)
        for seed, start in zip(seeds.tolist(), range(0, len(data), width), strict=True)
    ]
    return np.array(checksums, dtype=np.uint32)


def read_vectors(path: Path, indices: Numbers, vectors: Vectors) -> None:
    """Fill `vectors`, which must be zero, with those at `indices` (ascending).

    A vector that the file does not have stays zero, so that its checksum fails.
    """
    breaks = ((np.diff(indices) != 1).nonzero()[0] + 1).tolist()  # neighbours are read together
    width = vectors.shape[1] * 4
    with (
        contextlib.suppress(OSError),
        open(path, "rb", buffering=0, opener=without_waiting) as file,
    ):
        for first, end in itertools.pairwise([0, *breaks, len(indices)]):
            _read_at(file, int(indices[first]) * width, vectors[first:end].data.cast("B"))


def _read_at(file: io.FileIO, start: int, into: memoryview) -> None:
    """Fill `into` until the file ends; a single read may return less."""
    file.seek(start)
    while into and (count := file.readinto(into)):
        into = into[count:]


def all_finite(vectors: Vectors) -> bool:
    """Whether all numbers are finite; mostly decided by their squares, which BLAS sums fast."""
    with np.errstate(all="ignore"):
        squares = np.vdot(vectors, vectors)
    return bool(np.isfinite(squares) or np.isfinite(vectors).all())


def append_vectors(path: Path, vectors: Vectors) -> int:
    """Append vectors and sync; returns the index of the first.

    A partial vector that a crash left at the end is filled up and never used.
    """
    width = vectors.shape[1] * 4
    with open(path, "ab", opener=_no_link) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        first = -(-file.tell() // width)
        file.write(bytes(first * width - file.tell()))
        file.write(vectors.data)
        file.flush()
        os.fsync(file.fileno())
    return first


def segments_in(folder: Path) -> list[Path]:
    """The segment files of a cache; other files in its folder are not ours."""
    return [path for path in folder.glob("*.f32") if SEGMENT.fullmatch(path.name)]


def _no_link(path: str, flags: int) -> int:
    """An opener that refuses a link, which may lead to any file, and does not wait for a pipe."""
    own = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    return os.open(path, flags | own, 0o666)
