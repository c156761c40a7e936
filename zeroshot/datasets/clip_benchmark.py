"""CLIP_benchmark's webdatasets with the truth of every image.

`inputs.webdataset` reads the tar files. To measure on them, every image must be readable and have
its class, its labels or its captions; here a sample without them is an error.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from zeroshot import prompts
from zeroshot.datasets.captions import CaptionDataset
from zeroshot.datasets.labels import ClassificationDataset
from zeroshot.datasets.multilabel_images import MultilabelDataset
from zeroshot.errors import UserError, counted
from zeroshot.inputs.source import Source, UnreadableBlob, with_captions
from zeroshot.inputs.webdataset import WebDataset, parts, pictures, read_dataset, stem_of

LABELS = ".npy"
"""Suffix of the array of zeros and ones beside an image with several labels."""


def is_wds(folder: Path, split: str = "test") -> bool:
    """Whether a folder has this layout."""
    return (folder / split / "nshards.txt").is_file()


def read_classification(
    folder: Path,
    split: str = "test",
    labels: str | Sequence[str] | None = None,
    templates: str | Sequence[str] | None = None,
) -> ClassificationDataset:
    """A classification set. Class names may repeat, because the index identifies a class.

    Args:
        labels: for `prompts.load_labels`; by default those of the set.
        templates: for `prompts.load_templates`; by default those of the set.

    Raises:
        UserError: another kind of set, a missing file, or an image without one of the classes.
    """
    dataset = _dataset(folder, split, "classification")
    names = _class_names(folder, dataset, labels)
    chosen = _templates(folder, dataset, templates, names)
    sources, classes = [], []
    for source in _sources(dataset, ".cls"):
        text = source.text_of("label") or ""
        if not text.isdecimal() or len(text) > 9 or int(text) >= len(names):
            known = f"the classes are 0 to {len(names) - 1}"
            raise UserError(f"'{source.path}': '{text[:20]}' is no class; {known}")
        sources.append(source)
        classes.append(int(text))
    return ClassificationDataset(tuple(sources), tuple(classes), names, chosen)


def read_multilabel(
    folder: Path,
    split: str = "test",
    labels: str | Sequence[str] | None = None,
    templates: str | Sequence[str] | None = None,
) -> MultilabelDataset:
    """A set with several labels per image, as `voc2007_multilabel` is.

    Args:
        labels, templates: as of `read_classification`.

    Raises:
        UserError: another kind of set, a missing file, an image without its array, or an array
            that is not a zero or a one for each class.
    """
    dataset = _dataset(folder, split, "multilabel")
    names = _class_names(folder, dataset, labels)
    chosen = _templates(folder, dataset, templates, names)
    arrays = _arrays(dataset, len(names))
    sources, truth = [], []
    for source in _sources(dataset, None):
        own = arrays.pop(stem_of(source.path or ""), None)
        if own is None:
            raise UserError(f"'{source.path}' has no {LABELS} beside it")
        sources.append(source)
        truth.append(own)
    if arrays:
        raise UserError(f"'{next(iter(arrays))}{LABELS}' has no image")
    return MultilabelDataset(tuple(sources), tuple(truth), names, chosen)


def read_retrieval(folder: Path, split: str = "test") -> CaptionDataset:
    """A retrieval set: each line of an image's `.txt` is a caption.

    Raises:
        UserError: another kind of set, a missing file, or an image without captions.
    """
    sources, references = [], []
    for source in _sources(_dataset(folder, split, "retrieval"), ".txt"):
        if not source.captions:
            raise UserError(f"'{source.path}' has no captions")
        sources.append(source)
        references.append(source.captions)
    return CaptionDataset(tuple(sources), tuple(references))


def _dataset(folder: Path, split: str, kind: str) -> WebDataset:
    dataset = read_dataset(folder, split)
    if dataset.kind != kind:
        raise UserError(f"'{folder}' is a {dataset.kind} set, and the task needs a {kind} set")
    if not dataset.tars:
        raise UserError(f"'{folder / split / 'nshards.txt'}' says that there are no tar files")
    return dataset


def _class_names(
    folder: Path, dataset: WebDataset, labels: str | Sequence[str] | None
) -> tuple[str, ...]:
    if labels is None:
        if not dataset.classes:
            raise UserError(
                f"'{folder / 'classnames.txt'}' is missing or empty; --labels gives the names"
            )
        return dataset.classes
    names = prompts.load_labels(labels, numbered=True)
    if len(names) != len(dataset.classes or names):
        raise UserError(
            f"{counted(len(names), 'label')} for the {len(dataset.classes)} classes of '{folder}'"
        )
    return names


def _templates(
    folder: Path, dataset: WebDataset, templates: str | Sequence[str] | None, names: Sequence[str]
) -> prompts.Templates:
    if templates is not None:
        return prompts.load_templates(templates, names)
    file = folder / "zeroshot_classification_templates.txt"
    if not dataset.templates:
        raise UserError(f"'{file}' is missing or empty; --templates gives others")
    return prompts.load_templates(str(file), names)


def _sources(dataset: WebDataset, suffix: str | None) -> Iterator[Source]:
    """The images; UserError for one that cannot be read, or a truth without its image."""
    for name in dataset.tars:
        beside: list[str] = []
        found = pictures(name, beside)
        for source in found if suffix is None else with_captions(found):
            if isinstance(source.content, UnreadableBlob):
                raise UserError(f"'{source.path}': {source.content.reason}")
            yield source
        alone = [member for member in beside if suffix and member.lower().endswith(suffix)]
        if alone:
            raise UserError(f"'{alone[0]}' has no image")


def _arrays(dataset: WebDataset, length: int) -> dict[str, tuple[int, ...]]:
    """Where the array of each image has ones, by the image's path without suffix."""
    arrays: dict[str, tuple[int, ...]] = {}
    for name in dataset.tars:
        try:
            for key, data in parts(name, LABELS):
                if key in arrays:
                    raise ValueError(f"'{key}{LABELS}' comes twice")
                arrays[key] = _ones(data, length, f"{key}{LABELS}")
        except ValueError as error:
            raise UserError(f"'{name}': {error}") from None
    return arrays


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
        raise ValueError(f"'{name}' is {dtype} {list(shape)}, not {length} zeros and ones")
    values = np.frombuffer(data, dtype, length, file.tell())
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"'{name}' has other numbers than zeros and ones")
    return tuple(np.flatnonzero(values).tolist())
