"""Run a task that writes files beside images, also for the rows of earlier runs; and take back.

As `cli`, nothing heavy is imported here.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from zeroshot.commands.runner import OutputOptions
from zeroshot.errors import UserError, counted

if TYPE_CHECKING:
    from zeroshot.distributed.sharding import Inputs
    from zeroshot.inputs.source import Source
    from zeroshot.tasks.sidecars.sidecar_task import SidecarTask

XmpNameFlag = Annotated[
    Literal["full", "stem"],
    typer.Option(
        "--xmp-name",
        envvar="ZEROSHOT_XMP_NAME",
        help="Name of the XMP sidecar of a.jpg: full for a.jpg.xmp (darktable, digiKam, immich), "
        "stem for a.xmp (Lightroom, Capture One).",
    ),
]
SidecarRemove = Annotated[
    bool,
    typer.Option(
        "--sidecar-remove",
        help="Take all that zeroshot wrote out of the XMP sidecars of these images, and do nothing "
        "else.",
    ),
]


def show_with_sidecars(
    run: OutputOptions,
    task: "SidecarTask",
    sources: "Inputs",
    through: Callable[[Iterator[Any]], Iterator[Any]] = iter,
) -> None:
    """Write files for images, also those of rows that --out had already."""
    from zeroshot.commands import console
    from zeroshot.inference.meter import Meter

    writer = task.writer
    answer = ("caption",) if writer.what == "captions" else ("labels", "abstained")
    if getattr(writer, "kind", "") == "copy":  # a copy is of the content that was labelled
        answer = (*answer, "id")
    run.check_columns(("path", *answer), writer.option)
    writer.check(_pictures(sources))
    had_rows, failed, meter = run.has_rows, False, Meter()
    try:
        run.show(task, sources, through)
    except typer.Exit:
        failed = True
    written, later = 0, writer.later()
    if had_rows and (missing := writer.missing(_pictures(sources))):
        for row in run.saved().rows():
            source = missing.get(row["path"])
            if source is not None and not (row.get("error") or row.get("error_type")):
                written += later.write(source, row, meter)
    if not run.quiet and (written or meter.unwritten or meter.skipped_existing):
        console.log(f"{writer.what} of earlier rows that are now {writer.place}: {written}")
        for line in console.summary(meter, 0, False):
            console.log(line)
    if failed or meter.unwritten:
        raise typer.Exit(3)


def _pictures(sources: "Inputs") -> "Iterator[Source]":
    from zeroshot.inputs.containers import Containers

    if isinstance(sources, Containers):
        return (source for file in sources.files for source in file.pictures())
    return iter(sources)


def remove_sidecars(
    run: OutputOptions, images: Sequence[str], name: Literal["full", "stem"]
) -> None:
    """Take all that is ours out of the XMP sidecars of images, and say how many there were."""
    from zeroshot.commands import console
    from zeroshot.inference.meter import Meter
    from zeroshot.tasks.sidecars import sidecar_task
    from zeroshot.tasks.sidecars.xmp_sidecars import XmpSidecars

    if not images:
        raise UserError("--sidecar-remove needs images, beside which it looks for XMP sidecars")
    writer, meter = XmpSidecars("keywords", name), Meter()
    sources = run.sources(images)
    sidecar_task.check_sidecars(sources, writer)
    paths = dict.fromkeys(source.path for source in sources if source.path is not None)
    changed = sum(writer.remove(path, meter) for path in paths)
    if not run.quiet:
        console.log(f"took what zeroshot wrote out of {counted(changed, 'XMP sidecar')}")
        for line in console.summary(meter, 0, False):
            console.log(line)
    if meter.unwritten:
        raise typer.Exit(3)
