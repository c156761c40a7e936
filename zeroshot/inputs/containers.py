"""Files that contain images: they can be named and counted long before they are opened."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Literal

from zeroshot.errors import UnreadableImageError
from zeroshot.inputs import hf_datasets, parquet, tables, webdataset
from zeroshot.inputs.remote import fsspec_files
from zeroshot.inputs.source import Source, with_captions
from zeroshot.inputs.tables import InputOptions
from zeroshot.inputs.text_files import suffix_of

ASKED_TOGETHER = 32
"""Number of remote files whose state is requested at a time."""


@dataclass(frozen=True, slots=True)
class ImageContainer:
    """A tar file, a table, a Parquet file, or a data set of Hugging Face (which is no file)."""

    name: str
    options: InputOptions
    version: str | None = None
    """`fsspec_files.version_of` the file when it was named, if its listing says so."""
    captions: Literal["ignored", "needed", "each"] = "ignored"
    """Whether an image of which it is not known which caption it has fails; a source for `each`."""

    @property
    def is_file(self) -> bool:
        """Whether it is a file, so that it can be a shard by itself."""
        return not self.name.lower().startswith(hf_datasets.PREFIX)

    @property
    def reading(self) -> dict[str, object]:
        """The options that decide which images the rows of a table are."""
        if webdataset.is_tar(self.name):
            return {}
        columns = {k: v for k, v in asdict(self.options.columns).items() if v is not None}
        return columns | ({} if self.options.root is None else {"root": self.options.root})

    def pictures(self, left_out: list[str] | None = None) -> Iterator[Source]:
        """Opens it and yields its images in order. Names of other files are added to `left_out`.

        Raises:
            UserError: a table without a column of images. NotAvailableError: a library is absent.
        """
        found = map(self.options.limited, self._pictures(left_out))
        return (
            found if self.captions == "ignored" else with_captions(found, self.captions == "each")
        )

    def _pictures(self, left_out: list[str] | None) -> Iterator[Source]:
        if not self.is_file:
            return hf_datasets.rows(self.name, self.options)
        if webdataset.is_tar(self.name):
            return webdataset.pictures(self.name, left_out, self.options.suffixes)
        if table_suffix(self.name) == ".parquet":
            return parquet.rows(self.name, self.options)
        return tables.rows(self.name, self.options)


@dataclass(frozen=True)
class Containers:
    """Files that contain images and have not been opened: each of them can be a shard."""

    files: tuple[ImageContainer, ...]


def needing_captions(
    images: Sequence[Source] | Containers, each: bool = False
) -> Sequence[Source] | Containers:
    """The images for a task that needs their captions, see `with_captions`."""
    if not isinstance(images, Containers):
        return list(with_captions(images, each))
    files = (replace(file, captions="each" if each else "needed") for file in images.files)
    return Containers(tuple(files))


def is_container(name: str) -> bool:
    """Whether a file contains images, by its name."""
    return webdataset.is_tar(name) or bool(table_suffix(name))


def is_shard(name: str) -> bool:
    """Whether a file usually is one of many: a tar or a Parquet file."""
    return webdataset.is_tar(name) or table_suffix(name) == ".parquet"


def table_suffix(name: str) -> str:
    """`.csv` of `x.csv`, of `x.csv.gz` and of a pattern that ends so; empty for other files."""
    suffix = suffix_of(name)
    compressed = name.lower().endswith(".gz")
    return suffix if suffix in tables.SUFFIXES and not (compressed and suffix == ".parquet") else ""


def versions(files: Sequence[ImageContainer]) -> list[str | None]:
    """The version of each file when it was named, else its version now; None if it is missing."""
    with ThreadPoolExecutor(ASKED_TOGETHER, thread_name_prefix="versions") as pool:
        return list(pool.map(lambda file: file.version or version_now(file.name), files))


def version_now(name: str) -> str | None:
    """`fsspec_files.version_of`; None if that fails. Reading the file will say why."""
    try:
        return fsspec_files.version_of(name)
    except fsspec_files.failures(name):
        return None


def with_bytes(source: Source) -> Source:
    """The source with its bytes, if they lie in a remote file of which this process has a copy."""
    content = source.content
    if isinstance(content, webdataset.InTar):
        name = content.tar
    elif isinstance(content, parquet.ParquetCell):
        name = content.column.table.name
    else:
        return source
    try:
        return replace(source, content=content.read()) if fsspec_files.has_copy(name) else source
    except UnreadableImageError:  # the same will be found when the image is read
        return source
