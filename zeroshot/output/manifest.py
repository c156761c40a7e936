"""Links, copies and folders that a run makes, listed so that they can be taken back.

A manifest is a file of JSON lines in the folder that it is about. Each line is written before the
thing that it names is made, so that a run that is killed leaves nothing that is not listed. Taking
back removes only what is still as it was made, and nothing outside the manifest's own folder.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zeroshot.errors import UserError, no_such
from zeroshot.inputs.source import SORTED
from zeroshot.output import atomic
from zeroshot.output.appended import AppendedFile
from zeroshot.output.formats import utf8
from zeroshot.output.holders import has_exited, ourselves

SCHEMA = "zeroshot.sorted/1"
FILES = ("symlink", "hardlink", "copy")
HERE = "."
"""The folder of the manifest, in its lines."""
MAX_BYTES = 1 << 32
"""Of a manifest that is read."""
MAX_NAME = 200
"""Bytes of a name; file systems take 255."""
FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udc7f\udd00-\udfff]')
"""Characters that are in no name, on one system or another."""
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)
"""Names of devices on Windows."""


def safe_name(text: str) -> str:
    """A text as the name of a file or a folder on any system.

    `_` stands for characters that are not allowed, for a dot at the beginning, and for dots and
    spaces at the end; it follows the name of a device (`con_`). The name of a safe name is itself.
    """
    name = FORBIDDEN.sub("_", text)
    name = re.sub(r"^\.", "_", name)
    name = re.sub(r"[. ]+$", lambda end: "_" * len(end[0]), name)
    stem, dot, suffix = name.partition(".")
    return f"{stem}_{dot}{suffix}" if RESERVED.fullmatch(stem.rstrip()) else name or "_"


def new_name() -> str:
    """The name of the manifests of one run, without what tells its processes apart."""
    return f"zeroshot-sorted-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


class Manifest:
    """Makes links, copies and folders in `folder`, each after a line in a file there.

    The file and the folder are made with the first thing that is; a process has a file of its own.
    `about` is kept in the first line.
    """

    def __init__(self, folder: Path, name: str, about: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.name = name
        self.about = about or {}
        self._file: AppendedFile | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process has another file."""
        return Manifest, (self.folder, self.name, self.about)

    def make_folder(self, name: str) -> None:
        """A folder in the folder, if nothing has its name; raises as `AppendedFile.append`."""
        if not os.path.lexists(self.folder / name):
            with (
                self._listed({"makes": "folder", "path": name}),
                contextlib.suppress(FileExistsError),
            ):
                os.mkdir(self.folder / name)
                return
            self._write({"failed": name})

    def symlink(self, path: str, target: str) -> None:
        """A link; FileExistsError if something has its name, OSError if it cannot be made."""
        with self._listed({"makes": "symlink", "path": path, "target": target}):
            os.symlink(target, self.folder / path)

    def hardlink(self, path: str, image: str) -> None:
        """Another name of a file; errors as `symlink`."""
        image = os.path.realpath(image)
        info = os.stat(image)
        line = {"makes": "hardlink", "path": path, "device": info.st_dev, "inode": info.st_ino}
        with self._listed(line):
            os.link(image, self.folder / path)

    def copy(self, path: str, data: bytes, image: str | None) -> None:
        """A file with these bytes, whole or not at all; errors as `symlink`."""
        sha256 = hashlib.sha256(data).hexdigest()
        line = {"makes": "copy", "path": path, "bytes": len(data), "sha256": sha256}
        with self._listed(line | {"image": None if image is None else os.path.abspath(image)}):
            if not atomic.publish(self.folder / path, data):
                raise FileExistsError

    @contextlib.contextmanager
    def _listed(self, line: dict[str, Any]) -> Iterator[None]:
        self._write(line)
        try:
            yield
        except OSError:
            self._write({"failed": line["path"]})
            raise

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            self._file = self._begin()
        self._file.append(_encoded(line))

    def _begin(self) -> AppendedFile:
        with atomic.writing(self.folder):
            made = not os.path.lexists(self.folder)
            self.folder.mkdir(exist_ok=True)
            file = AppendedFile(self.folder / f"{self.name}-{secrets.token_hex(2)}.jsonl")
        started = datetime.now(UTC).isoformat(timespec="seconds")
        first = {"schema": SCHEMA, "started": started, "process": ourselves().mark}
        file.append(_encoded(first | self.about))
        if made:
            file.append(_encoded({"makes": "folder", "path": HERE}))
        file.sync()
        return file

    def close(self) -> None:
        """Say that the run has ended, and wait until the file is on the disk."""
        if self._file is not None and not self._file.closed:
            self._file.append(_encoded({"ended": datetime.now(UTC).isoformat(timespec="seconds")}))
            self._file.sync()
            self._file.close()
            self._file = None


def manifests_of(folder: Path, name: str) -> list[Path]:
    """The manifests of one run, of which `name` is that of `new_name`."""
    return sorted(folder.glob(f"{name}-*.jsonl"))


def manifests_in(path: Path) -> list[Path]:
    """A manifest, or all that a folder has.

    Raises:
        UserError: a folder without.
    """
    if not path.is_dir():
        return [path]
    found = sorted(each for each in path.iterdir() if SORTED.fullmatch(each.name))
    if not found:
        raise UserError(
            f"'{path}' has no manifest (zeroshot-sorted-....jsonl), so there is nothing of "
            "'classify --into' to take back"
        )
    return found


def _encoded(line: dict[str, Any]) -> bytes:
    return utf8(json.dumps(line) + "\n")  # in ASCII, so that names that are no text come back


@dataclass(frozen=True)
class ReadManifest:
    """What a manifest lists."""

    path: Path
    files: dict[str, dict[str, Any]]
    """Links and copies, as their lines, by their paths."""
    folders: tuple[str, ...]
    """In the order in which they were made."""

    @property
    def folder(self) -> Path:
        """The folder that the manifest is in."""
        return Path(os.path.realpath(self.path.parent))


def read_manifest(path: Path, *, of_this_run: bool = False) -> ReadManifest:
    """What a manifest lists; every path in it is checked.

    Args:
        of_this_run: it may still be written.

    Raises:
        UserError: no manifest, one that another run is still writing, or a path that no run writes,
            such as one that leads out of the folder.
    """
    text = _text(path)
    lines = text.split(b"\n")[:-1]  # the end of a line that a killed run began names nothing
    if not lines or _line(lines[0], path, 1).get("schema") != SCHEMA:
        raise UserError(f"'{path}' is no manifest of 'classify --into' ({SCHEMA})")
    files: dict[str, dict[str, Any]] = {}
    folders: list[str] = []
    ended = False
    for number, raw in enumerate(lines[1:], 2):
        line = _line(raw, path, number)
        ended |= "ended" in line
        kind, failed = line.get("makes"), line.get("failed")
        name = _checked(line["path"] if kind else failed, path, number) if kind or failed else ""
        if failed:
            files.pop(name, None)
            folders = [folder for folder in folders if folder != name]
        elif kind == "folder" and "/" not in name:
            folders.append(name)
        elif kind in FILES and name != HERE:
            files[name] = line
        elif kind:
            raise UserError(f"'{path}', line {number}: no run makes a '{kind!s:.50}' of this path")
    process = _line(lines[0], path, 1).get("process")
    if not (ended or of_this_run) and isinstance(process, str) and has_exited(process) is False:
        raise UserError(f"'{path}' is still being written: wait for that run, or stop it")
    return ReadManifest(path, files, tuple(folders))


def _text(path: Path) -> bytes:
    if not os.path.lexists(path):
        raise no_such(path)
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"'{path}' is no file")
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from error
    if len(text) > MAX_BYTES:
        raise UserError(f"'{path}' is larger than any manifest ({MAX_BYTES >> 30} GiB)")
    return text


def _line(raw: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}', line {number} is no JSON: {error!s:.100}") from None
    if not isinstance(line, dict) or ("makes" in line and "path" not in line):
        raise UserError(f"'{path}', line {number} is no line of a manifest")
    return line


def _checked(name: object, path: Path, number: int) -> str:
    """A path that a run can have written: the folder, a name in it, or one in a folder there."""
    parts = name.split("/") if isinstance(name, str) else []
    if name != HERE and (not 1 <= len(parts) <= 2 or not all(map(_is_written, parts))):
        raise UserError(
            f"'{path}', line {number} names {name!r:.100}, which no run writes and may lead out of "
            "the folder: nothing was taken back"
        )
    return str(name)


def _is_written(name: str) -> bool:
    return safe_name(name) == name and len(os.fsencode(name)) <= MAX_NAME


@dataclass
class Undone:
    """What was taken back, and what stays."""

    removed: Counter[str] = field(default_factory=Counter)
    """Number of things by kind: `symlink`, `hardlink`, `copy`, `folder`."""
    gone: int = 0
    """Links and copies that were not there any more."""
    left: list[tuple[Path, str]] = field(default_factory=list)
    """What the run made and stays, and why."""
    foreign: list[Path] = field(default_factory=list)
    """Folders that were there before the run, and stay."""


def undo(manifests: Iterable[ReadManifest]) -> Undone:
    """Remove what the manifests list and is still as it was made; links and copies come first.

    A manifest of which nothing stays is removed too.

    Raises:
        OutputError: a file cannot be removed. What was not is still listed.
    """
    done, all_of = Undone(), list(manifests)
    for manifest in all_of:
        for name, line in reversed(manifest.files.items()):
            _remove_file(manifest.folder, name, line, done)
    for manifest in all_of:
        for name in reversed(manifest.folders):
            if name != HERE:
                _remove_folder(manifest.folder / name, done)
    stays = {path for path, _ in done.left}
    finished = [m for m in all_of if stays.isdisjoint(m.folder / n for n in (*m.files, *m.folders))]
    for manifest in sorted(all_of, key=lambda m: HERE in m.folders):  # who made the folder is last
        used = {name.split("/")[0] for name in manifest.files if "/" in name}
        before = (manifest.folder / name for name in sorted(used - {*manifest.folders}))
        done.foreign += [folder for folder in before if folder.is_dir()]
        if HERE in manifest.folders:
            own = (manifest.path.name,) if manifest in finished else ()
            _remove_folder(manifest.folder, done, own)
        else:
            done.foreign.append(manifest.folder)
        if manifest in finished and manifest.folder not in {path for path, _ in done.left}:
            with atomic.writing(manifest.path):
                manifest.path.unlink(missing_ok=True)
    made = {manifest.folder / name for manifest in all_of for name in manifest.folders}
    done.foreign = [folder for folder in dict.fromkeys(done.foreign) if folder not in made]
    return done


def _remove_file(root: Path, name: str, line: dict[str, Any], done: Undone) -> None:
    file = root / name
    if os.path.realpath(file.parent) != str(root / Path(name).parent):
        if os.path.lexists(file.parent):
            done.left.append((file, "its folder is a link now"))
        else:
            done.gone += 1
        return
    try:
        info = file.lstat()
    except (FileNotFoundError, NotADirectoryError):
        done.gone += 1
        return
    with atomic.writing(file):
        reason = _changed(file, info, line)
        if reason is None:
            file.unlink()
            done.removed[line["makes"]] += 1
        else:
            done.left.append((file, reason))


def _changed(file: Path, info: os.stat_result, line: dict[str, Any]) -> str | None:
    """Why a link or a copy is not removed."""
    kind, is_file = line["makes"], stat.S_ISREG(info.st_mode)
    if kind == "symlink":
        same = stat.S_ISLNK(info.st_mode) and os.readlink(file) == line.get("target")
        return None if same else "it is not the link that the run made"
    if kind == "hardlink":
        if not is_file or (info.st_dev, info.st_ino) != (line.get("device"), line.get("inode")):
            return "it is not the file that the run linked to"
        return None if info.st_nlink > 1 else "it is the last name of its image"
    if not is_file or info.st_size != line.get("bytes") or _sha256(file) != line.get("sha256"):
        return "it was changed since it was copied"
    image = line.get("image")
    if isinstance(image, str) and not os.path.exists(image):
        return f"the image that it is a copy of is gone ('{image}')"
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _remove_folder(folder: Path, done: Undone, own: Sequence[str] = ()) -> None:
    """Remove a folder in which nothing is but files of ours, which are removed with it."""
    if folder.is_symlink() or not folder.is_dir():
        if os.path.lexists(folder):
            done.left.append((folder, "it is no folder any more"))
        return
    atomic.sweep(folder)  # a copy that a killed run began
    with atomic.writing(folder):
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name not in own)
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            done.left.append((folder, f"it has '{names[0]}'{more}"))
            return
        for name in own:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
        done.removed["folder"] += 1
