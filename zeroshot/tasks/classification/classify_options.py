"""The options of `classify`, for images and for videos."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zeroshot.tasks.options import COUPLING, METHOD, METHOD_OPTIONS, option

ScoreKind = Literal["auto", "softmax", "sigmoid", "cosine"]
LongText = Literal["error", "truncate"]
SetRule = Literal["lac", "aps", "raps"]

LABELS: Any = option(
    (),
    "cat,dog,bird, a .txt or .json file, or imagenet.",
    env="LABELS",
    typed=str,
    recorded="prompts",
)
SCORE: Any = option(
    "auto",
    "What a score is; auto: the model's own.",
    env="SCORE",
    typed=ScoreKind,
    recorded="score",
)
LONG_TEXT: Any = option(
    "error",
    "What to do with prompts longer than the encoder reads.",
    env="LONG_TEXT",
    decides_rows=False,
)
BANK: Any = option(
    (),
    "Unlabelled images to learn from; may be repeated.",
    env="BANK",
    typed=list[str],
    images=True,
)
NONE_OF_THESE: Any = option(
    False,
    "Also say how likely an image is to show none of the labels, compared with words far from "
    "them; --calibration and --abstain then leave such images unlabelled.",
    env="NONE_OF_THESE",
)
WORDS: Any = option(
    "",
    "With --none-of-these: these words in place of 2000 common ones; as --labels.",
    env="WORDS",
)
CUT_OFF = "--long-text truncate"


@dataclass(frozen=True)
class ClassifyOptions:
    """Labels and prompts, what a method learns from, and which labels a row has."""

    labels: str | Sequence[str] = LABELS
    templates: str | Sequence[str] | None = option(
        None,
        "simple (7, the default), openai (80), none (default of a video model), waffle (30 random "
        "ones), 'a photo of a {}', a .txt file, or a .json file of prompts per class.",
        env="TEMPLATES",
        typed=str,
        recorded="prompts",
    )
    method: Any = METHOD
    options: Mapping[str, Any] = METHOD_OPTIONS
    coupling: str | None = COUPLING
    score: ScoreKind | None = SCORE
    top_k: int | None = option(
        None,
        "Labels per image, best first. Default: 5; all of them with --multi.",
        "--top-k",
        "-k",
        env="TOP_K",
        min=1,
    )
    multi: bool = option(
        False,
        "Several labels may hold: each is scored by itself, by sigmoid if the model was trained "
        "with one, else by cosine.",
        env="MULTI",
    )
    against: str | Sequence[str] = option(
        (),
        "With --multi: a negative prompt; a label's score is its softmax probability against "
        "these. May be repeated.",
        typed=list[str],
        convert=tuple,
    )
    threshold: float | None = option(
        None, "With --multi: leave out labels that score less.", env="LABEL_THRESHOLD"
    )
    long_text: LongText = LONG_TEXT
    shots: str | Path | None = option(
        None,
        "Labelled images to learn from: a folder per class, or a .csv with path,label.",
        env="SHOTS",
        typed=Path,
    )
    bank: Any = BANK
    prior: str | Sequence[float] = option(
        (),
        "How frequent the labels are: 0.5,0.3,0.2 in their order, or a .json object.",
        env="PRIOR",
        typed=str,
    )
    hierarchy: str | Path | None = option(
        None,
        "Instead of --labels: a .json object of labels, each with a list of its kinds.",
        env="HIERARCHY",
        typed=Path,
        recorded="parents",
    )
    recipe: Any = option(
        None,
        "File that 'tune' wrote: labels, prompts, methods and their options.",
        env="RECIPE",
        typed=Path,
        recorded="recipe",
    )
    calibration: Any = option(None, "File that 'calibrate' wrote.", env="CALIBRATION", typed=Path)
    abstain: float | None = option(
        None,
        "With --calibration: leave this fraction of images unlabelled, the least certain; more if "
        "they differ from the calibration images.",
        env="ABSTAIN",
        min=0,
        max=1,
    )
    none_of_these: bool = NONE_OF_THESE
    words: str = WORDS
    sets: float | None = option(
        None,
        "With --calibration: also the set of labels that are possible, which has the right one for "
        "at least this fraction of images: 0.9.",
        env="SETS",
        min=0,
        max=0.9999,
    )
    set_rule: SetRule = option(
        "lac",
        "With --sets: the smallest sets (lac), or larger ones where the model is unsure (aps, "
        "raps).",
        env="SET_RULE",
    )
    explain: int = option(
        0,
        "Name this many anchors that contributed most to the best label (couplings).",
        env="EXPLAIN",
        min=0,
    )
    views: int = option(
        0,
        "Random crops of each image, itself included, for methods that use them.",
        env="VIEWS",
        min=0,
    )

    @property
    def head(self) -> Literal["softmax", "sigmoid", "cosine"] | None:
        """What a score is; None for the model's own."""
        return None if self.score is None or self.score == "auto" else self.score


@dataclass(frozen=True)
class VideoClassifyOptions(ClassifyOptions):
    """The same for videos, and how frames become scores."""

    model: str | None = option(
        None,
        "A video model (X-CLIP, VideoPrism): hf:microsoft/xclip-base-patch32. Default: the set's "
        "dual encoder, frame by frame.",
        env="VIDEO_MODEL",
        recorded="models",
    )
    pooling: Literal["mean", "attention"] = option(
        "mean",
        "A video is the mean of its frames, or each text attends to the frames that fit it.",
        env="POOLING",
        recorded="method",
    )
    frames: int | None = option(
        None,
        "Frames per video, evenly spread: 8. A video model has a number of its own.",
        env="FRAMES",
        min=1,
        max=256,
        recorded="models",
    )
    views: int = option(0, "", on_command_line=False)
    recipe: Any = option(None, "", on_command_line=False)
