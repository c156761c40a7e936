"""What a person names as pictures, before anything is opened."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL.Image import Image

from zeroshot.errors import UnreadableImageError

MAX_BYTES = 1 << 30
"""Of one picture, wherever it lies."""

PICTURES = re.compile(r"\.(jpe?g?|jfif|mpo|a?png|webp|gif|bmp|dib|tiff?)", re.IGNORECASE)
DATA = re.compile(
    r"\.(jsonl?|csv|tsv|parquet|toml|ya?ml|md|html?|npz|npy|safetensors)", re.IGNORECASE
)
"""Suffixes of pictures; and of manifests and data, which live beside pictures and are none."""
CLIPS = re.compile(
    r"\.(mp4|m4v|mov|3gp|mkv|webm|avi|og[gv]|flv|wmv|asf|mpe?g|vob|m?ts|m2ts|gif|webp|a?png)",
    re.IGNORECASE,
)
"""Of what may be a clip; animations are files of pictures."""
URL = re.compile(r"https?://", re.IGNORECASE)
SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
"""How a web address begins, and anything that is no path (a drive letter is one letter)."""


@runtime_checkable
class File(Protocol):
    """An open file of bytes, here or elsewhere."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes."""

    def seek(self, place: int, whence: int = 0, /) -> int:
        """Go to a place, and say which."""

    def tell(self) -> int:
        """The place."""

    def __enter__(self) -> "File": ...
    def __exit__(self, *error: Any) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Fields(Mapping[str, str]):
    """What came with a picture: a mapping of those that it has, in a third of a dict's memory."""

    caption: str | None = None
    label: str | None = None

    def __getitem__(self, name: str) -> str:
        value = {"caption": self.caption, "label": self.label}[name]
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return (name for name in ("caption", "label") if getattr(self, name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


_NOTHING = Fields()


@runtime_checkable
class Blob(Protocol):
    """The bytes of a picture that is no file of its own: in an archive, a table, behind a URL.

    Small and picklable: it says where the bytes are and holds none.
    """

    @property
    def stamp(self) -> str | None:
        """Names place and state of the bytes, so that it changes when they do; None if unknown.

        Three parts with null characters between: the file they lie in, the place in it, the state.
        """

    def read(self) -> bytes:
        """The bytes, at most `MAX_BYTES`; UnreadableImageError with the reason."""


@dataclass(frozen=True)
class Picture:
    """A picture that was read: upright RGB, and the sha256 of what it was read from."""

    id: str
    image: Image


@dataclass(frozen=True, slots=True)
class Source:
    """One picture that was asked for: a path as it is shown, or a picture that is no file.

    `content` holds a PIL image, the bytes of a file, or where they are; then `path` is only its
    label in the output, or None. A picture that was read elsewhere is handed on as it is. `fields`
    is what came with the picture (`caption`, `label`).
    """

    path: str | None
    content: Image | bytes | Blob | Picture | None = None
    fields: Mapping[str, str] = field(default_factory=lambda: _NOTHING, repr=False, hash=False)


@dataclass(frozen=True, slots=True)
class UnreadableBlob:
    """A `Blob` that was found to be none: reading it fails, for the reason known already."""

    reason: str

    @property
    def stamp(self) -> str | None:
        """None: there are no bytes."""
        return None

    def read(self) -> bytes:
        """Raises UnreadableImageError."""
        raise UnreadableImageError(self.reason)


@dataclass(frozen=True)
class Listing:
    """Sources in the order of the inputs, and the files that a scan left out."""

    sources: tuple[Source, ...]
    left_out: tuple[str, ...]


Input = str | Path | bytes | Image | Source
