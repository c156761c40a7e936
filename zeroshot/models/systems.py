"""Systems that the field speaks of by name: the command that runs each, or what supersedes it.

`systems.toml` is the table. A system's name alone names no model (there are hundreds of CLIPs), so
the error gives a command. For a system without public weights it says what supersedes it, and the
exit code is that of a model that is not available.
"""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from zeroshot.errors import NotAvailableError, UserError

__all__ = ["System", "check_is_no_system", "encoder_rows", "systems"]


@dataclass(frozen=True)
class System:
    """One system: `command` runs it, or `instead` runs what supersedes it."""

    name: str
    about: str
    command: str | None = None
    instead: str | None = None
    encoders: Mapping[str, int] = field(default_factory=dict)
    """Names of some models of a family of encoders, each with its parameters in millions."""
    licence: str = ""
    """Of the weights; empty if it was not found, as `languages`."""
    languages: str = ""


@cache
def systems() -> tuple[System, ...]:
    """All systems, in the order of the table."""
    table = (resources.files("zeroshot.models") / "systems.toml").read_text("utf-8")
    return tuple(
        System(name, **{"command": _encoding(entry), **entry})
        for name, entry in tomllib.loads(table).items()
    )


def _encoding(entry: dict[str, Any]) -> str | None:
    """The command that runs the first model of a family of encoders."""
    first = next(iter(entry.get("encoders", ())), None)
    return first and f"zeroshot classify photos/ --labels cat,dog --encoder {first}"


def encoder_rows() -> tuple[tuple[str, ...], list[tuple[str, str, str, str, str, str]]]:
    """The heads and the rows of the table of encoders."""
    heads = ("family", "name", "parameters", "licence", "languages", "for")
    unknown = "not checked"
    return heads, [
        (
            s.name,
            name,
            f"{size} M",
            s.licence or unknown,
            s.languages or unknown,
            s.about,
        )
        for s in systems()
        for name, size in s.encoders.items()
    ]


def check_is_no_system(name: str) -> None:
    """Raise an error with the command to use if `name` is that of a system.

    UserError for a system with public weights, whose name does not say which. NotAvailableError for
    one without.
    """
    by_key = {_key(system.name): system for system in systems()}
    close = difflib.get_close_matches(_key(name), by_key, n=1, cutoff=0.85)
    system = by_key[close[0]] if close else None
    if system is None:
        return
    if system.command is None:
        raise NotAvailableError(
            f"{system.name} is not available: {system.about}: `{system.instead}`"
        )
    other = "" if _key(system.name) == _key(name) else f"close to {system.name}, "
    raise UserError(
        f"'{name}' is {other}a system, of which there may be many models ({system.about}); name "
        f"one, for example: `{system.command}`"
    )


def _key(name: str) -> str:
    """Spelling without case, dashes and spaces."""
    return name.lower().translate(str.maketrans("", "", "-_ "))
