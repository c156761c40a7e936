"""The options of `filter`."""

from dataclasses import dataclass
from typing import Literal

from zeroshot.tasks.options import COUPLING, option


@dataclass(frozen=True)
class FilterOptions:
    """Which image-text pairs to keep."""

    min_score: float | None = option(None, "Keep pairs with at least this cosine.", env="MIN_SCORE")
    keep: float | None = option(
        None, "Keep this fraction of the pairs, those with the highest cosines: 0.3.", env="KEEP"
    )
    dedupe: bool = option(
        False,
        "Of image copies, as 'dedupe' finds them, keep the pair with the highest cosine.",
        "--dedupe",
        env="FILTER_DEDUPE",
    )
    coupling: str | None = COUPLING
    long_text: Literal["truncate", "error"] = option(
        "truncate",
        "What to do with captions longer than the encoder reads; a row says if its caption was.",
        env="LONG_CAPTION",
        recorded="truncate",
    )
