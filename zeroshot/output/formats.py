"""File formats of rows: JSON lines, CSV, Parquet or plain text.

A format encodes a row, and reads from a file the path, id and error of each row.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from zeroshot.errors import NotAvailableError, unknown
from zeroshot.inputs.text_files import FORMULA
from zeroshot.packaging.extras import how_to_install

Row = Mapping[str, Any]
"""A result as JSON: `schema`, `path`, `id`, the answer or an `error`, `models`, `method`."""

COLUMNS = {
    "zeroshot.caption/1": ("caption", "score"),
    "zeroshot.classify/1": (
        *("label", "score", "cosine", "abstained", "scored", "labels", "none", "label_set"),
    ),
    "zeroshot.embed/1": ("dim", "embedding"),
    "zeroshot.segment/1": ("width", "height", "regions", "scored", "mask", "drawn"),
    "zeroshot.detect/1": ("width", "height", "boxes", "drawn"),
    "zeroshot.match/1": ("text", "score", "label", "scored", "second", "texts"),
    "zeroshot.ask/1": ("question", "answer", "score", "scored", "questions"),
    "zeroshot.read/1": ("text", "score"),
    "zeroshot.filter/1": ("caption", "score", "kept", "truncated"),
    "zeroshot.search/1": ("query", "rank", "score", "cosine", "because"),
    "zeroshot.dedupe/1": (
        *("group", "keep", "kind", "copy_of", "cosine", "correlation"),
        *("width", "height", "bytes", "reason"),
    ),
}
"""The columns of a table for each kind of row, between `path, id` and `models, method,
error_type, error_message`. `label, score, cosine` belong to the best label. Lists and objects are
JSON."""


@dataclass(frozen=True)
class Record:
    """A row in a file."""

    raw: bytes
    path: str | None
    id: str | None
    failure: str | None = None
    """The error type, if the image failed."""

    @property
    def failed(self) -> bool:
        """Whether its image failed."""
        return self.failure is not None


@runtime_checkable
class Format(Protocol):
    """A format of rows that follow one another."""

    header: bytes

    def encode(self, row: Row) -> bytes:
        """The bytes to append for a row."""

    def records(self, data: bytes) -> list[Record]:
        """The complete rows after the header, without a partial last one; ValueError if invalid."""

    def cells(self, raw: bytes) -> Mapping[str, Any]:
        """The values of a record by column; ValueError if invalid."""


def to_json(value: object) -> str:
    """JSON on one line; ValueError for a number that is not finite."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def utf8(text: str) -> bytes:
    r"""UTF-8 bytes. Bytes of a file name that are not UTF-8 become `\udcff`, as in JSON."""
    return text.encode("utf-8", "backslashreplace")


class JsonLines:
    """One object per line."""

    header = b""

    def encode(self, row: Row) -> bytes:
        """The row as a JSON object."""
        return utf8(to_json(row)) + b"\n"

    def records(self, data: bytes) -> list[Record]:
        """Each complete line."""
        return [self._record(line) for line in re.findall(rb"[^\n]*\n", data)]

    def cells(self, raw: bytes) -> Mapping[str, Any]:
        """The object."""
        row: Any = json.loads(raw)
        if not isinstance(row, dict) or "path" not in row:
            raise ValueError(f"not a row: {raw[:60]!r}")
        return row

    def _record(self, line: bytes) -> Record:
        row = self.cells(line)
        error = row.get("error") or {"type": row.get("error_type")}
        return Record(line, row["path"], row.get("id"), error["type"])


def columns(schema: str) -> tuple[str, ...]:
    """All columns of a table of these rows."""
    return ("path", "id", *COLUMNS[schema], "models", "method", "error_type", "error_message")


def flat(row: Row, schema: str) -> dict[str, Any]:
    """The cells of a row in a table."""
    error = row.get("error") or {}
    cells = {**_best(row), **row}
    cells |= {"error_type": error.get("type"), "error_message": error.get("message")}
    return {name: _cell(cells.get(name)) for name in columns(schema)}


def _best(row: Row) -> Row:
    """The best label, the first text, or the first question and answer, with their scores."""
    for several in ("labels", "texts"):
        if row.get(several):
            first: Row = row[several][0]
            return first
    questions: Sequence[Row] = row.get("questions") or [{"answers": []}]
    return {**questions[0], **next(iter(questions[0]["answers"]), {})}


def _cell(value: object) -> object:
    if isinstance(value, str):
        return utf8(value).decode()
    return to_json(value) if isinstance(value, Mapping | Sequence) else value


class Csv:
    """A table with a header; an apostrophe guards text that a spreadsheet would compute."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.header = utf8(csv_line(columns(schema)))

    def encode(self, row: Row) -> bytes:
        """The row's cells; a missing value is an empty cell."""
        return utf8(csv_line(map(guarded, flat(row, self.schema).values())))

    def records(self, data: bytes) -> list[Record]:
        """Each complete row; a cell with line breaks spans several lines."""
        if self.header.startswith(data):
            return []
        if not data.startswith(self.header):
            raise ValueError("it has other columns")
        records, raw = [], b""
        for line in re.findall(rb"[^\n]*\n", data.removeprefix(self.header)):
            raw += line
            if raw.count(b'"') % 2 == 0:  # no cell is open
                records.append(self._record(raw))
                raw = b""
        if raw.count(b"\n") > 1:  # not just a partial row: a stray quote must not discard rows
            raise ValueError(f"a quote is never closed after {raw[:60]!r}")
        return records

    def cells(self, raw: bytes) -> Mapping[str, Any]:
        """The cells as texts, without the apostrophes that guard them; an empty one is None."""
        cells = next(csv.reader(io.StringIO(raw.decode(), newline="")))
        if len(cells) != len(columns(self.schema)):
            raise ValueError(f"not a row: {raw[:60]!r}")
        return {
            name: cell.removeprefix("'") or None
            for name, cell in zip(columns(self.schema), cells, strict=True)
        }

    def _record(self, raw: bytes) -> Record:
        named = self.cells(raw)
        return Record(raw, named["path"], named["id"], named["error_type"])


def csv_line(cells: Iterable[object]) -> str:
    """A row of a table, with its line end."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)  # so that \r is quoted as well
    return line.getvalue().removesuffix("\r\n") + "\n"


def guarded(cell: object) -> object:
    """What a spreadsheet would compute gets an apostrophe."""
    if isinstance(cell, bool):
        return str(cell).lower()
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


class FlatLines(JsonLines):
    """The cells of a table as one object per line, which becomes Parquet."""

    def __init__(self, schema: str) -> None:
        self.schema = schema

    def encode(self, row: Row) -> bytes:
        """The row's cells."""
        return super().encode(flat(row, self.schema))


class Text:
    """One line per input: the caption, the best label, or the labels of its regions or boxes.

    The line of a failed image is empty. A search has one line per hit: its path, unchanged.
    """

    header = b""

    def encode(self, row: Row) -> bytes:
        """The line of a row."""
        if row["schema"] == "zeroshot.search/1":
            return utf8("" if row.get("error") else row["path"] or "") + b"\n"
        regions = row.get("regions") or row.get("boxes") or []
        labels = ", ".join(dict.fromkeys(region["label"] for region in regions))
        text = row.get("caption") or _best(row).get("label") or labels
        return utf8(" ".join(text.split())) + b"\n"

    def records(self, data: bytes) -> list[Record]:
        """ValueError unless the file is empty, because the lines have no paths."""
        if data:
            raise ValueError("plain text has no paths, so it cannot be continued")
        return []

    def cells(self, raw: bytes) -> Mapping[str, Any]:
        """ValueError, because the lines have no paths."""
        raise ValueError("plain text has no paths")


def pyarrow() -> Any:
    """Import pyarrow; NotAvailableError says how to install it."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet
    except ImportError:
        raise NotAvailableError(
            f"Parquet needs pyarrow: {how_to_install('data')}, or choose .jsonl or .csv"
        ) from None
    return arrow


def to_parquet(lines: bytes, schema: str) -> bytes:
    """A Parquet table of `FlatLines`."""
    arrow = pyarrow()
    special = {"score": arrow.float64(), "cosine": arrow.float64(), "dim": arrow.int64()}
    special |= {name: arrow.float64() for name in ("correlation", "none")}
    special |= {name: arrow.int64() for name in ("rank", "width", "height", "group", "bytes")}
    special |= {name: arrow.bool_() for name in ("abstained", "kept", "truncated", "keep")}
    types = arrow.schema([(name, special.get(name, arrow.string())) for name in columns(schema)])
    rows = [json.loads(line) for line in lines.split(b"\n") if line]
    table = arrow.Table.from_pylist(rows, schema=types)
    sink = io.BytesIO()
    arrow.parquet.write_table(table, sink)
    return sink.getvalue()


def from_parquet(file: Path | io.BytesIO) -> bytes:
    """The `FlatLines` of a Parquet table."""
    table = pyarrow().parquet.read_table(file)
    return b"".join(utf8(to_json(row)) + b"\n" for row in table.to_pylist())


def read_rows(path: Path, schema: str) -> list[Mapping[str, Any]]:
    """The values of the rows in a file, by column; ValueError if invalid."""
    format = format_for(path, schema)
    table = path.suffix.lower() == ".parquet"
    data = from_parquet(path) if table else path.read_bytes()
    return [format.cells(record.raw) for record in format.records(data)]


def format_for(path: Path, schema: str) -> Format:
    """The format with this suffix; UserError for an unknown suffix."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix == "parquet":
        pyarrow()
    formats: dict[str, Format] = {
        "jsonl": JsonLines(),
        "csv": Csv(schema),
        "parquet": FlatLines(schema),
        "txt": Text(),
    }
    if suffix not in formats:
        raise unknown("output format", suffix, formats)
    return formats[suffix]
