"""A job over a folder of shards, by this process."""

from collections.abc import Sequence
from dataclasses import dataclass

from zeroshot.images import Source
from zeroshot.jobs import Job, Transductive, is_transductive
from zeroshot.scale.folder import Place
from zeroshot.scale.part import rows_kept
from zeroshot.scale.shards import How, work
from zeroshot.scale.transduce import embedded, transduce
from zeroshot.store import EmbeddingCache, NullCache
from zeroshot.tasks.embedding import AUTO_BATCH
from zeroshot.tasks.meter import Meter


@dataclass(frozen=True)
class Order:
    """A job with its pictures and where the rows go: what is sent to whoever works on it."""

    job: Job
    sources: Sequence[Source]
    place: Place
    batch_size: int = AUTO_BATCH
    cached: bool = True

    def open_cache(self) -> EmbeddingCache:
        """The user's cache on the machine that asks, or one that holds nothing."""
        return EmbeddingCache() if self.cached else NullCache()


def run(order: Order, cache: EmbeddingCache, meter: Meter, how: How | None = None) -> None:
    """Open the job and work until every shard of the share is finished."""
    how = how or How()
    worker = order.job.open(cache, meter, order.batch_size)
    folder = order.place.join(order.sources, order.job.schema, worker.settings())
    if is_transductive(worker):
        assert isinstance(worker, Transductive)
        transduce(worker, folder, meter, how)
    else:
        work(worker, folder, meter, how)


@dataclass(frozen=True)
class State:
    """How far a folder, or a share of it, is."""

    total: int
    """Rows there will be."""
    rows: int = 0
    """In finished shards."""
    kept: int = 0
    """Of shards that were begun."""
    shards: int = 0
    finished: int = 0
    failed: int = 0
    """Rows of finished shards that are failures."""

    @property
    def resumed(self) -> int:
        """Rows that need no more work."""
        return self.rows + self.kept


def state(order: Order, how: How | None = None) -> State:
    """Where the work on the share stands; nothing is loaded and nothing is changed."""
    share = (how or How()).share
    folder = order.place.glance(order.sources, order.job.schema)
    if folder is None:
        return State(len(order.sources))
    own = [n for n in range(folder.plan.count) if share is None or share.has(n)]
    found = folder.marks(own) if own else {}
    marks = list(found.values())
    gathered = embedded(folder) if folder.has_embedded and not marks else None
    held = gathered.marks() if gathered else {}
    to_do = [n for n in own if n not in found]
    begun = [held[n].rows if n in held else rows_kept(gathered or folder, n) for n in to_do]
    return State(
        sum(len(folder.plan.shard(n)) for n in own),
        sum(mark.rows for mark in marks),
        sum(begun),
        len(own),
        len(marks),
        sum(mark.failed for mark in marks),
    )
