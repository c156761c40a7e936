"""Pictures that somebody labelled: a folder per class, or a file of paths and labels."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zeroshot import images, prompts
from zeroshot.datasets.text_files import read_rows, read_table
from zeroshot.errors import UserError
from zeroshot.inputs.source import Source


@dataclass(frozen=True)
class LabeledImages:
    """Pictures and the number of each one's class."""

    sources: tuple[Source, ...]
    classes: tuple[int, ...]


def read_labeled_images(path: Path, labels: Sequence[str]) -> LabeledImages:
    """Pictures below folders named as the labels, or rows of a file with `path` and `label`.

    The file is CSV or JSON lines, and paths in it are relative to its folder. Not every class needs
    pictures.

    Raises:
        UserError: no such place, a name that is no label, or no pictures.
    """
    if path.is_dir():
        pairs = _of_folders(path, labels)
    else:
        pairs = [
            (Source(str(path.parent / name)), _class_of(label, labels, f"{where}:"))
            for where, name, label in read_labeled_rows(path)
        ]
    if not pairs:
        raise UserError(f"'{path}' holds no labelled pictures")
    sources, classes = zip(*pairs, strict=True)
    return LabeledImages(sources, classes)


def _of_folders(path: Path, labels: Sequence[str]) -> list[tuple[Source, int]]:
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    found = []
    for folder in folders:
        place = _class_of(folder.name, labels, f"'{path}', folder")
        found += [(source, place) for source in images.find(folder).sources]
    return found


def read_labeled_rows(path: Path) -> list[tuple[str, str, str]]:
    """`'file' line 3`, path and label of each row of a .csv or .jsonl file.

    Raises:
        UserError: another kind of file, or a row without them.
    """
    kinds = {".csv": read_table, ".jsonl": read_rows}
    if path.suffix.lower() not in kinds:
        raise UserError(
            f"'{path}' is neither a folder (with a folder of pictures per class) nor a .csv or "
            ".jsonl file with path and label"
        )
    found = []
    for where, row in kinds[path.suffix.lower()](path):
        match row:
            case {"path": str(name), "label": str(label)} if name and label:
                found.append((where, name, label))
            case _:
                raise UserError(f"{where}: expected the columns path,label")
    return found


def _class_of(name: str, labels: Sequence[str], where: str) -> int:
    if name not in labels:
        shown = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
        raise UserError(f"{where} '{name}' is none of the labels: {shown}")
    return labels.index(name)


def read_hierarchy(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]:
    """Coarse labels, their kinds, and the parent of each of both, from `{coarse: [kinds]}`.

    Raises:
        UserError: another kind of file, or a coarse label or a kind that is no text.
    """
    try:
        held = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read '{path}': {error}") from error
    if not isinstance(held, dict) or len(held) < 2:
        raise UserError(f"'{path}': expected an object of two or more labels with their kinds")
    parents, kinds = list(range(len(held))), []
    for place, (label, own) in enumerate(held.items()):
        if not isinstance(own, list) or not all(isinstance(k, str) and k.strip() for k in own):
            raise UserError(f"'{path}', label '{label}': expected a list of names")
        kinds += [kind.strip() for kind in own]
        parents += [place] * len(own)
    return prompts.load_labels(list(held)), tuple(kinds), tuple(parents)


def read_prior(spec: str, labels: Sequence[str]) -> tuple[float, ...]:
    """Shares or counts of the labels: `0.5,0.3,0.2` in their order, or a JSON object by label.

    Raises:
        UserError: not one number, zero or more, for each label.
    """
    if spec.endswith(".json"):
        try:
            held = json.loads(Path(spec).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read '{spec}': {error}") from error
        if not isinstance(held, dict) or held.keys() != set(labels):
            raise UserError(f"'{spec}': expected an object with a number for each label")
        given = [held[label] for label in labels]
    else:
        given = spec.split(",")
    try:
        shares = tuple(float(x) for x in given)
    except (TypeError, ValueError):
        raise UserError(f"--prior {spec}: expected numbers") from None
    if len(shares) != len(labels) or not all(0 <= x < math.inf for x in shares) or not sum(shares):
        raise UserError(
            f"--prior {spec}: expected {len(labels)} numbers, one for each label, none negative, "
            "not all zero"
        )
    return shares
