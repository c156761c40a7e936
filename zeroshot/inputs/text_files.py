"""Text files that somebody else wrote. Every reader of the package keeps these rules:

| of | rule |
|---|---|
| encoding | UTF-8, with or without a byte-order mark; UTF-16 with one; all else is an error |
| compression | a file whose name ends in `.gz` is unpacked, to lines and bytes by its size |
| lines | end in `\\n`, `\\r\\n` or `\\r`; blank ones are skipped; at most `MAX_LINE` characters |
| lists (`.txt`) | an entry a line, without the space around it; `#` begins no comment |
| JSON lines | an object a line, or one list of objects |
| tables | a row of column names, which are not repeated, and at least one row below it |
| delimiter | of comma, semicolon, tab and `|` the most frequent one between the names; in a tie \
the first, which is the tab in `.tsv`; or that of a line `sep=;` above them, as Excel writes it |
| cells | as many as names, and empty ones behind them; `"..."` may hold delimiters and line ends; \
space after a delimiter is skipped |

A message names the file, the line and, where there is one, the column. `read_*` raises UserError at
the first fault, which may also be a limit of Python's parsers (depth, digits of a number) or that a
file is a Git LFS pointer. `records` reads a stream of any size and goes on behind a row that has a
fault.
"""

import csv
import gzip
import io
import itertools
import json
import os
import re
import sys
import tomllib
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard, cast

from zeroshot.errors import UserError, no_such

if TYPE_CHECKING:
    from zeroshot.inputs.source import File

MAX_BYTES = 1 << 30
"""Size limit of a text that is read whole, and of a compressed file once it is unpacked."""
MAX_UNPACKED = 64 << 20
"""What any compressed file may unpack to; a large one, to 64 times its size."""
MANY_LINES = 200_000
"""A compressed file may have so many lines, and two more for each of its bytes."""
MAX_LINE = 1 << 24
"""Length limit of a line and of a cell, in characters."""
DELIMITERS = ",;\t|"
FORMULA = tuple("=+-@\t\r'＝＋－＠")
"""Spreadsheets compute a text that begins so; in a table that we write it gets an apostrophe."""
KEPT_PAIRS = ("path", "caption", "label", "score")
"""Columns of the tables that `filter --kept` writes. Apostrophes are taken from their cells."""
CONVERT = "convert the file, for example with: iconv -f cp1252 -t utf-8"
DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error)
"""Errors of a compressed file."""

_NO_TEXT = re.compile("[\0\udc80-\udcff]")
"""A null character, or a byte that is not UTF-8 as Python decodes it with `surrogateescape`."""


class TextError(ValueError):
    """A fault of a text file. The message follows the file's name: `line 3: ...`, `has no rows`."""


@dataclass(frozen=True, slots=True)
class LineRecord:
    """A row of JSON lines or of a table: its values by column, or its fault."""

    place: str
    """`line 3`, or `entry 3` of a list."""
    values: dict[str, Any]
    fault: str = ""


def suffix_of(name: str) -> str:
    """`.csv` for `x.csv` and for `x.CSV.gz`."""
    return os.path.splitext(name.lower().removesuffix(".gz"))[1]


# Whole files


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        UserError: the file cannot be read, is no text or is larger than `MAX_BYTES`.
    """
    with _complaints(path), path.open("rb") as file:
        return decode(_at_most(_unpacked(file, path.name)))


def read_json(path: Path, distinct: bool = False) -> Any:
    """The value in a JSON file; UserError for any other file.

    Args:
        distinct: refuse an object that has a key twice, instead of taking its last value.
    """
    text = read_text(path)
    with _complaints(path):
        return parse_json(text, distinct)


def read_toml(path: Path) -> dict[str, Any]:
    """The values in a TOML file; UserError for any other file."""
    text = read_text(path)
    with _complaints(path):
        try:
            return cast(dict[str, Any], _parsed(tomllib.loads, text))
        except tomllib.TOMLDecodeError as error:
            raise TextError(f"is not TOML: {error}") from None
        except _UnreadableError as error:
            raise TextError(f"is not TOML that can be read: {error}") from None


def read_lines(path: Path, numbered: bool = False) -> list[tuple[str, str]]:
    """Lines that are not blank, stripped, each after its place: `'file' line 3`.

    Args:
        numbered: the number of a line has a meaning, so that none before the last may be blank.
    """
    lines = list(enumerate(split_lines(read_text(path)), 1))
    found = [(f"'{path}' line {number}", line.strip()) for number, line in lines if line.strip()]
    if numbered and any(not line.strip() for _, line in lines[: len(found)]):
        blank = next(number for number, line in lines if not line.strip())
        raise UserError(
            f"'{path}' line {blank} is blank, and the number of a line is that of a class"
        )
    return found


def decode(data: bytes) -> str:
    """The text in these bytes; TextError names the first byte that is none."""
    try:
        text = data.decode(_encoding(data), "surrogateescape")
    except UnicodeDecodeError as error:
        raise TextError(f"is not UTF-16 text: {error.reason}") from None
    _check_pointer(text)
    _check(text)
    return text


def split_lines(text: str) -> list[str]:
    """The lines of a text. `str.splitlines` also splits at characters inside of JSON's strings."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


# Rows


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of JSON lines (`.jsonl`) or of a table, each after its place: `'file' line 3`.

    Raises:
        UserError: a file without rows, or a row that has a fault.
    """
    return _without_faults(path, suffix_of(path.name))


def read_json_lines(path: Path, check: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of JSON lines, whatever the file is called; otherwise as `read_records`.

    Args:
        check: refuse bytes that are not UTF-8, instead of decoding them as those of file names.
    """
    return _without_faults(path, ".jsonl", check)


def text_in(row: Mapping[str, Any], column: str, where: str, empty: bool = False) -> str:
    """The text in a column of a row, which may be empty if `empty`; UserError if there is none."""
    return whole_text(name_in(row, column, where, empty), f"{where}, column '{column}'")


def name_in(row: Mapping[str, Any], column: str, where: str, empty: bool = False) -> str:
    """As `text_in`, for the name of a file, which may have bytes that are not UTF-8."""
    value = row.get(column)
    if not isinstance(value, str) or not (empty or value.strip()):
        got = shown(value) if column in row else "no such column"
        raise UserError(f"{where}, column '{column}': expected a text, got {got}")
    return value


def whole_text(text: str, where: str, errors: str = "strict") -> str:
    """The text; UserError if it has half of a character, as JSON's `\\ud83d` is one.

    `surrogateescape` allows the bytes of a file's name that is not UTF-8.
    """
    try:
        text.encode("utf-8", errors)
    except UnicodeEncodeError:
        raise UserError(f"{where}: {text!r:.60} has half of a character") from None
    return text


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value of a JSON file is a number, finite and no larger than a float can be."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


def shown(value: object, size: int = 60) -> str:
    """The beginning of a value, for a message."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except RecursionError:
        return "a value that is nested too deeply"
    except ValueError:
        return "a number that is too long"
    text = text[: size + 1].encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= size else f"{text[:size]}..."


def _without_faults(
    path: Path, suffix: str, check: bool = True
) -> Iterator[tuple[str, dict[str, Any]]]:
    with _complaints(path), path.open("rb") as file, open_text(file, path.name) as text:
        for record in records(text, suffix, check):
            if record.fault:
                raise TextError(f"{record.place}: {record.fault}")
            yield f"'{path}' {record.place}", record.values


@contextmanager
def _complaints(path: Path) -> Iterator[None]:
    """Faults of a file as UserError with its name."""
    try:
        yield
    except TextError as error:
        raise UserError(f"'{path}' {error}") from None
    except FileNotFoundError:
        raise no_such(path) from None
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or error}") from None


def records(text: io.TextIOWrapper, suffix: str, check: bool = False) -> Iterator[LineRecord]:
    """The rows of JSON lines, if the suffix is `.jsonl`, or of a table.

    Args:
        check: refuse bytes that are not UTF-8, instead of decoding them as those of file names.

    Raises:
        TextError: no rows, or a fault behind which no row can be found.
    """
    lines = _Lines(text, check)
    if suffix == ".jsonl":
        return _json_lines(lines)
    return _table(lines, "\t,;|" if suffix == ".tsv" else DELIMITERS)


def open_text(file: "File", name: str) -> io.TextIOWrapper:
    """An open file as a stream of text; bytes that are not UTF-8 become surrogates."""
    if not cast(BinaryIO, file).seekable():  # a pipe
        file = io.BytesIO(_at_most(file))
    file = _unpacked(file, name)
    encoding = _encoding(_at_most(file, 2))
    file.seek(0)
    return io.TextIOWrapper(cast(BinaryIO, file), encoding, "surrogateescape", newline="")


class _Lines:
    """The lines of a stream of text, within limits; `number` is that of the last one."""

    def __init__(self, text: io.TextIOWrapper, check: bool) -> None:
        self.number, self.ended = 0, False
        self._text, self._must_be_utf8 = text, check

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if not (line := self._next()):
            raise StopIteration
        return self.limited(line)

    def _next(self) -> str:
        """The next line; empty at the end."""
        line = self._decoded(self._text.readline, MAX_LINE + 1, self.number + 1)
        self.ended = not line
        self.number += not self.ended
        return line

    def _decoded(self, read: Callable[[int], str], size: int, number: int) -> str:
        """What a function of the stream reads; it begins on the line with this number."""
        try:
            text = read(size)
        except UnicodeDecodeError as error:
            raise TextError(f"line {number} is not UTF-16 text: {error.reason}") from None
        except DAMAGED as error:
            raise TextError(f"cannot be unpacked: {error}") from None
        if self._must_be_utf8:
            _check(text, number)
        return text

    def limited(self, line: str) -> str:
        """The last line; TextError if it is too long."""
        if len(line) > MAX_LINE:
            raise TextError(f"line {self.number} has more than {MAX_LINE} characters")
        return line

    def first(self) -> str:
        """The first line that is not blank, of any length; empty if there is none."""
        line = next(filter(str.strip, iter(self._next, "")), "")
        _check_pointer(line)
        return line

    def rest(self) -> str:
        """The text behind the last line; TextError if it is larger than `MAX_BYTES`."""
        text = self._decoded(self._text.read, MAX_BYTES + 1, self.number + 1)
        if len(text) > MAX_BYTES:
            raise TextError(_too_large(MAX_BYTES))
        return text


def _json_lines(lines: _Lines) -> Iterator[LineRecord]:
    first = lines.first()
    if not first:
        raise TextError("has no rows")
    if first.lstrip().startswith("["):
        yield from _json_list(first + lines.rest())
        return
    if not first.lstrip().startswith("{"):
        _check(first, lines.number)
    for line in itertools.chain([lines.limited(first)], lines):
        if line.strip():
            yield _json_line(line.rstrip("\r\n"), f"line {lines.number}")


def _json_line(line: str, place: str) -> LineRecord:
    try:
        return _record(place, _parsed(json.loads, line))
    except json.JSONDecodeError as error:
        return LineRecord(place, {}, f"not JSON at character {error.pos + 1}: {error.msg}")
    except _UnreadableError as error:
        return LineRecord(place, {}, f"not JSON that can be read: {error}")


def _json_list(text: str) -> Iterator[LineRecord]:
    """The objects of a list."""
    rows = parse_json(text)
    if not rows:
        raise TextError("has no rows")
    for number, value in enumerate(rows, 1):
        yield _record(f"entry {number}", value)


def _record(place: str, value: object) -> LineRecord:
    if isinstance(value, dict):
        return LineRecord(place, value)
    return LineRecord(place, {}, f"expected a JSON object, got {shown(value)}")


def _table(lines: _Lines, delimiters: str) -> Iterator[LineRecord]:
    first = lines.first()
    if marked := re.fullmatch(r'sep=([^\w\s"]|\t)\s*', first, re.IGNORECASE):
        delimiters, first = marked[1], lines.first()
    if not first:
        raise TextError("is empty; a table begins with a row of column names")
    if "\0" in lines.limited(first):
        _check(first, lines.number)
    delimiter = _delimiter(first, delimiters)
    begin = lines.number
    rows = csv.reader(itertools.chain([first], lines), delimiter=delimiter, skipinitialspace=True)
    names = [name.strip() for name in _cells(rows, lines, begin) or ()]
    _check_names(names, begin)
    begin, empty = lines.number + 1, True
    ours = tuple(names) == KEPT_PAIRS
    while (cells := _cells(rows, lines, begin)) is not None:
        cells = list(map(_unguarded, cells)) if ours else cells
        if any(map(str.strip, cells)):
            yield _table_record(names, cells, begin)
            empty = False
        begin = lines.number + 1
    if empty:
        raise TextError("has column names and no rows")


def _delimiter(names: str, delimiters: str) -> str:
    """The one that is most often between the names; in a tie the first."""
    unquoted = re.sub('"[^"]*"', "", names)
    return max(delimiters, key=unquoted.count)


def _cells(rows: Iterator[list[str]], lines: _Lines, begin: int) -> list[str] | None:
    """The cells of the next row; None behind the last one."""
    before = csv.field_size_limit(MAX_LINE)
    try:
        cells = next(rows, None)
    except csv.Error as error:
        raise TextError(f"line {begin}: {error}") from None
    finally:
        csv.field_size_limit(before)
    if cells is not None and lines.ended:
        raise TextError(f"line {begin}: a cell begins with a quotation mark and never ends")
    return cells


def _unguarded(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell


def _check_names(names: Sequence[str], line: int) -> None:
    for name, count in Counter(filter(None, names)).items():
        if count > 1:
            raise TextError(f"line {line}, column '{name}': {count} columns have this name")


def _table_record(names: Sequence[str], cells: Sequence[str], line: int) -> LineRecord:
    place = f"line {line}"
    if len(cells) < len(names) or any(map(str.strip, cells[len(names) :])):
        plural = "" if len(cells) == 1 else "s"
        return LineRecord(place, {}, f"{len(cells)} cell{plural} for {len(names)} columns")
    named = zip(names, cells, strict=False)
    return LineRecord(place, {name: cell for name, cell in named if name})


# Values


def parse_json(text: str, distinct: bool = False) -> Any:
    """The value that a JSON text stands for, as `read_json`; TextError says where it is none."""
    hook = _distinct if distinct else None
    try:
        return _parsed(lambda whole: json.loads(whole, object_pairs_hook=hook), text)
    except json.JSONDecodeError as error:
        more = "; JSON lines are a .jsonl file" if error.msg == "Extra data" else ""
        place = f"line {error.lineno}, character {error.colno}"
        raise TextError(f"{place} is not JSON: {error.msg}{more}") from None
    except _UnreadableError as error:
        raise TextError(f"is not JSON that can be read: {error}") from None


def _parsed(parse: Callable[[str], Any], text: str) -> Any:
    """What a parser of Python's makes of a text, or its error for a text of another language.

    Raises:
        _UnreadableError: beyond the limits of the parser.
    """
    try:
        return parse(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, TextError):
        raise
    except RecursionError:
        raise _UnreadableError("it is nested too deeply") from None
    except ValueError:
        raise _UnreadableError("it has a number of more than 4300 digits") from None


class _UnreadableError(ValueError):
    """The reason."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise TextError(f"has the key {shown(twice)} twice in one object")
    return values


# Bytes


def _encoding(head: bytes) -> str:
    return "utf-16" if head.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"


def _check(text: str, line: int = 1) -> None:
    """TextError for a character that is none, in a text that begins on this line."""
    if text.isascii() and "\0" not in text:
        return
    if (odd := _NO_TEXT.search(text)) is None:
        return
    before = split_lines(text[: odd.start()])
    place = f"line {line + len(before) - 1}, character {len(before[-1]) + 1}"
    raise TextError(f"{place} is {_no_text(odd[0])}")


def _check_pointer(text: str) -> None:
    """TextError for what Git LFS leaves in place of a file that it has not fetched."""
    if text.startswith("version https://git-lfs"):
        raise TextError("is a Git LFS pointer; fetch the file with: git lfs pull")


def is_utf8(text: str) -> bool:
    """Whether a text that was decoded with `surrogateescape` has no byte that is not UTF-8."""
    return text.isascii() or not _NO_TEXT.search(text)


def _no_text(character: str) -> str:
    """What a character is that no text has, and what to do about it."""
    if character == "\0":
        return "null: this is no text, or UTF-16 without a byte-order mark"
    return f"the byte 0x{ord(character) - 0xDC00:02x}, which is not UTF-8; {CONVERT}"


class _Unpacked(gzip.GzipFile):
    """A compressed file that may not grow without end, neither in bytes nor in lines."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(fileobj=file)
        packed = file.seek(0, 2) if file.seekable() else 0
        file.seek(0) if packed else None
        self.limit = min(MAX_BYTES, MAX_UNPACKED + 64 * packed)
        self._lines = MANY_LINES + 2 * packed

    def read1(self, size: int = -1) -> bytes:
        if self.tell() > self.limit:
            raise TextError(_too_large(self.limit))
        return self._counted(super().read1(size))

    def read(self, size: int | None = -1) -> bytes:
        return self._counted(super().read(size))

    def _counted(self, data: bytes) -> bytes:
        self._lines -= max(data.count(b"\n"), data.count(b"\r"))
        if self._lines < 0:
            raise TextError("holds far more lines than its size allows")
        return data


def _unpacked(file: "File", name: str) -> "File":
    return _Unpacked(cast(BinaryIO, file)) if name.lower().endswith(".gz") else file


def _at_most(file: "File", size: int | None = None) -> bytes:
    """The first `size` bytes of a file; without it all of them, which may not be too many."""
    limit = file.limit if isinstance(file, _Unpacked) else MAX_BYTES
    try:
        data = file.read(limit + 1 if size is None else size)
    except DAMAGED as error:
        raise TextError(f"cannot be unpacked: {error}") from None
    if len(data) > limit:
        raise TextError(_too_large(limit))
    return data


def _too_large(limit: int) -> str:
    return f"holds more than {limit >> 20} MiB of text"
