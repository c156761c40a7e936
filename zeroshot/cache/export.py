"""All rows of a cache, one batch after another: to check them, and to hand them out."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zeroshot.cache.index import Batch, Index
from zeroshot.cache.lookup import Digests
from zeroshot.cache.segments import Rows, checksums_of, read_rows
from zeroshot.errors import UserError, unknown
from zeroshot.output import atomic

FORMATS = (".safetensors", ".npy")
HEADER = 4096
"""Bytes before the numbers of an export; a multiple of all alignments that are asked for."""


@dataclass(frozen=True)
class Health:
    """What is true of the rows of one encoder and kind."""

    encoder: str
    kind: str
    rows: int
    """Sound rows, each once."""
    damaged: int
    """Rows whose bytes changed or went missing: encoded again when they are next needed."""
    replaced: int
    """Older rows of ids that got new ones; they take room until their segment is pruned."""


@dataclass(frozen=True)
class Verified:
    """What a look at every row found."""

    spaces: tuple[Health, ...]
    lost: tuple[str, ...]
    """Segments that the index names and the folder has not."""
    orphans: tuple[str, ...]
    """Segments that the folder has and the index does not name: left by a crash, swept by prune."""

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged or lost."""
        return not self.lost and not any(space.damaged for space in self.spaces)


def verify(index: Index, folder: Path) -> Verified:
    """Read every row and check it; others may read and write meanwhile."""
    found = []
    for space, encoder, kind, dim in index.spaces():
        rows = damaged = replaced = 0
        for batch in index.batches(space):
            whole = _whole(batch, _rows(folder, batch, dim))
            rows += int((whole & batch.current).sum())
            damaged += int((~whole & batch.current).sum())
            replaced += int((~batch.current).sum())
        found.append(Health(encoder, kind, rows, damaged, replaced))
    named = index.segments()
    there = {path.name for path in folder.glob("*.f32")}
    return Verified(tuple(found), tuple(sorted(named - there)), tuple(sorted(there - named)))


def export(
    index: Index, folder: Path, target: Path, encoder: str, kind: str, *, half: bool = False
) -> int:
    """Write all sound rows of an encoder and kind, and beside them whose they are; how many.

    `x.safetensors` has them as `rows` `[n d]`, `x.npy` as the array; float32, or float16 with
    `half`. `x.ids.jsonl` has a line for each: `row`, `id`, and the `paths` of files that had this
    content when they were hashed. Memory is that of one batch.

    Raises:
        UserError: no such rows, another suffix.
    """
    if target.suffix not in FORMATS:
        raise unknown("format of an export", target.suffix, FORMATS)
    spaces = [s for s in index.spaces() if s[1:3] == (encoder, kind)]
    if not spaces:
        held = ", ".join(f"'{e}' {k}" for _, e, k, _ in index.spaces())
        raise UserError(f"the cache holds no {kind} rows of '{encoder}'; it holds {held or 'none'}")
    ((space, _, _, dim),) = spaces
    listed = target.with_suffix(".ids.jsonl")
    dtype = np.dtype("<f2" if half else "<f4")
    count = 0
    with atomic.whole(target) as rows_file, atomic.whole(listed) as ids_file:
        rows_file.write(bytes(HEADER))
        for batch in index.batches(space):
            rows = _rows(folder, batch, dim)
            good = (_whole(batch, rows) & batch.current).nonzero()[0].tolist()
            rows_file.write(np.ascontiguousarray(rows[good], dtype).data)
            paths = index.paths_of([batch.ids[i] for i in good])
            for number, i in enumerate(good, count):
                names = [_shown(path) for path in paths.get(batch.ids[i], [])]
                line = json.dumps({"row": number, "id": batch.ids[i], "paths": names})
                ids_file.write(line.encode() + b"\n")
            count += len(good)
        rows_file.seek(0)
        told = {"encoder": encoder, "kind": kind, "ids": listed.name}
        header = _safetensors if target.suffix == ".safetensors" else _npy
        rows_file.write(header(count, dim, dtype, told))
    return count


def _rows(folder: Path, batch: Batch, dim: int) -> Rows:
    rows = np.zeros((len(batch.ids), dim), dtype=np.float32)
    read_rows(folder / batch.segment, batch.places, rows)
    return rows


def _whole(batch: Batch, rows: Rows) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows are as they were put; one whose checksum holds no more is not."""
    sound: np.ndarray[tuple[int], np.dtype[np.bool_]]
    sound = checksums_of(Digests.of(batch.ids).seeds, rows) == batch.checksums
    return sound


def _shown(path: bytes) -> str:
    """A path; of what lies in an archive, the archive's and the place in it."""
    return path.replace(b"\0", b"#").decode("utf-8", "backslashreplace")


def _safetensors(count: int, dim: int, dtype: np.dtype[np.floating], told: dict[str, str]) -> bytes:
    """A header of `HEADER` bytes; the format lets spaces fill it up."""
    kind = {"<f4": "F32", "<f2": "F16"}[dtype.str]
    entry = {
        "dtype": kind,
        "shape": [count, dim],
        "data_offsets": [0, count * dim * dtype.itemsize],
    }
    text = json.dumps({"__metadata__": told, "rows": entry}).encode()
    if len(text) > HEADER - 8:
        raise UserError(f"the name of the encoder is too long for a header of {HEADER} bytes")
    return (HEADER - 8).to_bytes(8, "little") + text.ljust(HEADER - 8)


def _npy(count: int, dim: int, dtype: np.dtype[np.floating], told: dict[str, str]) -> bytes:
    """A header of `HEADER` bytes, version 1.0; what is told besides has no place in it."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({count}, {dim}), }}"
    length = HEADER - 10
    return (
        b"\x93NUMPY\x01\x00"
        + length.to_bytes(2, "little")
        + text.encode().ljust(length - 1)
        + b"\n"
    )
