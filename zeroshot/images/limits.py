"""What decoding an image takes, read from its header before anything is allocated; and room for it.

The number of pixels alone does not bound memory and time: a tile of a TIFF may be larger than the
image, each scan of a progressive JPEG passes over all of its pixels, and a strip may be read
again for each row.
"""

import os
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL.TiffImagePlugin import TiffImageFile

from zeroshot.errors import UnreadableImageError

MAX_WORK = 2_500_000_000
"""Samples that the scans of a JPEG pass over, in all; some four seconds. A photograph of 100
megapixels in ten scans has about a billion."""
MAX_COEFFICIENTS = 1_000_000_000
"""Bytes of a JPEG's coefficients, which are all in memory if it has several scans."""
MAX_READ = 1 << 32
"""Bytes that the strips or tiles of a TIFF read, in all; the same bytes may be read many times."""

MAX_COMMENTS = 10_000
"""Comments between the digits of a PPM: for each, Pillow moves up to a MiB of what is behind it."""

_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")
"""A marker of a JPEG, except those that have no length: restarts and the start of the image."""
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_SCAN, _END = 0xDA, 0xD9
_TILE_SIZE, _BYTE_COUNTS = (322, 323), (279, 325)


@dataclass(frozen=True)
class JpegCost:
    """What it takes to decode a JPEG."""

    work: int
    """Samples that its scans pass over."""
    coefficients: int
    """Bytes of the coefficients that must be in memory."""
    scans: int


def check_jpeg(data: bytes) -> None:
    """UnreadableImageError for a JPEG whose scans take too much time or memory."""
    cost = jpeg_cost(data)
    if cost.work > MAX_WORK:
        what = f"{cost.scans} scans of" if cost.scans > 1 else "decoding"
        raise UnreadableImageError(
            f"{what} so many pixels would take too long (more than {MAX_WORK / 1e9:g} billion "
            "samples)"
        )
    if cost.coefficients > MAX_COEFFICIENTS:
        raise UnreadableImageError(
            f"a JPEG in several scans whose coefficients take {cost.coefficients >> 20} MiB; more "
            f"than {MAX_COEFFICIENTS >> 20} MiB are not decoded"
        )


def jpeg_cost(data: bytes) -> JpegCost:
    """The cost by the markers of the first image, up to where it is more than allowed."""
    samples: dict[int, int] = {}
    work = scans = place = 0
    several = False
    while work <= MAX_WORK and (marker := _MARKER.search(data, place)) is not None:
        kind, place = marker[1][0], marker.end()
        if kind == _END:
            break
        length = int.from_bytes(data[place : place + 2], "big")
        segment = data[place + 2 : place + length]
        if kind in _FRAMES:
            samples = samples or _samples(segment)
            several |= kind in _PROGRESSIVE
        elif kind == _SCAN and segment:
            parts = segment[1 : 1 + 2 * segment[0] : 2]
            work, scans = work + sum(samples.get(part, 0) for part in parts), scans + 1
            several |= len(parts) < len(samples)
            if not several:  # what follows is refused by the decoder
                break
        place += max(2, length)
    return JpegCost(work, 2 * sum(samples.values()) if several else 0, scans)


def _samples(frame: bytes) -> dict[int, int]:
    """The number of samples of each component, by a frame's header."""
    if len(frame) < 6:
        return {}
    height, width, count = struct.unpack(">HHB", frame[1:6])
    parts = [frame[6 + 3 * i : 9 + 3 * i] for i in range(count)]
    factors = {part[0]: (part[1] >> 4, part[1] & 15) for part in parts if len(part) == 3}
    across = max((h for h, _ in factors.values()), default=1) or 1
    down = max((v for _, v in factors.values()), default=1) or 1
    return {id: -(-width * h // across) * -(-height * v // down) for id, (h, v) in factors.items()}


def check_tiff(image: TiffImageFile, size: int, max_pixels: int) -> None:
    """UnreadableImageError for a TIFF of `size` bytes with huge tiles, or that reads too much."""
    width, height = (_number(image.tag_v2.get(tag, 0)) for tag in _TILE_SIZE)
    if width * height > max_pixels:
        raise UnreadableImageError(
            f"a TIFF in tiles of {width} x {height} pixels; more than {max_pixels / 1e6:g} "
            "megapixels are not decoded"
        )
    counts = next((image.tag_v2[tag] for tag in _BYTE_COUNTS if tag in image.tag_v2), ())
    total = sum(counts) if isinstance(counts, tuple) else _number(counts)
    if total > max(MAX_READ, size):
        raise UnreadableImageError(
            f"a TIFF whose {'tiles' if width else 'strips'} read {total >> 20} MiB of a file of "
            f"{size >> 20} MiB"
        )


def check_ppm(data: bytes) -> None:
    """UnreadableImageError for a PBM, PGM or PPM in digits with comments without end."""
    if data[1:2] in b"123" and data.count(b"#") > MAX_COMMENTS:
        raise UnreadableImageError(f"a PPM with more than {MAX_COMMENTS} comments")


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


class Room:
    """Memory for decoded images that all threads share."""

    def __init__(self, size: int) -> None:
        """`size` is in bytes."""
        self.size = size
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Room for a block; waits until there is some. What is too large gets it all for itself."""
        size = min(size, self.size)
        with self._changed:
            self._changed.wait_for(lambda: self._taken + size <= self.size)
            self._taken += size
        try:
            yield
        finally:
            self.give_back(size)

    def take(self, size: int) -> bool:
        """Take room without waiting, if there is some; `give_back` ends it."""
        with self._changed:
            fits = self._taken + size <= self.size
            self._taken += size if fits else 0
            return fits

    def give_back(self, size: int) -> None:
        """Let others have it."""
        with self._changed:
            self._taken -= size
            self._changed.notify_all()

    def clear(self) -> None:
        """Forget what is taken: by threads that do not exist in a forked process."""
        self._taken, self._changed = 0, threading.Condition()


def _memory() -> int:
    """Bytes of memory of this machine; 16 GiB if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 16 << 30


WORKING = Room(max(1_200_000_000, _memory() // 16))
"""For images that are decoded at this moment; at least what the largest one takes."""
WAITING = Room(400_000_000)
"""For images that were decoded ahead. Another room: whoever waits for `WORKING` may hold these."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=WORKING.clear)
    os.register_at_fork(after_in_child=WAITING.clear)
