"""CLIP_benchmark's webdatasets, as they are on the Hub under `clip-benchmark/wds_*`.

    classnames.txt  zeroshot_classification_templates.txt  dataset_type.txt
    {split}/nshards.txt  {split}/0.tar  {split}/1.tar  ...

A sample of a shard is `KEY.jpg` (png, webp) with `KEY.cls`, the number of its class, or `KEY.txt`,
a caption per line. Nothing is unpacked: a picture is read where it lies in its archive.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.images import MAX_BYTES, Source
from zeroshot.tasks.captioned import Captioned
from zeroshot.tasks.reading import read_text

PICTURES = ("jpg", "jpeg", "png", "webp")
MAX_TEXT = 1 << 20
MAX_SHARDS = 100_000


@dataclass(frozen=True)
class Member:
    """A picture inside an archive."""

    archive: str
    offset: int
    size: int
    modified: int
    """of the archive, in nanoseconds"""

    @property
    def stamp(self) -> str | None:
        """See `images.Blob`."""
        return f"{self.archive} {self.modified} {self.offset} {self.size}"

    def read(self) -> bytes:
        """See `images.Blob`."""
        if self.size > MAX_BYTES:
            raise UnreadableImageError(f"larger than {MAX_BYTES >> 20} MiB")
        try:
            with open(self.archive, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise UnreadableImageError(f"its archive cannot be read: {error.strerror}") from error
        if len(data) != self.size:
            raise UnreadableImageError("its archive ends in the middle of it")
        return data


@dataclass(frozen=True)
class Sample:
    """A picture and the text beside it."""

    source: Source
    text: str
    where: str


@dataclass(frozen=True)
class LabelledShards:
    """Pictures of a classification set, with its own class names and templates."""

    sources: tuple[Source, ...]
    classes: tuple[int, ...]
    labels: tuple[str, ...]
    templates: tuple[str, ...]


def is_wds(folder: Path, split: str = "test") -> bool:
    """Whether a folder has this layout."""
    return (folder / split / "nshards.txt").is_file()


def read_classes(folder: Path, split: str = "test") -> LabelledShards:
    """A classification set.

    Raises:
        UserError: another kind of set, a file that is missing, or a class that has no name.
    """
    kind = _kind(folder)
    if kind != "classification":
        raise UserError(f"'{folder}' is a {kind} set, which has no single class per picture")
    labels = _lines(folder / "classnames.txt")
    templates = _lines(folder / "zeroshot_classification_templates.txt")
    sources, classes = [], []
    for sample in _samples(folder, split, "cls"):
        text = sample.text.strip()
        if not text.isdecimal() or len(text) > 9 or int(text) >= len(labels):
            known = f"classnames.txt has 0 to {len(labels) - 1}"
            raise UserError(f"{sample.where}: '{text[:20]}' is no class; {known}")
        sources.append(sample.source)
        classes.append(int(text))
    return LabelledShards(tuple(sources), tuple(classes), labels, templates)


def read_captions(folder: Path, split: str = "test") -> Captioned:
    """A retrieval set.

    Raises:
        UserError: another kind of set, a file that is missing, or a picture without captions.
    """
    kind = _kind(folder)
    if kind != "retrieval":
        raise UserError(f"'{folder}' is a {kind} set, which has no captions")
    sources, references = [], []
    for sample in _samples(folder, split, "txt"):
        captions = tuple(line.strip() for line in sample.text.splitlines() if line.strip())
        if not captions:
            raise UserError(f"{sample.where} has no captions")
        sources.append(sample.source)
        references.append(captions)
    return Captioned(tuple(sources), tuple(references))


def _kind(folder: Path) -> str:
    file = folder / "dataset_type.txt"
    return read_text(file).strip().lower() if file.exists() else "classification"


def _lines(file: Path) -> tuple[str, ...]:
    """Lines that hold something; class names may repeat, since a class is known by its place."""
    lines = tuple(line.strip() for line in read_text(file).splitlines() if line.strip())
    if not lines:
        raise UserError(f"'{file}' is empty")
    return lines


def _samples(folder: Path, split: str, kind: str) -> Iterator[Sample]:
    file = folder / split / "nshards.txt"
    count = read_text(file).strip()
    if not count.isdecimal() or not 0 < int(count[:9]) <= MAX_SHARDS:
        raise UserError(f"'{file}' holds no number of shards: '{count[:20]}'")
    for number in range(int(count)):
        yield from _of_shard(folder / split / f"{number}.tar", kind)


def _of_shard(archive: Path, kind: str) -> Iterator[Sample]:
    """Samples of an archive, in order; the files of a sample need not stand together."""
    pictures: dict[str, Member] = {}
    texts: dict[str, str] = {}
    try:
        modified = archive.stat().st_mtime_ns
        with tarfile.open(archive, "r:") as tar:
            for entry in tar:
                if not entry.isreg() or entry.issparse():
                    continue
                key, _, suffix = entry.name.rpartition(".")
                if suffix.lower() in PICTURES:
                    if key in pictures:
                        raise UserError(f"'{archive}' holds '{key}' twice")
                    pictures[key] = Member(str(archive), entry.offset_data, entry.size, modified)
                elif suffix == kind:
                    texts[key] = _text(tar, entry, f"'{archive}', '{entry.name}'")
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read '{archive}': {reason}") from None
    for key in sorted(pictures.keys() ^ texts.keys()):
        lacks = f".{kind}" if key in pictures else "picture"
        raise UserError(f"'{archive}': '{key}' has no {lacks}")
    for key, member in pictures.items():
        path = f"{archive}/{key}"
        yield Sample(Source(path, member), texts[key], f"'{path}'")


def _text(tar: tarfile.TarFile, entry: tarfile.TarInfo, where: str) -> str:
    if entry.size > MAX_TEXT:
        raise UserError(f"{where} is larger than {MAX_TEXT >> 10} KiB")
    file = tar.extractfile(entry)
    try:
        return file.read().decode("utf-8") if file else ""
    except UnicodeDecodeError:
        raise UserError(f"{where} is not UTF-8 text") from None
