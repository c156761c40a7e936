"""The methods that `tune` tries, with a few named options each, the simplest first.

A method belongs here if it needs no more than images, prompts, shots and unlabelled images, and if
it was the best of all on some set of docs/tune.md, or is the published form of one that
was. Options are few and named: a finer grid would choose by chance.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from zeroshot import methods
from zeroshot.errors import UserError, unknown
from zeroshot.tuning.problem import SEARCHED, TunedMethod, TuningProblem

Listed = tuple[tuple[str, dict[str, Any]], ...]

PLAIN = "ensemble"
"""Plain zero-shot: the mean of each class's prompts."""
DEFAULT_OF_SHOTS = "evidence"
OF_EVERY_PLACE = (PLAIN, "zpe", "stata", DEFAULT_OF_SHOTS)
"""Tried with each of the templates and in each coupling; the others with the default of both."""
OF_SEARCHED_PROMPTS = (PLAIN, DEFAULT_OF_SHOTS)
"""Tried with the prompts that a search finds, where it has any to choose from."""
ZERO_SHOT: Listed = (
    ("ensemble", {}),
    ("zpe", {}),
    ("autoclip", {}),
    ("center", {}),
    ("dn", {}),
    ("csls", {}),
    ("frolic", {}),
    ("zlap", {}),
    ("transclip", {}),
    ("stata", {}),
    ("inmap", {}),
    ("zpe+stata", {}),
)
FEW_SHOT: Listed = (
    ("evidence", {}),
    ("ncm", {}),
    ("ridge", {}),
    ("gda", {}),
    ("tip_adapter", {}),
    ("tip_adapter", {"tune": "loo"}),
    ("proker", {}),
    ("timo", {}),
    ("ape", {}),
    ("gda+stata", {}),
    ("evidence+stata", {}),
)


def simplest_first(
    problem: TuningProblem, *, shots: bool, among: Sequence[str] = ()
) -> list[TunedMethod]:
    """What is tried: the default for these data, plain zero-shot, and the others by effort.

    Args:
        shots: whether a method may learn from the labels.
        among: methods to try beside the default and plain zero-shot; all without it.

    Raises:
        UserError: a method in `among` that is not in the lists of this file, or cannot be tried.
    """
    listed = [*(FEW_SHOT if shots else ()), *ZERO_SHOT]
    names = [name for name, _ in listed]
    for name in among:
        if name in {learner for learner, _ in FEW_SHOT} and not shots:
            raise UserError(
                f"{name} learns from labelled images, and there are none to learn from: give "
                "--shots (the array shots), or leave it out of --among"
            )
        if name not in names:
            raise unknown("method to try", name, names)
    found = [TunedMethod(PLAIN, {})]
    if shots:
        found.insert(0, TunedMethod(DEFAULT_OF_SHOTS, {}))
    for name, options in listed:
        if among and name not in among:
            continue
        found += [TunedMethod(name, options, *place) for place in _places(problem, name)]
    return [one for i, one in enumerate(found) if one not in found[:i]]


def _places(problem: TuningProblem, method: str) -> Iterator[tuple[str | None, str | None]]:
    """Couplings and templates: the default of both, then each other one with the plain method."""
    yield None, None
    ignores_texts = (
        getattr(methods.get(method), "needs_every_class", False) if ("+" not in method) else False
    )
    if ignores_texts:
        return
    default, *others = problem.spaces
    if method in OF_EVERY_PLACE:
        for templates in list(default.prompts)[1:]:
            yield None, templates
        if default.pool is not None and method in OF_SEARCHED_PROMPTS:
            yield None, SEARCHED
        for space in others:
            yield space.coupling, None
