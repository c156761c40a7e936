"""Run a task over a folder of shards in this process."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zeroshot.cache.embedding_cache import EmbeddingCache, open_cache
from zeroshot.distributed.folder import Folder, Mark, OutputSpec
from zeroshot.distributed.sharding import Inputs, make_plan
from zeroshot.distributed.transductive import transduce
from zeroshot.distributed.unfinished import unfinished_rows
from zeroshot.distributed.worker import WorkerOptions, work
from zeroshot.errors import OutputError
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.tasks.task import Task, Transductive, is_transductive


@dataclass(frozen=True)
class RunSpec:
    """A task, its images and its output folder: what a worker process receives."""

    task: Task[Any]
    sources: Inputs
    output: OutputSpec
    batch_size: int = AUTO_BATCH
    cached: bool = True
    command: str = ""
    """The command line, for the record of the run."""

    @property
    def about(self) -> dict[str, Any]:
        """What the record of the run says for people."""
        return {"command": self.command, **self.task.about()}

    def open_cache(self) -> EmbeddingCache:
        """The user's cache on this machine, or an empty one."""
        return open_cache(self.cached)


def run(
    spec: RunSpec, cache: EmbeddingCache, meter: Meter, options: WorkerOptions | None = None
) -> None:
    """Open the task and work until every shard of the share is finished."""
    options = options or WorkerOptions()
    with meter.phase("loading models", counts=False):
        runner = spec.task.open(cache, meter, spec.batch_size)
        settings = runner.settings()  # names every model, so that each is loaded now
        meter.opened()
    folder = spec.output.open(spec.sources, spec.task.schema, settings, spec.about)
    if is_transductive(runner):
        assert isinstance(runner, Transductive)
        transduce(runner, folder, meter, options)
    else:
        work(runner, folder, meter, options)


@dataclass(frozen=True)
class State:
    """The progress of a folder, or of a share of it."""

    total: int | None
    """Number of rows at the end; None if unfinished shards are files that are not listed yet."""
    rows: int = 0
    """Rows of finished shards."""
    unfinished: int = 0
    """Rows of unfinished shards."""
    shards: int = 0
    finished: int = 0
    failed: int = 0
    """Failed rows of finished shards."""
    changed: Sequence[str] = ()
    """Input files that are known to have changed since the folder was started."""
    marks: Mapping[int, Mark] = field(default_factory=dict)
    """Those of the finished shards."""
    folder: Folder | None = None
    """The folder, if it was started."""

    def check(self, before: "State") -> None:
        """Check, at the end of a run, that all it has made is there.

        Raises:
            OutputError: files were removed or changed since the state `before`.
        """
        if self.folder is None:
            raise OutputError("the folder of --out was removed during the run")
        if before.folder is not None:
            before.folder.check_run()
        if self.finished < self.shards and not self.folder.has_embeddings:
            raise OutputError(
                f"{self.shards - self.finished} shards in '{self.folder.files}' were removed "
                "during the run; run the same command again to make them"
            )
        self.folder.check_files({n: m for n, m in self.marks.items() if before.marks.get(n) != m})

    @property
    def resumed(self) -> int:
        """Rows that are done."""
        return self.rows + self.unfinished

    @property
    def to_do(self) -> int | None:
        """Rows that remain; None if their number is unknown."""
        return None if self.total is None else self.total - self.resumed


def state(spec: RunSpec, options: WorkerOptions | None = None) -> State:
    """The progress of the share; loads no model and changes no file."""
    share = (options or WorkerOptions()).share
    folder = spec.output.peek(spec.sources, spec.task.schema)
    plan = folder.plan if folder else make_plan(spec.sources, spec.output.shard_size)
    own = [n for n in range(plan.count) if share is None or share.has(n)]
    if folder is None:
        return State(_sum(plan.rows(n) for n in own), shards=len(own))
    done = folder.marks(own) if own else {}
    marks = list(done.values())
    embeddings = folder.embeddings() if folder.has_embeddings and not marks else None
    embedded = embeddings.marks() if embeddings else {}
    unfinished = [
        embedded[n].rows if n in embedded else unfinished_rows(embeddings or folder, n)
        for n in own
        if n not in done
    ]
    return State(
        _sum(done[n].rows if n in done else plan.rows(n) for n in own),
        sum(mark.rows for mark in marks),
        sum(unfinished),
        len(own),
        len(marks),
        sum(mark.failed for mark in marks),
        plan.changed,
        done,
        folder,
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    """The sum; None if one of the counts is None."""
    known = list(counts)
    return None if None in known else sum(filter(None, known))
