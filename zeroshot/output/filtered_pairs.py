"""Write the pairs that a filter keeps as a new data set: a table, or tar files.

A table (`.jsonl`, `.csv`, `.parquet`) has path, caption, label and score. A path is relative to the
table if the image is below its folder. A folder gets webdataset shards (`00000.tar`, ...) with the
original bytes of each image, its caption as `.txt`, its label as `.cls`, path and score as `.json`.
Files are written atomically.
"""

import csv
import io
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from PIL.Image import Image

from zeroshot.errors import UserError, unknown
from zeroshot.inputs.local_files import read_file
from zeroshot.inputs.remote.fetch import Url
from zeroshot.inputs.remote.fsspec_files import Remote
from zeroshot.inputs.source import PICTURES, Picture, Source
from zeroshot.output.atomic import whole
from zeroshot.output.formats import pyarrow, to_json, utf8
from zeroshot.results.result import FilterResult

PAIRS_IN_A_SHARD = 10_000
COLUMNS = ("path", "caption", "label", "score")
TABLES = (".jsonl", ".csv", ".parquet")
MAGIC = {b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp", b"II*": ".tif"}


def check_target(path: Path) -> None:
    """UserError if the name is neither that of a table nor that of a folder."""
    if path.suffix and path.suffix.lower() not in TABLES:
        raise unknown("table of kept pairs", path.suffix, TABLES)
    if path.suffix.lower() == ".parquet":
        pyarrow()


def write_kept(path: Path, results: Iterable[FilterResult]) -> int:
    """Write the results that are kept to a table or a folder; returns their number.

    Raises:
        UserError: an image cannot be read any more, or (for a table) has no file of its own.
    """
    kept = (result for result in results if result.kept)
    if path.suffix:
        return _write_table(path, list(kept))
    path.mkdir(parents=True, exist_ok=True)
    count = 0
    while shard := list(islice(kept, PAIRS_IN_A_SHARD)):
        _write_shard(path, count, shard)
        count += len(shard)
    return count


def _write_table(path: Path, kept: Sequence[FilterResult]) -> int:
    rows = [_row(result, path.parent) for result in kept]
    with whole(path) as file:
        if path.suffix.lower() == ".jsonl":
            file.writelines(utf8(to_json(row)) + b"\n" for row in rows)
        elif path.suffix.lower() == ".csv":
            text = io.StringIO()
            table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
            file.write(utf8(text.getvalue()))
        else:
            arrow = pyarrow()
            types = [(name, arrow.string()) for name in COLUMNS[:-1]] + [("score", arrow.float64())]
            arrow.parquet.write_table(arrow.Table.from_pylist(rows, arrow.schema(types)), file)
    return len(rows)


def _row(result: FilterResult, folder: Path) -> dict[str, str | float | None]:
    source = result.source
    if source.path is None or not isinstance(source.content, Url | Remote | None):
        raise UserError(
            f"'{source.path or 'an image in memory'}' is not a file of its own, so a table cannot "
            "name it; write the kept pairs to tar files: --kept FOLDER"
        )
    path = source.path
    if source.content is None:
        below = os.path.relpath(os.path.abspath(path), os.path.abspath(folder))
        path = os.path.abspath(path) if below.startswith("..") else below
    label = source.text_of("label")
    return {"path": path, "caption": result.caption, "label": label, "score": result.row()["score"]}


def _write_shard(folder: Path, first: int, results: Sequence[FilterResult]) -> None:
    with whole(folder / f"{first // PAIRS_IN_A_SHARD:05}.tar") as file:
        write_tar(file, ((f"{n:09}", r.source, r.row()) for n, r in enumerate(results, first)))


def write_tar(file: BinaryIO, pairs: Iterable[tuple[str, Source, Mapping[str, Any]]]) -> None:
    """Write a webdataset tar file of pairs, each a name, a source and a row.

    Raises:
        UserError: an image cannot be read any more.
    """
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, source, row in pairs:
            data = _bytes(source)
            metadata = {key: row[key] for key in ("path", "id", "score")}
            label = source.text_of("label")
            members = {
                _suffix(source.path, data): data,
                ".txt": utf8(row["caption"]),
                ".json": utf8(to_json(metadata)),
            } | ({} if label is None else {".cls": utf8(label)})
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{name}{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _bytes(source: Source) -> bytes:
    """The bytes that an image was read from; PNG for an image in memory."""
    content = source.content
    if isinstance(content, Picture):
        content = content.image
    if isinstance(content, Image):
        file = io.BytesIO()
        content.save(file, "PNG")
        return file.getvalue()
    try:
        if content is None:
            return read_file(source.path or "")
        return content if isinstance(content, bytes) else content.read()
    except OSError as error:
        raise UserError(f"'{source.path}' cannot be read any more: {error}") from error


def _suffix(path: str | None, data: bytes) -> str:
    """The suffix of the path if it is an image's, else the suffix for the first bytes."""
    suffix = PurePath(path or "").suffix.lower()
    if PICTURES.fullmatch(suffix):
        return suffix
    return next((suffix for magic, suffix in MAGIC.items() if data.startswith(magic)), ".jpg")
