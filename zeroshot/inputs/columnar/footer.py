"""Where the columns of a Parquet file are, by its footer.

pyarrow says it as well, but the objects that it makes of a damaged footer end the process: no
exception of its C++ library leaves `RowGroupMetaData.column`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from zeroshot.inputs.columnar.thrift_compact import LIST, STRUCT, Compact, ThriftError
from zeroshot.inputs.source import File

END = 8
"""Bytes behind the footer: its length, and `PAR1`."""


class FooterError(ValueError):
    """A footer that is damaged."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The part of a column that is in one row group."""

    values: int
    start: int
    """Place in the file."""
    packed: int
    """Bytes in the file."""


def row_groups(file: File) -> tuple[tuple[Chunk, ...], ...]:
    """The chunks of each row group, in the order of the schema's columns.

    Raises:
        FooterError: a damaged footer.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - END))
    length = int.from_bytes(file.read(4), "little")
    if length > size - END:
        raise FooterError("damaged: its footer is larger than the file")
    file.seek(size - END - length)
    reader = Compact(file.read(length))
    groups: tuple[tuple[Chunk, ...], ...] = ()
    try:
        for number, kind in reader.fields():
            if number == 4 and kind in LIST:
                groups = tuple(_group(reader, inner, size) for inner in reader.items())
            else:
                reader.skip(kind)
    except IndexError:
        raise FooterError("damaged: its footer is cut off") from None
    except ThriftError as error:
        raise FooterError(f"damaged: its footer has {error}") from None
    return groups


def _group(reader: Compact, kind: int, size: int) -> tuple[Chunk, ...]:
    chunks: tuple[Chunk, ...] = ()
    for number, inner in _fields(reader, kind):
        if number == 1 and inner in LIST:
            chunks = tuple(_chunk(reader, each, size) for each in reader.items())
        else:
            reader.skip(inner)
    return chunks


def _chunk(reader: Compact, kind: int, size: int) -> Chunk:
    found = Chunk(-1, 0, 0)
    for number, inner in _fields(reader, kind):
        if number == 3 and inner == STRUCT:
            found = _described(reader)
        elif number in (8, 9):  # what keys it is encrypted with
            raise FooterError("encrypted, and cannot be read without its keys")
        else:
            reader.skip(inner)
    if not (found.values >= 0 and 0 <= found.start <= size and 0 <= found.packed <= size):
        raise FooterError("damaged: a column that does not lie in the file")
    return found


def _described(reader: Compact) -> Chunk:
    numbers = dict.fromkeys((5, 7, 9, 11), -1)
    for number, kind in reader.fields():
        if number in numbers and kind in (4, 5, 6):
            numbers[number] = reader.value(kind)
        else:
            reader.skip(kind)
    starts = [start for start in (numbers[9], numbers[11]) if start > 0]
    return Chunk(numbers[5], min(starts, default=-1), numbers[7])


def _fields(reader: Compact, kind: int) -> Iterator[tuple[int, int]]:
    if kind != STRUCT:
        raise ThriftError("no struct where one belongs")
    return reader.fields()
