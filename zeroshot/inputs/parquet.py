"""Images in Parquet files: paths, URLs or the bytes themselves, as Hugging Face stores them.

Paths and captions are read when the file is listed. The bytes of an image are read later, together
with a few rows and forward, so that neither a row group nor its expansion must fit in memory.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.inputs.columnar.checked_parquet import (
    CheckedParquet,
    Footer,
    Unpacked,
    import_pyarrow,
)
from zeroshot.inputs.columns import Columns, class_names, fields_of, resolve
from zeroshot.inputs.local_files import read_file, stamp_of
from zeroshot.inputs.remote import fsspec_files
from zeroshot.inputs.source import MAX_BYTES, SCHEME, Fields, Source, UnreadableBlob
from zeroshot.inputs.tables import ImageTable, InputOptions, below
from zeroshot.inputs.text_files import parse_json

ROWS = 16
"""Number of images that are read together."""
MAX_TEXT = 1 << 20
"""Size limit of a path or a caption, in bytes."""
OPEN = 4
"""Number of row groups that stay open between images."""


@dataclass(frozen=True)
class ParquetColumn:
    """A column of images in a Parquet file."""

    table: ImageTable
    name: str


@dataclass(frozen=True, slots=True)
class ParquetCell:
    """The bytes of an image in a Parquet file."""

    column: ParquetColumn
    group: int
    row: int
    """In the row group."""

    @property
    def stamp(self) -> str | None:
        """The file, the place in it, and the file's state."""
        name = self.column.table.name
        try:
            state = fsspec_files.state_of(name)
        except fsspec_files.failures(name):  # reading will say so
            return None
        place = name if fsspec_files.is_remote(name) else os.path.abspath(name)
        cell = f"{self.column.name} {self.group} {self.row}"
        return None if state is None else f"{place}\0{cell}\0{state}"

    def read(self) -> bytes:
        """The bytes; UnreadableImageError with the reason."""
        where = f"row group {self.group}, row {self.row}"
        name = self.column.table.name
        try:
            value = _reader(name, self.group, self.column.name).value(self.row)
        except (
            *fsspec_files.failures(name),
            import_pyarrow().ArrowException,
            MemoryError,
        ) as error:
            raise UnreadableImageError(f"{where}: {fsspec_files.why(error)}") from error
        return bytes_of(value, [self.column.table.root], where)


def bytes_of(value: object, roots: Sequence[str], where: str) -> bytes:
    """The bytes of a cell, which is bytes or has `bytes` or a `path` below one of the roots."""
    path: object = None
    if isinstance(value, Mapping):
        path, value = value.get("path"), value.get("bytes")
    if isinstance(value, bytes):
        if len(value) > MAX_BYTES:
            raise UnreadableImageError(f"larger than {MAX_BYTES >> 20} MiB")
        return value
    if not isinstance(path, str) or not path:
        raise UnreadableImageError(f"{where} has no image")
    local = [] if SCHEME.match(path) else [r for r in roots if not fsspec_files.is_remote(r)]
    file = next((inside for root in local if (inside := below(root, path)) is not None), None)
    if file is None:
        raise UnreadableImageError(
            f"{where} has no bytes, and the path {path[:80]!r} leads outside"
        )
    return read_file(file)


def rows(name: str, options: InputOptions) -> Iterator[Source]:
    """The images of a Parquet file.

    Raises:
        UserError: it has no column of images, or several, or one of another type.
        NotAvailableError: pyarrow is not installed.
    """
    pyarrow = import_pyarrow()
    table = ImageTable(name, options)
    number = 0
    try:
        with CheckedParquet.open(name) as opened:
            for source in _listed(table, opened):
                yield source
                number += 1
        if not number:
            yield Source(name, UnreadableBlob("the table has no rows"))
    except UserError:
        raise
    except FileNotFoundError:
        yield Source(name, UnreadableBlob("no such file"))
    except (*fsspec_files.failures(name), pyarrow.ArrowException, MemoryError) as error:
        label = f"{name}#{number}" if number else name
        yield Source(label, UnreadableBlob(f"damaged Parquet file: {fsspec_files.why(error)}"))


def _listed(table: ImageTable, opened: CheckedParquet) -> Iterator[Source]:
    schema = opened.parquet.schema_arrow
    columns = resolve(table.name, schema.names, table.options.columns)
    assert columns.image is not None
    _check_once(table.name, schema.names, columns)
    kind = _kind(table.name, columns.image, schema.field(columns.image).type)
    named = [c for c in (columns.caption, columns.label) if c is not None]
    wanted = [columns.image, *named] if kind == "text" else named
    opened.check_rows()
    column, number, texts = ParquetColumn(table, columns.image), 0, Unpacked(opened.size)
    classes = _classes(schema.metadata, columns.label)
    for group in range(opened.parquet.num_row_groups):
        for row, values in enumerate(_values(opened, group, wanted, texts)):
            if classes:
                values[columns.label or ""] = class_names(values[columns.label or ""], classes)
            yield _source(column, columns, kind, values, (number, group, row))
            number += 1


def _check_once(name: str, there: Sequence[str], columns: Columns) -> None:
    for column in filter(None, (columns.image, columns.caption, columns.label)):
        if (count := there.count(column)) > 1:
            raise UserError(f"'{name}' has {count} columns with the name {column!r:.60}")


def _classes(metadata: Mapping[bytes, bytes] | None, label: str | None) -> Sequence[str]:
    """The names of the classes that Hugging Face writes beside a column of their numbers."""
    try:
        about = parse_json((metadata or {}).get(b"huggingface", b"").decode())
        feature = about["info"]["features"][label]
        names = feature.get("feature", feature)["names"]  # of a list, or of a number
    except (ValueError, KeyError, TypeError, AttributeError):
        return ()
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if texts else ()


def _source(
    column: ParquetColumn,
    columns: Columns,
    kind: str,
    values: dict[str, Any],
    place: tuple[int, int, int],
) -> Source:
    table, (number, group, row) = column.table, place
    values = {name: _text(value) for name, value in values.items()}
    if isinstance(fault := values.get(column.name), _FaultyCell):
        return table.unreadable(number, fault.reason)
    try:
        fields = fields_of(values, columns)
    except ValueError as error:
        fields = Fields(fault=str(error))
    for name, value in values.items():
        if isinstance(value, _FaultyCell):
            fields = Fields(fault=f"column '{name}': {value.reason}")
    if kind == "text":
        return table.source(number, values[column.name], fields)
    return Source(f"{table.name}#{number}", ParquetCell(column, group, row), fields)


@dataclass(frozen=True, slots=True)
class _FaultyCell:
    """Why a value cannot be read."""

    reason: str


def _text(value: Any) -> Any:
    """Texts are read as bytes, so that one that is not UTF-8 does not affect the others."""
    if not isinstance(value, bytes):
        return value
    if len(value) > MAX_TEXT:
        return _FaultyCell(f"a text of {len(value)} bytes; at most {MAX_TEXT >> 20} MiB are read")
    return value.decode("utf-8", "surrogateescape")


def _kind(name: str, column: str, type: Any) -> str:
    """`text` or `bytes`."""
    types = import_pyarrow().types
    if types.is_dictionary(type):
        type = type.value_type
    if types.is_string(type) or types.is_large_string(type) or types.is_string_view(type):
        return "text"
    if types.is_struct(type) and type.get_field_index("bytes") >= 0:
        type = type.field("bytes").type
    if types.is_binary(type) or types.is_large_binary(type) or types.is_binary_view(type):
        return "bytes"
    raise UserError(
        f"'{name}': column '{column}' is {type}; images are text (a path or a URL), binary, or a "
        "struct of bytes and path. --image-column names another"
    )


def _values(
    opened: CheckedParquet, group: int, columns: list[str], unpacked: Unpacked
) -> Iterator[dict[str, Any]]:
    """The rows of a group, with these columns only."""
    if not columns:
        for _ in range(opened.parquet.metadata.row_group(group).num_rows):
            yield {}
        return
    pyarrow = import_pyarrow()
    for batch in opened.batches(group, columns, 1024):
        unpacked.add(batch.nbytes)
        shared = {name for name in batch.schema.names if _shares(batch.schema.field(name).type)}
        arrays = {
            name: array.cast(pyarrow.binary()) if pyarrow.types.is_string(array.type) else array
            for name, array in zip(batch.schema.names, batch.columns, strict=True)
        }
        for row in range(batch.num_rows):
            values = {name: _cell(array, row) for name, array in arrays.items()}
            for name in shared:
                unpacked.add(_length(values[name]))
            yield values


def _shares(type: Any) -> bool:
    """Whether values of this type may be stored once for many rows."""
    inner = (type.field(i).type for i in range(type.num_fields))
    return import_pyarrow().types.is_dictionary(type) or any(map(_shares, inner))


def _length(value: Any) -> int:
    """Characters and bytes in a value."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return sum(map(_length, value))
    return len(value) if isinstance(value, str | bytes) else 0


def _cell(array: Any, row: int) -> Any:
    try:
        return array[row].as_py()
    except (ValueError, OverflowError) as error:  # no UTF-8, no date of Python's
        return _FaultyCell(fsspec_files.why(error))


class _Reader:
    """Reads one column of a row group forward, and for an earlier row from the beginning."""

    def __init__(self, name: str, group: int, column: str, state: str | None) -> None:
        self._place = name, group, column, state
        self._lock = threading.Lock()
        self._batches = _batches(*self._place)
        self._recent: list[tuple[int, Any]] = []  # first row and values of the last two batches
        self._next = 0
        self._end = ""  # why no more rows can be read

    def value(self, row: int) -> Any:
        """The value of a row."""
        with self._lock:
            if row < (self._recent[0][0] if self._recent else 0):
                self._batches, self._recent, self._next = _batches(*self._place), [], 0
                self._end = ""
            while row >= self._next:
                try:
                    batch = next(self._batches, None)
                except Exception as error:  # the same for all rows that follow
                    self._end = fsspec_files.why(error)
                    raise
                if batch is None:
                    raise OSError(
                        self._end or f"the file has {self._next} rows in this row group now"
                    )
                self._recent = [*self._recent[-1:], (self._next, batch)]
                self._next += len(batch)
            first, values = next(part for part in reversed(self._recent) if part[0] <= row)
            return values[row - first].as_py()


def _batches(name: str, group: int, column: str, state: str | None) -> Iterator[Any]:
    with _readers_lock:
        footer = _footers.get((name, state))
    with CheckedParquet.open(name, footer) as opened:
        with _readers_lock:
            _footers[name, state] = opened.footer
            while len(_footers) > OPEN:
                _footers.popitem(last=False)
        unpacked = Unpacked(opened.size)
        for batch in opened.batches(group, [column], ROWS):
            unpacked.add(batch.nbytes)
            yield batch.column(0)


_Key = tuple[str, int, str, str | None]
_readers: OrderedDict[_Key, _Reader] = OrderedDict()
_footers: OrderedDict[tuple[str, str | None], Footer] = OrderedDict()
"""Of the files that were last opened: to read it for each row group takes time by their square."""
_readers_lock = threading.Lock()


def _reader(name: str, group: int, column: str) -> _Reader:
    """The reader of a row group; the last few stay open."""
    state = None if fsspec_files.is_remote(name) else stamp_of(os.stat(name))
    key = name, group, column, state
    with _readers_lock:
        reader = _readers.pop(key, None) or _Reader(*key)
        _readers[key] = reader
        while len(_readers) > OPEN:
            _readers.popitem(last=False)
    return reader


def _after_fork() -> None:
    """A child process must not share the positions in open files with its parent."""
    global _readers_lock
    _readers_lock = threading.Lock()
    _readers.clear()
    _footers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
