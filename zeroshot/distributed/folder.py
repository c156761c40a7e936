"""An output folder that several processes fill.

run.json             inputs, models and options of the run; a run with others is refused
inputs-SHA.jsonl     the inputs in order
00000.jsonl          the files of a shard (`layouts`)
00000.json           the shard's done-mark, written last
.work/               claims, and the rows of unfinished shards

With an object store, unfinished rows are on the machine that works on them and not in `.work/`.
"""

import hashlib
import json
import platform
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zeroshot.distributed.layouts import Content, Layout, RowFiles, Safetensors, layout_for
from zeroshot.distributed.sharding import ByNumber, Inputs, Plan, Size, difference, make_plan
from zeroshot.errors import OutputError, UserError
from zeroshot.inference.meter import Meter
from zeroshot.output import atomic, filesystem, leases
from zeroshot.output.filesystem import WORK, Location
from zeroshot.output.formats import default_columns, to_json
from zeroshot.output.resumable import differences_of_runs, versions, with_commands
from zeroshot.results.data_frames import columns
from zeroshot.results.result import EmbedResult

RUN, MARK = "run.json", "zeroshot.shard/1"
SCHEMA = "zeroshot.shards/1"
DECIDES = ("rows", "settings", "inputs", "shard_size", "format", "layout", "half")
"""Entries of run.json that decide the content of the files."""
NUMBERED = re.compile(r"(\d{5,})\.(json|jsonl|csv|parquet|safetensors)")
"""Files of shards directly in a folder, of whatever format."""
EMBEDDED = "embedded"
EMBEDDINGS = Safetensors(RowFiles(EmbedResult.schema, "jsonl"))
"""The layout of the embeddings of a transductive method, in the folder `EMBEDDED`."""
WORK_FILES = re.compile(
    r"\.(?P<claim>\d{5,}|scoring)\.\d+\.lease|(?P<part>\d{5,})\.[0-9a-f]{8}\.(rows|\d+\.\d+)"
    r"|\.[0-9a-f]{16}\.(probe|clock)"
)
"""Files in `.work`: claims, rows of unfinished shards, and tests of an object store."""


@dataclass(frozen=True)
class Mark:
    """The done-mark of a finished shard."""

    shard: int
    rows: int
    failed: int
    run: str
    """Fingerprint of the inputs, models and options."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """Number of failed rows by error type."""
    meter: Mapping[str, Any] = field(default_factory=dict)
    """Counts and seconds of the process that finished it."""
    files: Mapping[str, int] = field(default_factory=dict)
    """The size of each of its files in bytes; empty in marks of earlier versions."""
    host: str = field(default_factory=platform.node)
    ended: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class OutputSpec:
    """The output folder that the user asked for; None stands for the value in its run.json."""

    path: Path | Location
    shard_size: Size | None = None
    format: str | None = None
    layout: str | None = None
    half: bool = False
    default_layout: str = "rows"
    columns: Sequence[str] | None = None
    """Of tables."""

    def clear(self, sources: Inputs = (), schema: str | None = None) -> None:
        """Remove the files that run.json names, and no other files.

        These are the files of each shard in the format and layout of the run, the list of inputs,
        and what is in `.work`.

        Args:
            sources: those of the next run, with rows of `schema`.

        Raises:
            UserError: a process is writing to the folder, its run.json is not ours, or a file that
                would stay is in the way of the next run.
        """
        files = filesystem.at(self.path)
        run = read_run(files)
        if run is None:
            return
        below = files.below(EMBEDDED)
        layouts = {files: layout_of(files, run)}
        count = shard_count(files, run)
        if schema is not None:
            plan = make_plan(sources, self.shard_size)
            name, suffix = self.layout or self.default_layout, self.format or "jsonl"
            next_one = layout_for(name, schema, suffix, self.half)
            own = _files_of_shards(files, layouts[files], count)
            _refuse(
                files,
                _in_the_way(files, next_one, plan.count) - set(own),
                f"its {RUN} does not name it",
            )
        if below.has_below(WORK):
            layouts[below] = EMBEDDINGS
        for folder in layouts:
            if holders := leases.live_holders(folder.below(WORK)):
                raise UserError(f"'{files}' is being written by {holders[0]}")
        with atomic.writing(files):
            for folder, layout in reversed(layouts.items()):
                _remove_shards(folder, layout, count)
            files.remove_empty(EMBEDDED)
            inputs = _inputs(str(run["inputs"].get("sha256")))
            files.remove(*(name for name in files.names() if name == inputs))
            files.remove(RUN)  # last, so that an interrupted removal can be repeated

    def existing_shard_size(self) -> Size | None:
        """The shard size of the folder; None if no run was started in it."""
        return (read_run(filesystem.at(self.path)) or {}).get("shard_size")

    def open(
        self,
        sources: Inputs,
        schema: str,
        settings: Mapping[str, Any],
        about: Mapping[str, Any] | None = None,
    ) -> "Folder":
        """Start the folder, or join the run that was started in it.

        `about` is as for `ResumableFile`.

        Raises:
            UserError: the run has other inputs, models or options, or the folder is not ours.
        """
        files = filesystem.at(self.path)
        try:
            files.begin()
        except OutputError:
            raise
        except OSError as error:
            raise atomic.start_error(files, error) from error
        run = read_run(files)
        was = run if run is not None and run.get("rows") == schema else {}
        suffix = self.format or was.get("format") or "jsonl"
        name = self.layout or was.get("layout") or self.default_layout
        plan = make_plan(sources, self.shard_size or was.get("shard_size"))
        half = self.half or bool(was.get("half"))
        names = self._columns(was, schema, suffix)
        layout = layout_for(name, schema, suffix, half, names)
        options = {"shard_size": plan.size, "format": suffix, "layout": name, "half": half}
        made_with = {"rows": schema, "settings": settings, "inputs": plan.inputs} | options
        if "columns" in was or names != columns(schema):
            made_with["columns"] = names
        made_with = json.loads(to_json(made_with))
        if run is None:
            run = self._start(files, plan, layout, made_with, about or {})
        self._check_same(files, run, plan, made_with, about or {})
        plan = _with_versions(files, plan)
        return Folder(self.path, plan, layout, _fingerprint(made_with), str(run.get("started")))

    def peek(self, sources: Inputs, schema: str) -> "Folder | None":
        """The folder of a run that was started, to read its progress; None if there is none."""
        files = filesystem.at(self.path)
        run = read_run(files)
        if run is None or run.get("rows") != schema:
            return None
        if self.shard_size not in (None, run["shard_size"]):  # `open` refuses it
            return None
        layout = layout_of(files, run)
        plan = make_plan(sources, run["shard_size"])
        if plan.inputs == run["inputs"]:
            plan = _with_versions(files, plan)
        return Folder(self.path, plan, layout, _fingerprint(run), str(run.get("started")))

    def _columns(self, was: Mapping[str, Any], schema: str, suffix: str) -> Sequence[str]:
        """The columns of the folder's tables; a run of an earlier version has all."""
        if self.columns is not None:
            return self.columns
        if was:
            return tuple(was.get("columns") or columns(schema))
        return default_columns(Path(f"x.{suffix}"), schema)

    def _start(
        self,
        files: Location,
        plan: Plan,
        layout: Layout,
        made_with: dict[str, Any],
        about: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Write run.json and return it, or the one of a process that was faster."""
        if (unknown := _in_the_way(files, layout, plan.count)) and read_run(files) is None:
            _refuse(files, unknown, f"no {RUN}")
        with atomic.writing(files):
            files.replace(_inputs(plan.sha256), plan.lines)
            started = datetime.now(UTC).isoformat(timespec="seconds")
            run = {"schema": SCHEMA} | made_with | {"about": with_commands(about)}
            run |= {"versions": versions(), "started": started}
            text = json.dumps(run, ensure_ascii=False, indent=2) + "\n"
            files.publish(RUN, text.encode("utf-8", "backslashreplace"))
        return read_run(files) or run

    def _check_same(
        self,
        files: Location,
        was: dict[str, Any],
        plan: Plan,
        made_with: dict[str, Any],
        about: Mapping[str, Any],
    ) -> None:
        advice = "start again with --overwrite, or choose another --out"
        if was.get("inputs") != made_with["inputs"] and was.get("shard_size") == plan.size:
            file = _inputs(str(dict(was.get("inputs", {})).get("sha256")))
            old = files.read_all([file]).get(file)
            raise UserError(
                f"'{files}' was started with other inputs: {difference(old, plan)}; finish it "
                f"with the same inputs, {advice}"
            )
        if was.get("shard_size") != plan.size:  # then `inputs` differs as well
            made_with = {key: value for key, value in made_with.items() if key != "inputs"}
        if differ := differences_of_runs(was, made_with, about):
            raise UserError(
                f"'{files}' was made with other settings ({'; '.join(differ)}); {advice}"
            )


@dataclass(frozen=True)
class Folder:
    """An open output folder."""

    path: Path | Location
    plan: Plan
    layout: Layout
    fingerprint: str
    started: str = ""
    """Together with the fingerprint it identifies the run."""
    top: Location | None = None
    """The folder that has run.json, if it is another."""

    @property
    def files(self) -> Location:
        """Where its files are."""
        return filesystem.at(self.path)

    @property
    def claims(self) -> Location:
        """Where claims on its shards are."""
        return self.files.below(WORK)

    @property
    def work(self) -> Path:
        """Where unfinished rows are on this machine."""
        return self.files.scratch(f"{self.started} {self.fingerprint}")

    def name(self, shard: int) -> str:
        """`00007`."""
        return f"{shard:05d}"

    def mark(self, shard: int) -> Mark | None:
        """The done-mark of a finished shard, else None.

        Raises:
            UserError: the mark belongs to another run.
            OutputError: the folder does.
        """
        return self.marks([shard]).get(shard)

    def marks(self, shards: Iterable[int] | None = None) -> dict[int, Mark]:
        """The done-marks of all shards, or of `shards`, that are finished."""
        files = self.files
        shards = range(self.plan.count) if shards is None else shards
        numbers = {f"{self.name(n)}.json": n for n in shards}
        if len(numbers) > 1:  # one listing is cheaper than many reads of missing files
            existing = set(files.names())
            numbers = {name: n for name, n in numbers.items() if name in existing}
        marks = files.read_all(list(numbers))
        return {numbers[name]: self._mark(files.full(name), data) for name, data in marks.items()}

    def _mark(self, file: str, data: bytes) -> Mark:
        try:
            mark = Mark(**{k: v for k, v in json.loads(data).items() if k != "schema"})
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"'{file}' is not a done-mark of zeroshot: {error}") from error
        if mark.run != self.fingerprint:
            self.check_run()
            raise UserError(
                f"'{file}' belongs to another run: remove it to process the shard again"
            )
        return mark

    def check_run(self) -> None:
        """Check that the folder is still that of this run.

        Raises:
            OutputError: it was removed, or started again.
        """
        files = self.top or self.files
        run = read_run(files)
        if run is None or not self._is_of(run):
            what = "removed" if run is None else "started again by another process"
            raise OutputError(
                f"'{files}' was {what} during the run, so the run ends and writes nothing more to "
                "it; run the same command again to make the rows that are missing"
            )

    def _is_of(self, run: Mapping[str, Any]) -> bool:
        return _fingerprint(run) == self.fingerprint and str(run.get("started")) == self.started

    def check_files(self, marks: Mapping[int, Mark]) -> None:
        """Check that the files of these finished shards are there.

        Raises:
            OutputError: a file was removed, or its size is another.
        """
        sizes: dict[str, int] = {}
        for below in {name.rpartition("/")[0] for mark in marks.values() for name in mark.files}:
            found = self.files.below(below).sizes() if below else self.files.sizes()
            sizes |= {f"{below}/{name}".lstrip("/"): size for name, size in found.items()}
        for shard, mark in marks.items():
            wrong = [name for name, size in mark.files.items() if sizes.get(name) != size]
            if wrong and self.mark(shard) == mark:  # else another process is making it again
                raise OutputError(
                    f"'{self.files.full(wrong[0])}' was removed or changed during the run; remove "
                    f"'{self.files.full(self.name(shard))}.json' and run the same command again"
                )

    def unmark(self, shard: int) -> None:
        """Remove a shard's done-mark, before its files are replaced."""
        with atomic.writing(self.files):
            self.files.remove(f"{self.name(shard)}.json")

    def commit(self, shard: int, content: Content, meter: Meter) -> Mark:
        """Write a shard's files, then its done-mark."""
        failures = [r.failure for r in content.records if r.failure is not None]
        with atomic.writing(self.files):
            sizes = self.layout.write(self.files, shard, self.plan.count, content)
            mark = Mark(
                shard,
                len(content.records),
                len(failures),
                self.fingerprint,
                {kind: failures.count(kind) for kind in sorted(set(failures))},
                meter.counts(),
                sizes,
            )
            text = json.dumps({"schema": MARK} | asdict(mark), indent=2) + "\n"
            self.files.replace(f"{self.name(shard)}.json", text.encode())
        return mark

    def content(self, shard: int) -> Content:
        """The rows and vectors of a finished shard."""
        return self.layout.read(self.files, shard, self.plan.count)

    @property
    def has_embeddings(self) -> bool:
        """Whether it has the embeddings of a transductive method."""
        return self.files.has_below(EMBEDDED)

    def embeddings(self) -> "Folder":
        """The folder of those embeddings, with the same inputs."""
        files = self.files.below(EMBEDDED)
        with atomic.writing(files):
            files.begin()
        return replace(self, path=files, layout=EMBEDDINGS, top=self.files)


def _fingerprint(run: Mapping[str, Any]) -> str:
    deciding = {key: run[key] for key in DECIDES}
    if "columns" in run:
        deciding["columns"] = run["columns"]
    text = json.dumps(deciding, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _with_versions(files: Location, plan: Plan) -> Plan:
    """The plan with the file versions of the time when the output was started."""
    if isinstance(plan, ByNumber):
        return plan
    name = _inputs(plan.sha256)
    return plan.with_versions(files.read_all([name]).get(name, b""), files.full(name))


def layout_of(files: Location, run: Mapping[str, Any]) -> Layout:
    """The layout of a run's shards; UserError if run.json is damaged."""
    try:
        names = run.get("columns") or ()
        return layout_for(run["layout"], run["rows"], run["format"], run["half"], names)
    except KeyError as error:
        raise _damaged(files, error) from error


def shard_count(files: Location, run: Mapping[str, Any]) -> int:
    """The number of shards."""
    try:
        return int(run["inputs"]["shards"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _damaged(files, error) from error


def _in_the_way(files: Location, layout: Layout, count: int) -> set[str]:
    """Files of others that a run would replace, or that would pass for files of its shards."""
    numbered = [NUMBERED.fullmatch(name) for name in files.names()]
    alike = {match[0] for match in numbered if match and int(match[1]) < count}
    return alike | set(_files_of_shards(files, layout, count))


def _refuse(files: Location, unknown: Collection[str], but: str) -> None:
    """UserError if there are such files."""
    if unknown:
        raise UserError(
            f"'{files}' has {min(unknown)} but {but}, so zeroshot did not make it; move it away, "
            "or choose another folder"
        )


def _files_of_shards(files: Location, layout: Layout, count: int) -> list[str]:
    """The files of shards that exist, with their done-marks."""
    existing = []
    for below in {name.rpartition("/")[0] for name in layout.files(0, max(1, count))}:
        for name in (files.below(below) if below else files).names():
            path = f"{below}/{name}" if below else name
            digits = re.search(r"(\d+)\.\w+$", name)
            shard = int(digits[1]) if digits else count
            if shard < count and path in [f"{shard:05d}.json", *layout.files(shard, count)]:
                existing.append(path)
    return existing


def _remove_shards(files: Location, layout: Layout, count: int) -> None:
    """Remove the files of the shards, what is in `.work`, and folders that are empty then."""
    shards = _files_of_shards(files, layout, count)
    files.remove(*shards)
    for below in {name.rpartition("/")[0] for name in shards} - {""}:
        files.remove_empty(below)
    work = files.below(WORK)
    for name in work.names():
        ours = WORK_FILES.fullmatch(name)
        number = (ours["claim"] or ours["part"] or "") if ours else ""
        if ours and not (number.isdecimal() and int(number) >= count):
            work.remove(name)
    files.remove_empty(WORK)


def _inputs(sha256: str) -> str:
    return f"inputs-{sha256[:12]}.jsonl"


def read_run(files: Location) -> dict[str, Any] | None:
    """The run.json of a folder; None if there is none.

    Raises:
        UserError: it is damaged, or of another program.
    """
    file = files.full(RUN)
    try:
        run = json.loads(files.read(RUN))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _damaged(files, error) from error
    if not isinstance(run, dict) or run.get("schema") != SCHEMA:
        raise UserError(f"'{file}' was not written by zeroshot; choose another folder")
    return run


def _damaged(files: Location, error: Exception) -> UserError:
    return UserError(f"'{files.full(RUN)}' is damaged ({error}); choose another --out")
