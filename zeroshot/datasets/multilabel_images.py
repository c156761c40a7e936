"""Images with all labels that hold, from COCO's instances, a table or JSON lines."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from zeroshot.datasets.coco_json import ImageLabels, labels_in
from zeroshot.errors import UserError
from zeroshot.inputs.source import Source
from zeroshot.inputs.tables import path_below
from zeroshot.inputs.text_files import name_in, read_json, read_records, suffix_of
from zeroshot.prompts import Templates, expand, load_labels, load_templates

FILES = ("truth.json", "truth.jsonl", "truth.csv")
"""The files of labels that are looked for in a folder."""
SEPARATOR = ";"
"""Between the labels in one cell of a table."""


@dataclass(frozen=True)
class MultilabelDataset:
    """Images, for each the indices of the labels that hold, all labels and their templates."""

    sources: tuple[Source, ...]
    truth: tuple[tuple[int, ...], ...]
    labels: tuple[str, ...]
    templates: Templates

    @property
    def prompts(self) -> list[list[str]]:
        """The prompts of each label."""
        return expand(self.labels, self.templates)

    def table(self, places: Sequence[int]) -> Bool[np.ndarray, "n c"]:
        """Which labels hold of the images with these indices."""
        holds = np.zeros((len(places), len(self.labels)), bool)
        for row, place in enumerate(places):
            holds[row, list(self.truth[place])] = True
        return holds


def read_multilabel_dataset(
    file: Path,
    folder: Path,
    *,
    labels: str | Sequence[str] | None = None,
    templates: str | Sequence[str] | None = None,
) -> MultilabelDataset:
    """The images that a file names, with the labels that hold.

    Args:
        file: `.json` is COCO's instances; a table and JSON lines have `path` and `labels`, or a
            row for each `label`.
        folder: the images lie in it or below.
        labels: for `prompts.load_labels`; without, COCO's categories, or all labels of the file,
            sorted.
        templates: for `prompts.load_templates`; by default `simple`.

    Raises:
        UserError: another kind of file, an image outside the folder, an unknown label.
    """
    rows, categories = _read(file)
    holds, first = _by_path(rows, folder)
    every = {label for own in holds.values() for label in own}
    if not every:
        raise UserError(f"'{file}' has no image with a label")
    names = load_labels(list(categories or sorted(every)) if labels is None else labels)
    number = {name: i for i, name in enumerate(names)}
    for path, own in holds.items():
        if unknown := [label for label in own if label not in number]:
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise UserError(f"{first[path]}: '{unknown[0]}' is none of the labels: {shown}")
    return MultilabelDataset(
        tuple(map(Source, holds)),
        tuple(tuple(sorted(number[label] for label in own)) for own in holds.values()),
        names,
        load_templates(templates, names),
    )


def find_label_file(folder: Path) -> Path:
    """The file of labels in a folder of images; UserError if there is none."""
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"'{folder}' has no {', '.join(FILES)}; --truth FILE names COCO's instances (.json), or a "
        ".csv, .tsv or .jsonl file with path and labels"
    )


def _by_path(
    rows: Iterable[ImageLabels], folder: Path
) -> tuple[dict[str, dict[str, None]], dict[str, str]]:
    """The labels of each image, and the place in the file that names it first."""
    labels: dict[str, dict[str, None]] = {}
    first: dict[str, str] = {}
    for row in rows:
        path = path_below(folder, row.name, row.where)
        first.setdefault(path, row.where)
        labels.setdefault(path, {}).update(dict.fromkeys(row.labels))
    return labels, first


def _read(file: Path) -> tuple[list[ImageLabels], tuple[str, ...]]:
    """Images with their labels, and all labels in order if the file lists them."""
    suffix = suffix_of(file.name)
    in_cells = suffix != ".jsonl"
    if suffix == ".json":
        return labels_in(read_json(file), str(file))
    if suffix not in (".csv", ".tsv", ".jsonl"):
        raise UserError(
            f"'{file}': labels are read from .json (COCO's instances), .csv, .tsv and .jsonl"
        )
    return [
        ImageLabels(where, name_in(row, "path", where), _labels_of_row(row, where, in_cells))
        for where, row in read_records(file)
    ], ()


def _labels_of_row(row: dict[str, Any], where: str, in_cells: bool) -> tuple[str, ...]:
    match row:
        case {"labels": str(cell)} if in_cells:
            return tuple(label.strip() for label in cell.split(SEPARATOR) if label.strip())
        case {"labels": list(own)} if all(isinstance(x, str) and x.strip() for x in own):
            return tuple(label.strip() for label in own)
        case {"label": str(label)} if "labels" not in row:
            return (label.strip(),) if label.strip() else ()
    raise UserError(
        f"{where}: expected the column labels (in a table with '{SEPARATOR}' between labels, in "
        "JSON a list of texts), or the column label and a row for each label"
    )
