"""CLIP_benchmark's webdatasets, with the truth of every picture.

`inputs.webdataset` reads them; what a person may look at with a sample missing cannot be measured
on, so here all that is damaged or lacks its class or its captions is refused.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zeroshot.datasets.captions import CaptionDataset
from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.inputs.source import Source, UnreadableBlob
from zeroshot.inputs.webdataset import WebDataset, key_of, parts, pictures, read_dataset

LABELS = ".npy"
"""Beside a picture of several labels: an array of zeros and ones."""


@dataclass(frozen=True)
class MultilabelShards:
    """Pictures of a set of several labels, with its own class names and templates."""

    sources: tuple[Source, ...]
    truth: tuple[tuple[int, ...], ...]
    labels: tuple[str, ...]
    templates: tuple[str, ...]


@dataclass(frozen=True)
class ClassificationShards:
    """Pictures of a classification set, with its own class names and templates."""

    sources: tuple[Source, ...]
    classes: tuple[int, ...]
    labels: tuple[str, ...]
    templates: tuple[str, ...]


def is_wds(folder: Path, split: str = "test") -> bool:
    """Whether a folder has this layout."""
    return (folder / split / "nshards.txt").is_file()


def read_classification(folder: Path, split: str = "test") -> ClassificationShards:
    """A classification set; class names may repeat, since a class is known by its place.

    Raises:
        UserError: another kind of set, a file that is missing, or a class that has no name.
    """
    held = _named(folder, split, "classification")
    sources, classes = [], []
    for source in _sources(held, ".cls"):
        text = source.fields.get("label", "")
        if not text.isdecimal() or len(text) > 9 or int(text) >= len(held.classes):
            known = f"classnames.txt has 0 to {len(held.classes) - 1}"
            raise UserError(f"'{source.path}': '{text[:20]}' is no class; {known}")
        sources.append(source)
        classes.append(int(text))
    return ClassificationShards(tuple(sources), tuple(classes), held.classes, held.templates)


def read_multilabel(folder: Path, split: str = "test") -> MultilabelShards:
    """A set of several labels per picture, as `voc2007_multilabel` is.

    Raises:
        UserError: another kind of set, a file that is missing, a picture without its array, or an
            array that is not a zero or a one for each class.
    """
    held = _named(folder, split, "multilabel")
    arrays: dict[str, tuple[int, ...]] = {}
    for name in held.tars:
        try:
            for key, data in parts(name, LABELS):
                arrays[key] = _ones(data, len(held.classes), f"{key}{LABELS}")
        except ValueError as error:
            raise UserError(f"'{name}': {error}") from None
    sources, truth = [], []
    for source in _sources(held, None):
        own = arrays.pop(key_of(source.path or ""), None)
        if own is None:
            raise UserError(f"'{source.path}' has no {LABELS} beside it")
        sources.append(source)
        truth.append(own)
    if arrays:
        raise UserError(f"'{next(iter(arrays))}{LABELS}' has no picture")
    return MultilabelShards(tuple(sources), tuple(truth), held.classes, held.templates)


def _ones(data: bytes, length: int, name: str) -> tuple[int, ...]:
    """Where an array of zeros and ones has ones; nothing is unpickled.

    Raises:
        ValueError: other bytes.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    header = "read_array_header_1_0" if version == (1, 0) else "read_array_header_2_0"
    shape, _, dtype = getattr(np.lib.format, header)(file)
    if shape != (length,) or dtype.kind not in "biuf":
        raise ValueError(f"'{name}' holds {dtype} {list(shape)}, not {length} zeros and ones")
    values = np.frombuffer(data, dtype, length, file.tell())
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"'{name}' holds other numbers than zeros and ones")
    return tuple(np.flatnonzero(values).tolist())


def _named(folder: Path, split: str, kind: str) -> WebDataset:
    held = _dataset(folder, split, kind)
    for name, lines in (
        ("classnames.txt", held.classes),
        ("zeroshot_classification_templates.txt", held.templates),
    ):
        if not lines:
            raise UserError(f"'{folder / name}' is missing or empty")
    return held


def read_retrieval(folder: Path, split: str = "test") -> CaptionDataset:
    """A retrieval set: a caption per line of a picture's `.txt`.

    Raises:
        UserError: another kind of set, a file that is missing, or a picture without captions.
    """
    held = _dataset(folder, split, "retrieval")
    sources, references = [], []
    for source in _sources(held, ".txt"):
        said = source.fields.get("caption", "").splitlines()
        captions = tuple(line.strip() for line in said if line.strip())
        if not captions:
            raise UserError(f"'{source.path}' has no captions")
        sources.append(source)
        references.append(captions)
    return CaptionDataset(tuple(sources), tuple(references))


def _dataset(folder: Path, split: str, kind: str) -> WebDataset:
    held = read_dataset(folder, split)
    if held.kind != kind:
        raise UserError(f"'{folder}' is a {held.kind} set, and this takes a {kind} set")
    if not held.tars:
        raise UserError(f"'{folder / split / 'nshards.txt'}' says that there are no tar files")
    return held


def _sources(held: WebDataset, suffix: str | None) -> Iterator[Source]:
    """The pictures; UserError for a member that is none, or a truth without its picture."""
    for name in held.tars:
        beside: list[str] = []
        for source in pictures(name, beside):
            if isinstance(source.content, UnreadableBlob):
                try:
                    source.content.read()
                except UnreadableImageError as error:
                    raise UserError(f"'{source.path}': {error}") from None
            yield source
        alone = [member for member in beside if suffix and member.endswith(suffix)]
        if alone:
            raise UserError(f"'{alone[0]}' has no picture")
