"""The files of a shard: rows, rows and a matrix, or the files that clip-retrieval writes.

Rows have the same format as in a single file (`formats`). Vectors come in channels: the image's
and, for some layouts, its caption's. A failed image has no vectors.
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from zeroshot.errors import UserError, unknown
from zeroshot.inputs.source import Source
from zeroshot.output.filesystem import Location
from zeroshot.output.filtered_pairs import write_tar
from zeroshot.output.formats import (
    Format,
    Record,
    format_for,
    from_parquet,
    pyarrow,
    to_parquet,
)
from zeroshot.results.data_frames import columns
from zeroshot.results.result import EmbedResult, FilterResult, Result

Matrix = npt.NDArray[np.float32]
FORMATS = ("jsonl", "csv", "parquet")
LAYOUTS = ("rows", "safetensors", "clip-retrieval", "webdataset")


@dataclass(frozen=True)
class Content:
    """A shard's rows in order, and in each channel the vectors of the rows that did not fail."""

    records: Sequence[Record] = ()
    vectors: Sequence[Matrix] = ()
    sources: Sequence[Source] = ()
    """The inputs of the rows, while they are written."""


@runtime_checkable
class Layout(Protocol):
    """How a shard is stored in its folder."""

    has_vectors: ClassVar[bool]

    @property
    def format(self) -> Format:
        """The format of the rows while the shard is unfinished."""

    def split(self, result: Result) -> tuple[dict[str, Any], list[Sequence[float]]]:
        """A result's row, and one vector per channel; no vectors if it failed."""

    def files(self, shard: int, of: int) -> list[str]:
        """The names of all files that `write` may write."""

    def write(self, folder: Location, shard: int, of: int, content: Content) -> dict[str, int]:
        """Write each file whole or not at all, replacing earlier ones; returns their sizes."""

    def read(self, folder: Location, shard: int, of: int) -> Content:
        """The content that `write` wrote, in float32."""


@dataclass(frozen=True)
class RowFiles:
    """`00000.jsonl`, `.csv` or `.parquet`."""

    schema: str
    suffix: str
    columns: Sequence[str] = ()
    """Of a table; by default all."""
    format: Format = field(init=False)

    has_vectors: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.suffix not in FORMATS:
            raise unknown("format of shards", self.suffix, FORMATS)
        object.__setattr__(self, "columns", tuple(self.columns) or columns(self.schema))
        form = format_for(Path(f"x.{self.suffix}"), self.schema, self.columns)
        object.__setattr__(self, "format", form)

    def split(self, result: Result) -> tuple[dict[str, Any], list[Sequence[float]]]:
        """The whole row."""
        return result.row(), []

    def files(self, shard: int, of: int) -> list[str]:
        """One file."""
        return [self._file(shard)]

    def write(self, folder: Location, shard: int, of: int, content: Content) -> dict[str, int]:
        """Write one file."""
        rows = b"".join(record.raw for record in content.records)
        table = self.suffix == "parquet"
        data = to_parquet(rows, self.columns) if table else self.format.header + rows
        folder.replace(self._file(shard), data)
        return {self._file(shard): len(data)}

    def read(self, folder: Location, shard: int, of: int) -> Content:
        """Read the file."""
        data = folder.read(self._file(shard))
        if self.suffix == "parquet":
            data = from_parquet(io.BytesIO(data))
        return Content(self.format.records(data))

    def _file(self, shard: int) -> str:
        return f"{shard:05d}.{self.suffix}"


@dataclass(frozen=True)
class Safetensors:
    """Rows, and `embeddings [n d]` in `00000.safetensors`; NaN if an image failed."""

    rows: RowFiles
    half: bool = False

    has_vectors: ClassVar[bool] = True

    @property
    def format(self) -> Format:
        """The format of the rows."""
        return self.rows.format

    def split(self, result: Result) -> tuple[dict[str, Any], list[Sequence[float]]]:
        """The row without its embedding, and the embedding."""
        assert isinstance(result, EmbedResult)
        return _without_embedding(result), [result.embedding] if result.error is None else []

    def files(self, shard: int, of: int) -> list[str]:
        """The matrix and the rows."""
        return [self._file(shard), *self.rows.files(shard, of)]

    def write(self, folder: Location, shard: int, of: int, content: Content) -> dict[str, int]:
        """Write the matrix, then the rows."""
        good = [i for i, record in enumerate(content.records) if not record.failed]
        width = content.vectors[0].shape[1] if content.vectors else 0
        matrix = np.full((len(content.records), width), np.nan, np.float32)
        if good:
            matrix[good] = content.vectors[0]
        stored = matrix.astype(np.float16) if self.half else matrix
        metadata = {
            "rows": f"{shard:05d}.{self.rows.suffix}"
        }  # one key: several have no fixed order
        data = save({"embeddings": stored}, metadata)
        folder.replace(self._file(shard), data)
        return {self._file(shard): len(data)} | self.rows.write(folder, shard, of, content)

    def read(self, folder: Location, shard: int, of: int) -> Content:
        """Read the rows and the matrix."""
        records = self.rows.read(folder, shard, of).records
        matrix = load(folder.read(self._file(shard)))["embeddings"].astype(np.float32)
        good = matrix[[not record.failed for record in records]]
        return Content(records, [good] if len(good) else [])

    def _file(self, shard: int) -> str:
        return f"{shard:05d}.safetensors"


@dataclass(frozen=True)
class ClipRetrieval:
    """`img_emb/img_emb_0.npy`, `text_emb/text_emb_0.npy`, `metadata/metadata_0.parquet`.

    The files have the form of clip-retrieval's writer (github.com/rom1504/clip-retrieval,
    clip_inference/writer.py): fp16 vectors, columns `image_path` and `caption`, shard numbers with
    as many digits as the number of shards. Its tools expect a vector for every image, so a failed
    image is only in our rows beside these folders.
    """

    rows: RowFiles

    has_vectors: ClassVar[bool] = True

    @property
    def format(self) -> Format:
        """The format of the rows beside these folders."""
        return self.rows.format

    def split(self, result: Result) -> tuple[dict[str, Any], list[Sequence[float]]]:
        """The row without its embedding; the embeddings of the image and of its caption, if any."""
        assert isinstance(result, EmbedResult)
        embeddings = () if result.error else (result.embedding, result.text_embedding)
        return _without_embedding(result), [v for v in embeddings if v]

    def files(self, shard: int, of: int) -> list[str]:
        """Matrices, metadata and rows."""
        matrices, metadata = self._matrices(shard, of), self._metadata(shard, of)
        return [*matrices, metadata, *self.rows.files(shard, of)]

    def write(self, folder: Location, shard: int, of: int, content: Content) -> dict[str, int]:
        """Write matrices and metadata of the images that did not fail, then all rows."""
        good = [json.loads(record.raw) for record in content.records if not record.failed]
        files = {}
        if good:
            for file, matrix in zip(self._matrices(shard, of), content.vectors, strict=False):
                data = io.BytesIO()
                np.save(data, matrix.astype(np.float16))
                files[file] = data.getvalue()
            files[self._metadata(shard, of)] = self._table(good)
        for file, content_of in files.items():
            folder.replace(file, content_of)
        sizes = {file: len(content_of) for file, content_of in files.items()}
        return sizes | self.rows.write(folder, shard, of, content)

    def _table(self, good: Sequence[dict[str, Any]]) -> bytes:
        arrow, sink = pyarrow(), io.BytesIO()
        columns = {"image_path": [row["path"] for row in good]}
        if "caption" in good[0]:
            columns["caption"] = [row["caption"] for row in good]
        text = {name: arrow.array(values, arrow.string()) for name, values in columns.items()}
        arrow.parquet.write_table(arrow.table(text), sink)
        return sink.getvalue()

    def read(self, folder: Location, shard: int, of: int) -> Content:
        """Read rows and matrices."""
        files = folder.read_all(self._matrices(shard, of)).values()
        matrices = [np.load(io.BytesIO(data), allow_pickle=False) for data in files]
        vectors = [matrix.astype(np.float32) for matrix in matrices]
        return Content(self.rows.read(folder, shard, of).records, vectors)

    def _matrices(self, shard: int, of: int) -> list[str]:
        number = _number(shard, of)
        return [f"{kind}_emb/{kind}_emb_{number}.npy" for kind in ("img", "text")]

    def _metadata(self, shard: int, of: int) -> str:
        return f"metadata/metadata_{_number(shard, of)}.parquet"


@dataclass(frozen=True)
class KeptPairs:
    """Rows of a filter, and `kept/00000.tar`: a webdataset of the pairs that it keeps.

    The name of a pair is its shard and its row, five digits each and counted from 0: `0000100042`
    is row 42 of `00001.jsonl`. If no pair of a shard is kept, there is no tar file.
    """

    rows: RowFiles

    has_vectors: ClassVar[bool] = False

    @property
    def format(self) -> Format:
        """The format of the rows."""
        return self.rows.format

    def split(self, result: Result) -> tuple[dict[str, Any], list[Sequence[float]]]:
        """The whole row."""
        return self.rows.split(result)

    def files(self, shard: int, of: int) -> list[str]:
        """The tar file and the rows."""
        return [self._file(shard), *self.rows.files(shard, of)]

    def _file(self, shard: int) -> str:
        return f"kept/{shard:05d}.tar"

    def write(self, folder: Location, shard: int, of: int, content: Content) -> dict[str, int]:
        """Write the tar file, then all rows."""
        rows = [json.loads(record.raw) for record in content.records]
        pairs = [
            (f"{shard:05d}{index:05d}", source, row)
            for index, (row, source) in enumerate(zip(rows, content.sources, strict=True))
            if row.get("kept")
        ]
        file, sizes = self._file(shard), {}
        if pairs:
            with folder.whole(file) as tar:
                write_tar(tar, pairs)
                sizes[file] = tar.tell()
        else:
            folder.remove(file)
        return sizes | self.rows.write(folder, shard, of, content)

    def read(self, folder: Location, shard: int, of: int) -> Content:
        """Read the rows."""
        return self.rows.read(folder, shard, of)


def _without_embedding(result: EmbedResult) -> dict[str, Any]:
    return {k: v for k, v in result.row().items() if k != "embedding"}


def _number(shard: int, of: int) -> str:
    return str(shard).zfill(int(math.log10(of)) + 1)


def layout_for(
    name: str, schema: str, suffix: str, half: bool = False, columns: Sequence[str] = ()
) -> Layout:
    """The layout called `name`, with rows of `schema` in files with this suffix.

    `columns` are those of a table, by default all.

    Raises:
        UserError: an unknown name, or a layout that does not fit these rows.
    """
    if name not in LAYOUTS:
        raise unknown("layout", name, LAYOUTS)
    if half and name == "rows":
        raise UserError("--half needs --layout safetensors: rows of text are float32")
    if name == "rows":
        return RowFiles(schema, suffix, columns)
    pairs = name == "webdataset"
    if schema != (FilterResult if pairs else EmbedResult).schema:
        raise UserError(f"--layout {name} is for {'filtered pairs' if pairs else 'embeddings'}")
    if name == "safetensors":
        return Safetensors(RowFiles(schema, suffix, columns), half)
    if suffix != "jsonl":
        raise UserError(f"--layout {name} writes its rows as jsonl: leave --format out")
    if pairs:
        return KeptPairs(RowFiles(schema, suffix))
    pyarrow()
    return ClipRetrieval(RowFiles(schema, suffix))
