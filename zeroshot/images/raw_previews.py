"""The JPEG in a camera's raw file: what the camera shows, found without a raw developer.

Nearly all raw files are TIFF structures (CR2, NEF, ARW, DNG, RW2, PEF, SRW, ORF): directories of
tags, some of which point to a JPEG. RAF has its place in the header, CR3 in a box. LibRaw (rawpy)
would find the same JPEG, and those in makernotes; but of its decoders only this search would be
used, and a search of a hundred lines can be bounded. TIFF 6.0; Adobe, Digital Negative 1.7; for CR3
Laurent Clévy, github.com/lclevy/canon_cr3.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from zeroshot.errors import UnreadableImageError

MAX_DIRECTORIES = 64
MAX_TAGS = 1000
"""Of a directory; more are not read."""
MAX_SEGMENTS = 200
"""Markers of a JPEG before its size."""
MAX_BOXES = 100

_MOSAIC = {32803, 34892}
"""Photometric interpretations of a sensor's values."""
_JPEG = {6, 7}
"""Compressions."""
_COMPRESSION, _PHOTOMETRIC, _STRIPS, _STRIP_SIZES = 259, 262, 273, 279
_ORIENTATION, _CHILDREN, _JPEG_PLACE, _JPEG_SIZE = 274, 330, 513, 514
_PANASONIC_JPEG, _DNG_VERSION = 46, 50706
_FORMATS = {1: "B", 3: "H", 4: "I", 7: "B", 13: "I"}
"""Types of values that the tags above have."""
_CR3_PREVIEW = bytes.fromhex("eaf42b5e1c984b88b9fbb7dc406e4d16")


@dataclass(frozen=True)
class RawPreview:
    """A JPEG in a raw file, and the EXIF orientation that the raw file states for it."""

    jpeg: bytes
    orientation: int


@dataclass
class _Directory:
    """The tags of a directory, and where their values lie."""

    values: dict[int, tuple[int, ...]] = field(default_factory=dict)
    places: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Offset and length in bytes."""

    def first(self, tag: int) -> int:
        values = self.values.get(tag, ())
        return values[0] if values else 0


def raw_preview(data: bytes) -> RawPreview | None:
    """The largest JPEG in a raw file; None for a file that is not raw, such as another TIFF.

    Raises:
        UnreadableImageError: the raw file has no JPEG that can be decoded.
    """
    if data.startswith(b"FUJIFILMCCD-RAW"):
        found = [data[slice(*_span(data, *_big(data, 84, 2)))]]
        orientation = 1  # the JPEG has its own
    elif data[4:12] == b"ftypcrx ":
        found, orientation = list(_boxed(data)), _cr3_orientation(data)
    else:
        directories = list(_directories(data))
        if not _is_raw(data, directories):
            return None
        found = [jpeg for one in directories for jpeg in _jpegs(data, one)]
        orientation = directories[0].first(_ORIENTATION) if directories else 1
    sizes = [(size, jpeg) for jpeg in found if (size := _pixels(jpeg))]
    if not sizes:
        raise UnreadableImageError(
            "a raw file without a JPEG that can be read: develop it first, for example with "
            "darktable"
        )
    return RawPreview(max(sizes, key=lambda one: one[0])[1], orientation)


def _is_raw(data: bytes, directories: list[_Directory]) -> bool:
    if data[2:4] not in (b"*\0", b"\0*") or data[8:10] == b"CR":
        return True  # another magic number than that of TIFF; or Canon's mark
    return any(
        one.first(_PHOTOMETRIC) in _MOSAIC or _DNG_VERSION in one.values for one in directories
    )


def _jpegs(data: bytes, one: _Directory) -> Iterator[bytes]:
    """What may be JPEGs by the tags of a directory."""
    yield data[slice(*_span(data, one.first(_JPEG_PLACE), one.first(_JPEG_SIZE)))]
    if _PANASONIC_JPEG in one.places:
        yield data[slice(*_span(data, *one.places[_PANASONIC_JPEG]))]
    strips, sizes = one.values.get(_STRIPS, ()), one.values.get(_STRIP_SIZES, ())
    if one.first(_COMPRESSION) in _JPEG and len(strips) == len(sizes) == 1:
        yield data[slice(*_span(data, strips[0], sizes[0]))]


def _directories(data: bytes) -> Iterator[_Directory]:
    """The directories of a TIFF structure with all below, each once."""
    order = ">" if data[:2] == b"MM" else "<"
    places, seen = [_number(data, order, 4)], set[int]()
    while places and len(seen) < MAX_DIRECTORIES:
        place = places.pop(0)
        if place in seen or not 0 < place <= len(data) - 2:
            continue
        seen.add(place)
        (count,) = struct.unpack_from(f"{order}H", data, place)
        end = place + 2 + 12 * count
        entries = data[place + 2 : place + 2 + 12 * min(count, MAX_TAGS)]
        one = _Directory()
        whole = len(entries) - len(entries) % 12
        for at, (tag, kind, number) in enumerate(
            struct.iter_unpack(f"{order}HHI4x", entries[:whole])
        ):
            _add(one, data, order, place + 10 + 12 * at, tag, kind, number)
        places += [*one.values.get(_CHILDREN, ())[:MAX_DIRECTORIES], _number(data, order, end)]
        yield one


def _add(
    one: _Directory, data: bytes, order: str, place: int, tag: int, kind: int, count: int
) -> None:
    """Read up to `MAX_DIRECTORIES` values of a tag: the four bytes at `place`, or behind them."""
    letter = _FORMATS.get(kind)
    if letter is None:
        return
    size = count * struct.calcsize(letter)
    start = place if size <= 4 else _number(data, order, place)
    one.places[tag] = start, size
    if tag != _PANASONIC_JPEG:
        layout = f"{order}{min(count, MAX_DIRECTORIES)}{letter}"
        if start + struct.calcsize(layout) <= len(data):
            one.values[tag] = struct.unpack_from(layout, data, start)


def _number(data: bytes, order: str, place: int) -> int:
    return int(struct.unpack_from(f"{order}I", data, place)[0]) if place + 4 <= len(data) else 0


def _big(data: bytes, place: int, count: int) -> tuple[int, ...]:
    return tuple(_number(data, ">", place + 4 * i) for i in range(count))


def _span(data: bytes, start: int, length: int) -> tuple[int, int]:
    """Where a JPEG begins and ends; nothing if the file does not have all of it."""
    inside = start + length <= len(data) and data[start : start + 3] == b"\xff\xd8\xff"
    return (start, start + length) if inside else (0, 0)


def _pixels(jpeg: bytes) -> int:
    """Pixels of a JPEG of 8 bits that is not lossless; 0 for what else there is."""
    place = 2
    for _ in range(MAX_SEGMENTS):
        if len(jpeg) < place + 9 or jpeg[place] != 0xFF:
            return 0
        kind = jpeg[place + 1]
        if kind in (0xC0, 0xC1, 0xC2):
            bits, height, width = struct.unpack_from(">BHH", jpeg, place + 4)
            return height * width if bits == 8 else 0
        if 0xC3 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            return 0
        place += 1 if kind == 0xFF else 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
    return 0


def _boxed(data: bytes) -> Iterator[bytes]:
    """The JPEG in the box of a CR3 that has one."""
    place = 0
    for _ in range(MAX_BOXES):
        if place + 8 > len(data):
            return
        size, kind = _number(data, ">", place), data[place + 4 : place + 8]
        head = 8
        if size == 1:
            size, head = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        end = place + size if size else len(data)
        if kind == b"uuid" and data[place + head : place + head + 16] == _CR3_PREVIEW:
            start = data.find(b"\xff\xd8\xff", place + head + 16, min(end, place + head + 80))
            if start > 0:
                yield data[start : min(end, len(data))]
        if end <= place:
            return
        place = end


def _cr3_orientation(data: bytes) -> int:
    """That of the TIFF structure in the box CMT1."""
    at = data.find(b"CMT1", 0, 1 << 16)
    first = next(_directories(data[at + 4 : at + (1 << 16)]), None) if at > 0 else None
    return first.first(_ORIENTATION) if first else 1
