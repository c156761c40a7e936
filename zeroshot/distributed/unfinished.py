"""The rows so far of a shard that is being worked on, so that a kill costs a batch at most."""

import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zeroshot.distributed.folder import Folder
from zeroshot.distributed.layouts import Content, Layout, Matrix
from zeroshot.inputs.source import Source
from zeroshot.output import atomic
from zeroshot.output.formats import Record
from zeroshot.output.resumable import spelled
from zeroshot.results.result import Result


class Part:
    """Rows and vectors of one shard, appended batch by batch by the holder of its claim.

    Files are `NAME.TOKEN.rows` and, a channel and its width each, `NAME.TOKEN.0.512`. A later
    holder copies what an earlier one left and never writes to its files: that one may wake.
    """

    def __init__(self, folder: Path, name: str, layout: Layout) -> None:
        self.folder, self.name, self.layout = folder, name, layout
        self.token = secrets.token_hex(4)

    def resume(self, sources: Sequence[Source], batch_size: int) -> int:
        """Take over what a killed holder left, in whole batches; how many rows those are.

        Batches begin where they would have without the kill: how pictures are batched can move
        the last digit of a number.
        """
        best, kept = Content(), 0
        for file in self.folder.glob(f"{self.name}.*.rows"):
            found = self.read(file.name.split(".")[1])
            rows = _matching(found.records, sources)
            whole = rows if rows == len(sources) else rows - rows % batch_size
            if whole > kept:
                best, kept = found, whole
        records = best.records[:kept]
        good = sum(not record.failed for record in records)
        with atomic.writing(self.folder):
            self._write("rows", self.layout.format.header + b"".join(r.raw for r in records), "wb")
            for channel, matrix in enumerate(best.vectors if good else ()):
                name = f"{channel}.{matrix.shape[1]}"
                self._write(name, matrix[:good].tobytes(), "wb")
        return kept

    def append(self, results: Sequence[Result]) -> None:
        """A batch: its vectors first, so that a row that is there has its own."""
        rows = b""
        channels: dict[str, list[Matrix]] = {}
        for result in results:
            row, vectors = self.layout.split(result)
            rows += self.layout.format.encode(row)
            for channel, vector in enumerate(vectors):
                name = f"{channel}.{len(vector)}"
                channels.setdefault(name, []).append(np.asarray(vector, np.float32))
        with atomic.writing(self.folder):
            for name, held in channels.items():
                self._write(name, np.stack(held).tobytes(), "ab")
            self._write("rows", rows, "ab")

    def content(self) -> Content:
        """All there is."""
        return self.read(self.token)

    def remove(self) -> None:
        """Remove it, and what earlier holders left."""
        for file in self.folder.glob(f"{self.name}.*"):
            file.unlink(missing_ok=True)

    def _write(self, what: str, data: bytes, mode: str) -> None:
        with open(self.folder / f"{self.name}.{self.token}.{what}", mode) as file:
            file.write(data)

    def read(self, token: str) -> Content:
        """Whole rows that have their vectors; nothing where the files make no sense."""
        try:
            rows = (self.folder / f"{self.name}.{token}.rows").read_bytes()
            records = self.layout.format.records(rows)
        except (OSError, ValueError):
            return Content()
        if not self.layout.has_vectors:
            return Content(records)
        vectors = []
        for file in sorted(self.folder.glob(f"{self.name}.{token}.*.*")):
            width = int(file.name.rpartition(".")[2])
            data = np.fromfile(file, np.float32)
            vectors.append(data[: len(data) // width * width].reshape(-1, width))
        records = _first(records, min(map(len, vectors), default=0))
        good = sum(not record.failed for record in records)
        return Content(records, [matrix[:good] for matrix in vectors])


def rows_kept(folder: Folder, shard: int) -> int:
    """Rows of an unfinished shard that are there."""
    part, name = Part(folder.work, folder.name(shard), folder.layout), folder.name(shard)
    tokens = (file.name.split(".")[1] for file in folder.work.glob(f"{name}.*.rows"))
    return max((len(part.read(token).records) for token in tokens), default=0)


def _first(records: list[Record], good: int) -> list[Record]:
    """Records up to the last that has a vector when `good` of them do."""
    for place, record in enumerate(records):
        good -= not record.failed
        if good < 0:
            return records[:place]
    return records


def _matching(records: Sequence[Record], sources: Sequence[Source]) -> int:
    """How many records from the first on are those of the sources."""
    for place, (record, source) in enumerate(zip(records, sources, strict=False)):
        if spelled(record.path) != spelled(source.path):
            return place
    return min(len(records), len(sources))
