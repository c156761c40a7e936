"""Methods whose rows depend on all images: embed shard by shard, then score everything once.

Embeddings are written to `embedded/` in the output folder, with claims and done-marks of its own.
The process that finds them complete and gets the claim on scoring writes all shards.
"""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from zeroshot.distributed.folder import Folder
from zeroshot.distributed.layouts import Content
from zeroshot.distributed.sharding import ByNumber
from zeroshot.distributed.worker import POLL_SECONDS, WorkerOptions, work
from zeroshot.errors import UserError
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import EmbeddingBatch
from zeroshot.inputs.source import Source
from zeroshot.output import atomic, leases
from zeroshot.output.resumable import written_path
from zeroshot.results.result import EmbedResult, Failure, Result
from zeroshot.tasks.task import Transductive

SCORING = "scoring"


@dataclass(frozen=True)
class EmbeddingPass:
    """The first half of a transductive runner: its results are embeddings (of all views)."""

    runner: Transductive

    @property
    def batch_size(self) -> int:
        """The batch size of the runner."""
        return self.runner.batch_size

    def settings(self) -> dict[str, Any]:
        """The settings of the runner."""
        return self.runner.settings()

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[EmbedResult]:
        """One result per image."""
        for batch in self.runner.embed(sources, meter):
            vectors = batch.embeddings if batch.views is None else batch.views.flatten(1)
            for i, source in enumerate(batch.sources):
                failure = batch.failures[i]
                yield EmbedResult(
                    source=source,
                    id=batch.ids[i],
                    error=failure,
                    embedding=() if failure else tuple(vectors[i].tolist()),
                )


def transduce(
    runner: Transductive, folder: Folder, meter: Meter, options: WorkerOptions | None = None
) -> bool:
    """Embed the share, then score if all images are embedded; returns whether they are.

    Without a share this waits for the other processes. With a share it does not wait, because they
    may not have started: the last process scores.
    """
    options = options or WorkerOptions()
    embeddings = folder.embeddings()
    before = _failed(embeddings)
    with meter.phase("embedding", _images(embeddings, options)) as phase:

        def count(result: Result) -> None:
            phase.done += 1

        work(EmbeddingPass(runner), embeddings, meter, replace(options, on_result=count))
    if len(embeddings.marks()) < embeddings.plan.count:
        return False
    rescore = options.retry_failed and _failed(embeddings) != before
    pause = POLL_SECONDS[0]
    while rescore or len(folder.marks()) < folder.plan.count:
        with atomic.writing(folder.files):
            lease = leases.claim(folder.claims, SCORING)
        if isinstance(lease, leases.Lease):
            try:
                _score(runner, folder, embeddings, meter, options, rescore)
            finally:
                lease.release()
            return True
        with meter.phase("waiting for other processes", counts=False):
            time.sleep(pause)
        pause = min(2 * pause, POLL_SECONDS[1])
    return True


def _images(folder: Folder, options: WorkerOptions) -> int | None:
    """Number of images that have to be embedded; None if it is unknown."""
    plan = folder.plan
    if not isinstance(plan, ByNumber):
        return None
    done, share = folder.marks(), options.share
    own = (n for n in range(plan.count) if n not in done and (share is None or share.has(n)))
    return sum(map(plan.rows, own))


def _failed(folder: Folder) -> int:
    return sum(mark.failed for mark in folder.marks().values())


def _score(
    runner: Transductive,
    folder: Folder,
    embeddings: Folder,
    meter: Meter,
    options: WorkerOptions,
    rescore: bool,
) -> None:
    plan = embeddings.plan
    contents = [embeddings.content(shard) for shard in range(plan.count)]
    results = runner.score(_concat_shards(runner, contents, plan.sources), meter)
    for shard, content in enumerate(contents):
        with meter.phase("scoring", counts=False):
            batch = list(islice(results, len(content.records)))
        if rescore or folder.mark(shard) is None:
            encoded = b"".join(folder.layout.format.encode(r.row()) for r in batch)
            records = folder.layout.format.records(folder.layout.format.header + encoded)
            folder.commit(shard, Content(records, sources=[r.source for r in batch]), Meter())
        for result in batch:
            options.on_result(result)


def _concat_shards(
    runner: Transductive, contents: Sequence[Content], sources: Sequence[Source]
) -> EmbeddingBatch:
    """All shards as one batch.

    Raises:
        UserError: the images of an input file are not those that were embedded.
    """
    rows = [json.loads(record.raw) for content in contents for record in content.records]
    width = max((c.vectors[0].shape[1] for c in contents if c.vectors), default=0)
    matrix = torch.zeros(len(rows), width)
    good = torch.tensor(["error" not in row for row in rows], dtype=torch.bool)
    if bool(good.any()):
        vectors = np.concatenate([c.vectors[0] for c in contents if c.vectors])
        matrix[good] = torch.from_numpy(vectors)
    views = None
    if runner.views:
        views = matrix.view(len(rows), runner.views, width // runner.views)
        matrix = views[:, 0]
    paths = [written_path(row["path"]) for row in rows]
    if paths != [written_path(source.path) for source in sources]:
        raise UserError(
            "some images that were embedded are missing from their tar files or tables; make sure "
            "that these can be read and run the same command again, or start again with --overwrite"
        )
    return EmbeddingBatch(
        sources,
        [row["id"] for row in rows],
        matrix,
        [Failure(**row["error"]) if "error" in row else None for row in rows],
        views,
    )
