"""Label Studio: tasks with predictions, and the labelling configuration of the project.

https://labelstud.io/guide/predictions: boxes in percent of the image, masks as brushes, labels as
choices. `x.json` is imported after the project has the configuration of `x.xml`. Images are
addresses; a file on this machine is at `/data/local-files/?d=PATH`, its path below the server's
LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT (`/`, unless `--export-root` names another).
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from zeroshot.output.annotations.annotated import (
    CLASSIFY,
    DETECT,
    SEGMENT,
    AnnotatedImage,
    Annotation,
    Annotations,
    is_path,
)
from zeroshot.output.annotations.coco_annotations import write_list
from zeroshot.output.atomic import whole
from zeroshot.output.formats import utf8
from zeroshot.results.coco_rle import Mask

SCHEMAS = (DETECT, SEGMENT, CLASSIFY)
FROM, TO, FIELD = "label", "image", "image"
"""The names of the control, of the image, and of the task's field with the image's address."""
TAGS = {DETECT: "RectangleLabels", SEGMENT: "BrushLabels", CLASSIFY: "Choices"}
LENGTHS = (3, 4, 8, 16)
"""Bits of a run's length in a brush; each run says which of the four it takes."""


def files(path: Path) -> list[Path]:
    """What `write` writes: the configuration, then the tasks."""
    return [path.with_suffix(".xml"), path]


def write(path: Path, annotations: Annotations, overwrite: bool) -> list[str]:
    """Write the tasks and the configuration, each all of it or nothing, and say what to do.

    Raises:
        UserError: a file exists and may not be replaced; a row of another form.
        OutputError: a file cannot be written.
    """
    config, tasks = files(path)
    names, root = annotations.names(), annotations.root
    address = annotations.relative() if root else os.path.abspath
    with whole(tasks, overwrite=overwrite) as file:
        write_list(file, _tasks(annotations, address))
        file.write(b"\n")
        with whole(config, overwrite=overwrite) as other:
            other.write(utf8(labelling_config(annotations.schema, names, annotations.several)))
    return [f"Label Studio: give the project the labelling interface in {config}, import {tasks}"]


def labelling_config(schema: str, names: list[str], several: bool) -> str:
    """The XML of the project's labelling interface."""
    tag = TAGS[schema]
    label = "Choice" if schema == CLASSIFY else "Label"
    more = f' choice="{"multiple" if several else "single"}"' if schema == CLASSIFY else ""
    lines = [
        "<View>",
        f'  <Image name="{TO}" value="${FIELD}"/>',
        f'  <{tag} name="{FROM}" toName="{TO}"{more}>',
        *(f"    <{label} value={quoteattr(name)}/>" for name in names),
        f"  </{tag}>",
        "</View>",
    ]
    return "\n".join(lines) + "\n"


def _tasks(annotations: Annotations, place: Callable[[str], str]) -> Iterator[dict[str, Any]]:
    kind = TAGS[annotations.schema].lower()
    for image in annotations.images():
        scores = [mark.score for mark in image.marks]
        if kind == "choices":
            shapes = (
                [{"value": {"choices": [mark.label for mark in image.marks]}}] if scores else []
            )
        else:
            shapes = [_shape(image, mark, kind) for mark in image.marks]
        same = {"type": kind, "from_name": FROM, "to_name": TO}
        prediction = {
            "model_version": annotations.model,
            "score": round(sum(scores) / len(scores), 6) if scores else 0.0,
            "result": [{"id": f"r{n}"} | same | shape for n, shape in enumerate(shapes, 1)],
        }
        yield {"data": {FIELD: _address(image.name, place)}, "predictions": [prediction]}


def _address(name: str, place: Callable[[str], str]) -> str:
    if not is_path(name):
        return name
    return "/data/local-files/?d=" + quote(os.fsencode(place(name).replace("\0", "_").lstrip("/")))


def _shape(image: AnnotatedImage, mark: Annotation, kind: str) -> dict[str, Any]:
    """A box in percent of the image's sides, or a brush."""
    if mark.box is not None:
        left, top, right, bottom = mark.box
        value: dict[str, Any] = {
            "x": 100 * left / image.width,
            "y": 100 * top / image.height,
            "width": 100 * (right - left) / image.width,
            "height": 100 * (bottom - top) / image.height,
            "rotation": 0,
        }
    else:
        value = {"format": "rle", "rle": brush(mark.mask())}
    size = {"original_width": image.width, "original_height": image.height, "image_rotation": 0}
    return size | {"value": value | {kind: [mark.label]}, "score": mark.score}


def brush(mask: Mask) -> list[int]:
    """The bytes of a mask in Label Studio's run-length encoding, thi.ng's rle-pack.

    The mask is an image of four channels, each 0 or 255, along the rows. The head is the number of
    values (32 bits), the bits of a value less one (5), and those of `LENGTHS` less one (4 each).
    Then come runs: 1, the index in `LENGTHS` (2 bits), the length less one, the value (8 bits).
    As `label_studio_sdk.converter.brush.mask2rle`.
    """
    flat = np.repeat(mask.ravel(), 4)
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    bits = [f"{flat.size:032b}{8 - 1:05b}", *(f"{length - 1:04b}" for length in LENGTHS)]
    begin = 0
    for end in ends.tolist():
        value = "1" * 8 if flat[begin] else "0" * 8
        while begin < end:
            run = min(end - begin, 1 << LENGTHS[-1])
            index = next(i for i, length in enumerate(LENGTHS) if run <= 1 << length)
            bits.append(f"1{index:02b}{run - 1:0{LENGTHS[index]}b}{value}")
            begin += run
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))
