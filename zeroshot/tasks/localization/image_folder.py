"""Images that are written beside the rows: masks, and images with drawings on them."""

import io
import re
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL.Image import Image

from zeroshot.errors import UserError
from zeroshot.output import atomic

__all__ = ["ImageFolder", "file_name"]

LONGEST_STEM = 80
ID_DIGITS = 12


def file_name(path: str | None, id: str) -> str:
    """`cat-1f4a90c2d3e4.png` for the image at `path` with the content `id`.

    Never a path: characters that a name may not have become `_`. The same content with the same
    name gives the same file name, everything else gives another.
    """
    stem = PurePath((path or "picture").replace("\\", "/")).stem
    safe = re.sub(r"[^\w-]+", "_", stem)[:LONGEST_STEM].strip("_") or "picture"
    return f"{safe}-{id[:ID_DIGITS]}.png"


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, each named after the name and the content of its source."""

    folder: Path
    overwrite: bool = False
    """Whether a file with another image is replaced."""

    @classmethod
    def at(cls, path: str | Path | None, overwrite: bool) -> "ImageFolder | None":
        """The folder at a path, as an absolute one; None for none."""
        return None if path is None else cls(Path(path).absolute(), overwrite)

    def write(self, path: str | None, id: str, image: Image) -> str:
        """Write an image, all of it or nothing, and return the name of its file.

        Raises:
            UserError: no file can be there, or there is one with other content.
            OutputError: it cannot be written, for example because the disk is full.
        """
        name = file_name(path, id)
        file = self.folder / name
        data = io.BytesIO()
        image.save(data, "PNG", optimize=image.mode == "P")
        if not self.overwrite and file.is_file():
            with atomic.writing(file):
                if file.read_bytes() == data.getvalue():
                    return name
            raise UserError(
                f"'{file}' exists with other content; --overwrite replaces it, or name another "
                "folder"
            )
        with atomic.whole(file) as new:  # an existing link is replaced, never followed
            new.write(data.getvalue())
        return name
