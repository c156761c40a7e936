"""Captions and keywords in XMP beside their images: `a.jpg.xmp`, or `a.xmp`, for `a.jpg`.

A sidecar that exists is changed as little as possible: what others wrote stays, byte for byte.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.output import atomic
from zeroshot.output.xmp import xmp_fields
from zeroshot.output.xmp.xmp_document import MAX_BYTES, XmpError
from zeroshot.output.xmp.xmp_fields import MergedXmp
from zeroshot.tasks.sidecars.sidecar_task import BesideImages, keywords, other_kind

XmpName = Literal["full", "stem"]


@dataclass(frozen=True)
class XmpSidecars(BesideImages):
    """A sidecar for each image, with its caption or its keywords."""

    contents: Literal["captions", "keywords"]
    name: XmpName = "full"
    suffix: str = ".xmp"

    @property
    def what(self) -> str:  # type: ignore[override]
        """See `SidecarWriter`."""
        return self.contents

    def file(self, path: str) -> Path | None:
        """See `xmp_file`."""
        return xmp_file(path, self.name)

    def write(self, source: Source, row: Mapping[str, Any], meter: Meter) -> bool:
        """Merge what a row says into the sidecar; whether the file changed."""
        path = source.path or ""
        if self.contents == "keywords":
            return self._merge(path, lambda x: xmp_fields.with_keywords(x, keywords(row)), meter)
        caption = row["caption"]
        return bool(caption) and self._merge(
            path, lambda x: xmp_fields.with_text(x, caption), meter
        )

    def is_missing(self, file: Path) -> bool:
        """Whether a sidecar is absent, or has nothing of ours; True for what cannot be read."""
        holds = xmp_fields.holds_text if self.contents == "captions" else xmp_fields.holds_keywords
        try:
            data = _read(file)
            return data is None or not holds(data)
        except (OSError, XmpError):
            return True

    def later(self) -> "XmpSidecars":
        """See `SidecarWriter`; only sidecars without ours are looked at then."""
        return self

    def _merge(self, path: str, change: Callable[[bytes], MergedXmp], meter: Meter) -> bool:
        file = self.file(path)
        if file is None:
            meter.add_unwritten("the image's name is that of a sidecar, or has no suffix", path)
            return False
        return _change(file, change, meter)

    def remove(self, path: str, meter: Meter) -> bool:
        """Take all that is ours out of the sidecar of an image; whether there was any.

        A sidecar in which nothing else is left, and which we made, is removed.
        """
        file = self.file(path)
        if file is None or not os.path.lexists(file):
            return False
        return _change(file, lambda data: MergedXmp(xmp_fields.without_ours(data)), meter)


def xmp_file(path: str, name: XmpName = "full") -> Path | None:
    """The sidecar of an image: its whole name, or its name up to the last suffix, and `.xmp`."""
    image = Path(path)
    if image.suffix.lower() == ".xmp" or "\0" in path or (name == "stem" and not image.suffix):
        return None
    return image.with_suffix(".xmp") if name == "stem" else image.with_name(f"{image.name}.xmp")


def _change(file: Path, change: Callable[[bytes], MergedXmp], meter: Meter) -> bool:
    """Change a sidecar, or make it; whether it changed."""
    try:
        before = _read(file)
        data = xmp_fields.NEW if before is None else before
        merged = change(data)
        meter.kept_texts += len(merged.kept)
        if merged.data == data:
            return False
        _write(file, before, merged.data)
    except XmpError as error:
        meter.add_unwritten(str(error), str(file))
        return False
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        if cause.errno in atomic.FULL:
            with atomic.writing(file):
                raise
        meter.add_unwritten(cause.strerror or str(cause), str(file))
        return False
    return True


def _read(file: Path) -> bytes | None:
    """The content of a sidecar; None without one.

    Raises:
        XmpError: it is no file, or too large.
    """
    kind = other_kind(file)
    if kind is not None:
        raise XmpError(kind)
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(data) > MAX_BYTES:
        raise XmpError(f"it has more than {MAX_BYTES >> 20} MiB")
    return data


def _write(file: Path, before: bytes | None, data: bytes) -> None:
    """Put `data` in place of what was read before.

    Raises:
        XmpError: the file is another one by now.
    """
    changed = XmpError("another program changed it meanwhile: run the same command again")
    if before is None:
        if not atomic.publish(file, data):
            raise changed
        return
    if data == xmp_fields.NEW:  # as we made it, and now without anything
        if _read(file) != before:
            raise changed
        file.unlink()
        return
    with atomic.whole(file, begins=False) as new:
        os.fchmod(new.fileno(), file.stat().st_mode & 0o7777)
        new.write(data)
        if _read(file) != before:
            raise changed
