"""A method on arrays, for embeddings that you already have.

The arrays and their shapes are those of docs/embeddings.md. A method takes the arrays that its
`fit` and `scores` have parameters for.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zeroshot import methods
from zeroshot.errors import UserError, no_such, unknown
from zeroshot.inference.coupled_models import LABELS
from zeroshot.methods._joint_space import map_present
from zeroshot.methods.auto import Auto, open_coupling
from zeroshot.model_set.coupled_encoder import calibrate, with_classes
from zeroshot.ops import normalize
from zeroshot.output.atomic import whole

Array = npt.NDArray[Any]

SHAPES = {
    "images": "n d",
    "texts": "c t e",
    "text_mask": "c t",
    "logit_scale": "",
    "anchor_images": "a d",
    "anchor_texts": "a e",
    "class_weights": "k d",
    "class_names": "k e",
    "shots": "m d",
    "shot_labels": "m",
    "own_images": "n f",
    "own_shots": "m f",
    "views": "n v d",
    "bank": "b d",
    "words": "w d",
    "prior": "c",
    "parents": "c",
    "initial": "n c",
}
"""All arrays and their axes; an axis has the same length in all arrays of a file."""

EMBEDDINGS = {
    *{"images", "texts", "anchor_images", "anchor_texts", "shots", "views", "bank", "words"},
    *{"own_images", "own_shots", "class_weights", "class_names"},
}
"""Arrays of embeddings; the others are masks, labels and priors."""

INDICES = {"shot_labels", "parents"}
"""Arrays of class indices, 0 to c - 1."""


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file; nothing is unpickled.

    Raises:
        UserError: no such file, not an .npz, or an array of objects.
    """
    try:
        # Opened here: numpy leaves the file of a damaged archive open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise no_such(path) from None
    except Exception as error:  # numpy and zlib raise every type of exception for broken files
        raise UserError(
            f"'{path}' is not an .npz file of plain arrays ({error}); write it with numpy.savez"
        ) from error


def write_arrays(path: Path, arrays: Mapping[str, Array], overwrite: bool = True) -> None:
    """Write an .npz file, all of it or nothing; raises as `output.atomic.whole`."""
    with whole(path, overwrite=overwrite) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def couple_arrays(arrays: Mapping[str, Array], name: str) -> dict[str, Array]:
    """The arrays in the joint space of a coupling that is fitted to the anchors among them.

    Images and shots of before become `own_images` and `own_shots`. The logit scale is calibrated on
    held-out anchors, unless there is one. With `class_weights` and `class_names` the image
    encoder's classifier stands beside the coupling, as it does for images.

    Raises:
        UserError: a method that couples nothing, or arrays that are missing or do not fit.
    """
    coupling = methods.configure(name, {})
    if not isinstance(coupling, methods.Coupling):
        raise UserError(f"--coupling {name} couples no encoders; auto, asif, csa and others do")
    if {"own_images", "own_shots"} & arrays.keys():
        raise UserError(
            "--coupling makes own_images and own_shots of images and shots; the file has them"
        )
    needed = ("images", "texts", "anchor_images", "anchor_texts")
    taken = {n: n in needed for n in SHAPES if n in EMBEDDINGS | {"text_mask"}}
    tensors = to_tensors(arrays, f"--coupling {name}", taken)
    tensors |= {k: normalize(v) for k, v in tensors.items() if k in EMBEDDINGS}
    pairs = tensors["anchor_images"], tensors["anchor_texts"]
    fitted = open_coupling(name, {}, *pairs).fit(*pairs)
    if {"class_weights", "class_names"} <= tensors.keys():
        # a classifier's weights keep their lengths
        kind = tensors["class_weights"].dtype
        weights = torch.from_numpy(np.asarray(arrays["class_weights"])).to(kind)
        fitted = with_classes(fitted, weights, tensors["class_names"], *pairs, LABELS)
    mask = tensors.get("text_mask", torch.ones(tensors["texts"].shape[:2], dtype=torch.bool))
    joint = {
        "texts": map_present(fitted.map_texts, tensors["texts"], mask),
        "logit_scale": torch.tensor(calibrate(fitted, *pairs)),
    }
    for given in ("images", "shots", "bank", "views"):
        if given in tensors:
            rows = tensors[given]
            mapped = fitted.map_images(rows.flatten(0, -2))
            joint[given] = mapped.view(*rows.shape[:-1], -1)
            if given in ("images", "shots"):
                joint[f"own_{given}"] = rows
    used = {"anchor_images", "anchor_texts", "class_weights", "class_names"}
    others = {k: v for k, v in arrays.items() if k not in used | joint.keys() or k == "logit_scale"}
    return {k: v.numpy() for k, v in joint.items()} | others


def default_method(arrays: Mapping[str, Array]) -> str:
    """`evidence` if there are shots, else `ensemble`."""
    return "evidence" if {"shots", "shot_labels"} <= arrays.keys() else "ensemble"


def score_arrays(
    arrays: Mapping[str, Array], method: str, options: Mapping[str, Any]
) -> dict[str, Array]:
    """`scores [n c]`, and the tensors that the method learned, without the trailing `_`.

    Embeddings are normalised to unit length, except for couplings and methods with
    `wants_unnormalized`, which centre them first. Everything is computed in the precision of the
    arrays. Arrays that the method has no use for are ignored, so that one file serves several
    methods.

    `asif` without `k`, `p` and `center` chooses them on held-out anchors, as model sets do.

    Raises:
        UserError: an array that is unknown, missing, of a wrong shape or kind, or not finite.
    """
    scorer = methods.configure(method, options)
    if not hasattr(scorer, "scores"):
        raise UserError(f"method '{method}' does not score arrays")
    fit, score = (methods.parameters(scorer, verb) for verb in ("fit", "scores"))
    tensors = to_tensors(arrays, method, fit | score)
    if isinstance(scorer, methods.Coupling) and not isinstance(scorer, Auto):
        scorer = open_coupling(method, options, tensors["anchor_images"], tensors["anchor_texts"])
    if not isinstance(scorer, methods.Coupling) and not getattr(scorer, "shots_alone", False):
        _check_joint(method, tensors)
    unnormalized = getattr(scorer, "wants_unnormalized", False)
    if not unnormalized and not isinstance(scorer, methods.Coupling):
        tensors |= {k: normalize(v) for k, v in tensors.items() if k in EMBEDDINGS}
    if data := {name: tensors[name] for name in fit if name in tensors}:
        scorer = scorer.fit(**data)
    inputs: dict[str, Any] = {name: tensors[name] for name in score if name in tensors}
    if "logit_scale" in inputs:
        inputs["logit_scale"] = float(inputs["logit_scale"])
    scores = scorer.scores(**inputs)
    return {"scores": scores.numpy(), **_learned_tensors(scorer)}


def _check_joint(method: str, tensors: Mapping[str, Tensor]) -> None:
    """UserError for images and texts of different widths."""
    width, depth = tensors["images"].shape[1], tensors["texts"].shape[2]
    if width != depth:
        raise UserError(
            f"{method} compares images and texts in one space, but images are {width} wide and "
            f"texts {depth}: --coupling auto couples them by anchor_images and anchor_texts"
        )


def _learned_tensors(fitted: Any) -> dict[str, Array]:
    """The tensors of a method that are not its inputs; of a pipeline, those of each stage."""
    if hasattr(fitted, "stages"):
        return {
            f"{methods.name_of(stage)}.{name}": value
            for stage in fitted.stages
            for name, value in _learned_tensors(stage).items()
        }
    values = {f.name.removesuffix("_"): getattr(fitted, f.name) for f in fields(fitted)}
    return {
        name: value.numpy()
        for name, value in values.items()
        if isinstance(value, Tensor) and name not in SHAPES
    }


def to_tensors(
    arrays: Mapping[str, Array], method: str, parameters: Mapping[str, bool]
) -> dict[str, Tensor]:
    """The arrays among `parameters` as tensors, checked against `SHAPES`."""
    for name in arrays:
        if name not in SHAPES:
            raise unknown("array", name, SHAPES)
    missing = [name for name, needed in parameters.items() if needed and name not in arrays]
    if missing:
        raise UserError(
            f"{method} needs the array{'s' * (len(missing) > 1)} "
            + ", ".join(f"{name} [{SHAPES[name]}]" for name in missing)
            + f"; the file has {', '.join(sorted(arrays))}"
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
        _check_embeddings(name, tensors[name], mask if name == "texts" else None)
    if mask is not None and not mask.any(1).all():
        raise UserError("text_mask: a class has no prompt")
    for name in INDICES & tensors.keys():
        _check_classes(name, used[name], len(tensors["texts"]))
    for name in {"prior", "initial"} & tensors.keys():
        _check_finite(name, tensors[name])
    if "prior" in tensors:
        tensors["prior"] = _to_shares(tensors["prior"])
    return tensors


def _check_shape(name: str, array: Array, lengths: dict[str, tuple[int, str]]) -> None:
    """UserError for a wrong number of axes, kind of values, or a length unlike other arrays'."""
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


def _check_finite(name: str, tensor: Tensor) -> None:
    if not tensor.isfinite().all():
        raise UserError(f"array {name} has NaN or infinity")


def _check_embeddings(name: str, embeddings: Tensor, mask: Tensor | None) -> None:
    """UserError for NaN, infinity, or an embedding of zeros that the mask does not exclude."""
    _check_finite(name, embeddings)
    nonzero = embeddings.any(-1)
    if mask is not None:
        nonzero = nonzero | ~mask
    if not nonzero.all():
        index = (~nonzero).nonzero()[0].tolist()
        raise UserError(f"array {name}: embedding {index} is zero and has no direction")


def _check_classes(name: str, array: Array, classes: int) -> None:
    """UserError for values that are not the index of a class."""
    if (array != array.astype(np.int64)).any() or array.min() < 0 or array.max() >= classes:
        raise UserError(
            f"array {name}: values {array.min()} to {array.max()}; "
            f"expected whole numbers from 0 to {classes - 1}"
        )


def _to_shares(prior: Tensor) -> Tensor:
    """Counts or shares of the classes, as shares."""
    if (prior < 0).any() or not prior.any():
        raise UserError("array prior: expected counts or shares, none negative, not all zero")
    return prior / prior.sum()
