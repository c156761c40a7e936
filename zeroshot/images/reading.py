"""Open the images that `inputs` finds, and read ahead; no other module decodes images.

The result is an upright RGB PIL image (see `images.pixels`). For an unreadable file the message of
`UnreadableImageError` says what the file looks like.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from zeroshot.errors import UnreadableImageError
from zeroshot.images import pixels
from zeroshot.inputs.local_files import read_file
from zeroshot.inputs.resolve import find
from zeroshot.inputs.source import CLIPS, MAX_BYTES, PICTURES, Blob, Input, Listing, Picture, Source
from zeroshot.inputs.tables import InputOptions

__all__ = [
    "CLIPS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "PICTURES",
    "VERSION",
    "Blob",
    "Input",
    "InputOptions",
    "Listing",
    "Picture",
    "Source",
    "find",
    "open_image",
    "read",
    "read_ahead",
]

VERSION = "rgb-1"
"""Version of the rules that turn a file into pixels; part of cache keys."""

MAX_PIXELS = 100_000_000
_ONE_AT_A_TIME = threading.Lock()
"""For PIL images: the same image may be an input twice, and loading is not thread-safe."""


def _memory_id(image: Image) -> str:
    header = f"RGB {image.width} {image.height} ".encode()
    return hashlib.sha256(header + image.tobytes()).hexdigest()


@dataclass(frozen=True)
class Fetched:
    """A source before decoding: the bytes of a file, or an upright image.

    `id` is the sha256 of the bytes; for a PIL image, that of its mode, size and pixels as RGB.
    """

    id: str
    content: bytes | Image

    def decoded(self, max_pixels: int = MAX_PIXELS, draft_side: int | None = None) -> Image:
        """Decode the image; UnreadableImageError has the reason without the path.

        With `draft_side` a large JPEG is decoded smaller (`pixels.decode`).
        """
        if isinstance(self.content, Image):
            return self.content
        return pixels.decode(self.content, max_pixels, draft_side)


def fetch(source: Input, max_pixels: int = MAX_PIXELS) -> Fetched:
    """The undecoded source in memory; UnreadableImageError as from `read`."""
    content: str | Path | bytes | Image | Blob | Picture
    if isinstance(source, Source):
        content = source.path or "" if source.content is None else source.content
    else:
        content = source
    if isinstance(content, Picture):
        return Fetched(content.id, content.image)
    if isinstance(content, Image):
        with _ONE_AT_A_TIME:
            image = pixels.upright(content, max_pixels)
        return Fetched(_memory_id(image), image)
    if isinstance(content, str | Path):
        data = read_file(str(content))
    else:
        data = content if isinstance(content, bytes) else content.read()
    return Fetched(hashlib.sha256(data).hexdigest(), data)


def read(source: Input, max_pixels: int = MAX_PIXELS) -> Picture:
    """The decoded image, with the id of exactly the bytes that it was decoded from.

    UnreadableImageError has the reason without the path.
    """
    fetched = fetch(source, max_pixels)
    return Picture(fetched.id, fetched.decoded(max_pixels))


def open_image(source: Input, max_pixels: int = MAX_PIXELS) -> Image:
    """The image of `read`, without its id: upright, RGB."""
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
    """Images in the order of `sources`, decoded by threads while the consumer works.

    An unreadable source yields its error. At most `2 * workers` images wait at a time. If the
    consumer stops early or is interrupted, all threads end.
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
