"""The options of `tune`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeroshot.tasks.classification.classify_options import LABELS, LONG_TEXT, LongText
from zeroshot.tasks.options import option


def seconds(text: str) -> float:
    """`90`, `90s`, `2min` or `2m` as seconds.

    Raises:
        UserError: anything else.
    """
    from zeroshot.errors import UserError

    for suffix, factor in (("min", 60), ("m", 60), ("s", 1), ("", 1)):
        if text.endswith(suffix):
            try:
                value = float(text.removesuffix(suffix)) * factor
            except ValueError:
                break
            if 0 < value < float("inf"):
                return value
            break
    raise UserError(f"--budget {text}: expected seconds or minutes above 0, as 90s or 2min")


@dataclass(frozen=True)
class TuneOptions:
    """Labels and images that have one, or images with texts; and what is tried."""

    labels: str | Sequence[str] = LABELS
    shots: str | Path | None = option(
        None,
        "Labelled images to learn from and to choose by: a folder per class, or a .csv with "
        "path,label.",
        env="SHOTS",
        typed=Path,
    )
    truth: str | Path | None = option(
        None,
        "Labelled images that only measure: methods that learn from labels are not tried, unless "
        "there are --shots too.",
        env="TRUTH",
        typed=Path,
    )
    queries: str | Path | None = option(
        None,
        "Choose how to search, instead: images with the queries that should find them, as eval "
        "--task retrieve reads them (a .csv with image,caption, COCO's .json, ...).",
        env="TUNE_QUERIES",
        typed=Path,
    )
    captions: str | Path | None = option(
        None,
        "Choose how to caption, instead: images with reference captions, in the same formats.",
        env="TUNE_CAPTIONS",
        typed=Path,
    )
    split: str | None = option(
        None, "Split of --queries or --captions: val, test, ...", env="SPLIT"
    )
    templates: Sequence[str] = option(
        ("simple", "openai", "none"),
        "Prompts to try, the default first: simple, openai, none, 'a photo of a {}', a .txt file, "
        "or a .json file of prompts per class. May be repeated. Yours are searched for the best. "
        "Default: simple, openai and none.",
        env="TEMPLATES",
        typed=list[str],
        convert=tuple,
    )
    among: Sequence[str] = option(
        (),
        "Methods to try: ncm,ridge,zpe+stata. Default: all that the data allow.",
        env="AMONG",
        typed=str,
        convert=lambda text: tuple(filter(None, text.split(","))),
    )
    budget: float = option(
        60.0,
        "Seconds of one slow core for the choice, counted in operations beforehand; embedding the "
        "images comes on top.",
        env="BUDGET",
        typed=str,
        convert=seconds,
        metavar="SECONDS",
    )
    suggest: int = option(
        0, "Name this many of the unlabelled images to label next.", env="SUGGEST", min=0
    )
    seed: int = option(0, "Seed of the folds.", env="SEED", min=0)
    long_text: LongText = LONG_TEXT
    embeddings: Any = option(
        None,
        "Arrays of an .npz file instead of images: see docs/embeddings.md.",
        env="EMBEDDINGS",
        typed=Path,
    )
