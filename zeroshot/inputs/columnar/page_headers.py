"""The headers of a Parquet column's pages: how much each unpacks to, and how many values it has.

pyarrow believes them: it allocates what a header states, and one value of a dictionary for each row
that names it. So a kilobyte can become gigabytes; here the headers are read first.

A header is a struct in Thrift's compact protocol (github.com/apache/parquet-format,
`parquet.thrift`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zeroshot.inputs.columnar.thrift_compact import Compact, ThriftError
from zeroshot.inputs.source import File

MAX_HEADER = 16 << 20
"""Bytes of a header, in which statistics may be; as in pyarrow."""
WINDOW = 1 << 14
PLAIN = 0
"""The encoding whose values are not longer than their page."""
DICTIONARY_PAGE = 2


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
            reader = Compact(data)
            return reader.struct(), reader.place
        except ThriftError as error:
            raise PageError(f"damaged: the header of a page has {error}") from None
        except IndexError:
            if len(data) < window or window > MAX_HEADER:
                raise PageError("damaged: the header of a page is cut off") from None
            window *= 8
