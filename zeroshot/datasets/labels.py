"""Images with one label each: a folder per class, or a file of paths and labels."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zeroshot import images
from zeroshot.errors import UserError, no_such
from zeroshot.inputs.source import EITHER, Source
from zeroshot.inputs.tables import InputOptions, path_below
from zeroshot.inputs.text_files import name_in, read_json, read_records, suffix_of, text_in
from zeroshot.prompts import Templates, expand, load_labels


@dataclass(frozen=True)
class LabeledImages:
    """Images, and for each the index of its class."""

    sources: tuple[Source, ...]
    classes: tuple[int, ...]


@dataclass(frozen=True)
class ClassificationDataset:
    """Images, for each the index of its class, the names of the classes and their templates."""

    sources: tuple[Source, ...]
    classes: tuple[int, ...]
    labels: tuple[str, ...]
    templates: Templates

    @property
    def prompts(self) -> list[list[str]]:
        """The prompts of each class."""
        return expand(self.labels, self.templates)


def read_labeled_images(
    path: Path,
    labels: Sequence[str],
    folder: Path | None = None,
    suffixes: re.Pattern[str] = EITHER,
) -> LabeledImages:
    """Images in folders named as the labels, or the rows of a file with `path` and `label`.

    A class may be without images.

    Args:
        folder: the images that a file names lie in it or below; without, paths are relative to the
            file's folder and may lead anywhere.
        suffixes: of the images or the clips that are looked for in folders.

    Raises:
        UserError: no such file or folder, an unknown label, an image outside the folder, or no
            images.
    """
    if path.is_dir():
        pairs = _in_folders(path, labels, suffixes)
    else:
        pairs = [
            (
                Source(path_below(folder, name, where) if folder else str(path.parent / name)),
                _class_of(label, labels, f"{where}, column 'label':"),
            )
            for where, name, label in read_labeled_rows(path)
        ]
    if not pairs:
        raise UserError(f"'{path}' has no labeled images")
    sources, classes = zip(*pairs, strict=True)
    return LabeledImages(sources, classes)


def class_folders(path: Path) -> list[Path]:
    """The folders in a folder, sorted by name, without hidden ones."""
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _in_folders(
    path: Path, labels: Sequence[str], suffixes: re.Pattern[str]
) -> list[tuple[Source, int]]:
    options = InputOptions(suffixes=suffixes)
    return [
        (source, number)
        for folder in class_folders(path)
        for number in [_class_of(folder.name, labels, f"'{path}', folder")]
        for source in images.find(folder, options=options).sources
    ]


def read_labeled_rows(path: Path) -> list[tuple[str, str, str]]:
    """Each row of a .csv, .tsv or .jsonl file: its place (`'file' line 3`), path and label.

    Raises:
        UserError: another kind of file, or a row without path or label.
    """
    if not path.suffix and not path.exists():
        raise no_such(path, "folder")
    if suffix_of(path.name) not in (".csv", ".tsv", ".jsonl"):
        raise UserError(
            f"'{path}' is neither a folder with a folder of images for each class, nor a .csv, "
            ".tsv or .jsonl file with the columns path and label"
        )
    return [
        (where, name_in(row, "path", where), text_in(row, "label", where))
        for where, row in read_records(path)
    ]


def _class_of(name: str, labels: Sequence[str], where: str) -> int:
    if name not in labels:
        shown = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
        raise UserError(f"{where} '{name:.60}' is none of the labels: {shown:.400}")
    return labels.index(name)


def read_hierarchy(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]:
    """Coarse labels, their kinds, and the parent of each of both, from `{coarse: [kinds]}`.

    Raises:
        UserError: another kind of file, or a coarse label or a kind that is no text.
    """
    document = read_json(path, distinct=True)
    if not isinstance(document, dict) or len(document) < 2:
        raise UserError(f"'{path}': expected an object of two or more labels with their kinds")
    parents, kinds = list(range(len(document))), []
    for number, (label, own) in enumerate(document.items()):
        if not isinstance(own, list) or not all(isinstance(k, str) and k.strip() for k in own):
            raise UserError(f"'{path}', label '{label:.60}': expected a list of names")
        kinds += [kind.strip() for kind in own]
        parents += [number] * len(own)
    return load_labels(list(document)), tuple(kinds), tuple(parents)


def read_prior(spec: str | Sequence[float], labels: Sequence[str]) -> tuple[float, ...]:
    """Shares or counts of the labels: `0.5,0.3,0.2` in their order, or a JSON object by label.

    Raises:
        UserError: not one number, zero or more, for each label.
    """
    given: Sequence[object]
    if not isinstance(spec, str):
        given = spec
    elif suffix_of(spec) == ".json":
        document = read_json(Path(spec), distinct=True)
        if not isinstance(document, dict) or document.keys() != set(labels):
            raise UserError(f"'{spec}': expected an object with a number for each label")
        given = [document[label] for label in labels]
    else:
        given = spec.split(",")
    try:
        shares = tuple(float(x) for x in given)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"--prior {spec}: expected numbers, or a .json file") from None
    if (
        len(shares) != len(labels)
        or not all(0 <= x < math.inf for x in shares)
        or not (0 < sum(shares) < math.inf)
    ):
        raise UserError(
            f"--prior {spec}: expected {len(labels)} numbers, one for each label, none negative, "
            "not all zero"
        )
    return shares
