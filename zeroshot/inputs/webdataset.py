"""Images in tar files: plain ones, and webdatasets with a caption or a class beside each.

A webdataset is a tar file in which the files of one sample follow one another and share all of
their name up to the first dot of the last part: `000/17.jpg`, `000/17.txt`, `000/17.cls`
(https://github.com/webdataset/webdataset). In a sample, a text belongs to the image that has the
same name up to its last suffix: `at 10.15.txt` to `at 10.15.png`, and not to `at 10.16.png`.
CLIP_benchmark keeps data sets as folders of them:
`classnames.txt`, `zeroshot_classification_templates.txt`, `dataset_type.txt`, and for each split
`{split}/nshards.txt` and `{split}/{i}.tar`.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.inputs import tar, text_files
from zeroshot.inputs.columns import fields_of
from zeroshot.inputs.remote import fsspec_files
from zeroshot.inputs.source import (
    MAX_BYTES,
    NO_FIELDS,
    PICTURES,
    TARS,
    Fields,
    File,
    Source,
    UnreadableBlob,
)

TEXTS = ("txt", "cls", "json")
"""Suffixes of what says something of an image: its captions, its label, both."""
MAX_PART = 1 << 20
"""Size limit of a caption, a class or a sample's JSON, in bytes."""
MAX_SHARDS = 1_000_000


@dataclass(frozen=True, slots=True)
class InTar:
    """The bytes of an image in a tar file."""

    tar: str
    start: int
    size: int

    @property
    def stamp(self) -> str | None:
        """The tar file, the place in it, and the tar file's state."""
        try:
            state = fsspec_files.state_of(self.tar)
        except fsspec_files.failures(self.tar):  # reading will say so
            return None
        name = self.tar if fsspec_files.is_remote(self.tar) else os.path.abspath(self.tar)
        return None if state is None else f"{name}\0{self.start} {self.size}\0{state}"

    def read(self) -> bytes:
        """The bytes; UnreadableImageError with the reason."""
        try:
            data = fsspec_files.read_range(self.tar, self.start, self.size)
        except fsspec_files.failures(self.tar) as error:
            raise UnreadableImageError(f"the tar file: {fsspec_files.why(error)}") from error
        if len(data) < self.size:
            raise UnreadableImageError("the tar file has become shorter since it was listed")
        return data


def is_tar(name: str) -> bool:
    """Whether a file is a tar file, by its name."""
    return name.lower().endswith(TARS)


def pictures(
    name: str, left_out: list[str] | None = None, suffixes: re.Pattern[str] = PICTURES
) -> Iterator[Source]:
    """The images of a tar file, in order, with the captions and labels beside them.

    Images are members with one of the `suffixes`. A member that cannot be an image's file (a link,
    a device, a name that leads out of the archive or is repeated) becomes a source that fails, and
    so does damage, once for all members behind it. If it is not known which caption or label an
    image has, `Fields.fault` says why. Names of other members are added to `left_out`.
    """
    count = 0
    beside = [] if left_out is None else left_out
    seen: set[str] = set()
    try:
        with fsspec_files.open_file(name) as file:
            for sample in samples(file):
                yield from _sources(name, file, sample, count, seen, beside, suffixes)
                count += len(sample)
    except tar.DamagedError as error:
        yield Source(f"{name}#{count}" if count else name, UnreadableBlob(f"tar file: {error}"))
    except FileNotFoundError:
        yield Source(name, UnreadableBlob("no such file"))
    except fsspec_files.failures(name) as error:
        yield Source(name, UnreadableBlob(f"cannot be read: {fsspec_files.why(error)}"))


def parts(name: str, suffix: str) -> Iterator[tuple[str, bytes]]:
    """The bytes of each member with this suffix, after its image's path without suffix (`stem_of`).

    Raises:
        ValueError: damage, a member that is no file, or one larger than `MAX_PART`.
    """
    try:
        with fsspec_files.open_file(name) as file:
            for member in tar.members(file):
                if not member.name.lower().endswith(suffix):
                    continue
                if (bad := _fault(member)) is not None:
                    raise ValueError(bad)
                yield stem_of(f"{name}/{member.name.removeprefix('./')}"), _bytes(file, member)
    except fsspec_files.failures(name) as error:
        raise ValueError(fsspec_files.why(error)) from error


def samples(file: File) -> Iterator[list[tar.Member]]:
    """Members that follow one another and share a key; DamagedError after the last whole one."""
    sample: list[tar.Member] = []
    try:
        for member in tar.members(file):
            if sample and key_of(sample[0].name) != key_of(member.name):
                yield sample
                sample = []
            sample.append(member)
    except tar.DamagedError:
        if sample:
            yield sample
        raise
    if sample:
        yield sample


def key_of(name: str) -> str:
    """What the files of a sample share: the name up to the first dot of its last part."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def stem_of(name: str) -> str:
    """What an image and its texts share: the name up to the last dot of its last part."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    return f"{folder}{slash}{base.rpartition('.')[0] or base}"


def _sources(
    name: str,
    file: File,
    sample: Sequence[tar.Member],
    first: int,
    seen: set[str],
    beside: list[str],
    suffixes: re.Pattern[str],
) -> Iterator[Source]:
    """The images of one sample, whose first member is the tar file's `first`-th."""
    images: dict[str, set[str]] = {}
    texts: dict[str, list[tar.Member]] = {}
    for member in sample:
        if _fault(member, suffixes) is None:
            if _is_picture(member.name, suffixes):
                images.setdefault(stem_of(member.name), set()).add(member.name)
            elif _suffix(member.name) in TEXTS:
                texts.setdefault(stem_of(member.name), []).append(member)
    fields = {s: _fields_or_fault(file, texts.get(s, ()), len(own)) for s, own in images.items()}
    for number, member in enumerate(sample, first):
        label, stem = f"{name}/{member.name.removeprefix('./')}", stem_of(member.name)
        bad = _fault(member, suffixes)
        if bad is not None:
            yield Source(f"{name}#{number}", UnreadableBlob(bad))
        elif not _is_picture(member.name, suffixes):
            if stem not in images or _suffix(member.name) not in TEXTS:
                beside.append(label)
        elif label in seen:
            again = f"the tar file has {member.name!r} twice; the first one is used"
            yield Source(f"{name}#{number}", UnreadableBlob(again))
        else:
            seen.add(label)
            yield Source(label, InTar(name, member.start, member.size), fields[stem])


def ambiguity(texts: Sequence[str], images: int) -> str | None:
    """Why texts and images of one name do not belong together; None for an image and its texts."""
    kinds: dict[str, str] = {}
    for name in texts:
        if (other := kinds.setdefault(_suffix(name), name)) is not name:
            return f"{other!r} and {name!r}: it is not known which one holds"
    return f"{images} images have the name of {texts[0]!r}" if texts and images > 1 else None


def _fields_or_fault(file: File, texts: Sequence[tar.Member], images: int) -> Fields:
    """What the texts of one name say of the images of that name."""
    if not texts:
        return NO_FIELDS
    if (fault := ambiguity([member.name for member in texts], images)) is not None:
        return Fields(fault=fault)
    try:
        return _fields(file, texts)
    except ValueError as error:
        return Fields(fault=str(error))


def _is_picture(name: str, suffixes: re.Pattern[str]) -> bool:
    """Whether a member is an image, by its suffix; hidden files are not."""
    parts = name.removeprefix("./").split("/")
    stem, dot, suffix = parts[-1].rpartition(".")
    hidden = any(part.startswith(".") for part in parts)
    return not hidden and bool(stem) and suffixes.fullmatch(dot + suffix) is not None


def _suffix(name: str) -> str:
    """`txt` of `in/a.b.TXT`."""
    _, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return suffix.lower() if dot else ""


def _fault(member: tar.Member, suffixes: re.Pattern[str] = PICTURES) -> str | None:
    """Why a member is no image's file, whatever its bytes are."""
    parts = member.name.replace("\\", "/").split("/")
    if member.fault is not None:
        return f"{member.name!r} is {member.fault}, not a file"
    if ".." in parts or not parts[0] or parts[0][1:2] == ":":
        return f"{member.name!r} is a name that leads out of the tar file"
    if member.size > MAX_BYTES and _is_picture(member.name, suffixes):
        return f"{member.name!r} is larger than {MAX_BYTES >> 20} MiB"
    return None


def _fields(file: File, texts: Sequence[tar.Member]) -> Fields:
    """Captions, a line each, and label; those of a `.txt` and a `.cls` before those of a `.json`.

    A caption of several lines is one if a `.json` has it so.

    Raises:
        ValueError: a member is too large, no text or no JSON.
    """
    contents = {_suffix(member.name): (_text(file, member), member.name) for member in texts}
    described = fields_of(_object(*contents["json"])) if "json" in contents else Fields()
    caption, label = described.caption, described.label
    lines = _captions(contents["txt"][0]) if "txt" in contents else ()
    if lines and not (isinstance(caption, str) and _captions(caption) == lines):
        caption = lines[0] if len(lines) == 1 else lines
    if "cls" in contents:
        label = sys.intern(contents["cls"][0].strip())
    return Fields(caption, label)


def _captions(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text_files.split_lines(text) if line.strip())


def _bytes(file: File, member: tar.Member) -> bytes:
    if member.size > MAX_PART:
        raise ValueError(f"{member.name!r} beside it is larger than {MAX_PART >> 20} MiB")
    file.seek(member.start)
    return file.read(member.size)


def _text(file: File, member: tar.Member) -> str:
    try:
        return text_files.decode(_bytes(file, member))
    except text_files.TextError as error:
        raise ValueError(f"{member.name!r} {error}") from None


def _object(text: str, name: str) -> dict[str, object]:
    try:
        value = text_files.parse_json(text)
    except text_files.TextError as error:
        raise ValueError(f"{name!r} {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name!r} beside it is no JSON object")
    return value


def missing_shards(nshards: str, there: Sequence[str]) -> list[str]:
    """Tar files that `nshards.txt` counts and that are not `there`.

    Raises:
        UserError: it is no number.
    """
    text = text_files.read_text(Path(nshards))
    try:
        count = int(text)
    except ValueError:
        raise UserError(f"'{nshards}' is no number of tar files: {text.strip()[:20]!r}") from None
    if not 0 <= count <= MAX_SHARDS:
        raise UserError(f"'{nshards}' says {count} tar files; at most {MAX_SHARDS} are read")
    folder = os.path.dirname(nshards)
    known = set(there)
    names = (os.path.join(folder, f"{i}.tar") for i in range(count))
    return [name for name in names if name not in known]


@dataclass(frozen=True)
class WebDataset:
    """One split of a data set that CLIP_benchmark keeps as tar files."""

    tars: tuple[str, ...]
    kind: str
    """`classification`, `retrieval` or `multilabel`."""
    classes: tuple[str, ...]
    """Their names; an image's `label` is an index into these. Empty without `classnames.txt`."""
    templates: tuple[str, ...]
    """Prompts with `{c}` in place of the class name. Empty without the file of templates."""

    def sources(self) -> Iterator[Source]:
        """The images of all tar files."""
        for name in self.tars:
            yield from pictures(name)


def read_dataset(folder: Path, split: str = "test") -> WebDataset:
    """The data set in a folder.

    Raises:
        UserError: the folder has no such split, or a class no name.
    """
    nshards = folder / split / "nshards.txt"
    if not nshards.is_file():
        raise UserError(f"'{folder}' is no webdataset of CLIP_benchmark's: no file '{nshards}'")

    def lines(name: str, numbered: bool = False) -> tuple[str, ...]:
        path = folder / name
        read = text_files.read_lines(path, numbered) if path.is_file() else []
        return tuple(line for _, line in read)

    return WebDataset(
        tuple(missing_shards(str(nshards), [])),
        next(iter(lines("dataset_type.txt")), "classification").lower(),
        lines("classnames.txt", numbered=True),
        lines("zeroshot_classification_templates.txt"),
    )
