"""`classify --into`: images in a folder for each label; and `zeroshot undo`, which takes it back.

As `cli`, nothing heavy is imported here.
"""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from zeroshot.commands.command import command
from zeroshot.commands.runner import OutputOptions
from zeroshot.commands.sidecars.sidecar_runs import show_with_sidecars
from zeroshot.errors import UserError, counted

if TYPE_CHECKING:
    from zeroshot.distributed.sharding import Inputs
    from zeroshot.tasks.classification.classify_task import Classify

Into = Annotated[
    Path | None,
    typer.Option(
        "--into",
        envvar="ZEROSHOT_INTO",
        metavar="DIR",
        help="Also sort the images: a folder for each label, with links to its images. 'zeroshot "
        "undo' takes them back.",
    ),
]
IntoAsFlag = Annotated[
    Literal["symlink", "hardlink", "copy"],
    typer.Option(
        "--into-as",
        envvar="ZEROSHOT_INTO_AS",
        help="What --into makes: relative links, further names of the same files, or copies, which "
        "images of tar files, tables and URLs need.",
    ),
]
KINDS = {"symlink": "link", "hardlink": "hard link", "folder": "folder"}


def show_sorted(
    run: OutputOptions,
    task: "Classify",
    sources: "Inputs",
    folder: Path,
    kind: Literal["symlink", "hardlink", "copy"],
    through: Callable[[Iterator[Any]], Iterator[Any]] = iter,
) -> None:
    """Label images, and link or copy each into the folder of its label, with a manifest."""
    from zeroshot.commands import console
    from zeroshot.inputs.containers import Containers
    from zeroshot.output.manifest import manifests_of
    from zeroshot.tasks.sidecars.sidecar_task import SidecarLabels
    from zeroshot.tasks.sidecars.sorted_images import outside, sort_into

    options = task.options
    writer = sort_into(folder, kind, options, task.vocabulary.labels)
    if not isinstance(sources, Containers):
        all_of, sources = sources, outside(list(sources), folder)
        if all_of and not sources:
            raise UserError(
                f"--into {folder}: all images lie in this folder, which the run fills: name "
                "another one"
            )
        if len(sources) < len(all_of) and not run.quiet:
            without = counted(len(all_of) - len(sources), "image")
            console.log(f"left out {without} in '{folder}', which the run fills")
    renamed = {label: name for label, name in writer.folders.items() if label != name}
    if renamed and not run.quiet:
        shown = ", ".join(f"'{name}' for {label!r}" for label, name in list(renamed.items())[:3])
        more = f" and {len(renamed) - 3} more" if len(renamed) > 3 else ""
        console.log(f"folders whose names differ from their labels: {shown}{more}")
    both = SidecarLabels(models=task.models, options=options, inner=task, writer=writer)
    ran = False
    try:
        show_with_sidecars(run, both, sources, through)
        ran = True
    except typer.Exit:  # some images failed
        ran = True
        raise
    finally:
        writer.manifest.close()
        made = manifests_of(folder, writer.manifest.name)
        if not run.quiet and (ran or made):
            _say_what_was_made(made, folder)


def _say_what_was_made(manifests: "list[Path]", folder: Path) -> None:
    from zeroshot.commands import console
    from zeroshot.output.manifest import read_manifest

    made = [read_manifest(path, of_this_run=True) for path in manifests]
    number = sum(len(manifest.files) for manifest in made)
    if not made:
        console.log(f"nothing new in '{folder}'")
        return
    names = " ".join(shlex.quote(str(path)) for path in manifests)
    things = f"{counted(number, 'link')} or copies" if number != 1 else "1 link or copy"
    console.log(f"{things} in '{folder}'; to take back: zeroshot undo {names}")


@command
def undo(
    manifests: Annotated[
        list[Path],
        typer.Argument(
            metavar="MANIFEST...",
            help="DIR/zeroshot-sorted-....jsonl that a run of 'classify --into DIR' wrote, or DIR "
            "for all its runs.",
        ),
    ],
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", envvar="ZEROSHOT_QUIET", help="Print no summary.")
    ] = False,
) -> None:
    """Take back the links, copies and folders of 'classify --into', and nothing else.

    What was changed since stays and is named (exit code 3), and so does the manifest then. Images
    are never touched.

    Examples:
        zeroshot undo sorted/
        zeroshot undo sorted/ --quiet
    """
    from zeroshot.commands import console
    from zeroshot.output import manifest

    unique = {file.resolve(): file for path in manifests for file in manifest.manifests_in(path)}
    done = manifest.undo([manifest.read_manifest(file) for file in unique.values()])
    for path, reason in done.left:
        console.log(f"left '{path}': {reason}")
    if not quiet:
        for folder in done.foreign:
            console.log(f"left the folder '{folder}': it was there before")
        parts = [
            counted(done.removed[kind], name) for kind, name in KINDS.items() if done.removed[kind]
        ]
        if copies := done.removed["copy"]:
            parts.append("1 copy" if copies == 1 else f"{copies} copies")
        took = ", ".join(parts) or "nothing"
        gone = f"; {done.gone} were gone already" if done.gone else ""
        console.log(f"took back {took}{gone}")
    if done.left:
        raise typer.Exit(3)
