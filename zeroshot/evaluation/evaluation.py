"""Measures predictions: figures with intervals, results as JSON, comparisons of methods."""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from zeroshot.datasets.protocols import TASKS, EvaluationTask
from zeroshot.errors import UserError
from zeroshot.evaluation.experiment import Experiment
from zeroshot.evaluation.predict import Predictions
from zeroshot.metrics.bootstrap import CONFIDENCE, DRAWS, Interval, holm
from zeroshot.metrics.statistics import differences
from zeroshot.output.resumable import versions

SCHEMA, COMPARISON = "zeroshot.eval/1", "zeroshot.comparison/1"


@dataclass(frozen=True)
class Sampling:
    """How intervals are computed."""

    draws: int = DRAWS
    confidence: float = CONFIDENCE
    seed: int = 0

    @property
    def generator(self) -> np.random.Generator:
        """A generator with the same seed for every method, so that all have the same draws."""
        return np.random.default_rng(self.seed)

    @property
    def how(self) -> dict[str, Any]:
        """Keyword arguments for a `Measure`."""
        return {"draws": self.draws, "confidence": self.confidence}


def figures(answers: Predictions, sampling: Sampling) -> dict[str, Interval]:
    """Every figure of a method, with its interval."""
    return answers.measure.figures(sampling.generator, **sampling.how)


def result(
    answers: Predictions,
    intervals: Mapping[str, Interval],
    *,
    task: EvaluationTask,
    about: Mapping[str, Any],
    sampling: Sampling,
) -> dict[str, Any]:
    """The result as JSON: CLIP_benchmark's fields, and everything that decides the figures.

    Args:
        about: the data and the models: `dataset`, `model`, `pretrained`, `protocol`, `split`,
            `truth` (a fingerprint), `prompts`, ...
    """
    return {
        "schema": SCHEMA,
        **about,
        "task": TASKS[task],
        "language": "en",
        "method": answers.name,
        "metrics": {name: figure.value for name, figure in intervals.items()},
        "intervals": {name: _ends(figure) for name, figure in intervals.items()},
        "sampling": {**vars(sampling), "of": "pictures", "interval": "percentile bootstrap"},
        "pictures": {"scored": len(answers.scored), "failed": answers.failed} | _held_out(answers),
        **_each_label(answers, sampling),
        "settings": dict(answers.settings),
        "seconds": None if answers.seconds is None else round(answers.seconds, 3),
        "versions": versions(),
        "hardware": hardware(),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _ends(figure: Interval) -> list[float] | None:
    return None if math.isnan(figure.low) else [figure.low, figure.high]


def _held_out(answers: Predictions) -> dict[str, int]:
    return {"held_out": len(answers.held_out)} if answers.held_out else {}


def _each_label(answers: Predictions, sampling: Sampling) -> dict[str, Any]:
    """The threshold and each label's average precision, if images have several labels."""
    if answers.labels is None:
        return {}
    intervals = answers.labels.figures(sampling.generator, **sampling.how)
    return {
        "threshold": answers.threshold,
        "labels": {
            name: {
                "average_precision": figure.value,
                "interval": _ends(figure),
                "pictures": answers.holds[name],
            }
            for name, figure in intervals.items()
        },
    }


def compared(answers: Sequence[Predictions], sampling: Sampling) -> dict[str, Any]:
    """Each method against the first, as JSON: differences, their intervals, p-values.

    `p_holm` is adjusted for all methods that are compared by the same figure.

    Raises:
        UserError: methods with predictions for different images.
    """
    first, *others = answers
    each = []
    for other in others:
        if other.scored != first.scored:
            raise UserError(
                f"{first.name} and {other.name} have no answer for different images, so that "
                "they cannot be compared image by image"
            )
        each.append(differences(first.measure, other.measure, sampling.generator, **sampling.how))
    shared = [name for name in each[0] if all(name in d for d in each)] if each else []
    adjusted = {name: holm([d[name].p for d in each]) for name in shared}
    return {
        "schema": COMPARISON,
        "first": first.name,
        "methods": {
            other.name: {
                name: {
                    "difference": own[name].value,
                    "interval": [own[name].low, own[name].high],
                    "p": own[name].p,
                    "p_holm": adjusted[name][i],
                    "test": "mcnemar" if name in first.measure.right else "bootstrap",
                }
                for name in shared
            }
            for i, (other, own) in enumerate(zip(others, each, strict=True))
        },
        "sampling": {**vars(sampling), "of": "pictures"},
    }


def hardware() -> dict[str, Any]:
    """The hardware of this machine, on which `seconds` depends."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **gpu,
    }


@dataclass(frozen=True)
class Evaluation:
    """Methods on one data set."""

    figures: Mapping[str, Mapping[str, Interval]]
    """for each method, every figure with its interval"""
    results: Sequence[Mapping[str, Any]]
    """as JSON, with everything that decides the figures"""
    comparison: Mapping[str, Any] | None
    """each method against the first; None for one method"""


def evaluation(
    experiment: Experiment, answers: Sequence[Predictions], sampling: Sampling
) -> Evaluation:
    """Figures, results and comparison of the methods of one experiment."""
    intervals = {own.name: figures(own, sampling) for own in answers}
    results = [
        result(
            own,
            intervals[own.name],
            task=experiment.task,
            about=experiment.about(own),
            sampling=sampling,
        )
        for own in answers
    ]
    comparison = compared(answers, sampling) if len(answers) > 1 else None
    return Evaluation(intervals, results, comparison)
