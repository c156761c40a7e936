"""An output folder that several processes fill: what it holds, and what it refuses.

run.json             what decides the rows: inputs, models, options. Others are refused.
inputs-SHA.jsonl     the inputs in order
00000.jsonl          the files of a shard (`layouts`)
00000.json           its done-mark, written last
.work/               claims, and the rows so far of shards that are being worked on
"""

import hashlib
import json
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zeroshot import durable, leases
from zeroshot.errors import UserError
from zeroshot.formats import to_json
from zeroshot.records import differences, versions
from zeroshot.scale.layouts import Content, Layout, layout_for
from zeroshot.scale.plan import Inputs, Plan, Size, difference, planned
from zeroshot.tasks.meter import Meter

RUN, WORK, MARK = "run.json", ".work", "zeroshot.shard/1"
SCHEMA = "zeroshot.shards/1"
DECIDES = ("rows", "settings", "inputs", "shard_size", "format", "layout", "half")
"""What of run.json decides the files."""
OURS = re.compile(r"\d{5,}\.(json|jsonl|csv|parquet|safetensors)|inputs-[0-9a-f]+\.jsonl")
OUR_FOLDERS = ("img_emb", "text_emb", "metadata", "embedded", WORK)


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
class Place:
    """The folder that was asked for; what is None is as it was when the folder was begun."""

    path: Path
    shard_size: Size | None = None
    format: str | None = None
    layout: str | None = None
    half: bool = False
    default_layout: str = "rows"

    def begin_anew(self) -> None:
        """Remove what an earlier run wrote here, and nothing else.

        Raises:
            UserError: somebody is at work here, or the folder is none of ours.
        """
        if not (self.path / RUN).exists():
            return
        _read_run(self.path)
        if holders := leases.live(self.path / WORK) if (self.path / WORK).is_dir() else []:
            raise UserError(f"'{self.path}' is being written by {holders[0]}")
        (self.path / RUN).unlink()
        for name in OUR_FOLDERS:
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name)
        for file in self.path.iterdir():
            if OURS.fullmatch(file.name):
                file.unlink()

    def begun_with(self) -> Size | None:
        """What a shard of the folder is, if it was begun."""
        return (_read_run(self.path) or {}).get("shard_size")

    def join(self, sources: Inputs, schema: str, settings: Mapping[str, Any]) -> "Folder":
        """Begin the folder, or go on in it together with whoever else does.

        Raises:
            UserError: it was begun with other inputs, models or options, or is not ours.
        """
        try:
            (self.path / WORK).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise durable.refusal(self.path, error) from error
        begun = _read_run(self.path)
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
            begun = self._begin(plan, made_with)
        self._refuse(begun, plan, made_with)
        plan = plan.begun(self.path / _inputs(plan.sha256))
        return Folder(self.path, plan, layout, _fingerprint(made_with))

    def glance(self, sources: Inputs, schema: str) -> "Folder | None":
        """The folder as it was begun, if it was, to see how far it is."""
        run = _read_run(self.path)
        if run is None or run.get("rows") != schema:
            return None
        if self.shard_size not in (None, run["shard_size"]):  # `join` refuses it
            return None
        layout = layout_for(run["layout"], schema, run["format"], run["half"])
        plan = planned(sources, run["shard_size"])
        if plan.inputs == run["inputs"]:
            plan = plan.begun(self.path / _inputs(plan.sha256))
        return Folder(self.path, plan, layout, _fingerprint(run))

    def _begin(self, plan: Plan, made_with: dict[str, Any]) -> dict[str, Any]:
        """What the folder is from now on; another process may have been first."""
        if strange := sorted(f.name for f in self.path.iterdir() if OURS.fullmatch(f.name)):
            strange = [] if (self.path / RUN).exists() else strange
        strange = [name for name in strange if not name.startswith("inputs-")]
        if strange:
            raise UserError(
                f"'{self.path}' has {strange[0]}, but no {RUN}: it is no output of zeroshot; "
                "choose another folder"
            )
        with durable.writing(self.path):
            durable.replace(self.path / _inputs(plan.sha256), plan.lines)
            started = datetime.now(UTC).isoformat(timespec="seconds")
            run = {"schema": SCHEMA} | made_with | {"versions": versions(), "started": started}
            text = json.dumps(run, ensure_ascii=False, indent=2) + "\n"
            durable.publish(self.path / RUN, text.encode("utf-8", "backslashreplace"))
        return _read_run(self.path) or run

    def _refuse(self, was: dict[str, Any], plan: Plan, made_with: dict[str, Any]) -> None:
        advice = "begin it anew with --overwrite, or choose another --out"
        if was.get("inputs") != made_with["inputs"] and was.get("shard_size") == plan.size:
            old = self.path / _inputs(str(dict(was.get("inputs", {})).get("sha256")))
            raise UserError(
                f"'{self.path}' was begun with other inputs: {difference(old, plan)}; finish it "
                f"with those it was begun with, {advice}"
            )
        if was.get("shard_size") != plan.size:  # then the shards of the inputs differ as well
            made_with = {key: value for key, value in made_with.items() if key != "inputs"}
        if differ := differences({key: was.get(key) for key in made_with}, made_with):
            raise UserError(f"'{self.path}' was made otherwise ({'; '.join(differ)}); {advice}")


@dataclass(frozen=True)
class Folder:
    """A folder that was joined."""

    path: Path
    plan: Plan
    layout: Layout
    fingerprint: str

    @property
    def work(self) -> Path:
        """Where claims and unfinished rows are."""
        return self.path / WORK

    def name(self, shard: int) -> str:
        """`00007`."""
        return f"{shard:05d}"

    def mark(self, shard: int) -> Mark | None:
        """The done-mark, if the shard is finished.

        Raises:
            UserError: it belongs to another run.
        """
        file = self.path / f"{self.name(shard)}.json"
        try:
            held = json.loads(file.read_bytes())
            mark = Mark(**{k: v for k, v in held.items() if k != "schema"})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise UserError(f"'{file}' is no done-mark of zeroshot: {error}") from error
        if mark.run != self.fingerprint:
            raise UserError(f"'{file}' belongs to another run: remove it, and it is done again")
        return mark

    def marks(self) -> dict[int, Mark]:
        """Of all finished shards."""
        found = {shard: self.mark(shard) for shard in range(self.plan.count)}
        return {shard: mark for shard, mark in found.items() if mark is not None}

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
        with durable.writing(self.path):
            self.layout.write(self.path, shard, self.plan.count, content)
            text = json.dumps({"schema": MARK} | asdict(mark), indent=2) + "\n"
            durable.replace(self.path / f"{self.name(shard)}.json", text.encode())
        return mark

    def content(self, shard: int) -> Content:
        """The rows and vectors of a finished shard."""
        return self.layout.read(self.path, shard, self.plan.count)

    @property
    def has_embedded(self) -> bool:
        """Whether a transductive method gathers its rows here."""
        return (self.path / "embedded").is_dir()

    def below(self, name: str, layout: Layout) -> "Folder":
        """A folder in this one for something else of the same inputs."""
        inner = replace(self, path=self.path / name, layout=layout)
        with durable.writing(inner.path):
            inner.work.mkdir(parents=True, exist_ok=True)
        return inner


def _fingerprint(run: Mapping[str, Any]) -> str:
    text = json.dumps({key: run[key] for key in DECIDES}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _inputs(sha256: str) -> str:
    return f"inputs-{sha256[:12]}.jsonl"


def _read_run(path: Path) -> dict[str, Any] | None:
    file = path / RUN
    try:
        held = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"'{file}' is damaged ({error}); choose another --out") from error
    if not isinstance(held, dict) or held.get("schema") != SCHEMA:
        raise UserError(f"'{file}' is not of zeroshot; choose another folder")
    return held
