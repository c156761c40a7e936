"""The options of `match`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from zeroshot.tasks.options import COUPLING, option

if TYPE_CHECKING:
    from zeroshot.tasks.matching.thresholds import Thresholds

MatchScore = Literal["cosine", "sigmoid", "fclip"]


@dataclass(frozen=True)
class MatchOptions:
    """Which texts, by which model, and what a score is."""

    model: str | None = option(
        None,
        "A model whose head reads image and text together: BLIP, BLIP-2, ViLT, BridgeTower, "
        "FLAVA. Default: cosines of --models or --encoder.",
        env="MODEL",
        recorded="scores",
    )
    texts: str | Sequence[str] = option(
        (),
        "Match every image with this text; may be repeated.",
        "--text",
        typed=list[str],
        convert=tuple,
    )
    against: str | Sequence[str] = option(
        (),
        "A negative prompt: the score becomes the text's softmax probability against it; may be "
        "repeated.",
        typed=list[str],
        convert=tuple,
        recorded="scores",
    )
    score: MatchScore = option(
        "cosine",
        "Score of an encoder; sigmoid is for models trained with one, such as SigLIP; fclip is the "
        "mean cosine of a text and its nouns, and names the noun that fits least.",
        env="MATCH_SCORE",
        recorded="scores",
    )
    coupling: str | None = COUPLING
    thresholds: "str | Path | Thresholds | None" = option(
        None, "Label scores by the thresholds of this file.", env="THRESHOLDS", typed=Path
    )
