"""One door for all methods: what somebody calls them with is checked before they compute.

A class that derives from `Method` has its functions wrapped when it is created. Each argument is
held against its own annotation, `Float[Tensor, "c t d"]`: its kind, its axes, the lengths of axes
that others share, and those of what the method has learned. What means the same is converted
(arrays of numpy, lists, whole numbers for embeddings, `[c d]` for one prompt a class, float32
beside float64); everything else is one sentence. What methods call of each other is not checked
again.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from zeroshot.errors import UserError

VERBS = (
    *("fit", "scores", "refine", "adjust", "cosines"),
    *("map_images", "map_texts", "caption", "decompose", "recompose"),
)
COMPARED = {"images", "texts", "views", "bank"}
"""Embeddings that are compared by their dot products, so their lengths have to be 1."""
EMBEDDINGS = {*COMPARED, "shots", "own_images", "own_shots"}
"""All embeddings; methods that learn from shots learn their lengths too."""
ANY_LENGTH = ("wants_unnormalized", "shots_alone")
"""Attributes of methods whose embeddings may have any length."""
TOLERANCE = 0.02
"""Of the length of a unit vector; bfloat16 is off by up to 0.004."""
SHARED = {"c", "d", "e"}
"""Axes of a learned tensor that new arguments must agree with: classes, widths."""

_inside: ContextVar[bool] = ContextVar("inside a method", default=False)


class Method:
    """Base of the methods; one that derives from it is checked at its door."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        for verb in VERBS:
            if inspect.isfunction(own := vars(cls).get(verb)):
                setattr(cls, verb, _guarded(own))


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)
    declared = {name: _array(p.annotation) for name, p in signature.parameters.items()}
    hints = {name: hint for name, hint in declared.items() if hint is not None}

    @functools.wraps(function)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _inside.get():
            return function(self, *args, **kwargs)
        door = _Door(self, function.__name__)
        try:
            given = signature.bind(self, *args, **kwargs)
        except TypeError as error:
            raise UserError(f"{door.name}: {error}") from None
        given.arguments |= door.checked(given.arguments, hints)
        token = _inside.set(not door.pipeline)
        try:
            return function(*given.args, **given.kwargs)
        finally:
            _inside.reset(token)

    return call


def _array(annotation: Any) -> Any:
    """The jaxtyping hint of an annotation, of `... | None` too; None if it has none."""
    for kind in (annotation, *get_args(annotation)):
        if hasattr(kind, "dim_str"):
            return kind
    return None


class _Door:
    """The checks of one call."""

    def __init__(self, method: Any, verb: str) -> None:
        self.name = f"{type(method).__name__}.{verb}"
        self.verb = verb
        self.coupling = hasattr(method, "map_images")
        self.pipeline = hasattr(method, "stages")
        """Its stages check what is theirs: extras, lengths."""
        self.unit = not (self.pipeline or any(getattr(method, x, False) for x in ANY_LENGTH))
        self.lengths: dict[str, tuple[int, str]] = {}
        self.learned: Tensor | None = None
        """One floating tensor of the method's own, for the dtype and the device."""
        if verb != "fit" and not self.coupling and is_dataclass(method):
            self._read_learned(method)

    def checked(self, given: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that the method computes with."""
        found: dict[str, Any] = {}
        for name, value in given.items():
            if name == "logit_scale":
                found[name] = self._number(name, value)
            elif name in hints and value is not None:
                found[name] = self._tensor(name, value, hints[name])
        tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
        self._check_devices(tensors)
        found |= self._in_one_dtype(tensors, hints)
        mask = found.get("text_mask")
        if mask is not None and not mask.any(1).all():
            self._refuse("text_mask", f"class {int((~mask.any(1)).nonzero()[0])} has no prompt")
        for name in tensors:
            self._check_values(name, found[name], mask if name == "texts" else None)
        return found

    def _read_learned(self, method: Any) -> None:
        for field in fields(method):
            value, hint = getattr(method, field.name, None), _array(field.type)
            if not (field.name.endswith("_") and isinstance(value, Tensor)):
                continue
            if self.learned is None and value.is_floating_point():
                self.learned = value
            axes = hint.dim_str.split() if hint is not None else []
            for axis, length in zip(axes, value.shape, strict=False):
                if axis in SHARED:
                    self.lengths.setdefault(
                        axis, (length, f"what it was fitted with ({field.name})")
                    )

    def _refuse(self, name: str, why: str) -> None:
        raise UserError(f"{self.name}: {name}: {why}")

    def _number(self, name: str, value: Any) -> float:
        try:
            number = float(value.item() if hasattr(value, "item") else value)
        except (TypeError, ValueError, RuntimeError):
            number = float("nan")
        if not (np.isfinite(number) and number > 0):
            self._refuse(name, f"{value!s:.60}, and has to be a positive number, as 100.0")
        return number

    def _tensor(self, name: str, value: Any, hint: Any) -> Tensor:
        """As a tensor of the hint's axes."""
        if not isinstance(value, Tensor):
            array = np.asarray(value) if hasattr(value, "__array__") else _of_list(value)
            if array is None or array.dtype.kind not in "fiub":
                kind = type(value).__name__ if array is None else f"{array.dtype} values"
                self._refuse(name, f"{kind}; expected a tensor or an array [{hint.dim_str}]")
            value = torch.from_numpy(np.array(array))  # a copy: it may be read-only
        tensor: Tensor = value
        axes = hint.dim_str.split()
        if name == "texts" and len(axes) == 3 and tensor.ndim == 2:
            tensor = tensor[:, None]  # one prompt for each class
        if any(axis.startswith("*") for axis in axes):
            return tensor
        if tensor.ndim != len(axes):
            self._refuse(name, f"shape {list(tensor.shape)}, expected [{' '.join(axes)}]")
        for axis, length in zip(axes, tensor.shape, strict=True):
            if axis.startswith("_"):
                continue
            known, where = self.lengths.setdefault(axis, (length, name))
            if known != length:
                self._refuse(
                    name,
                    f"shape {list(tensor.shape)} for [{' '.join(axes)}], but {axis} is {known} in "
                    f"{where}",
                )
        return tensor

    def _check_devices(self, tensors: Mapping[str, Tensor]) -> None:
        where = {name: value.device for name, value in tensors.items()}
        if self.learned is not None:
            where["what it was fitted with"] = self.learned.device
        if len(set(where.values())) > 1:
            shown = ", ".join(f"{name} on {device}" for name, device in where.items())
            raise UserError(f"{self.name}: {shown}; move them to one device with .to(...)")

    def _in_one_dtype(
        self, tensors: Mapping[str, Tensor], hints: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Kinds as annotated; floating tensors in the method's own dtype, else in the widest."""
        kinds = {name: hints[name].dtype.__name__ for name in tensors}
        dtype = None if self.learned is None else self.learned.dtype
        for name, value in tensors.items():
            if self.learned is None and kinds[name] == "Float":
                own = value.dtype if value.is_floating_point() else torch.float32
                dtype = own if dtype is None else torch.promote_types(dtype, own)
        found: dict[str, Tensor] = {}
        for name, value in tensors.items():
            if kinds[name] == "Bool":
                if value.dtype != torch.bool and not ((value == 0) | (value == 1)).all():
                    self._refuse(name, f"{value.dtype} values; a mask is True and False")
                found[name] = value.bool()
            elif kinds[name] == "Int":
                if value.is_floating_point() and (value != value.round()).any():
                    self._refuse(name, "numbers of classes are whole numbers from 0")
                found[name] = value.long()
            elif kinds[name] == "Float":
                found[name] = value.to(dtype)
        return found

    def _check_values(self, name: str, value: Tensor, mask: Tensor | None) -> None:
        if not value.is_floating_point():
            return
        if self.coupling:
            return  # these check their embeddings themselves, block by block
        if name not in EMBEDDINGS or self.verb == "adjust":
            if value.isnan().any():
                self._refuse(name, "has NaN")
            return
        length = torch.linalg.vector_norm(value, dim=-1, dtype=_at_least_float32(value.dtype))
        if mask is not None:
            length = length[mask]
        if not length.isfinite().all():
            self._refuse(name, "has NaN or infinity")
        if (length == 0).any():
            self._refuse(name, "an embedding is zero and has no direction")
        if name in COMPARED and self.unit and ((length - 1).abs() > TOLERANCE).any():
            ends = dict.fromkeys(f"{float(x):.3g}" for x in (length.min(), length.max()))
            self._refuse(
                name,
                f"lengths {' to '.join(ends)}, and they have to be unit vectors; pass "
                f"zeroshot.ops.normalize({name})",
            )


def _of_list(value: Any) -> Any:
    """Nested lists as an array; None for anything else."""
    if not isinstance(value, list | tuple):
        return None
    try:
        return np.array(
            [x.detach().cpu().numpy() if isinstance(x, Tensor) else x for x in value],
        )
    except (ValueError, TypeError):
        return None


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
