"""Methods by name: the list of them, their options, the arrays they take."""

import functools
import importlib
import inspect
import math
import pkgutil
from collections.abc import Mapping
from dataclasses import Field, fields
from numbers import Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from zeroshot.errors import UserError, unknown
from zeroshot.methods._plugins import fault_of, load_plugin, plugins

PACKAGE = "zeroshot.methods"


def built_in() -> tuple[str, ...]:
    """The methods of this package, found by listing its folder; nothing is imported."""
    return _listed(*importlib.import_module(PACKAGE).__path__)


@functools.cache
def _listed(*folders: str) -> tuple[str, ...]:
    found = pkgutil.iter_modules(folders)
    return tuple(sorted(module.name for module in found if not module.name.startswith("_")))


def names() -> list[str]:
    """Every method, those of other distributions included; none of them is imported."""
    own = built_in()
    return sorted([*own, *plugins(own)])


def with_verb(verb: str) -> list[str]:
    """The methods that have this function: `scores`, `caption`, `attend`, `map_images`."""
    return [name for name in names() if hasattr(_get_if_sound(name), verb)]


def _get_if_sound(name: str) -> type[Any] | None:
    """The method; None for one of another distribution that cannot be imported."""
    if name in built_in():
        return get(name)
    try:
        return get(name)
    except UserError:
        return None


def get(name: str) -> type[Any]:
    """The method called `name`: the class in its file whose lower-case name equals the file's.

    Raises:
        UserError: there is none, or another distribution has it and it cannot be imported.
    """
    own = built_in()
    if name not in own:
        others = plugins(own)
        if name in others:
            return load_plugin(others[name])
        raise unknown("method", name, names())
    module = importlib.import_module(f"{PACKAGE}.{name}")
    wanted = name.replace("_", "")
    return next(c for n, c in vars(module).items() if isinstance(c, type) and n.lower() == wanted)


def name_of(method: object) -> str:
    """The name of a method's class or object: its file's; a pipeline's is `zpe+stata`.

    That of another distribution is the entry point's; a class of your own has its own name.
    """
    if hasattr(method, "stages"):
        return "+".join(map(name_of, method.stages))
    kind = method if isinstance(method, type) else type(method)
    folder, _, file = kind.__module__.rpartition(".")
    if folder == PACKAGE:
        return file
    value = f"{kind.__module__}:{kind.__qualname__}"
    others = plugins(built_in()).items()
    return next((name for name, entry in others if entry.value == value), kind.__qualname__)


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
    return _configured(name, get(name), given)


def configure_own(method: Any, given: Mapping[str, Any]) -> Any:
    """A method that is an object already, or a class with these options.

    Raises:
        UserError: it is none; options for an object, which has its own; a wrong option.
    """
    if fault := fault_of(method if isinstance(method, type) else type(method)):
        raise UserError(f"method {method!r:.80} {fault}")
    if isinstance(method, type):
        return _configured(name_of(method), method, given)
    if given:
        raise UserError(
            f"method {name_of(method)} is an object with options of its own, so "
            f"{', '.join(sorted(given))} cannot be given beside it"
        )
    return method


def _configured(name: str, method: type[Any], given: Mapping[str, Any]) -> Any:
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
