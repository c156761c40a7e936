"""Images in data sets of Hugging Face: `hf-dataset:org/name:test`, `hf-dataset:./folder`.

They are read by the `datasets` library, which since version 4 runs no code from a data set. Images
stay encoded until they are needed.
"""

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zeroshot.errors import NotAvailableError, UnreadableImageError, UserError
from zeroshot.inputs.columns import Columns, class_names, fields_of, resolve
from zeroshot.inputs.local_files import settled, stamp_of
from zeroshot.inputs.parquet import bytes_of
from zeroshot.inputs.source import Fields, Source, UnreadableBlob
from zeroshot.inputs.tables import InputOptions
from zeroshot.packaging.extras import how_to_install

PREFIX = "hf-dataset:"
CODELESS = 4
"""The first version of `datasets` that runs no code from a data set."""


@dataclass(frozen=True)
class HubDataset:
    """One split of a data set, which is opened when it is first read."""

    name: str
    split: str | None
    offline: bool

    def open(self) -> Any:
        """The `datasets.Dataset`; each process opens it once."""
        return _open(self)


@dataclass(frozen=True)
class HubColumn:
    """The column of images of a data set, and the state of its files."""

    dataset: HubDataset
    name: str
    state: str


@dataclass(frozen=True, slots=True)
class HubRow:
    """The bytes of an image in a data set."""

    column: HubColumn
    row: int

    @property
    def stamp(self) -> str | None:
        """The data set, the row, and the data set's state."""
        dataset = self.column.dataset
        local = os.path.isdir(dataset.name)
        name = os.path.abspath(dataset.name) if local else f"{PREFIX}//{dataset.name}"
        place = f"{dataset.split} {self.column.name} {self.row}"
        return f"{name}\0{place}\0{self.column.state}" if self.column.state else None

    def read(self) -> bytes:
        """The bytes; UnreadableImageError with the reason."""
        where = f"row {self.row}"
        try:
            value = _undecoded(self.column)[self.row][self.column.name]
        except (OSError, ValueError, IndexError, NotAvailableError) as error:
            raise UnreadableImageError(f"{where}: {error}") from error
        return bytes_of(value, _roots(self.column.dataset), where)


def rows(given: str, options: InputOptions) -> Iterator[Source]:
    """The images of `hf-dataset:NAME[:SPLIT]`.

    Raises:
        NotAvailableError: the library, the data set or the network is not available.
        UserError: no such split, or no column of images.
    """
    name, split = _spelled(given)
    dataset = HubDataset(name, split, options.fetch.offline)
    opened = dataset.open()
    columns = _columns(given, opened, options.columns)
    assert columns.image is not None
    column = HubColumn(dataset, columns.image, _state(opened))
    named = [c for c in (columns.caption, columns.label) if c is not None]
    if not len(opened):
        yield Source(given, UnreadableBlob("the data set has no rows"))
    for number, values in enumerate(_values(opened, named)):
        try:
            fields = fields_of(values, columns)
        except ValueError as error:
            fields = Fields(fault=str(error))
        yield Source(f"{given}#{number}", HubRow(column, number), fields)


def _spelled(given: str) -> tuple[str, str | None]:
    """Name and split in `hf-dataset:name:split`."""
    rest = given[len(PREFIX) :]
    name, colon, split = rest.rpartition(":")
    if not colon or os.path.isdir(rest) or "/" in split or os.sep in split:
        name, split = rest, ""
    if not name:
        raise UserError(f"'{given}' names no data set: {PREFIX}org/name:split or {PREFIX}./folder")
    return name, split or None


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise NotAvailableError(
            f"'{PREFIX}' needs the package datasets: {how_to_install('data')}"
        ) from error
    if int(datasets.__version__.split(".")[0]) < CODELESS:
        raise NotAvailableError(
            f"datasets {datasets.__version__} may run code of a data set; pip install -U datasets"
        )
    return datasets


@functools.lru_cache(maxsize=4)
def _open(dataset: HubDataset) -> Any:
    library = _library()
    name = dataset.name
    try:
        if os.path.isdir(name):
            found = library.load_from_disk(name)
        else:
            path, config = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:]) or None
            how = library.DownloadConfig(local_files_only=dataset.offline)
            found = library.load_dataset(path, config, split=dataset.split, download_config=how)
    except Exception as error:  # the hub, the network, the files: each with errors of its own
        raise NotAvailableError(f"the data set '{name}' cannot be had: {error}") from error
    if not isinstance(found, library.DatasetDict):
        return found
    splits = [dataset.split] if dataset.split else list(found)
    if len(splits) != 1 or splits[0] not in found:
        raise UserError(
            f"'{PREFIX}{name}' has the splits {', '.join(map(str, found))}; choose one: "
            f"{PREFIX}{name}:{next(iter(found))}"
        )
    return found[splits[0]]


def _columns(given: str, opened: Any, wanted: Columns) -> Columns:
    """As for a table; if one column has the type `Image`, it is the column of images."""
    images = [n for n, kind in opened.features.items() if isinstance(kind, _library().Image)]
    if wanted.image is None and len(images) == 1:
        wanted = Columns(images[0], wanted.caption, wanted.label)
    return resolve(given, list(opened.features), wanted)


@functools.lru_cache(maxsize=4)
def _undecoded(column: HubColumn) -> Any:
    """The data set with its images as bytes."""
    library = _library()
    opened = column.dataset.open().select_columns([column.name])
    if isinstance(opened.features[column.name], library.Image):
        return opened.cast_column(column.name, library.Image(decode=False))
    return opened


def _values(opened: Any, columns: list[str]) -> Iterator[Mapping[str, Any]]:
    """Captions and labels of all rows; labels are names."""
    if not columns:
        yield from ({} for _ in range(len(opened)))
        return
    kinds = {c: _classes(opened.features[c]) for c in columns}
    for row in opened.select_columns(columns):
        yield {c: class_names(row[c], kinds[c]) for c in columns}


def _classes(kind: Any) -> Sequence[str]:
    """The names of classes of a feature, which may be a list of them; empty for other features."""
    kind = getattr(kind, "feature", kind)
    return kind.names if isinstance(kind, _library().ClassLabel) else ()


def _state(opened: Any) -> str:
    """Changes when the data set does; empty if its files changed just now."""
    infos = [os.stat(file["filename"]) for file in opened.cache_files]
    if not infos or not all(map(settled, infos)):
        return ""
    state = " ".join([opened._fingerprint, *map(stamp_of, infos)])
    return hashlib.sha256(state.encode()).hexdigest()


def _roots(dataset: HubDataset) -> list[str]:
    """Folders in which images that are files must lie."""
    if os.path.isdir(dataset.name):
        return [dataset.name]
    config = _library().config
    return [str(config.HF_DATASETS_CACHE), str(config.HF_CACHE_HOME)]
