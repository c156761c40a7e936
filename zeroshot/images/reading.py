"""Open and read ahead the pictures that `inputs` finds; nothing else in the package decodes one.

An image leaves here as an upright RGB PIL image (see `images.pixels`). What cannot be
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
"""Names the rules that turn a file into pixels: part of cache keys, changes when pixels would."""

MAX_PIXELS = 100_000_000
_ONE_AT_A_TIME = threading.Lock()
"""For PIL images: one that still has to load may be named twice, and loading is not thread-safe."""


def _memory_id(picture: Image) -> str:
    header = f"RGB {picture.width} {picture.height} ".encode()
    return hashlib.sha256(header + picture.tobytes()).hexdigest()


@dataclass(frozen=True)
class Fetched:
    """What a source stands for before it is decoded: the bytes of a file, or an upright picture.

    `id` is what it will be called: the sha256 of the bytes; of a PIL image, the sha256 of its mode,
    size and pixels once it is RGB.
    """

    id: str
    content: bytes | Image

    def decoded(self, max_pixels: int = MAX_PIXELS, draft_side: int | None = None) -> Image:
        """The picture; UnreadableImageError with the reason, without the path.

        With `draft_side` a large JPEG comes smaller (`pixels.decode`).
        """
        if isinstance(self.content, Image):
            return self.content
        return pixels.decode(self.content, max_pixels, draft_side)


def fetch(source: Input, max_pixels: int = MAX_PIXELS) -> Fetched:
    """What is to be decoded, in memory; UnreadableImageError as `read`."""
    content: str | Path | bytes | Image | Blob | Picture
    if isinstance(source, Source):
        content = source.path or "" if source.content is None else source.content
    else:
        content = source
    if isinstance(content, Picture):
        return Fetched(content.id, content.image)
    if isinstance(content, Image):
        with _ONE_AT_A_TIME:
            picture = pixels.upright(content, max_pixels)
        return Fetched(_memory_id(picture), picture)
    if isinstance(content, str | Path):
        data = read_file(str(content))
    else:
        data = content if isinstance(content, bytes) else content.read()
    return Fetched(hashlib.sha256(data).hexdigest(), data)


def read(source: Input, max_pixels: int = MAX_PIXELS) -> Picture:
    """The picture with the id of exactly the bytes it was decoded from (`Fetched.id`).

    Raises UnreadableImageError with the reason, without the path.
    """
    fetched = fetch(source, max_pixels)
    return Picture(fetched.id, fetched.decoded(max_pixels))


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
