"""An open Parquet file that unpacks to no more than its size allows."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from zeroshot.errors import NotAvailableError
from zeroshot.inputs.columnar.footer import Chunk, row_groups
from zeroshot.inputs.columnar.page_headers import PageError, pages
from zeroshot.inputs.remote import fsspec_files
from zeroshot.inputs.source import File, most_rows
from zeroshot.packaging.extras import how_to_install

UNPACKED = 128 << 20
"""Bytes that any file may unpack to, and that are read together."""


def import_pyarrow() -> Any:
    """The package; NotAvailableError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise NotAvailableError(
            f"Parquet needs pyarrow: {how_to_install('data')}, or give a CSV"
        ) from error
    return pyarrow


class Unpacked:
    """Counts the bytes of the values that come from a packed file.

    A value may be stored once and stand in every row, so that the file's size does not bound them.
    """

    def __init__(self, packed: int) -> None:
        self._left = UNPACKED + 64 * packed

    def add(self, size: int) -> None:
        """PageError if it becomes too much."""
        self._left -= size
        if self._left < 0:
            raise PageError("its values unpack to far more than it has")


@dataclass(frozen=True)
class Footer:
    """What is read before any page: pyarrow's own view of it, and where the columns are."""

    metadata: Any
    groups: tuple[tuple[Chunk, ...], ...]


@dataclass(frozen=True)
class CheckedParquet:
    """A Parquet file whose pages are checked before they are unpacked."""

    file: File
    parquet: Any
    footer: Footer
    size: int
    remote: bool

    @classmethod
    @contextmanager
    def open(cls, name: str, footer: Footer | None = None) -> "Iterator[CheckedParquet]":
        """Open a file for a block; one that was opened before, with its footer.

        Raises pyarrow's errors, FooterError and `fsspec_files.failures`.
        """
        remote = fsspec_files.is_remote(name) and not fsspec_files.has_copy(name)
        with fsspec_files.open_file(name) as file:
            size = file.seek(0, 2)
            metadata = footer.metadata if footer else None
            with import_pyarrow().parquet.ParquetFile(file, metadata=metadata) as parquet:
                known = footer or Footer(parquet.metadata, row_groups(file))
                yield cls(file, parquet, known, size, remote)

    def check_rows(self) -> None:
        """PageError for more rows than a file of this size has."""
        metadata = self.parquet.metadata
        groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
        self._check_count("rows", sum(group.num_rows for group in groups))

    def batches(self, group: int, columns: Sequence[str], most: int) -> Iterator[Any]:
        """The rows of these columns in a row group, at most `most` at a time.

        Raises:
            PageError: a page that unpacks to too much, or more values than there can be.
        """
        if group >= len(self.footer.groups):
            raise PageError(f"the file has {len(self.footer.groups)} row groups now")
        schema, chunks, largest = self.parquet.schema, self.footer.groups[group], 1
        if len(chunks) != len(schema):
            raise PageError(f"damaged: {len(chunks)} columns in a row group, {len(schema)} in all")
        below = tuple(f"{column}." for column in columns)
        for number, chunk in enumerate(chunks):
            column = schema.column(number)
            if column.path in columns or column.path.startswith(below):
                largest = max(largest, column.length, self._largest_repeated(chunk))
        rows = max(1, min(most, UNPACKED // largest))
        yield from self.parquet.iter_batches(rows, row_groups=[group], columns=list(columns))

    def _largest_repeated(self, chunk: Chunk) -> int:
        """The size of the largest page of a column of which each row may have all, or almost."""
        self._check_count("values", chunk.values)
        if self.remote and self.size > UNPACKED:
            return 1  # each header would be a request
        largest = 1
        for page in pages(self.file, chunk.start, chunk.packed, chunk.values):
            self._check_count("values", page.values)
            dense = page.unpacked > 16 * page.packed
            if dense and page.unpacked > UNPACKED:
                raise PageError(f"a page of {page.packed} bytes unpacks to {page.unpacked}")
            largest = max(largest, page.unpacked if dense or page.repeats else 1)
        return largest

    def _check_count(self, what: str, count: int) -> None:
        if count > most_rows(self.file):
            raise PageError(f"{count} {what} in a file of {self.size} bytes")
