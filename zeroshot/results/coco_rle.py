"""Masks as text: the run-length encoding of COCO, which pycocotools reads and writes.

Runs go down the columns; the first run counts zeros. `counts` has them compressed. From the fourth
on, a number is stored as its difference from the one two before it. It is split into groups of five
bits, the lowest first; a sixth bit is set if more groups follow. Each is a character, `0` or later.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from zeroshot.errors import UserError

Mask = np.ndarray[tuple[int, int], np.dtype[np.bool_]]
LONGEST = 60
"""Bits of a number at most."""


def encode(mask: Mask) -> dict[str, Any]:
    """`{"size": [height, width], "counts": "..."}` of a mask [h w]."""
    flat = np.asarray(mask, dtype=bool).T.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    if flat.size and flat[0]:
        runs = [0, *runs]
    return {"size": list(mask.shape), "counts": _pack(runs)}


def decode(rle: dict[str, Any]) -> Mask:
    """The mask [h w] that `encode` encoded; UserError for counts that do not fill it."""
    height, width = rle["size"]
    runs = _unpack(rle["counts"])
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise UserError(f"the counts of a mask do not cover its {height} x {width} pixels")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _pack(runs: Sequence[int]) -> str:
    text = bytearray()
    for i, run in enumerate(runs):
        number = run - (runs[i - 2] if i > 2 else 0)
        more = True
        while more:
            bits, number = number & 31, number >> 5
            more = number != (-1 if bits & 16 else 0)
            text.append(48 + bits + (32 if more else 0))
    return text.decode("ascii")


def _unpack(text: str) -> list[int]:
    runs: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise UserError(f"{character!r} is no character of a mask's counts")
        if shift > LONGEST:
            raise UserError("a mask has a run of more pixels than any image")
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                number -= 1 << shift
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    if shift:
        raise UserError("the counts of a mask end in the middle of a number")
    return runs
