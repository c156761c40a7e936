"""`zeroshot video`: label, search, caption and embed videos, and calibrate on them.

As `cli`, nothing heavy is imported here.
"""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from zeroshot.commands.command import Videos, command, register
from zeroshot.commands.common_options import CommonOptions, RowOptions
from zeroshot.commands.label_commands import Compare, calibrate_on, show_labels
from zeroshot.commands.runner import OutputOptions
from zeroshot.commands.search_commands import Html, Queries, find, queries_of
from zeroshot.commands.task_commands import Half, LayoutFlag, show_embeddings
from zeroshot.errors import UserError
from zeroshot.tasks.captioning.caption_options import CaptionOptions
from zeroshot.tasks.classification.calibrate_options import CalibrateOptions
from zeroshot.tasks.classification.classify_options import VideoClassifyOptions
from zeroshot.tasks.options import option
from zeroshot.tasks.search_options import VideoSearchOptions

if TYPE_CHECKING:
    from zeroshot.model_set.model_set import ModelSet

app = typer.Typer(help="Label, search, caption or embed videos.")

NO_MODEL = "Hidden option: rejects --model with an explanation."
NoModel = Annotated[str | None, typer.Option("--model", hidden=True, help=NO_MODEL)]


@dataclasses.dataclass(frozen=True)
class FrameOptions:
    """How a video becomes one embedding."""

    frames: int | None = option(
        None, "Frames per video, evenly spread: 8.", env="FRAMES", min=1, max=256
    )

    def models(self, run: CommonOptions, model: str | None, why: str) -> "ModelSet":
        """The run's models, on the mean of the frames; `why` there can be no video `model`."""
        if model is not None:
            raise UserError(
                f"{why}, and a video model (X-CLIP) changes each text's embedding by what a video "
                "shows: label videos with it (video classify --model), or leave --model and take a "
                "dual encoder, frame by frame (--models, --encoder)"
            )
        from zeroshot.model_set.frame_encoder import FRAMES, ClipModels

        return ClipModels.from_model_set(run.model_set(), self.frames or FRAMES)


@dataclasses.dataclass(frozen=True)
class VideoCaptionOptions(CaptionOptions):
    """The options of `CaptionOptions`, but for trained captioners, which describe one image."""

    model: str | None = option(None, NO_MODEL, hidden=True)
    box: Any = option((), "Videos have no boxes.", on_command_line=False)
    margin: float = option(0.25, "Videos have no boxes.", on_command_line=False)


@dataclasses.dataclass(frozen=True)
class VideoOutputOptions(OutputOptions):
    """The options of `OutputOptions`, for videos."""

    modality: ClassVar[Literal["image", "video"]] = "video"


@dataclasses.dataclass(frozen=True)
class VideoRowOptions(RowOptions):
    """The options of `RowOptions`, for videos."""

    modality: ClassVar[Literal["image", "video"]] = "video"


@dataclasses.dataclass(frozen=True)
class VideoCommonOptions(CommonOptions):
    """The options of `CommonOptions`, for videos."""

    modality: ClassVar[Literal["image", "video"]] = "video"


@register(app)
@command
def classify(
    run: VideoOutputOptions, options: VideoClassifyOptions, clips: Videos, compare: Compare = None
) -> None:
    """Label videos, by the methods that label images or by a video model.

    Examples:
        zeroshot video classify clips/ --labels cooking,running
        zeroshot video classify clips/ --labels cooking,running --frames 16 --out labels.csv
    """
    from zeroshot.tasks.classification.classify_task import video_task

    task = video_task(run.model_set(), options)
    show_labels(run, task, run.inputs(clips, {"--labels": options.labels}), compare)


@register(app)
@command
def search(
    run: VideoRowOptions,
    options: VideoSearchOptions,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[QUERY] CLIPS...",
            help="What to look for (not with --clip or --queries), then files, folders, globs or "
            "-.",
        ),
    ],
    frames: FrameOptions,
    clip: Annotated[
        str | None,
        typer.Option("--clip", envvar="ZEROSHOT_SEARCH_CLIP", help="A video as the query."),
    ] = None,
    queries: Queries = None,
    html: Html = None,
    model: NoModel = None,
) -> None:
    """Find videos by words, by a video, or by sums and differences of both.

    Examples:
        zeroshot video search "a red car" clips/ -k 5
        zeroshot video search --clip a.mp4 clips/ --html found.html
    """
    models = frames.models(run, model, "search ranks videos by one embedding each")
    asked, names = queries_of(run, options, words, queries, ("--clip", clip))
    find(run, options, asked, names, models, html)


@register(app)
@command
def caption(
    run: VideoOutputOptions, options: VideoCaptionOptions, clips: Videos, frames: FrameOptions
) -> None:
    """Caption videos, by the methods that caption images.

    Examples:
        zeroshot video caption clips/ --out captions.jsonl
        zeroshot video caption clips/ --method magic --frames 16
    """
    from zeroshot.tasks.captioning.caption_task import caption_task

    models = frames.models(run, options.model, "a caption needs one embedding for each video")
    run.show(caption_task(models, options), run.inputs(clips))


@register(app)
@command
def embed(
    run: VideoOutputOptions,
    clips: Videos,
    frames: FrameOptions,
    layout: LayoutFlag = None,
    half: Half = False,
    model: NoModel = None,
) -> None:
    """Embed videos: fill the cache, and write the embeddings with --json or --out.

    Examples:
        zeroshot video embed clips/ --out vectors/
        zeroshot video embed clips/ --frames 4 --out rows.jsonl
    """
    models = frames.models(run, model, "a row is one embedding for each video")
    show_embeddings(run, models, run.inputs(clips), layout, half)


@register(app)
@command
def calibrate(
    run: VideoCommonOptions,
    options: CalibrateOptions,
    frames: FrameOptions,
    clips: Annotated[
        list[str] | None,
        typer.Argument(help="Unlabelled videos of the kind you expect; none with --truth."),
    ] = None,
    model: NoModel = None,
) -> None:
    """Fit what 'video classify --calibration' takes; --out names a .json file.

    Examples:
        zeroshot video calibrate clips/ --labels cooking,running --out calibration.json
        zeroshot video calibrate clips/ --labels cooking,running --method center --out c.json
    """
    models = frames.models(run, model, "calibrate fits one embedding for each video")
    calibrate_on(run, options, models, clips)
