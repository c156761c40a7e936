"""What a person can name as pictures, and the `Source` of each: nothing is decoded here.

| what is named | what it is |
|---|---|
| a file, a folder, a glob, `shard-{000..012}.tar`, `-` | files of this machine (`files`) |
| `https://...`, `http://...` | a picture behind a URL (`urls`) |
| `x.tar`, also below a folder | the pictures in it, as webdatasets have them (`webdataset`) |
| `x.csv`, `x.tsv`, `x.jsonl` | a table of paths or URLs (`manifests`) |
| `x.parquet` | a table of paths, URLs or bytes (`parquet`) |
| `hf-dataset:org/name:split` | a data set of Hugging Face, or a folder of one (`hub`) |
| `s3://bucket/...`, `gs://...`, ... | a file, folder, glob, tar or table elsewhere (`storage`) |

What lies inside a file is listed and not read: a `Source` says where its bytes are.
"""

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from zeroshot.errors import NotAvailableError, UserError
from zeroshot.inputs import hf_datasets, local_files as files, webdataset
from zeroshot.inputs.columns import Columns
from zeroshot.inputs.containers import (
    Containers,
    ImageContainer,
    is_container,
    table_suffix,
    version_now,
)
from zeroshot.inputs.remote import fsspec_files
from zeroshot.inputs.remote.fetch import Fetch, Url
from zeroshot.inputs.source import URL, Blob, Input, Listing, Source, UnreadableBlob
from zeroshot.inputs.tables import InputOptions

__all__ = [
    "Blob",
    "Columns",
    "Containers",
    "Fetch",
    "ImageContainer",
    "Input",
    "InputOptions",
    "Listing",
    "ResolvedInputs",
    "Source",
    "UnreadableBlob",
    "find",
    "resolve_inputs",
]


@dataclass(frozen=True)
class ResolvedInputs:
    """What inputs name, in order, before any file of pictures is opened."""

    items: tuple[Source | ImageContainer, ...]
    left_out: tuple[str, ...]
    """Files that a scan found and that hold no picture."""

    @property
    def files(self) -> tuple[ImageContainer, ...]:
        """Those of them that are files of pictures."""
        return tuple(
            item for item in self.items if isinstance(item, ImageContainer) and item.is_file
        )

    @property
    def loose(self) -> str | None:
        """The first that is none."""
        for item in self.items:
            if isinstance(item, Source):
                return item.path or "a picture in memory"
            if not item.is_file:
                return item.name
        return None

    def pictures(self, left_out: list[str]) -> Iterator[Source]:
        """All of them, each file opened when its turn comes; `left_out` is added to."""
        for item in self.items:
            if isinstance(item, ImageContainer):
                yield from item.pictures(left_out)
            else:
                yield item


class _InputResolver:
    """Collects what one input after another stands for."""

    def __init__(self, options: InputOptions) -> None:
        self.options = options
        self.items: list[Source | ImageContainer] = []
        self.left_out: list[str] = []
        self.asked: set[str] = set()
        """Remote folders that are known to be reachable."""

    def add(self, name: str, *, pattern: bool = True) -> None:
        """All that a name stands for; `pattern` says whether it may be one."""
        if name.lower().startswith(hf_datasets.PREFIX):
            self.items.append(ImageContainer(name, self.options))
        elif URL.match(name):
            self.items.append(Source(name, Url(name, self.options.fetch)))
        elif name.lower().startswith("file://"):
            self.add(name[len("file://") :], pattern=False)
        elif pattern and not os.path.lexists(name) and (names := files.braces(name)) != [name]:
            for each in names:
                self.add(each)
        elif fsspec_files.is_remote(name):
            self._remote(name)
        elif files.is_folder(name) or (pattern and _is_glob(name)):
            self._scan(name)
        else:
            self._file(name)

    def _remote(self, name: str) -> None:
        if self.options.fetch.offline and fsspec_files.asks_the_network(name):
            raise NotAvailableError(f"'{name}': the network is not to be asked (--offline)")
        folder = name.rpartition("/")[0]
        if is_container(name) and not glob.has_magic(name) and folder in self.asked:
            self.items.append(ImageContainer(name, self.options))  # one of thousands
            return
        self.asked.add(folder)
        infos, left_out = fsspec_files.listed(name, table_suffix(name), self.options.suffixes)
        self.left_out.extend(left_out)
        for file, info in infos.items():
            if is_container(file):
                told = fsspec_files.version(info) if info else None
                self.items.append(ImageContainer(file, self.options, told))
            else:
                remote = fsspec_files.Remote(file, fsspec_files.remote_state(info))
                self.items.append(Source(file, remote))

    def _scan(self, name: str) -> None:
        table = "" if files.is_folder(name) else table_suffix(name)
        kept, left_out = files.scan(name, table, self.options.suffixes)
        self.left_out.extend(left_out)
        shards = [file for file in left_out if os.path.basename(file) == "nshards.txt"]
        missing = [tar for file in shards for tar in webdataset.missing_shards(file, kept)]
        for file in files.in_order([*kept, *missing]):
            self._file(file)

    def _file(self, name: str) -> None:
        """A file of this machine: one of pictures, or a picture."""
        if is_container(name):
            self.items.append(ImageContainer(name, self.options, version_now(name)))
        else:
            self.items.append(Source(name))


def _is_glob(name: str) -> bool:
    return glob.has_magic(name) and not os.path.lexists(name)


def resolve_inputs(
    inputs: Input | Iterable[object],
    stdin: Iterable[str] | None = None,
    options: InputOptions | None = None,
) -> ResolvedInputs:
    """What the inputs name (see above); no tar file and no table is opened.

    Raises:
        UserError: nothing is there, or something that is no picture was given.
        NotAvailableError: a library is not installed, a service not reachable.
    """
    resolver = _InputResolver(options or InputOptions())
    for given in [inputs] if isinstance(inputs, Input) else inputs:
        if isinstance(given, Source):
            resolver.items.append(given)
        elif isinstance(given, Image | bytes):
            resolver.items.append(Source(None, given))
        elif isinstance(given, str) and given == "-":
            for path in files.paths_on(stdin or sys.stdin):
                resolver.add(path, pattern=False)
        elif isinstance(given, str | Path):
            resolver.add(str(given))
        else:
            kind = type(given).__name__
            raise UserError(f"a picture is a path, a PIL image or bytes, not {kind}")
    return ResolvedInputs(tuple(resolver.items), tuple(resolver.left_out))


def find(
    inputs: Input | Iterable[object],
    stdin: Iterable[str] | None = None,
    options: InputOptions | None = None,
) -> Listing:
    """What the inputs name: see above; also `-`, and pictures in memory.

    Order is kept, and what is named twice comes twice. What does not exist becomes a source that
    fails when it is opened; a folder or a glob without files is a UserError. What a folder or a
    glob finds goes without hidden files, manifests (`captions.jsonl`) and captions (`a.txt` beside
    `a.jpg`), which come back in `left_out`; a file named outright always stays.

    Raises:
        UserError: nothing is there, or a table has no column of pictures.
        NotAvailableError: a library is not installed, a service or a data set not reachable.
    """
    found = resolve_inputs(inputs, stdin, options)
    left_out = list(found.left_out)
    sources = tuple(found.pictures(left_out))
    return Listing(sources, tuple(left_out))
