"""The options of `filter`."""

from dataclasses import dataclass
from typing import Any, Literal

from zeroshot.tasks.options import COUPLING, option


@dataclass(frozen=True)
class FilterOptions:
    """Which image-text pairs to keep."""

    min_score: float | None = option(None, "Keep pairs with at least this score.", env="MIN_SCORE")
    score: Literal["cosine", "negclip", "normsim"] = option(
        "cosine",
        "What a pair's score is: the cosine, the cosine against all other captions and images, or "
        "the likeness of the image to --targets.",
        env="FILTER_SCORE",
    )
    targets: Any = option(
        (),
        "With --score normsim: images of the kind that is wanted; may be repeated.",
        env="TARGETS",
        typed=list[str],
        images=True,
    )
    keep: float | None = option(
        None, "Keep this fraction of the pairs, those with the highest scores: 0.3.", env="KEEP"
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

    @property
    def needs_all(self) -> bool:
        """Whether a pair's result depends on the other pairs."""
        return self.keep is not None or self.dedupe or self.score == "negclip"
