"""From what a user names as images (see the table of `zeroshot.inputs`) to the `Source` of each."""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from zeroshot.errors import NotAvailableError, UserError, no_such
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
from zeroshot.inputs.source import (
    MAX_BYTES,
    URL,
    Blob,
    Input,
    Listing,
    Source,
    UnreadableBlob,
)
from zeroshot.inputs.tables import InputOptions
from zeroshot.inputs.text_files import suffix_of, whole_text

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


CHUNK = 1 << 20
"""Bytes of a file object that are read at a time."""


@dataclass(frozen=True)
class ResolvedInputs:
    """Images and files that contain images, in the order of the inputs; none is opened yet."""

    items: tuple[Source | ImageContainer, ...]
    left_out: tuple[str, ...]
    """Files without an image that a scan of a folder found."""
    missing: tuple[str, ...] = ()
    """Files that were named and are not there."""

    def check_found(self) -> None:
        """NoSuchPathError if nothing that was named is there: every row would say so."""
        if self.missing and len(self.missing) == len(self.items):
            raise no_such(self.missing[0])

    @property
    def files(self) -> tuple[ImageContainer, ...]:
        """The files that contain images."""
        return tuple(
            item for item in self.items if isinstance(item, ImageContainer) and item.is_file
        )

    @property
    def loose(self) -> str | None:
        """The name of the first item that is no such file."""
        for item in self.items:
            if isinstance(item, Source):
                return item.path or "an image in memory"
            if not item.is_file:
                return item.name
        return None

    def pictures(self, left_out: list[str]) -> Iterator[Source]:
        """All images; each file is opened when its turn comes and adds to `left_out`."""
        for item in self.items:
            if isinstance(item, ImageContainer):
                yield from item.pictures(left_out)
            else:
                yield item


class _InputResolver:
    """Collects the items of one input after another."""

    def __init__(self, options: InputOptions) -> None:
        self.options = options
        self.items: list[Source | ImageContainer] = []
        self.left_out: list[str] = []
        self.missing: list[str] = []
        self.reachable: set[str] = set()
        """Remote folders of which a file was listed."""

    def add(self, name: str, *, pattern: bool = True, typed: bool = True) -> None:
        """Add all items of a name.

        Args:
            pattern: whether it may be a glob.
            typed: whether a person named it; one of a list may have gone since that was made.

        Raises:
            NoSuchPathError: a typed name that leads to nothing, and is not that of an image.
        """
        if name.lower().startswith(hf_datasets.PREFIX):
            self.items.append(ImageContainer(name, self.options))
        elif URL.match(name):
            self.items.append(Source(name, Url(name, self.options.fetch)))
        elif name.lower().startswith("file://"):
            self.add(name[len("file://") :], pattern=False, typed=typed)
        elif pattern and not os.path.lexists(name) and (names := files.braces(name)) != [name]:
            for each in names:
                self.add(each)
        elif fsspec_files.is_remote(name):
            self._remote(name, typed)
        elif files.is_folder(name) or (pattern and _is_glob(name)):
            self._scan(name)
        else:
            if typed and files.is_missing(name):
                self._miss(name)
            self._file(name)

    def _miss(self, name: str) -> None:
        """Note a name that leads to nothing."""
        suffix = suffix_of(name)
        if not (is_container(name) or self.options.suffixes.fullmatch(suffix)):
            raise no_such(name, "file" if suffix else "folder")
        self.missing.append(name)

    def _remote(self, name: str, typed: bool) -> None:
        if self.options.fetch.offline and fsspec_files.asks_the_network(name):
            raise NotAvailableError(f"'{name}' needs the network (--offline)")
        folder = name.rpartition("/")[0]
        if is_container(name) and not glob.has_magic(name) and folder in self.reachable:
            self.items.append(ImageContainer(name, self.options))  # one of thousands
            return
        self.reachable.add(folder)
        infos, left_out = fsspec_files.listed(name, table_suffix(name), self.options.suffixes)
        self.left_out.extend(left_out)
        for file, info in infos.items():
            if typed and not info:
                self._miss(file)
            if is_container(file):
                version = fsspec_files.version(info) if info else None
                self.items.append(ImageContainer(file, self.options, version))
            else:
                remote = fsspec_files.Remote(file, fsspec_files.remote_state(info))
                self.items.append(Source(file, remote))

    def _scan(self, name: str) -> None:
        table = "" if files.is_folder(name) else table_suffix(name)
        kept, left_out = files.scan(name, table, self.options.suffixes, self.options.within)
        self.left_out.extend(left_out)
        shards = [file for file in left_out if os.path.basename(file) == "nshards.txt"]
        missing = [tar for file in shards for tar in webdataset.missing_shards(file, kept)]
        for file in files.in_order([*kept, *missing]):
            self._file(file)

    def _file(self, name: str) -> None:
        """Add a file of this machine: one that contains images, or an image."""
        if is_container(name) and not files.leads_out(name, self.options.within):
            self.items.append(ImageContainer(name, self.options, version_now(name)))
        else:
            self.items.append(Source(name))


def _is_glob(name: str) -> bool:
    return glob.has_magic(name) and not os.path.lexists(name)


def one_input(given: object, name: str = "images") -> Input | None:
    """What names one image, as an `Input`; None for anything else. `name` is the argument's.

    A file object is read from its start.

    Raises:
        UserError: a file object that is closed or open for text.
    """
    if isinstance(given, Input):
        return given
    if isinstance(given, os.PathLike) and isinstance(os.fspath(given), str):
        return Path(os.fspath(given))
    if isinstance(given, bytearray | memoryview):
        return bytes(given)
    return _opened(given, name) if hasattr(given, "read") else None


def _opened(file: Any, name: str) -> Source:
    """The bytes of a file object; an error of reading becomes the reason of the image's failure."""
    data = bytearray()
    try:
        if getattr(file, "seekable", lambda: hasattr(file, "seek"))():
            file.seek(0)
        while len(data) <= MAX_BYTES and (part := file.read(CHUNK)):
            data += part
    except OSError as error:
        return Source(None, UnreadableBlob(f"cannot be read ({error.strerror or error})"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # closed, or open for text
        raise UserError(
            f"{name}: a file has to be open, and for bytes, as by open(path, 'rb'); this "
            f"{type(file).__name__} cannot be read: {error}"
        ) from None
    if len(data) > MAX_BYTES:
        return Source(None, UnreadableBlob(f"larger than {MAX_BYTES >> 30} GiB"))
    return Source(None, bytes(data))


def no_image(given: Any, name: str = "images") -> UserError:
    """Says what an argument called `name` can be instead of `given`."""
    if hasattr(given, "columns"):
        return UserError(
            f"{name}: a table ({type(given).__name__}) does not say which column has the images; "
            "give that column as a list: list(table['path'])"
        )
    if getattr(given, "ndim", 0) > 1:
        return UserError(
            f"{name}: an array ({given.dtype}, shape {tuple(given.shape)}) does not say what its "
            "channels and its range are; PIL.Image.fromarray makes an image of RGB bytes "
            "[height, width, 3]"
        )
    return UserError(
        f"{name}: an image is a path, bytes, a file opened for bytes or a PIL image, several are a "
        f"list of these; {type(given).__name__} is none of them"
    )


def _each(inputs: object) -> Iterable[object]:
    """The items of a list, a generator, an array of paths; UserError for what is no such thing."""
    is_list = isinstance(inputs, Iterable) and not isinstance(inputs, Mapping | set | frozenset)
    if not is_list or getattr(inputs, "ndim", 1) != 1:
        raise no_image(inputs)
    return inputs  # type: ignore[return-value]


def resolve_inputs(
    inputs: Input | Iterable[object],
    stdin: Iterable[str] | None = None,
    options: InputOptions | None = None,
) -> ResolvedInputs:
    """The items that the inputs name; no tar file and no table is opened.

    Raises:
        UserError: a folder or a glob without images, or an input of another type.
        NoSuchPathError: a name that leads to nothing, and is not that of an image or a container.
        NotAvailableError: a library is not installed, a service not reachable.
    """
    resolver = _InputResolver(options or InputOptions())
    whole = one_input(inputs)
    for item in [whole] if whole is not None else _each(inputs):
        given = one_input(item)
        if given is None:
            raise no_image(item)
        if isinstance(given, Source):
            resolver.items.append(given)
        elif isinstance(given, Image | bytes):
            resolver.items.append(Source(None, given))
        elif isinstance(given, str) and given == "-":
            for path in files.names_on(stdin, resolver.options.null):
                resolver.add(path, pattern=False, typed=False)
        else:
            resolver.add(whole_text(str(given), "images", "surrogateescape"))
    items = (
        x if isinstance(x, ImageContainer) else resolver.options.limited(x) for x in resolver.items
    )
    return ResolvedInputs(tuple(items), tuple(resolver.left_out), tuple(resolver.missing))


def find(
    inputs: Input | Iterable[object],
    stdin: Iterable[str] | None = None,
    options: InputOptions | None = None,
) -> Listing:
    """The images that the inputs name; also `-` for names on standard input, and images in memory.

    The order is kept, and an image that is named twice comes twice. An image file that does not
    exist becomes a source that fails when it is opened. A scan of a folder or a glob skips hidden
    files; it lists data (`captions.jsonl`) and captions (`a.txt` beside `a.jpg`) in `left_out`. A
    file that is named itself is always tried.

    Raises:
        UserError: a folder or a glob without images, no such folder, or a table without a column of
            images.
        NotAvailableError: a library is not installed, a service or a data set not reachable.
    """
    resolved = resolve_inputs(inputs, stdin, options)
    left_out = list(resolved.left_out)
    sources = tuple(resolved.pictures(left_out))
    return Listing(sources, tuple(left_out))
