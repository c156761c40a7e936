"""Write rows to a file (JSON lines, CSV, Parquet or plain text) so that a run can be resumed.

Rows are appended as they come. `x.csv.run.json` beside `x.csv` has the settings of the rows (a run
with others is refused) and the number of rows when the last run started. If a later run writes a
row for a path with a failed or outdated row, the new row replaces it when the file is closed, or
when it is next opened after a crash.
"""

import contextlib
import csv
import functools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from zeroshot.errors import OutputError, UserError
from zeroshot.output import atomic, leases
from zeroshot.output.appended import AppendedFile
from zeroshot.output.filesystem import Disk
from zeroshot.output.formats import (
    TABLES,
    Record,
    Row,
    default_columns,
    existing_columns,
    format_for,
    from_parquet,
    to_json,
    to_parquet,
    utf8,
)
from zeroshot.packaging.version import __version__

FINGERPRINT = re.compile("[0-9a-f]{64}")
PLAIN = re.compile(r"[\w.@:/+-]+")
"""A value that needs no quotation marks in a sentence."""
MOST_NAMED = 3
"""Items of a list that a message names."""
ANY_ID = "*"
"""Content id of a remote file, unknown before download; matches any earlier row with its path."""


def merge(old: Sequence[Record], new: Sequence[Record]) -> list[Record]:
    """Replace failed or outdated records by new ones with the same path; append other new ones."""
    merged = list(old)
    indices: dict[str | None, list[int]] = defaultdict(list)
    for index, record in enumerate(old):
        indices[record.path].append(index)
    for record in new:
        same_path = [] if record.path is None else indices[record.path]
        stale = [i for i in same_path if merged[i].failed or merged[i].id != record.id]
        if stale:
            merged[stale[0]] = record
            same_path.remove(stale[0])
        else:
            merged.append(record)
    return merged


def differences(old: object, new: object, name: str = "") -> list[str]:
    """What differs, in words: `method was asif, is magic`, `label 'cat' is new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        prefix = "" if name in ("", "settings") else f"{name}."
        keys = sorted(old.keys() | new.keys())
        return [x for key in keys for x in differences(old.get(key), new.get(key), prefix + key)]
    if old == new:
        return []
    if isinstance(old, list) and isinstance(new, list):
        return _of_lists(old, new, name)
    if all(isinstance(x, str) and FINGERPRINT.fullmatch(x) for x in (old, new)):
        return [f"{name} are others"]
    return [f"{name} was {_shown(old)}, is {_shown(new)}"]


def differences_of_runs(
    run: Mapping[str, Any], made_with: Mapping[str, Any], about: Mapping[str, Any]
) -> list[str]:
    """What differs between the record of a run and another run, with what only `about` has.

    What was read from files (labels, templates) decides rows by a fingerprint, which says no more
    than that it differs; the two `about` say in what.
    """
    differ = differences({key: run.get(key) for key in made_with}, dict(made_with))
    was = run.get("about")
    if not differ or not isinstance(was, dict):
        return differ
    both = [key for key in about if key in was]
    words = differences({key: was[key] for key in both}, {key: about[key] for key in both})
    if words:
        differ = [line for line in differ if not line.endswith(" are others")]
    return list(dict.fromkeys([*words, *differ]))


def _of_lists(old: Sequence[object], new: Sequence[object], name: str) -> list[str]:
    """`label 'cat' is new`; of more than a few how many."""
    what, words = name.removesuffix("s"), []
    texts = [[x if isinstance(x, str) else to_json(x) for x in items] for items in (old, new)]
    for found, other, is_so in ((texts[1], texts[0], "new"), (texts[0], texts[1], "gone")):
        items = list(dict.fromkeys(found))
        known = set(other)
        items = [item for item in items if item not in known]
        words += [f"{what} '{item:.60}' is {is_so}" for item in items[:MOST_NAMED]]
        if more := len(items) - MOST_NAMED if len(items) > MOST_NAMED else 0:
            words.append(f"{more} more {what}s are {is_so}")
    return words or [f"the {name} are in another order"]


def _shown(value: object) -> str:
    if value is None:
        return "not given"
    if isinstance(value, str) and PLAIN.fullmatch(value):
        return value
    return to_json(value)


class ResumableFile:
    """The output file at `path`, which continues an earlier run with the same settings.

    `schema` names the rows; `settings` (JSON) are everything that decides their content; `about`
    (JSON) is for people: labels, templates, `command`. The suffix
    selects the format: jsonl, csv, parquet, txt. A Parquet file cannot be appended to: rows go to
    `x.parquet.part`, and into the table on closing. Plain text cannot be continued. A second
    process is refused; one that takes over from a process that does not answer continues in a copy,
    so that nothing gets in between if that process was only suspended. Rows come in batches of
    `batch_size`; an incomplete batch of a killed run is dropped, because a number can differ in its
    last digit if images are batched otherwise. A table has `columns`, by default those that it has
    already; without `id` it is not seen that an image has changed.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        retry_failed: bool = False,
        batch_size: int = 1,
        about: Mapping[str, Any] | None = None,
        columns: Sequence[str] | None = None,
    ) -> None:
        self.path = path
        self._about = dict(about or {})
        self._batch_size = batch_size
        self.schema = schema
        columns = _columns(path, schema, columns, overwrite)
        self._names = columns or default_columns(path, schema)
        self._format = format_for(path, schema, columns)
        tabular = path.suffix.lower() in TABLES
        self._has_ids = not tabular or "id" in self._names
        if retry_failed and tabular and "error_type" not in self._names:
            raise UserError(
                f"--retry-failed: '{path}' has no column error_type, which says what failed"
            )
        self._table = path.suffix.lower() == ".parquet"
        self._work = path.with_name(path.name + ".part") if self._table else path
        self._run_file = run_file(path)
        self._failed_to_write = False
        made_with = _made_with(schema, settings)
        if path.is_dir():
            raise UserError(f"'{path}' is a folder; --out names a file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lease = self._claim()
        except OSError as error:
            raise atomic.start_error(path, error) from error
        try:
            if overwrite:
                for old in (path, self._work, self._run_file):
                    old.unlink(missing_ok=True)
            self._begin(made_with, retry_failed)
        except OSError as error:
            self._lease.release()
            raise atomic.start_error(path, error) from error
        except BaseException:
            self._lease.release()
            raise

    def _claim(self) -> leases.Lease:
        lease = leases.claim(Disk(self.path.parent), self.path.name)
        if isinstance(lease, leases.Lease):
            return lease
        raise UserError(
            f"'{self.path}' is being written by {lease or 'another process'}; wait for it, choose "
            "another --out, or a folder (--out DIR/), whose shards several processes can share"
        )

    def _begin(self, made_with: dict[str, Any], retry_failed: bool) -> None:
        records = self._earlier(made_with)
        self._equal = _equal(records)
        self._good = Counter((written_path(r.path), r.id) for r in records if not r.failed)
        self._ids = {written_path(r.path): r.id for r in records if not r.failed}
        self._failed = Counter(
            written_path(r.path) for r in records if r.failed and not retry_failed
        )
        self.resumed = self._good.total() + self._failed.total()
        self._run = made_with | {"about": with_commands(self._about, self._commands)}
        self._run |= {"versions": versions(), "started": _now(), "ended": None}
        self._write_run(rows_before=len(records))
        self._table_was = _identity(self.path)
        self._file = AppendedFile(self._work)
        if not self._file.size:
            self._file.append(self._format.header)

    def _earlier(self, made_with: dict[str, Any]) -> list[Record]:
        """The rows of earlier runs, after the file is repaired."""
        self._commands: Sequence[str] = ()
        if not any(file.exists() and file.stat().st_size for file in (self.path, self._work)):
            if self._lease.generation:
                self._work.unlink(missing_ok=True)
            return []
        advice = "replace it with --overwrite, or choose another --out"
        if not self._run_file.exists():
            raise UserError(f"'{self.path}' has no {self._run_file.name} beside it; {advice}")
        try:
            run = json.loads(self._run_file.read_bytes())
            before = int(run["rows_before"])
            if differ := differences_of_runs(run, made_with, self._about):
                raise UserError(f"it was made with other settings ({'; '.join(differ)})")
            self._commands = (run.get("about") or {}).get("commands", ())
            if self._table and not self._work.exists():
                atomic.replace(self._work, from_parquet(self.path))
            records = self._format.records(self._work.read_bytes())
            if run.get("ended") is None:
                new = len(records) - before
                records = records[: before + new - new % self._batch_size]
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise UserError(f"'{self.path}' cannot be continued: {error}; {advice}") from error
        return self._tidy(records, before)

    def _tidy(self, records: list[Record], before: int) -> list[Record]:
        """Merge later rows into the first `before` ones; drop a partial last row."""
        merged = merge(records[:before], records[before:])
        data = self._format.header + b"".join(record.raw for record in merged)
        if self._lease.generation or data != self._work.read_bytes():
            atomic.replace(self._work, data)
        return merged

    def _write_run(self, **more: Any) -> None:
        self._run |= more
        atomic.replace(self._run_file, _run_text(self._run))

    def has_path(self, path: str | None) -> bool:
        """Whether an earlier run has a row with this path, even if the image has changed."""
        path = written_path(path)
        return path in self._ids or path in self._failed

    def take_row(self, path: str | None, id: str | None) -> bool:
        """Whether an earlier run has a row for this image; each row is counted once."""
        path = written_path(path)
        if id == ANY_ID or not self._has_ids:
            id = self._ids.get(path)
        if self._good[path, id]:
            self._good[path, id] -= 1
        elif self._failed[path]:
            self._failed[path] -= 1
        else:
            return False
        return True

    def check_doubles(self, path: str | None, id: str | None) -> None:
        """Check that no row for this image is left after `take_row` for each time it is named.

        Raises:
            UserError: rows are left, and two rows for it are equal.
        """
        path = written_path(path)
        if id == ANY_ID or not self._has_ids:
            id = self._ids.get(path)
        more = self._good[path, id] + self._failed[path]
        if more and path in self._equal:
            raise UserError(
                f"'{self.path}' has {more} more rows for '{path}' than it is named, so two "
                "processes seem to have written it; replace it with --overwrite, or choose another "
                "--out"
            )

    def write(self, rows: Iterable[Row]) -> None:
        """Append a batch, so that it survives the end of this process.

        Raises:
            OutputError: the disk is full, or the file is not this process's any more.
        """
        data = bytearray()
        for row in rows:
            if row["schema"] != self.schema:
                raise ValueError(f"a row of {row['schema']} in a file of {self.schema}")
            data += self._format.encode(row)
        try:
            with atomic.writing(self.path):
                self._check_lease()
                self._file.append(data)
        except OutputError:
            self._failed_to_write = True
            raise

    def _check_lease(self) -> None:
        if not self.path.parent.exists():
            self._file.check()  # then the claim is gone as well
        if not self._lease.is_current():
            raise OutputError(
                f"'{self.path}' was taken over by another process, because this one was suspended "
                f"for more than {leases.STALE:.0f} seconds; nothing more is written by this one"
            )

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """Merge the rows and write `summary` (device, throughput) to the run file.

        Raises:
            OutputError: as `write`. If `write` has raised it, nothing is changed.
        """
        if self._file.closed:
            return
        try:
            if not self._failed_to_write:
                with atomic.writing(self.path):
                    self._check_lease()
                    self._file.sync()
                    self._file.close()
                    self._finish(dict(summary or {}))
        finally:
            self._file.close()
            self._lease.release()

    def _finish(self, summary: dict[str, Any]) -> None:
        before = self._run["rows_before"]
        if before:
            records = self._format.records(self._work.read_bytes())
            before = len(self._tidy(records, before))
        if self._table:
            self._write_table()
        self._write_run(ended=_now(), rows_before=before, **summary)

    def _write_table(self) -> None:
        if _identity(self.path) != self._table_was:
            raise OutputError(
                f"'{self.path}' was removed or replaced during the run, so it is not written; all "
                f"rows are in {self._work.name}, and the same command writes the table"
            )
        atomic.replace(self.path, to_parquet(self._work.read_bytes(), self._names))
        self._work.unlink()

    def __enter__(self) -> "ResumableFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _columns(
    path: Path, schema: str, given: Sequence[str] | None, overwrite: bool
) -> Sequence[str] | None:
    """The columns of a table that is there, or those that were given.

    Raises:
        UserError: they differ.
    """
    there = existing_columns(path, schema) if path.suffix.lower() in TABLES else None
    if there is None or overwrite:
        return given
    if given is not None and tuple(given) != there:
        raise UserError(
            f"'{path}' has the columns {','.join(there)}, and --columns says {','.join(given)}; "
            "replace it with --overwrite, or choose another --out"
        )
    return there


def write_all(
    path: Path,
    schema: str,
    settings: Mapping[str, Any],
    rows: Iterable[Row],
    *,
    overwrite: bool = False,
    about: Mapping[str, Any] | None = None,
    columns: Sequence[str] | None = None,
) -> None:
    """Write all rows of a run at once, and the file about the run; raises as `atomic.whole`."""
    form, started = format_for(path, schema, columns), _now()
    lines = [form.encode(row) for row in rows]
    data = form.header + b"".join(lines)
    if path.suffix.lower() == ".parquet":
        data = to_parquet(data, columns or default_columns(path, schema))
    with atomic.whole(path, overwrite=overwrite) as file:
        file.write(data)
    run = _made_with(schema, settings) | {"about": with_commands(about or {})}
    run |= {"versions": versions(), "started": started}
    atomic.replace(run_file(path), _run_text(run | {"ended": _now(), "rows_before": len(lines)}))


def run_file(path: Path) -> Path:
    """The file about the run that made the rows at a path."""
    return path.with_name(path.name + ".run.json")


def with_commands(about: Mapping[str, Any], earlier: Sequence[str] = ()) -> dict[str, Any]:
    """`about` with the commands that made the rows, the latest last, in place of `command`."""
    more = {key: value for key, value in about.items() if key != "command"}
    commands = [*earlier, *([about["command"]] if about.get("command") else [])]
    return ({"commands": list(dict.fromkeys(commands))} if commands else {}) | more


def _made_with(schema: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    made_with: dict[str, Any] = json.loads(to_json({"rows": schema, "settings": settings}))
    return made_with


def _run_text(run: Mapping[str, Any]) -> bytes:
    text = json.dumps({"schema": "zeroshot.run/1"} | dict(run), ensure_ascii=False, indent=2)
    return utf8(text + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _equal(records: Sequence[Record]) -> set[str | None]:
    """The paths of records that are there more than once, byte for byte."""
    seen: set[bytes] = set()
    equal = set()
    for record in records:
        if record.raw in seen:
            equal.add(written_path(record.path))
        seen.add(record.raw)
    return equal


def _identity(path: Path) -> tuple[int, ...] | None:
    """What changes if another file takes this path, or its content changes; None for no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def written_path(path: str | None) -> str | None:
    """A path as all formats write it."""
    return None if path is None else utf8(path).decode()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the libraries that the rows depend on, for the run file."""
    names = ["torch", "transformers", "open_clip_torch", "pillow", "numpy"]
    installed = {"zeroshot": __version__}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed
