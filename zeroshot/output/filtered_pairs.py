"""Write the pairs that a filter keeps as a new data set: a table, or tar files.

A table (`.jsonl`, `.csv`, `.parquet`) has path, caption, label and score. A path is relative to the
table if the image is below its folder. Names of files that are not UTF-8 are written as they are,
or as JSON's escapes, so that they name the file again. In a CSV an apostrophe guards captions and
labels that a spreadsheet would compute; `text_files` takes it away.

A folder gets webdataset shards (`00000.tar`, ...) with the original bytes of each image, its
caption as `.txt`, its label as `.cls`, path, caption and score as `.json`. `.kept.json` names the
shards. A later run replaces these and no other files: it writes its shards into a folder of its
own, and moves them when all are there.
"""

import contextlib
import io
import json
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from PIL.Image import Image

from zeroshot.errors import UserError, unknown
from zeroshot.inputs.local_files import read_file
from zeroshot.inputs.remote.fetch import Url
from zeroshot.inputs.remote.fsspec_files import Remote
from zeroshot.inputs.source import PICTURES, SIGNATURES, Picture, Source, UnreadableBlob
from zeroshot.inputs.text_files import FORMULA, KEPT_PAIRS
from zeroshot.output import atomic, leases
from zeroshot.output.filesystem import Disk
from zeroshot.output.formats import csv_line, guarded, pyarrow, to_json, utf8
from zeroshot.results.result import FilterResult

PAIRS_IN_A_SHARD = 10_000
TABLES = (".jsonl", ".csv", ".parquet")
RECORD = ".kept.json"
SHARD, STAGE = re.compile(r"\d{5,}\.tar"), re.compile(r"\.[0-9a-f]{12}\.new")


def check_target(path: Path, sources: Iterable[Source] = ()) -> None:
    """Check before a run that its pairs can be written to `path`.

    Raises:
        UserError: the name is neither that of a table nor that of a folder, something else is
            there, or a table cannot name one of the images.
        NotAvailableError: Parquet without pyarrow.
    """
    if not path.suffix:
        if path.exists() and not path.is_dir():
            raise UserError(f"'{path}' is a file, and a table has a suffix: {', '.join(TABLES)}")
        _KeptShards.read(path).check_others(path)
        return
    if path.suffix.lower() not in TABLES:
        raise unknown("table of kept pairs", path.suffix, TABLES)
    if path.is_dir():
        raise UserError(f"'{path}' is a folder, and the name of one of kept pairs has no suffix")
    if path.suffix.lower() == ".parquet":
        pyarrow()
    for source in sources:
        if not isinstance(source.content, UnreadableBlob):
            _check_name(source)


def write_kept(path: Path, results: Iterable[FilterResult]) -> int:
    """Write the results that are kept to a table or a folder; returns their number.

    Raises:
        UserError: an image cannot be read any more, or (for a table) has no file of its own;
            another process writes to the folder, or it has shards that are not of `--kept`.
        OutputError: the pairs cannot be written; what was there is unchanged.
    """
    kept = (result for result in results if result.kept)
    with atomic.writing(path):
        return _write_table(path, list(kept)) if path.suffix else _write_folder(path, kept)


# A table


def _write_table(path: Path, kept: Sequence[FilterResult]) -> int:
    rows = [_row(result, path.parent) for result in kept]
    with atomic.whole(path) as file:
        if path.suffix.lower() == ".jsonl":
            file.writelines(utf8(to_json(row)) + b"\n" for row in rows)
        elif path.suffix.lower() == ".csv":
            file.write(csv_line(KEPT_PAIRS).encode())
            for row in rows:
                name, *others = row.values()
                file.write(_as_it_is(csv_line([name, *map(guarded, others)])))
        else:
            arrow = pyarrow()
            columns: dict[str, Any] = {name: [row[name] for row in rows] for name in KEPT_PAIRS}
            names = arrow.array([_as_it_is(name) for name in columns["path"]], arrow.binary())
            columns["path"] = names.view(arrow.string())  # unlike a cast, this checks nothing
            types = [(name, arrow.string()) for name in KEPT_PAIRS[:-1]]
            schema = arrow.schema([*types, (KEPT_PAIRS[-1], arrow.float64())])
            arrow.parquet.write_table(arrow.Table.from_pydict(columns, schema), file)
    return len(rows)


def _as_it_is(text: str) -> bytes:
    """UTF-8, but for the bytes of a file's name that are not."""
    return text.encode("utf-8", "surrogateescape")


def _check_name(source: Source) -> None:
    if source.path is None or not isinstance(source.content, Url | Remote | None):
        raise UserError(
            f"'{source.path or 'an image in memory'}' is not a file of its own, so a table cannot "
            "name it; write the kept pairs to tar files: --kept FOLDER"
        )


def _row(result: FilterResult, folder: Path) -> dict[str, str | float | None]:
    source = result.source
    _check_name(source)
    path = str(source.path)
    if source.content is None:
        below = os.path.relpath(os.path.abspath(path), os.path.abspath(folder))
        path = os.path.abspath(path) if below.split(os.sep)[0] == os.pardir else below
        if path.startswith(FORMULA) or path[0].isspace():
            path = os.path.join(os.curdir, path)  # the same file, and not a formula
    cells = (path, result.caption, source.text_of("label"), result.row()["score"])
    return dict(zip(KEPT_PAIRS, cells, strict=True))


# Tar files


@dataclass(frozen=True)
class _KeptShards:
    """What `.kept.json` says of a folder."""

    shards: tuple[str, ...] = ()
    stage: str | None = None
    """The folder below it in which a run prepares its shards."""

    @classmethod
    def read(cls, folder: Path) -> "_KeptShards":
        """That of the folder; UserError for a file that is none."""
        file = folder / RECORD
        try:
            record = json.loads(file.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"'{file}' cannot be read: {error}; choose another folder") from error
        match record:
            case {"schema": "zeroshot.kept/1", "shards": list(names), "stage": str() | None}:
                shards, stage = tuple(map(str, names)), record["stage"]
                if all(map(SHARD.fullmatch, shards)) and (not stage or STAGE.fullmatch(stage)):
                    return cls(shards, stage)
        raise UserError(f"'{file}' was not written by zeroshot; choose another folder")

    def write(self, folder: Path) -> None:
        """Replace that of the folder; without shards there is none."""
        if self.shards or self.stage:
            row = {"schema": "zeroshot.kept/1", "shards": self.shards, "stage": self.stage}
            atomic.replace(folder / RECORD, to_json(row).encode() + b"\n")
        else:
            (folder / RECORD).unlink(missing_ok=True)

    def check_others(self, folder: Path) -> None:
        """UserError if the folder has a shard that is not named here."""
        there = os.listdir(folder) if folder.is_dir() else []
        others = sorted(name for name in there if SHARD.fullmatch(name) and name not in self.shards)
        if others:
            raise UserError(
                f"'{folder / others[0]}' is of no earlier --kept, as {RECORD} does not name it; "
                "remove it, or choose another folder"
            )


def _write_folder(folder: Path, kept: Iterator[FilterResult]) -> int:
    """Write shards in place of the earlier ones, which stay until all new ones are there."""
    folder.mkdir(parents=True, exist_ok=True)
    lease = leases.claim(Disk(folder), "kept")
    if not isinstance(lease, leases.Lease):
        raise UserError(f"'{folder}' is being written by {lease or 'another process'}")
    try:
        record = _KeptShards.read(folder)
        record.check_others(folder)
        if record.stage:  # of a run that was killed
            shutil.rmtree(folder / record.stage, ignore_errors=True)
        stage = f".{secrets.token_hex(6)}.new"
        _KeptShards(record.shards, stage).write(folder)
        try:
            count = _write_shards(folder / stage, kept)
            names = sorted(os.listdir(folder / stage))
            record = _KeptShards(tuple(dict.fromkeys([*record.shards, *names])))
            _KeptShards(record.shards, stage).write(folder)
            for name in names:
                os.replace(folder / stage / name, folder / name)
            for name in set(record.shards).difference(names):
                (folder / name).unlink(missing_ok=True)
            atomic.sync(folder)
            record = _KeptShards(tuple(names))
        finally:
            shutil.rmtree(folder / stage, ignore_errors=True)
            with contextlib.suppress(OSError):
                record.write(folder)
        return count
    finally:
        lease.release()


def _write_shards(folder: Path, kept: Iterator[FilterResult]) -> int:
    folder.mkdir()
    count = 0
    while results := list(islice(kept, PAIRS_IN_A_SHARD)):
        with atomic.whole(folder / f"{count // PAIRS_IN_A_SHARD:05}.tar") as file:
            write_tar(file, ((f"{n:09}", r.source, r.row()) for n, r in enumerate(results, count)))
        count += len(results)
    return count


def write_tar(file: BinaryIO, pairs: Iterable[tuple[str, Source, Mapping[str, Any]]]) -> None:
    """Write a webdataset tar file of pairs, each a name, a source and a row.

    Raises:
        UserError: an image cannot be read any more.
    """
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, source, row in pairs:
            data = _bytes(source)
            metadata = {key: row[key] for key in ("path", "id", "caption", "score")}
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
    kind = next((kind for kind, begins in SIGNATURES.items() if begins.match(data)), "JPEG")
    return {"JPEG": ".jpg", "TIFF": ".tif", "raw": ".dng"}.get(kind, f".{kind.lower()}")
