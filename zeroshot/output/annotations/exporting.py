"""Write annotation files by the name of their format, each with a record of where it is from.

The record is `x.json.run.json` beside a file, and `run.json` in a folder. It has a fingerprint of
what was written, so that a run that continues replaces its own files, and none that were changed.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from zeroshot.errors import UserError
from zeroshot.output import atomic
from zeroshot.output.annotations import coco_annotations, label_studio, yolo_annotations
from zeroshot.output.annotations.annotated import CLASSIFY, Annotations
from zeroshot.output.formats import utf8
from zeroshot.output.resumable import versions

SCHEMA = "zeroshot.export/1"


class AnnotationWriter(Protocol):
    """A module that writes one format."""

    @property
    def SCHEMAS(self) -> Sequence[str]:  # noqa: N802
        """The rows that the format can hold."""

    def files(self, path: Path) -> list[Path]:
        """What `write` writes at a path."""

    def write(self, path: Path, annotations: Annotations, overwrite: bool) -> list[str]:
        """Write the rows; returns what a user should know."""


WRITERS: Mapping[str, AnnotationWriter] = {
    "coco": coco_annotations,
    "yolo": yolo_annotations,
    "label-studio": label_studio,
}
"""By the name of the option."""


def check(format: str, path: Path, schema: str, overwrite: bool, again: bool) -> bool:
    """Check before a run what is known of an export; returns whether it replaces an earlier one.

    Args:
        again: the run continues, and its export replaces the one that it wrote before.

    Raises:
        UserError: the format has no place for these rows, or something is at the path.
    """
    writer = WRITERS[format]
    if schema not in writer.SCHEMAS:
        able = ", ".join(f"--{name}" for name, each in WRITERS.items() if schema in each.SCHEMAS)
        what = "labels of whole images" if schema == CLASSIFY else f"rows of {schema}"
        advice = f"take {able}" if able else "rows of detect, segment and classify have"
        raise UserError(f"--{format} has no place for {what}; {advice}")
    there = [file for file in writer.files(path) if os.path.lexists(file)]
    if there and not overwrite and not again:
        raise UserError(f"'{there[0]}' exists; --overwrite replaces it")
    if there and not overwrite and not _unchanged(format, path):
        raise UserError(
            f"'{there[0]}' exists and is not as an earlier run wrote it, so it is not replaced: "
            f"name another --{format}"
        )
    folder = format == "yolo"
    if not folder and path.suffix.lower() != ".json":
        raise UserError(f"--{format} '{path}': the file is a .json file")
    if folder and os.path.lexists(path) and not path.is_dir():
        raise UserError(f"--{format} '{path}' is a file, and a data set is a folder")
    if folder and there:
        yolo_annotations.check_replaceable(path)
    atomic.check_place(path)
    return bool(there)


def export(
    format: str,
    path: Path,
    annotations: Annotations,
    about: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> list[str]:
    """Write the rows and the record; returns what a user should know.

    Args:
        about: where the rows are from, for the record.

    Raises:
        UserError: something is at the path and may not be replaced; a row of another form.
        OutputError: it cannot be written.
    """
    notes = WRITERS[format].write(path, annotations, overwrite)
    record = {"schema": SCHEMA, "format": format, "rows": annotations.schema} | dict(about)
    record |= {"classes": annotations.names(), "versions": versions()}
    record |= {"made": datetime.now(UTC).isoformat(timespec="seconds")}
    record["sha256"] = fingerprint(WRITERS[format].files(path))
    text = json.dumps(record, ensure_ascii=False, indent=2)
    atomic.replace(_record(path), utf8(text + "\n"))
    return notes


def _record(path: Path) -> Path:
    return path / "run.json" if path.is_dir() else path.with_name(f"{path.name}.run.json")


def _unchanged(format: str, path: Path) -> bool:
    """Whether what is there is what `export` wrote."""
    try:
        record = json.loads(_record(path).read_bytes())
        same = record["schema"] == SCHEMA and record["format"] == format
        return bool(same) and record["sha256"] == fingerprint(WRITERS[format].files(path))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def fingerprint(files: Sequence[Path]) -> str:
    """The sha256 of files, and of all in folders: names and content, or what a link leads to.

    Without the record, and without the caches that readers leave in a folder.
    """
    total = hashlib.sha256()
    for file in files:
        for name in sorted(_below(file)):
            path = file / name if name else file
            link = os.readlink(path) if os.path.islink(path) else None
            content = path.read_bytes() if link is None else os.fsencode(link)
            total.update(os.fsencode(name) + b"\0" + hashlib.sha256(content).digest())
    return total.hexdigest()


def _below(path: Path) -> list[str]:
    if not path.is_dir():
        return [""]
    names = [
        os.path.relpath(os.path.join(folder, name), path)
        for folder, _, files in os.walk(path)
        for name in files
    ]
    return [name for name in names if name != "run.json" and not name.endswith(".cache")]
