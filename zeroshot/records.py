"""Rows in a file: JSON lines, CSV, Parquet or plain text, written so that a run can go on later.

Rows are appended as they come. Beside `x.csv` stands `x.csv.run.json`: the settings the rows were
made with (a later run with others is refused), and how many rows there were when the last run
began. A row that a later run writes for a path with a failed or an outdated row takes that row's
place when the file is closed, or when it is next opened after a crash.
"""

import contextlib
import csv
import io
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from zeroshot.errors import NotAvailableError, UserError, unknown

Row = Mapping[str, Any]
"""A result as JSON: `schema`, `path`, `id`, the answer or an `error`, `models`, `method`."""

COLUMNS = {
    "zeroshot.caption/1": ("caption", "score"),
    "zeroshot.classify/1": ("label", "score", "cosine", "abstained", "scored", "labels"),
    "zeroshot.embed/1": ("dim", "embedding"),
}
"""A table's columns for each kind of row, between `path, id` and `models, method, error_type,
error_message`. `label, score, cosine` are those of the best label; lists and objects are JSON.
"""
FORMULA = tuple("=+-@\t\r'＝＋－＠")
"""A text cell that begins so gets an apostrophe before it, lest a spreadsheet compute it."""


# Formats: one row to bytes, and back to what the row is known by


@dataclass(frozen=True)
class Record:
    """A row as it stands in a file."""

    raw: bytes
    path: str | None
    id: str | None
    failed: bool


class Format(Protocol):
    """How rows are spelled, one after another."""

    header: bytes

    def encode(self, row: Row) -> bytes:
        """The row, ready to be appended."""

    def records(self, data: bytes) -> list[Record]:
        """The complete rows behind the header, without a torn last one; ValueError for no rows."""


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _utf8(text: str) -> bytes:
    r"""Valid UTF-8 also of a file name that is none: its stray bytes become `\udcff`, as in JSON."""
    return text.encode("utf-8", "backslashreplace")


class JsonLines:
    """One object per line."""

    header = b""

    def encode(self, row: Row) -> bytes:
        """The row as it is."""
        return _utf8(_json(row)) + b"\n"

    def records(self, data: bytes) -> list[Record]:
        """Each complete line."""
        return [self._record(line) for line in re.findall(rb"[^\n]*\n", data)]

    def _record(self, line: bytes) -> Record:
        row = json.loads(line)
        if not isinstance(row, dict) or "path" not in row:
            raise ValueError(f"no row: {line[:60]!r}")
        failed = bool(row.get("error") or row.get("error_type"))
        return Record(line, row["path"], row.get("id"), failed)


def columns(schema: str) -> tuple[str, ...]:
    """All columns of a table of such rows."""
    return ("path", "id", *COLUMNS[schema], "models", "method", "error_type", "error_message")


def flat(row: Row, schema: str) -> dict[str, Any]:
    """A row as the cells of a table."""
    best = (row.get("labels") or [{}])[0]
    error = row.get("error") or {}
    cells = {**best, **row, "error_type": error.get("type"), "error_message": error.get("message")}
    return {name: _cell(cells.get(name)) for name in columns(schema)}


def _cell(value: object) -> object:
    return (
        _json(value)
        if isinstance(value, Mapping | Sequence) and not isinstance(value, str)
        else value
    )


class Csv:
    """A table with a header; text that a spreadsheet would compute is kept from it."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.header = self._line(columns(schema))

    def _line(self, cells: Iterable[object]) -> bytes:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        return _utf8(line.getvalue())

    def encode(self, row: Row) -> bytes:
        """The row's cells; empty for what it does not have."""
        return self._line(_guarded(cell) for cell in flat(row, self.schema).values())

    def records(self, data: bytes) -> list[Record]:
        """Each complete line, or lines where a cell has line breaks."""
        records, raw = [], b""
        for line in re.findall(rb"[^\n]*\n", data.removeprefix(self.header)):
            raw += line
            if raw.count(b'"') % 2 == 0:  # no cell is open
                records.append(self._record(raw))
                raw = b""
        return records

    def _record(self, raw: bytes) -> Record:
        cells = next(csv.reader(io.StringIO(raw.decode(), newline="")))
        if len(cells) != len(columns(self.schema)):
            raise ValueError(f"no row: {raw[:60]!r}")
        named = {
            name: cell.removeprefix("'") or None
            for name, cell in zip(columns(self.schema), cells, strict=True)
        }
        return Record(raw, named["path"], named["id"], named["error_type"] is not None)


def _guarded(cell: object) -> object:
    if isinstance(cell, bool):
        return str(cell).lower()
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


class FlatLines(JsonLines):
    """The cells of a table as one object per line: what becomes Parquet."""

    def __init__(self, schema: str) -> None:
        self.schema = schema

    def encode(self, row: Row) -> bytes:
        """The row's cells."""
        return super().encode(flat(row, self.schema))


class Text:
    """One caption or best label per line, an empty line for a failure: in the order of inputs."""

    header = b""

    def encode(self, row: Row) -> bytes:
        """The caption or the label."""
        best = (row.get("labels") or [{}])[0]
        said = row.get("caption") or best.get("label") or ""
        return _utf8(" ".join(said.split())) + b"\n"

    def records(self, data: bytes) -> list[Record]:
        """None can be told, as the lines do not say whose they are."""
        if data:
            raise ValueError("plain text holds no paths, so it cannot be continued")
        return []


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise NotAvailableError(
            "Parquet needs pyarrow: pip install 'zeroshot[data]', or choose .jsonl or .csv"
        ) from None
    return pyarrow


def _to_parquet(lines: bytes, schema: str) -> bytes:
    """The table of `FlatLines`."""
    arrow = _pyarrow()
    special = {"score": arrow.float64(), "cosine": arrow.float64(), "dim": arrow.int64()}
    special["abstained"] = arrow.bool_()
    types = arrow.schema([(name, special.get(name, arrow.string())) for name in columns(schema)])
    rows = [json.loads(line) for line in lines.split(b"\n") if line]
    table = arrow.Table.from_pylist(rows, schema=types)
    sink = io.BytesIO()
    arrow.parquet.write_table(table, sink)
    return sink.getvalue()


def _from_parquet(path: Path) -> bytes:
    """The `FlatLines` of a table."""
    table = _pyarrow().parquet.read_table(path)
    return b"".join(_utf8(_json(row)) + b"\n" for row in table.to_pylist())


# The file that grows


def _replace(path: Path, data: bytes) -> None:
    """Give `path` new content: all of it or, whatever happens, none."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    with open(new, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def merge(old: Sequence[Record], new: Sequence[Record]) -> list[Record]:
    """Each new record in place of a failed or outdated one of its path; else at the end."""
    merged = list(old)
    places: dict[str | None, list[int]] = defaultdict(list)
    for number, record in enumerate(old):
        places[record.path].append(number)
    for record in new:
        here = [] if record.path is None else places[record.path]
        stale = [n for n in here if merged[n].failed or merged[n].id != record.id]
        if stale:
            merged[stale[0]] = record
            here.remove(stale[0])
        else:
            merged.append(record)
    return merged


def _differences(old: object, new: object, name: str = "") -> list[str]:
    """`method was 'asif', is 'magic'`, for all that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        prefix = f"{name}." if name else ""
        return [x for key in keys for x in _differences(old.get(key), new.get(key), prefix + key)]
    return [] if old == new else [f"{name} was {_json(old)}, is {_json(new)}"]


class Output:
    """The file at `path`, opened to go on where an earlier run with equal settings stopped.

    `schema` names the rows, `settings` (JSON) whatever decides what they say. The suffix picks the
    format: jsonl, csv, parquet, txt. Parquet cannot be appended to: rows go to `x.parquet.part`,
    and into the table on closing. Plain text cannot be continued. One process at a time.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        retry_failed: bool = False,
    ) -> None:
        self.path = path
        self.schema = schema
        self._format = _format(path, schema)
        self._table = path.suffix.lower() == ".parquet"
        self._work = path.with_name(path.name + ".part") if self._table else path
        self._run_file = path.with_name(path.name + ".run.json")
        if path.is_dir():
            raise UserError(f"'{path}' is a folder; --out names a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for old in (path, self._work, self._run_file):
                old.unlink(missing_ok=True)
        made_with = json.loads(_json({"rows": schema, "settings": settings}))
        records = self._earlier(made_with)
        self._good = Counter((_key(r.path), r.id) for r in records if not r.failed)
        self._bad = Counter(_key(r.path) for r in records if r.failed and not retry_failed)
        self.resumed = self._good.total() + self._bad.total()
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self._run = made_with | {"started": started, "rows_before": len(records)}
        self._write_run(finished=None)
        self._file = open(self._work, "ab")  # noqa: SIM115
        if not self._file.tell():
            self._file.write(self._format.header)

    def _earlier(self, made_with: dict[str, Any]) -> list[Record]:
        """Rows of earlier runs, in a file that is whole again."""
        if not any(file.exists() and file.stat().st_size for file in (self.path, self._work)):
            return []
        advice = "write over it with --overwrite, or choose another --out"
        if not self._run_file.exists():
            raise UserError(f"'{self.path}' has no {self._run_file.name} beside it; {advice}")
        try:
            run = json.loads(self._run_file.read_bytes())
            was = {key: run[key] for key in made_with}
            if self._table and not self._work.exists():
                _replace(self._work, _from_parquet(self.path))
            records = self._format.records(self._work.read_bytes())
            before = int(run["rows_before"])
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise UserError(f"'{self.path}' cannot be continued: {error}; {advice}") from error
        if differ := _differences(was, made_with):
            raise UserError(f"'{self.path}' was made otherwise ({'; '.join(differ)}); {advice}")
        return self._tidy(records, before)

    def _tidy(self, records: list[Record], before: int) -> list[Record]:
        """Merge what came behind the first `before` rows into these; drop a torn last row."""
        merged = merge(records[:before], records[before:])
        data = self._format.header + b"".join(record.raw for record in merged)
        if data != self._work.read_bytes():
            _replace(self._work, data)
        return merged

    def _write_run(self, **more: Any) -> None:
        self._run |= more
        text = json.dumps({"schema": "zeroshot.run/1"} | self._run, ensure_ascii=False, indent=2)
        _replace(self._run_file, _utf8(text + "\n"))

    def holds(self, path: str | None, id: str | None) -> bool:
        """Whether an earlier run's row answers for this picture; each row does so once."""
        for counter, key in ((self._good, (_key(path), id)), (self._bad, _key(path))):
            if counter[key]:
                counter[key] -= 1
                return True
        return False

    def write(self, rows: Iterable[Row]) -> None:
        """Append a batch and hand it to the system, so that it outlives this process."""
        data = bytearray()
        for row in rows:
            if row["schema"] != self.schema:
                raise ValueError(f"a row of {row['schema']} in a file of {self.schema}")
            data += self._format.encode(row)
        self._file.write(data)
        self._file.flush()

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """Bring the rows into order and note `summary` (device, throughput) in the run file."""
        if self._file.closed:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        before = self._run["rows_before"]
        if before:
            records = self._format.records(self._work.read_bytes())
            before = len(self._tidy(records, before))
        if self._table:
            _replace(self.path, _to_parquet(self._work.read_bytes(), self.schema))
            self._work.unlink()
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        self._write_run(finished=finished, rows_before=before, **(summary or {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _format(path: Path, schema: str) -> Format:
    suffix = path.suffix.lower().removeprefix(".")
    if suffix == "parquet":
        _pyarrow()
    formats: dict[str, Format] = {
        "jsonl": JsonLines(),
        "csv": Csv(schema),
        "parquet": FlatLines(schema),
        "txt": Text(),
    }
    if suffix not in formats:
        raise unknown("output format", suffix, formats)
    return formats[suffix]


def _key(path: str | None) -> str | None:
    """The path as every format spells it."""
    return None if path is None else _utf8(path).decode()


def versions() -> dict[str, str]:
    """Versions of the libraries that rows depend on, for the run file."""
    names = ["zeroshot", "torch", "transformers", "open_clip_torch", "pillow", "numpy"]
    installed = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed
