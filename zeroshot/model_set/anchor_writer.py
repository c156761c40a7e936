"""Writing anchor sets (`model_set.anchor_file` has the format), and joining them."""

import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Int, Real
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.model_set.anchor_file import (
    BLOCK,
    ENCODERS,
    KINDS,
    Anchors,
    Array,
    Entry,
    VectorFormat,
    read_header,
)
from zeroshot.ops import normalize

__all__ = ["AnchorWriter", "write_anchors"]

FORMAT = "zeroshot.anchors/1"


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
        if path.exists() and not force:
            raise UserError(f"'{path}' exists; --overwrite replaces it")
        self.path = path
        self.count = 0
        self._encoders = {k: v for k, v in encoders.items() if v}
        self._kind: VectorFormat = kind
        self._widths: tuple[int, int] | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                self._files = [
                    stack.enter_context(self._part(name).open("w+b"))
                    for name in ("images", "texts", "lines")
                ]
                self._open = stack.pop_all()
        except OSError as error:
            raise UserError(f"cannot write '{path}': {error.strerror}") from error

    def _part(self, name: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{os.getpid()}.{name}")

    def write(
        self,
        images: Real[Tensor, "n d"],
        texts: Real[Tensor, "n e"],
        entries: Iterable[Entry],
    ) -> None:
        """Append pairs; their embeddings are normalized."""
        widths = images.shape[1], texts.shape[1]
        if self._widths is None:
            self._widths = widths
        if widths != self._widths:
            raise UserError(
                f"embeddings of {widths[0]} and {widths[1]} numbers after embeddings of "
                f"{self._widths[0]} and {self._widths[1]}: pairs of a set need the same encoders"
            )
        for file, rows in zip(self._files, (images, texts), strict=False):
            file.write(_encode(normalize(rows.float()).numpy(), self._kind).tobytes())
        lines = [entry.line() for entry in entries]
        if not len(lines) == len(images) == len(texts):
            raise ValueError(f"{len(images)} images, {len(texts)} texts, {len(lines)} entries")
        self._files[2].write(
            "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")
        )
        self.count += len(lines)

    def close(self) -> None:
        """Move the complete file and its `.jsonl` to their names."""
        if not self.count:
            raise UserError(f"no pair is left for '{self.path}'")
        assert self._widths is not None
        whole = self._part("whole")
        kind = self._kind
        sizes = [self.count * w * np.dtype(KINDS[kind]).itemsize for w in self._widths]
        header = {
            "__metadata__": {"format": FORMAT, **self._encoders},
            "images": _header_entry(kind, self.count, self._widths[0], 0, sizes[0]),
            "texts": _header_entry(kind, self.count, self._widths[1], sizes[0], sum(sizes)),
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with whole.open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for file in self._files[:2]:
                _copy(file, out)
            out.flush()
            os.fsync(out.fileno())
        self._files[2].flush()
        os.fsync(self._files[2].fileno())
        os.replace(self._part("lines"), self.path.with_suffix(".jsonl"))
        os.replace(whole, self.path)

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
            self._open.close()
            for name in ("images", "texts", "lines", "whole"):
                self._part(name).unlink(missing_ok=True)


def _encode(rows: Array, kind: VectorFormat) -> Array:
    """Unit vectors as stored in a file."""
    if kind == "I8":
        rows = np.rint(rows * (127 / np.abs(rows).max(axis=1, keepdims=True)))
    return rows.astype(KINDS[kind])


def _header_entry(kind: str, count: int, width: int, begin: int, end: int) -> dict[str, Any]:
    return {"dtype": kind, "shape": [count, width], "data_offsets": [begin, end]}


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
            for begin in range(0, len(anchors), BLOCK):
                block = slice(begin, min(begin + BLOCK, len(anchors)))
                mask = keep[start + block.start : start + block.stop]
                entries = anchors.entries[block]
                out.write(
                    anchors.images[block][mask],
                    anchors.texts[block][mask],
                    [entries[i] for i in mask.nonzero()[:, 0].tolist()],
                )
            start += len(anchors)
    return out.count
