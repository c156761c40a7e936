"""`tune`: the method for these images, chosen and measured, as a recipe.

With labels, `tuning.selection` chooses among all that the data allow and measures the choice on
images that took no part in it. Two rules come on top:

- If the choice is not better than the default for these data (one-sided paired test, 5 %), the
  recipe is that default; without shots, that is plain zero-shot. The default for shots was never
  more than a point below plain zero-shot on the sets of docs/tune.md, which is more than
  ten labelled images can say against it.
- With fewer than three labelled images a class nothing can be chosen, and with one nothing can be
  measured: the recipe is the default, and says so.

Without labels the recipe is the method that never lost to plain zero-shot on those sets, also with
images of half of the classes alone: with 100 unlabelled images or more `zlap` (+0.3 to +5.2
points), with ten or more `dn` (-0.2 to +6.6), else plain zero-shot. `stata` gains more on the mean,
and loses on some. The temperature gives it the mean confidence of plain zero-shot; that is no
calibration. How far other methods agree with it is shown as a hint, which is no accuracy.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UnsuitableWarning, UserError
from zeroshot.methods.auto import OPERATIONS
from zeroshot.prompts import Templates
from zeroshot.tasks.classification.calibration import matching_temperature
from zeroshot.tasks.tuning.prompt_columns import is_built_in
from zeroshot.tasks.tuning.recipe import HeldOut, Recipe, RecipeFigures, RecipeMember
from zeroshot.tasks.tuning.tuning_data import TuningData, agreement
from zeroshot.tuning.folds import fold_count
from zeroshot.tuning.greedy_ensemble import GreedyEnsemble
from zeroshot.tuning.grid import PLAIN, ZERO_SHOT, simplest_first
from zeroshot.tuning.problem import SEARCHED, TunedMethod, TuningProblem
from zeroshot.tuning.selection import (
    LEAST_FOLDS,
    LEAST_ROWS,
    ChoiceInterruptedError,
    MeasuredChoice,
    Selection,
    TuningProgress,
    TuningResult,
    evaluate,
)
from zeroshot.tuning.suggestions import suggest

FEW_IMAGES = 100
LEAST_IMAGES = 10
"""Unlabelled images from which on `zlap` and `dn` are taken; see above."""


class TuneInterruptedError(KeyboardInterrupt):
    """Ctrl-C; the best recipe until then, which says so."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe.verdict)
        self.recipe = recipe


@dataclass(frozen=True)
class TuneRequest:
    """What is asked of `tune`, beside the data."""

    learn: bool = True
    """Whether methods may learn from the labels."""
    among: Sequence[str] = ()
    budget: float = 60.0
    """Seconds of a core, counted in operations."""
    suggest: int = 0
    seed: int = 0


def tune(data: TuningData, request: TuneRequest, progress: TuningProgress) -> Recipe:
    """The recipe for these data.

    What a method warns of, that the data do not suit it, its figures say better; the one that is
    taken warns again when it is used.

    Raises:
        UserError: a method that is not known.
        TuneInterruptedError: Ctrl-C during the choice; it has the best so far.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsuitableWarning)
        return _tune(data, request, progress)


def _tune(data: TuningData, request: TuneRequest, progress: TuningProgress) -> Recipe:
    problem = replace(data.problem, learn=request.learn)
    labelled = len(problem.labels)
    shots = request.learn and labelled > 0
    tuned = simplest_first(problem, shots=shots, among=request.among)
    recipe = Recipe(tuple(data.labels), "", (), data.models, seed=request.seed)
    if (templates := next(iter(data.templates), "simple")) != "simple":
        recipe = replace(recipe, templates=templates)
    everything = torch.arange(labelled)
    if labelled < LEAST_ROWS or fold_count(problem.labels) == 0:
        return _unmeasured(data, problem, tuned[0], recipe, request)
    plain = next(i for i, t in enumerate(tuned) if t.method == PLAIN)
    try:
        result = evaluate(
            [problem.configuration(t) for t in tuned],
            problem.labels,
            plain=plain,
            seed=request.seed,
            operations=request.budget * OPERATIONS,
            further=len(data.unlabelled) or None,
            progress=progress,
        )
    except ChoiceInterruptedError as stopped:
        found = best_so_far(recipe, stopped, tuned)
        raise TuneInterruptedError(_with_prompts(found, data)) from None
    kept = [t for t in tuned if t.name not in result.left_out]
    if result.folds < LEAST_FOLDS:
        kept = [tuned[0], tuned[plain]]
    chosen, verdict = _verdict(result, kept, shots)
    recipe = replace(
        recipe,
        verdict=verdict,
        members=members_of(chosen, kept),
        figures=figures_of(result, labelled),
        tried=table_of(result.selection),
        left_out=result.left_out,
        curve=tuple(
            {"labels": n, "accuracy": accuracy, "error": error}
            for n, accuracy, error in result.curve
        ),
        held_out=_held_out(result, data),
    )
    recipe = _with_prompts(recipe, data)
    rest = torch.arange(labelled, len(data.centred))
    try:
        p = chosen.probabilities(
            {m: problem.logits(kept[m], everything, rest) for m in chosen.members}
        )
        padded = torch.cat([p.new_zeros(labelled, p.shape[1]), p])
        return _with_suggestions(recipe, data, padded, request)
    except KeyboardInterrupt:
        raise TuneInterruptedError(recipe) from None


def best_so_far(
    recipe: Recipe, stopped: ChoiceInterruptedError, tuned: Sequence[TunedMethod]
) -> Recipe:
    """The recipe of an interrupted choice, which has no figures."""
    kept = [t for t in tuned if t.name not in stopped.left_out]
    ensemble = stopped.selection.ensemble
    names = " and ".join(kept[m].name for m in ensemble.members)
    when = f"after {stopped.done:.0%} of the choice" if stopped.done < 1 else "after the choice"
    return replace(
        recipe,
        verdict=f"{names}: the best so far, interrupted {when}; what it is worth was not measured",
        members=members_of(ensemble, kept),
        tried=table_of(stopped.selection),
        left_out=stopped.left_out,
    )


def _with_prompts(recipe: Recipe, data: TuningData) -> Recipe:
    """The recipe with the prompts that only it knows: those of files, and those of a search."""
    own: dict[str, Templates] = {}
    for name in dict.fromkeys(m.templates or recipe.templates for m in recipe.members):
        if name == SEARCHED:
            assert data.columns is not None
            found = data.problem.searched(torch.arange(len(data.problem.labels)))
            named = data.columns.named(found)
            own[name] = {label: tuple(p) for label, p in zip(data.labels, named, strict=True)}
        elif name and not is_built_in(name):
            given = data.templates[name]
            own[name] = {c: given[c] for c in data.labels} if isinstance(given, dict) else given
    return replace(recipe, prompts=own)


def members_of(ensemble: GreedyEnsemble, tuned: Sequence[TunedMethod]) -> tuple[RecipeMember, ...]:
    """The members of an ensemble, for a recipe."""
    return tuple(
        _member(tuned[m], weight, temperature)
        for m, weight, temperature in zip(
            ensemble.members, ensemble.weights, ensemble.temperatures, strict=True
        )
    )


def table_of(selection: Selection) -> tuple[dict[str, Any], ...]:
    """What was tried, for a recipe."""
    return tuple(
        {"name": t.name, "accuracy": t.accuracy, "error": t.error, "share": t.share}
        for t in selection.tried
    )


def _unmeasured(
    data: TuningData,
    problem: TuningProblem,
    default: TunedMethod,
    recipe: Recipe,
    request: TuneRequest,
) -> Recipe:
    """The recipe by rule, where there is too little to measure anything by."""
    labelled, count = len(problem.labels), len(data.centred)
    everything = torch.arange(count)
    learned = default.method != PLAIN
    chosen = default if learned else _safe_without_labels(count, request.among)
    scores = problem.logits(chosen, everything[:labelled], everything)
    temperature = 1.0
    if chosen.method != PLAIN and not learned:
        plain = problem.logits(default, everything[:0], everything)
        confidence = float(plain.softmax(1).amax(1).mean())
        temperature = matching_temperature(scores, confidence)
    why = "there are no labelled images to choose by"
    if labelled:
        why = f"{labelled} labelled images are too few to measure anything"
    recipe = replace(
        recipe,
        verdict=f"{chosen.method}, by rule, since {why}; its scores are not calibrated",
        members=(_member(chosen, temperature=temperature),),
        agreement={} if learned else _hint(data, chosen, scores),
    )
    recipe = _with_prompts(recipe, data)
    return _with_suggestions(recipe, data, (scores / temperature).softmax(1), request)


def _safe_without_labels(images: int, among: Sequence[str]) -> TunedMethod:
    """The method that never lost to plain zero-shot with so many images."""
    rules = [(FEW_IMAGES, "zlap"), (LEAST_IMAGES, "dn")]
    allowed = (name for least, name in rules if images >= least and (not among or name in among))
    return TunedMethod(next(allowed, PLAIN), {})


def _verdict(
    result: TuningResult, tuned: Sequence[TunedMethod], shots: bool
) -> tuple[GreedyEnsemble, str]:
    """The ensemble to keep, and why."""
    chosen = result.selection.ensemble
    names = " and ".join(tuned[m].name for m in chosen.members)
    gain = f"{100 * result.gain:+.1f} points against plain zero-shot, p = {result.p:.2g}"
    if result.folds < LEAST_FOLDS:
        return chosen, f"{names}: the default, with too few labels a class to choose ({gain})"
    if result.better:
        return chosen, f"{names}: {gain}"
    what = "the default for labelled images" if shots else "plain zero-shot"
    return chosen, f"{what} ({tuned[0].name}): no method was better beyond chance ({gain})"


def _member(tuned: TunedMethod, weight: float = 1.0, temperature: float = 1.0) -> RecipeMember:
    return RecipeMember(
        tuned.method,
        weight,
        temperature,
        dict(tuned.options),
        tuned.templates or "",
        tuned.coupling or "",
    )


def figures_of(result: MeasuredChoice, images: int) -> RecipeFigures:
    """What was measured, for a recipe."""
    accuracy, plain = result.accuracy, result.plain
    return RecipeFigures(
        accuracy.value,
        accuracy.low,
        accuracy.high,
        plain.value,
        plain.low,
        plain.high,
        result.gain,
        result.p,
        images,
        result.folds,
        result.repeats,
    )


def _held_out(result: TuningResult, data: TuningData) -> HeldOut:
    known = ~result.probabilities.isnan().any(1)
    rows = known.nonzero()[:, 0].tolist()
    confidence, answer = result.probabilities[known].max(1)
    return HeldOut(
        tuple(data.labelled[i] for i in rows),
        tuple(data.problem.labels[known].tolist()),
        tuple(answer.tolist()),
        tuple(confidence.tolist()),
    )


def _hint(data: TuningData, chosen: TunedMethod, scores: Float[Tensor, "n c"]) -> dict[str, float]:
    """How far the other zero-shot methods agree with the recipe."""
    problem, everything = data.problem, torch.arange(len(scores))
    answers = {}
    for method, options in ZERO_SHOT:
        tuned = TunedMethod(method, options)
        if tuned != chosen:
            answers[tuned.name] = problem.logits(tuned, everything[:0], everything).argmax(1)
    return agreement(answers, scores.argmax(1))


def _with_suggestions(
    recipe: Recipe, data: TuningData, probabilities: Float[Tensor, "n c"], request: TuneRequest
) -> Recipe:
    labelled = len(data.problem.labels)
    if not request.suggest:
        return recipe
    if not data.unlabelled:
        raise UserError("--suggest names unlabelled images, and there are none")
    generator = torch.Generator().manual_seed(request.seed)
    rows = data.centred
    found = suggest(
        rows[labelled:], probabilities[labelled:], rows[:labelled], request.suggest, generator
    )
    return replace(recipe, suggested=tuple(data.unlabelled[i] for i in found))
