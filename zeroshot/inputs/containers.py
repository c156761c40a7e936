"""Files that hold pictures: they can be named, and counted on, long before they are opened."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

from zeroshot.errors import UnreadableImageError
from zeroshot.inputs import hf_datasets, parquet, tables, webdataset
from zeroshot.inputs.remote import fsspec_files
from zeroshot.inputs.source import Source
from zeroshot.inputs.tables import InputOptions

ASKED_TOGETHER = 32
"""Remote files whose state is asked for at a time."""


@dataclass(frozen=True, slots=True)
class ImageContainer:
    """A tar file, a table or a Parquet file; or a data set of Hugging Face, which is no file."""

    name: str
    options: InputOptions
    version: str | None = None
    """`storage.version_of` as it was when the file was named, where that was told."""

    @property
    def is_file(self) -> bool:
        """Whether it can be a shard of its own."""
        return not self.name.lower().startswith(hf_datasets.PREFIX)

    @property
    def reading(self) -> dict[str, object]:
        """Of a table, the options that decide which pictures its rows are."""
        if webdataset.is_tar(self.name):
            return {}
        columns = {k: v for k, v in asdict(self.options.columns).items() if v is not None}
        return columns | ({} if self.options.root is None else {"root": self.options.root})

    def pictures(self, left_out: list[str] | None = None) -> Iterator[Source]:
        """Opens it: its pictures in order; what is none of them is named in `left_out`.

        Raises:
            UserError: a table without a column of pictures. NotAvailableError: a library is absent.
        """
        if not self.is_file:
            return hf_datasets.rows(self.name, self.options)
        if webdataset.is_tar(self.name):
            return webdataset.pictures(self.name, left_out, self.options.suffixes)
        if table_suffix(self.name) == ".parquet":
            return parquet.rows(self.name, self.options)
        return tables.rows(self.name, self.options)


@dataclass(frozen=True)
class Containers:
    """Files of pictures, not listed yet: inputs of which each can be a shard."""

    files: tuple[ImageContainer, ...]


def is_container(name: str) -> bool:
    """By its name."""
    return webdataset.is_tar(name) or bool(table_suffix(name))


def is_shard(name: str) -> bool:
    """Whether it is one of many by its nature: a tar or a Parquet file."""
    return webdataset.is_tar(name) or table_suffix(name) == ".parquet"


def table_suffix(name: str) -> str:
    """`.csv` of a table that was named outright, or by a pattern that ends so; else nothing."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if suffix in tables.SUFFIXES else ""


def versions(files: Sequence[ImageContainer]) -> list[str | None]:
    """As they were named, or, where nobody told, as they are now; None of what is not there."""
    with ThreadPoolExecutor(ASKED_TOGETHER, thread_name_prefix="versions") as pool:
        return list(pool.map(lambda file: file.version or version_now(file.name), files))


def version_now(name: str) -> str | None:
    """`storage.version_of`; None where that is not to be had: reading the file will say why."""
    try:
        return fsspec_files.version_of(name)
    except fsspec_files.failures(name):
        return None


def with_bytes(source: Source) -> Source:
    """The source with its bytes, where they lie in a remote file that this process holds."""
    content = source.content
    if isinstance(content, webdataset.InTar):
        name = content.tar
    elif isinstance(content, parquet.ParquetCell):
        name = content.column.table.name
    else:
        return source
    try:
        return replace(source, content=content.read()) if fsspec_files.is_held(name) else source
    except UnreadableImageError:  # whoever works on it finds the same
        return source
