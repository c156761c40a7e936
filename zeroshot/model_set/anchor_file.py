"""Anchor sets on disk: image-text pairs that couple two encoders.

`anchors.safetensors` has two arrays, `images [a d]` and `texts [a e]`, with row i of both for pair
i, in float32, float16 or int8, and the names of the encoders. `anchors.jsonl` beside it has a line
for each pair: `{"id": ..., "captions": [...], "path": ...}`; it may be missing. The sha256 of its
lines is in the file with the embeddings, so that lines of another set are found out.

An int8 row is a unit vector times a factor that makes its largest number 127 or -127. Normalizing
the row removes the factor, so the file does not contain it.

A large file is mapped into memory: the disk is read block by block, as rows are used. Nothing in
the file is executed, and a file with an inconsistent header is refused.
"""

import glob
import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Real
from torch import Tensor

from zeroshot.errors import NotAvailableError, UserError
from zeroshot.inputs.text_files import read_json_lines
from zeroshot.ops import normalize

MAPPED_BYTES = 256 << 20
"""A larger file is mapped; its rows stay as they are, perhaps in half precision or int8."""
FORMAT = "zeroshot.anchors/1"
ENCODERS = ("image_encoder", "text_encoder")
VectorFormat = Literal["F32", "F16", "I8"]
KINDS: Mapping[Any, Any] = {"F16": np.float16, "F32": np.float32, "I8": np.int8}
BLOCK = 8192
"""Rows that are read or written together."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Entry:
    """One pair's id, captions and file."""

    id: str
    captions: tuple[str, ...] = ()
    path: str | None = None
    """The image file."""

    def line(self) -> str:
        """As JSON."""
        fields = {"id": self.id, "captions": list(self.captions)}
        return json.dumps(fields | ({"path": self.path} if self.path else {}), ensure_ascii=False)


@dataclass(frozen=True)
class Anchors:
    """Anchor pairs: finite embeddings of length above 0, and the encoders that made them.

    From a small file they are unit vectors in float32. From a mapped file they are as stored, and
    a coupling normalizes them when it uses them.
    """

    path: Path
    images: Real[Tensor, "a d"]
    texts: Real[Tensor, "a e"]
    encoders: Mapping[str, str] = field(default_factory=dict)
    """Names of `image_encoder` and `text_encoder`, if the file has them."""
    lines: str | None = None
    """The sha256 of the lines that belong to the embeddings, if the file has it."""

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def fingerprint(self) -> str:
        """The first 12 hex digits of the file's sha256."""
        return _sha256(self.path)[:12]

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Entries of the `.jsonl` beside the file; numbered, without captions, if it is missing.

        Raises:
            UserError: lines of another set, or not as many as there are pairs.
        """
        beside = self.path.with_suffix(".jsonl")
        prefix = lines_aside(self.path, self.lines or "")
        aside = self.path.parent.glob(f"{glob.escape(prefix)}*") if self.lines else ()
        found = [file for file in (beside, *aside) if file.is_file()]
        if not found:
            return tuple(Entry(str(i)) for i in range(len(self)))
        ours = next((file for file in found if self.lines in (None, _sha256(file))), None)
        entries = tuple(_entries(ours or found[0]))
        if len(entries) != len(self):
            raise UserError(f"'{found[0]}' has {len(entries)} lines for {len(self)} anchors")
        if ours is None:
            raise UserError(
                f"'{found[0]}' is not the file that was written with '{self.path}', so its "
                "captions may be those of other pairs: put that file back, remove this one, or "
                "build the anchors again"
            )
        return entries

    @property
    def captions(self) -> tuple[str, ...]:
        """Every different caption, in order."""
        return tuple(dict.fromkeys(text for entry in self.entries for text in entry.captions))

    def check_encoders(self, image_encoder: str, text_encoder: str) -> None:
        """UserError if other encoders made these anchors, whatever their precision."""
        for part, name in zip(ENCODERS, (image_encoder, text_encoder), strict=True):
            made_by = self.encoders.get(part)
            if made_by is not None and _without_precision(made_by) != _without_precision(name):
                raise UserError(
                    f"'{self.path}' was made with the {part.replace('_', ' ')} {made_by}, not "
                    f"with {name}, and embeddings of different encoders cannot be compared; build "
                    "the anchors again, or use the encoder that made them"
                )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lines_aside(path: Path, sha256: str) -> str:
    """How the name of new lines begins until they take the place of those beside an anchor file.

    The process that writes them follows.
    """
    return f".{path.name}.lines.{sha256[:16]}"


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


def read_anchors(path: Path) -> Anchors:
    """The anchor pairs of a safetensors file with `images [a d]` and `texts [a e]`.

    Raises:
        NotAvailableError: no such file.
        UserError: arrays that are missing, do not match or are not finite.
    """
    if not path.is_file():
        raise NotAvailableError(f"the anchors '{path}' are not there; models.toml names them")
    header, start = read_header(path)
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
                raise UserError(f"'{path}': {name} has an embedding that is zero or not finite")
        if not mapped:
            rows[name] = normalize(rows[name].float())
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict):
        raise UserError(f"'{path}' is damaged: its metadata are no names of encoders")
    encoders = {part: str(metadata[part]) for part in ENCODERS if part in metadata}
    lines = (
        str(metadata["lines"]) if metadata.get("format") == FORMAT and "lines" in metadata else None
    )
    anchors = Anchors(path, rows["images"], rows["texts"], encoders, lines)
    if not mapped:
        _ = anchors.entries  # so that an error in them is raised now and not during a run
    return anchors


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's header, and the position of its data."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", begin := file.read(8))
            if begin == b"version ":
                raise ValueError("it is a Git LFS pointer; fetch the file with: git lfs pull")
            if length > min(size - 8, 100 << 20):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
    except (struct.error, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not a safetensors file: {error}") from error
    return header, 8 + length


def _array(path: Path, entry: Any, start: int, name: str) -> Array:
    """One array of a file by its entry in the header; mapped if the file is large."""
    try:
        dtype = KINDS[entry["dtype"]]
        shape = tuple(int(length) for length in entry["shape"])
        begin, end = (int(offset) for offset in entry["data_offsets"])
        count = int(np.prod([np.int64(n) for n in shape], dtype=np.float64))
        fits = min(shape, default=0) >= 0 and end - begin == count * np.dtype(dtype).itemsize
        if not fits or begin < 0 or start + end > path.stat().st_size:
            raise ValueError("offsets that do not add up")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        kinds = " or ".join(KINDS)
        raise UserError(
            f"'{path}' is not a safetensors file of {kinds} arrays: {name} has {error}"
        ) from error
    if not count:
        return np.empty(shape, dtype)
    # a private mapping: torch warns of arrays that cannot be written to
    mapped = np.memmap(path, dtype, "c", offset=start + begin, shape=shape)
    return np.asarray(mapped) if path.stat().st_size > MAPPED_BYTES else np.array(mapped)
