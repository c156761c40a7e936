"""Predictions measured: figures with intervals, results as JSON, methods compared."""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from zeroshot.datasets.protocols import TASKS, Task
from zeroshot.errors import UserError
from zeroshot.evaluation.experiment import Experiment
from zeroshot.evaluation.predict import Predictions
from zeroshot.metrics.bootstrap import CONFIDENCE, DRAWS, Interval, holm
from zeroshot.metrics.statistics import differences
from zeroshot.output.resumable import versions

SCHEMA, COMPARISON = "zeroshot.eval/1", "zeroshot.comparison/1"


@dataclass(frozen=True)
class Sampling:
    """How intervals are made."""

    draws: int = DRAWS
    confidence: float = CONFIDENCE
    seed: int = 0

    @property
    def generator(self) -> np.random.Generator:
        """The same for every method, so that all are judged by the same draws."""
        return np.random.default_rng(self.seed)

    @property
    def how(self) -> dict[str, Any]:
        """For the `Measure`."""
        return {"draws": self.draws, "confidence": self.confidence}


def figures(answers: Predictions, sampling: Sampling) -> dict[str, Interval]:
    """Every figure of a method, with its interval."""
    return answers.measure.figures(sampling.generator, **sampling.how)


def result(
    answers: Predictions,
    found: Mapping[str, Interval],
    *,
    task: Task,
    about: Mapping[str, Any],
    sampling: Sampling,
) -> dict[str, Any]:
    """The result as JSON: CLIP_benchmark's fields, and all that decides the figures.

    Args:
        about: the data and the question: `dataset`, `model`, `pretrained`, `protocol`, `split`,
            `truth` (a fingerprint), `prompts`, ...
    """
    return {
        "schema": SCHEMA,
        **about,
        "task": TASKS[task],
        "language": "en",
        "method": answers.name,
        "metrics": {name: figure.value for name, figure in found.items()},
        "intervals": {
            name: None if math.isnan(figure.low) else [figure.low, figure.high]
            for name, figure in found.items()
        },
        "sampling": {**vars(sampling), "of": "pictures", "interval": "percentile bootstrap"},
        "pictures": {"scored": len(answers.scored), "failed": answers.failed} | _held_out(answers),
        **_each_label(answers, sampling),
        "settings": dict(answers.settings),
        "seconds": None if answers.seconds is None else round(answers.seconds, 3),
        "versions": versions(),
        "hardware": hardware(),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _held_out(answers: Predictions) -> dict[str, int]:
    return {"held_out": len(answers.held_out)} if answers.held_out else {}


def _each_label(answers: Predictions, sampling: Sampling) -> dict[str, Any]:
    """Of several labels per image: the threshold, and each label's average precision."""
    if answers.labels is None:
        return {}
    found = answers.labels.figures(sampling.generator, **sampling.how)
    return {
        "threshold": answers.threshold,
        "labels": {
            name: {
                "average_precision": figure.value,
                "interval": None if math.isnan(figure.low) else [figure.low, figure.high],
                "pictures": answers.holds[name],
            }
            for name, figure in found.items()
        },
    }


def compared(answers: Sequence[Predictions], sampling: Sampling) -> dict[str, Any]:
    """Each method against the first, as JSON: differences, their intervals, p-values.

    `p_holm` stands for all methods compared by the same figure together.

    Raises:
        UserError: methods that answered for different images.
    """
    first, *others = answers
    found = []
    for other in others:
        if other.scored != first.scored:
            raise UserError(
                f"{first.name} and {other.name} have no answer for different images, so that "
                "they cannot be compared image by image"
            )
        found.append(differences(first.measure, other.measure, sampling.generator, **sampling.how))
    shared = [name for name in found[0] if all(name in d for d in found)] if found else []
    adjusted = {name: holm([d[name].p for d in found]) for name in shared}
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
            for i, (other, own) in enumerate(zip(others, found, strict=True))
        },
        "sampling": {**vars(sampling), "of": "pictures"},
    }


def hardware() -> dict[str, Any]:
    """Of this machine, what decides seconds."""
    made_with: dict[str, Any] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        made_with["gpu"] = torch.cuda.get_device_name()
    return made_with


@dataclass(frozen=True)
class Evaluation:
    """Methods on one data set."""

    figures: Mapping[str, Mapping[str, Interval]]
    """of each method: every figure with its interval"""
    results: Sequence[Mapping[str, Any]]
    """as JSON, with all that decides the figures"""
    comparison: Mapping[str, Any] | None
    """of several methods: each against the first"""


def evaluation(
    experiment: Experiment, answers: Sequence[Predictions], sampling: Sampling
) -> Evaluation:
    """Figures, results and comparison of the methods of one experiment."""
    found = {own.name: figures(own, sampling) for own in answers}
    results = [
        result(
            own,
            found[own.name],
            task=experiment.task,
            about=experiment.about(own),
            sampling=sampling,
        )
        for own in answers
    ]
    comparison = compared(answers, sampling) if len(answers) > 1 else None
    return Evaluation(found, results, comparison)
