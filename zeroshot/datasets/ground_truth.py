"""Data sets with their ground truth, as `zeroshot eval` measures on them."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from zeroshot import images, prompts
from zeroshot.datasets import clip_benchmark
from zeroshot.datasets.captions import CaptionDataset, find_caption_file, read_caption_dataset
from zeroshot.datasets.labels import (
    ClassificationDataset,
    class_folders,
    read_labeled_images,
    read_labeled_rows,
)
from zeroshot.datasets.multilabel_images import (
    MultilabelDataset,
    find_label_file,
    read_multilabel_dataset,
)
from zeroshot.datasets.protocols import Protocol
from zeroshot.errors import UserError, no_such
from zeroshot.inputs.source import PICTURES, Source
from zeroshot.output.formats import to_json, utf8

FILES = ("truth.csv", "truth.jsonl")
"""The files of labels that are looked for in a folder that has neither tar files nor classes."""
SPLITS = re.compile(r"(train|test|val|dev)(ing|id|idation|set)?[-_ ]?\d*", re.IGNORECASE)
"""Folders that are parts of a data set, as long as there are several or nothing else."""


def load_classification(
    data: Path,
    *,
    truth: Path | None = None,
    split: str | None = None,
    labels: str | Sequence[str] | None = None,
    templates: str | Sequence[str] | None = None,
    protocol: Protocol | None = None,
) -> ClassificationDataset:
    """A folder per class, a CLIP_benchmark webdataset, or a file of paths and labels.

    Args:
        data: the folder, or the file.
        truth: the file, if `data` is a folder of images only, which lie in it or below.
        split: a folder in `data`.
        labels: for `prompts.load_labels`; by default those of the webdataset, the names of the
            folders, or all labels of the file, sorted.
        templates: for `prompts.load_templates`; by default those of the webdataset, else `simple`.
        protocol: fixes labels, templates, split and the number of images.

    Raises:
        UserError: no such data, or data that do not fit the protocol.
    """
    if protocol is not None:
        split, labels, templates = protocol.split, protocol.labels, protocol.templates
    _check_exists(data)
    if data.is_dir() and clip_benchmark.is_wds(data, split or "test") and truth is None:
        dataset = clip_benchmark.read_classification(data, split or "test", labels, templates)
    elif protocol is not None and protocol.name.startswith("clip_benchmark/"):
        raise UserError(f"protocol '{protocol.name}': '{data}' has no {split}/nshards.txt")
    else:
        folder = data if data.is_dir() else data.parent
        dataset = _from_files(
            _truth_of(data, truth, split), folder, labels, templates, by_order=protocol is not None
        )
    _check_count(protocol, dataset.sources)
    return dataset


def load_multilabel(
    data: Path,
    *,
    truth: Path | None = None,
    split: str | None = None,
    labels: str | Sequence[str] | None = None,
    templates: str | Sequence[str] | None = None,
) -> MultilabelDataset:
    """Images with the labels of `truth`, or of a file in the folder `data`; or a webdataset.

    Args:
        data: a folder of images, a CLIP_benchmark webdataset, or the file of labels itself, beside
            the images.
        truth: see `multilabel_images.read_multilabel_dataset`, also for `labels` and `templates`.
        split: of a webdataset.

    Raises:
        UserError: no such data, or a fault in the file of labels.
    """
    _check_exists(data)
    if truth is None and data.is_dir() and clip_benchmark.is_wds(data, split or "test"):
        return clip_benchmark.read_multilabel(data, split or "test", labels, templates)
    if split is not None:
        raise UserError(
            f"'{data}' has no {split}/nshards.txt; only a webdataset has splits (--split, "
            "--protocol), and --truth names the images itself"
        )
    file = truth or (find_label_file(data) if data.is_dir() else data)
    folder = data if data.is_dir() else data.parent
    return read_multilabel_dataset(file, folder, labels=labels, templates=templates)


def load_captions(
    data: Path,
    *,
    truth: Path | None = None,
    split: str | None = None,
    protocol: Protocol | None = None,
) -> CaptionDataset:
    """Images in the folder `data` with the captions of `truth`, or of a file in the folder.

    Raises:
        UserError: no such data, or data that do not fit the protocol.
    """
    if protocol is not None:
        split = protocol.split
    _check_exists(data)
    if clip_benchmark.is_wds(data, split or "test") and truth is None:
        dataset = clip_benchmark.read_retrieval(data, split or "test")
    else:
        dataset = read_caption_dataset(truth or find_caption_file(data), data, split)
    _check_count(protocol, dataset.sources)
    if protocol is not None and protocol.captions is not None:
        short = sum(len(own) < protocol.captions for own in dataset.references)
        if short:
            raise UserError(
                f"protocol '{protocol.name}' uses the first {protocol.captions} captions of each "
                f"image, and {short} have fewer"
            )
        first = tuple(own[: protocol.captions] for own in dataset.references)
        dataset = replace(dataset, references=first)
    return dataset


def fingerprint(
    data: Path,
    sources: Sequence[Source],
    truth: Sequence[int] | Sequence[Sequence[int]] | Sequence[Sequence[str]],
) -> str:
    """sha256 of the images, by their paths below the data, and of their ground truth."""
    lines = [
        [os.path.relpath(source.path or "", data), own]
        for source, own in zip(sources, truth, strict=True)
    ]
    return hashlib.sha256(utf8(to_json(lines))).hexdigest()


def _check_exists(data: Path) -> None:
    if not data.exists():
        raise no_such(data, "file" if data.suffix else "folder")


def _check_count(protocol: Protocol | None, sources: Sequence[Source]) -> None:
    if protocol is not None and protocol.images not in (None, len(sources)):
        raise UserError(
            f"protocol '{protocol.name}' has {protocol.images} images, and these data have "
            f"{len(sources)}; leave --protocol out to measure on them"
        )


def _from_files(
    truth: Path,
    folder: Path,
    labels: str | Sequence[str] | None,
    templates: str | Sequence[str] | None,
    *,
    by_order: bool,
) -> ClassificationDataset:
    if labels is None:
        names = prompts.load_labels(_names_in(truth))
    else:
        names = prompts.load_labels(labels, numbered=by_order)
    _check_no_splits(truth, () if labels is None else names)
    if labels is not None and by_order:
        sources, classes = _in_order(truth, names)
    else:
        images = read_labeled_images(truth, names, folder, PICTURES)
        sources, classes = images.sources, images.classes
    return ClassificationDataset(sources, classes, names, prompts.load_templates(templates, names))


def _truth_of(data: Path, truth: Path | None, split: str | None) -> Path:
    """The folder of classes, or the file of labels."""
    if truth is not None:
        if split is not None:
            raise UserError("--split chooses a folder of classes; --truth names the images itself")
        return truth
    if split is not None:
        if not (data / split).is_dir():
            raise UserError(f"'{data}' has no folder '{split}'")
        return data / split
    if data.is_dir():
        for name in FILES:
            if (data / name).is_file():
                return data / name
    return data


def _check_no_splits(truth: Path, labels: Sequence[str]) -> None:
    """UserError for a folder of splits, unless they are among the labels that the user gave."""
    if not truth.is_dir():
        return
    folders = [folder.name for folder in class_folders(truth)]
    splits = [name for name in folders if SPLITS.fullmatch(name) and name not in labels]
    if len(splits) > 1 or splits == folders:
        raise UserError(
            f"'{truth}' has the folders {', '.join(map(repr, splits[:5]))}, which are splits of a "
            f"data set and no classes; measure on one of them: --split {splits[0]}"
        )


def _names_in(truth: Path) -> list[str]:
    if not truth.is_dir():
        return sorted({label for _, _, label in read_labeled_rows(truth)})
    folders = class_folders(truth)
    if not folders:
        raise UserError(
            f"'{truth}' has no folder per class, no {' or '.join(FILES)} and no webdataset; "
            "--truth FILE names a .csv, .tsv or .jsonl file with path and label"
        )
    return [folder.name for folder in folders]


def _in_order(folder: Path, names: Sequence[str]) -> tuple[tuple[Source, ...], tuple[int, ...]]:
    """The sorted folders are the classes in order, as torchvision's ImageFolder numbers them."""
    folders = class_folders(folder)
    if len(folders) != len(names):
        raise UserError(f"'{folder}' has {len(folders)} folders for {len(names)} classes")
    pairs = [
        (source, number)
        for number, class_folder in enumerate(folders)
        for source in images.find(class_folder).sources
    ]
    sources, classes = zip(*pairs, strict=True)
    return sources, classes
