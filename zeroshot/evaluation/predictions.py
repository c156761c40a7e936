"""Predictions of an earlier run or of another program, matched with the images of a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from zeroshot.datasets.captions import CaptionDataset, references_of_row
from zeroshot.errors import UserError, counted
from zeroshot.inputs.source import Source
from zeroshot.inputs.text_files import is_number, name_in, read_json_lines, shown, whole_text

CAPTION, CLASSIFY = "zeroshot.caption/1", "zeroshot.classify/1"


@dataclass(frozen=True)
class SavedPredictions:
    """The rows of one method."""

    name: str
    rows: tuple[dict[str, Any], ...]
    references: tuple[tuple[str, ...], ...] | None
    """reference captions, if the rows have them"""

    @property
    def dataset(self) -> CaptionDataset:
        """The images and references of the rows themselves.

        Raises:
            UserError: the rows have no references.
        """
        if self.references is None:
            raise UserError(
                f"the rows of {self.name} have no references: name the images, and the file of "
                "captions with --truth"
            )
        return CaptionDataset(tuple(Source(row["path"]) for row in self.rows), self.references)


def read_captions(file: Path, ids: Mapping[str, str] | None = None) -> SavedPredictions:
    """Rows of `zeroshot caption`, COCO's results, or others with `caption` (or `prediction`).

    Args:
        ids: the path of each image by its id, for rows that have an `image_id` and no `path`.

    Raises:
        UserError: a row without caption and without error, or references in some rows only.
    """
    rows: list[dict[str, Any]] = []
    references: list[tuple[str, ...]] = []
    for where, row in read_json_lines(file):
        caption = row.get("prediction", row.get("caption"))
        if isinstance(caption, str):
            whole_text(caption, where)
        elif not row.get("error"):
            raise UserError(f"{where}: expected a caption (or a prediction), a text")
        references.append(references_of_row(row, where))
        path = _path_of(row, where, ids or {})
        rows.append({"schema": CAPTION, **row, "caption": caption, "path": path})
    silent = sum(
        not own and not row.get("error") for own, row in zip(references, rows, strict=True)
    )
    if any(references) and silent:
        raise UserError(f"'{file}': {silent} of {len(rows)} rows have no references")
    return _predictions(file, rows, tuple(references) if any(references) else None)


def read_labels(file: Path) -> SavedPredictions:
    """Rows of `zeroshot classify`.

    Raises:
        UserError: a row without labels and without error.
    """
    rows = []
    for where, row in read_json_lines(file):
        labels = row.get("labels")
        good = isinstance(labels, list) and labels and all(map(_is_label, labels))
        if not good and not row.get("error"):
            raise UserError(
                f"{where}: expected labels with label and score, as classify writes them"
            )
        rows.append({**row, "path": name_in(row, "path", where)})
    return _predictions(file, rows, None)


def _path_of(row: Mapping[str, Any], where: str, ids: Mapping[str, str]) -> str:
    """The image of a row: its path, or the path of the image with its id."""
    texts = [name for name in ("path", "file", "id") if isinstance(row.get(name), str)]
    if texts or "image_id" not in row:
        return name_in(row, texts[0] if texts else "path", where)
    number = row["image_id"]
    whole = isinstance(number, float) and number.is_integer()  # as pandas writes integers
    key = number if isinstance(number, str) else shown(int(number) if whole else number)
    if not ids:
        raise UserError(
            f"{where}: image_id {key} is an id of COCO's file of captions; name that file with "
            "--truth, and the folder of images"
        )
    if key not in ids:
        raise UserError(f"{where}: image_id {key:.60} is none of the images of the captions")
    return ids[key]


def in_order(predictions: SavedPredictions, sources: Sequence[Source]) -> list[dict[str, Any]]:
    """The row of each image. Only the last parts of a path must agree.

    Raises:
        UserError: images without a row, or rows that belong to no image or to several.
    """
    rows = dict(zip(match_images(predictions, sources), predictions.rows, strict=True))
    if missing := [i for i in range(len(sources)) if i not in rows]:
        raise UserError(
            f"{predictions.name}: no row for {len(missing)} of {counted(len(sources), 'image')}, "
            f"the first '{sources[missing[0]].path}'"
        )
    return [rows[i] for i in range(len(sources))]


def match_images(predictions: SavedPredictions, sources: Sequence[Source]) -> list[int]:
    """The index of each row's image; there may be more images than rows.

    Raises:
        UserError: rows that belong to no image or to several, or two rows for one image.
    """
    by_name: dict[str, list[int]] = {}
    for index, source in enumerate(sources):
        by_name.setdefault(PurePath(source.path or "").name, []).append(index)
    indices: dict[int, None] = {}
    for row in predictions.rows:
        candidates = by_name.get(PurePath(row["path"]).name, [])
        index_of_row = _best_match(row["path"], sources, candidates)
        if index_of_row is None:
            raise UserError(
                f"{predictions.name}: '{row['path']}' is the path of no image, or of several"
            )
        if index_of_row in indices:
            raise UserError(f"{predictions.name}: two rows for '{row['path']}'")
        indices[index_of_row] = None
    return list(indices)


def _best_match(path: str, sources: Sequence[Source], candidates: Sequence[int]) -> int | None:
    """The candidate whose path has the longest end in common; None if there are none or several."""
    if len(candidates) <= 1:
        return candidates[0] if candidates else None
    parts = PurePath(path).parts[::-1]

    def common(index: int) -> int:
        other = PurePath(sources[index].path or "").parts[::-1]
        equal = [a == b for a, b in zip(parts, other, strict=False)]
        return equal.index(False) if False in equal else len(equal)

    lengths = [common(index) for index in candidates]
    best = max(lengths)
    return candidates[lengths.index(best)] if lengths.count(best) == 1 else None


def _predictions(
    file: Path, rows: list[dict[str, Any]], references: tuple[tuple[str, ...], ...] | None
) -> SavedPredictions:
    if not rows:
        raise UserError(f"'{file}' has no rows")
    return SavedPredictions(name_of(file), tuple(rows), references)


def name_of(file: Path) -> str:
    """The name of the method whose rows a file has: `asif` for `asif.rows.jsonl.gz`."""
    name = file.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")
    return name.removesuffix(".rows")


def _is_label(label: object) -> bool:
    match label:
        case {"label": str(), "score": score}:
            return is_number(score)
    return False
