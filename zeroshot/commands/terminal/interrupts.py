"""Ctrl-C: the first one ends the run in order, a later one at once.

Some launchers pass a Ctrl-C on that the terminal has sent to the process already, so another one
within `GRACE` seconds counts as the same. Whatever a run has written stays at any moment: the
process may be ended like this as it may be killed.
"""

import os
import signal
import sys
import time
from types import FrameType

INTERRUPTED = 130
GRACE = 1.0
"""Seconds in which several Ctrl-C are one."""


class _Interrupts:
    """What was pressed."""

    first: float | None = None
    ended: int | None = None
    """The exit code of the command, once it is known."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signal."""
        if self.first is None and self.ended is None:
            self.first = time.monotonic()
            raise KeyboardInterrupt
        if self.ended is not None:
            os._exit(self.ended)  # only threads that wait for something are left
        if time.monotonic() - (self.first or 0) > GRACE:
            at_once()


def at_once() -> None:
    """End the process now, with the terminal's cursor visible."""
    show = "\x1b[?25h" if sys.stderr is not None and sys.stderr.isatty() else ""
    message = f"{show}interrupted twice: ended at once; what was written so far stays\n"
    try:
        os.write(2, message.encode())
    finally:
        os._exit(INTERRUPTED)


_INTERRUPTS = _Interrupts()


def install() -> None:
    """Handle Ctrl-C, unless this process was started to ignore it (`nohup`, `&` in a script)."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _INTERRUPTS)


def finished(code: int) -> None:
    """The command is done, and what is left are threads of libraries."""
    _INTERRUPTS.ended = code
