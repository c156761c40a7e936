"""Methods of other distributions, by the entry-point group `zeroshot.methods`.

    [project.entry-points."zeroshot.methods"]
    nearest = "my_package.nearest:Nearest"

The name on the left is the method's. Nothing of a distribution is imported before its method is
asked for, and one that cannot be imported concerns nobody who asks for another.
"""

import functools
import warnings
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from zeroshot.errors import UserError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "zeroshot.methods"
VERBS = ("scores", "caption", "attend")
"""The functions of which a method has one."""


@functools.cache
def plugins(taken: tuple[str, ...]) -> Mapping[str, "EntryPoint"]:
    """The entry points by the names of their methods; a name in `taken` is passed over, and said.

    Found once in a process: a distribution that is installed later is seen by the next one.
    """
    from importlib.metadata import entry_points  # slow

    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        name, whose = entry.name, distribution_of(entry)
        if not name.isidentifier() or name.startswith("_"):
            why = "which is no name: give letters, digits and _"
        elif name in taken:
            why = "which is the name of a built-in method"
        elif name in found and found[name].value != entry.value:
            why = f"which {distribution_of(found[name])} has too"
        else:
            found[name] = entry
            continue
        warnings.warn(
            f"the distribution {whose} calls a method '{name}', {why}; it is left out",
            UserWarning,
            stacklevel=2,
        )
    return found


def distribution_of(entry: "EntryPoint") -> str:
    """`my-package 1.0`."""
    return "?" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


def load_plugin(entry: "EntryPoint") -> type[Any]:
    """The class of an entry point.

    Raises:
        UserError: it cannot be imported, or is no method; the message names the distribution.
    """
    try:
        kind = entry.load()
    except Exception as error:  # code of others, which may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{_method(entry)} cannot be imported ({reason:.300})") from error
    if fault := fault_of(kind):
        raise UserError(f"{_method(entry)} {fault}")
    loaded: type[Any] = kind
    return loaded


def fault_of(kind: Any) -> str | None:
    """Why something is no class of a method; None if it is one."""
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return "is no dataclass: CONTRIBUTING.md shows what a method is"
    if not any(hasattr(kind, verb) for verb in VERBS):
        return f"has none of {', '.join(VERBS)}: CONTRIBUTING.md shows what a method is"
    return None


def _method(entry: "EntryPoint") -> str:
    return f"method '{entry.name}' of the distribution {distribution_of(entry)} ({entry.value})"
