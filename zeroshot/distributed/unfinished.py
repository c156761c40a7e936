"""The rows of an unfinished shard on disk, so that a killed process loses one batch at most."""

import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from zeroshot.distributed.folder import Folder
from zeroshot.distributed.layouts import Content, Layout, Matrix
from zeroshot.inputs.source import Source
from zeroshot.output import atomic
from zeroshot.output.appended import AppendedFile
from zeroshot.output.formats import Record
from zeroshot.output.resumable import written_path
from zeroshot.results.result import Result


class Part:
    """Rows and vectors of one shard. The process that has claimed it appends batch by batch.

    The files are `NAME.TOKEN.rows`, and `NAME.TOKEN.0.512` for channel 0 of width 512. A process
    that takes over copies the files of the earlier one and never writes to them, because that
    process may only have been suspended.
    """

    def __init__(self, folder: Path, name: str, layout: Layout) -> None:
        self.folder, self.name, self.layout = folder, name, layout
        self.token = secrets.token_hex(4)
        self._files: dict[str, AppendedFile] = {}

    def resume(self, sources: Sequence[Source], batch_size: int) -> int:
        """Copy the complete batches of an earlier process; returns their number of rows.

        Batches start at the same images as without the interruption: a number can differ in its
        last digit if images are batched otherwise.
        """
        best, count = Content(), 0
        for content in self.earlier():
            rows = _matching(content.records, sources)
            complete = rows if rows == len(sources) else rows - rows % batch_size
            if complete > count:
                best, count = content, complete
        records = best.records[:count]
        good = sum(not record.failed for record in records)
        with atomic.writing(self.folder):
            self._append("rows", self.layout.format.header + b"".join(r.raw for r in records))
            for channel, matrix in enumerate(best.vectors if good else ()):
                self._append(f"{channel}.{matrix.shape[1]}", matrix[:good].tobytes())
        return count

    def earlier(self) -> Iterator[Content]:
        """The rows and vectors of each process that worked on the shard."""
        for file in self.folder.glob(f"{self.name}.*.rows"):
            yield self._read(file.name.split(".")[1])

    def append(self, results: Sequence[Result]) -> None:
        """Append a batch: vectors first, so that every complete row has its vectors."""
        rows = b""
        channels: dict[str, list[Matrix]] = {}
        for result in results:
            row, vectors = self.layout.split(result)
            rows += self.layout.format.encode(row)
            for channel, vector in enumerate(vectors):
                name = f"{channel}.{len(vector)}"
                channels.setdefault(name, []).append(np.asarray(vector, np.float32))
        with atomic.writing(self.folder):
            for name, vectors_of_channel in channels.items():
                self._append(name, np.stack(vectors_of_channel).tobytes())
            self._append("rows", rows)

    def content(self) -> Content:
        """All rows and vectors so far; OutputError if others changed the files."""
        with atomic.writing(self.folder):
            for file in self._files.values():
                file.check()
        return self._read(self.token)

    def remove(self, earlier: bool = True) -> None:
        """Remove its files, and those of earlier processes."""
        for file in self._files.values():
            file.close()
        for path in self.folder.glob(f"{self.name}.{'*' if earlier else self.token}.*"):
            path.unlink(missing_ok=True)

    def _append(self, what: str, data: bytes) -> None:
        if what not in self._files:
            path = self.folder / f"{self.name}.{self.token}.{what}"
            self._files[what] = AppendedFile(path)
        self._files[what].append(data)

    def _read(self, token: str) -> Content:
        """The complete rows that have their vectors; no rows if the files are damaged."""
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


def unfinished_rows(folder: Folder, shard: int) -> int:
    """Number of rows of an unfinished shard."""
    part = Part(folder.work, folder.name(shard), folder.layout)
    return max((len(content.records) for content in part.earlier()), default=0)


def _first(records: list[Record], good: int) -> list[Record]:
    """The records before the first one without a vector, if there are `good` vectors."""
    for index, record in enumerate(records):
        good -= not record.failed
        if good < 0:
            return records[:index]
    return records


def _matching(records: Sequence[Record], sources: Sequence[Source]) -> int:
    """Number of records that match the sources, counted from the first."""
    for index, (record, source) in enumerate(zip(records, sources, strict=False)):
        if written_path(record.path) != written_path(source.path):
            return index
    return min(len(records), len(sources))
