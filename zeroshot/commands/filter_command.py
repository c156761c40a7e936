"""`zeroshot filter`: noisy image-text pairs to those worth keeping."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from zeroshot.commands.options import on_pictures, option
from zeroshot.commands.runner import Rows
from zeroshot.errors import UserError

if TYPE_CHECKING:
    from zeroshot.results.result import FilterResult, Result


@on_pictures
def filter(
    run: Rows,
    pairs: Annotated[
        list[str],
        typer.Argument(
            help="Tables with paths or URLs and captions (.csv, .tsv, .jsonl, .parquet), "
            "webdataset tar files, hf-dataset:NAME."
        ),
    ],
    min_score: Annotated[
        float | None,
        option("--min-score", env="MIN_SCORE", help="Keep pairs of at least this cosine."),
    ] = None,
    keep: Annotated[
        float | None,
        option("--keep", env="KEEP", help="Keep this share of the pairs, the best: 0.3."),
    ] = None,
    long_text: Annotated[
        str,
        option(
            "--long-text",
            env="LONG_CAPTION",
            help="Captions longer than the encoder reads: truncate (the row says so) or error.",
        ),
    ] = "truncate",
    kept: Annotated[
        Path | None,
        option(
            "--kept",
            env="KEPT",
            help="Write the kept pairs: a .jsonl, .csv or .parquet table, or a folder for "
            "webdataset tar files.",
        ),
    ] = None,
    layout: Annotated[
        Literal["rows", "webdataset"] | None,
        option(
            "--layout",
            env="FILTER_LAYOUT",
            help="Of a folder: rows, or rows and a tar file of the kept pairs of each shard.",
        ),
    ] = None,
) -> None:
    """Keep image-text pairs whose picture and caption agree, by a threshold or by a share."""
    from zeroshot.commands import console
    from zeroshot.output.filtered_pairs import check_target, write_kept
    from zeroshot.tasks.filter_task import FilterJob

    if long_text not in ("truncate", "error"):
        raise UserError(f"--long-text {long_text}: truncate or error")
    job = FilterJob(run.model_set(), min_score, keep, long_text == "truncate")
    if kept is not None and run.folder is not None:
        raise UserError(
            "--kept needs all rows at once: leave --out DIR/, or have each shard keep its own "
            "pairs there with --layout webdataset"
        )
    whole = (keep is not None or kept is not None) and run.folder is None
    for path in (run.out if whole else None, kept):
        if path is not None and path.exists() and not run.overwrite:
            raise UserError(f"'{path}' exists, and all pairs count; --overwrite writes over it")
    if kept is not None:
        check_target(kept)
    chosen: list[FilterResult] = []
    counts = {"scored": 0, "kept": 0}

    def watched(results: "Iterator[Result]") -> "Iterator[Result]":
        for result in cast("Iterator[FilterResult]", results):
            counts["scored"] += result.error is None
            counts["kept"] += result.kept
            if kept is not None and result.kept:
                chosen.append(result)
            yield result

    failed = False
    try:
        run.show(job, run.inputs(pairs), watched, layout)
    except typer.Exit:
        failed = True
    if kept is not None:
        write_kept(kept, chosen)
    if not run.quiet and run.folder is None:
        console.say(f"kept {counts['kept']} of {counts['scored']} pairs")
    if failed:
        raise typer.Exit(3)
