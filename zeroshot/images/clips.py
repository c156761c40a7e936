"""Frames of videos, decoded by PyAV (the extra `video`), and of animated images.

A video is passed to FFmpeg as an open file, never by name, and its first bytes select the demuxer.
So FFmpeg guesses no format and follows no address: a playlist disguised as a video reads no other
file. Sound is ignored. An unreadable video raises `UnreadableImageError`.
"""

import hashlib
import io
import os
import re
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL.Image import Image, Transpose

from zeroshot.errors import NotAvailableError, UnreadableImageError
from zeroshot.images.animation import animated_frames, kind_of
from zeroshot.images.reading import MAX_PIXELS
from zeroshot.inputs.local_files import IrregularError, open_file
from zeroshot.inputs.source import Source
from zeroshot.models.base import VideoFile
from zeroshot.packaging.extras import how_to_install

__all__ = ["VERSION", "Clip", "frames_of", "open_clip"]

VERSION = "clip-2"
"""Version of the rules that select and decode frames; part of cache keys."""

MAX_BYTES = 4 << 30
MAX_SECONDS = 24 * 3600
"""Limit of the length that a video states."""
MAX_DECODED = 3000
"""Limit of frames decoded to reach a wanted one: two minutes without a key frame."""
DEADLINE = 120.0
"""Time limit for one video in seconds."""

BACK = (0, 2, 20)
"""Seconds to seek before the wanted time, tried in this order and then the start of the video:
MPEG-TS has no index, so the next key frame may come after the wanted time."""

ROUNDED = Fraction(3, 4000)
"""Rounding error in seconds of a frame's time and the video's length, both in milliseconds."""

FORMATS = (
    (rb"....(ftyp|moov|mdat|wide|free|skip)", "mov"),
    (rb"\x1a\x45\xdf\xa3", "matroska"),
    (rb"RIFF....AVI ", "avi"),
    (rb"OggS", "ogg"),
    (rb"FLV\x01", "flv"),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (rb"\0\0\x01\xba", "mpeg"),
    (rb"\x47.{187}\x47", "mpegts"),
)
"""The first bytes of each format, and FFmpeg's name of its demuxer."""

TURNS = {
    (0, -1, 1, 0): Transpose.ROTATE_90,
    (-1, 0, 0, -1): Transpose.ROTATE_180,
    (0, 1, -1, 0): Transpose.ROTATE_270,
    (-1, 0, 0, 1): Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Transpose.TRANSPOSE,
    (0, -1, -1, 0): Transpose.TRANSVERSE,
}
"""Signs of a, b, c and d of a display matrix, and the transform of (x, y) to (ax + cy, bx + dy)."""


@dataclass(frozen=True)
class Clip:
    """An open video, and the sha256 of its bytes."""

    id: str
    file: VideoFile


@contextmanager
def open_clip(source: Source) -> Iterator[Clip]:
    """Open the video of a source.

    Raises:
        UnreadableImageError: no regular file of at most `MAX_BYTES`, or a decoded image.
    """
    content = source.content
    if content is None:
        file: VideoFile = _open(Path(source.path or ""))
    elif isinstance(content, bytes):
        file = io.BytesIO(content)
    elif hasattr(content, "read"):
        file = io.BytesIO(content.read())
    else:
        raise UnreadableImageError("a picture, not a clip")
    with file:
        digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]
        yield Clip(digest.hexdigest(), file)


def _open(path: Path) -> VideoFile:
    try:
        if os.path.getsize(path) > MAX_BYTES:
            raise UnreadableImageError(f"larger than {MAX_BYTES >> 30} GiB")
        return open_file(path)
    except UnreadableImageError:
        raise
    except (IsADirectoryError, IrregularError):
        raise UnreadableImageError("a folder, a pipe or a device, not a clip") from None
    except FileNotFoundError:
        raise UnreadableImageError("no such file") from None
    except (OSError, ValueError) as error:
        raise UnreadableImageError(f"cannot be read: {error}") from error


def frames_of(file: VideoFile, count: int, max_pixels: int = MAX_PIXELS) -> list[Image]:
    """The frames shown in the middle of `count` equal parts of a video: upright, RGB.

    If frames are evenly spaced, these are frames `floor((i + 1/2) n / count)` of n, on which TSN
    and X-CLIP are evaluated (Ni et al. 2022; SampleFrames of MMAction2). Decoding starts at the key
    frame before each, so a long video costs as much as a short one. If a video has fewer frames,
    some are repeated.

    Raises:
        NotAvailableError: PyAV is not installed.
        UnreadableImageError: not a video, damaged, cut off, or over a limit.
    """
    file.seek(0)
    head = file.read(4096)
    file.seek(0)
    if (animated := kind_of(head)) is not None:
        return animated_frames(file, animated, count, max_pixels, DEADLINE)
    av = _pyav()
    kind = _format(head)
    options = {"format_whitelist": kind, "protocol_whitelist": "none"}
    try:
        with av.open(file, format=kind, options=options, metadata_errors="ignore") as container:
            return _sampled(container, count, max_pixels)
    except (av.FFmpegError, ValueError, ArithmeticError) as error:
        raise UnreadableImageError(f"a damaged clip ({error})") from error


def _pyav() -> Any:
    try:
        return import_module("av")
    except ImportError:
        raise NotAvailableError(
            f"clips are decoded by PyAV, which is not installed: {how_to_install('video')}"
        ) from None


def _format(head: bytes) -> str:
    for begins, name in FORMATS:
        if re.match(begins, head, re.DOTALL):
            return name
    if not head:
        raise UnreadableImageError("an empty file")
    raise UnreadableImageError(
        "no clip: read are MP4 and MOV, Matroska and WebM, AVI, Ogg, FLV, ASF, MPEG-PS, MPEG-TS "
        "and animated GIF, WebP and PNG"
    )


def _sampled(container: Any, count: int, max_pixels: int) -> list[Image]:
    stream = _track(container)
    codec = stream.codec_context
    if codec is None:
        raise UnreadableImageError("a video track of a kind that FFmpeg does not know")
    _check_size(codec.width, codec.height, max_pixels)
    codec.thread_count = 1  # videos are already decoded in parallel
    codec.options = {"max_pixels": str(max_pixels)}
    until = time.monotonic() + DEADLINE
    begin, length = _extent(container, stream, until)
    parts = (begin + length * Fraction(2 * i + 1, 2 * count) for i in range(count))
    frames = (_shown_at(container, stream, at, length / count, until) for at in parts)
    return [_upright(frame, max_pixels) for frame in frames]


def _track(container: Any) -> Any:
    """The first video track that is not the cover of a piece of music."""
    for stream in container.streams.video:
        if not stream.disposition & type(stream.disposition).attached_pic:
            return stream
    raise UnreadableImageError("a file without a video track")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        limit = f"{max_pixels / 1e6:g} megapixels"
        raise UnreadableImageError(f"frames of {width} x {height} pixels are more than {limit}")


def _extent(container: Any, stream: Any, until: float) -> tuple[Fraction, Fraction]:
    """The time of the first frame and the length of the video, in seconds.

    Matroska has the length of each track in a tag, because the sound may be longer. If a file
    states no length, its packets are read, without decoding them.
    """
    begin, length = stream.start_time or 0, stream.duration
    if length is None:
        end = _tagged(stream.metadata.get("DURATION", ""))
        if end is not None:
            length = end / stream.time_base - begin
        elif container.duration is not None:
            length = Fraction(container.duration, 1_000_000) / stream.time_base
    if length is None:
        last = begin
        for packet in container.demux(stream):
            if time.monotonic() > until:
                raise UnreadableImageError(f"takes longer than {DEADLINE:g} seconds to read")
            if packet.pts is not None:
                last = max(last, packet.pts + (packet.duration or 0))
        length = last - begin
    seconds = length * stream.time_base
    if seconds > MAX_SECONDS:
        raise UnreadableImageError(f"longer than {MAX_SECONDS // 3600} hours")
    return begin * stream.time_base, max(Fraction(seconds), Fraction(0))


def _tagged(text: str) -> Fraction | None:
    """The seconds of a tag such as `00:01:02.500000000`; None for zero or another text."""
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d{1,9})?)", text)
    if match is None:
        return None
    hours, minutes, seconds = map(Fraction, match.groups())
    return (3600 * hours + 60 * minutes + seconds) or None


def _shown_at(container: Any, stream: Any, at: Fraction, part: Fraction, until: float) -> Any:
    """The last frame that starts at or before `at`, else the first frame.

    Matroska and FLV round times, so a frame may start up to `ROUNDED` later.

    Raises:
        UnreadableImageError: the video ends more than a `part` before, or no key frame is near.
    """
    tick = stream.time_base
    latest = (at + ROUNDED) / tick
    for earlier in BACK:
        container.seek(int((at - earlier) / tick), stream=stream)
        frames = _decoded(container, stream, at, until)
        first = next(frames, None)
        if first is not None and first.pts <= latest:
            break
    else:
        container.seek(stream.start_time or 0, stream=stream)
        frames = _decoded(container, stream, at, until)
        first = next(frames, None)
    if first is None:
        raise UnreadableImageError(f"no frame at second {float(at):.1f}")
    shown = first
    for frame in frames:
        if frame.pts > latest:
            return shown
        shown = frame
    end = (shown.pts + (shown.duration or 0)) * tick
    if at - end > part:
        raise UnreadableImageError(f"breaks off at second {float(end):.1f}")
    return shown


def _decoded(container: Any, stream: Any, at: Fraction, until: float) -> Iterator[Any]:
    """Frames with a time, from the next key frame on, within the limits.

    Frames before a key frame depend on missing ones and would be grey.
    """
    started = False
    for number, frame in enumerate(container.decode(stream)):
        if number >= MAX_DECODED:
            raise UnreadableImageError(
                f"no key frame within {MAX_DECODED} frames before second {float(at):.1f}"
            )
        if time.monotonic() > until:
            raise UnreadableImageError(f"takes longer than {DEADLINE:g} seconds to decode")
        started = started or bool(frame.key_frame)
        if started and frame.pts is not None:
            yield frame


def _upright(frame: Any, max_pixels: int) -> Image:
    _check_size(frame.width, frame.height, max_pixels)
    image: Image = frame.to_image()
    turn = _turn(frame)
    return image if turn is None else image.transpose(turn)


def _turn(frame: Any) -> Transpose | None:
    """The transform of the display matrix: 9 numbers, of which a, b, c, d are 0, 1, 3 and 4."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX" and len(bytes(data)) == 36:
            a, b, _, c, d, *_ = struct.unpack("9i", bytes(data))
            unit = max(map(abs, (a, b, c, d))) or 1
            return TURNS.get((round(a / unit), round(b / unit), round(c / unit), round(d / unit)))
    return None
