"""Annotation files beside the rows of a run, and `zeroshot export`, which makes them from rows.

As `cli`, nothing heavy is imported here.
"""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zeroshot.commands.command import command
from zeroshot.commands.runner import OutputOptions
from zeroshot.errors import UserError, counted
from zeroshot.tasks.options import flags_of, option

if TYPE_CHECKING:
    from zeroshot.output.formats import Row
    from zeroshot.tasks.task import Task

Through = Callable[[Iterator[Any]], Iterator[Any]]


@dataclasses.dataclass(frozen=True)
class LabelExportOptions:
    """Annotation files for other programs, from labels of whole images."""

    label_studio: Path | None = option(
        None,
        "Also write predictions for Label Studio to a .json file, and the labelling interface of "
        "the project beside it (.xml).",
        env="LABEL_STUDIO",
    )
    export_root: Path | None = option(
        None,
        "Folder that the names of images in annotation files are relative to; see "
        "docs/annotations.md.",
        env="EXPORT_ROOT",
    )

    def targets(self) -> dict[str, Path]:
        """The paths that were given, by the names of their formats.

        Raises:
            UserError: the same path twice, or no path but a root.
        """
        given = {
            flags_of(field)[0].removeprefix("--"): value
            for field in dataclasses.fields(self)
            if field.name != "export_root" and (value := getattr(self, field.name)) is not None
        }
        if len(set(given.values())) < len(given):
            raise UserError(f"{', '.join(f'--{name}' for name in given)}: each needs its own path")
        if self.export_root is not None and not given:
            raise UserError("--export-root is for annotation files (--label-studio and others)")
        return given


@dataclasses.dataclass(frozen=True)
class ExportOptions(LabelExportOptions):
    """The same, from boxes and masks."""

    coco: Path | None = option(
        None,
        "Also write boxes or masks to a .json file in COCO's format, which CVAT reads.",
        env="COCO",
    )
    yolo: Path | None = option(
        None,
        "Also write boxes or masks to a folder as a data set for YOLO, with links to the images.",
        env="YOLO",
    )


def check_several(options: LabelExportOptions, multi: bool, threshold: float | None) -> bool:
    """Whether an image may have several labels; UserError if it has all of them."""
    if multi and threshold is None and options.targets():
        raise UserError(
            "with --multi and no --threshold every image has every label, which is no annotation: "
            "give --threshold"
        )
    return multi


@contextlib.contextmanager
def exporting(
    run: OutputOptions,
    options: LabelExportOptions,
    task: "Task[Any]",
    labels: Sequence[str],
    several: bool = False,
) -> Iterator[Through]:
    """What passes results on; after the block their rows, or all rows of --out, are exported.

    An export holds the rows of earlier runs as well, so it is made from --out where that can be
    read; without it, rows wait in a temporary file.

    Raises:
        UserError: an export that cannot be, as far as it is known before the run.
    """
    targets = options.targets()
    if not targets:
        yield iter
        return
    replaced = _check(run, options, task.schema)
    readable = run.out is not None and run.out.suffix.lower() != ".txt"
    ended: typer.Exit | None = None
    with tempfile.TemporaryFile() as spool:
        try:
            yield iter if readable else lambda results: _spooled(results, spool.write)
        except typer.Exit as error:  # some images failed
            ended = error
        saved = run.saved() if readable else None
        rows = saved.rows if saved else lambda: _read(spool)
        about = _about(rows(), saved.record if saved else {})
        _export(targets, options, task.schema, rows, labels, several, about, replaced, run.quiet)
    if ended is not None:
        raise ended


def _check(run: OutputOptions, options: LabelExportOptions, schema: str) -> dict[str, bool]:
    """Which exports replace earlier ones."""
    targets = options.targets()
    from zeroshot.output.annotations.annotated import NEEDED
    from zeroshot.output.annotations.exporting import check

    if run.shards:
        raise UserError(
            "an export needs all rows, and --shards makes a part of them: zeroshot export DIR/ "
            "makes it when all shards are finished"
        )
    if run.out is not None and run.out in targets.values():
        raise UserError(f"--out '{run.out}' has rows, and an export needs a path of its own")
    if options.export_root is not None and not options.export_root.is_dir():
        raise UserError(f"--export-root '{options.export_root}' is no folder")
    run.check_columns(("path", "id", *NEEDED[schema], "error_type"), "an annotation file")
    again = run.has_rows
    return {n: check(n, path, schema, run.overwrite, again) for n, path in targets.items()}


def _spooled(results: Iterator[Any], write: Callable[[bytes], object]) -> Iterator[Any]:
    from zeroshot.output.formats import JsonLines

    for result in results:
        write(JsonLines().encode(result.row()))
        yield result


def _read(file: Any) -> "Iterator[Row]":
    from zeroshot.output.formats import JsonLines

    file.seek(0)
    return (JsonLines().cells(line) for line in file)


def _about(rows: "Iterable[Row]", record: Mapping[str, Any]) -> dict[str, Any]:
    """Where the rows are from, for the record of an export."""
    settings = record.get("settings", {})
    first: Mapping[str, Any] = next((row for row in rows if row.get("models")), settings)
    models = first.get("models") or {}
    if isinstance(models, str):
        with contextlib.suppress(ValueError, RecursionError):
            models = json.loads(models)
    if not isinstance(models, Mapping):
        raise UserError(
            f"the row of '{first.get('path')}' has models of another form: {models!r:.60}"
        )
    return {"models": models, "method": first.get("method"), "about": record.get("about", {})}


def _export(
    targets: Mapping[str, Path],
    options: LabelExportOptions,
    schema: str,
    rows: "Callable[[], Iterable[Row]]",
    labels: Sequence[str],
    several: bool,
    about: Mapping[str, Any],
    replaced: Mapping[str, bool],
    quiet: bool,
) -> None:
    from zeroshot.commands import console
    from zeroshot.output.annotations.annotated import Annotations
    from zeroshot.output.annotations.exporting import export

    model = f"{', '.join(map(str, about['models'].values()))} ({about['method']})"
    made = Annotations(schema, rows, labels, several, model, options.export_root)
    for name, path in targets.items():
        with console.meter().phase(f"writing {path}", counts=False):
            notes = export(name, path, made, about, overwrite=replaced[name])
        for note in () if quiet else notes:
            console.log(note)


@command
def export(
    options: ExportOptions,
    rows: Annotated[
        Path,
        typer.Argument(
            help="What detect, segment or classify wrote: a file (.jsonl, .csv, .parquet), or a "
            "folder of shards."
        ),
    ],
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", envvar="ZEROSHOT_OVERWRITE", help="Replace what is at these paths."
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", envvar="ZEROSHOT_QUIET", help="Print no notes."),
    ] = False,
) -> None:
    """Make annotation files from rows that are there; no model is loaded.

    Examples:
        zeroshot export boxes.jsonl --coco boxes.json
        zeroshot export boxes.jsonl --yolo dataset/ --label-studio tasks.json
    """
    from zeroshot.distributed.saved_rows import saved_rows
    from zeroshot.output.annotations.exporting import check

    targets = options.targets()
    if not targets:
        raise UserError("export needs --coco, --yolo or --label-studio, and a path")
    saved = saved_rows(rows)
    replaced = {n: check(n, path, saved.schema, overwrite, False) for n, path in targets.items()}
    if saved.unfinished:
        raise UserError(
            f"'{rows}' lacks {counted(saved.unfinished, 'shard')}: finish it by the command that "
            "began it"
        )
    settings, about = saved.record.get("settings", {}), saved.record.get("about", {})
    labels = settings.get("labels") or about.get("labels") or ()
    several = check_several(options, bool(settings.get("multi")), settings.get("threshold"))
    known = _about(saved.rows(), saved.record)
    _export(targets, options, saved.schema, saved.rows, labels, several, known, replaced, quiet)
