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

from zeroshot.errors import NotAvailableError, UserError, unknown
from zeroshot.inputs.text_files import FORMULA
from zeroshot.packaging.extras import how_to_install
from zeroshot.results.data_frames import arrow_type, cell, cells, columns

Row = Mapping[str, Any]
"""A result as JSON: `schema`, `path`, `id`, the answer or an `error`, `models`, `method`."""

TABLES = (".csv", ".parquet")
LONGEST_HEADER = 1 << 16
"""Bytes of a table's first line."""


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
        try:
            row: Any = json.loads(raw)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if not isinstance(row, dict) or "path" not in row:
            raise ValueError(f"not a row: {raw[:60]!r}")
        return row

    def _record(self, line: bytes) -> Record:
        row = self.cells(line)
        error = row.get("error") or {"type": row.get("error_type")}
        return Record(line, row["path"], row.get("id"), error["type"])


def default_columns(path: Path, schema: str) -> tuple[str, ...]:
    """The columns of a new table; the models, the same in each row, stand in a CSV's record."""
    csv_file = path.suffix.lower() == ".csv"
    return tuple(name for name in columns(schema) if not (csv_file and name == "models"))


def chosen_columns(given: str, path: Path, schema: str) -> tuple[str, ...]:
    """The columns that `--columns path,label` names, of a table at `path`.

    Raises:
        UserError: no such column, one that is named twice, or a file that is no table.
    """
    if path.suffix.lower() not in TABLES:
        raise UserError("--columns is for tables: --out FILE.csv or FILE.parquet")
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in columns(schema):
            raise unknown("column", name, columns(schema))
        if names.count(name) > 1:
            raise UserError(f"--columns {given}: '{name}' is there twice")
    return tuple(names)


def existing_columns(path: Path, schema: str) -> tuple[str, ...] | None:
    """The columns of a table that is there; None for no table of these rows.

    Of an unfinished Parquet file those of its first row.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        if path.suffix.lower() == ".csv":
            with path.open("rb") as file:
                head = file.readline(LONGEST_HEADER)
            names = next(csv.reader([head.decode()])) if head.endswith(b"\n") else []
        elif part.exists():
            with part.open("rb") as lines:
                names = list(json.loads(lines.readline()))
        else:
            names = pyarrow().parquet.read_schema(path).names
    except (OSError, ValueError, csv.Error):
        return None
    return tuple(names) if names and set(names) <= set(columns(schema)) else None


def flat(row: Row, names: Iterable[str]) -> dict[str, Any]:
    """The cells of a row in a table with these columns."""
    found = cells(row)
    chosen = {name: cell(found.get(name)) for name in names}
    for value in chosen.values():
        if isinstance(value, float):
            to_json(value)  # which refuses what is no number
    return chosen


class Csv:
    """A table with a header; an apostrophe guards text that a spreadsheet would compute."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.header = utf8(csv_line(names))

    def encode(self, row: Row) -> bytes:
        """The row's cells; a missing value is an empty cell."""
        return utf8(csv_line(map(guarded, flat(row, self.names).values())))

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
        if len(cells) != len(self.names):
            raise ValueError(f"not a row: {raw[:60]!r}")
        return {
            name: cell.removeprefix("'") or None
            for name, cell in zip(self.names, cells, strict=True)
        }

    def _record(self, raw: bytes) -> Record:
        named = self.cells(raw)
        if "path" not in named:
            raise ValueError("it has no column path, which says which images are done")
        return Record(raw, named["path"], named.get("id"), named.get("error_type"))


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

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def encode(self, row: Row) -> bytes:
        """The row's cells."""
        return super().encode(flat(row, self.names))


class Text:
    """One line per input: the caption, the best label, or the labels or captions of its parts.

    The line of a failed image is empty. A search has one line per hit: its path, unchanged.
    """

    header = b""

    def encode(self, row: Row) -> bytes:
        """The line of a row."""
        if row["schema"] == "zeroshot.search/1":
            return utf8("" if row.get("error") else row["path"] or "") + b"\n"
        regions = row.get("regions") or row.get("boxes") or []
        names = [region.get("label") or region.get("caption") or "" for region in regions]
        labels = ", ".join(dict.fromkeys(names))
        text = row.get("caption") or cells(row).get("label") or labels
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


def to_parquet(lines: bytes, names: Sequence[str]) -> bytes:
    """A Parquet table of `FlatLines` with these columns."""
    arrow = pyarrow()
    types = arrow.schema([(name, arrow_type(name)) for name in names])
    rows = [json.loads(line) for line in lines.split(b"\n") if line]
    table = arrow.Table.from_pylist(rows, schema=types)
    sink = io.BytesIO()
    arrow.parquet.write_table(table, sink)
    return sink.getvalue()


def from_parquet(file: Path | io.BytesIO) -> bytes:
    """The `FlatLines` of a Parquet table."""
    table = pyarrow().parquet.read_table(file)
    return b"".join(utf8(to_json(row)) + b"\n" for row in table.to_pylist())


def format_for(path: Path, schema: str, names: Sequence[str] | None = None) -> Format:
    """The format with this suffix; a table has the columns `names`, or those of a new one.

    Raises:
        UserError: an unknown suffix.
        NotAvailableError: Parquet without pyarrow.
    """
    suffix = path.suffix.lower().removeprefix(".")
    if suffix == "parquet":
        pyarrow()
    names = names or default_columns(path, schema)
    formats: dict[str, Format] = {
        "jsonl": JsonLines(),
        "csv": Csv(names),
        "parquet": FlatLines(names),
        "txt": Text(),
    }
    if suffix not in formats:
        raise unknown("output format", suffix, formats)
    return formats[suffix]
