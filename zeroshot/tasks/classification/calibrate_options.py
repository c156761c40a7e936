"""The options of `calibrate`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeroshot.tasks.classification.classify_options import (
    BANK,
    LABELS,
    LONG_TEXT,
    NONE_OF_THESE,
    SCORE,
    WORDS,
    ClassifyOptions,
    LongText,
    ScoreKind,
)
from zeroshot.tasks.options import COUPLING, METHOD, METHOD_OPTIONS, option


@dataclass(frozen=True)
class CalibrateOptions:
    """How scores are made, and what is fitted to them."""

    labels: str | Sequence[str] = LABELS
    truth: str | Path | None = option(
        None,
        "Labelled images: a folder per class, or a .csv file with path,label.",
        env="TRUTH",
        typed=Path,
    )
    min_precision: float | None = option(
        None,
        "With --truth: fit a threshold per label, above which this fraction of the images has the "
        "label.",
        env="MIN_PRECISION",
        min=0,
        max=1,
    )
    templates: str = option(
        "simple",
        "simple (7), openai (80), none, waffle (30 random ones), 'a photo of a {}', a .txt file, "
        "or a .json file of prompts per class.",
        env="TEMPLATES",
    )
    method: str | None = METHOD
    options: Mapping[str, Any] = METHOD_OPTIONS
    coupling: str | None = COUPLING
    score: ScoreKind | None = SCORE
    long_text: LongText = LONG_TEXT
    bank: Any = BANK
    none_of_these: bool = NONE_OF_THESE
    words: str = WORDS

    @property
    def classify(self) -> ClassifyOptions:
        """The options of the classifier."""
        return ClassifyOptions(
            labels=self.labels,
            templates=self.templates,
            method=self.method,
            options=self.options,
            coupling=self.coupling,
            score=self.score,
            long_text=self.long_text,
            bank=self.bank,
            none_of_these=self.none_of_these,
            words=self.words,
        )
