"""`zeroshot video`: classify, search, caption and embed clips, and calibrate on them.

As `cli`, nothing heavy is imported here.
"""

import dataclasses
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from zeroshot.commands.calibrate_command import Calibrating
from zeroshot.commands.embed_command import Half, Layout, have_captions
from zeroshot.commands.labels_command import Labelling
from zeroshot.commands.options import (
    LanguageModel,
    Method,
    MethodOptions,
    Run,
    on_pictures,
    option,
    read_options,
)
from zeroshot.commands.runner import Rows
from zeroshot.commands.search_commands import Html, Searching
from zeroshot.errors import UserError

if TYPE_CHECKING:
    from zeroshot.model_set.model_set import ModelSet

app = typer.Typer(help="Video clips, as means of their frames: labels, search, captions, rows.")

Clips = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders (with all below), globs, URLs, .tar files, tables, or - for names."
    ),
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
Model = Annotated[
    str | None,
    option(
        "--model",
        env="VIDEO_MODEL",
        help="A model of clips (X-CLIP): hf:microsoft/xclip-base-patch32. Without one, the "
        "set's dual encoder, frame by frame.",
    ),
]
NoModel = Annotated[str | None, typer.Option("--model", hidden=True)]
"""Where a model of clips is asked for in vain, to say why."""


@dataclasses.dataclass(frozen=True)
class ClipRows(Rows):
    """The options of `Rows`, for clips."""

    things: ClassVar[str] = "clips"


@dataclasses.dataclass(frozen=True)
class ClipRun(Run):
    """The options of `Run`, for clips."""

    things: ClassVar[str] = "clips"


def _models(run: Run, frames: int | None, lm: str | None = None) -> "ModelSet":
    from zeroshot.model_set.frame_encoder import FRAMES, ClipModels

    return ClipModels.from_model_set(run.model_set(lm), frames or FRAMES)


@app.command()
@on_pictures
def classify(
    run: ClipRows,
    asked: Labelling,
    clips: Clips,
    model: Model = None,
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
    """Label clips, by the methods that label pictures or by a model of clips."""
    asked.refuse_without_labels("video classify needs clips")
    if model is None and pooling == "mean":
        asked.show(run, asked.job(run, _models(run, frames)), run.inputs(clips))
        return
    if model is not None and (frames is not None or pooling == "attention"):
        raise UserError("a model of clips (--model) takes no --frames and no --pooling")
    _refuse_methods(asked)
    from zeroshot.model_set.frame_encoder import FRAMES
    from zeroshot.tasks.classification.clip_task import ClipClassifyJob

    names, _, sentences = asked.prompted("none" if model else "simple")
    job = ClipClassifyJob(
        run.model_set(),
        names,
        sentences,
        model,
        frames or FRAMES,
        asked.top_k,
        asked.head,
        asked.multi,
        tuple(asked.against or ()),
        asked.threshold,
    )
    run.show(job, run.inputs(clips))


def _refuse_methods(asked: Labelling) -> None:
    """UserError for options that need one row for a clip, whatever the text."""
    given = {
        "--method": asked.method,
        "-o": asked.method_option,
        "--long-text": asked.long_text != "error",
        "--shots": asked.shots,
        "--bank": asked.bank,
        "--prior": asked.prior,
        "--hierarchy": asked.hierarchy,
        "--calibration": asked.calibration,
        "--abstain": asked.abstain is not None,
        "--compare": asked.compare,
        "--explain": asked.explain,
    }
    if named := [name for name, value in given.items() if value]:
        raise UserError(
            f"{', '.join(named)}: needs one row for a clip, whatever the text, and with --model or "
            "--pooling attention a clip has one for each text; leave the one or the other"
        )


@app.command()
@on_pictures
def search(
    run: ClipRun,
    asked: Searching,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[QUERY] CLIPS...",
            help="What to look for (not with --clip or --queries), then files, folders, globs or "
            "-.",
        ),
    ],
    clip: Annotated[
        str | None, option("--clip", env="SEARCH_CLIP", help="A clip as the query.")
    ] = None,
    html: Html = None,
    frames: Frames = None,
    model: NoModel = None,
) -> None:
    """Find clips by words, by a clip, or by sums and differences of both."""
    _refuse_model(model, "search ranks clips by one row for each")
    asked.find(run, words, _models(run, frames), ("--clip", clip), html)


@app.command()
@on_pictures
def caption(
    run: ClipRows,
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
    model: NoModel = None,
) -> None:
    """Caption clips, by the methods that caption pictures."""
    _refuse_model(model, "captions are guided by one row for each clip")
    from zeroshot.tasks.captioning.caption_task import CaptionJob

    job = CaptionJob(
        _models(run, frames, lm),
        method,
        read_options(option),
        preset,
        prompt,
        coupling=coupling,
    )
    run.show(job, run.inputs(clips))


def _refuse_model(model: str | None, why: str) -> None:
    if model is not None:
        raise UserError(
            f"{why}, and a model of clips (X-CLIP) changes each text's row by what a clip shows: "
            "label clips with it (video classify --model), or leave --model and take a dual "
            "encoder, frame by frame (--models, --encoder)"
        )


@app.command()
@on_pictures
def embed(
    run: ClipRows,
    clips: Clips,
    layout: Layout = None,
    half: Half = False,
    frames: Frames = None,
) -> None:
    """Embed clips: fill the cache, and give the rows out with --json or --out."""
    from zeroshot.tasks.embed_task import EmbedJob

    sources = run.inputs(clips)
    captions = layout == "clip-retrieval" and have_captions(sources)
    job = EmbedJob(_models(run, frames), captions)
    run.show(job, sources, layout=layout, half=half, default_layout="safetensors")


@app.command()
@on_pictures
def calibrate(
    run: ClipRun,
    asked: Calibrating,
    clips: Annotated[
        list[str] | None,
        typer.Argument(help="Unlabelled clips of the kind one expects; none with --truth."),
    ] = None,
    frames: Frames = None,
) -> None:
    """Fit what 'video classify --calibration' takes; --out names a .json file."""
    asked.fit(run, _models(run, frames), clips)
