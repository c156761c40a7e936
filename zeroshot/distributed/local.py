"""A job over a folder of shards, by this process."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from zeroshot.cache.embedding_cache import EmbeddingCache, NullCache
from zeroshot.distributed.folder import OutputSpec
from zeroshot.distributed.sharding import Inputs, planned
from zeroshot.distributed.transductive import embedded, transduce
from zeroshot.distributed.unfinished import rows_kept
from zeroshot.distributed.worker import WorkerOptions, work
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.tasks.task import Task, Transductive, is_transductive


@dataclass(frozen=True)
class RunSpec:
    """A job with its pictures and where the rows go: what is sent to whoever works on it."""

    task: Task[Any]
    sources: Inputs
    output: OutputSpec
    batch_size: int = AUTO_BATCH
    cached: bool = True

    def open_cache(self) -> EmbeddingCache:
        """The user's cache on the machine that asks, or one that holds nothing."""
        return EmbeddingCache() if self.cached else NullCache()


def run(
    spec: RunSpec, cache: EmbeddingCache, meter: Meter, how: WorkerOptions | None = None
) -> None:
    """Open the job and work until every shard of the share is finished."""
    how = how or WorkerOptions()
    runner = spec.task.open(cache, meter, spec.batch_size)
    folder = spec.output.open(spec.sources, spec.task.schema, runner.settings())
    if is_transductive(runner):
        assert isinstance(runner, Transductive)
        transduce(runner, folder, meter, how)
    else:
        work(runner, folder, meter, how)


@dataclass(frozen=True)
class State:
    """How far a folder, or a share of it, is."""

    total: int | None
    """Rows there will be; None where shards that are not finished are files not listed yet."""
    rows: int = 0
    """In finished shards."""
    kept: int = 0
    """Of shards that were begun."""
    shards: int = 0
    finished: int = 0
    failed: int = 0
    """Rows of finished shards that are failures."""
    changed: Sequence[str] = ()
    """Files of pictures that are others than when the folder was begun, as far as is known."""

    @property
    def resumed(self) -> int:
        """Rows that need no more work."""
        return self.rows + self.kept

    @property
    def to_do(self) -> int | None:
        """Rows that do, as far as their number is known."""
        return None if self.total is None else self.total - self.resumed


def state(spec: RunSpec, how: WorkerOptions | None = None) -> State:
    """Where the work on the share stands; nothing is loaded and nothing is changed."""
    share = (how or WorkerOptions()).share
    folder = spec.output.peek(spec.sources, spec.task.schema)
    plan = folder.plan if folder else planned(spec.sources, spec.output.shard_size)
    own = [n for n in range(plan.count) if share is None or share.has(n)]
    if folder is None:
        return State(_sum(plan.rows(n) for n in own), shards=len(own))
    done = folder.marks(own) if own else {}
    found = {n: done.get(n) for n in own}
    marks = list(done.values())
    gathered = embedded(folder) if folder.has_embedded and not marks else None
    held = gathered.marks() if gathered else {}
    to_do = [n for n in own if n not in done]
    begun = [held[n].rows if n in held else rows_kept(gathered or folder, n) for n in to_do]
    return State(
        _sum(plan.rows(n) if mark is None else mark.rows for n, mark in found.items()),
        sum(mark.rows for mark in marks),
        sum(begun),
        len(own),
        len(marks),
        sum(mark.failed for mark in marks),
        plan.changed,
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    """None where one of them is."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total
