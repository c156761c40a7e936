"""Answers out of frozen vision and language models, with nothing trained.

import zeroshot
zeroshot.caption("photos/")
zeroshot.classify("photos/", ["cat", "dog"])
zeroshot.video.classify("clips/", ["cooking", "running"])
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zeroshot import video
    from zeroshot.api import caption, classify, embed, evaluate, load, search
    from zeroshot.api_located import detect, segment
    from zeroshot.api_texts import ask, match, read

__all__ = [
    "ask",
    "caption",
    "classify",
    "detect",
    "embed",
    "evaluate",
    "load",
    "match",
    "read",
    "search",
    "segment",
    "video",
]
LOCATED = ("detect", "segment")
TEXTS = ("ask", "match", "read")
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The functions of `api`, imported on first use: they bring torch along."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "video":
        return importlib.import_module("zeroshot.video")
    module = "api_texts" if name in TEXTS else "api_located" if name in LOCATED else "api"
    return getattr(importlib.import_module(f"zeroshot.{module}"), name)
