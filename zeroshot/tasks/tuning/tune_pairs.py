"""`tune` by pairs of images and texts: how to search, and how to caption.

No method learns from the pairs, so `tuning.outcomes` chooses.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.datasets.captions import CaptionDataset
from zeroshot.datasets.ground_truth import load_captions
from zeroshot.errors import unknown
from zeroshot.methods.auto import OPERATIONS
from zeroshot.tasks.tuning.recipe import MEASURES, Recipe, RecipeMember, TunedTask
from zeroshot.tasks.tuning.tune import (
    TuneInterruptedError,
    TuneRequest,
    best_so_far,
    figures_of,
    members_of,
    table_of,
)
from zeroshot.tuning.outcomes import OutcomeCandidate, choose_by_outcomes
from zeroshot.tuning.problem import TunedMethod
from zeroshot.tuning.selection import ChoiceInterruptedError, TuningProgress


@runtime_checkable
class PairItems(Protocol):
    """What can be tried on pairs, and what comes of it."""

    task: ClassVar[TunedTask]
    largest: ClassVar[float]
    """Outcome that there can be."""

    @property
    def tuned(self) -> Sequence[TunedMethod]:
        """The candidates: the default of the task first, the others by their effort."""

    @property
    def count(self) -> int:
        """Number of items."""

    def outcomes(self, tuned: TunedMethod, items: Int[Tensor, " h"]) -> Float[Tensor, " h"]:
        """Of a candidate on these items, the more the better."""

    def cost(self, tuned: TunedMethod) -> float:
        """Operations on all items."""

    def models(self, tuned: TunedMethod) -> dict[str, str]:
        """Canonical names of the models."""

    @property
    def about(self) -> str:
        """What else the verdict has to say; may be empty."""

    def bank(self, tuned: TunedMethod) -> tuple[str, ...]:
        """The queries that a recipe of this candidate keeps."""


def read_items(given: Path, folder: Path | None, split: str | None) -> CaptionDataset:
    """Images with their queries, or their captions, as `eval` reads them.

    Args:
        folder: of the images; by default that of the file.

    Raises:
        UserError: as of `datasets.ground_truth.load_captions`.
    """
    if given.is_dir():
        return load_captions(given, split=split)
    return load_captions(folder or given.parent, truth=given, split=split)


def tune_pairs(items: PairItems, request: TuneRequest, progress: TuningProgress) -> Recipe:
    """The recipe of a task.

    Raises:
        UserError: a method that is not known, or too few items.
        TuneInterruptedError: Ctrl-C during the choice; it has the best so far.
    """
    tuned = list(items.tuned)
    names = list(dict.fromkeys(one.method for one in tuned))
    for name in request.among:
        if name not in names:
            raise unknown(f"method to try for {items.task}", name, names)
    if request.among:
        tuned = [tuned[0], *(one for one in tuned[1:] if one.method in request.among)]
    recipe = Recipe(task=items.task, default=tuned[0].name, seed=request.seed)

    def candidate(one: TunedMethod) -> OutcomeCandidate:
        return OutcomeCandidate(one.name, lambda rows: items.outcomes(one, rows), items.cost(one))

    try:
        result = choose_by_outcomes(
            [candidate(one) for one in tuned],
            items.count,
            largest=items.largest,
            seed=request.seed,
            operations=request.budget * OPERATIONS,
            progress=progress,
        )
    except ChoiceInterruptedError as stopped:
        found = best_so_far(recipe, stopped, tuned)
        raise TuneInterruptedError(_completed(found, items)) from None
    members = members_of(
        result.selection.ensemble, [one for one in tuned if one.name not in result.left_out]
    )
    name = _tuned(members[0]).name
    gain = f"{100 * result.gain:+.1f} points of {MEASURES[items.task]}, p = {result.p:.2g}"
    gain += f"; {items.about}" if items.about else ""
    verdict = f"{name}: better than the default, {recipe.default} ({gain})"
    if not result.better:
        verdict = f"the default ({name}): nothing was better beyond chance ({gain})"
    recipe = replace(
        recipe,
        verdict=verdict,
        members=members,
        figures=figures_of(result, items.count),
        tried=table_of(result.selection),
        left_out=result.left_out,
    )
    return _completed(recipe, items)


def _completed(recipe: Recipe, items: PairItems) -> Recipe:
    """With what only the chosen candidate decides."""
    tuned = _tuned(recipe.members[0])
    return replace(recipe, models=items.models(tuned), bank=items.bank(tuned))


def _tuned(member: RecipeMember) -> TunedMethod:
    return TunedMethod(member.method, dict(member.options), member.coupling or None)
