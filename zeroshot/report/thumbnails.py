"""Small images that are embedded in the page."""

import base64
import functools
import io

from zeroshot.errors import UnreadableImageError
from zeroshot.images.reading import open_image
from zeroshot.inputs.source import Source

SIDE = 320
"""Longer side in pixels."""


@functools.lru_cache(maxsize=4096)
def thumbnail(path: str) -> str:
    """A JPEG as a data URL; empty if the image cannot be read."""
    try:
        image = open_image(Source(path))
    except UnreadableImageError:
        return ""
    image.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
