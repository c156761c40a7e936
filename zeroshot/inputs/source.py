"""Images as a user names them, before anything is opened."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL.Image import Image

from zeroshot.errors import UnreadableImageError
from zeroshot.inputs.remote.public_names import public

MAX_BYTES = 1 << 30
"""Size limit of an image file."""
MAX_PIXELS = 100_000_000
"""Limit of an image's pixels, unless a source has its own. A JPEG beyond it is decoded at a part of
its size, whatever the source's limit, so that an image has the same pixels in every run."""
MANY_ROWS = 200_000
"""A table has at most so many rows, and two more for each byte of its file, which may be packed: a
million numbered names take 0.7 MB."""

PICTURES = re.compile(
    r"\.(jpe?g?|jfif|mpo|a?png|webp|gif|bmp|dib|tiff?|avifs?|hei[cf]|hif|p[bfgnp]m"
    r"|cr[23w]|nef|nrw|arw|sr[2fw]|dng|orf|rw[2l]|raf|pef|3fr|iiq|erf|mef|mos)",
    re.IGNORECASE,
)
DATA = re.compile(
    r"\.(jsonl?|csv|tsv|parquet|toml|ya?ml|xml|md|html?|npz|npy|safetensors"
    r"|xmp|aae|ini|db|lnk|url)",  # and what cameras and systems put beside images: Thumbs.db
    re.IGNORECASE,
)
"""Suffixes of images (from `cr2` on raw files), and of files beside images that are none."""
UNREADABLE = re.compile(r"\.(jp2|j2[ck]|jp[fx]|jxl|psd|x3f)", re.IGNORECASE)
"""Suffixes of images of other formats: a folder's scan gives them, so that a row says so."""
SIGNATURES: Mapping[str, re.Pattern[bytes]] = {
    kind: re.compile(begins, re.DOTALL)
    for kind, begins in {
        "JPEG": rb"\xff\xd8\xff",
        "PNG": rb"\x89PNG\r\n\x1a\n",
        "WebP": rb"RIFF....WEBP",
        "GIF": rb"GIF8[79]a",
        "BMP": rb"BM",
        "TIFF": rb"II[*+]\0|MM\0[*+]",
        "AVIF": rb"....ftyp(avi[fs]|(mif1|msf1).{4}(.{4}){0,12}?avi[fs])",
        "HEIC": rb"....ftyp(hei[cfmsx]|hev[cmsx]|mif1|msf1)",
        "PPM": rb"(P[1-6]|Pf)(\s|#[^\n]*\n)+\d",
        "raw": rb"FUJIFILMCCD-RAW|IIU\0|IIR[OS]|MMOR|....ftypcrx ",
    }.items()
}
"""How each format of images begins; the first match counts. Most raw files begin as a TIFF."""
VIDEO = re.compile(
    rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....(AVI |WEBP)|GIF8|\x89PNG|FLV\x01|OggS|\x30\x26\xb2\x75"
    rb"|\0\0\x01[\xb3\xba]|G.{187}G",
    re.DOTALL,
)
"""How clips begin."""
BEGINNING = 256
"""Number of bytes that decide by these."""
CLIPS = re.compile(
    r"\.(mp4|m4v|mov|3gp|mkv|webm|avi|og[gv]|flv|wmv|asf|mpe?g|vob|m?ts|m2ts|gif|webp|a?png)",
    re.IGNORECASE,
)
"""Suffixes of clips; animations are image files."""
EITHER = re.compile(f"{PICTURES.pattern}|{CLIPS.pattern}", re.IGNORECASE)
SORTED = re.compile(r"zeroshot-sorted-.*\.jsonl")
"""Manifests of folders of links to images, or of copies, that `classify --into` made."""
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
"""Suffixes of tar files. A compressed one is an error that says to unpack it."""
URL = re.compile(r"https?://", re.IGNORECASE)
SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
"""How a web address begins, and how any address does; a drive letter (`C:`) is no address."""


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


def most_rows(file: File) -> int:
    """The number of rows that a table may have; `MAX_BYTES` for a pipe, whose size is unknown."""
    if not getattr(file, "seekable", lambda: True)():
        return MAX_BYTES
    place = file.tell()
    size = file.seek(0, 2)
    file.seek(place)
    return MANY_ROWS + 2 * size


@dataclass(frozen=True, slots=True, eq=False)
class Fields(Mapping[str, str | tuple[str, ...]]):
    """Caption and label of an image, as a mapping that needs a third of a dict's memory."""

    caption: str | tuple[str, ...] | None = None
    """One caption, or several."""
    label: str | None = None
    fault: str | None = None
    """Why it is not known which caption or label the image has."""

    def __getitem__(self, name: str) -> str | tuple[str, ...]:
        value = {"caption": self.caption, "label": self.label}[name]
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return (name for name in ("caption", "label") if getattr(self, name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


NO_FIELDS = Fields()


@runtime_checkable
class Blob(Protocol):
    """Where the bytes of an image are that is no file: in an archive, in a table, behind a URL.

    Small and picklable: it contains no bytes.
    """

    @property
    def stamp(self) -> str | None:
        """Names place and state of the bytes, so that it changes when they do; None if unknown.

        Three parts separated by null characters: the file, the place in it, the file's state.
        """

    def read(self) -> bytes:
        """The bytes, at most `MAX_BYTES`; UnreadableImageError with the reason."""


@dataclass(frozen=True)
class Picture:
    """A decoded image, upright and RGB, and the sha256 of the bytes that it was read from."""

    id: str
    image: Image
    full_size: tuple[int, int] | None = None
    """Width and height in the file, of which a very large JPEG is decoded at a fraction. By default
    those of the image."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in the file."""
        return self.full_size or self.image.size


@dataclass(frozen=True, slots=True)
class Source:
    """One image among the inputs.

    Without `content`, `path` is its file. `content` is a PIL image, the bytes of a file, a `Blob`
    that knows where they are, or an image that is already decoded; `path` then is its label in the
    output, or None. `fields` are its `caption` (a tuple of several) and `label`.
    """

    path: str | None
    content: Image | bytes | Blob | Picture | None = None
    fields: Mapping[str, str | tuple[str, ...]] = field(
        default_factory=lambda: NO_FIELDS, repr=False, hash=False
    )
    max_pixels: int = field(default=MAX_PIXELS, repr=False)
    """More are not decoded."""

    @property
    def captions(self) -> tuple[str, ...]:
        """The captions that came with the image."""
        own = self.fields.get("caption", ())
        return (own,) if isinstance(own, str) else own

    def text_of(self, name: str) -> str | None:
        """A field that has one value at most: its `label`."""
        value = self.fields.get(name)
        return value if isinstance(value, str) else None

    def __post_init__(self) -> None:
        """A label shows no password and no signature of an address."""
        if self.content is not None and self.path is not None and "://" in self.path:
            object.__setattr__(self, "path", public(self.path))


@dataclass(frozen=True, slots=True)
class UnreadableBlob:
    """A `Blob` without bytes: reading it raises the reason, which is known before."""

    reason: str

    @property
    def stamp(self) -> str | None:
        """None, as there are no bytes."""
        return None

    def read(self) -> bytes:
        """Raises UnreadableImageError."""
        raise UnreadableImageError(self.reason)


def with_captions(sources: Iterable[Source], each: bool = False) -> Iterator[Source]:
    """Sources for a task that needs captions or labels: they fail if these are not known.

    Args:
        each: a source for each caption of an image.
    """
    for source in sources:
        fields = source.fields
        if isinstance(fields, Fields) and fields.fault is not None:
            yield replace(source, content=UnreadableBlob(fields.fault))
        elif each and len(source.captions) > 1:
            for caption in source.captions:
                yield replace(source, fields=Fields(caption, source.text_of("label")))
        else:
            yield source


@dataclass(frozen=True)
class Listing:
    """Sources in the order of the inputs, and the files that a scan of a folder left out."""

    sources: tuple[Source, ...]
    left_out: tuple[str, ...]


Input = str | Path | bytes | Image | Source
