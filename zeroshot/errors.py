"""All errors with a message for the user, and their exit codes on the command line.

The library raises them; only `cli.py` prints them. A message says what was given, what is possible
and what to do.
"""

import difflib
from collections.abc import Iterable


class ZeroshotError(Exception):
    """Base of all errors with a message for the user."""

    exit_code = 1


class UserError(ZeroshotError, ValueError):
    """Wrong usage: an unknown name, an option out of range, arrays of wrong shape."""

    exit_code = 2


class UnsupportedError(UserError):
    """What the models at hand cannot do, however it is asked: another model set may."""


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


def unknown(what: str, given: str, available: Iterable[str]) -> UserError:
    """`unknown method 'asf'; did you mean 'asif'? available: asif, ensemble, magic`."""
    names = sorted(available)
    close = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return UserError(f"unknown {what} '{given}'; {hint}available: {', '.join(names) or 'none'}")
