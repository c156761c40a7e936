"""A recipe of `tune`: candidates with intervals, learning curve, answers for labelled images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np

from zeroshot.metrics.classification import confidence_gap
from zeroshot.output.formats import Row
from zeroshot.prompts import Templates
from zeroshot.report.figures import Axis, Plot, Whisker
from zeroshot.report.label_tables import Labels, MethodRows, labels_of
from zeroshot.report.thumbnails import thumbnail
from zeroshot.tasks.tuning.recipe import MEASURES, HeldOut, Recipe, RecipeFigures, to_toml
from zeroshot.tuning.grid import PLAIN
from zeroshot.tuning.problem import TunedMethod
from zeroshot.tuning.selection import ENSEMBLE

SHOWN = 15
"""Candidates with their intervals; a table has the others."""
NORMAL = 1.96
LEAST_SPAN = 10.0
"""Points that the learning curve's axis spans: less would make much of little."""
OTHER, OF_PLAIN, TAKEN = "other", "plain", ""


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy with so many labels a class; positions from 0 to 100."""

    at: float
    height: float
    low: float
    high: float
    labels: str
    value: str
    error: str


@dataclass(frozen=True)
class Curve:
    """Accuracy by labels a class, and what follows from it."""

    points: Sequence[CurvePoint]
    columns: Sequence[tuple[float, str]]
    rows: Sequence[tuple[float, str]]
    said: str


@dataclass(frozen=True)
class RecipeSection:
    """What the page shows of one recipe."""

    name: str
    verdict: str
    measure: str
    """What figures are, if not the share that is right."""
    plain: str
    """What they are compared with."""
    labels: int
    images: int
    members: Sequence[tuple[str, str, str]]
    """name, weight, temperature"""
    measured: Plot | None
    how: str
    candidates: Plot | None
    others: Sequence[tuple[str, str, str, str]]
    """name, accuracy, its standard error, share of the folds"""
    left_out: Sequence[str]
    curve: Curve | None
    own: Labels | None
    gap: str
    """Expected calibration error."""
    prompts: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    """Name of the set; templates, or labels and their prompts"""
    agreement: Sequence[tuple[str, str]]
    suggested: Sequence[tuple[str, str]]
    """thumbnail, name"""
    pictures: bool
    """Arrays have none."""
    text: str

    @property
    def hidden(self) -> int:
        """Candidates without an interval on the page."""
        return len(self.others)


def recipe_section(file: Path, recipe: Recipe) -> RecipeSection:
    """Tables of a recipe; its images are where its paths say, or beside the file."""
    names = [
        TunedMethod(m.method, m.options, m.coupling or None, m.templates or None).name
        for m in recipe.members
    ]
    taken = {ENSEMBLE} if len(names) > 1 else set(names)
    shown, others = _candidates(recipe, taken)
    held_out = recipe.held_out
    bare = replace(
        recipe, tried=(), curve=(), held_out=None, agreement={}, suggested=(), prompts={}
    )
    return RecipeSection(
        name=file.name,
        verdict=recipe.verdict,
        measure="" if recipe.labels else MEASURES[recipe.task],
        plain=_plain(recipe),
        labels=len(recipe.labels),
        images=recipe.figures.images if recipe.figures else 0,
        members=[
            (name, f"{m.weight:.2f}", f"{m.temperature:.3g}")
            for name, m in zip(names, recipe.members, strict=True)
        ],
        measured=_measured(recipe, recipe.figures) if recipe.figures else None,
        how=_how(recipe, recipe.figures) if recipe.figures else "",
        candidates=shown,
        others=others,
        left_out=recipe.left_out,
        curve=_curve(recipe),
        own=_answers(file, recipe, held_out) if held_out else None,
        gap=_gap(held_out) if held_out else "",
        prompts=[(name, _prompts(own)) for name, own in recipe.prompts.items()],
        agreement=[
            (name, f"{share:.0%}")
            for name, share in sorted(recipe.agreement.items(), key=lambda item: -item[1])
        ],
        suggested=[
            (thumbnail(_found(file, path)), PurePath(path).name) for path in recipe.suggested
        ],
        pictures=bool(recipe.models),
        text=to_toml(bare),
    )


def _prompts(own: Templates) -> list[tuple[str, str]]:
    if isinstance(own, tuple):
        return [("all", template) for template in own]
    return [(label, "; ".join(texts)) for label, texts in own.items()]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if math.isfinite(share) else ""


def _plain(recipe: Recipe) -> str:
    return "plain zero-shot" if recipe.labels else "the default"


def _measured(recipe: Recipe, f: RecipeFigures) -> Plot:
    rows = [
        ("recipe", f.accuracy, f.low, f.high, TAKEN),
        (_plain(recipe), f.plain, f.plain_low, f.plain_high, OF_PLAIN),
    ]
    return _plot(rows)


def _how(recipe: Recipe, f: RecipeFigures) -> str:
    times = "once" if f.repeats == 1 else f"{f.repeats} times"
    what = "labelled images" if recipe.labels else "images"
    return (
        f"{f.images} {what} in {f.folds} parts, {times}; the choice against {_plain(recipe)} "
        f"{100 * f.gain:+.1f} points, one-sided p = {f.p:.2g}."
    )


def _plot(rows: Sequence[tuple[str, float, float, float, str]]) -> Plot:
    """Shares with their intervals and kinds."""
    axis = Axis.of([100 * end for _, _, low, high, _ in rows for end in (low, high)])
    whiskers = [
        Whisker(
            name,
            _percent(value),
            axis.at(100 * value),
            axis.at(100 * low),
            axis.at(100 * high),
            kind,
        )
        for name, value, low, high, kind in rows
    ]
    return Plot("", axis.ticks, whiskers)


def _candidates(
    recipe: Recipe, taken: set[str]
) -> tuple[Plot | None, list[tuple[str, str, str, str]]]:
    """The best that were tried on all folds, what was taken, and plain zero-shot; the others."""
    if not recipe.tried:
        return None, []
    rows: list[tuple[str, float, float, float, str]] = []
    others: list[tuple[str, str, str, str]] = []
    for t in recipe.tried:
        name, accuracy, error, share = t["name"], t["accuracy"], t["error"], t["share"]
        plain = recipe.default or PLAIN
        kind = TAKEN if name in taken else OF_PLAIN if name == plain else OTHER
        if (share == 1 and len(rows) < SHOWN) or kind != OTHER:
            spread = NORMAL * error if math.isfinite(error) else 1.0
            largest = 10.0 if recipe.task == "caption" else 1.0
            low, high = max(0.0, accuracy - spread), min(largest, accuracy + spread)
            mark = " (taken)" if kind == TAKEN else ""
            rows.append((name + mark, accuracy, low, high, kind))
        else:
            others.append((name, _percent(accuracy), _percent(error), f"{share:.0%}"))
    return _plot(rows), others


def _curve(recipe: Recipe) -> Curve | None:
    points = sorted(recipe.curve, key=lambda p: p["labels"])
    if len(points) < 2:
        return None
    errors = [p["error"] if math.isfinite(p["error"]) else 0.0 for p in points]
    ends = [
        100 * min(1.0, max(0.0, p["accuracy"] + sign * e))
        for p, e in zip(points, errors, strict=True)
        for sign in (-1, 1)
    ]
    widest = [*ends, max(0.0, max(ends) - LEAST_SPAN)]
    across, up = Axis.of([0, points[-1]["labels"]]), Axis.of(widest)
    drawn = [
        CurvePoint(
            across.at(p["labels"]),
            up.at(100 * p["accuracy"]),
            up.at(low),
            up.at(high),
            f"{p['labels']:.1f}",
            _percent(p["accuracy"]),
            _percent(p["error"]),
        )
        for p, low, high in zip(points, ends[::2], ends[1::2], strict=True)
    ]
    last = points[-1]
    half = min(points[:-1], key=lambda p: abs(p["labels"] - last["labels"] / 2))
    gain, error = last["accuracy"] - half["accuracy"], errors[-1]
    hope = "so more labels are likely to help" if gain > error else "so more labels promise little"
    said = (
        f"From {half['labels']:.1f} to {last['labels']:.1f} labels a class the accuracy went from "
        f"{_percent(half['accuracy'])} to {_percent(last['accuracy'])} (standard error "
        f"{_percent(error)}), {hope}."
    )
    return Curve(drawn, across.ticks, up.ticks, said)


def _answers(file: Path, recipe: Recipe, held_out: HeldOut) -> Labels | None:
    rows: MethodRows = []
    for path, truth, answer, confidence in zip(
        held_out.paths, held_out.classes, held_out.answers, held_out.confidences, strict=True
    ):
        label = {"label": recipe.labels[answer], "score": confidence}
        row: Row = {"path": _found(file, path), "labels": [label], "scored": "softmax"}
        rows.append((row, recipe.labels[truth]))
    return labels_of(file.name, rows) if rows else None


def _gap(held_out: HeldOut) -> str:
    if not held_out.paths:
        return ""
    right = np.array(held_out.answers) == np.array(held_out.classes)
    return _percent(confidence_gap(np.array(held_out.confidences), right.astype(float)))


def _found(file: Path, path: str) -> str:
    """Where an image is: as the recipe says, or beside it."""
    beside = file.parent / path
    return str(beside) if not Path(path).exists() and beside.exists() else path
