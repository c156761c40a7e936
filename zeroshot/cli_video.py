"""`zeroshot video`: classify, search and caption clips.

As `cli`, nothing heavy is imported here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from zeroshot.cli_classify import prompted
from zeroshot.cli_rows import Rows
from zeroshot.cli_run import (
    Labels,
    LanguageModel,
    LongText,
    Method,
    MethodOptions,
    Run,
    Score,
    on_pictures,
    option,
    read_options,
)
from zeroshot.cli_search import find_in, refuse_to_overwrite
from zeroshot.errors import UserError

if TYPE_CHECKING:
    from zeroshot.model_set import ModelSet

app = typer.Typer(help="Video clips, as means of their frames: labels, search, captions.")

Clips = Annotated[
    list[str],
    typer.Argument(help="Files, folders (with all below), globs, tables, or - for names."),
]
Frames = Annotated[
    int | None,
    option(
        "--frames",
        env="FRAMES",
        help="Of each clip, evenly spread: 8; a model of clips has a number of its own.",
        min=1,
        max=256,
    ),
]


def _models(run: Run, frames: int | None, lm: str | None = None) -> "ModelSet":
    from zeroshot.framewise import ClipModels

    return ClipModels.of(run.model_set(lm), frames or 8)


@app.command()
@on_pictures
def classify(
    run: Rows,
    clips: Clips,
    labels: Labels = None,
    model: Annotated[
        str | None,
        option(
            "--model",
            env="VIDEO_MODEL",
            help="A model of clips (X-CLIP): hf:microsoft/xclip-base-patch32. Without one, the "
            "set's dual encoder, frame by frame.",
        ),
    ] = None,
    templates: Annotated[
        str | None,
        typer.Option("--templates", help="As of classify: simple; with --model, none."),
    ] = None,
    method: Method = None,
    option: MethodOptions = None,
    score: Score = "auto",
    top_k: Annotated[
        int, option("--top-k", "-k", env="TOP_K", help="Labels in a row, best first.", min=1)
    ] = 5,
    long_text: LongText = "error",
    pooling: Annotated[
        Literal["mean", "attention"],
        option(
            "--pooling",
            env="POOLING",
            help="A clip is the mean of its frames, or each text attends to frames that fit it.",
        ),
    ] = "mean",
    frames: Frames = None,
) -> None:
    """Label clips."""
    if not labels:
        raise UserError("video classify needs --labels: cooking,running, or a .txt or .json file")
    from zeroshot.jobs.classify import ClassifyJob
    from zeroshot.jobs.clips import ClipClassifyJob

    names, _, sentences = prompted(labels, None, templates or ("none" if model else "simple"))
    sources = run.inputs(clips)
    if model is not None or pooling == "attention":
        if model is not None and (frames is not None or pooling == "attention"):
            raise UserError("a model of clips (--model) takes no --frames and no --pooling")
        _refuse_methods([method, option, score != "auto", long_text != "error"])
        own = ClipClassifyJob(run.model_set(), names, sentences, model, frames or 8, top_k)
        run.show(own, sources)
        return
    job = ClassifyJob(
        _models(run, frames),
        names,
        sentences,
        method,
        read_options(option),
        None if score == "auto" else score,
        long_text == "truncate",
        top_k=top_k,
    )
    run.show(job, sources)


def _refuse_methods(given: Sequence[object]) -> None:
    if any(given):
        raise UserError(
            "--method, -o, --score and --long-text need one row for a clip, whatever the text: "
            "leave them, or --model and --pooling attention"
        )


@app.command()
@on_pictures
def search(
    run: Run,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[QUERY] CLIPS...",
            help="What to look for (not with --queries), then files, folders, globs or -.",
        ),
    ],
    queries: Annotated[
        Path | None, option("--queries", env="QUERIES", help="Many queries, one a line.")
    ] = None,
    top_k: Annotated[
        int, option("--top-k", "-k", env="TOP_K", help="Clips for each query.", min=1)
    ] = 10,
    min_score: Annotated[
        float | None, option("--min-score", env="MIN_SCORE", help="Leave out what scores less.")
    ] = None,
    frames: Frames = None,
) -> None:
    """Find clips by words."""
    from zeroshot.tasks import search as task

    if queries is None:
        first, *clips = words
        if not clips:
            raise UserError(f"search needs clips: zeroshot video search '{first}' DIR")
        asked = [task.query(task.term(f"text:{first}"))]
    else:
        asked, clips = task.read_queries(queries), words
        if any(term.picture is not None for query in asked for term in query.terms):
            raise UserError(f"'{queries}': clips are searched by words, not by pictures")
    refuse_to_overwrite(run, run.out)
    find_in(run, asked, clips, _models(run, frames), top_k=top_k, min_score=min_score)


@app.command()
@on_pictures
def caption(
    run: Rows,
    clips: Clips,
    method: Method = None,
    option: MethodOptions = None,
    preset: Annotated[
        str | None,
        option("--preset", env="PRESET", help="Named settings of magic: coco, flickr30k, story."),
    ] = None,
    lm: LanguageModel = None,
    coupling: Annotated[
        str | None,
        option("--coupling", env="COUPLING", help="Replace the set's coupling; auto chooses one."),
    ] = None,
    prompt: Annotated[
        str | None,
        option("--prompt", env="PROMPT", help="What every text begins with; a story's title."),
    ] = None,
    frames: Frames = None,
) -> None:
    """Caption clips, by the methods that caption pictures."""
    from zeroshot.jobs.caption import CaptionJob

    job = CaptionJob(
        _models(run, frames, lm),
        method,
        read_options(option),
        preset,
        prompt,
        coupling=coupling,
    )
    run.show(job, run.inputs(clips))
