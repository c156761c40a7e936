"""Writing anchor sets (`model_set.anchor_file` has the format), and joining them.

A set is two files, and a process can be killed between their renames. So the new lines first get a
name of their own (`lines_aside`), which readers know from the hash in the file of embeddings. The
set is the old one until that file is renamed, and the new one from then on.
"""

import contextlib
import glob
import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Bool, Int, Real
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.model_set.anchor_file import (
    BLOCK,
    ENCODERS,
    FORMAT,
    KINDS,
    Anchors,
    Array,
    Entry,
    VectorFormat,
    lines_aside,
    read_header,
)
from zeroshot.ops import normalize
from zeroshot.output import atomic, holders

__all__ = ["AnchorWriter", "write_anchors"]


class AnchorWriter:
    """Writes an anchor file row by row; it appears, complete, only if there was no error."""

    def __init__(
        self,
        path: Path,
        encoders: Mapping[str, str],
        *,
        kind: VectorFormat = "F32",
        force: bool = False,
    ) -> None:
        if path.suffix != ".safetensors":
            raise UserError(f"'{path}': anchors are a .safetensors file")
        lines = path.with_suffix(".jsonl")
        if path.exists() and not force:
            raise UserError(f"'{path}' exists; --overwrite replaces it")
        if lines.exists() and not path.exists():
            raise UserError(
                f"'{lines}' exists, and the captions of '{path}' would replace it; remove it, or "
                "choose another --out"
            )
        self.path = path
        self._force = force
        self.count = 0
        self._encoders = {k: v for k, v in encoders.items() if v}
        self._kind: VectorFormat = kind
        self._widths: tuple[int, int] | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                self._files = [
                    stack.enter_context(tempfile.TemporaryFile(dir=path.parent)) for _ in range(3)
                ]
                self._open = stack.pop_all()
        except OSError as error:
            raise atomic.start_error(path, error) from error

    def write(
        self,
        images: Real[Tensor, "n d"],
        texts: Real[Tensor, "n e"],
        entries: Iterable[Entry],
    ) -> None:
        """Append pairs; their embeddings are normalized.

        Raises:
            UserError: embeddings of another width than before.
            OutputError: they cannot be written, for example because the disk is full.
        """
        widths = images.shape[1], texts.shape[1]
        if self._widths is None:
            self._widths = widths
        if widths != self._widths:
            raise UserError(
                f"embeddings of {widths[0]} and {widths[1]} numbers after embeddings of "
                f"{self._widths[0]} and {self._widths[1]}: pairs of a set need the same encoders"
            )
        lines = [entry.line() for entry in entries]
        if not len(lines) == len(images) == len(texts):
            raise ValueError(f"{len(images)} images, {len(texts)} texts, {len(lines)} entries")
        text = "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")
        rows = [_encode(normalize(x.float()).numpy(), self._kind) for x in (images, texts)]
        with atomic.writing(self.path):
            for file, data in zip(self._files, (*(x.tobytes() for x in rows), text), strict=True):
                file.write(data)
        self.count += len(lines)

    def copy(self, anchors: Anchors, keep: Bool[Tensor, " a"] | None = None) -> None:
        """Append the pairs of a set, or those of them that `keep` says; raises as `write`."""
        for begin in range(0, len(anchors), BLOCK):
            block = slice(begin, begin + BLOCK)
            entries, images, texts = (
                anchors.entries[block],
                anchors.images[block],
                anchors.texts[block],
            )
            mask = torch.ones(len(entries), dtype=torch.bool) if keep is None else keep[block]
            kept = [entry for entry, is_kept in zip(entries, mask.tolist(), strict=True) if is_kept]
            self.write(images[mask], texts[mask], kept)

    def close(self) -> None:
        """Write the file and its `.jsonl`.

        Raises:
            UserError: there are no pairs, or a file exists and may not be replaced.
            OutputError: they cannot be written; an earlier set is as it was.
        """
        if not self.count:
            raise UserError(f"no pair is left for '{self.path}'")
        assert self._widths is not None
        kind = self._kind
        with atomic.writing(self.path):
            for file in self._files:
                file.flush()
            lines = _sha256(self._files[2])
        sizes = [self.count * w * np.dtype(KINDS[kind]).itemsize for w in self._widths]
        header = {
            "__metadata__": {"format": FORMAT, "lines": lines, **self._encoders},
            "images": _header_entry(kind, self.count, self._widths[0], 0, sizes[0]),
            "texts": _header_entry(kind, self.count, self._widths[1], sizes[0], sum(sizes)),
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        name = f"{lines_aside(self.path, lines)}.{holders.ourselves().mark}"
        aside = self.path.with_name(name)
        try:
            with atomic.whole(aside) as out:
                _copy(self._files[2], out)
            with atomic.whole(self.path, overwrite=self._force) as out:
                out.write(struct.pack("<Q", len(text)) + text)
                for file in self._files[:2]:
                    _copy(file, out)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        with atomic.writing(self.path):
            os.replace(aside, self.path.with_suffix(".jsonl"))
            atomic.sync(self.path.parent)
        _sweep(self.path)

    def __enter__(self) -> "AnchorWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            with contextlib.suppress(OSError):  # what could not be written has been reported
                self._open.close()


def _encode(rows: Array, kind: VectorFormat) -> Array:
    """Unit vectors as stored in a file."""
    if kind == "I8":
        rows = np.rint(rows * (127 / np.abs(rows).max(axis=1, keepdims=True)))
    return rows.astype(KINDS[kind])


def _header_entry(kind: str, count: int, width: int, begin: int, end: int) -> dict[str, Any]:
    return {"dtype": kind, "shape": [count, width], "data_offsets": [begin, end]}


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while data := file.read(16 << 20):
        digest.update(data)
    return digest.hexdigest()


def _sweep(path: Path) -> None:
    """Remove the lines that killed processes left under names of their own."""
    for left in path.parent.glob(f"{glob.escape(lines_aside(path, ''))}*"):
        with contextlib.suppress(OSError):
            if atomic.is_abandoned(left.name.rpartition(".")[2], left.stat().st_mtime):
                left.unlink()


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    source.seek(0)
    while data := source.read(16 << 20):
        target.write(data)


def write_anchors(
    path: Path,
    sets: Sequence[Anchors],
    *,
    without: Int[Tensor, " m"] | None = None,
    force: bool = False,
) -> int:
    """Write the pairs of several sets, except the indices `without`; returns their number.

    Rows have the first set's number format.

    Raises:
        UserError: sets of different encoders or widths, or no pair left.
    """
    first = sets[0]
    for other in sets[1:]:
        first.check_encoders(*(other.encoders.get(p, first.encoders.get(p, "")) for p in ENCODERS))
    kind = read_header(first.path)[0]["images"]["dtype"]
    keep = torch.ones(sum(map(len, sets)), dtype=torch.bool)
    if without is not None:
        keep[without] = False
    encoders = {k: v for anchors in reversed(sets) for k, v in anchors.encoders.items()}
    start = 0
    with AnchorWriter(path, encoders, kind=kind, force=force) as out:
        for anchors in sets:
            out.copy(anchors, keep[start : start + len(anchors)])
            start += len(anchors)
    return out.count
