"""Answers out of frozen vision and language models, with nothing trained.

import zeroshot
zeroshot.caption("photos/")
zeroshot.classify("photos/", ["cat", "dog"])
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zeroshot.api import caption, classify, embed, evaluate, load, search

__all__ = ["caption", "classify", "embed", "evaluate", "load", "search"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The functions of `api`, imported on first use: they bring torch along."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("zeroshot.api"), name)
