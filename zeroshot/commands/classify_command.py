"""`zeroshot classify`, on pictures and on arrays.

As `cli`, nothing heavy is imported here.
"""

from pathlib import Path
from typing import Annotated

import typer

from zeroshot.commands.labels_command import Labelling
from zeroshot.commands.options import on_pictures, option, read_options
from zeroshot.commands.runner import Rows
from zeroshot.errors import UserError


@on_pictures
def classify(
    run: Rows,
    asked: Labelling,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, globs or -; none with --embeddings."),
    ] = None,
    views: Annotated[
        int,
        option("--views", env="VIEWS", help="Random parts of each picture, itself included."),
    ] = 0,
    embeddings: Annotated[
        Path | None,
        option(
            "--embeddings",
            env="EMBEDDINGS",
            help="Score the arrays of an .npz file instead; --out names an .npz file then.",
        ),
    ] = None,
) -> None:
    """Label pictures, or score arrays of embeddings (--embeddings)."""
    if embeddings is not None:
        if images or asked.labels:
            raise UserError("--embeddings takes neither pictures nor --labels: the file has both")
        options = read_options(asked.method_option)
        if asked.compare:
            _compare_arrays(embeddings, asked.compare, options)
        else:
            _classify_arrays(run, embeddings, asked.method or "ensemble", options)
        return
    if not images:
        raise UserError(
            "classify needs pictures and --labels (or --hierarchy), or --embeddings FILE.npz"
        )
    asked.refuse_without_labels("classify needs pictures")
    asked.show(run, asked.job(run, run.model_set(), views), run.inputs(images))


def _compare_arrays(file: Path, names: str, options: dict[str, str]) -> None:
    from zeroshot.commands import console
    from zeroshot.tasks.classification.arrays import read_arrays
    from zeroshot.tasks.classification.compare import compare_arrays

    console.show_comparison(compare_arrays(read_arrays(file), names.split(","), options))


def _classify_arrays(run: Rows, file: Path, method: str, options: dict[str, str]) -> None:
    if run.out is None or run.out.suffix != ".npz":
        raise UserError("--embeddings needs --out FILE.npz for the scores")
    if run.out.exists() and not run.overwrite:
        raise UserError(f"'{run.out}' exists; --overwrite writes over it")
    from zeroshot.commands import console
    from zeroshot.tasks.classification.arrays import read_arrays, score_arrays, write_arrays

    scored = score_arrays(read_arrays(file), method, options)
    write_arrays(run.out, scored)
    if not run.quiet:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in scored.items())
        console.say(f"wrote {run.out}: {shapes}")
