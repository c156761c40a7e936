"""Check or export all embeddings of a cache, batch by batch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zeroshot.cache.index import Batch, Index
from zeroshot.cache.lookup import Digests
from zeroshot.cache.parquet_export import Exported, write_parquet
from zeroshot.cache.segments import Vectors, checksums_of, read_vectors, segments_in
from zeroshot.errors import UserError, unknown
from zeroshot.output import atomic

FORMATS = (".safetensors", ".npy", ".parquet")
HEADER = 4096
"""Size of the header of an export in bytes; a multiple of every alignment that a format needs."""


@dataclass(frozen=True)
class Health:
    """The state of the embeddings of one encoder and kind."""

    encoder: str
    kind: str
    rows: int
    """Valid embeddings, each counted once."""
    damaged: int
    """Embeddings with changed or missing bytes; they are encoded again when needed."""
    replaced: int
    """Embeddings that newer ones replaced; they use space until their segment is pruned."""


@dataclass(frozen=True)
class Verified:
    """The result of checking every embedding."""

    spaces: tuple[Health, ...]
    lost: tuple[str, ...]
    """Segments in the index that are missing from the folder."""
    orphans: tuple[str, ...]
    """Segments in the folder that are not in the index: left by a crash, removed by prune."""

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged or lost."""
        return not self.lost and not any(space.damaged for space in self.spaces)


def verify(index: Index, folder: Path) -> Verified:
    """Read and check every embedding; other processes may read and write meanwhile."""
    spaces = []
    for space, encoder, kind, dim in index.spaces():
        rows = damaged = replaced = 0
        for batch in index.batches(space):
            valid = _valid(batch, _read(folder, batch, dim))
            rows += int((valid & batch.current).sum())
            damaged += int((~valid & batch.current).sum())
            replaced += int((~batch.current).sum())
        spaces.append(Health(encoder, kind, rows, damaged, replaced))
    indexed = {segment.name for segment in index.segments()}
    files = {path.name for path in segments_in(folder)}
    return Verified(tuple(spaces), tuple(sorted(indexed - files)), tuple(sorted(files - indexed)))


def ids_of(target: Path) -> Path:
    """The file of ids beside an export."""
    return target.with_suffix(".ids.jsonl")


def export(
    index: Index, folder: Path, target: Path, encoder: str, kind: str, *, half: bool = False
) -> int:
    """Write all valid embeddings of an encoder and kind, and their ids; returns their number.

    `x.safetensors` has them as `rows` `[n d]`, `x.npy` as the array; float32, or float16 with
    `half`. `x.ids.jsonl` has a line for each: `row`, `id`, and the `paths` of files that had this
    content when they were hashed. `x.parquet` has these as columns, and no second file
    (`parquet_export`). Memory is that of one batch. Earlier files are replaced, but old ids never
    lie beside new embeddings: they are removed first.

    Raises:
        UserError: there are no such embeddings, or the suffix is unknown.
        OutputError: they cannot be written; earlier files are as they were.
    """
    if target.suffix not in FORMATS:
        raise unknown("format of an export", target.suffix, FORMATS)
    spaces = [s for s in index.spaces() if s[1:3] == (encoder, kind)]
    if not spaces:
        there = ", ".join(f"'{e}' {k}" for _, e, k, _ in index.spaces())
        raise UserError(
            f"the cache has no {kind} embeddings of '{encoder}'; available: {there or 'none'}"
        )
    space, _, _, dim = spaces[0]
    found = _exported(index, folder, space, dim)
    if target.suffix == ".parquet":
        known = {"encoder": encoder, "kind": kind, "dim": str(dim)}
        return write_parquet(target, found, dim, known, half=half)
    ids_path = ids_of(target)
    dtype = np.dtype("<f2" if half else "<f4")
    count = 0
    with atomic.whole(ids_path) as ids_file, atomic.whole(target) as vectors_file:
        vectors_file.write(bytes(HEADER))
        for vectors, ids, paths in found:
            vectors_file.write(np.ascontiguousarray(vectors, dtype).data)
            for number, (id, names) in enumerate(zip(ids, paths, strict=True), count):
                line = json.dumps({"row": number, "id": id, "paths": names})
                ids_file.write(line.encode() + b"\n")
            count += len(ids)
        vectors_file.seek(0)
        metadata = {"encoder": encoder, "kind": kind, "ids": ids_path.name}
        header = _safetensors if target.suffix == ".safetensors" else _npy
        vectors_file.write(header(count, dim, dtype, metadata))
        for file in (vectors_file, ids_file):
            file.flush()
            atomic.sync(file.fileno())  # so that nothing but the renames is left to fail
        ids_path.unlink(missing_ok=True)
    return count


def _exported(index: Index, folder: Path, space: int, dim: int) -> Iterator[Exported]:
    """Valid embeddings with their ids and paths, batch by batch, each once."""
    for batch in index.batches(space):
        vectors = _read(folder, batch, dim)
        good = (_valid(batch, vectors) & batch.current).nonzero()[0].tolist()
        ids = [batch.ids[i] for i in good]
        paths = index.paths_of(ids)
        yield vectors[good], ids, [[_shown(path) for path in paths.get(id, [])] for id in ids]


def _read(folder: Path, batch: Batch, dim: int) -> Vectors:
    vectors = np.zeros((len(batch.ids), dim), dtype=np.float32)
    read_vectors(folder / batch.segment, batch.indices, vectors)
    return vectors


def _valid(batch: Batch, vectors: Vectors) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which embeddings match their checksums."""
    valid: np.ndarray[tuple[int], np.dtype[np.bool_]]
    valid = checksums_of(Digests.from_ids(batch.ids).seeds, vectors) == batch.checksums
    return valid


def _shown(path: bytes) -> str:
    """A path; for a file in an archive, the archive's path and the location in it."""
    return path.replace(b"\0", b"#").decode("utf-8", "backslashreplace")


def _safetensors(
    count: int, dim: int, dtype: np.dtype[np.floating], metadata: dict[str, str]
) -> bytes:
    """A header of `HEADER` bytes, padded with spaces as the format allows."""
    kind = {"<f4": "F32", "<f2": "F16"}[dtype.str]
    entry = {
        "dtype": kind,
        "shape": [count, dim],
        "data_offsets": [0, count * dim * dtype.itemsize],
    }
    text = json.dumps({"__metadata__": metadata, "rows": entry}).encode()
    if len(text) > HEADER - 8:
        raise UserError(f"the name of the encoder is too long for a header of {HEADER} bytes")
    return (HEADER - 8).to_bytes(8, "little") + text.ljust(HEADER - 8)


def _npy(count: int, dim: int, dtype: np.dtype[np.floating], _: dict[str, str]) -> bytes:
    """A header of `HEADER` bytes, version 1.0; the format has no metadata."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({count}, {dim}), }}"
    length = HEADER - 10
    return (
        b"\x93NUMPY\x01\x00"
        + length.to_bytes(2, "little")
        + text.encode().ljust(length - 1)
        + b"\n"
    )
