"""The arguments of the functions of `import zeroshot`, checked as the command line checks its own.

A function's annotations say which types an argument has, the options of its task in which range a
number is. What means the same is turned into it: an int of numpy into an int, a generator into a
tuple, the path of a list of labels into text. Everything else is a `UserError`.
"""

import collections.abc
import functools
import inspect
import math
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from zeroshot.errors import UserError, unknown
from zeroshot.inputs.resolve import no_image, one_input
from zeroshot.inputs.source import Source
from zeroshot.inputs.text_files import whole_text
from zeroshot.models.isolation import own_state
from zeroshot.tasks.options import OptionSpec, check_number, option_of

__all__ = ["checks_arguments"]

P = ParamSpec("P")
R = TypeVar("R")

OTHER = object()
"""In place of a value that is not of a type."""
SHOWN = 60
"""Letters of a wrong value that a message shows."""
WORDS = {
    str: ["a text"],
    Path: ["a path"],
    int: ["a whole number"],
    float: ["a number"],
    bool: ["True", "False"],
    type(None): ["None"],
}


def checks_arguments(
    *options: type[Any], **more: OptionSpec
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check what a function is called with, and run it in torch's state as we need it.

    `options` are the dataclasses whose fields are its keywords; `more` are declared here.
    """
    known = {field.name: option_of(field) for kind in options for field in fields(kind)} | more

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        hints = functools.cache(lambda: get_type_hints(function))

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            given = _bind(function.__name__, signature, args, kwargs)
            for name, value in given.arguments.items():
                if signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
                    given.arguments[name] = _checked(name, value, hints()[name], known.get(name))
            with own_state():
                return function(*given.args, **given.kwargs)

        return call

    return decorate


def _bind(
    name: str, signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        for key in kwargs.keys() - signature.parameters.keys():
            raise unknown(f"argument of {name}", key, signature.parameters) from None
        raise UserError(f"{name}: {error}") from None


def _checked(name: str, value: Any, hint: Any, known: OptionSpec | None) -> Any:
    """The value as the hint has it; UserError for another type, or out of the option's range."""
    found = _as(name, value, hint)
    if found is OTHER:
        raise _wrong(name, value, hint)
    if isinstance(found, int | float) and known is not None:
        check_number(name, found, known)
    is_text = known is not None and known.typed is not Path and Source not in _alternatives(hint)
    if isinstance(found, Path) and is_text:
        if not os.path.isfile(found):  # as a text it would be taken for a label
            raise UserError(f"{name}: there is no file '{found}'")
        return str(found)
    return found


def _as(name: str, value: Any, hint: Any) -> Any:
    """The value as the hint has it, `OTHER` if it is none; UserError for a wrong part of it."""
    if hint is Any:
        return value
    kinds = _alternatives(hint)
    if Source in kinds and (image := one_input(value, name)) is not None:
        return image
    for kind in kinds:
        found = _as_one(name, value, kind)
        if found is not OTHER:
            return _whole(name, found, Path in kinds) if isinstance(found, str) else found
    return OTHER


def _whole(name: str, text: str, may_be_path: bool) -> str:
    """The text; UserError for one that is not UTF-8, but for the name of a file that is not."""
    if "\0" in text:
        raise UserError(f"{name}: {text!r:.{SHOWN}} has a null character")
    return whole_text(text, name, "surrogateescape" if may_be_path else "strict")


def _as_one(name: str, value: Any, kind: Any) -> Any:
    """As `_as`, for a hint that is no union."""
    container = get_origin(kind)
    if container is Literal:
        return value if isinstance(value, str) and value in get_args(kind) else OTHER
    if container in (collections.abc.Iterable, collections.abc.Sequence):
        return _as_tuple(name, value, get_args(kind)[0])
    if container is not None:
        key_kind, item_kind = get_args(kind)
        if not isinstance(value, Mapping):
            return OTHER
        return {
            _part(f"a key of {name}", key, key_kind): _part(f"{name}[{key!r}]", item, item_kind)
            for key, item in value.items()
        }
    if kind is bool:
        return bool(value) if isinstance(value, bool | np.bool_) else OTHER
    if isinstance(value, bool) and kind in (int, float):
        return OTHER
    if kind is int:
        return int(value) if isinstance(value, Integral) else OTHER
    if kind is float:
        return _as_float(value)
    if kind is Path and isinstance(value, os.PathLike) and isinstance(os.fspath(value), str):
        return Path(value)
    return value if isinstance(value, kind) else OTHER


def _as_float(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, Real) else OTHER
    except OverflowError:
        return math.inf


def _as_tuple(name: str, value: Any, item_kind: Any) -> Any:
    """A list, a generator, an array with one axis, ...; a text, a set and a file are none."""
    single = isinstance(value, str | bytes | bytearray | memoryview) or hasattr(value, "read")
    if single or isinstance(value, Mapping | set | frozenset | os.PathLike):
        return OTHER
    if hasattr(value, "tolist") and Source not in _alternatives(item_kind):
        value = value.tolist()  # an array of numpy or torch
    if not isinstance(value, Iterable) or getattr(value, "ndim", 1) != 1:
        return OTHER
    return tuple(_part(f"{name}[{i}]", item, item_kind) for i, item in enumerate(value))


def _part(name: str, value: Any, hint: Any) -> Any:
    found = _as(name, value, hint)
    if found is OTHER:
        raise _wrong(name, value, hint)
    if isinstance(found, float):
        check_number(name, found)
    return found


def _wrong(name: str, value: Any, hint: Any) -> UserError:
    if Source in _alternatives(hint):
        return no_image(value, name)
    shown = repr(value)
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
    return UserError(f"{name} is {shown}, and has to be {_in_words(hint)}")


def _in_words(hint: Any) -> str:
    """`a text, a path or a list of texts`."""
    words = [word for kind in _alternatives(hint) for word in _words_of(kind)]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _words_of(kind: Any) -> Sequence[str]:
    container = get_origin(kind)
    if container is Literal:
        return [repr(choice) for choice in get_args(kind)]
    if container is collections.abc.Mapping:
        return ["a dict"]
    if container is not None:
        return [f"a list of {WORDS[get_args(kind)[0]][0].removeprefix('a ')}s"]
    name = getattr(kind, "__name__", str(kind))
    return WORDS.get(kind) or [f"an {name}" if name[0] in "AEIO" else f"a {name}"]


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The parts of a union; a hint that is none, alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
