"""Anchor sets on disk: image-text pairs that couple two encoders.

`anchors.safetensors` holds `images [a d]` and `texts [a e]`, row i of both of one pair, in float32,
float16 or int8, and the names of the encoders that made them. `anchors.jsonl` beside it has one
line for each pair: `{"id": ..., "captions": [...], "path": ...}`; it may be missing.

An int8 row is a unit row times a scale of its own, which makes its largest number 127 or -127; the
scale is the length of what is there, and so needs no place in the file.

A large file is mapped and not read: rows come from the disk block by block, as they are used.
Nothing in it is executed, and a header that does not add up is refused.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int, Real
from torch import Tensor

from zeroshot.errors import NotAvailableError, UserError
from zeroshot.inputs.text_files import read_json_lines
from zeroshot.ops import normalize

MAPPED_BYTES = 256 << 20
"""A larger file is mapped; its rows stay as they are, in half precision or int8 maybe."""
ENCODERS = ("image_encoder", "text_encoder")
Kind = Literal["F32", "F16", "I8"]
KINDS: Mapping[Any, Any] = {"F16": np.float16, "F32": np.float32, "I8": np.int8}
BLOCK = 8192

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Entry:
    """What is known of one pair beside its rows."""

    id: str
    captions: tuple[str, ...] = ()
    path: str | None = None
    """The picture's file."""

    def line(self) -> str:
        """As JSON."""
        held = {"id": self.id, "captions": list(self.captions)}
        return json.dumps(held | ({"path": self.path} if self.path else {}), ensure_ascii=False)


@dataclass(frozen=True)
class Anchors:
    """Anchor pairs: rows that are finite and have a direction, and where they came from.

    Rows of a small file are at unit length in float32; those of a mapped file are as they lie
    there, and a coupling brings them to unit length as it uses them.
    """

    path: Path
    images: Real[Tensor, "a d"]
    texts: Real[Tensor, "a e"]
    encoders: Mapping[str, str] = field(default_factory=dict)
    """Names of `image_encoder` and `text_encoder`, where the file tells."""

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def fingerprint(self) -> str:
        """12 hex digits of the sha256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """What the lines beside the file say; numbered pairs without captions if there are none."""
        beside = self.path.with_suffix(".jsonl")
        if not beside.is_file():
            return tuple(Entry(str(i)) for i in range(len(self)))
        entries = tuple(_entries(beside))
        if len(entries) != len(self):
            raise UserError(f"'{beside}' has {len(entries)} lines for {len(self)} anchors")
        return entries

    @property
    def captions(self) -> tuple[str, ...]:
        """Every different caption, in order."""
        return tuple(dict.fromkeys(text for entry in self.entries for text in entry.captions))

    def check_encoders(self, image_encoder: str, text_encoder: str) -> None:
        """UserError if other encoders made these anchors; their precision does not matter."""
        for part, name in zip(ENCODERS, (image_encoder, text_encoder), strict=True):
            made_by = self.encoders.get(part)
            if made_by is not None and _without_precision(made_by) != _without_precision(name):
                raise UserError(
                    f"'{self.path}' was made with the {part.replace('_', ' ')} {made_by}, not "
                    f"with {name}: rows of different encoders do not compare; build the anchors "
                    "again, or use the encoder they were made with"
                )


def _without_precision(name: str) -> str:
    return name.rpartition("/")[0] or name


def _entries(path: Path) -> Iterator[Entry]:
    """The pairs of `anchors.jsonl`; paths in it may be bytes that are not UTF-8."""
    for number, (where, row) in enumerate(read_json_lines(path, check=False)):
        captions, file = row.get("captions"), row.get("path")
        if not isinstance(captions, list):
            raise UserError(f"{where}, column 'captions': expected a list of texts")
        id = str(row.get("id", number))
        yield Entry(id, tuple(map(str, captions)), None if file is None else str(file))


# Reading


def read_anchors(path: Path) -> Anchors:
    """The anchor pairs of a safetensors file with `images [a d]` and `texts [a e]`.

    Raises:
        NotAvailableError: no such file.
        UserError: arrays that are missing, do not match or are not finite.
    """
    if not path.is_file():
        raise NotAvailableError(f"the anchors '{path}' are not there; models.toml names them")
    header, start = _header(path)
    names = {name for name in header if name != "__metadata__"}
    if not {"images", "texts"} <= names:
        raise UserError(f"'{path}' holds {sorted(names)}; anchors are two arrays: images, texts")
    images, texts = (_array(path, header[name], start, name) for name in ("images", "texts"))
    if images.ndim != 2 or texts.ndim != 2 or len(images) != len(texts) or not len(images):
        raise UserError(
            f"'{path}': images {list(images.shape)} and texts {list(texts.shape)}; "
            "expected [a d] and [a e] with as many rows"
        )
    rows = {"images": torch.from_numpy(images), "texts": torch.from_numpy(texts)}
    mapped = path.stat().st_size > MAPPED_BYTES
    for name in rows:
        for begin in range(0, len(images), BLOCK):
            block = rows[name][begin : begin + BLOCK].float()
            if not (block.isfinite().all() and block.any(1).all()):
                raise UserError(f"'{path}': {name} has a row that is zero or not finite")
        if not mapped:
            rows[name] = normalize(rows[name].float())
    told = header.get("__metadata__", {})
    encoders = {part: str(told[part]) for part in ENCODERS if part in told}
    anchors = Anchors(path, rows["images"], rows["texts"], encoders)
    if not mapped:
        _ = anchors.entries  # what is wrong with them is said now, not in the midst of a run
    return anchors


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's header, and where its data begins."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, 100 << 20):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
    except (struct.error, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not a safetensors file: {error}") from error
    return header, 8 + length


def _array(path: Path, told: Any, start: int, name: str) -> Array:
    """One array of a file: mapped, or read if the file is small."""
    try:
        kind = KINDS[told["dtype"]]
        shape = tuple(int(length) for length in told["shape"])
        begin, end = (int(place) for place in told["data_offsets"])
        count = int(np.prod([np.int64(n) for n in shape], dtype=np.float64))
        fits = min(shape, default=0) >= 0 and end - begin == count * np.dtype(kind).itemsize
        if not fits or begin < 0 or start + end > path.stat().st_size:
            raise ValueError("offsets that do not add up")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        kinds = " or ".join(KINDS)
        raise UserError(
            f"'{path}' is not a safetensors file of {kinds} arrays: {name} has {error}"
        ) from error
    if not count:
        return np.empty(shape, kind)
    # a private mapping: torch warns of arrays that cannot be written to
    mapped = np.memmap(path, kind, "c", offset=start + begin, shape=shape)
    return np.asarray(mapped) if path.stat().st_size > MAPPED_BYTES else np.array(mapped)


# Writing


class Writer:
    """An anchor file that is written row by row and is there, whole, only when all went well."""

    def __init__(
        self, path: Path, encoders: Mapping[str, str], *, kind: Kind = "F32", force: bool = False
    ) -> None:
        if path.suffix != ".safetensors":
            raise UserError(f"'{path}': anchors are a .safetensors file")
        if path.exists() and not force:
            raise UserError(f"'{path}' exists; --overwrite writes over it")
        self.path = path
        self.count = 0
        self._encoders = {k: v for k, v in encoders.items() if v}
        self._kind: Kind = kind
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
        """Append pairs; rows are brought to unit length."""
        widths = images.shape[1], texts.shape[1]
        if self._widths is None:
            self._widths = widths
        if widths != self._widths:
            raise UserError(
                f"rows of {widths[0]} and {widths[1]} numbers beside rows of {self._widths[0]} "
                f"and {self._widths[1]}: pairs of one set have the same encoders"
            )
        for file, rows in zip(self._files, (images, texts), strict=False):
            file.write(_kept(normalize(rows.float()).numpy(), self._kind).tobytes())
        lines = [entry.line() for entry in entries]
        if not len(lines) == len(images) == len(texts):
            raise ValueError(f"{len(images)} images, {len(texts)} texts, {len(lines)} entries")
        self._files[2].write(
            "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")
        )
        self.count += len(lines)

    def close(self) -> None:
        """Put the file and its lines in their places."""
        if not self.count:
            raise UserError(f"no pair is left for '{self.path}'")
        assert self._widths is not None
        whole = self._part("whole")
        kind = self._kind
        sizes = [self.count * w * np.dtype(KINDS[kind]).itemsize for w in self._widths]
        header = {
            "__metadata__": {"format": "zeroshot.model_set.anchor_file/1", **self._encoders},
            "images": _told(kind, self.count, self._widths[0], 0, sizes[0]),
            "texts": _told(kind, self.count, self._widths[1], sizes[0], sum(sizes)),
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

    def __enter__(self) -> "Writer":
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


def _kept(rows: Array, kind: Kind) -> Array:
    """Unit rows in the form that a file has them."""
    if kind == "I8":
        rows = np.rint(rows * (127 / np.abs(rows).max(axis=1, keepdims=True)))
    return rows.astype(KINDS[kind])


def _told(kind: str, count: int, width: int, begin: int, end: int) -> dict[str, Any]:
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
    """All pairs of these sets but those at the places `without`; how many there are.

    Rows are kept as precisely as the first set has them.

    Raises:
        UserError: sets of different encoders or widths, or no pair left.
    """
    first = sets[0]
    for other in sets[1:]:
        first.check_encoders(*(other.encoders.get(p, first.encoders.get(p, "")) for p in ENCODERS))
    kind = _header(first.path)[0]["images"]["dtype"]
    kept = torch.ones(sum(map(len, sets)), dtype=torch.bool)
    if without is not None:
        kept[without] = False
    encoders = {k: v for one in reversed(sets) for k, v in one.encoders.items()}
    start = 0
    with Writer(path, encoders, kind=kind, force=force) as out:
        for one in sets:
            for begin in range(0, len(one), BLOCK):
                block = slice(begin, min(begin + BLOCK, len(one)))
                here = kept[start + block.start : start + block.stop]
                chosen = here.nonzero()[:, 0].tolist()
                entries = one.entries[block]
                out.write(
                    one.images[block][here],
                    one.texts[block][here],
                    [entries[i] for i in chosen],
                )
            start += len(one)
    return out.count
