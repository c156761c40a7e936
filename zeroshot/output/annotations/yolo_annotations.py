"""YOLO's data sets: a text file per image, a line per thing, and `data.yaml` with the classes.

https://docs.ultralytics.com/datasets/detect/ and /datasets/segment/. A line is the class id, then
centre and size of a box, or the corners of a polygon, all as fractions of the image's sides. Class
ids count from 0 in the order of the labels. There are no scores. A mask has a line for each of its
parts, in which holes are cut in. An image without things has an empty file.

data.yaml
labels/photos/a.txt
images/photos/a.jpg    a link to the image, if it is a file and the one that the row is about
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from zeroshot.errors import UnreadableImageError, UserError, counted
from zeroshot.inputs.local_files import read_file
from zeroshot.output.annotations.annotated import (
    DETECT,
    SEGMENT,
    AnnotatedImage,
    Annotation,
    Annotations,
    is_path,
)
from zeroshot.output.annotations.polygons import polygons
from zeroshot.output.atomic import whole_folder
from zeroshot.output.formats import utf8

SCHEMAS = (DETECT, SEGMENT)
ID_DIGITS = 12
HEAD = "# Classes and images of a data set in YOLO's format, written by zeroshot.\n"
UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
"""What YAML has to have escaped, and JSON has not."""
OWN = re.compile(r"data\.yaml|run\.json|labels/.*\.txt|.*\.cache", re.DOTALL)
"""Files of an export, beside the links in `images`, and the caches that ultralytics leaves."""


def files(path: Path) -> list[Path]:
    """What `write` writes."""
    return [path]


def foreign(path: Path) -> str | None:
    """A file in the folder that `write` has not written."""
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            below = os.path.relpath(file, path)
            link = below.startswith("images/") and os.path.islink(file)
            if not (link or (OWN.fullmatch(below) and not os.path.islink(file))):
                return below
    config = path / "data.yaml"
    head = config.read_bytes()[: len(HEAD)] if config.is_file() else b""
    return None if head == HEAD.encode() else "data.yaml"


def check_replaceable(path: Path) -> None:
    """UserError if a folder has files that `write` did not write."""
    if path.is_dir() and any(path.iterdir()) and (other := foreign(path)):
        raise UserError(
            f"'{path}' has files that no --yolo wrote ('{other}'), so it is not replaced: name "
            "another folder"
        )


def write(path: Path, annotations: Annotations, overwrite: bool) -> list[str]:
    """Write the folder, all of it or nothing; returns what a user should know.

    Raises:
        UserError: the folder exists and may not be replaced, or has other files; a row of another
            form.
        OutputError: it cannot be written.
    """
    if overwrite:
        check_replaceable(path)
    names, place = annotations.names(), _places(annotations)
    numbers = {name: number for number, name in enumerate(names)}
    unlinked = 0
    with whole_folder(path, overwrite=overwrite) as folder:
        for image in annotations.images():
            stem, suffix = place(image)
            lines = (line for mark in image.marks for line in _lines(image, mark, numbers))
            folder.write(f"labels/{stem}.txt", "".join(lines).encode())
            if _is_file_of(image):
                folder.link(f"images/{stem}{suffix}", os.path.abspath(image.name))
            else:
                unlinked += 1
        text = f"{HEAD}# Divide the images into train and val before training.\n"
        text += "train: images\nval: images\nnames:\n"
        text += "".join(f"  {number}: {_quoted(name)}\n" for number, name in enumerate(names))
        folder.write("data.yaml", utf8(text))
    if not unlinked:
        return []
    return [
        f"{counted(unlinked, 'image')} of '{path}' without a link in images/: no file, or another "
        "one since; put the image there under the name of its file in labels/"
    ]


def _places(annotations: Annotations) -> Callable[[AnnotatedImage], tuple[str, str]]:
    """What gives each image a place of its own, as stem and suffix, in the order of the rows.

    Readers replace the last folder `images` of a path by `labels`; another one gets a `_`.
    """
    relative, taken = annotations.relative(), set()

    def place(image: AnnotatedImage) -> tuple[str, str]:
        name = relative(image.name)
        if not is_path(name):
            name = re.sub(r"[^\w.-]+", "_", name.partition("://")[2].partition("?")[0]).lstrip(".")
        path = PurePosixPath(*(f"{p}_" if p == "images" else p for p in name.split("/")))
        stem = str(path.with_suffix(""))
        if stem in taken:
            stem += "-" + re.sub(r"\W", "_", image.id or "")[:ID_DIGITS]
        while stem in taken:
            stem += "_"
        taken.add(stem)
        return stem, path.suffix

    return place


def _is_file_of(image: AnnotatedImage) -> bool:
    """Whether the name is that of a file with the content that the row is about.

    A label of an archive's member may look like the path of any file.
    """
    try:
        return hashlib.sha256(read_file(image.name)).hexdigest() == image.id
    except UnreadableImageError:
        return False


def _lines(image: AnnotatedImage, mark: Annotation, numbers: Mapping[str, int]) -> Iterator[str]:
    sides = np.array([image.width, image.height])
    if mark.box is not None:
        low, high = np.array(mark.box[:2]), np.array(mark.box[2:])
        shapes = [np.stack([(low + high) / 2, high - low])]
    else:
        shapes = [part.joined() for part in polygons(mark.mask())]
    for shape in shapes:
        values = (shape / sides).clip(0, 1).ravel()
        yield " ".join([str(numbers[mark.label]), *(f"{x:.6f}" for x in values)]) + "\n"


def _quoted(name: str) -> str:
    """A string in double quotation marks, as YAML reads it."""
    text = json.dumps(name, ensure_ascii=False)
    return UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
