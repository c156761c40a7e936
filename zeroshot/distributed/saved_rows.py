"""The rows that a run has written, to a file or to a folder of shards, and the run's record."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zeroshot.distributed.folder import layout_of, read_run, shard_count
from zeroshot.errors import UserError, no_such
from zeroshot.inputs.text_files import read_json
from zeroshot.output import filesystem
from zeroshot.output.filesystem import Location
from zeroshot.output.formats import (
    Format,
    JsonLines,
    Row,
    existing_columns,
    format_for,
    from_parquet,
)
from zeroshot.output.resumable import run_file


@dataclass(frozen=True)
class SavedRows:
    """Rows of one schema."""

    schema: str
    rows: Callable[[], Iterator[Row]]
    """The rows in order, by column, as often as needed; a table has lists as JSON."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What `run.json` says; empty for JSON lines without one."""
    unfinished: int = 0
    """Shards whose rows are missing."""


def saved_rows(place: Path | Location) -> SavedRows:
    """The rows of a file, or of the finished shards of a folder.

    Raises:
        UserError: no rows, or rows that are damaged.
    """
    if not isinstance(place, Path) or place.is_dir():
        return _of_folder(filesystem.at(place))
    if not place.exists():
        raise no_such(place)
    beside = run_file(place)
    record = read_json(beside) if beside.exists() else {}
    schema = record.get("rows") if isinstance(record, dict) else None
    if place.suffix.lower() == ".jsonl":
        schema = schema or next((str(row.get("schema")) for row in _lines(place)), None)
        if schema is None:
            raise UserError(f"'{place}' has no rows")
        return SavedRows(schema, lambda: _lines(place), record)
    if schema is None:
        raise UserError(
            f"'{place}' has no {beside.name} beside it, which says what its rows are: name JSON "
            "lines (.jsonl), or put it there"
        )
    form = format_for(place, schema, existing_columns(place, schema))

    def rows() -> Iterator[Row]:
        table = place.suffix.lower() == ".parquet"
        data = from_parquet(place) if table else place.read_bytes()
        yield from _cells(form, data, place)

    return SavedRows(schema, rows, record)


def _lines(path: Path) -> Iterator[Row]:
    """The rows of JSON lines, one by one."""
    form = JsonLines()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield form.cells(line)
            except ValueError as error:
                raise UserError(f"'{path}' line {number} is no row: {error}") from error


def _cells(form: Format, data: bytes, where: object) -> Iterator[Row]:
    try:
        for record in form.records(data):
            yield form.cells(record.raw)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{where}' cannot be read: {error}") from error


def _of_folder(files: Location) -> SavedRows:
    run = read_run(files)
    if run is None:
        raise UserError(f"'{files}' has no run.json: it is no folder of rows")
    layout, total = layout_of(files, run), shard_count(files, run)
    names = set(files.names())
    done = [shard for shard in range(total) if f"{shard:05d}.json" in names]

    def rows() -> Iterator[Row]:
        for shard in done:
            for record in layout.read(files, shard, total).records:
                yield layout.format.cells(record.raw)

    return SavedRows(run["rows"], rows, run, total - len(done))
