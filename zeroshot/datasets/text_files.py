"""Text files that somebody else wrote: bounded, perhaps compressed, complaints with their line."""

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zeroshot.errors import UserError

MAX_BYTES = 1 << 30
"""Of a text file once it is unpacked."""


def read_text(path: Path) -> str:
    """UTF-8 text; a name that ends in `.gz` is unpacked.

    Raises:
        UserError: the file cannot be read, is no such text, or is larger than 1 GiB.
    """
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read '{path}': {reason}") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"'{path}' holds more than {MAX_BYTES >> 20} MiB of text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not UTF-8 text ({error.reason})") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds; UserError for another kind of file."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not JSON: {error}") from None


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a JSON-lines file, each with `'file' line 3` for a complaint about it.

    Raises:
        UserError: a line that is no object.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"'{path}' line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected an object, got {line[:60]}")
        yield where, row


def read_table(path: Path, delimiter: str = ",") -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a CSV file with a header, each with `'file' line 3`.

    Raises:
        UserError: a file that is no CSV, or a row with more cells than columns.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    try:
        for row in reader:
            where = f"'{path}' line {reader.line_num}"
            if None in row:
                raise UserError(f"{where} has more cells than the header has columns")
            yield where, row
    except csv.Error as error:
        raise UserError(f"'{path}' line {reader.line_num} is not CSV: {error}") from None


def below(folder: Path, name: str, where: str) -> str:
    """The path of a picture that a file names; it lies in `folder`, or is refused.

    Links are followed: whoever made the folder made them.

    Raises:
        UserError: the name leads elsewhere, or is none.
    """
    path = os.path.normpath(folder / name)
    inside = os.path.commonpath([os.path.abspath(path), os.path.abspath(folder)])
    if not name or inside != os.path.abspath(folder):
        raise UserError(f"{where}: '{name}' lies outside the folder of pictures, '{folder}'")
    return path
