"""The options of `explain`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zeroshot.tasks.options import COUPLING, METHOD_OPTIONS, option, several


@dataclass(frozen=True)
class ExplainOptions:
    """What is explained beside images, by which words, and how many of them are named."""

    words: str | Sequence[str] = option(
        "", "Words to explain by: dog,cat or a file; default: 2000 common ones.", typed=str
    )
    texts: str | Sequence[str] = option(
        (),
        "A text or a label to explain too; may be repeated.",
        "--text",
        env="EXPLAIN_TEXT",
        typed=list[str],
        convert=several,
    )
    mean: bool = option(
        False, "One row for each folder: the mean of its images.", env="EXPLAIN_MEAN"
    )
    bank: Any = option(
        (),
        "Images whose mean is subtracted, in place of the mean of the images that are explained; "
        "may be repeated.",
        env="EXPLAIN_BANK",
        typed=list[str],
        images=True,
    )
    top_k: int = option(10, "Words in a row.", "--top-k", "-k", env="EXPLAIN_TOP_K", min=1)
    options: Mapping[str, Any] = METHOD_OPTIONS
    coupling: str | None = COUPLING
