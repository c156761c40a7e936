"""Open the images that `inputs` finds, and read ahead; no other module decodes images.

The result is an upright RGB PIL image (see `images.pixels`). For an unreadable file the message of
`UnreadableImageError` says what the file looks like.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from zeroshot.errors import UnreadableImageError
from zeroshot.images import pixels
from zeroshot.images.limits import WAITING, WORKING
from zeroshot.inputs.local_files import read_file
from zeroshot.inputs.resolve import find
from zeroshot.inputs.source import (
    CLIPS,
    MAX_BYTES,
    MAX_PIXELS,
    PICTURES,
    Blob,
    Input,
    Listing,
    Picture,
    Source,
)
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

VERSION = "rgb-2"
"""Version of the rules that turn a file into pixels; part of cache keys."""

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
    content: bytes | Picture
    max_pixels: int = MAX_PIXELS

    @contextmanager
    def decoded(self, draft_side: int | None = None) -> Iterator[Picture]:
        """The decoded image for a block, which waits until other threads leave memory for it.

        UnreadableImageError has the reason without the path. With `draft_side` a large JPEG is
        decoded smaller (`pixels.decode`).
        """
        if isinstance(self.content, Picture):
            yield self.content
            return
        opened = pixels.opened(self.content, self.max_pixels, draft_side)
        with WORKING.of(opened.memory):
            yield Picture(self.id, *opened.decoded())

    def memory(self) -> int:
        """Bytes that decoding takes at most, roughly; UnreadableImageError as from `decoded`."""
        if isinstance(self.content, Picture):
            return 0
        return pixels.opened(self.content, self.max_pixels).memory


def fetch(source: Input, max_pixels: int | None = None) -> Fetched:
    """The undecoded source in memory; UnreadableImageError as from `read`.

    Args:
        max_pixels: by default that of the source.
    """
    if max_pixels is None:
        max_pixels = source.max_pixels if isinstance(source, Source) else MAX_PIXELS
    content: str | Path | bytes | Image | Blob | Picture
    if isinstance(source, Source):
        content = source.path or "" if source.content is None else source.content
    else:
        content = source
    if isinstance(content, Picture):
        return Fetched(content.id, content)
    if isinstance(content, Image):
        with _ONE_AT_A_TIME:
            image = pixels.upright(content, max_pixels)
        id = _memory_id(image)
        return Fetched(id, Picture(id, image))
    if isinstance(content, str | Path):
        data = read_file(str(content))
    else:
        data = content if isinstance(content, bytes) else content.read()
    return Fetched(hashlib.sha256(data).hexdigest(), data, max_pixels)


def read(source: Input, max_pixels: int | None = None) -> Picture:
    """The decoded image, with the id of exactly the bytes that it was decoded from.

    UnreadableImageError has the reason without the path.
    """
    with fetch(source, max_pixels).decoded() as picture:
        return picture


def open_image(source: Input, max_pixels: int | None = None) -> Image:
    """The image of `read`, without its id: upright, RGB."""
    return read(source, max_pixels).image


Attempt = Picture | UnreadableImageError


@dataclass(frozen=True)
class _Ahead:
    """An image that was read ahead: decoded, if there was room in `WAITING` for it."""

    content: Attempt | Fetched
    room: int = 0


def _read_early(source: Input, max_pixels: int | None) -> _Ahead:
    try:
        fetched = fetch(source, max_pixels)
        room = fetched.memory()
        if not WAITING.take(room):
            return _Ahead(fetched)
        try:
            with fetched.decoded() as picture:
                return _Ahead(picture, room)
        except BaseException:
            WAITING.give_back(room)
            raise
    except UnreadableImageError as error:
        return _Ahead(_without_traceback(error))


def _attempt(ahead: _Ahead) -> Attempt:
    WAITING.give_back(ahead.room)
    if not isinstance(ahead.content, Fetched):
        return ahead.content
    try:
        with ahead.content.decoded() as picture:
            return picture
    except UnreadableImageError as error:
        return _without_traceback(error)


def _without_traceback(error: UnreadableImageError) -> UnreadableImageError:
    """Tracebacks would keep the file's bytes alive."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def read_ahead(
    sources: Iterable[Input], workers: int = 4, max_pixels: int | None = None
) -> Iterator[Attempt]:
    """Images in the order of `sources`, decoded by threads while the consumer works.

    An unreadable source yields its error. At most `2 * workers` images wait at a time; large ones
    wait undecoded. If the consumer stops early or is interrupted, all threads end.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read-ahead")
    waiting: deque[Future[_Ahead]] = deque()
    try:
        for source in sources:
            waiting.append(pool.submit(_read_early, source, max_pixels))
            if len(waiting) == 2 * workers:
                yield _attempt(waiting.popleft().result())
        while waiting:
            yield _attempt(waiting.popleft().result())
    finally:
        pool.shutdown(cancel_futures=True)
        for rest in waiting:
            if not rest.cancelled() and rest.exception() is None:
                WAITING.give_back(rest.result().room)
