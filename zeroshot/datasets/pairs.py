"""Pictures with captions, wherever people keep them: one `Pair` for each picture.

| what is named | what it is |
|---|---|
| `x.csv`, `x.tsv`, `x.parquet` | a column of pictures and one of captions (a list in Parquet) |
| `x.jsonl` | an object a line, with the same names as keys |
| `x.json` | COCO captions (`images`, `annotations`) or Karpathy's (`images` with `sentences`) |
| `x.tar` | a webdataset: `key.jpg` beside `key.txt` or `key.json` |
| a folder | `a.jpg` beside `a.txt`, a caption a line |

Rows that name one picture are one pair with several captions. Manifests are read as data: no
pickles, and nothing of a tar file is unpacked onto the disk.
"""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from zeroshot.errors import NotAvailableError, UserError
from zeroshot.inputs import tar, webdataset
from zeroshot.inputs.source import MAX_BYTES, PICTURES, Source
from zeroshot.packaging.extras import how_to_install

PICTURE = ("image", "path", "file", "filepath", "file_name", "filename", "image_path", "image_file")
CAPTION = ("caption", "captions", "text", "texts", "sentence", "title", "comment")
"""Names of the columns, first found first taken."""


@dataclass(frozen=True)
class Pair:
    """A picture, its captions and what it is known by."""

    id: str
    source: Source
    captions: tuple[str, ...]


def read_pairs(name: str, root: Path | None = None) -> Iterator[Pair]:
    """The pairs of a manifest, a tar file or a folder; pictures are relative to `root`.

    `root` is the manifest's folder without one. Raises UserError for what has no pairs.
    """
    path = Path(name)
    suffix = path.suffix.lower()
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise NotAvailableError(f"no pairs at '{name}': there is no such file or folder")
    if suffix == ".tar":
        return _tar(path)
    readers = {
        ".csv": lambda: _table(path, ","),
        ".tsv": lambda: _table(path, "\t"),
        ".jsonl": lambda: _json_lines(path),
        ".parquet": lambda: _parquet(path),
        ".json": lambda: _json(path),
    }
    if suffix not in readers:
        raise UserError(
            f"'{name}' is no list of pairs: {', '.join([*readers, '.tar'])} or a folder are"
        )
    return _grouped(path, readers[suffix](), root or path.parent)


def _grouped(path: Path, rows: Iterable[tuple[str, list[str]]], root: Path) -> Iterator[Pair]:
    """One pair for each picture, with all its captions, in the order they first come."""
    captions: dict[str, dict[str, None]] = {}
    for picture, texts in rows:
        kept = [text.strip() for text in texts if text.strip()]
        captions.setdefault(picture, {}).update(dict.fromkeys(kept))
    if not captions:
        raise UserError(f"'{path}' has no pairs")
    for picture, kept_texts in captions.items():
        if kept_texts:
            yield Pair(picture, Source(str(root / picture)), tuple(kept_texts))


def _columns(path: Path, names: Iterable[str]) -> tuple[str, str]:
    """The columns of pictures and captions."""
    there = {str(name).strip().lower(): name for name in names if name is not None}
    found = [next((there[n] for n in known if n in there), None) for known in (PICTURE, CAPTION)]
    if found[0] is None or found[1] is None:
        raise UserError(
            f"'{path}' has {', '.join(map(str, there)) or 'nothing'}; pairs take one of "
            f"{', '.join(PICTURE)} and one of {', '.join(CAPTION)}"
        )
    return found[0], found[1]


def _row(path: Path, row: Mapping[str, Any], columns: tuple[str, str]) -> tuple[str, list[str]]:
    picture, captions = row.get(columns[0]), row.get(columns[1])
    given = captions if isinstance(captions, list) else [captions]
    texts = [text for text in given if isinstance(text, str)]
    if not isinstance(picture, str) or len(texts) < len(given):
        raise UserError(f"'{path}': {row!r:.80} is no picture's name and a caption or captions")
    return picture, texts


def _table(path: Path, separator: str) -> Iterator[tuple[str, list[str]]]:
    csv.field_size_limit(min(sys.maxsize, 1 << 24))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=separator)
            columns = _columns(path, reader.fieldnames or ())
            for row in reader:
                yield _row(path, row, columns)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is no table of texts: {error}") from error


def _json_lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise UserError(f"'{path}': {line:.60} is no object")
                    yield _row(path, row, _columns(path, row))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"'{path}' is no file of JSON lines: {error}") from error


def _parquet(path: Path) -> Iterator[tuple[str, list[str]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise NotAvailableError(
            f"Parquet needs pyarrow: {how_to_install('data')}, or give a CSV"
        ) from error
    try:
        with parquet.ParquetFile(path) as table:
            columns = _columns(path, table.schema_arrow.names)
            for batch in table.iter_batches(columns=list(columns)):
                for row in batch.to_pylist():
                    yield _row(path, row, columns)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"'{path}' is no Parquet file: {error}") from error


def _json(path: Path) -> Iterator[tuple[str, list[str]]]:
    """COCO's captions, or Karpathy's splits of them."""
    try:
        held = json.loads(path.read_bytes())
        images = held["images"]
        if "annotations" in held:
            texts: dict[Any, list[str]] = {}
            for annotation in held["annotations"]:
                texts.setdefault(annotation["image_id"], []).append(annotation["caption"])
            rows = [(image["file_name"], texts.get(image["id"], [])) for image in images]
        else:
            rows = [
                (
                    str(PurePosixPath(image.get("filepath", "")) / image["filename"]),
                    [sentence["raw"] for sentence in image["sentences"]],
                )
                for image in images
            ]
        return iter(
            [_row(path, {"image": p, "captions": t}, ("image", "captions")) for p, t in rows]
        )
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"'{path}' is neither COCO captions (images, annotations) nor Karpathy's (images with "
            f"sentences): {error!r}"
        ) from error


def _tar(path: Path) -> Iterator[Pair]:
    """A webdataset's pairs."""
    count = 0
    try:
        with path.open("rb") as file:
            for sample in webdataset.samples(file):
                for pair in _sample(path, file, sample):
                    count += 1
                    yield pair
    except (tar.DamagedError, OSError) as error:
        raise UserError(f"'{path}' is no whole tar file: {error}") from error
    if not count:
        raise UserError(f"'{path}' has no pairs: key.jpg beside key.txt or key.json")


def _sample(path: Path, file: BinaryIO, sample: Sequence[tar.Member]) -> Iterator[Pair]:
    """The pair of one sample, whose members share a key; none where a part is missing."""
    held: dict[str, bytes] = {}
    for member in sample:
        suffix = PurePosixPath(member.name).name.partition(".")[2].lower()
        wanted = PICTURES.fullmatch(f".{suffix}") or suffix in ("txt", "json")
        if wanted and member.fault is None and member.size <= MAX_BYTES:
            file.seek(member.start)
            held[suffix] = file.read(member.size)
    key = str(PurePosixPath(webdataset.key_of(sample[0].name)))
    picture = next((data for name, data in held.items() if PICTURES.fullmatch(f".{name}")), None)
    try:
        if "txt" in held:
            captions = held["txt"].decode("utf-8").splitlines()
        elif "json" in held:
            row = json.loads(held["json"])
            captions = _row(
                path, {"image": key} | row, ("image", _columns(path, {"image", *row})[1])
            )[1]
        else:
            return
    except (ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"'{path}': the caption of {key} cannot be read: {error}") from error
    texts = tuple(dict.fromkeys(text.strip() for text in captions if text.strip()))
    if picture is not None and texts:
        yield Pair(key, Source(f"{path}/{key}", picture), texts)


def _folder(folder: Path) -> Iterator[Pair]:
    """Pictures below a folder with a caption file of their name beside them."""
    count = 0
    for path in sorted(folder.rglob("*")):
        captions = path.with_suffix(".txt")
        if PICTURES.fullmatch(path.suffix) and captions.is_file():
            lines = captions.read_text("utf-8", errors="replace").splitlines()
            texts = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
            if texts:
                count += 1
                yield Pair(path.relative_to(folder).as_posix(), Source(str(path)), texts)
    if not count:
        raise UserError(f"no pairs in folder '{folder}': a.jpg beside a.txt, a caption a line")
