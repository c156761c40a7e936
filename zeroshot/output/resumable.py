"""Rows in a file: JSON lines, CSV, Parquet or plain text, written so that a run can go on later.

Rows are appended as they come. Beside `x.csv` stands `x.csv.run.json`: the settings the rows were
made with (a later run with others is refused), and how many rows there were when the last run
began. A row that a later run writes for a path with a failed or an outdated row takes that row's
place when the file is closed, or when it is next opened after a crash.
"""

import contextlib
import csv
import functools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from zeroshot.errors import UserError
from zeroshot.output import atomic, leases
from zeroshot.output.filesystem import Disk
from zeroshot.output.formats import Record, Row, format_for, from_parquet, to_json, to_parquet, utf8

ANY_ID = "*"
"""For the id of what only fetching would tell: any earlier row of its path answers for it."""


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


def differences(old: object, new: object, name: str = "") -> list[str]:
    """`method was 'asif', is 'magic'`, for all that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        prefix = f"{name}." if name else ""
        return [x for key in keys for x in differences(old.get(key), new.get(key), prefix + key)]
    return [] if old == new else [f"{name} was {to_json(old)}, is {to_json(new)}"]


class Output:
    """The file at `path`, opened to go on where an earlier run with equal settings stopped.

    `schema` names the rows, `settings` (JSON) whatever decides what they say. The suffix picks the
    format: jsonl, csv, parquet, txt. Parquet cannot be appended to: rows go to `x.parquet.part`,
    and into the table on closing. Plain text cannot be continued. A second process is refused.
    Rows come in batches of `batch_size`, and of a batch that a kill cut short nothing is kept: how
    pictures are batched can move the last digit of a number.
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
    ) -> None:
        self.path = path
        self._batch_size = batch_size
        self.schema = schema
        self._format = format_for(path, schema)
        self._table = path.suffix.lower() == ".parquet"
        self._work = path.with_name(path.name + ".part") if self._table else path
        self._run_file = path.with_name(path.name + ".run.json")
        made_with = json.loads(to_json({"rows": schema, "settings": settings}))
        if path.is_dir():
            raise UserError(f"'{path}' is a folder; --out names a file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lease = self._claim()
        except OSError as error:
            raise atomic.refusal(path, error) from error
        try:
            if overwrite:
                for old in (path, self._work, self._run_file):
                    old.unlink(missing_ok=True)
            self._begin(made_with, retry_failed)
        except OSError as error:
            self._lease.release()
            raise atomic.refusal(path, error) from error
        except BaseException:
            self._lease.release()
            raise

    def _claim(self) -> leases.Lease:
        found = leases.claim(Disk(self.path.parent), self.path.name)
        if isinstance(found, leases.Lease):
            return found
        raise UserError(
            f"'{self.path}' is being written by {found or 'another process'}; wait for it, choose "
            "another --out, or a folder (--out DIR/), whose shards several processes can share"
        )

    def _begin(self, made_with: dict[str, Any], retry_failed: bool) -> None:
        records = self._earlier(made_with)
        self._good = Counter((spelled(r.path), r.id) for r in records if not r.failed)
        self._ids = {spelled(r.path): r.id for r in records if not r.failed}
        self._bad = Counter(spelled(r.path) for r in records if r.failed and not retry_failed)
        self.resumed = self._good.total() + self._bad.total()
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self._run = made_with | {"versions": versions(), "started": started, "ended": None}
        self._write_run(rows_before=len(records))
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
            was, before = {key: run[key] for key in made_with}, int(run["rows_before"])
            if differ := differences(was, made_with):
                raise UserError(f"it was made otherwise ({'; '.join(differ)})")
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
        """Merge what came behind the first `before` rows into these; drop a torn last row."""
        merged = merge(records[:before], records[before:])
        data = self._format.header + b"".join(record.raw for record in merged)
        if data != self._work.read_bytes():
            atomic.replace(self._work, data)
        return merged

    def _write_run(self, **more: Any) -> None:
        self._run |= more
        text = json.dumps({"schema": "zeroshot.run/1"} | self._run, ensure_ascii=False, indent=2)
        atomic.replace(self._run_file, utf8(text + "\n"))

    def names(self, path: str | None) -> bool:
        """Whether an earlier run has a row by this name, whatever the picture was then."""
        name = spelled(path)
        return name in self._ids or name in self._bad

    def holds(self, path: str | None, id: str | None) -> bool:
        """Whether an earlier run's row answers for this picture; each row does so once."""
        name = spelled(path)
        if id == ANY_ID:
            id = self._ids.get(name)
        if self._good[name, id]:
            self._good[name, id] -= 1
        elif self._bad[name]:
            self._bad[name] -= 1
        else:
            return False
        return True

    def write(self, rows: Iterable[Row]) -> None:
        """Append a batch and hand it to the system, so that it outlives this process."""
        data = bytearray()
        for row in rows:
            if row["schema"] != self.schema:
                raise ValueError(f"a row of {row['schema']} in a file of {self.schema}")
            data += self._format.encode(row)
        with atomic.writing(self.path):
            self._file.write(data)
            self._file.flush()

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """Bring the rows into order and note `summary` (device, throughput) in the run file."""
        if self._file.closed:
            return
        try:
            with atomic.writing(self.path):
                self._finish(dict(summary or {}))
        finally:
            self._lease.release()

    def _finish(self, summary: dict[str, Any]) -> None:
        with contextlib.closing(self._file):
            self._file.flush()
            atomic.sync(self._file.fileno())
        before = self._run["rows_before"]
        if before:
            records = self._format.records(self._work.read_bytes())
            before = len(self._tidy(records, before))
        if self._table:
            atomic.replace(self.path, to_parquet(self._work.read_bytes(), self.schema))
            self._work.unlink()
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        self._write_run(ended=ended, rows_before=before, **summary)

    def __enter__(self) -> "Output":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def spelled(path: str | None) -> str | None:
    """A path as every format spells it."""
    return None if path is None else utf8(path).decode()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the libraries that rows depend on, for the run file."""
    names = ["zeroshot", "torch", "transformers", "open_clip_torch", "pillow", "numpy"]
    installed = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed
