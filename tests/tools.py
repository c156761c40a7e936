"""The scripts of tools/pocket as modules: the renderer and what is measured with it."""

import importlib
import sys
from pathlib import Path

POCKET = str(Path(__file__).parent.parent / "tools" / "pocket")


def world(name="world"):
    """A script of tools/pocket; they import each other by their bare names."""
    sys.path.insert(0, POCKET)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(POCKET)
