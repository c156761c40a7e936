"""Open and read ahead the pictures that `inputs` finds; nothing else in the package decodes one.

A picture leaves here as an upright RGB PIL image (`zeroshot.pixels` says how). What cannot be
read is an `UnreadableImageError` whose message says what the file looks like.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from zeroshot import pixels
from zeroshot.errors import UnreadableImageError
from zeroshot.inputs import Blob, Found, Input, Options, Source, find
from zeroshot.inputs.files import read_file
from zeroshot.inputs.source import MAX_BYTES, PICTURES

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "PICTURES",
    "VERSION",
    "Blob",
    "Found",
    "Input",
    "Options",
    "Picture",
    "Source",
    "find",
    "open_image",
    "read",
    "read_ahead",
]

VERSION = "rgb-1"
"""Names the rules that turn a file into pixels: part of cache keys, changes when pixels would."""

MAX_PIXELS = 100_000_000
_ONE_AT_A_TIME = threading.Lock()
"""For PIL images: one that still has to load may be named twice, and loading is not thread-safe."""


@dataclass(frozen=True)
class Picture:
    """A picture that was read: upright RGB, and the sha256 of what it was read from."""

    id: str
    image: Image


def _read_memory(image: Image, max_pixels: int) -> Picture:
    with _ONE_AT_A_TIME:
        picture = pixels.upright(image, max_pixels)
    header = f"RGB {picture.width} {picture.height} ".encode()
    return Picture(hashlib.sha256(header + picture.tobytes()).hexdigest(), picture)


def read(source: Input, max_pixels: int = MAX_PIXELS) -> Picture:
    """The picture with the id of exactly the bytes it was decoded from.

    The id of a file is the sha256 of its bytes; that of a PIL image, the sha256 of its mode, size
    and pixels once it is RGB. Raises UnreadableImageError with the reason, without the path.
    """
    content: str | Path | bytes | Image | Blob
    if isinstance(source, Source):
        content = source.path or "" if source.content is None else source.content
    else:
        content = source
    if isinstance(content, Image):
        return _read_memory(content, max_pixels)
    if isinstance(content, str | Path):
        data = read_file(str(content))
    else:
        data = content if isinstance(content, bytes) else content.read()
    return Picture(hashlib.sha256(data).hexdigest(), pixels.decode(data, max_pixels))


def open_image(source: Input, max_pixels: int = MAX_PIXELS) -> Image:
    """The picture of `read` alone: upright, RGB."""
    return read(source, max_pixels).image


def _attempt(source: Input, max_pixels: int) -> Picture | UnreadableImageError:
    try:
        return read(source, max_pixels)
    except UnreadableImageError as error:
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)  # tracebacks would keep the file's bytes alive


def read_ahead(
    sources: Iterable[Input], workers: int = 4, max_pixels: int = MAX_PIXELS
) -> Iterator[Picture | UnreadableImageError]:
    """Pictures in the order of `sources`, decoded by threads while the consumer works.

    A source that cannot be read comes as its error. At most `2 * workers` pictures wait at a time;
    a consumer that stops early (or is interrupted) leaves no thread behind.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read-ahead")
    waiting: deque[Future[Picture | UnreadableImageError]] = deque()
    try:
        for source in sources:
            waiting.append(pool.submit(_attempt, source, max_pixels))
            if len(waiting) == 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
