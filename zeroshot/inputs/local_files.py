"""Files of this machine: single ones, those below a folder or of a glob; and reading one."""

import errno
import glob
import io
import os
import re
import stat
import sys
import time
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any

from zeroshot.errors import NoSuchPathError, UnreadableImageError, UserError, no_such
from zeroshot.inputs.source import (
    BEGINNING,
    CLIPS,
    DATA,
    MAX_BYTES,
    PICTURES,
    SIGNATURES,
    SORTED,
    TARS,
    UNREADABLE,
    VIDEO,
)
from zeroshot.inputs.text_files import suffix_of

SETTLED_NS = 2_000_000_000
"""Two changes within this time may have the same time stamp, as the clock of a file system may be
coarse (2 s on FAT). The state of a file that changed so lately is not used to recognize it."""
MAX_NAMES = 10_000_000
"""Limit of the number of names of a brace pattern."""

_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{},]*(?:,[^{},]*)+))\}")
_OF_DATASETS = {
    "nshards.txt",
    "classnames.txt",
    "zeroshot_classification_templates.txt",
    "dataset_type.txt",
}
"""Files of CLIP_benchmark's that lie beside tar files and are no images."""
SYSTEM_FOLDERS = {
    *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"),
}
"""Folders, in lower case, in which systems keep thumbnails and deleted files."""


def is_folder(path: str) -> bool:
    """As `os.path.isdir`; False for a path that is not valid."""
    try:
        return os.path.isdir(path)
    except ValueError:  # a null byte
        return False


def is_missing(path: str) -> bool:
    """Whether nothing has this path; False where that cannot be known, and for a dead link."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def leads_out(path: str, within: Sequence[str]) -> bool:
    """Whether a path, links followed, is in none of some real folders; False without any."""
    if not within:
        return False
    real = os.path.realpath(path)
    return not any(real == root or real.startswith(os.path.join(root, "")) for root in within)


def _walk(folder: str, within: Sequence[str] = ()) -> list[str]:
    """Files in or below `folder`, without hidden ones and a system's; each real folder once.

    Linked folders come after the real ones, so that an image keeps its own path and a loop ends. A
    folder that may not be read is listed as a file, so that it fails with a message; and so is a
    linked folder that is not `within`. Of a folder below that has links to images, or copies, by
    `classify --into`, only the manifests are listed: the images are elsewhere.
    """
    files: list[str] = []
    seen = set()
    real, linked = deque([folder]), deque[str]()
    while real or linked:
        here = real.popleft() if real else linked.popleft()
        try:
            info = os.stat(here)
            entries = [] if (info.st_dev, info.st_ino) in seen else list(os.scandir(here))
        except OSError:
            files.append(here)
            continue
        seen.add((info.st_dev, info.st_ino))
        if here != folder and (made := [e for e in entries if SORTED.fullmatch(e.name)]):
            entries = made
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_symlink() and is_folder(entry.path):
                (files if leads_out(entry.path, within) else linked).append(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                real.append(entry.path)
            else:
                files.append(entry.path)
    return files


def is_hidden(name: str) -> bool:
    """Whether a scan skips a file or folder because of its name, without a word."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def without_data(
    files: Iterable[str],
    also: str = "",
    suffixes: re.Pattern[str] = PICTURES,
    begins_well: Callable[[str], bool] | None = None,
) -> tuple[list[str], list[str]]:
    """Split into files that hold images, by suffix or by content, and other files beside them.

    Args:
        also: a suffix of tables that stay, because the user named it.
        suffixes: `PICTURES`, `CLIPS` or `EITHER`.
        begins_well: whether a file with another suffix begins as an image, or as a clip; without,
            those that have no suffix stay.
    """
    paths = [PurePath(file) for file in files]
    images = {path for path in paths if suffixes.fullmatch(path.suffix)}
    images |= {path.with_suffix("") for path in images}
    tars = any(path.suffix.lower() == ".tar" for path in paths)
    kept: list[str] = []
    left_out: list[str] = []
    for file, path in zip(files, paths, strict=True):
        suffix = suffix_of(path.name)
        caption = suffix == ".txt" and path.with_suffix("") in images
        caption |= tars and path.name in _OF_DATASETS
        data = DATA.fullmatch(suffix) and suffix != also
        if not (caption or data) and not _is_known(path, suffix, also, suffixes):
            data = not begins_well(file) if begins_well else bool(path.suffix)
        (left_out if caption or data else kept).append(file)
    return kept, left_out


def _is_known(path: PurePath, suffix: str, also: str, suffixes: re.Pattern[str]) -> bool:
    """Whether a suffix says that a file holds images, readable or not."""
    return (
        (also != "" and suffix == also)
        or suffixes.fullmatch(path.suffix) is not None
        or (suffixes is not CLIPS and UNREADABLE.fullmatch(path.suffix) is not None)
        or path.name.lower().endswith(TARS)
    )


def _begins_as(suffixes: re.Pattern[str]) -> Callable[[str], bool]:
    """Whether a file begins as a clip or as an image; one that cannot be read will say so."""
    kinds = [] if suffixes is CLIPS else list(SIGNATURES.values())
    kinds += [] if suffixes is PICTURES else [VIDEO]

    def begins_well(path: str) -> bool:
        try:
            with open_file(path) as file:
                head = file.read(BEGINNING)
        except IrregularError:
            return False
        except OSError:  # also a folder that may not be read
            return True
        return any(kind.match(head) for kind in kinds)

    return begins_well


def scan(
    name: str,
    also: str = "",
    suffixes: re.Pattern[str] = PICTURES,
    within: Sequence[str] = (),
) -> tuple[list[str], list[str]]:
    """The files of a folder or a glob, each once and sorted, and those that are left out.

    Args:
        within: real folders; links that lead out of them are listed and not followed.

    Raises:
        UserError: there are no files, or none that holds images.
    """
    matches = [name] if is_folder(name) else _matches(name)
    files = {
        file
        for match in matches
        for file in (_walk(match, within) if is_folder(match) else [match])
    }
    kept, left_out = without_data(in_order(files), also, suffixes, _begins_as(suffixes))
    if not kept:
        raise nothing_in(name, "folder" if is_folder(name) else "pattern", left_out)
    return kept, left_out


def _matches(pattern: str) -> list[str]:
    """The files and folders of a glob, without those of a system unless it names them."""
    parts = {part.lower() for part in PurePath(pattern).parts}
    systems = SYSTEM_FOLDERS - parts
    found = glob.glob(pattern, recursive=True)
    return [name for name in found if systems.isdisjoint(PurePath(name.lower()).parts)]


def in_order(files: Iterable[str]) -> list[str]:
    """Sorted by the parts of their paths; numbered tar files (`9.tar`, `10.tar`) by number."""

    def key(file: str) -> tuple[object, ...]:
        *folders, name = PurePath(file).parts or ("",)
        stem, dot, suffix = name.partition(".")
        numbered = suffix == "tar" and stem.isascii() and stem.isdecimal()
        return (*folders, f"{stem:0>20}{dot}{suffix}" if numbered else name)

    return sorted(files, key=key)


def nothing_in(name: str, what: str, left_out: list[str]) -> UserError:
    """`no images found in folder 'x', only 2 files of other kinds`."""
    plural = "" if len(left_out) == 1 else "s"
    others = f", only {len(left_out)} file{plural} of other kinds" if left_out else ""
    if what == "pattern" and not left_out:
        folder = os.path.dirname(re.split(r"[*?[]", name)[0])  # up to the first sign of a pattern
        if folder and is_missing(folder) and "://" not in name:
            others = f": {no_such(folder, 'folder')}"
        return NoSuchPathError(f"no images found in pattern '{name}'{others}")
    return UserError(f"no images found in {what} '{name}'{others}")


def braces(name: str) -> list[str]:
    """The names that a shell makes of a pattern: three of `a-{08..10}.tar`, two of `{a,b}`.

    Raises:
        UserError: more than `MAX_NAMES` names.
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


def names_on(stdin: Iterable[str] | None = None, null: bool = False) -> Iterator[str]:
    """The names on standard input, one a line, or with `null` each before a null character.

    They are read as the bytes that a file system has: the encoding of standard input, and bytes
    that are no text, do not matter.

    Raises:
        UserError: there are none, they end otherwise, or standard input cannot be read.
    """
    stream = sys.stdin if stdin is None else stdin
    if stream is None:
        raise UserError("'-' reads names from standard input, which is closed")
    raw = getattr(stream, "buffer", None)
    if raw is None or os.name == "nt":
        text = ("" if null else "\n").join(stream)  # blank lines are none
        raw = io.BytesIO(os.fsencode(text))
    empty = True
    try:
        for name in _pieces(raw, null):
            empty = False
            yield os.fsdecode(name)
    except OSError as error:
        raise UserError(f"standard input cannot be read: {error.strerror or error}") from error
    if empty:
        each = "each before a null character" if null else "one per line"
        raise UserError(f"'-' reads names from standard input, {each}, but there were none")


def _pieces(raw: Any, null: bool) -> Iterator[bytes]:
    end, ended, rest = (b"\0" if null else b"\n"), False, b""
    first = True
    while block := raw.read1(1 << 16):
        if first and not null and block.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
            block = os.fsencode((block + raw.read()).decode("utf-16", "replace"))
        if first and not null:
            block = block.removeprefix(BOM_UTF8)
        if not null and b"\0" in block:
            raise UserError("the names on standard input end in null characters: give -0")
        first = False
        *whole, rest = (rest + block).split(end)
        ended = ended or bool(whole)
        yield from (name for piece in whole if (name := piece if null else piece.rstrip(b"\r")))
    if null and not ended and b"\n" in rest:
        raise UserError("-0 reads names that end in null characters, and no name does: leave it")
    if name := rest if null else rest.rstrip(b"\r"):
        yield name


def stamp_of(info: os.stat_result) -> str:
    """Changes when the file does: ctime changes even if a program resets mtime."""
    return f"{info.st_size} {info.st_mtime_ns} {info.st_ctime_ns} {info.st_ino}"


def settled(info: os.stat_result) -> bool:
    """Whether the last change is so long ago that another change will have another time."""
    return time.time_ns() - max(info.st_mtime_ns, info.st_ctime_ns) > SETTLED_NS


def open_file(path: str | os.PathLike[str]) -> io.BufferedReader | io.BytesIO:
    """A regular file, opened for reading; IrregularError for a pipe, a device or a socket.

    Never waits for the other end of a pipe. A file without a size is empty here: one of `/proc` may
    claim to be regular, and wait for an event or never end.
    """
    _check_regular(os.stat(path), path)  # opening a device may do something
    file = open(path, "rb", opener=without_waiting)  # noqa: SIM115
    try:
        status = os.fstat(file.fileno())
        _check_regular(status, path)  # it may have been replaced
    except BaseException:
        file.close()
        raise
    if status.st_size:
        return file
    file.close()
    return io.BytesIO()


def _check_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise IrregularError(errno.EINVAL, "a pipe or a device, not a file", str(path))


def without_waiting(path: str, flags: int) -> int:
    """An opener for `open` that does not wait for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class IrregularError(OSError):
    """A pipe, a device or a socket instead of a file."""


def read_file(path: str) -> bytes:
    """The bytes of an image file; UnreadableImageError with the reason."""
    try:
        with open_file(path) as file:
            data = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise UnreadableImageError("a folder, not a picture") from None
    except FileNotFoundError:
        link = os.path.islink(path)
        raise UnreadableImageError("a link to nothing" if link else "no such file") from None
    except PermissionError:
        raise UnreadableImageError("permission denied") from None
    except IrregularError as error:
        raise UnreadableImageError(str(error.strerror)) from None
    except OSError as error:
        raise UnreadableImageError(f"cannot be read: {error.strerror}") from error
    except ValueError:
        raise UnreadableImageError("no such file (its path has a null byte)") from None
    if len(data) > MAX_BYTES:
        raise UnreadableImageError(f"larger than {MAX_BYTES >> 20} MiB")
    return data
