"""Pictures with all the labels that hold of each, from COCO's instances, CSV or JSON lines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from zeroshot import prompts
from zeroshot.datasets import clip_benchmark
from zeroshot.datasets.text_files import below, read_json, read_rows, read_table
from zeroshot.errors import UserError
from zeroshot.inputs.source import Source

TRUTH = ("truth.json", "truth.jsonl", "truth.csv")
"""Where labels are looked for in a folder."""
BETWEEN = ";"
"""Between the labels in one cell of a table."""

Named = tuple[str, str, tuple[str, ...]]
"""Where it stands, for a complaint; a picture's name; labels."""


@dataclass(frozen=True)
class MultilabelDataset:
    """Pictures with the numbers of the labels that hold, all labels, and how to ask for them."""

    sources: tuple[Source, ...]
    truth: tuple[tuple[int, ...], ...]
    labels: tuple[str, ...]
    templates: prompts.Templates

    @property
    def sentences(self) -> list[list[str]]:
        """The prompts of each label."""
        return prompts.expand(self.labels, self.templates)

    def table(self, places: Sequence[int]) -> Bool[np.ndarray, "n c"]:
        """Which labels hold of the pictures at these places."""
        held = np.zeros((len(places), len(self.labels)), bool)
        for row, place in enumerate(places):
            held[row, list(self.truth[place])] = True
        return held


def read_multilabel_dataset(
    data: Path,
    *,
    truth: Path | None = None,
    split: str | None = None,
    labels: str | None = None,
    templates: str | None = None,
) -> MultilabelDataset:
    """Pictures in the folder `data` with the labels of `truth`, or of a file in it; or that file.

    The folder may also be a CLIP_benchmark webdataset of several labels, of which `split` is one.

    Args:
        data, truth: `.json` is COCO's instances; `.csv` and `.jsonl` have `path` and `labels`, or
            a row for each `label`. Names are below `data`, or beside it where it is the file.
        labels: for `prompts.load_labels`; without, COCO's categories, or all that the file names,
            sorted.
        templates: for `prompts.load_templates`; `simple` without.

    Raises:
        UserError: no such data, another kind of file, a picture outside the folder, a label that
            is none of those given.
    """
    if not data.exists():
        raise UserError(f"no such data: '{data}'")
    if truth is None and data.is_dir() and clip_benchmark.is_wds(data, split or "test"):
        return _of_shards(data, split or "test", labels, templates)
    if split is not None:
        raise UserError(
            f"'{data}' has no {split}/nshards.txt, and only a webdataset has splits (--split, "
            "--protocol): --truth names the pictures itself"
        )
    file = truth or (_beside(data) if data.is_dir() else data)
    folder = data if data.is_dir() else data.parent
    named, categories = _read(file)
    held: dict[str, dict[str, None]] = {}
    first: dict[str, str] = {}
    for where, name, some in named:
        path = below(folder, name, where)
        first.setdefault(path, where)
        held.setdefault(path, {}).update(dict.fromkeys(some))
    every = {label for own in held.values() for label in own}
    if not every:
        raise UserError(f"'{file}' names no picture that a label holds of")
    known = categories or tuple(sorted(every))
    names = prompts.load_labels(list(known) if labels is None else labels)
    number = {name: i for i, name in enumerate(names)}
    for path, labels_of in held.items():
        if unknown := [label for label in labels_of if label not in number]:
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise UserError(f"{first[path]}: '{unknown[0]}' is none of the labels: {shown}")
    return MultilabelDataset(
        tuple(map(Source, held)),
        tuple(tuple(sorted(number[label] for label in own)) for own in held.values()),
        names,
        prompts.load_templates(templates or "simple", names),
    )


def _of_shards(
    data: Path, split: str, labels: str | None, templates: str | None
) -> MultilabelDataset:
    held = clip_benchmark.read_multilabel(data, split)
    names = held.labels if labels is None else prompts.load_labels(labels)
    if len(names) != len(held.labels):
        raise UserError(f"{len(names)} labels for the {len(held.labels)} classes of '{data}'")
    written = held.templates if templates is None else prompts.load_templates(templates, names)
    return MultilabelDataset(held.sources, held.truth, names, written)


def _beside(folder: Path) -> Path:
    for name in TRUTH:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"'{folder}' has no {', '.join(TRUTH)}; --truth FILE names COCO's instances (.json), or a "
        ".csv or .jsonl file with path and labels"
    )


def _read(file: Path) -> tuple[list[Named], tuple[str, ...]]:
    """Pictures with their labels, and the labels in order where the file has one."""
    suffix = file.name.lower().removesuffix(".gz").rpartition(".")[2]
    if suffix == "json":
        return _of_coco(file)
    if suffix == "csv":
        return list(_of_table(file)), ()
    if suffix == "jsonl":
        return list(_of_lines(file)), ()
    raise UserError(f"'{file}': labels are read from .json (COCO's instances), .csv and .jsonl")


def _of_coco(file: Path) -> tuple[list[Named], tuple[str, ...]]:
    held = read_json(file)
    try:
        categories = {one["id"]: _text(one["name"]) for one in held["categories"]}
        names = {one["id"]: _text(one["file_name"]) for one in held["images"]}
        labels: dict[Any, dict[str, None]] = {image: {} for image in names}
        for one in held["annotations"]:
            labels[one["image_id"]][categories[one["category_id"]]] = None
    except (KeyError, TypeError) as error:
        raise UserError(
            f"'{file}' is not COCO's instances (images, annotations, categories): {error!r}"
        ) from None
    rows = [(f"'{file}', image {i}", names[i], tuple(own)) for i, own in labels.items()]
    return rows, tuple(categories.values())


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _of_table(file: Path) -> Iterator[Named]:
    for where, row in read_table(file):
        match row:
            case {"path": str(name), "labels": str(cell)} if name:
                yield where, name, tuple(x.strip() for x in cell.split(BETWEEN) if x.strip())
            case {"path": str(name), "label": str(label)} if name:
                yield where, name, (label.strip(),) if label.strip() else ()
            case _:
                raise UserError(
                    f"{where}: expected path,labels (with '{BETWEEN}' between labels), or "
                    "path,label with a row for each"
                )


def _of_lines(file: Path) -> Iterator[Named]:
    for where, row in read_rows(file):
        match row:
            case {"path": str(name), "labels": list(own)} if all(
                isinstance(label, str) and label.strip() for label in own
            ):
                yield where, name, tuple(label.strip() for label in own)
            case {"path": str(name), "label": str(label)} if label.strip():
                yield where, name, (label.strip(),)
            case _:
                raise UserError(f"{where}: expected path, a text, and labels, a list of texts")
