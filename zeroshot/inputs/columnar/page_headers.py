"""The headers of a Parquet column's pages: how much each unpacks to, and how many values it has.

pyarrow believes them: it allocates what a header states, and one value of a dictionary for each row
that names it. So a kilobyte can become gigabytes; here the headers are read first.

A header is a struct in Thrift's compact protocol (github.com/apache/parquet-format,
`parquet.thrift`; `thrift-compact-protocol.md` of apache/thrift).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zeroshot.inputs.source import File

MAX_HEADER = 16 << 20
"""Bytes of a header, in which statistics may be; as in pyarrow."""
WINDOW = 1 << 14
PLAIN = 0
"""The encoding whose values are not longer than their page."""
DICTIONARY_PAGE = 2
_DEPTH = 8


class PageError(ValueError):
    """A header that is damaged, or pages that unpack to too much."""


@dataclass(frozen=True)
class Page:
    """What a header states of its page."""

    unpacked: int
    """Bytes."""
    packed: int
    """Bytes in the file."""
    values: int
    """Values of rows; of a dictionary, its entries."""
    dictionary: bool
    repeats: bool
    """Whether a value may be stored once and stand for several, or be built from earlier ones."""


def pages(file: File, start: int, length: int, values: int) -> Iterator[Page]:
    """The pages of a column in a row group, until there are `values`.

    Raises:
        PageError: a damaged header.
    """
    place, end = start, start + length
    while values > 0 and place < end:
        fields, size = _header(file, place, end)
        page = _page(fields)
        yield page
        values -= 0 if page.dictionary else page.values
        place += size + page.packed


def _page(fields: dict[int, Any]) -> Page:
    own = {number: fields[number] for number in (5, 7, 8) if isinstance(fields.get(number), dict)}
    header: dict[int, Any] = next(iter(own.values()), {})
    dictionary = _size(fields.get(1)) == DICTIONARY_PAGE
    encoding = header.get(4 if 8 in own else 2, PLAIN)
    return Page(
        unpacked=_size(fields.get(2)),
        packed=_size(fields.get(3)),
        values=_size(header.get(1, 0)),
        dictionary=dictionary,
        repeats=dictionary or encoding != PLAIN,
    )


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise PageError("damaged: the header of a page states no sizes")
    return value


def _header(file: File, place: int, end: int) -> tuple[dict[int, Any], int]:
    """The fields of the header at a place, by number, and its size in bytes."""
    window = WINDOW
    while True:
        file.seek(place)
        data = file.read(min(window, end - place))
        try:
            reader = _Compact(data)
            return reader.struct(), reader.place
        except IndexError:
            if len(data) < window or window > MAX_HEADER:
                raise PageError("damaged: the header of a page is cut off") from None
            window *= 8


class _Compact:
    """Values in Thrift's compact protocol; IndexError behind the last byte."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def struct(self, depth: int = _DEPTH) -> dict[int, Any]:
        """Fields by number; those of other types than numbers and structs are skipped."""
        if not depth:
            raise PageError("damaged: the header of a page is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) & 15:
            number = number + (head >> 4) if head >> 4 else self._signed()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):  # true, false
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):  # integers
            return self._signed()
        if kind == 7:  # a double
            return self._skip(8)
        if kind == 8:  # bytes
            return self._skip(self._unsigned())
        if kind == 12:
            return self.struct(depth - 1)
        raise PageError("damaged: the header of a page has a field that none has")

    def _byte(self) -> int:
        self.place += 1
        return self.data[self.place - 1]

    def _unsigned(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise PageError("damaged: the header of a page has a number without end")
        return value | byte << shift

    def _signed(self) -> int:
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)

    def _skip(self, size: int) -> None:
        self.place += size
        if self.place > len(self.data):
            raise IndexError
