"""Methods whose rows depend on all pictures: embed shard by shard, then score everything once.

Rows of the image encoder are gathered in `embedded/` of the output folder, with claims and marks
of its own; whoever finds them complete, and the claim on scoring free, writes all shards.
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
from zeroshot.distributed.layouts import Content, RowFiles, Safetensors
from zeroshot.distributed.worker import PATIENCE, WorkerOptions, work
from zeroshot.errors import UserError
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import EmbeddingBatch
from zeroshot.inputs.source import Source
from zeroshot.output import atomic, leases
from zeroshot.output.resumable import spelled
from zeroshot.results.result import EmbedResult, Failure
from zeroshot.tasks.task import Transductive

SCORING = "scoring"


@dataclass(frozen=True)
class EmbeddingPass:
    """The first half of a transductive worker: rows, or all views, as the vectors of a shard."""

    runner: Transductive

    @property
    def batch_size(self) -> int:
        """Of the worker."""
        return self.runner.batch_size

    def settings(self) -> dict[str, Any]:
        """Of the worker."""
        return self.runner.settings()

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[EmbedResult]:
        """A result per picture."""
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


def embedded(folder: Folder) -> Folder:
    """Where the rows are gathered."""
    return folder.below("embedded", Safetensors(RowFiles(EmbedResult.schema, "jsonl")))


def transduce(
    runner: Transductive, folder: Folder, meter: Meter, how: WorkerOptions | None = None
) -> bool:
    """Embed a share, or all, and score once everything is embedded; False if that is not yet so.

    Without a share this waits for the others; with one it does not, since they may be yet to
    start: the last one scores.
    """
    how = how or WorkerOptions()
    rows = embedded(folder)
    before = _failed(rows)
    work(EmbeddingPass(runner), rows, meter, replace(how, seen=bool))
    if len(rows.marks()) < rows.plan.count:
        return False
    again = how.retry_failed and _failed(rows) != before
    pause = PATIENCE[0]
    while again or len(folder.marks()) < folder.plan.count:
        with atomic.writing(folder.files):
            lease = leases.claim(folder.claims, SCORING)
        if isinstance(lease, leases.Lease):
            try:
                _score(runner, folder, rows, meter, how, again)
            finally:
                lease.release()
            return True
        time.sleep(pause)
        pause = min(2 * pause, PATIENCE[1])
    return True


def _failed(rows: Folder) -> int:
    return sum(mark.failed for mark in rows.marks().values())


def _score(
    runner: Transductive,
    folder: Folder,
    rows: Folder,
    meter: Meter,
    how: WorkerOptions,
    again: bool,
) -> None:
    contents = [rows.content(shard) for shard in range(rows.plan.count)]
    results = runner.score(_gathered(runner, contents, rows.plan.sources), meter)
    for shard, content in enumerate(contents):
        batch = list(islice(results, len(content.records)))
        if again or folder.mark(shard) is None:
            encoded = b"".join(folder.layout.format.encode(r.row()) for r in batch)
            records = folder.layout.format.records(folder.layout.format.header + encoded)
            made = Content(records, sources=[r.source for r in batch])
            folder.commit(shard, made, Meter())
        for result in batch:
            how.seen(result)


def _gathered(
    runner: Transductive, contents: Sequence[Content], sources: Sequence[Source]
) -> EmbeddingBatch:
    """All shards as one batch.

    Raises:
        UserError: a file of pictures was listed as holding others than now.
    """
    told = [json.loads(record.raw) for content in contents for record in content.records]
    width = max((c.vectors[0].shape[1] for c in contents if c.vectors), default=0)
    matrix = torch.zeros(len(told), width)
    good = torch.tensor(["error" not in row for row in told], dtype=torch.bool)
    if bool(good.any()):
        held = np.concatenate([c.vectors[0] for c in contents if c.vectors])
        matrix[good] = torch.from_numpy(held)
    views = None
    if runner.views:
        views = matrix.view(len(told), runner.views, width // runner.views)
        matrix = views[:, 0]
    paths = [spelled(row["path"]) for row in told]
    if paths != [spelled(source.path) for source in sources]:
        raise UserError(
            "not all pictures that were embedded are found again, in their tar files or tables; "
            "see that these can be read and run the same command again, or begin anew with "
            "--overwrite"
        )
    return EmbeddingBatch(
        sources,
        [row["id"] for row in told],
        matrix,
        [Failure(**row["error"]) if "error" in row else None for row in told],
        views,
    )
