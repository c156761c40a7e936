"""Rows that an earlier run wrote, or another program: read, and brought to the truth's pictures."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from zeroshot.datasets.captions import CaptionDataset, references_in
from zeroshot.datasets.text_files import read_rows
from zeroshot.errors import UserError
from zeroshot.inputs.source import Source

CAPTION, CLASSIFY = "zeroshot.caption/1", "zeroshot.classify/1"


@dataclass(frozen=True)
class Predictions:
    """Rows of one method."""

    name: str
    rows: tuple[dict[str, Any], ...]
    references: tuple[tuple[str, ...], ...] | None
    """what people said, where the rows bring it along"""

    @property
    def captioned(self) -> CaptionDataset:
        """The pictures and references of the rows themselves.

        Raises:
            UserError: the rows have no references.
        """
        if self.references is None:
            raise UserError(
                f"the rows of {self.name} have no references: name the pictures, and the file of "
                "captions with --truth"
            )
        return CaptionDataset(tuple(Source(row["path"]) for row in self.rows), self.references)


def read_captions(file: Path) -> Predictions:
    """Rows of `zeroshot caption`, or any with `path` and `caption` (or `prediction`).

    Raises:
        UserError: a row without caption and without error, or references in some rows only.
    """
    rows: list[dict[str, Any]] = []
    references: list[tuple[str, ...]] = []
    for where, row in read_rows(file):
        path = row.get("path", row.get("file", row.get("id")))
        said = row.get("prediction", row.get("caption"))
        if not isinstance(said, str) and not row.get("error"):
            raise UserError(f"{where}: expected a caption (or a prediction), a text")
        told = {key: value for key, value in row.items() if key in ("references", "captions")}
        references.append(references_in(told, where) or ())
        rows.append({"schema": CAPTION, **row, "caption": said, "path": _text(path, where)})
    silent = sum(
        not own and not row.get("error") for own, row in zip(references, rows, strict=True)
    )
    if any(references) and silent:
        raise UserError(f"'{file}': {silent} of {len(rows)} rows have no references")
    return _predictions(file, rows, tuple(references) if any(references) else None)


def read_labels(file: Path) -> Predictions:
    """Rows of `zeroshot classify`.

    Raises:
        UserError: a row without labels and without error.
    """
    rows = []
    for where, row in read_rows(file):
        labels = row.get("labels")
        good = isinstance(labels, list) and labels and all(map(_is_label, labels))
        if not good and not row.get("error"):
            raise UserError(
                f"{where}: expected labels with label and score, as classify writes them"
            )
        rows.append({**row, "path": _text(row.get("path"), where)})
    return _predictions(file, rows, None)


def in_order(predictions: Predictions, sources: Sequence[Source]) -> list[dict[str, Any]]:
    """The row of each picture; a path is known by its end.

    Raises:
        UserError: pictures without a row, or rows that belong to no picture or to several.
    """
    found = dict(zip(found_in(predictions, sources), predictions.rows, strict=True))
    if missing := [i for i in range(len(sources)) if i not in found]:
        raise UserError(
            f"{predictions.name}: no row for {len(missing)} of {len(sources)} pictures, the first "
            f"'{sources[missing[0]].path}'"
        )
    return [found[i] for i in range(len(sources))]


def found_in(predictions: Predictions, sources: Sequence[Source]) -> list[int]:
    """Of each row, which of the pictures it belongs to; there may be more pictures than rows.

    Raises:
        UserError: rows that belong to no picture or to several, or two to one.
    """
    ends: dict[str, list[int]] = {}
    for place, source in enumerate(sources):
        ends.setdefault(PurePath(source.path or "").name, []).append(place)
    places: dict[int, None] = {}
    for row in predictions.rows:
        own = _same(row["path"], sources, ends.get(PurePath(row["path"]).name, []))
        if own is None:
            raise UserError(
                f"{predictions.name}: '{row['path']}' is none of the pictures, or of several"
            )
        if own in places:
            raise UserError(f"{predictions.name}: two rows for '{row['path']}'")
        places[own] = None
    return list(places)


def _same(path: str, sources: Sequence[Source], places: Sequence[int]) -> int | None:
    """The one picture that shares the longest end of its path; None where that leaves a choice."""
    if len(places) <= 1:
        return places[0] if places else None
    parts = PurePath(path).parts[::-1]

    def shared(place: int) -> int:
        other = PurePath(sources[place].path or "").parts[::-1]
        alike = [a == b for a, b in zip(parts, other, strict=False)]
        return alike.index(False) if False in alike else len(alike)

    lengths = [shared(place) for place in places]
    best = max(lengths)
    return places[lengths.index(best)] if lengths.count(best) == 1 else None


def _predictions(
    file: Path, rows: list[dict[str, Any]], references: tuple[tuple[str, ...], ...] | None
) -> Predictions:
    if not rows:
        raise UserError(f"'{file}' holds no rows")
    name = file.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".rows")
    return Predictions(name, tuple(rows), references)


def _text(path: object, where: str) -> str:
    if not isinstance(path, str):
        raise UserError(f"{where}: expected path, a text, got {json.dumps(path)}")
    return path


def _is_label(label: object) -> bool:
    match label:
        case {"label": str(), "score": int() | float()}:
            return True
    return False
