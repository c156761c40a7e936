"""Small images that are embedded in the page."""

import functools

from zeroshot.inputs.source import Source
from zeroshot.results import result

SIDE = 320
"""Longer side in pixels."""


@functools.lru_cache(maxsize=4096)
def thumbnail(path: str, side: int = SIDE) -> str:
    """A JPEG as a data URL; empty if the image cannot be read."""
    return result.thumbnail(Source(path), side)
