"""A method on arrays: for people who have embeddings and need no images.

The arrays and their shapes are those of docs/embeddings.md. Which of them a method takes follows
from the parameters of its `fit` and `scores`.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zeroshot import methods
from zeroshot.errors import UserError, unknown
from zeroshot.ops import normalize

Array = npt.NDArray[Any]

SHAPES = {
    "images": "n d",
    "texts": "c t e",
    "text_mask": "c t",
    "logit_scale": "",
    "anchor_images": "a d",
    "anchor_texts": "a e",
    "shots": "m d",
    "shot_labels": "m",
    "views": "n v d",
    "bank": "b d",
    "prior": "c",
    "parents": "c",
    "initial": "n c",
}
"""Every array there is and its axes; an axis has one length in all arrays of a file."""

EMBEDDINGS = {"images", "texts", "anchor_images", "anchor_texts", "shots", "views", "bank"}
"""Arrays of embeddings, as against masks, labels and priors."""

INDICES = {"shot_labels", "parents"}
"""Arrays of class numbers, 0 to c - 1."""


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file, unpickled never.

    Raises:
        UserError: no such file, not an .npz, or an array of objects.
    """
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except FileNotFoundError:
        raise UserError(f"no such file: '{path}'") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise UserError(
            f"'{path}' is not an .npz file of plain arrays ({error}); write it with numpy.savez"
        ) from error


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """An .npz file that is whole or not there: written beside its place and moved into it."""
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    part.replace(path)


def score_arrays(
    arrays: Mapping[str, Array], method: str, options: Mapping[str, Any]
) -> dict[str, Array]:
    """`scores [n c]` and what else the method learned, by name without the trailing `_`.

    Embeddings are brought to unit length, but for couplings and methods with `wants_unnormalized`,
    which centre them first; all is computed in the precision the arrays come in. Arrays the
    method has no use for stay unused, so that one file serves several methods.

    Raises:
        UserError: an array that is unknown, missing, of a wrong shape or kind, or not finite.
    """
    chosen = methods.configure(method, options)
    if not hasattr(chosen, "scores"):
        raise UserError(f"method '{method}' does not score arrays")
    fit, score = (methods.parameters(chosen, verb) for verb in ("fit", "scores"))
    tensors = _checked(arrays, method, fit | score)
    unnormalized = getattr(chosen, "wants_unnormalized", False)
    if not unnormalized and not isinstance(chosen, methods.Coupling):
        tensors |= {k: normalize(v) for k, v in tensors.items() if k in EMBEDDINGS}
    if learned_from := {name: tensors[name] for name in fit if name in tensors}:
        chosen = chosen.fit(**learned_from)
    given: dict[str, Any] = {name: tensors[name] for name in score if name in tensors}
    if "logit_scale" in given:
        given["logit_scale"] = float(given["logit_scale"])
    scores = chosen.scores(**given)
    return {"scores": scores.numpy(), **_learned(chosen)}


def _learned(fitted: Any) -> dict[str, Array]:
    """Tensors a method holds beyond the arrays it was given; of a pipeline, each stage's."""
    if hasattr(fitted, "stages"):
        return {
            f"{methods.name_of(stage)}.{name}": value
            for stage in fitted.stages
            for name, value in _learned(stage).items()
        }
    held = {f.name.removesuffix("_"): getattr(fitted, f.name) for f in fields(fitted)}
    return {
        name: value.numpy()
        for name, value in held.items()
        if isinstance(value, Tensor) and name not in SHAPES
    }


def _checked(
    arrays: Mapping[str, Array], method: str, parameters: Mapping[str, bool]
) -> dict[str, Tensor]:
    """The arrays among `parameters` as tensors, their shapes agreeing with `SHAPES`."""
    for name in arrays:
        if name not in SHAPES:
            raise unknown("array", name, SHAPES)
    missing = [name for name, needed in parameters.items() if needed and name not in arrays]
    if missing:
        raise UserError(
            f"{method} needs the array{'s' * (len(missing) > 1)} "
            + ", ".join(f"{name} [{SHAPES[name]}]" for name in missing)
            + f"; the file holds {', '.join(sorted(arrays))}"
        )
    used = {name: arrays[name] for name in parameters if name in arrays}
    lengths: dict[str, tuple[int, str]] = {}
    for name, array in used.items():
        _check_shape(name, array, lengths)
    precision = np.result_type(np.float32, *(used[n].dtype for n in used if n in EMBEDDINGS))
    tensors = {}
    for name, array in used.items():
        floating = name in EMBEDDINGS | {"logit_scale", "prior", "initial"}
        kind = precision if floating else bool if name == "text_mask" else np.int64
        tensors[name] = torch.from_numpy(np.ascontiguousarray(array, dtype=kind))
    mask = tensors.get("text_mask")
    for name in EMBEDDINGS & tensors.keys():
        _check_rows(name, tensors[name], mask if name == "texts" else None)
    if mask is not None and not mask.any(1).all():
        raise UserError("text_mask: a class has no prompt at all")
    for name in INDICES & tensors.keys():
        _check_classes(name, used[name], len(tensors["texts"]))
    for name in {"prior", "initial"} & tensors.keys():
        if not tensors[name].isfinite().all():
            raise UserError(f"array {name} holds NaN or infinity")
    if "prior" in tensors:
        tensors["prior"] = _shares(tensors["prior"])
    return tensors


def _check_shape(name: str, array: Array, lengths: dict[str, tuple[int, str]]) -> None:
    """Number of axes, kind of numbers, and lengths that agree with the arrays before."""
    axes = SHAPES[name].split()
    if array.ndim != len(axes) or 0 in array.shape:
        raise UserError(
            f"array {name}: shape {list(array.shape)}, expected [{' '.join(axes)}], none empty"
        )
    if array.dtype.kind not in "fiub":
        raise UserError(f"array {name}: {array.dtype} values, expected numbers")
    for axis, length in zip(axes, array.shape, strict=True):
        known, where = lengths.setdefault(axis, (length, name))
        if known != length:
            raise UserError(
                f"array {name}: shape {list(array.shape)} for [{' '.join(axes)}], but "
                f"{axis} is {known} in array {where}"
            )


def _check_rows(name: str, rows: Tensor, mask: Tensor | None) -> None:
    """No NaN, no infinity, no zero row but where the mask says there is none."""
    if not rows.isfinite().all():
        raise UserError(f"array {name} holds NaN or infinity")
    present = rows.any(-1)
    if mask is not None:
        present = present | ~mask
    if not present.all():
        where = (~present).nonzero()[0].tolist()
        raise UserError(f"array {name}: row {where} is zero and has no direction")


def _check_classes(name: str, array: Array, classes: int) -> None:
    """Whole numbers that name a class."""
    if (array != array.astype(np.int64)).any() or array.min() < 0 or array.max() >= classes:
        raise UserError(
            f"array {name}: values {array.min()} to {array.max()}; "
            f"expected whole numbers from 0 to {classes - 1}"
        )


def _shares(prior: Tensor) -> Tensor:
    """Counts or shares of the classes, as shares."""
    if (prior < 0).any() or not prior.any():
        raise UserError("array prior: counts or shares of the classes are not negative, not all 0")
    return prior / prior.sum()
