"""All errors with a message for the user, and their exit codes on the command line.

The library raises them; only `cli.py` prints them. A message says what was given, what is possible
and what to do.
"""

import difflib
import os
from collections.abc import Iterable
from itertools import islice

MANY = 10_000
"""Entries of a folder among which a similar name is looked for."""


class ZeroshotError(Exception):
    """Base of all errors with a message for the user."""

    exit_code = 1


class UserError(ZeroshotError, ValueError):
    """Wrong usage: an unknown name, an option out of range, arrays of wrong shape."""

    exit_code = 2


class UnsupportedError(UserError):
    """What the models at hand cannot do, however it is asked: another model set may."""


class NoSuchPathError(UserError):
    """A path that the user named leads to nothing."""


class NoCacheError(UserError):
    """No cache can be kept in its folder: a full or read-only disk, or permission denied."""


class NotAvailableError(ZeroshotError, RuntimeError):
    """A model or data set is neither on this disk nor reachable."""

    exit_code = 4


class OutputError(ZeroshotError, OSError):
    """An output cannot be written: the disk is full, it is unreachable, or others changed it."""

    exit_code = 4


class UnreadableImageError(ZeroshotError, OSError):
    """An image cannot be read; the run continues, and the image's row has the reason."""


class ApproximateWarning(UserWarning):
    """The neighbour search is approximate; the message has its recall."""


class UnsuitableWarning(UserWarning):
    """A method is given what it is not made for; the message says what to take instead."""


class FewClassesWarning(UnsuitableWarning):
    """A method assumes equally frequent classes, but few of them seem to be present."""


def counted(number: int, what: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def no_such(path: str | os.PathLike[str], what: str = "file") -> NoSuchPathError:
    """`no such file 'photo/a.png'; did you mean 'photos/a.png'?`, by what this disk has."""
    close = near(os.fspath(path))
    hint = f"; did you mean '{close}'?" if close else ""
    return NoSuchPathError(f"no such {what} '{path}'{hint}")


def near(path: str) -> str | None:
    """The path that is there and differs from this one by the spelling of one part, if any."""
    if "://" in path:
        return None
    folder, rest = path.rstrip("/" + os.sep), ""
    while True:  # up to the first part that is not there
        folder, name = os.path.split(folder)
        if not name or os.path.isdir(folder or "."):
            break
        rest = os.path.join(name, rest) if rest else name
    try:
        with os.scandir(folder or ".") as entries:
            names = [entry.name for entry in islice(entries, MANY)]
    except OSError:
        return None
    stem, suffix = os.path.splitext(name.lower())
    stems = {os.path.splitext(each.lower())[0] for each in names}
    for close in difflib.get_close_matches(stem, stems, n=1, cutoff=0.7):
        alike = [each for each in names if os.path.splitext(each.lower())[0] == close]
        best = min(alike, key=lambda each: (not each.lower().endswith(suffix), each))
        found = os.path.join(folder, best)
        whole = os.path.join(found, rest) if rest else found
        return whole if os.path.lexists(whole) else found
    return None


def unknown(what: str, given: str, available: Iterable[str]) -> UserError:
    """`unknown method 'asf'; did you mean 'asif'? available: asif, ensemble, magic`."""
    names = sorted(available)
    close = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return UserError(
        f"unknown {what} '{given:.200}'; {hint}available: {', '.join(names) or 'none'}"
    )
