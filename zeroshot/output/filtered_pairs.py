"""The pairs that a filter kept, as a data set of the same shape: a table, or tar files.

A table (`.jsonl`, `.csv`, `.parquet`) has path, caption, label and score; paths are relative to it
where the pictures lie below it. A folder gets webdataset shards, `00000.tar` and so on: the bytes
of each picture as they were, its caption as `.txt`, its label as `.cls`, path and score as `.json`.
Files appear whole or not at all.
"""

import csv
import io
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
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
    """UserError for a name that says neither a table nor a folder."""
    if path.suffix and path.suffix.lower() not in TABLES:
        raise unknown("table of kept pairs", path.suffix, TABLES)
    if path.suffix.lower() == ".parquet":
        pyarrow()


def write_kept(path: Path, results: Iterable[FilterResult]) -> int:
    """Write the kept ones of `results` as the name of `path` says; how many there are.

    Raises:
        UserError: for a table, a picture in an archive or in memory, which has no path; a picture
            that cannot be read any more.
    """
    if path.suffix:
        return _write_table(path, [r for r in results if r.kept])
    path.mkdir(parents=True, exist_ok=True)
    count = 0
    shard: list[FilterResult] = []
    for result in results:
        if result.kept:
            shard.append(result)
            count += 1
        if len(shard) == PAIRS_IN_A_SHARD:
            _write_shard(path, count - len(shard), shard)
            shard = []
    if shard:
        _write_shard(path, count - len(shard), shard)
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
            f"'{source.path or 'a picture in memory'}' lies in no file of its own, so that a table "
            "cannot name it; write the kept pairs to tar files: --kept FOLDER"
        )
    path = source.path
    if source.content is None:
        below = os.path.relpath(os.path.abspath(path), os.path.abspath(folder))
        path = os.path.abspath(path) if below.startswith("..") else below
    label = source.fields.get("label")
    return {"path": path, "caption": result.caption, "label": label, "score": result.row()["score"]}


def _write_shard(folder: Path, first: int, results: Sequence[FilterResult]) -> None:
    with whole(folder / f"{first // PAIRS_IN_A_SHARD:05}.tar") as file:
        write_tar(file, ((f"{n:09}", r.source, r.row()) for n, r in enumerate(results, first)))


def write_tar(file: BinaryIO, pairs: Iterable[tuple[str, Source, Mapping[str, Any]]]) -> None:
    """Write a webdataset tar file of pairs: the name of each, its source, its row.

    Raises:
        UserError: a picture that cannot be read any more.
    """
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, source, row in pairs:
            data = _bytes(source)
            told = {key: row[key] for key in ("path", "id", "score")}
            label = source.fields.get("label")
            members = {
                _suffix(source.path, data): data,
                ".txt": utf8(row["caption"]),
                ".json": utf8(to_json(told)),
            } | ({} if label is None else {".cls": utf8(label)})
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{name}{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _bytes(source: Source) -> bytes:
    """What a picture was read from, as it was."""
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
    """That of the name where it is a picture's, else what the first bytes say."""
    named = PurePath(path or "").suffix.lower()
    if PICTURES.fullmatch(named):
        return named
    return next((suffix for magic, suffix in MAGIC.items() if data.startswith(magic)), ".jpg")
