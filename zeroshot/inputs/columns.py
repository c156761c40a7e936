"""Which column of a table holds the images, which their captions and labels."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from zeroshot.errors import UserError
from zeroshot.inputs.source import Fields

IMAGE = (
    *("path", "image_path", "file_path", "filepath", "image_file", "file", "file_name", "filename"),
    *("url", "image_url", "image", "img", "bytes", "image_bytes"),
)
CAPTION = ("caption", "captions", "text", "texts", "sentence", "title", "comment")
LABEL = ("label", "labels", "class", "cls", "class_name", "category")
"""Names by which a column is known, in upper or lower case."""


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; None stands for the first known name that the table has."""

    image: str | None = None
    caption: str | None = None
    label: str | None = None


def resolve(name: str, there: Sequence[str], given: Columns) -> Columns:
    """The columns of a table called `name`; there need be none of captions or labels.

    Raises:
        UserError: no column of images, several, or none of the given name.
    """
    for wanted in (given.image, given.caption, given.label):
        if wanted is not None and wanted not in there:
            raise UserError(f"'{name}' has no column '{wanted}'; it has {_list(there)}")
    images = known(IMAGE, there) if given.image is None else [given.image]
    if not images:
        raise UserError(
            f"'{name}' has the columns {_list(there)}; none of these names is known for images. "
            f"Choose one with --image-column; known are {', '.join(IMAGE)}"
        )
    if len(images) > 1:
        raise UserError(
            f"'{name}' has several columns that may hold images, {_list(images)}; choose one "
            "with --image-column"
        )
    return Columns(
        images[0],
        given.caption or next(iter(known(CAPTION, there)), None),
        given.label or next(iter(known(LABEL, there)), None),
    )


def known(names: Sequence[str], there: Iterable[str]) -> list[str]:
    """Columns with one of these names, in the order of the names."""
    columns = {column.strip().lower(): column for column in there}
    return [columns[name] for name in names if name in columns]


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"{name!r:.60}" for name in names[:20]) + (", ..." if len(names) > 20 else "")


def fields_of(row: Mapping[str, object], columns: Columns | None = None) -> Fields:
    """`caption` and `label` of a row as texts, several captions one by one; other values as JSON.

    None and NaN, by which tables mark a cell without a value, are no text.

    Raises:
        ValueError: one of them cannot be written as UTF-8, or is nested too deeply.
    """
    if columns is None:
        there = list(row)
        caption, label = (next(iter(known(names, there)), None) for names in (CAPTION, LABEL))
        columns = Columns(None, caption, label)
    captions = label = None
    if columns.caption is not None:
        captions = _texts(row.get(columns.caption), f"column '{columns.caption}'")
    if columns.label is not None:
        labels = _texts(row.get(columns.label), f"column '{columns.label}'")
        label = sys.intern("\n".join(labels)) if labels else None  # there are few of them
    return Fields(captions[0] if captions and len(captions) == 1 else captions, label)


def class_names(value: object, names: Sequence[str]) -> object:
    """The names of classes, if a cell has their numbers; -1 marks an image without a class."""
    if isinstance(value, list) and names:
        return [class_names(part, names) for part in value]
    if type(value) is not int or not -1 <= value < len(names):
        return value
    return None if value < 0 else names[value]


def is_missing(value: object) -> bool:
    """Whether a value stands for none: None, or NaN, which is not equal to itself."""
    return value is None or (isinstance(value, float | Decimal) and value != value)


def _texts(value: object, column: str) -> tuple[str, ...] | None:
    """The texts of a cell: of a list those of its parts that are not missing and not blank."""
    if not isinstance(value, list) or not all(isinstance(x, str) or is_missing(x) for x in value):
        return None if is_missing(value) else (_as_text(value, column),)
    return tuple(_as_text(x, column) for x in value if not is_missing(x) and x.strip()) or None


def _as_text(value: object, column: str) -> str:
    text = value if isinstance(value, str) else _as_json(value, column)
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(f"{column}: {text!r:.60} is no valid text")
    return text


def _as_json(value: object, column: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        raise ValueError(f"{column}: a value that is nested too deeply") from None
