"""The options of `search`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zeroshot.tasks.completion import rerankers
from zeroshot.tasks.options import COUPLING, METHOD_OPTIONS, option

SearchIndex = Literal["exact", "ivf", "ivfpq"]


@dataclass(frozen=True)
class SearchOptions:
    """What a query adds and subtracts, how hits are ranked, and which are returned."""

    plus: Any = option(
        (),
        "Words, or a file, to add; may be repeated. text: or image: in front says which.",
        env="PLUS",
        typed=list[str],
    )
    minus: Any = option((), "As --plus, to subtract.", env="MINUS", typed=list[str])
    compose: Literal["sum", "product"] = option(
        "sum",
        "How a query of images and words is composed: their sum, or hits fit both.",
        env="COMPOSE",
    )
    caption_weight: float | None = option(
        None,
        "Search captions that come with the images too: from 0, the image alone, to 1, its caption "
        "alone; 0.5 for both alike.",
        env="CAPTION_WEIGHT",
        min=0,
        max=1,
    )
    top_k: int = option(10, "Hits for each query.", "--top-k", "-k", env="TOP_K", min=1)
    min_score: float | None = option(None, "Leave out hits that score less.", env="MIN_SCORE")
    method: str | None = option(
        None,
        "Re-rank by dis, nnn, csls, inverted_softmax or dn, with --bank.",
        env="SEARCH_METHOD",
        complete=rerankers,
    )
    options: Mapping[str, Any] = METHOD_OPTIONS
    coupling: str | None = COUPLING
    recipe: Any = option(
        None,
        "File that 'tune --queries' wrote: method, its options, coupling and bank.",
        env="SEARCH_RECIPE",
        typed=Path,
    )
    bank: Any = option(
        (), "Other queries of the same kind, as --queries.", env="SEARCH_BANK", typed=str
    )
    index: SearchIndex = option(
        "exact",
        "exact, or approximate with faiss, for very many queries; a warning says the recall.",
        env="INDEX",
    )
    half: bool = option(False, "Keep embeddings in float16 during the search.", env="HALF")
    hide_duplicates: bool = option(
        False,
        "Show one of each group of copies, the best ranked; its row says how many are hidden.",
        "--hide-duplicates",
        env="HIDE_DUPLICATES",
    )
    explain: int = option(
        0,
        "Name this many anchors that contributed most to a hit (couplings).",
        env="EXPLAIN",
        min=0,
    )


@dataclass(frozen=True)
class VideoSearchOptions(SearchOptions):
    """The same for videos, of which nobody looks for copies."""

    hide_duplicates: bool = option(False, "", on_command_line=False)
