"""Files of well-known tests on pairs, as images with their texts.

Winoground (Thrush et al. 2022, arXiv:2204.03162): JSON lines `image_0, image_1, caption_0,
caption_1`. Both images are scored with both captions.

NLVR2 (Suhr et al. 2019, arXiv:1811.00491): JSON lines `left, right, sentence`, and `label`, which
may be missing. A sentence is about both images.

Paths are relative to the file and lie in its folder or below.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zeroshot.errors import UserError, counted
from zeroshot.inputs.source import Fields, Source
from zeroshot.inputs.tables import below
from zeroshot.inputs.text_files import read_json_lines, text_in
from zeroshot.metrics import retrieval

__all__ = ["nlvr2", "winoground", "winoground_figures"]


def winoground(file: Path) -> Iterator[Source]:
    """Two images for each row, each with both captions."""
    for where, row in _rows(file, ("image_0", "image_1", "caption_0", "caption_1")):
        captions = (row["caption_0"].strip(), row["caption_1"].strip())
        for key in ("image_0", "image_1"):
            yield Source(_path(file, row[key], where), None, Fields(captions))


def nlvr2(file: Path) -> Iterator[Source]:
    """The left image of each row, with its sentence and the right image."""
    for where, row in _rows(file, ("left", "right", "sentence")):
        fields = {"caption": row["sentence"].strip(), "second": _path(file, row["right"], where)}
        if "label" in row:
            fields["label"] = str(row["label"])
        yield Source(_path(file, row["left"], where), None, fields)


def winoground_figures(scores: Sequence[Sequence[float]]) -> str:
    """Text, image and group score of images that come in pairs, each with both captions.

    An image that cannot be read has no scores, and its example counts as wrong. Chance is 0.25,
    0.25 and 0.1667.
    """
    whole = [row if len(row) == 2 else (np.nan, np.nan) for row in scores]
    right = retrieval.winoground(np.array(whole, dtype=float).reshape(-1, 2, 2))
    figures = {"text": right.text, "image": right.image, "group": right.group}
    shown = ", ".join(f"{name} {own.mean():.4f}" for name, own in figures.items())
    return f"winoground: {shown} of {counted(len(right.text), 'example')}"


def _rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row after its place in the file; UserError if one of the columns has no text."""
    for where, row in read_json_lines(file):
        for column in columns:
            text_in(row, column, where)
        yield where, row


def _path(file: Path, name: str, where: str) -> str:
    """As the file spells it below its folder: paths are part of the settings of a run."""
    path = below(str(file.parent), name) if name else None
    if path is None:
        raise UserError(f"{where}: '{name}' lies outside the folder of images, '{file.parent}'")
    return path
