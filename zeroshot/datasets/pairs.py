"""Images with captions, from whatever file or folder people keep them in: one `Pair` an image.

| input | what it is |
|---|---|
| `x.csv`, `.tsv`, `.jsonl`, `.parquet` | a column of images, one of captions or lists of them |
| `x.json` | COCO's captions or Karpathy's (`coco_json`) |
| `x.token` | Flickr's captions |
| `x.tar` | a webdataset: `key.jpg` beside `key.txt` (a caption a line) or `key.json` |
| a folder | `a.jpg` beside `a.txt`, a caption a line |

Rows that name the same image are one pair with several captions. Images without a caption are left
out. Files are read as data: nothing is unpickled, and no member of a tar file is unpacked.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zeroshot.datasets.captions import caption_columns, captions_of_row, read_image_captions
from zeroshot.datasets.coco_json import ImageCaptions
from zeroshot.errors import NotAvailableError, UserError, no_such
from zeroshot.inputs import webdataset
from zeroshot.inputs.source import PICTURES, Source, UnreadableBlob, with_captions
from zeroshot.inputs.text_files import read_lines, suffix_of
from zeroshot.packaging.extras import how_to_install

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".json", ".token")
KINDS = f"{', '.join(SUFFIXES)}, .tar or a folder"


@dataclass(frozen=True)
class Pair:
    """An image, its captions and its id."""

    id: str
    source: Source
    captions: tuple[str, ...]
    """Empty if it is not known which ones belong to the image, or it cannot be read."""


def read_pairs(name: str, root: Path | None = None) -> Iterator[Pair]:
    """The pairs of a file or a folder.

    Args:
        root: the folder that images are relative to; by default the folder of the file.

    Raises:
        UserError: another kind of file, or one without pairs.
    """
    path = Path(name)
    suffix = suffix_of(path.name)
    if path.is_dir():
        return _folder_pairs(path)
    if not path.is_file():
        raise no_such(path, "file" if suffix else "folder")
    if suffix == ".tar":
        return _tar_pairs(path)
    if suffix not in SUFFIXES:
        raise UserError(f"'{name}' is no file of pairs; pairs are read from {KINDS}")
    images = _parquet_captions(path) if suffix == ".parquet" else read_image_captions(path)
    return _pairs(path, images, root or path.parent)


def _pairs(path: Path, images: Iterable[ImageCaptions], root: Path) -> Iterator[Pair]:
    """One pair for each image, with all its captions, in the order in which they first come."""
    captions: dict[str, dict[str, None]] = {}
    for image in images:
        captions.setdefault(image.name, {}).update(dict.fromkeys(filter(None, image.captions)))
    if not any(captions.values()):
        raise UserError(f"'{path}' has no pairs: none of its images has a caption")
    for name, texts in captions.items():
        if texts:
            yield Pair(name, Source(str(root / name)), tuple(texts))


def _parquet_captions(path: Path) -> Iterator[ImageCaptions]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise NotAvailableError(
            f"Parquet needs pyarrow: {how_to_install('data')}, or give a CSV"
        ) from error
    try:
        with parquet.ParquetFile(path) as table:
            columns = caption_columns(tuple(table.schema_arrow.names), f"'{path}'")
            rows = (r for b in table.iter_batches(columns=list(columns)) for r in b.to_pylist())
            for number, row in enumerate(rows, 1):
                yield captions_of_row(row, f"'{path}' row {number}")
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"'{path}' is no Parquet file: {error}") from error


def _tar_pairs(path: Path) -> Iterator[Pair]:
    """A pair for each image of a webdataset that has a caption, or that cannot be read."""
    count, fault = 0, ""
    for source in with_captions(webdataset.pictures(str(path))):
        name = (source.path or "").removeprefix(f"{path}/")
        captions = tuple(dict.fromkeys(filter(None, map(str.strip, source.captions))))
        if isinstance(source.content, UnreadableBlob):
            fault = fault or f"; {name}: {source.content.reason}"
            yield Pair(name, source, ())
        elif captions:
            count += 1
            yield Pair(webdataset.stem_of(name), source, captions)
    if not count:
        raise UserError(f"'{path}' has no pairs (key.jpg beside key.txt or key.json){fault}")


def _folder_pairs(folder: Path) -> Iterator[Pair]:
    """Images in or below a folder, each with the file of captions beside it; as of a tar file."""
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*"))]
    names = [path.as_posix() for path in files if not any(p.startswith(".") for p in path.parts)]
    images = [name for name in names if PICTURES.fullmatch(Path(name).suffix)]
    texts: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if name.lower().endswith(".txt") and (folder / name).is_file():
            texts[webdataset.stem_of(name)].append(name)
    counts = Counter(map(webdataset.stem_of, images))
    count, first_fault = 0, ""
    for name in images:
        beside = texts.get(stem := webdataset.stem_of(name), [])
        fault = webdataset.ambiguity(beside, counts[stem])
        try:
            lines = read_lines(folder / beside[0]) if beside and fault is None else []
        except UserError as error:
            fault = str(error)
        if fault is not None:
            first_fault = first_fault or f"; {name}: {fault}"
            yield Pair(name, Source(str(folder / name), UnreadableBlob(fault)), ())
        elif captions := tuple(dict.fromkeys(line for _, line in lines)):
            count += 1
            yield Pair(name, Source(str(folder / name)), captions)
    if not count:
        raise UserError(f"no pairs in folder '{folder}' (a.jpg beside a.txt){first_fault}")
