"""The failures a person can meet, each with the exit code the command line ends with.

Libraries raise these; only `cli.py` prints them. A message says what was given, what is possible
and what to do.
"""

import difflib
from collections.abc import Iterable


class ZeroshotError(Exception):
    """Base of every failure that has a message meant for a person."""

    exit_code = 1


class UserError(ZeroshotError, ValueError):
    """Wrong usage: an unknown name, an option out of range, arrays that do not fit."""

    exit_code = 2


class NotAvailableError(ZeroshotError, RuntimeError):
    """A model or a data set is neither on this disk nor reachable."""

    exit_code = 4


class OutputError(ZeroshotError, OSError):
    """An output cannot be written any further: no room on the disk, no right to, it went away."""

    exit_code = 4


class UnreadableImageError(ZeroshotError, OSError):
    """One picture cannot be read; the run goes on and the picture's row says why."""


class ApproximateWarning(UserWarning):
    """Neighbours are searched approximately; the message has the recall."""


class FewClassesWarning(UserWarning):
    """A method takes all classes as equally frequent, and few of them seem present."""


def unknown(what: str, given: str, available: Iterable[str]) -> UserError:
    """`unknown method 'asf'; did you mean 'asif'? available: asif, ensemble, magic`."""
    names = sorted(available)
    close = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return UserError(f"unknown {what} '{given}'; {hint}available: {', '.join(names) or 'none'}")
