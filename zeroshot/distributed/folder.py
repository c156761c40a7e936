"""An output folder that several processes fill: what it holds, and what it refuses.

run.json             what decides the rows: inputs, models, options. Others are refused.
inputs-SHA.jsonl     the inputs in order
00000.jsonl          the files of a shard (`layouts`)
00000.json           its done-mark, written last
.work/               claims, and the rows so far of shards that are being worked on

In an object store the rows so far are not in `.work/` but on the machine that works on them.
"""

import hashlib
import json
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zeroshot.distributed.layouts import Content, Layout, layout_for
from zeroshot.distributed.sharding import ByNumber, Inputs, Plan, Size, difference, planned
from zeroshot.errors import OutputError, UserError
from zeroshot.inference.meter import Meter
from zeroshot.output import atomic, filesystem, leases
from zeroshot.output.filesystem import WORK, Location
from zeroshot.output.formats import to_json
from zeroshot.output.resumable import differences, versions

RUN, MARK = "run.json", "zeroshot.shard/1"
SCHEMA = "zeroshot.shards/1"
DECIDES = ("rows", "settings", "inputs", "shard_size", "format", "layout", "half")
"""What of run.json decides the files."""
OURS = re.compile(r"\d{5,}\.(json|jsonl|csv|parquet|safetensors)|inputs-[0-9a-f]+\.jsonl")
OUR_FOLDERS = ("img_emb", "text_emb", "metadata", "embedded", "kept", WORK)


@dataclass(frozen=True)
class Mark:
    """What is known of a finished shard."""

    shard: int
    rows: int
    failed: int
    run: str
    """Fingerprint of the inputs, models and options it was made with."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """Failed rows by their kind."""
    meter: Mapping[str, Any] = field(default_factory=dict)
    """Counts and seconds of the process that finished it."""
    host: str = field(default_factory=platform.node)
    ended: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class OutputSpec:
    """The folder that was asked for; what is None is as it was when the folder was begun."""

    path: Path | Location
    shard_size: Size | None = None
    format: str | None = None
    layout: str | None = None
    half: bool = False
    default_layout: str = "rows"

    def clear(self) -> None:
        """Remove what an earlier run wrote here, and nothing else.

        Raises:
            UserError: somebody is at work here, or the folder is none of ours.
        """
        files = filesystem.at(self.path)
        if _read_run(files) is None:
            return
        if holders := leases.live(files.below(WORK)):
            raise UserError(f"'{files}' is being written by {holders[0]}")
        with atomic.writing(files):
            for name in OUR_FOLDERS:
                files.remove_below(name)
            files.remove(*(name for name in files.names() if OURS.fullmatch(name)))
            files.remove(RUN)  # last, so that this can be gone on with

    def existing_shard_size(self) -> Size | None:
        """What a shard of the folder is, if it was begun."""
        return (_read_run(filesystem.at(self.path)) or {}).get("shard_size")

    def open(self, sources: Inputs, schema: str, settings: Mapping[str, Any]) -> "Folder":
        """Begin the folder, or go on in it together with whoever else does.

        Raises:
            UserError: it was begun with other inputs, models or options, or is not ours.
        """
        files = filesystem.at(self.path)
        try:
            files.begin()
        except OutputError:
            raise
        except OSError as error:
            raise atomic.refusal(files, error) from error
        begun = _read_run(files)
        was = begun if begun is not None and begun.get("rows") == schema else {}
        suffix = self.format or was.get("format") or "jsonl"
        name = self.layout or was.get("layout") or self.default_layout
        plan = planned(sources, self.shard_size or was.get("shard_size"))
        half = self.half or bool(was.get("half"))
        layout = layout_for(name, schema, suffix, half)
        options = {"shard_size": plan.size, "format": suffix, "layout": name, "half": half}
        made_with = {"rows": schema, "settings": settings, "inputs": plan.inputs} | options
        made_with = json.loads(to_json(made_with))
        if begun is None:
            begun = self._begin(files, plan, made_with)
        self._refuse(files, begun, plan, made_with)
        plan = _as_begun(files, plan)
        return Folder(self.path, plan, layout, _fingerprint(made_with), str(begun.get("started")))

    def peek(self, sources: Inputs, schema: str) -> "Folder | None":
        """The folder as it was begun, if it was, to see how far it is."""
        files = filesystem.at(self.path)
        run = _read_run(files)
        if run is None or run.get("rows") != schema:
            return None
        if self.shard_size not in (None, run["shard_size"]):  # `join` refuses it
            return None
        layout = layout_for(run["layout"], schema, run["format"], run["half"])
        plan = planned(sources, run["shard_size"])
        if plan.inputs == run["inputs"]:
            plan = _as_begun(files, plan)
        return Folder(self.path, plan, layout, _fingerprint(run), str(run.get("started")))

    def _begin(self, files: Location, plan: Plan, made_with: dict[str, Any]) -> dict[str, Any]:
        """What the folder is from now on; another process may have been first."""
        if strange := sorted(name for name in files.names() if OURS.fullmatch(name)):
            strange = [] if _read_run(files) is not None else strange
        strange = [name for name in strange if not name.startswith("inputs-")]
        if strange:
            raise UserError(
                f"'{files}' has {strange[0]}, but no {RUN}: it is no output of zeroshot; "
                "choose another folder"
            )
        with atomic.writing(files):
            files.replace(_inputs(plan.sha256), plan.lines)
            started = datetime.now(UTC).isoformat(timespec="seconds")
            run = {"schema": SCHEMA} | made_with | {"versions": versions(), "started": started}
            text = json.dumps(run, ensure_ascii=False, indent=2) + "\n"
            files.publish(RUN, text.encode("utf-8", "backslashreplace"))
        return _read_run(files) or run

    def _refuse(
        self, files: Location, was: dict[str, Any], plan: Plan, made_with: dict[str, Any]
    ) -> None:
        advice = "begin it anew with --overwrite, or choose another --out"
        if was.get("inputs") != made_with["inputs"] and was.get("shard_size") == plan.size:
            file = _inputs(str(dict(was.get("inputs", {})).get("sha256")))
            old = files.read_all([file]).get(file)
            raise UserError(
                f"'{files}' was begun with other inputs: {difference(old, plan)}; finish it "
                f"with those it was begun with, {advice}"
            )
        if was.get("shard_size") != plan.size:  # then the shards of the inputs differ as well
            made_with = {key: value for key, value in made_with.items() if key != "inputs"}
        if differ := differences({key: was.get(key) for key in made_with}, made_with):
            raise UserError(f"'{files}' was made otherwise ({'; '.join(differ)}); {advice}")


@dataclass(frozen=True)
class Folder:
    """A folder that was joined."""

    path: Path | Location
    plan: Plan
    layout: Layout
    fingerprint: str
    started: str = ""
    """With the fingerprint, which run this is: begun anew, it is another."""

    @property
    def files(self) -> Location:
        """Where they are."""
        return filesystem.at(self.path)

    @property
    def claims(self) -> Location:
        """Where claims are."""
        return self.files.below(WORK)

    @property
    def work(self) -> Path:
        """Where, on this machine, unfinished rows are."""
        return self.files.scratch(f"{self.started} {self.fingerprint}")

    def name(self, shard: int) -> str:
        """`00007`."""
        return f"{shard:05d}"

    def mark(self, shard: int) -> Mark | None:
        """The done-mark, if the shard is finished.

        Raises:
            UserError: it belongs to another run.
        """
        return self.marks([shard]).get(shard)

    def marks(self, shards: Iterable[int] | None = None) -> dict[int, Mark]:
        """Of those of `shards`, or of all, that are finished."""
        files = self.files
        asked = range(self.plan.count) if shards is None else shards
        of = {f"{self.name(n)}.json": n for n in asked}
        if len(of) > 1:  # one look tells which there are
            there = set(files.names())
            of = {name: n for name, n in of.items() if name in there}
        held = files.read_all(list(of))
        return {of[name]: self._mark(files.full(name), data) for name, data in held.items()}

    def _mark(self, file: str, data: bytes) -> Mark:
        try:
            mark = Mark(**{k: v for k, v in json.loads(data).items() if k != "schema"})
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"'{file}' is no done-mark of zeroshot: {error}") from error
        if mark.run != self.fingerprint:
            raise UserError(f"'{file}' belongs to another run: remove it, and it is done again")
        return mark

    def commit(self, shard: int, content: Content, meter: Meter) -> Mark:
        """Write a shard's files, and then its mark."""
        failures = [r.failure for r in content.records if r.failure is not None]
        mark = Mark(
            shard,
            len(content.records),
            len(failures),
            self.fingerprint,
            {kind: failures.count(kind) for kind in sorted(set(failures))},
            meter.counts(),
        )
        with atomic.writing(self.files):
            self.layout.write(self.files, shard, self.plan.count, content)
            text = json.dumps({"schema": MARK} | asdict(mark), indent=2) + "\n"
            self.files.replace(f"{self.name(shard)}.json", text.encode())
        return mark

    def content(self, shard: int) -> Content:
        """The rows and vectors of a finished shard."""
        return self.layout.read(self.files, shard, self.plan.count)

    @property
    def has_embedded(self) -> bool:
        """Whether a transductive method gathers its rows here."""
        return self.files.has_below("embedded")

    def below(self, name: str, layout: Layout) -> "Folder":
        """A folder in this one for something else of the same inputs."""
        files = self.files.below(name)
        with atomic.writing(files):
            files.begin()
        return replace(self, path=files, layout=layout)


def _fingerprint(run: Mapping[str, Any]) -> str:
    text = json.dumps({key: run[key] for key in DECIDES}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _as_begun(files: Location, plan: Plan) -> Plan:
    """The plan with what is known of its files from when the output was begun."""
    if isinstance(plan, ByNumber):
        return plan
    name = _inputs(plan.sha256)
    return plan.begun(files.read_all([name]).get(name, b""), files.full(name))


def _inputs(sha256: str) -> str:
    return f"inputs-{sha256[:12]}.jsonl"


def _read_run(files: Location) -> dict[str, Any] | None:
    file = files.full(RUN)
    try:
        held = json.loads(files.read(RUN))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"'{file}' is damaged ({error}); choose another --out") from error
    if not isinstance(held, dict) or held.get("schema") != SCHEMA:
        raise UserError(f"'{file}' is not of zeroshot; choose another folder")
    return held
