"""Which column of a table is what: the picture, its caption, its label."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zeroshot.errors import UserError
from zeroshot.inputs.source import Fields

IMAGE = (
    *("path", "image_path", "file_path", "filepath", "image_file", "file", "file_name", "filename"),
    *("url", "image_url", "image", "img", "bytes", "image_bytes"),
)
CAPTION = ("caption", "captions", "text", "texts", "sentence", "title", "comment")
LABEL = ("label", "labels", "class", "cls", "class_name", "category")
"""Names of columns that are known without being named, in any case of letters."""


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; None where the known names are to be looked for."""

    image: str | None = None
    caption: str | None = None
    label: str | None = None


def resolve(name: str, there: Sequence[str], given: Columns) -> Columns:
    """The columns that a table called `name` has; a caption or a label may have none.

    Raises:
        UserError: no column of pictures, several, or none of the name that was given.
    """
    for wanted in (given.image, given.caption, given.label):
        if wanted is not None and wanted not in there:
            raise UserError(f"'{name}' has no column '{wanted}'; it has {_list(there)}")
    images = _known(IMAGE, there) if given.image is None else [given.image]
    if not images:
        raise UserError(
            f"'{name}' has the columns {_list(there)}, none of them known to hold pictures; name "
            f"it with --image-column. Known are {', '.join(IMAGE)}"
        )
    if len(images) > 1:
        raise UserError(
            f"'{name}' has several columns that may hold pictures, {_list(images)}; choose one "
            "with --image-column"
        )
    return Columns(
        images[0],
        given.caption or next(iter(_known(CAPTION, there)), None),
        given.label or next(iter(_known(LABEL, there)), None),
    )


def _known(names: Sequence[str], there: Sequence[str]) -> list[str]:
    """Columns with one of these names, in the order of the names."""
    columns = {column.strip().lower(): column for column in there}
    return [columns[name] for name in names if name in columns]


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:20]) + (", ..." if len(names) > 20 else "")


def fields_of(row: Mapping[str, object], columns: Columns | None = None) -> Fields:
    """`caption` and `label` of a row as texts: several captions as lines, other values as JSON.

    Raises:
        ValueError: one of them holds half a character.
    """
    if columns is None:
        there = list(row)
        caption, label = (next(iter(_known(names, there)), None) for names in (CAPTION, LABEL))
        columns = Columns(None, caption, label)
    found = {}
    for field, column in (("caption", columns.caption), ("label", columns.label)):
        value = row.get(column) if column is not None else None
        if value is not None:
            found[field] = _as_text(value, f"its {field} (column '{column}')")
    if "label" in found:
        found["label"] = sys.intern(found["label"])  # there are few of them
    return Fields(**found)


def _as_text(value: object, what: str) -> str:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(f"{what} is no valid text: {text!r:.60}")
    return text
