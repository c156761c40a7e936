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
from collections.abc import Iterable
from pathlib import Path

from PIL.Image import Image

from zeroshot.errors import NotAvailableError, UserError
from zeroshot.inputs import files, hub, manifests, parquet, storage, webdataset
from zeroshot.inputs.columns import Columns
from zeroshot.inputs.manifests import Options
from zeroshot.inputs.source import URL, Blob, Found, Input, Refused, Source
from zeroshot.inputs.urls import Fetch, Url

__all__ = [
    "Blob",
    "Columns",
    "Fetch",
    "Found",
    "Input",
    "Options",
    "Refused",
    "Source",
    "find",
]


class _Finder:
    """Collects the sources of one input after another."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.sources: list[Source] = []
        self.left_out: list[str] = []

    def add(self, name: str, *, pattern: bool = True) -> None:
        """All that a name stands for; `pattern` says whether it may be one."""
        if name.lower().startswith(hub.PREFIX):
            self.sources.extend(hub.rows(name, self.options))
        elif URL.match(name):
            self.sources.append(Source(name, Url(name, self.options.fetch)))
        elif name.lower().startswith("file://"):
            self.add(name[len("file://") :], pattern=False)
        elif pattern and not os.path.lexists(name) and (names := files.braces(name)) != [name]:
            for each in names:
                self.add(each)
        elif storage.is_remote(name):
            self._remote(name)
        elif files.is_folder(name) or (pattern and _is_glob(name)):
            self._scan(name)
        else:
            self._file(name, Source(name))

    def _remote(self, name: str) -> None:
        if self.options.fetch.offline and storage.asks_the_network(name):
            raise NotAvailableError(f"'{name}': the network is not to be asked (--offline)")
        states, left_out = storage.listed(name, _table_suffix(name), self.options.suffixes)
        self.left_out.extend(left_out)
        for file, state in states.items():
            self._file(file, Source(file, storage.Remote(file, state)))

    def _scan(self, name: str) -> None:
        table = "" if files.is_folder(name) else _table_suffix(name)
        kept, left_out = files.scan(name, table, self.options.suffixes)
        self.left_out.extend(left_out)
        shards = [file for file in left_out if os.path.basename(file) == "nshards.txt"]
        missing = [tar for file in shards for tar in webdataset.missing_shards(file, kept)]
        for file in files.in_order([*kept, *missing]):
            self._file(file, Source(file))

    def _file(self, name: str, itself: Source) -> None:
        """What is in one file: a tar file's or a table's pictures, or it is one."""
        suffix = _table_suffix(name)
        if webdataset.is_tar(name):
            self.sources.extend(webdataset.pictures(name, self.left_out, self.options.suffixes))
        elif suffix == ".parquet":
            self.sources.extend(parquet.rows(name, self.options))
        elif suffix:
            self.sources.extend(manifests.rows(name, self.options))
        else:
            self.sources.append(itself)


def _is_glob(name: str) -> bool:
    return glob.has_magic(name) and not os.path.lexists(name)


def _table_suffix(name: str) -> str:
    """`.csv` of a table that was named outright, or by a pattern that ends so; else nothing."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if suffix in manifests.SUFFIXES else ""


def find(
    inputs: Input | Iterable[object],
    stdin: Iterable[str] | None = None,
    options: Options | None = None,
) -> Found:
    """What the inputs name: see above; also `-`, and pictures in memory.

    Order is kept, and what is named twice comes twice. What does not exist becomes a source that
    fails when it is opened; a folder or a glob without files is a UserError. What a folder or a
    glob finds goes without hidden files, manifests (`captions.jsonl`) and captions (`a.txt` beside
    `a.jpg`), which come back in `left_out`; a file named outright always stays.

    Raises:
        UserError: nothing is there, or a table has no column of pictures.
        NotAvailableError: a library is not installed, a service or a data set not reachable.
    """
    finder = _Finder(options or Options())
    for given in [inputs] if isinstance(inputs, Input) else inputs:
        if isinstance(given, Source):
            finder.sources.append(given)
        elif isinstance(given, Image | bytes):
            finder.sources.append(Source(None, given))
        elif isinstance(given, str) and given == "-":
            for path in files.paths_on(stdin or sys.stdin):
                finder.add(path, pattern=False)
        elif isinstance(given, str | Path):
            finder.add(str(given))
        else:
            kind = type(given).__name__
            raise UserError(f"a picture is a path, a PIL image or bytes, not {kind}")
    return Found(tuple(finder.sources), tuple(finder.left_out))
