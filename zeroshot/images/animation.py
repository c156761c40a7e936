"""Frames of animated images (GIF, WebP, APNG), decoded by Pillow.

Each frame is shown for its own delay. A delay of 10 milliseconds or less counts as 100, as in
browsers, because files without delays state 0. The number of repetitions is ignored.
"""

import bisect
import itertools
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction

from PIL.Image import Image
from PIL.ImageFile import ImageFile

from zeroshot.errors import UnreadableImageError
from zeroshot.images.pixels import OPENERS, upright
from zeroshot.models.base import VideoFile

__all__ = ["ANIMATED", "animated_frames", "kind_of"]

ANIMATED = ("GIF", "WebP", "PNG")
MAX_FRAMES = 10_000
MANY_PIXELS = 300_000_000
"""Limit of the pixels of all frames that are in memory together."""
SHORTEST, INSTEAD = 10, 100
"""Milliseconds: a delay up to the first number counts as the second."""


def kind_of(head: bytes) -> str | None:
    """The format, one of `ANIMATED`, of a file that starts with these bytes; else None."""
    return next((kind for kind in ANIMATED if OPENERS[kind][0].match(head)), None)


def animated_frames(
    file: VideoFile, kind: str, count: int, max_pixels: int, deadline: float
) -> list[Image]:
    """The frames shown in the middle of `count` equal parts of the time: upright, RGB.

    Raises:
        UnreadableImageError: the image is not animated, is damaged, or exceeds a limit:
            `MAX_FRAMES`, `max_pixels` per frame, `deadline` seconds.
    """
    until = time.monotonic() + deadline
    try:
        with OPENERS[kind][1](file) as image:
            ends = list(itertools.accumulate(_delays(image, max_pixels, until)))
            if len(ends) < 2:
                raise UnreadableImageError(f"no clip, but a {kind} picture that stands still")
            middles = [Fraction(ends[-1] * (2 * i + 1), 2 * count) for i in range(count)]
            shown = [bisect.bisect_right(ends, at) for at in middles]
            return _frames(image, shown, max_pixels, kind)
    except UnreadableImageError:
        raise
    except Exception as error:  # decoders raise every type of exception for broken files
        raise UnreadableImageError(f"a damaged {kind} ({error})") from error


def _delays(image: ImageFile, max_pixels: int, until: float) -> Iterator[int]:
    """The delay of each frame in milliseconds; decodes every frame, so that damage is detected."""
    for number in itertools.count():
        _within(image, number, max_pixels, until)
        try:
            image.seek(number)
        except EOFError:
            return
        _within(image, number, max_pixels, until)
        image.load()
        delay = round(image.info.get("duration") or 0)
        yield delay if delay > SHORTEST else INSTEAD


def _within(image: ImageFile, number: int, max_pixels: int, until: float) -> None:
    if image.width * image.height > max_pixels:
        limit = f"{max_pixels / 1e6:g} megapixels"
        raise UnreadableImageError(
            f"frames of {image.width} x {image.height} pixels are more than {limit}"
        )
    if number > MAX_FRAMES:
        raise UnreadableImageError(f"more than {MAX_FRAMES} frames")
    if time.monotonic() > until:
        raise UnreadableImageError("takes too long to decode")


def _frames(image: ImageFile, shown: Sequence[int], max_pixels: int, kind: str) -> list[Image]:
    """The frames with these numbers, which must ascend."""
    frames: dict[int, Image] = {}
    total = len(set(shown)) * image.width * image.height
    if total > MANY_PIXELS:
        raise UnreadableImageError(
            f"{len(set(shown))} frames of {image.width} x {image.height} pixels are more than "
            f"{MANY_PIXELS / 1e6:g} megapixels"
        )
    for number in dict.fromkeys(shown):
        image.seek(number)
        frames[number] = upright(image, max_pixels, kind)
    return [frames[number] for number in shown]
