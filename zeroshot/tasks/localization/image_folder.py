"""Images written beside the rows: masks, and images that something is drawn on."""

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL.Image import Image

from zeroshot.errors import UserError

__all__ = ["ImageFolder", "file_name"]

LONGEST_STEM = 80
ID_DIGITS = 12


def file_name(path: str | None, id: str) -> str:
    """`cat-1f4a90c2d3e4.png` for the image at `path` with the content `id`.

    Never a path: what a name may not hold becomes `_`. The same content under the same name gives
    the same file, anything else another.
    """
    stem = PurePath((path or "picture").replace("\\", "/")).stem
    safe = re.sub(r"[^\w-]+", "_", stem)[:LONGEST_STEM].strip("_") or "picture"
    return f"{safe}-{id[:ID_DIGITS]}.png"


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, each under a name that its source's name and content make."""

    folder: Path
    overwrite: bool = False
    """Whether a file that holds another image is written over."""

    def write(self, path: str | None, id: str, picture: Image) -> str:
        """Write an image, all of it or nothing, and give its file's name.

        UserError for a folder that cannot be written to, and for a file that holds something else.
        """
        name = file_name(path, id)
        file = self.folder / name
        data = io.BytesIO()
        picture.save(data, "PNG", optimize=picture.mode == "P")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if file.is_file() and not self.overwrite:
                if file.read_bytes() == data.getvalue():
                    return name
                raise UserError(
                    f"'{file}' exists and holds something else; --overwrite writes over it, or "
                    "name another folder"
                )
            new = self.folder / f".{name}.{os.getpid()}.new"
            new.write_bytes(data.getvalue())
            os.replace(new, file)  # a link that lies there is replaced, never followed
        except OSError as error:
            raise UserError(f"cannot write '{file}': {error.strerror}") from error
        return name
