"""Process shards: every process calls `process_shard` until all shards are finished."""

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
from zeroshot.errors import OutputError
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.output import atomic, leases
from zeroshot.output.formats import Record
from zeroshot.output.resumable import written_path
from zeroshot.results.result import Result
from zeroshot.tasks.task import Runner

POLL_SECONDS = (0.2, 5.0)
"""Time between checks of shards that other processes work on: at first, and at most."""


@dataclass(frozen=True)
class WorkerOptions:
    """How a process works on a folder; no option changes the content of a row."""

    share: Share | None = None
    """The shards to work on; None for any shard that no other process has claimed."""
    retry_failed: bool = False
    read: Callable[[Sequence[Source]], Iterable[Source]] = iter
    """Passes the images of a shard to the runner, read ahead or unchanged."""
    on_result: Callable[[Result], object] = bool
    """Called with every result after it is written."""


def process_shard(
    runner: Runner, folder: Folder, shard: int, meter: Meter, options: WorkerOptions | None = None
) -> Mark | None:
    """Finish one shard and return its done-mark; None if another process has claimed it.

    Of a finished shard only the failed rows are processed again, if `retry_failed` is set. Any
    number of processes may call this at any time: one of them does the work. It continues after
    the last complete batch of a process that was killed.

    Raises:
        OutputError: the files cannot be written; the folder, or files of this process in it, were
            removed or replaced.
    """
    options = options or WorkerOptions()
    if (mark := _finished(folder, shard, options)) is not None:
        return mark
    with atomic.writing(folder.files):
        lease = leases.claim(folder.claims, folder.name(shard))
    if not isinstance(lease, leases.Lease):
        return None
    part = Part(folder.work, folder.name(shard), folder.layout)
    try:
        folder.check_run()  # so that no rows come among those of another run
        if (mark := _finished(folder, shard, options)) is not None:
            return mark
        before = meter.counts()
        left_out: list[str] = []
        sources = folder.plan.shard(shard, left_out)
        meter.skipped += len(left_out)
        old = folder.content(shard) if folder.mark(shard) is not None else None
        if old is not None and _has_paths_of(old, sources):
            content = _retry_failed(runner, sources, part, old, meter, options)
        else:
            content = _process_all(runner, sources, part, meter, options)
        folder.check_run()
        if not lease.is_current():
            part.remove(earlier=False)
            return None
        if old is not None:
            folder.unmark(shard)
        meter.shards += 1
        mark = folder.commit(shard, replace(content, sources=sources), meter.since(before))
        part.remove()
        return mark
    except OutputError:
        if lease.is_current():
            raise
        part.remove(earlier=False)
        folder.check_run()
        return None  # another process took over; once it has finished, it removes these rows
    finally:
        folder.plan.release(shard)
        lease.release()


def work(
    runner: Runner, folder: Folder, meter: Meter, options: WorkerOptions | None = None
) -> None:
    """Process all shards of the share until each is finished, by this process or another one.

    If another process has claimed a shard, this waits for it, and takes over if that process dies.

    Raises:
        FileRefusedError: some files cannot become shards; all other shards are finished.
    """
    options = options or WorkerOptions()
    pending = _rotated(
        [n for n in range(folder.plan.count) if options.share is None or options.share.has(n)]
    )
    pause = POLL_SECONDS[0]
    refused: list[str] = []
    while pending:
        marks = folder.marks(pending)
        pending = [n for n in pending if n not in marks or _needs_retry(marks[n], options)]
        left = []
        for shard in pending:
            try:
                if process_shard(runner, folder, shard, meter, options) is None:
                    left.append(shard)
            except FileRefusedError as error:
                refused += error.args
        if len(left) == len(pending):
            with meter.phase("waiting for other processes", counts=False):
                time.sleep(pause)
            pause = min(2 * pause, POLL_SECONDS[1])
        else:
            pause = POLL_SECONDS[0]
        pending = left
    if refused:
        raise FileRefusedError(*refused)


def _rotated(shards: list[int]) -> list[int]:
    """Each process starts at another shard, so that they do not compete for the same ones."""
    name = f"{platform.node()} {os.getpid()}".encode()
    first = int.from_bytes(hashlib.sha256(name).digest()[:4]) % max(1, len(shards))
    return shards[first:] + shards[:first]


def _finished(folder: Folder, shard: int, options: WorkerOptions) -> Mark | None:
    mark = folder.mark(shard)
    return None if mark is not None and _needs_retry(mark, options) else mark


def _needs_retry(mark: Mark, options: WorkerOptions) -> bool:
    return options.retry_failed and mark.failed > 0


def _has_paths_of(old: Content, sources: Sequence[Source]) -> bool:
    """Whether the rows are of these images: a file that was damaged may have been repaired."""
    paths = [written_path(record.path) for record in old.records]
    return paths == [written_path(source.path) for source in sources]


def _process_all(
    runner: Runner, sources: Sequence[Source], part: Part, meter: Meter, options: WorkerOptions
) -> Content:
    """All rows of a shard, including those of an earlier process."""
    done = part.resume(sources, runner.batch_size)
    if done < len(sources):
        results = iter(runner(options.read(sources[done:]), meter))
        while batch := list(islice(results, runner.batch_size)):
            part.append(batch)
            for result in batch:
                options.on_result(result)
    content = part.content()
    if len(content.records) != len(sources):
        raise RuntimeError(f"{len(content.records)} rows for {len(sources)} images")
    return content


def _retry_failed(
    runner: Runner,
    sources: Sequence[Source],
    part: Part,
    old: Content,
    meter: Meter,
    options: WorkerOptions,
) -> Content:
    """A finished shard with its failed rows processed again."""
    failed = [i for i, record in enumerate(old.records) if record.failed]
    part.resume((), runner.batch_size)  # only the header: rows of an earlier process are others
    for result in runner(options.read([sources[i] for i in failed]), meter):
        part.append([result])
        options.on_result(result)
    return merge(old, part.content(), failed)


def merge(old: Content, new: Content, indices: Sequence[int]) -> Content:
    """`old` with the rows at `indices` and their vectors replaced by those of `new`."""
    fresh = dict(zip(indices, new.records, strict=True))
    records = [fresh.get(i, record) for i, record in enumerate(old.records)]
    channels = max(len(old.vectors), len(new.vectors))
    return Content(records, [_channel(c, old, new, fresh) for c in range(channels)])


def _channel(channel: int, old: Content, new: Content, fresh: dict[int, Record]) -> Matrix:
    old_vectors = iter(old.vectors[channel]) if old.vectors else iter(())
    new_vectors = iter(new.vectors[channel]) if new.vectors else iter(())
    vectors = [
        next(new_vectors if i in fresh else old_vectors)
        for i, record in enumerate(old.records)
        if not fresh.get(i, record).failed
    ]
    return np.stack(vectors)
