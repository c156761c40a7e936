"""Frames of animated pictures: GIF, WebP and APNG, by Pillow; nothing has to be installed.

A frame's own delay says how long it is shown. One of 10 milliseconds or less counts as 100, as in
browsers: files without any say 0. How often an animation is repeated plays no part.
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
SHORTEST, INSTEAD = 10, 100
"""Milliseconds: a delay that is no longer than the first is taken for the second."""


def kind_of(head: bytes) -> str | None:
    """The format, one of `ANIMATED`, of a file that begins so."""
    return next((kind for kind in ANIMATED if OPENERS[kind][0].match(head)), None)


def animated_frames(
    file: VideoFile, kind: str, count: int, max_pixels: int, deadline: float
) -> list[Image]:
    """The frames shown in the middle of `count` equal parts of the time: upright, RGB.

    Raises:
        UnreadableImageError: a picture that stands still, a damaged one, or one beyond the limits:
            `MAX_FRAMES`, `max_pixels` each, `deadline` seconds.
    """
    until = time.monotonic() + deadline
    try:
        with OPENERS[kind][1](file) as picture:
            ends = list(itertools.accumulate(_delays(picture, max_pixels, until)))
            if len(ends) < 2:
                raise UnreadableImageError(f"no clip, but a {kind} picture that stands still")
            middles = [Fraction(ends[-1] * (2 * i + 1), 2 * count) for i in range(count)]
            shown = [bisect.bisect_right(ends, at) for at in middles]
            return _frames(picture, shown, max_pixels, kind)
    except UnreadableImageError:
        raise
    except Exception as error:  # decoders meet broken files with every kind of exception
        raise UnreadableImageError(f"a damaged {kind} ({error})") from error


def _delays(picture: ImageFile, max_pixels: int, until: float) -> Iterator[int]:
    """Milliseconds that each frame is shown; every one is decoded, so that damage is found."""
    for number in itertools.count():
        _within(picture, number, max_pixels, until)
        try:
            picture.seek(number)
        except EOFError:
            return
        _within(picture, number, max_pixels, until)
        picture.load()
        delay = round(picture.info.get("duration") or 0)
        yield delay if delay > SHORTEST else INSTEAD


def _within(picture: ImageFile, number: int, max_pixels: int, until: float) -> None:
    if picture.width * picture.height > max_pixels:
        limit = f"{max_pixels / 1e6:g} megapixels"
        raise UnreadableImageError(
            f"frames of {picture.width} x {picture.height} pixels are more than {limit}"
        )
    if number > MAX_FRAMES:
        raise UnreadableImageError(f"more than {MAX_FRAMES} frames")
    if time.monotonic() > until:
        raise UnreadableImageError("takes too long to decode")


def _frames(picture: ImageFile, shown: Sequence[int], max_pixels: int, kind: str) -> list[Image]:
    """The frames of these numbers, which ascend."""
    found: dict[int, Image] = {}
    for number in dict.fromkeys(shown):
        picture.seek(number)
        found[number] = upright(picture, max_pixels, kind)
    return [found[number] for number in shown]
