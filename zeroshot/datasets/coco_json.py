"""COCO's and Karpathy's JSON files, with one set of rules for every command.

| file | what it is |
|---|---|
| `{"images", "annotations"}` with `caption` | COCO's captions |
| `{"images", "annotations", "categories"}` | COCO's instances: the labels of each image |
| `{"images"}` with `sentences` | Karpathy's splits of COCO and Flickr (`dataset_coco.json`) |

COCO's results, `[{"image_id", "caption"}]`, are predictions (`evaluation.predictions`).
Every image has an id and a name of its own; every annotation belongs to one of the images.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from zeroshot.errors import UserError
from zeroshot.inputs.text_files import shown, whole_text


class ImageCaptions(NamedTuple):
    """An image that a file names, and its captions."""

    where: str
    """The place in the file, for messages."""
    name: str
    captions: tuple[str, ...]
    split: str | None = None
    id: str | None = None
    """The image's id, by which COCO's results refer to it."""


class ImageLabels(NamedTuple):
    """An image that a file names, and the labels that hold."""

    where: str
    name: str
    labels: tuple[str, ...]


def caption_texts(value: object, where: str) -> tuple[str, ...]:
    """One caption or a list of them, stripped; UserError for any other value."""
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise UserError(f"{where}: expected a caption or a list of captions, got {shown(value)}")
    return tuple(whole_text(text.strip(), where) for text in captions)


def captions_in(document: object, file: str) -> Iterator[ImageCaptions]:
    """The captions of COCO's or of Karpathy's file; UserError for any other document."""
    match document:
        case {"images": list(images), "annotations": list(annotations)}:
            return _coco_captions(images, annotations, file)
        case {"images": list(images)}:
            return _karpathy_captions(images, file)
    raise UserError(
        f"'{file}' is no file of captions: expected COCO's (images, annotations) or Karpathy's "
        "(images with sentences)"
    )


def labels_in(document: object, file: str) -> tuple[list[ImageLabels], tuple[str, ...]]:
    """The labels of COCO's instances, and all categories in order; UserError for other files."""
    match document:
        case {
            "images": list(images),
            "annotations": list(annotations),
            "categories": list(categories),
        }:
            pass
        case _:
            raise UserError(
                f"'{file}' is not COCO's instances: expected images, annotations and categories"
            )
    names, classes = _images(images, file), _named(categories, "categories", "name", file)
    labels: dict[int | str, dict[str, None]] = {key: {} for key in names}
    for where, key, annotation in _annotations(annotations, names, file):
        category = annotation.get("category_id")
        if not isinstance(category, int | str) or category not in classes:
            raise UserError(f"{where}: category_id {shown(category)} is none of the categories")
        labels[key][classes[category]] = None
    rows = [
        ImageLabels(f"'{file}', image {key}", names[key], tuple(own)) for key, own in labels.items()
    ]
    return rows, tuple(classes.values())


def _coco_captions(images: list[Any], annotations: list[Any], file: str) -> Iterator[ImageCaptions]:
    names = _images(images, file)
    captions: dict[int | str, list[str]] = {key: [] for key in names}
    for where, key, annotation in _annotations(annotations, names, file):
        captions[key] += caption_texts(annotation.get("caption"), f"{where}, caption")
    for key, name in names.items():
        yield ImageCaptions(f"'{file}', image {key}", name, tuple(captions[key]), id=str(key))


def _karpathy_captions(images: list[Any], file: str) -> Iterator[ImageCaptions]:
    for number, image in enumerate(images, 1):
        match image:
            case {"filename": str(name), "sentences": list(sentences)}:
                pass
            case _:
                raise UserError(
                    f"'{file}', image {number}: expected filename and sentences, got {shown(image)}"
                )
        where, key = f"'{file}', image '{name}'", image.get("cocoid", image.get("imgid"))
        raw = [s.get("raw") if isinstance(s, dict) else s for s in sentences]
        yield ImageCaptions(
            where,
            str(PurePosixPath(str(image.get("filepath", ""))) / name),
            caption_texts(raw, f"{where}, sentences"),
            image.get("split"),
            None if key is None else str(key),
        )


def _images(images: list[Any], file: str) -> dict[int | str, str]:
    return _named(images, "images", "file_name", file)


def _named(entries: list[Any], kind: str, column: str, file: str) -> dict[int | str, str]:
    """The names of images or categories by their ids."""
    names: dict[int | str, str] = {}
    for number, entry in enumerate(entries, 1):
        key, name = (entry.get(k) if isinstance(entry, dict) else None for k in ("id", column))
        if not isinstance(key, int | str) or key in names or not isinstance(name, str):
            raise UserError(
                f"'{file}', {kind}, entry {number}: expected an id of its own and a {column}, got "
                f"{shown(entry)}"
            )
        names[key] = name
    return names


def _annotations(
    annotations: list[Any], names: dict[int | str, str], file: str
) -> Iterator[tuple[str, int | str, dict[str, Any]]]:
    """Each annotation after its place in the file and the id of its image."""
    for number, annotation in enumerate(annotations, 1):
        where = f"'{file}', annotations, entry {number}"
        key = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(key, int | str) or key not in names:
            raise UserError(f"{where}: image_id {shown(key)} is none of the images")
        yield where, key, annotation
