"""Boxes in COCO's detection format: one JSON object of images, annotations and categories.

Boxes are left, top, width, height. Categories and images are numbered from 1, in the order of the
labels and of the results. Each annotation has a score, as in COCO's results.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zeroshot.output.atomic import whole
from zeroshot.results.regions import DECIMALS, DetectResult
from zeroshot.results.result import as_float32

__all__ = ["document", "write"]


def document(results: Iterable[DetectResult], labels: Sequence[str]) -> dict[str, Any]:
    """The object; images that could not be read are left out."""
    names = list(dict.fromkeys(labels))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for result in results:
        if result.error is not None:
            continue
        number = len(images) + 1
        size = {"width": result.width, "height": result.height}
        images.append({"id": number, "file_name": result.path or "", **size})
        for box in result.boxes:
            if box.label not in names:  # a phrase of a sentence
                names.append(box.label)
            left, top, right, bottom = box.box
            sides = [round(x, DECIMALS) for x in (left, top, right - left, bottom - top)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": names.index(box.label) + 1,
                    "bbox": sides,
                    "area": round((right - left) * (bottom - top), DECIMALS),
                    "iscrowd": 0,
                    "score": as_float32(box.score),
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(path: Path, document: dict[str, Any], overwrite: bool) -> None:
    """Write a document, all of it or nothing; raises as `output.atomic.whole`."""
    text = json.dumps(document, ensure_ascii=False) + "\n"
    with whole(path, overwrite=overwrite) as file:
        file.write(text.encode("utf-8", "surrogateescape"))
