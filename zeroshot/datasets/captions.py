"""Images with reference captions, from the files of COCO, Karpathy and Flickr, and from tables."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zeroshot.datasets.coco_json import ImageCaptions, caption_texts, captions_in
from zeroshot.errors import UserError
from zeroshot.inputs.columns import CAPTION, is_missing, known
from zeroshot.inputs.source import Source
from zeroshot.inputs.tables import path_below
from zeroshot.inputs.text_files import read_json, read_lines, read_records, shown, suffix_of

FILES = ("captions.jsonl", "captions.json")
"""The files of captions that are looked for in a folder of images."""
KINDS = (
    ".json of COCO (images, annotations) or Karpathy (dataset_coco.json), .jsonl with path and "
    "references, .csv or .tsv with image and caption, or .token of Flickr"
)
IMAGE_COLUMNS = (
    *("image", "path", "file", "filepath"),
    *("file_name", "filename", "image_path", "image_file"),
)
CAPTION_COLUMNS = tuple(dict.fromkeys(["references", "captions", *CAPTION]))
"""Names of columns, in upper or lower case. The first one that a row has is used."""


@dataclass(frozen=True)
class CaptionDataset:
    """Images with their reference captions."""

    sources: tuple[Source, ...]
    references: tuple[tuple[str, ...], ...]
    ids: Mapping[str, str] = field(default_factory=dict)
    """The path of each image by its id, if the file has ids, as COCO's files do."""


def find_caption_file(folder: Path) -> Path:
    """The file of captions in a folder of images; UserError if there is none."""
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"'{folder}' has no {' or '.join(FILES)}; name the captions with --truth FILE: {KINDS}"
    )


def read_caption_dataset(truth: Path, folder: Path, split: str | None = None) -> CaptionDataset:
    """The images that `truth` names, in its order, with their captions.

    Args:
        folder: the images lie in it or below.
        split: of Karpathy's files: train, restval, val or test.

    Raises:
        UserError: another kind of file, a split that the file does not have, an image outside the
            folder, without captions or named twice.
    """
    captions: dict[str, tuple[str, ...]] = {}
    ids: dict[str, str] = {}
    for image in _of_split(read_image_captions(truth), truth, split):
        path = path_below(folder, image.name, image.where)
        if path in captions:
            raise UserError(
                f"{image.where}: '{image.name}' has captions already; put all of them in one row"
            )
        check_captions(image)
        captions[path] = image.captions
        if image.id is not None:
            ids[image.id] = path
    return CaptionDataset(tuple(map(Source, captions)), tuple(captions.values()), ids)


def check_captions(image: ImageCaptions) -> None:
    """UserError if an image has no captions or an empty one."""
    if not image.captions:
        raise UserError(f"{image.where}: '{image.name}' has no captions")
    if not all(image.captions):
        raise UserError(f"{image.where}: '{image.name}' has an empty caption")


def read_image_captions(file: Path) -> Iterator[ImageCaptions]:
    """The images that a file names, with their captions. Empty captions are not left out.

    Raises:
        UserError: another kind of file, a file without images, or a fault in one of its rows.
    """
    suffix = suffix_of(file.name)
    if suffix == ".json":
        images = captions_in(read_json(file), str(file))
    elif suffix == ".jsonl":
        images = (captions_of_row(row, where) for where, row in read_records(file))
    elif suffix in (".csv", ".tsv") or (suffix == ".txt" and _is_table(file)):
        images = _by_image(captions_of_row(row, where) for where, row in read_records(file))
    elif suffix in (".token", ".txt"):
        images = _by_image(_flickr_captions(file))
    else:
        raise UserError(f"'{file}' is no file of captions; known are {KINDS}")
    first = next(images, None)
    if first is None:
        raise UserError(f"'{file}' names no images")
    yield first
    yield from images


def captions_of_row(row: Mapping[str, Any], where: str) -> ImageCaptions:
    """The image and the captions of a row; UserError if it has no such columns."""
    image, caption = caption_columns(tuple(row), where)
    name = row[image]
    if not isinstance(name, str) or not name.strip():
        raise UserError(
            f"{where}, column '{image}': expected the name of an image, got {shown(name)}"
        )
    value = row[caption]
    if isinstance(value, list):
        value = [text for text in value if not is_missing(text)]
    texts = [] if is_missing(value) else value
    return ImageCaptions(where, name, caption_texts(texts, f"{where}, column '{caption}'"))


def caption_columns(names: tuple[str, ...], where: str) -> tuple[str, str]:
    """The columns of images and of captions among these; UserError if one is missing."""
    image, caption = _columns(names)
    if image is None or caption is None:
        wanted = IMAGE_COLUMNS if image is None else CAPTION_COLUMNS
        raise UserError(
            f"{where}: expected a column named {', '.join(wanted[:-1])} or {wanted[-1]}; there are "
            f"{', '.join(f'{name!r:.60}' for name in names[:20]) or 'none'}"
        )
    return image, caption


@functools.lru_cache(maxsize=16)
def _columns(names: tuple[str, ...]) -> tuple[str | None, str | None]:
    image, caption = known(IMAGE_COLUMNS, names), known(CAPTION_COLUMNS, names)
    return next(iter(image), None), next(iter(caption), None)


def references_of_row(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The reference captions that a row of predictions brings along; empty if it has none."""
    for column in ("references", "captions"):
        if column in row:
            texts = caption_texts(row[column], f"{where}, column '{column}'")
            if not all(texts):
                raise UserError(f"{where}, column '{column}': an empty caption")
            return texts
    return ()


def _of_split(
    images: Iterable[ImageCaptions], file: Path, split: str | None
) -> Iterator[ImageCaptions]:
    """The images of a split, or all images of a file without splits."""
    splits: set[str] = set()
    for image in images:
        if image.split is not None:
            splits.add(image.split)
        if image.split == split:
            yield image
    if not splits and split is not None:
        raise UserError(f"'{file}' has no splits; leave --split {split} out")
    if splits and split not in splits:
        raise UserError(f"'{file}' has the splits {', '.join(sorted(splits))}; choose with --split")


def _is_table(file: Path) -> bool:
    lines = read_lines(file)
    return bool(lines) and lines[0][1].lower() == "image,caption"


def _flickr_captions(file: Path) -> Iterator[ImageCaptions]:
    for where, line in read_lines(file):
        key, tab, caption = line.partition("\t")
        name, mark, _ = key.rpartition("#")
        if not tab or not mark:
            raise UserError(f"{where}: expected NAME#NUMBER, a tab and a caption")
        yield ImageCaptions(where, name, (caption.strip(),))


def _by_image(rows: Iterable[ImageCaptions]) -> Iterator[ImageCaptions]:
    """One entry for each image, with the captions of all its rows."""
    first: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    for row in rows:
        first.setdefault(row.name, row.where)
        captions.setdefault(row.name, []).extend(row.captions)
    for name, texts in captions.items():
        yield ImageCaptions(first[name], name, tuple(texts))
