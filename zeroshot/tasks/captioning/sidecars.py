"""Captions beside their images, `a.txt` for `a.jpg`, as a task around another."""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source, UnreadableBlob
from zeroshot.output import atomic
from zeroshot.output.atomic import FULL
from zeroshot.output.formats import utf8
from zeroshot.output.resumable import written_path
from zeroshot.results.result import CaptionResult, Result
from zeroshot.tasks.captioning.caption_options import CaptionOptions
from zeroshot.tasks.captioning.caption_task import CaptionImages
from zeroshot.tasks.captioning.trained import NativeCaption
from zeroshot.tasks.task import Runner, Task

OTHER_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}
MAX_TEXT = 1 << 20
"""Bytes of a text that may be replaced."""


@dataclass(frozen=True, kw_only=True)
class SidecarCaption(Task[CaptionOptions]):
    """Captions, each also in its own file; the rows are those of `captions`."""

    captions: CaptionImages | NativeCaption
    overwrite: bool = False
    """Whether existing files are replaced. Otherwise they stay, and are counted."""

    schema: ClassVar[str] = CaptionResult.schema

    def on(self, device: str) -> "SidecarCaption":
        """The same task on another device."""
        return replace(self, captions=self.captions.on(device))

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "SidecarRunner":
        """Load the models."""
        return SidecarRunner(self.captions.open(cache, meter, batch_size), self.overwrite)


@dataclass(frozen=True)
class SidecarRunner:
    """Writes the captions of another runner."""

    inner: Runner
    overwrite: bool

    @property
    def batch_size(self) -> int:
        """The batch size of the captions."""
        return self.inner.batch_size

    def settings(self) -> dict[str, Any]:
        """The settings of the captions; sidecars decide no row."""
        return self.inner.settings()

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[Result]:
        """One result per image; its file is written first.

        Raises:
            OutputError: the disk is full. All else about one file is counted by the meter.
        """
        for result in self.inner(sources, meter):
            if result.error is None and result.path is not None:
                write_sidecar(result.path, result.summary(), self.overwrite, meter)
            yield result


def check_sidecars(sources: Iterable[Source]) -> None:
    """Check before a run that each image has a sidecar of its own.

    Raises:
        UserError: an image is no file (in memory, in an archive, behind a URL), or two images
            would have the same sidecar.
    """
    images: dict[str, tuple[str, str]] = {}
    folder = cache(os.path.realpath)
    for source in sources:
        path = source.path
        if isinstance(source.content, UnreadableBlob):
            continue
        if source.content is not None or path is None:
            raise UserError(
                f"'{path or 'an image in memory'}' is no file of its own, so no .txt file can be "
                "written beside it: leave --sidecar out, or name image files"
            )
        file = sidecar(path)
        if file is None:
            continue
        where = folder(file.parent)
        image, text = (
            os.path.normcase(f"{where}/{n}") for n in (os.path.basename(path), file.name)
        )
        first, first_path = images.setdefault(text, (image, path))
        if first != image:
            raise UserError(
                f"'{first_path}' and '{path}' would both have their caption in '{file}': rename "
                "one of them, or leave --sidecar out"
            )


def write_sidecar(path: str, caption: str, overwrite: bool, meter: Meter) -> bool:
    """Write the caption of an image beside it; whether that was done or had been done before.

    What is there and is no text (a link, a pipe, a folder, an image) is never replaced.

    Raises:
        OutputError: the disk is full.
    """
    file, text = sidecar(path), utf8(caption) + b"\n"
    reason = "the image's name has no suffix, or that of a text" if file is None else None
    if file is not None:
        try:
            if _has(file, text):
                return True
            reason = _obstacle(file, overwrite)
            if reason is None and overwrite:
                atomic.replace(file, text)
            elif reason is None and not atomic.publish(file, text):
                meter.skipped_existing += 1
                return False
        except OSError as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            if cause.errno in FULL:
                with atomic.writing(file):
                    raise
            reason = cause.strerror or str(cause)
    if reason is not None:
        meter.add_unwritten(reason, str(file or path))
    return reason is None


def _has(file: Path, text: bytes) -> bool:
    """Whether a file, and nothing else of this name, has this text."""
    try:
        info = file.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(info.st_mode) and info.st_size == len(text) and file.read_bytes() == text


def _obstacle(file: Path, overwrite: bool) -> str | None:
    """What is at this path and may not be replaced."""
    try:
        mode = file.lstat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        return f"{OTHER_KINDS.get(stat.S_IFMT(mode), 'something else')} has its name"
    return "a file that is no text has its name" if overwrite and not _is_text(file) else None


def _is_text(file: Path) -> bool:
    with file.open("rb") as opened:
        data = opened.read(MAX_TEXT + 1)
    try:
        return len(data) <= MAX_TEXT and "\0" not in data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False


def sidecar(path: str) -> Path | None:
    """The file for the caption of an image: its name up to its last suffix, and `.txt`.

    None for a name without a suffix, which would not be known as the text's image, or with `.txt`.
    """
    image = Path(path)
    if not image.suffix or image.suffix.lower() == ".txt" or "\0" in path:
        return None
    return image.with_suffix(".txt")


def missing_sidecars(sources: Iterable[Source]) -> dict[str | None, str]:
    """The paths of the images without a sidecar, by the paths in their rows."""
    paths = (source.path for source in sources if source.path is not None)
    files = ((path, sidecar(path)) for path in paths)
    return {written_path(p): p for p, file in files if file and not os.path.lexists(file)}
