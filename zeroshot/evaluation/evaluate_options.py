"""The options of `eval`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeroshot.datasets.protocols import EvaluationTask
from zeroshot.tasks.classification.classify_options import LONG_TEXT, SCORE, LongText, ScoreKind
from zeroshot.tasks.options import COUPLING, METHOD_OPTIONS, option


@dataclass(frozen=True)
class EvaluateOptions:
    """What is measured, on which truth, and how intervals are made."""

    task: EvaluationTask | None = option(
        None, "What to measure. Default: the task of the protocol.", env="TASK"
    )
    protocol: str | None = option(
        None,
        "Class names, templates and split by one name: clip/imagenet, karpathy/coco-captions, ... "
        "(docs/evaluation.md).",
        env="PROTOCOL",
    )
    truth: str | Path | None = option(
        None,
        "Labels (.csv, .jsonl; several per image also COCO's instances .json) or captions (COCO's "
        "or Karpathy's .json, .jsonl, Flickr's .token) of the images in DATA.",
        env="TRUTH",
        typed=Path,
    )
    split: str | None = option(None, "Split of the data: val, test, ...", env="SPLIT")
    labels: str | Sequence[str] | None = option(
        None, "cat,dog,bird, a .txt or .json file, or imagenet.", env="LABELS", typed=str
    )
    templates: str | Sequence[str] | None = option(
        None,
        "As in classify. Default: the data set's own, else simple.",
        env="TEMPLATES",
        typed=str,
    )
    options: Mapping[str, Any] = METHOD_OPTIONS
    coupling: str | None = COUPLING
    score: ScoreKind | None = SCORE
    against: str | Sequence[str] = option(
        (),
        "With --task multilabel: a negative prompt; a label's score is its softmax probability "
        "against these. May be repeated.",
        typed=list[str],
        convert=tuple,
    )
    threshold: float | None = option(
        None,
        "With --task multilabel: the score from which a label holds, for F1.",
        env="LABEL_THRESHOLD",
    )
    held_out: float | None = option(
        None,
        "With --task multilabel: fraction of the images, drawn by --seed, on which that threshold "
        "is chosen; the others are measured.",
        env="HELD_OUT",
        min=0,
        max=1,
    )
    long_text: LongText = LONG_TEXT
    draws: int = option(1000, "Bootstrap samples for the intervals.", env="DRAWS", min=2, max=10**6)
    confidence: float = option(
        0.95, "Confidence level of the intervals.", env="CONFIDENCE", min=0.5, max=0.999
    )
    seed: int = option(0, "Seed of all random draws.", env="SEED", min=0)
