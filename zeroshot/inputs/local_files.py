"""Files of this machine: named, below a folder, by a glob; and the bytes of one of them."""

import glob
import os
import re
import stat
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import PurePath

from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.inputs.source import DATA, MAX_BYTES, PICTURES
from zeroshot.inputs.text_files import suffix_of

SETTLED_NS = 2_000_000_000
"""A file changed less than this ago may change again within one tick of a coarse file-system clock
(2 s on FAT), so nothing is remembered of it."""
MAX_NAMES = 10_000_000
"""That a brace pattern may stand for."""

_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{},]*(?:,[^{},]*)+))\}")
_OF_DATASETS = {
    "nshards.txt",
    "classnames.txt",
    "zeroshot_classification_templates.txt",
    "dataset_type.txt",
}
"""Files of CLIP_benchmark's that lie beside tar files and are no images."""


def is_folder(path: str) -> bool:
    """As `os.path.isdir`, also for a path that no system takes."""
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
            if entry.is_symlink() and is_folder(entry.path):
                linked.append(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                real.append(entry.path)
            else:
                files.append(entry.path)
    return files


def without_data(
    files: Iterable[str], also: str = "", suffixes: re.Pattern[str] = PICTURES
) -> tuple[list[str], list[str]]:
    """Split into files that may be images, and data or captions that lie beside images.

    Files with the suffix `also` stay, because the user named it.
    """
    paths = [PurePath(file) for file in files]
    pictures = {path for path in paths if suffixes.fullmatch(path.suffix)}
    pictures |= {path.with_suffix("") for path in pictures}
    tars = any(path.suffix.lower() == ".tar" for path in paths)
    kept: list[str] = []
    left_out: list[str] = []
    for file, path in zip(files, paths, strict=True):
        suffix = suffix_of(path.name)
        caption = suffix == ".txt" and path.with_suffix("") in pictures
        caption |= tars and path.name in _OF_DATASETS
        data = DATA.fullmatch(suffix) and suffix != also
        (left_out if caption or data else kept).append(file)
    return kept, left_out


def scan(
    name: str, also: str = "", suffixes: re.Pattern[str] = PICTURES
) -> tuple[list[str], list[str]]:
    """Files that a folder or a glob stands for, each once and sorted, and those left out.

    Raises:
        UserError: there is no file, or only such as hold no picture.
    """
    matches = [name] if is_folder(name) else glob.glob(name, recursive=True)
    files = {file for match in matches for file in (_walk(match) if is_folder(match) else [match])}
    kept, left_out = without_data(in_order(files), also, suffixes)
    if not kept:
        raise nothing_in(name, "folder" if is_folder(name) else "pattern", left_out)
    return kept, left_out


def in_order(files: Iterable[str]) -> list[str]:
    """Sorted part by part; the numbered tar files of one folder (`9.tar`, `10.tar`) by number."""

    def key(file: str) -> tuple[object, ...]:
        *folders, name = PurePath(file).parts or ("",)
        stem, dot, suffix = name.partition(".")
        numbered = suffix == "tar" and stem.isascii() and stem.isdecimal()
        return (*folders, f"{stem:0>20}{dot}{suffix}" if numbered else name)

    return sorted(files, key=key)


def nothing_in(name: str, what: str, left_out: list[str]) -> UserError:
    """`no files found in folder 'x' beside 2 that hold no picture`."""
    beside = f" beside {len(left_out)} that hold no picture" if left_out else ""
    return UserError(f"no files found in {what} '{name}'{beside}")


def braces(name: str) -> list[str]:
    """`a-{08..10}.tar` as the three names that a shell makes of it; `{a,b}` as two.

    Raises:
        UserError: more than `MAX_NAMES` of them.
    """
    match = _BRACES.search(name)
    if match is None:
        return [name]
    first, last, words = match.groups()
    if words is None:
        if abs(int(last) - int(first)) >= MAX_NAMES:
            raise UserError(f"'{name}' stands for more than {MAX_NAMES} names")
        step = 1 if int(first) <= int(last) else -1
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        parts = [f"{n:0{width}d}" for n in range(int(first), int(last) + step, step)]
    else:
        parts = words.split(",")
    rest = braces(name[match.end() :])
    if len(parts) * len(rest) > MAX_NAMES:
        raise UserError(f"'{name}' stands for more than {MAX_NAMES} names")
    return [f"{name[: match.start()]}{part}{end}" for part in parts for end in rest]


def paths_on(stdin: Iterable[str]) -> Iterator[str]:
    """A path a line.

    Raises:
        UserError: there were none.
    """
    empty = True
    for line in stdin:
        if path := line.rstrip("\r\n"):
            empty = False
            yield path
    if empty:
        raise UserError("'-' reads paths from standard input, one per line, but there were none")


def stamp_of(found: os.stat_result) -> str:
    """Changes when the file does: ctime moves even if somebody puts the mtime back."""
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def settled(found: os.stat_result) -> bool:
    """Whether the file has not changed lately, so that another change will show."""
    return time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > SETTLED_NS


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


def read_file(path: str) -> bytes:
    """The bytes of a picture file; UnreadableImageError with the reason."""
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
