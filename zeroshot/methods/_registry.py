"""Methods by name: the list of them, their options, the arrays they take."""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Mapping
from dataclasses import Field, fields
from numbers import Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from zeroshot.errors import UserError, unknown

PACKAGE = "zeroshot.methods"


def names() -> list[str]:
    """Every method, found by listing the folders of the package; nothing is imported."""
    folders = importlib.import_module(PACKAGE).__path__
    return sorted(m.name for m in pkgutil.iter_modules(folders) if not m.name.startswith("_"))


def get(name: str) -> type[Any]:
    """The method called `name`: the class in its file whose lower-case name equals the file's."""
    if name not in names():
        raise unknown("method", name, names())
    module = importlib.import_module(f"{PACKAGE}.{name}")
    wanted = name.replace("_", "")
    return next(c for n, c in vars(module).items() if isinstance(c, type) and n.lower() == wanted)


def name_of(method: object) -> str:
    """The name of a method's class or object: its file's; a pipeline's is `zpe+stata`."""
    if hasattr(method, "stages"):
        return "+".join(map(name_of, method.stages))
    kind = method if isinstance(method, type) else type(method)
    return kind.__module__.rpartition(".")[2]


def parameters(method: Any, verb: str) -> dict[str, bool]:
    """The arrays that `fit` or `scores` of a method takes, and whether each must be given."""
    if hasattr(method, "parameters"):
        taken: dict[str, bool] = method.parameters(verb)
        return taken
    if not hasattr(method, verb):
        return {}
    signature = inspect.signature(getattr(method, verb))
    return {
        name: p.default is p.empty for name, p in signature.parameters.items() if name != "self"
    }


# Options


def options(method: type[Any]) -> dict[str, Field[Any]]:
    """The options of a method: its dataclass fields but the learned ones."""
    return {f.name: f for f in fields(method) if not f.name.endswith("_")}


def values(method: Any) -> dict[str, Any]:
    """The option values of a configured method: `{"k": 800}`, in a pipeline `{"asif.k": 800}`."""
    if hasattr(method, "stages"):
        return {
            f"{name_of(stage)}.{key}": value
            for stage in method.stages
            for key, value in values(stage).items()
        }
    return {name: getattr(method, name) for name in options(type(method))}


def configure_method(name: str, given: Mapping[str, Any]) -> Any:
    """One method with these options; texts are read as the option's type.

    Raises:
        UserError: an unknown method or option, or a value that is not of the option's type.
    """
    method = get(name)
    known = options(method)
    hints = get_type_hints(method)
    for key in given:
        if key not in known:
            raise unknown(f"option of {name}", key, known)
    return method(**{key: _typed(name, key, value, hints[key]) for key, value in given.items()})


def _typed(method: str, key: str, value: Any, hint: Any) -> Any:
    """`value`, or the text of one, as the type `hint`.

    That is int, float, bool, str or a Literal of texts, or None.
    """
    if getattr(value, "ndim", None) == 0:  # a number of numpy or torch
        value = value.item()
    shown = " ".join(str(value).split())[:60]
    if type(None) in get_args(hint):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        hint = _without_none(hint)
    if get_origin(hint) is Literal:
        if isinstance(value, str) and value in get_args(hint):
            return value
        raise UserError(f"{method}: {key}={shown}; possible: {', '.join(get_args(hint))}")
    try:
        if hint is bool:
            return {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
        allowed: Any = str if hint is str else str | Real
        if isinstance(value, bool) or not isinstance(value, allowed):
            raise ValueError
        if hint is str:
            return value
        number = float(value)
        if not math.isfinite(number) or (hint is int and not number.is_integer()):
            raise ValueError
        return hint(value if isinstance(value, int) else number)
    except (ValueError, KeyError, OverflowError):
        kind = "a finite number" if hint is float else f"of type {hint.__name__}"
        raise UserError(f"{method}: {key}={shown}; {key} is {kind}") from None


def _without_none(hint: Any) -> Any:
    """`int` of `int | None`; any other hint as it is."""
    kinds = get_args(hint)
    return next(k for k in kinds if k is not type(None)) if type(None) in kinds else hint
