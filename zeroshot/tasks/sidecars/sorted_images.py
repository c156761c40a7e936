"""Images in a folder for each label: as links, or as copies."""

import contextlib
import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal

from zeroshot.errors import OutputError, UnreadableImageError, UserError
from zeroshot.images.reading import fetch
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import PICTURES, SIGNATURES, Source, UnreadableBlob
from zeroshot.output.atomic import FULL, check_place, writing
from zeroshot.output.manifest import MAX_NAME, Manifest, new_name, safe_name
from zeroshot.output.resumable import written_path
from zeroshot.tasks.classification.classify_options import ClassifyOptions
from zeroshot.tasks.sidecars.sidecar_task import A_FOLDER, keywords, other_kind

IntoAs = Literal["symlink", "hardlink", "copy"]
UNLABELLED = "unlabelled"
"""The folder of images without a label: of which the run abstains, or for which none holds."""


@dataclass(frozen=True)
class SortedImages:
    """A link to each image, or a copy of it, in the folder of its label."""

    manifest: Manifest
    folders: Mapping[str, str]
    """The folder of each label."""
    kind: IntoAs = "symlink"
    several: bool = False
    """Whether all labels of a row hold, rather than the first."""
    what: str = "links or copies"
    option: str = "--into"

    @property
    def place(self) -> str:
        """See `SidecarWriter`."""
        return f"in '{self.manifest.folder}'"

    def check(self, sources: Iterable[Source]) -> None:
        """UserError if there is nothing to link to (in memory, in an archive, behind a URL)."""
        if self.kind == "copy":
            return
        for source in sources:
            if source.content is not None and not isinstance(source.content, UnreadableBlob):
                raise UserError(
                    f"'{source.path or 'an image in memory'}' is no file of its own, so nothing "
                    "can be linked to it: give --into-as copy, or name image files"
                )

    def missing(self, sources: Iterable[Source]) -> dict[str | None, Source]:
        """All images: where each belongs, only its row says."""
        return {written_path(source.path): source for source in sources}

    def later(self) -> "SortedImages":
        """See `SidecarWriter`."""
        return self

    def write(self, source: Source, row: Mapping[str, Any], meter: Meter) -> bool:
        """Put an image where its row says; whether that changed anything.

        Raises:
            OutputError: the disk is full, or the manifest cannot be written.
        """
        labels = keywords(row)
        labels = labels if self.several else labels[:1]
        folders = [self.folders[label] for label in labels] or [UNLABELLED]
        return sum(self._put(source, folder, row.get("id"), meter) for folder in folders) > 0

    def _put(self, source: Source, folder: str, id: Any, meter: Meter) -> bool:
        path = source.path or ""
        try:
            self.manifest.make_folder(folder)
            kind = other_kind(self.manifest.folder / folder)
            if kind != A_FOLDER:
                reason = kind or "a file has its name"
                meter.add_unwritten(reason, str(self.manifest.folder / folder))
                return False
            data = None
            if source.content is not None:
                data = fetch(source).content
            elif not os.path.exists(path):
                meter.add_unwritten("the image is gone", path)
                return False
            names = names_for(path, data if isinstance(data, bytes) else b"")
            files = [self.manifest.folder / folder / name for name in names]
            if any(self._is_there(source, file, id) for file in files):
                return False
            return self._make(source, data, f"{folder}/", names, id, meter)
        except UnreadableImageError as error:
            meter.add_unwritten(f"the image cannot be read again ({error})", path)
        except OutputError:
            raise
        except OSError as error:
            with writing(self.manifest.folder):
                if error.errno in FULL:
                    raise
            meter.add_unwritten(_reason(error, self.kind), path)
        return False

    def _is_there(self, source: Source, file: Path, id: Any) -> bool:
        """Whether a file is the image, a link to it, or if copies are made a copy of it."""
        with contextlib.suppress(OSError):
            if source.content is None and os.path.samefile(file, source.path or ""):
                return True
            if self.kind == "copy" and other_kind(file) is None:
                with file.open("rb") as opened:
                    return bool(hashlib.file_digest(opened, "sha256").hexdigest() == id)
        return False

    def _make(
        self, source: Source, data: Any, folder: str, names: Sequence[str], id: Any, meter: Meter
    ) -> bool:
        path = source.path or ""
        if self.kind == "copy":
            content = fetch(source) if data is None else None
            data = content.content if content else data
            if not isinstance(data, bytes) or hashlib.sha256(data).hexdigest() != id:
                what = "it changed during the run" if isinstance(data, bytes) else "it is no file"
                meter.add_unwritten(what, path)
                return False
        for name in names:
            with contextlib.suppress(FileExistsError):
                if os.path.lexists(self.manifest.folder / folder / name):
                    continue
                if self.kind == "symlink":
                    self.manifest.symlink(folder + name, self._target(path, folder))
                elif self.kind == "hardlink":
                    self.manifest.hardlink(folder + name, path)
                else:
                    self.manifest.copy(folder + name, data, _file_of(source))
                return True
        other = self.manifest.folder / folder / names[-1]
        meter.add_unwritten(f"'{other}' is there, and is something else", path)
        return False

    def _target(self, path: str, folder: str) -> str:
        """The image as it is seen from a folder, so that both can be moved together."""
        above, name = os.path.split(path)
        here = os.path.realpath(self.manifest.folder / folder)
        return os.path.join(os.path.relpath(os.path.realpath(above), here), name)


def _file_of(source: Source) -> str | None:
    """The file that has an image: itself, or its archive or table; None if that is not here."""
    path = source.path or ""
    if source.content is None:
        return path
    around = (path.rpartition("#")[0], *map(str, PurePath(path).parents))  # rows and members
    return next((file for file in around if os.path.isfile(file)), None)


def _reason(error: OSError, kind: IntoAs) -> str:
    reason = error.strerror or str(error)
    if kind == "copy":
        return reason
    other = "hardlink or copy" if kind == "symlink" else "symlink or copy"
    return f"{reason}: this disk takes no such {kind} of it; give --into-as {other}"


def sort_into(
    folder: Path, kind: IntoAs, options: ClassifyOptions, labels: Sequence[str]
) -> SortedImages:
    """The writer for a run; nothing is made yet.

    Raises:
        UserError: a folder that cannot be made; two labels that would share one; nothing says which
            of several labels hold.
    """
    if options.multi and options.threshold is None:
        raise UserError(
            "--into puts an image into the folder of every label that holds, and needs a threshold "
            "to know them: give --threshold, or leave --multi out"
        )
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"--into {folder}: there is a file of this name, and a folder is needed")
    if not folder.absolute().parent.is_dir():
        raise UserError(f"--into {folder}: there is no folder '{folder.parent}' to make it in")
    check_place(folder, folder=True)
    folders = label_folders(labels)
    about = {"folders": {name: label for label, name in folders.items()}}
    return SortedImages(Manifest(folder, new_name(), about), folders, kind, options.multi)


def label_folders(labels: Sequence[str]) -> dict[str, str]:
    """The name of the folder of each label: see `safe_name`.

    Raises:
        UserError: two labels would have the same folder, also on a disk that ignores case and how
            accents are composed; or a name is too long.
    """
    folders: dict[str, str] = {}
    seen = {UNLABELLED: f"images without a label ('{UNLABELLED}')"}
    for label in labels:
        name = safe_name(label)
        if len(os.fsencode(name)) > MAX_NAME:
            raise UserError(
                f"the label '{label:.40}...' is too long for the name of its folder (at most "
                f"{MAX_NAME} bytes): shorten it, or leave --into out"
            )
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        if key in seen:
            raise UserError(
                f"the label '{label}' and {seen[key]} would have the same folder: rename the "
                "label, or leave --into out"
            )
        seen[key], folders[label] = f"the label '{label}'", name
    return folders


def names_for(path: str, data: bytes = b"") -> tuple[str, str]:
    """The name of an image, and another one for the case that a different image has it.

    The second has a hash of the image's whole path: the same in each run, in any order.
    """
    where = os.path.abspath(path) if not data else path
    name = safe_name(os.path.basename(path.replace("\0", "/").rstrip("/")) or "image")
    stem, suffix = os.path.splitext(name)
    if data and not PICTURES.fullmatch(suffix):  # row 3 of a table
        kinds = (kind for kind, begins in SIGNATURES.items() if begins.match(data))
        stem, suffix = name, f".{next(kinds, 'image').lower()}"
    digest = hashlib.sha256(os.fsencode(where)).hexdigest()[:8]
    suffix = suffix if len(suffix) <= 16 else ""

    def named(end: str) -> str:
        most = MAX_NAME - len(os.fsencode(end))
        return safe_name(os.fsdecode(os.fsencode(stem)[:most]) + end)

    return named(suffix), named(f"-{digest}{suffix}")


def outside(sources: Sequence[Source], folder: Path) -> list[Source]:
    """The images that do not lie in a folder or below it."""
    root, real = os.path.realpath(folder), cache(os.path.realpath)

    def lies_in(source: Source) -> bool:
        if source.content is not None or source.path is None or "\0" in source.path:
            return False
        above = str(real(os.path.dirname(source.path) or "."))
        return (
            PurePosixPath(above).is_relative_to(root)
            if os.sep == "/"
            else (Path(above).is_relative_to(root))
        )

    return [source for source in sources if not lies_in(source)]
