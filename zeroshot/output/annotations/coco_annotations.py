"""COCO's instances: one JSON object of images, annotations and categories.

https://cocodataset.org/#format-data, read by pycocotools, CVAT, Roboflow and others. Categories
and images are numbered from 1, in the order of the labels and of the rows. Boxes are left, top,
width, height. A mask is a list of polygons; with a hole, which polygons cannot have, it is
compressed run lengths. Each annotation has a `score`, as in COCO's results.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from zeroshot.output.annotations.annotated import DETECT, SEGMENT, Annotation, Annotations
from zeroshot.output.annotations.polygons import polygons
from zeroshot.output.atomic import whole
from zeroshot.output.formats import to_json, utf8
from zeroshot.packaging.version import __version__
from zeroshot.results.coco_rle import Mask
from zeroshot.results.regions import DECIMALS

SCHEMAS = (DETECT, SEGMENT)


def files(path: Path) -> list[Path]:
    """What `write` writes."""
    return [path]


def write(path: Path, annotations: Annotations, overwrite: bool) -> list[str]:
    """Write the file, all of it or nothing; returns what a user should know.

    Raises:
        UserError: the file exists and may not be replaced; a row of another form.
        OutputError: it cannot be written.
    """
    names, relative = annotations.names(), annotations.relative()
    numbers = {name: number for number, name in enumerate(names, 1)}
    info = {"description": annotations.model, "version": f"zeroshot {__version__}"}
    images = (
        {"id": n, "file_name": relative(image.name), "width": image.width, "height": image.height}
        for n, image in enumerate(annotations.images(), 1)
    )
    marks = ((n, mark) for n, image in enumerate(annotations.images(), 1) for mark in image.marks)
    rows = (
        {"id": i, "image_id": n, "category_id": numbers[mark.label], **_shape(mark)}
        for i, (n, mark) in enumerate(marks, 1)
    )
    categories = [
        {"id": number, "name": name, "supercategory": ""} for name, number in numbers.items()
    ]
    with whole(path, overwrite=overwrite) as file:
        file.write(b'{"info": ' + utf8(to_json(info)) + b', "licenses": [], "images": ')
        write_list(file, images)
        file.write(b', "annotations": ')
        write_list(file, rows)
        file.write(b', "categories": ' + utf8(to_json(categories)) + b"}\n")
    return []


def write_list(file: BinaryIO, items: Iterable[Any]) -> None:
    """A JSON list with an item on each line; not in memory as a whole."""
    file.write(b"[")
    file.writelines(_lines(items))
    file.write(b"\n]")


def _lines(items: Iterable[Any]) -> Iterator[bytes]:
    for number, item in enumerate(items):
        yield (b",\n" if number else b"\n") + utf8(to_json(item))


def _shape(mark: Annotation) -> dict[str, Any]:
    """The fields of a box or a mask."""
    if mark.box is not None:
        left, top, right, bottom = mark.box
        sides = [round(x, DECIMALS) for x in (left, top, right - left, bottom - top)]
        area = round((right - left) * (bottom - top), DECIMALS)
        return {"bbox": sides, "area": area, "iscrowd": 0, "score": mark.score}
    mask = mark.mask()
    parts = polygons(mask)
    holes = any(part.holes for part in parts)
    return {
        "segmentation": mark.rle if holes else [part.outline.ravel().tolist() for part in parts],
        "bbox": _bounds(mask),
        "area": int(mask.sum()),
        "iscrowd": 0,
        "score": mark.score,
    }


def _bounds(mask: Mask) -> list[int]:
    """Left, top, width, height of the pixels."""
    down, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(down):
        return [0, 0, 0, 0]
    left, top = int(across[0]), int(down[0])
    return [left, top, int(across[-1]) + 1 - left, int(down[-1]) + 1 - top]
