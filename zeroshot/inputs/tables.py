"""Tables of pictures: CSV, TSV and JSON lines with a path or a URL in each row.

Rows are counted from 0, the header not included: `pairs.csv#17` is the eighteenth. A row that
names no picture is a source that fails, and so is damage that hides all rows behind it.
"""

import csv
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from zeroshot.errors import UserError
from zeroshot.inputs.columns import Columns, fields_of, resolve
from zeroshot.inputs.remote import fsspec_files
from zeroshot.inputs.remote.fetch import Fetch, Url
from zeroshot.inputs.source import PICTURES, SCHEME, URL, File, Source, UnreadableBlob

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
MAX_LINE = 1 << 24
"""Characters of a line of JSON, or of a cell."""


@dataclass(frozen=True)
class InputOptions:
    """How tables and URLs are read, and what is looked for among other files."""

    columns: Columns = field(default_factory=Columns)
    root: str | None = None
    """The folder that a table's paths are relative to and lie in; the table's own without one."""
    fetch: Fetch = field(default_factory=Fetch)
    suffixes: re.Pattern[str] = PICTURES
    """Of files in a tar file that are what is asked for, and that captions may lie beside."""


@dataclass(frozen=True)
class ImageTable:
    """A table that was named, and what its cells mean."""

    name: str
    options: InputOptions

    @property
    def root(self) -> str:
        """The folder that paths are relative to."""
        return self.options.root or os.path.dirname(self.name)

    def refused(self, row: int, reason: str) -> Source:
        """The source of a row that names no picture."""
        return Source(f"{self.name}#{row}", UnreadableBlob(reason))

    def source(self, row: int, cell: object, fields: Mapping[str, str]) -> Source:
        """The picture that a cell names: a path below `root`, a URL, an object of a bucket."""
        if not isinstance(cell, str) or not cell.strip():
            return self.refused(row, "the row names no picture")
        if URL.match(cell):
            return Source(cell, Url(cell, self.options.fetch), fields)
        if SCHEME.match(cell):
            if fsspec_files.scheme_of(cell) not in fsspec_files.BUCKETS or "::" in cell:
                return self.refused(row, f"{cell[:80]!r}: a table names paths, URLs and buckets")
            if self.options.fetch.offline:
                return self.refused(row, "the network is not to be asked (--offline)")
            return Source(cell, fsspec_files.Remote(cell), fields)
        path = below(self.root, cell)
        if path is None:
            return self.refused(
                row,
                f"{cell[:200]!r} lies outside the folder '{self.root or '.'}'; --image-root names "
                "the one that all pictures of a table lie in",
            )
        content = fsspec_files.Remote(path) if fsspec_files.is_remote(path) else None
        return Source(path, content, fields)


def below(root: str, path: str) -> str | None:
    """`path` seen from the folder `root`; None if it leads out of there."""
    if fsspec_files.is_remote(root):
        parts = path.split("/")
        return None if ".." in parts or not parts[0] else f"{root.rstrip('/')}/{path}"
    joined = os.path.join(root, path)
    if os.path.isabs(path) or ".." in path:
        home, there = os.path.abspath(root), os.path.abspath(joined)
        if there != home and not there.startswith(home.rstrip(os.sep) + os.sep):
            return None
    return joined


def rows(name: str, options: InputOptions) -> Iterator[Source]:
    """The pictures of a CSV, TSV or JSON lines file.

    Raises:
        UserError: it has no column of pictures, or several.
    """
    table = ImageTable(name, options)
    suffix = os.path.splitext(name)[1].lower()
    read: Callable[[ImageTable, io.TextIOWrapper], Iterator[Source]]
    read = _json_lines if suffix == ".jsonl" else _separated
    try:
        with (
            fsspec_files.open_file(name) as file,
            _text(file) as text,
        ):
            yield from read(table, text)
    except UserError:
        raise
    except FileNotFoundError:
        yield Source(name, UnreadableBlob("no such file"))
    except fsspec_files.failures(name) as error:
        yield Source(name, UnreadableBlob(f"cannot be read: {fsspec_files.why(error)}"))


def _text(file: File) -> io.TextIOWrapper:
    """Lines of UTF-8; other bytes are kept as Python keeps those of file names."""
    binary = cast(BinaryIO, file)
    return io.TextIOWrapper(binary, "utf-8-sig", "surrogateescape", newline="")


def _separated(table: ImageTable, text: io.TextIOWrapper) -> Iterator[Source]:
    csv.field_size_limit(min(sys.maxsize, MAX_LINE))
    reader = csv.reader(text, delimiter="\t" if table.name.lower().endswith(".tsv") else ",")
    number = 0
    try:
        header = next(reader, None)
        if not header or not _is_text("".join(header)):
            yield Source(
                table.name, UnreadableBlob("no table: it begins with no row of column names")
            )
            return
        columns = resolve(table.name, header, table.options.columns)
        for cells in reader:
            if cells:
                yield _row(table, number, header, cells, columns)
                number += 1
    except csv.Error as error:
        yield table.refused(number, f"damaged, rows from here on cannot be read: {error}")


def _is_text(line: str) -> bool:
    """Whether it is UTF-8 without null characters, unlike the beginning of most other files."""
    return "\0" not in line and not any("\udc80" <= c <= "\udcff" for c in line)


def _row(
    table: ImageTable, number: int, header: Sequence[str], cells: Sequence[str], columns: Columns
) -> Source:
    if len(cells) != len(header):
        return table.refused(number, f"{len(cells)} cells for {len(header)} columns")
    row = dict(zip(header, cells, strict=True))
    return _source(table, number, row, columns)


def _source(table: ImageTable, number: int, row: Mapping[str, object], columns: Columns) -> Source:
    try:
        fields = fields_of(row, columns)
    except ValueError as error:
        return table.refused(number, str(error))
    return table.source(number, row.get(columns.image or ""), fields)


def _json_lines(table: ImageTable, text: io.TextIOWrapper) -> Iterator[Source]:
    number = 0
    while line := text.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith("\n"):
            yield table.refused(number, f"damaged: a line of more than {MAX_LINE} characters")
            return
        if number == 0 and not (_is_text(line) or line.startswith("{")):
            yield Source(table.name, UnreadableBlob("no table: it begins with no JSON"))
            return
        if line.strip():
            yield _json_row(table, number, line)
            number += 1
    if not number:
        yield Source(table.name, UnreadableBlob("an empty table"))


def _json_row(table: ImageTable, number: int, line: str) -> Source:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return table.refused(number, f"no JSON: {error}")
    if not isinstance(row, dict):
        return table.refused(number, "no JSON object")
    try:
        columns = resolve(table.name, tuple(row), table.options.columns)
    except UserError as error:
        if number == 0:
            raise
        return table.refused(number, str(error))
    return _source(table, number, row, columns)
