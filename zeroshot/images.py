"""Find, open and read ahead pictures; nothing else in the package opens a picture file.

A picture leaves here as an upright RGB PIL image (`zeroshot.pixels` says how). What cannot be
read is an `UnreadableImageError` whose message says what the file looks like.
"""

import glob
import hashlib
import os
import re
import stat
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Protocol, runtime_checkable

from PIL.Image import Image

from zeroshot import pixels
from zeroshot.errors import UnreadableImageError, UserError

VERSION = "rgb-1"
"""Names the rules that turn a file into pixels: part of cache keys, changes when pixels would."""

MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 30
_ONE_AT_A_TIME = threading.Lock()
"""For PIL images: one that still has to load may be named twice, and loading is not thread-safe."""

PICTURES = re.compile(r"\.(jpe?g?|jfif|mpo|a?png|webp|gif|bmp|dib|tiff?)", re.IGNORECASE)
DATA = re.compile(
    r"\.(jsonl?|csv|tsv|parquet|toml|ya?ml|md|html?|npz|npy|safetensors)", re.IGNORECASE
)
"""Suffixes of pictures; and of manifests and data, which live beside pictures and are none."""


# Sources: what a person names, before anything is opened


@runtime_checkable
class Blob(Protocol):
    """The bytes of a picture that is no file of its own: in an archive, a table, behind a URL.

    Small and picklable: it says where the bytes are and holds none.
    """

    @property
    def stamp(self) -> str | None:
        """Names place and state of the bytes, so that it changes when they do; None if unknown."""

    def read(self) -> bytes:
        """The bytes, at most `MAX_BYTES`; UnreadableImageError with the reason."""


@dataclass(frozen=True)
class Source:
    """One picture that was asked for: a path as it is shown, or a picture that is no file.

    `content` holds a PIL image, the bytes of a file, or where they are; then `path` is only its
    label in the output, or None. `fields` is what came with the picture (`caption`, `label`).
    """

    path: str | None
    content: Image | bytes | Blob | None = None
    fields: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)


@dataclass(frozen=True)
class Found:
    """Sources in the order of the inputs, and the files that a scan left out."""

    sources: tuple[Source, ...]
    left_out: tuple[str, ...]


Input = str | Path | bytes | Image | Source


def _is_folder(path: str) -> bool:
    try:
        return os.path.isdir(path)
    except ValueError:  # a null byte
        return False


def _walk(folder: str) -> list[str]:
    """Files below `folder`: no hidden ones, each real folder once.

    Linked folders wait until the real ones are done, so that a picture keeps its own path and a
    loop ends. A folder that may not be read is listed itself: it will fail, and be seen to.
    """
    files, seen = [], set()
    real, linked = deque([folder]), deque[str]()
    while real or linked:
        here = real.popleft() if real else linked.popleft()
        try:
            found = os.stat(here)
            entries = [] if (found.st_dev, found.st_ino) in seen else list(os.scandir(here))
        except OSError:
            files.append(here)
            continue
        seen.add((found.st_dev, found.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and _is_folder(entry.path):
                linked.append(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                real.append(entry.path)
            else:
                files.append(entry.path)
    return files


def _without_data(files: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split into what may be a picture and what is plainly a manifest or a caption beside one."""
    paths = [PurePath(file) for file in files]
    pictures = {path for path in paths if PICTURES.fullmatch(path.suffix)}
    pictures |= {path.with_suffix("") for path in pictures}
    kept: list[str] = []
    left_out: list[str] = []
    for file, path in zip(files, paths, strict=True):
        caption = path.suffix.lower() == ".txt" and path.with_suffix("") in pictures
        (left_out if caption or DATA.fullmatch(path.suffix) else kept).append(file)
    return kept, left_out


def _scan(name: str) -> tuple[list[str], list[str]]:
    """Files that a folder or a glob stands for, each once and sorted, and those left out."""
    matches = [name] if _is_folder(name) else glob.glob(name, recursive=True)
    files = {file for match in matches for file in (_walk(match) if _is_folder(match) else [match])}
    kept, left_out = _without_data(sorted(files, key=lambda file: PurePath(file).parts))
    if not kept:
        what = "folder" if _is_folder(name) else "pattern"
        beside = f" beside {len(left_out)} that hold no picture" if left_out else ""
        raise UserError(f"no files found in {what} '{name}'{beside}")
    return kept, left_out


def _paths_on(stdin: Iterable[str]) -> Iterator[str]:
    empty = True
    for line in stdin:
        if path := line.rstrip("\r\n"):
            empty = False
            yield path
    if empty:
        raise UserError("'-' reads paths from standard input, one per line, but there were none")


def _named(name: str, *, pattern: bool = True) -> tuple[list[str], list[str]]:
    """Files that one input stands for, and those left out."""
    if name.lower().startswith(("http://", "https://")):
        raise UserError(f"'{name}' is a URL; pictures are read from files only, download it first")
    if _is_folder(name) or (pattern and glob.has_magic(name) and not os.path.lexists(name)):
        return _scan(name)
    return [name], []


def find(inputs: Input | Iterable[object], stdin: Iterable[str] | None = None) -> Found:
    """What the inputs name: files, folders (with all below), globs, `-`, or pictures in memory.

    Order is kept, and what is named twice comes twice. A path that does not exist becomes a
    source that fails when it is opened; a folder or a glob without files is a UserError. What a
    folder or a glob finds goes without hidden files, manifests (`captions.jsonl`) and captions
    (`a.txt` beside `a.jpg`), which come back in `left_out`; a file named outright always stays.
    """
    sources: list[Source] = []
    left_out: list[str] = []

    def add(files: list[str], beside: list[str]) -> None:
        sources.extend(map(Source, files))
        left_out.extend(beside)

    for given in [inputs] if isinstance(inputs, Input) else inputs:
        if isinstance(given, Source):
            sources.append(given)
        elif isinstance(given, Image | bytes):
            sources.append(Source(None, given))
        elif isinstance(given, str) and given == "-":
            for path in _paths_on(stdin or sys.stdin):
                add(*_named(path, pattern=False))
        elif isinstance(given, str | Path):
            add(*_named(str(given)))
        else:
            kind = type(given).__name__
            raise UserError(f"a picture is a path, a PIL image or bytes, not {kind}")
    return Found(tuple(sources), tuple(left_out))


# Pictures: what is read from them


@dataclass(frozen=True)
class Picture:
    """A picture that was read: upright RGB, and the sha256 of what it was read from."""

    id: str
    image: Image


def _read_file(path: str) -> bytes:
    """The bytes of a regular file; never waits on a pipe."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise UnreadableImageError("a folder, not a picture")
    if not stat.S_ISREG(mode):
        raise UnreadableImageError("a pipe or a device, not a file")
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            raise UnreadableImageError(f"larger than {MAX_BYTES >> 20} MiB")
        return file.read()


def _file_bytes(path: str) -> bytes:
    try:
        return _read_file(path)
    except UnreadableImageError:
        raise
    except FileNotFoundError:
        link = os.path.islink(path)
        raise UnreadableImageError("a link to nothing" if link else "no such file") from None
    except PermissionError:
        raise UnreadableImageError("permission denied") from None
    except OSError as error:
        raise UnreadableImageError(f"cannot be read: {error.strerror}") from error
    except ValueError:
        raise UnreadableImageError("no such file (its path has a null byte)") from None


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
    content: str | Path | bytes | Image | Blob
    if isinstance(source, Source):
        content = source.path or "" if source.content is None else source.content
    else:
        content = source
    if isinstance(content, Image):
        with _ONE_AT_A_TIME:
            picture = pixels.upright(content, max_pixels)
        return Fetched(_memory_id(picture), picture)
    if isinstance(content, Blob):
        content = content.read()
    data = content if isinstance(content, bytes) else _file_bytes(str(content))
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
