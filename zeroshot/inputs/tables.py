"""Tables of images: CSV, TSV and JSON lines with a path or a URL in each row.

Rows are counted from 0, without the column names: `pairs.csv#17` is the eighteenth. A row that
names no image becomes a source that fails. If no further row can be read, one more source says why.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from zeroshot.errors import UserError
from zeroshot.inputs import text_files
from zeroshot.inputs.columns import Columns, fields_of, resolve
from zeroshot.inputs.remote import fsspec_files
from zeroshot.inputs.remote.fetch import Fetch, Url
from zeroshot.inputs.source import (
    MAX_PIXELS,
    PICTURES,
    SCHEME,
    URL,
    Fields,
    Source,
    UnreadableBlob,
    most_rows,
)
from zeroshot.inputs.text_files import LineRecord, TextError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class InputOptions:
    """How tables and URLs are read, and which members of a tar file are images."""

    columns: Columns = field(default_factory=Columns)
    root: str | None = None
    """Folder of a table's relative paths (default: the table's). Paths outside it are refused."""
    fetch: Fetch = field(default_factory=Fetch)
    suffixes: re.Pattern[str] = PICTURES
    """Suffixes of images in a tar file, or of clips."""
    null: bool = False
    """Whether names on standard input end in a null character, and not in a line end."""
    within: tuple[str, ...] = ()
    """Real folders that links in a scanned folder must not lead out of; empty: they may."""
    max_pixels: int = MAX_PIXELS
    """Images of more are not decoded, but for JPEG (see `source.MAX_PIXELS`)."""

    def limited(self, source: Source) -> Source:
        """The source with this limit of pixels."""
        same = self.max_pixels == source.max_pixels
        return source if same else replace(source, max_pixels=self.max_pixels)


@dataclass(frozen=True)
class ImageTable:
    """A table, and how its cells are read."""

    name: str
    options: InputOptions

    @property
    def root(self) -> str:
        """The folder that paths are relative to."""
        return self.options.root or os.path.dirname(self.name)

    def unreadable(self, row: int, reason: str) -> Source:
        """The source of a row without an image."""
        return Source(f"{self.name}#{row}", UnreadableBlob(reason))

    def source(self, row: int, cell: object, fields: Fields, where: str = "") -> Source:
        """The image that a cell names: a path below `root`, a URL, an object of a bucket.

        Args:
            where: begins the message about a cell that names none.
        """
        if not isinstance(cell, str) or not cell.strip():
            return self.unreadable(row, f"{where}the row names no image")
        if URL.match(cell):
            return Source(cell, Url(cell, self.options.fetch), fields)
        if SCHEME.match(cell):
            return self._remote(row, cell, fields, where)
        path = below(self.root, cell)
        if path is None:
            return self.unreadable(
                row,
                f"{where}{cell[:200]!r} lies outside the folder '{self.root or '.'}'; "
                "--image-root names the folder that all images of a table lie in",
            )
        content = fsspec_files.Remote(path) if fsspec_files.is_remote(path) else None
        return Source(path, content, fields)

    def _remote(self, row: int, cell: str, fields: Fields, where: str) -> Source:
        if fsspec_files.scheme_of(cell) not in fsspec_files.BUCKETS or "::" in cell:
            reason = f"{cell[:80]!r} is neither a path nor a URL nor an object of a bucket"
            return self.unreadable(row, f"{where}{reason}")
        if self.options.fetch.offline:
            return self.unreadable(row, f"{where}{cell[:80]!r} needs the network (--offline)")
        return Source(cell, fsspec_files.Remote(cell), fields)


def below(root: str, path: str) -> str | None:
    """The path of `path` in the folder `root`; None if it leads out of there."""
    if fsspec_files.is_remote(root):
        parts = path.split("/")
        return None if ".." in parts or not parts[0] else f"{root.rstrip('/')}/{path}"
    joined = os.path.join(root, path)
    if os.path.isabs(path) or ".." in path:
        home, there = os.path.abspath(root), os.path.abspath(joined)
        if there != home and not there.startswith(home.rstrip(os.sep) + os.sep):
            return None
    return joined


def path_below(folder: Path, name: str, where: str) -> str:
    """The path of an image that a file names; `where` is the place in that file.

    Links are followed: whoever made the folder made them.

    Raises:
        UserError: the name leads out of the folder, or is empty.
    """
    path = below(str(folder), name) if name else None
    if path is None:
        raise UserError(f"{where}: '{name}' lies outside the folder of images, '{folder}'")
    return os.path.normpath(path)


def rows(name: str, options: InputOptions) -> Iterator[Source]:
    """The images of a CSV, TSV or JSON lines file.

    Raises:
        UserError: it has no column of images, or several.
    """
    table, number = ImageTable(name, options), 0
    try:
        with (
            fsspec_files.open_file(name) as file,
            text_files.open_text(file, name) as text,
        ):
            most = most_rows(file)
            for source in _sources(table, text_files.records(text, text_files.suffix_of(name))):
                if number > most:  # of a compressed file
                    raise text_files.TextError(f"has more than {most} rows")
                yield source
                number += 1
    except UserError:
        raise
    except TextError as error:
        if number:
            yield table.unreadable(number, f"the rows from here on cannot be read: {error}")
        else:
            yield Source(name, UnreadableBlob(f"the table {error}"))
    except FileNotFoundError:
        yield Source(name, UnreadableBlob("no such file"))
    except fsspec_files.failures(name) as error:
        yield Source(name, UnreadableBlob(f"cannot be read: {fsspec_files.why(error)}"))


def _sources(table: ImageTable, records: Iterable[LineRecord]) -> Iterator[Source]:
    """The image of each row. Objects of JSON lines may have other columns than the first one."""
    names: tuple[str, ...] = ()
    columns: Columns | None = None
    for number, record in enumerate(records):
        if not record.fault and tuple(record.values) != names:
            names = tuple(record.values)
            try:
                columns = resolve(table.name, names, table.options.columns)
            except UserError as error:
                if columns is None and all(map(text_files.is_utf8, names)):
                    raise
                if columns is None:
                    why = f"has column names that are not UTF-8; {text_files.CONVERT}"
                    raise TextError(why) from None
                names = ()
                yield table.unreadable(number, f"{record.place}: {error}")
                continue
        yield _source(table, number, record, columns or Columns())


def _source(table: ImageTable, number: int, record: LineRecord, columns: Columns) -> Source:
    where = record.place
    if record.fault:
        return table.unreadable(number, f"{where}: {record.fault}")
    try:
        fields = fields_of(record.values, columns)
    except ValueError as error:
        utf8 = all(text_files.is_utf8(v) for v in record.values.values() if isinstance(v, str))
        advice = "" if utf8 else f", because the table is not UTF-8; {text_files.CONVERT}"
        fields = Fields(fault=f"{where}, {error}{advice}")
    return table.source(number, record.values.get(columns.image or ""), fields, f"{where}: ")
