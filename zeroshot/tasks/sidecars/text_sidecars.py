"""Captions or tags beside their images, `a.txt` for `a.jpg`."""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.output import atomic
from zeroshot.output.atomic import FULL
from zeroshot.output.formats import utf8
from zeroshot.tasks.sidecars.sidecar_task import BesideImages, keywords, other_kind
from zeroshot.tasks.sidecars.text_options import TextOptions

MAX_TEXT = 1 << 20
"""Bytes of a text that may be replaced."""


@dataclass(frozen=True)
class TextSidecars(BesideImages):
    """A text file for each image."""

    overwrite: bool = False
    """Whether existing files are replaced. Otherwise they stay, and are counted."""
    contents: Literal["captions", "tags"] = "captions"
    text: TextOptions = field(default_factory=TextOptions)
    suffix: str = ".txt"

    @property
    def what(self) -> str:  # type: ignore[override]
        """See `SidecarWriter`."""
        return self.contents

    def file(self, path: str) -> Path | None:
        """See `sidecar`."""
        return sidecar(path)

    def write(self, source: Source, row: Mapping[str, Any], meter: Meter) -> bool:
        """See `write_sidecar`."""
        if self.contents == "tags":
            text = self.text.of_tags(keywords(row))
        else:
            text = self.text.of_caption(row["caption"] or "")
        return write_sidecar(source.path or "", text, self.overwrite, meter)

    def is_missing(self, file: Path) -> bool:
        """Whether there is nothing of this name, or perhaps another text of the same row."""
        return self.text != TextOptions() or not os.path.lexists(file)

    def later(self) -> "TextSidecars":
        """See `SidecarWriter`."""
        return replace(self, overwrite=False)


def write_sidecar(path: str, caption: str, overwrite: bool, meter: Meter) -> bool:
    """Write the text of an image beside it; whether the file is new or another.

    What is there and is no text (a link, a pipe, a folder, an image) is never replaced.

    Raises:
        OutputError: the disk is full.
    """
    file, text = sidecar(path), utf8(caption) + b"\n"
    reason = "the image's name has no suffix, or that of a text" if file is None else None
    if file is not None:
        try:
            if _has(file, text):
                return False
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
    if (kind := other_kind(file)) is not None or not file.exists():
        return kind
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
