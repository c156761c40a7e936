"""One function processes a shard; whoever has a worker and a folder calls it until all is done."""

import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from zeroshot.distributed.folder import Folder, Mark
from zeroshot.distributed.layouts import Content, Matrix
from zeroshot.distributed.sharding import FileRefusedError, Share
from zeroshot.distributed.unfinished import Part
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.output import atomic, leases
from zeroshot.output.formats import Record
from zeroshot.output.resumable import spelled
from zeroshot.results.result import Result
from zeroshot.tasks.task import Runner

PATIENCE = (0.2, 5.0)
"""Seconds between looks at shards that others have: at first, and at most."""


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker is told besides the folder; nothing of it decides what a row says."""

    share: Share | None = None
    """Of all shards; without one, whatever nobody else has."""
    retry_failed: bool = False
    read: Callable[[Sequence[Source]], Iterable[Source]] = iter
    """Gives the pictures of a shard to the worker, read ahead or as they are."""
    seen: Callable[[Result], object] = bool
    """Called with every result once it is written."""


def process_shard(
    runner: Runner, folder: Folder, shard: int, meter: Meter, how: WorkerOptions | None = None
) -> Mark | None:
    """See that one shard is finished; None if another process has it.

    Does nothing to a finished shard, but for trying failed rows again where that is asked for. May
    be called by any number of processes at any time: one of them does it. What a killed one left is
    gone on with.
    """
    how = how or WorkerOptions()
    if (mark := _finished(folder, shard, how)) is not None:
        return mark
    with atomic.writing(folder.files):
        lease = leases.claim(folder.claims, folder.name(shard))
    if not isinstance(lease, leases.Lease):
        return None
    try:
        if (mark := _finished(folder, shard, how)) is not None:
            return mark
        part = Part(folder.work, folder.name(shard), folder.layout)
        before = meter.counts()
        left_out: list[str] = []
        sources = folder.plan.shard(shard, left_out)
        meter.skipped += len(left_out)
        old = folder.content(shard) if folder.mark(shard) is not None else None
        if old is not None and _is_of(old, sources):
            content = _retried(runner, sources, part, old, meter, how)
        else:
            content = _fresh(runner, sources, part, meter, how)
        if not lease.held():
            return None
        meter.shards += 1
        made = replace(content, sources=sources)
        mark = folder.commit(shard, made, meter.since(before))
        part.remove()
        return mark
    finally:
        folder.plan.release(shard)
        lease.release()


def work(runner: Runner, folder: Folder, meter: Meter, how: WorkerOptions | None = None) -> None:
    """Process the shards of a share, or all, until each is finished by somebody.

    A shard that another process has is waited for, and taken over should that process die.

    Raises:
        FileRefusedError: of files that cannot be made shards; the others are done.
    """
    how = how or WorkerOptions()
    pending = _in_own_order(
        [n for n in range(folder.plan.count) if how.share is None or how.share.has(n)]
    )
    pause = PATIENCE[0]
    refused: list[str] = []
    while pending:
        marks = folder.marks(pending)
        pending = [n for n in pending if n not in marks or _again(marks[n], how)]
        left = []
        for shard in pending:
            try:
                if process_shard(runner, folder, shard, meter, how) is None:
                    left.append(shard)
            except FileRefusedError as error:
                refused += error.args
        if len(left) == len(pending):
            time.sleep(pause)
            pause = min(2 * pause, PATIENCE[1])
        else:
            pause = PATIENCE[0]
        pending = left
    if refused:
        raise FileRefusedError(*refused)


def _in_own_order(shards: list[int]) -> list[int]:
    """Beginning elsewhere in each process, so that many do not queue for the same shards."""
    name = f"{platform.node()} {os.getpid()}".encode()
    first = int.from_bytes(hashlib.sha256(name).digest()[:4]) % max(1, len(shards))
    return shards[first:] + shards[:first]


def _finished(folder: Folder, shard: int, how: WorkerOptions) -> Mark | None:
    mark = folder.mark(shard)
    return None if mark is not None and _again(mark, how) else mark


def _again(mark: Mark, how: WorkerOptions) -> bool:
    return how.retry_failed and mark.failed > 0


def _is_of(old: Content, sources: Sequence[Source]) -> bool:
    """Whether rows are of these pictures: a file that could not be listed may be whole by now."""
    paths = [spelled(record.path) for record in old.records]
    return paths == [spelled(source.path) for source in sources]


def _fresh(
    runner: Runner, sources: Sequence[Source], part: Part, meter: Meter, how: WorkerOptions
) -> Content:
    """All rows of a shard, those that an earlier process left included."""
    kept = part.resume(sources, runner.batch_size)
    if kept < len(sources):
        results = iter(runner(how.read(sources[kept:]), meter))
        while batch := list(islice(results, runner.batch_size)):
            part.append(batch)
            for result in batch:
                how.seen(result)
    content = part.content()
    if len(content.records) != len(sources):
        raise RuntimeError(f"{len(content.records)} rows for {len(sources)} pictures")
    return content


def _retried(
    runner: Runner,
    sources: Sequence[Source],
    part: Part,
    old: Content,
    meter: Meter,
    how: WorkerOptions,
) -> Content:
    """A finished shard with its failed rows made anew."""
    places = [i for i, record in enumerate(old.records) if record.failed]
    part.resume((), runner.batch_size)  # nothing but the header: what is left is of other places
    for result in runner(how.read([sources[i] for i in places]), meter):
        part.append([result])
        how.seen(result)
    new = part.content()
    return merged(old, new, places)


def merged(old: Content, new: Content, places: Sequence[int]) -> Content:
    """`old` with the rows at `places` replaced by those of `new`, vectors included."""
    fresh = dict(zip(places, new.records, strict=True))
    records = [fresh.get(i, record) for i, record in enumerate(old.records)]
    channels = max(len(old.vectors), len(new.vectors))
    return Content(records, [_channel(c, old, new, fresh) for c in range(channels)])


def _channel(channel: int, old: Content, new: Content, fresh: dict[int, Record]) -> Matrix:
    held = iter(old.vectors[channel]) if old.vectors else iter(())
    made = iter(new.vectors[channel]) if new.vectors else iter(())
    rows = [
        next(made if i in fresh else held)
        for i, record in enumerate(old.records)
        if not fresh.get(i, record).failed
    ]
    return np.stack(rows)
