"""The beginning and the end of the process of a command, without work that nobody needs.

Imports make a million objects that stay, and Python looks for garbage among them again and again;
at the end it takes them apart one by one. Both together take as long as importing torch.
"""

import atexit
import contextlib
import gc
import os
import sys
import threading
from typing import NoReturn

OBJECTS = 50_000
"""New objects after which Python looks for garbage: far more than by default."""


def begin() -> None:
    """Look for garbage less often."""
    gc.set_threshold(OBJECTS, 20, 20)


def keep() -> None:
    """Look for no garbage among what is there now, for a process that answers until it is stopped.

    Taking apart the million objects of libraries and models takes a quarter of a second, again and
    again, in which all requests wait.
    """
    gc.collect()
    gc.freeze()


def end(code: int) -> NoReturn:
    """End the process with this code, after what was to be done at its end.

    While another thread runs that Python would wait for, it ends as any process of Python does.
    """
    main = threading.main_thread()
    if any(not t.daemon for t in threading.enumerate() if t is not main):
        sys.exit(code)
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)
