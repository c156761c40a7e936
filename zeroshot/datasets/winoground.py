"""Files of well-known tests on pairs, as pictures with their texts.

Winoground (Thrush et al. 2022, arXiv:2204.03162): JSON lines `image_0, image_1, caption_0,
caption_1`. Both pictures are scored with both captions.

NLVR2 (Suhr et al. 2019, arXiv:1811.00491): JSON lines `left, right, sentence`, and `label`, which
may be missing. A sentence speaks of both pictures.

Paths are relative to the file and lie in its folder or below.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zeroshot.errors import UserError
from zeroshot.inputs.source import Source
from zeroshot.inputs.tables import below
from zeroshot.metrics import retrieval

__all__ = ["nlvr2", "winoground", "winoground_figures"]


def winoground(file: Path) -> Iterator[Source]:
    """Two pictures for each row, each with both captions."""
    for number, row in _rows(file, ("image_0", "image_1", "caption_0", "caption_1")):
        captions = [" ".join(row[key].split()) for key in ("caption_0", "caption_1")]
        fields = {"caption": "\n".join(captions)}
        for key in ("image_0", "image_1"):
            yield Source(_path(file, number, row[key]), None, fields)


def nlvr2(file: Path) -> Iterator[Source]:
    """The left picture of each row, with its sentence and the right one."""
    for number, row in _rows(file, ("left", "right", "sentence")):
        sentence = " ".join(row["sentence"].split())
        fields = {"caption": sentence, "second": _path(file, number, row["right"])}
        if "label" in row:
            fields["label"] = str(row["label"])
        yield Source(_path(file, number, row["left"]), None, fields)


def winoground_figures(scores: Sequence[Sequence[float]]) -> str:
    """Text, image and group score of pictures that come in pairs, each with both captions.

    A picture that failed has no scores, and its example counts as wrong. Chance is 0.25, 0.25 and
    0.1667.
    """
    whole = [row if len(row) == 2 else (np.nan, np.nan) for row in scores]
    told = retrieval.winoground(np.array(whole, dtype=float).reshape(-1, 2, 2))
    figures = {"text": told.text, "image": told.image, "group": told.group}
    said = ", ".join(f"{name} {right.mean():.4f}" for name, right in figures.items())
    return f"winoground: {said} of {len(told.text)} examples"


def _rows(file: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read '{file}': {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"'{file}' line {number} is not JSON: {error}") from None
        if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in needed):
            raise UserError(f"'{file}' line {number}: expected the texts {', '.join(needed)}")
        yield number, row


def _path(file: Path, number: int, name: str) -> str:
    path = below(str(file.parent), name)
    if path is None:
        raise UserError(f"'{file}' line {number}: '{name}' lies outside the file's folder")
    return path
