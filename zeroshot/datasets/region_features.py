"""Features of image regions from a detector, in an .npz file that is checked before use.

| array | shape | meaning |
|---|---|---|
| `paths` | `[n]`, text | the images, relative to the file |
| `features` | `[n, r, f]` | an embedding for each region |
| `boxes` | `[n, r, 4]` | left, top, right, bottom as shares of the sides (LXMERT) |
| `counts` | `[n]` | optional: the number of regions of an image; the rest is padding |
"""

import os
from pathlib import Path

import numpy as np
import torch

from zeroshot.errors import UserError
from zeroshot.models.base import Regions

__all__ = ["read_regions"]

ARRAYS = ("paths", "features", "boxes", "counts")
Arrays = dict[str, np.ndarray]


def read_regions(file: Path, width: int, boxed: bool) -> dict[str, Regions]:
    """The regions of each image, by its absolute path.

    Args:
        width: the number of features that the model reads.
        boxed: whether the model needs boxes.

    Raises:
        UserError: an array is missing or has another shape or type than expected.
    """
    arrays = _load(file)
    paths, features = arrays["paths"], arrays["features"]
    if paths.ndim != 1 or paths.dtype.kind != "U":
        raise UserError(f"'{file}': paths must be texts [n], not {paths.dtype} {paths.shape}")
    _check(file, "features", features, (len(paths), None, width))
    boxes = arrays.get("boxes")
    if boxes is None and boxed:
        raise UserError(f"'{file}' has no boxes [n, r, 4], and the model needs them")
    if boxes is not None:
        _check(file, "boxes", boxes, (*features.shape[:2], 4))
        if boxes.size and (boxes.min() < 0 or boxes.max() > 1):
            raise UserError(
                f"'{file}': boxes must be shares of the image's sides, in 0..1, not "
                f"{boxes.min():g}..{boxes.max():g}"
            )
        if (boxes[..., :2] > boxes[..., 2:]).any():
            raise UserError(f"'{file}': a box ends before it begins; left, top, right, bottom")
    counts = _counts(file, arrays.get("counts"), features)
    names = [os.path.abspath(file.parent / str(path)) for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"'{file}' has '{twice}' more than once")
    return {
        name: Regions(
            torch.from_numpy(features[i, :count].astype(np.float32)),
            None if boxes is None else torch.from_numpy(boxes[i, :count].astype(np.float32)),
        )
        for i, (name, count) in enumerate(zip(names, counts, strict=True))
    }


def _load(file: Path) -> Arrays:
    try:
        # Opened here: numpy leaves the file of a damaged archive open.
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # numpy and zlib raise every type of exception for broken files
        raise UserError(f"cannot read regions from '{file}': {error}") from None
    for name in arrays:
        if name not in ARRAYS:
            raise UserError(f"'{file}': unknown array '{name}'; known are {', '.join(ARRAYS)}")
    for name in ("paths", "features"):
        if name not in arrays:
            raise UserError(f"'{file}' lacks the array '{name}'")
    return arrays


def _check(file: Path, name: str, array: np.ndarray, shape: tuple[int | None, ...]) -> None:
    fits = array.ndim == len(shape) and all(
        wanted in (None, there) for wanted, there in zip(shape, array.shape, strict=True)
    )
    if array.dtype.kind != "f" or not fits:
        wanted = ", ".join("r" if size is None else str(size) for size in shape)
        raise UserError(
            f"'{file}': {name} must be numbers [{wanted}], not {array.dtype} {list(array.shape)}"
        )
    if not np.isfinite(array).all():
        raise UserError(f"'{file}': {name} has values that are not finite")


def _counts(file: Path, counts: np.ndarray | None, features: np.ndarray) -> list[int]:
    most = features.shape[1]
    if counts is None:
        counts = np.full(len(features), most)
    if counts.shape != (len(features),) or counts.dtype.kind not in "iu":
        raise UserError(f"'{file}': counts must be whole numbers [{len(features)}]")
    if counts.size and (counts.min() < 1 or counts.max() > most):
        raise UserError(f"'{file}': counts must lie in 1..{most}")
    return [int(count) for count in counts]
