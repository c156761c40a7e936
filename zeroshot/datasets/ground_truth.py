"""Data sets with their truth: what `zeroshot eval` measures on."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zeroshot import images, prompts
from zeroshot.datasets import clip_benchmark
from zeroshot.datasets.captions import CaptionDataset, find_caption_file, read_caption_dataset
from zeroshot.datasets.labels import read_labeled_images, read_labeled_rows
from zeroshot.datasets.protocols import Protocol
from zeroshot.errors import UserError
from zeroshot.inputs.source import Source
from zeroshot.output.formats import to_json, utf8

TRUTH = ("truth.csv", "truth.jsonl")
"""Where labels are looked for in a folder that is neither a webdataset nor folders of classes."""


@dataclass(frozen=True)
class ClassificationDataset:
    """Pictures with the number of each one's class, the classes, and how to ask for them."""

    sources: tuple[Source, ...]
    classes: tuple[int, ...]
    labels: tuple[str, ...]
    templates: prompts.Templates

    @property
    def sentences(self) -> list[list[str]]:
        """The prompts of each class."""
        return prompts.expand(self.labels, self.templates)


def load_classification(
    data: Path,
    *,
    truth: Path | None = None,
    split: str | None = None,
    labels: str | None = None,
    templates: str | None = None,
    protocol: Protocol | None = None,
) -> ClassificationDataset:
    """A folder per class, a CLIP_benchmark webdataset, or a file of paths and labels.

    Args:
        data: the folder, or the file.
        truth: the file, where `data` holds pictures alone.
        split: a folder within `data`.
        labels: for `prompts.load_labels`; without, the names of the folders, sorted, the data
            set's own, or all that the file names, sorted.
        templates: for `prompts.load_templates`; without, the data set's own, else `simple`.
        protocol: brings labels, templates and split, and is held to its number of pictures.

    Raises:
        UserError: no such data, or data that do not fit the protocol.
    """
    if protocol is not None:
        split, labels, templates = protocol.split, protocol.labels, protocol.templates
    _see_to(data)
    if data.is_dir() and clip_benchmark.is_wds(data, split or "test") and truth is None:
        found = _of_shards(data, split or "test", labels, templates)
    elif protocol is not None and protocol.name.startswith("clip_benchmark/"):
        raise UserError(f"protocol '{protocol.name}': '{data}' has no {split}/nshards.txt")
    else:
        found = _of_files(data, truth, split, labels, templates, by_place=protocol is not None)
    _fits(protocol, found.sources)
    return found


def load_captions(
    data: Path,
    *,
    truth: Path | None = None,
    split: str | None = None,
    protocol: Protocol | None = None,
) -> CaptionDataset:
    """Pictures in the folder `data` with the captions of `truth`, or of a file beside them.

    Raises:
        UserError: no such data, or data that do not fit the protocol.
    """
    if protocol is not None:
        split = protocol.split
    _see_to(data)
    if clip_benchmark.is_wds(data, split or "test") and truth is None:
        found = clip_benchmark.read_retrieval(data, split or "test")
    else:
        found = read_caption_dataset(truth or find_caption_file(data), data, split)
    _fits(protocol, found.sources)
    if protocol is not None and protocol.captions is not None:
        short = [r for r in found.references if len(r) < protocol.captions]
        if short:
            raise UserError(
                f"protocol '{protocol.name}' takes the first {protocol.captions} captions of each "
                f"picture, and {len(short)} have fewer"
            )
        kept = tuple(r[: protocol.captions] for r in found.references)
        found = replace(found, references=kept)
    return found


def fingerprint(
    data: Path,
    sources: Sequence[Source],
    truth: Sequence[int] | Sequence[Sequence[int]] | Sequence[Sequence[str]],
) -> str:
    """sha256 of which pictures there are, by their place in the data, and what is true of each."""
    lines = [
        [os.path.relpath(source.path or "", data), own]
        for source, own in zip(sources, truth, strict=True)
    ]
    return hashlib.sha256(utf8(to_json(lines))).hexdigest()


def _see_to(data: Path) -> None:
    if not data.exists():
        raise UserError(f"no such data: '{data}'")


def _fits(protocol: Protocol | None, sources: Sequence[Source]) -> None:
    if protocol is not None and protocol.pictures not in (None, len(sources)):
        raise UserError(
            f"protocol '{protocol.name}' has {protocol.pictures} pictures, and these data "
            f"{len(sources)}; leave --protocol out to measure on them"
        )


def _of_shards(
    data: Path, split: str, labels: str | None, templates: str | None
) -> ClassificationDataset:
    held = clip_benchmark.read_classification(data, split)
    names = held.labels
    if labels is not None:
        names = prompts.load_labels(labels)
        if len(names) != len(held.labels):
            raise UserError(f"{len(names)} labels for the {len(held.labels)} classes of '{data}'")
    sets: prompts.Templates = held.templates
    if templates is not None:
        sets = prompts.load_templates(templates, names)
    return ClassificationDataset(held.sources, held.classes, names, sets)


def _of_files(
    data: Path,
    truth: Path | None,
    split: str | None,
    labels: str | None,
    templates: str | None,
    *,
    by_place: bool,
) -> ClassificationDataset:
    names = None if labels is None else prompts.load_labels(labels)
    place = _place(data, truth, split)
    if names is not None and by_place:
        sources, classes = _in_order(place, names)
    else:
        names = names or prompts.load_labels(_names_in(place))
        held = read_labeled_images(place, names)
        sources, classes = held.sources, held.classes
    return ClassificationDataset(
        sources, classes, names, prompts.load_templates(templates or "simple", names)
    )


def _place(data: Path, truth: Path | None, split: str | None) -> Path:
    """The folder of classes, or the file of labels."""
    if truth is not None:
        if split is not None:
            raise UserError(
                "--split chooses a folder of classes; --truth names the pictures itself"
            )
        return truth
    if split is not None:
        if not (data / split).is_dir():
            raise UserError(f"'{data}' has no folder '{split}'")
        return data / split
    if data.is_dir():
        for name in TRUTH:
            if (data / name).is_file():
                return data / name
    return data


def _folders(place: Path) -> list[Path]:
    return sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))


def _names_in(place: Path) -> list[str]:
    if not place.is_dir():
        return sorted({label for _, _, label in read_labeled_rows(place)})
    folders = _folders(place)
    if not folders:
        raise UserError(
            f"'{place}' holds no folder per class, no {' or '.join(TRUTH)} and no webdataset; "
            "--truth FILE names a .csv or .jsonl file with path and label"
        )
    return [folder.name for folder in folders]


def _in_order(place: Path, names: Sequence[str]) -> tuple[tuple[Source, ...], tuple[int, ...]]:
    """Folders by their place in order of names, as torchvision's ImageFolder numbers them."""
    folders = _folders(place)
    if len(folders) != len(names):
        raise UserError(f"'{place}' has {len(folders)} folders for {len(names)} classes")
    pairs = [
        (source, number)
        for number, folder in enumerate(folders)
        for source in images.find(folder).sources
    ]
    sources, classes = zip(*pairs, strict=True)
    return sources, classes
