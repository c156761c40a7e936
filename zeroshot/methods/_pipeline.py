"""Several methods as one: `zpe+stata`, read from left to right.

    refine texts, ...     methods that have `refine`, before one that scores
    score                 the first method that does not refine
    score again, ...      methods that take `initial`: they start from the logits so far
    adjust, ...           methods that have `adjust`

Re-scoring and adjusting may come in any order. A refiner that is last, or right before an
adjuster, scores by itself. An adjuster fitted with a bank uses the bank's logits under the stages
before it. If one of these is transductive or needs arrays that belong to the images, such logits
do not exist and the adjuster uses the images instead. A pipeline whose stages cannot follow one
another is refused when it is made.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.errors import UserError, unknown
from zeroshot.methods import _registry as registry
from zeroshot.methods._door import Method
from zeroshot.methods._protocols import Adjuster, Coupling, Output, Refiner, Scorer, as_logits

StageRole = Literal["refine", "score", "score again", "adjust"]


def pipeline(*stages: Any) -> "Pipeline":
    """Methods as one, read from left to right: `pipeline(ZPE(), StatA())` is `zpe+stata`.

    Raises:
        UserError: stages that cannot follow one another.
    """
    return Pipeline(stages)


def configure(name: Any, given: Mapping[str, Any]) -> Any:
    """The method called `name` with these options; texts are read as the option's type.

    `name` may be a pipeline, `zpe+stata`, whose options are `stata.alpha`, or just `alpha` if only
    one stage has it; or a method itself, as an object without options or as a class.

    Raises:
        UserError: an unknown method or option, or a value that is not of the option's type.
    """
    if not isinstance(name, str):
        return registry.configure_own(name, given)
    if "+" in name:
        return Pipeline.configure(name, given)
    return registry.configure_method(name, given)


@dataclass(frozen=True)
class Pipeline(Method):
    """A scorer made of scorers."""

    stages: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(self.stages) < 2:
            raise UserError("a pipeline takes two methods or more, as in zpe+stata")
        for stage in self.stages:
            if not isinstance(stage, Scorer):
                raise UserError(f"'{registry.name_of(stage)}' does not classify: no part of a '+'")
            if isinstance(stage, Coupling):
                raise UserError(
                    f"'{registry.name_of(stage)}' couples two encoders and is no part of a '+'; "
                    "with --encoder coupled the other methods work in its space"
                )
        _ = self.roles

    @classmethod
    def configure(cls, name: str, given: Mapping[str, Any]) -> "Pipeline":
        """`zpe+stata` with options `stata.alpha`, or just `alpha` if only one stage has it."""
        names = name.split("+")
        if len(set(names)) < len(names):
            raise UserError(f"'{name}' has a method twice; its options could not be told apart")
        known = {n: registry.options(registry.get(n)) for n in names}
        own: dict[str, dict[str, Any]] = {n: {} for n in names}
        for key, value in given.items():
            stage, dot, option = key.rpartition(".")
            if dot and stage not in known:
                raise unknown(f"stage of {name}", stage, names)
            owners = [stage] if dot else [n for n in names if key in known[n]]
            if len(owners) > 1:
                raise UserError(
                    f"option '{key}' belongs to {' and '.join(owners)}; write "
                    + " or ".join(f"{n}.{key}" for n in owners)
                )
            if not owners:
                raise unknown(
                    f"option of {name}", key, [f"{n}.{o}" for n in names for o in known[n]]
                )
            own[owners[0]][option] = value
        return cls(tuple(registry.configure_method(n, own[n]) for n in names))

    @property
    def transductive(self) -> bool:
        """Whether any stage is, or becomes so because the bank has no logits."""
        if any(stage.transductive for stage in self.stages):
            return True
        banks = any(_bank(stage) is not None for stage in self.stages)
        scorers = (s for s, role in zip(self.stages, self.roles, strict=True) if role != "adjust")
        return banks and not all(map(_can_score_bank, scorers))

    @property
    def wants_unnormalized(self) -> bool:
        """Whether embeddings come as they are: the scorer wants that, and only it reads them."""
        scorer = self.stages[0]
        return getattr(scorer, "wants_unnormalized", False) and set(self.roles[1:]) == {"adjust"}

    @property
    def output(self) -> Output:
        """That of the last stage."""
        last: Output = self.stages[-1].output
        return last

    @property
    def roles(self) -> tuple[StageRole, ...]:
        """What each stage does.

        Raises:
            UserError: a stage that can do nothing with what comes before it.
        """
        roles: list[StageRole] = []
        for stage, after in zip(self.stages, [*self.stages[1:], None], strict=True):
            if not set(roles) - {"refine"}:
                hands_on = after is not None and not isinstance(after, Adjuster)
                roles.append("refine" if isinstance(stage, Refiner) and hands_on else "score")
            elif isinstance(stage, Adjuster):
                roles.append("adjust")
            elif "initial" in registry.parameters(stage, "scores"):
                roles.append("score again")
            else:
                why = (
                    "it chooses among prompts; put it before the method that scores"
                    if isinstance(stage, Refiner)
                    else "it neither starts from other scores nor adjusts them"
                )
                name, before = map(registry.name_of, (stage, self.stages[len(roles) - 1]))
                raise UserError(f"{name} cannot follow {before}: {why}")
        return tuple(roles)

    def parameters(self, verb: str) -> dict[str, bool]:
        """The arrays that any stage takes, needed if one stage needs them."""
        taken: dict[str, bool] = {}
        for stage, role in zip(self.stages, self.roles, strict=True):
            own = registry.parameters(stage, verb)
            if role != "score":
                own.pop("initial", None)
            for name, needed in own.items():
                taken[name] = taken.get(name, False) or needed
        return taken

    def fit(self, **arrays: Tensor) -> "Pipeline":
        """Every stage fitted with those of the arrays that it takes."""
        return Pipeline(tuple(_fitted(stage, arrays) for stage in self.stages))

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
        **extras: Tensor,
    ) -> Float[Tensor, "n c"]:
        """Scores of the last stage; `extras` go to the stages that take them."""
        bank = next((x for x in map(_bank, self.stages) if x is not None), None)
        scores = logits = torch.empty(0, 0)
        bank_logits: Tensor | None = None
        for stage, role in zip(self.stages, self.roles, strict=True):
            if role == "refine":
                texts, text_mask = stage.refine(images, texts, text_mask, logit_scale)
                continue
            bank_scores: Tensor | None = None
            if role == "adjust":
                scores = stage.adjust(logits, bank_logits if _bank(stage) is not None else None)
                if bank_logits is not None:
                    bank_scores = stage.adjust(bank_logits, bank_logits)
            else:
                taken = registry.parameters(stage, "scores")
                given = {k: v for k, v in extras.items() if k in taken}
                if role == "score again":
                    given["initial"] = logits
                scores = stage.scores(images, texts, text_mask, logit_scale, **given)
                if bank is not None and _can_score_bank(stage):
                    bank_scores = stage.scores(bank, texts, text_mask, logit_scale, **given)
            logits = as_logits(scores, stage.output, logit_scale)
            bank_logits = None
            if bank_scores is not None:
                bank_logits = as_logits(bank_scores, stage.output, logit_scale)
        return scores


def _can_score_bank(stage: Any) -> bool:
    """Whether it can score other images: it is not transductive and takes no arrays of theirs."""
    per_image = {"views", "initial", "own_images"} & registry.parameters(stage, "scores").keys()
    return not stage.transductive and not per_image


def _fitted(stage: Any, arrays: Mapping[str, Tensor]) -> Any:
    own = {k: v for k, v in arrays.items() if k in registry.parameters(stage, "fit")}
    return stage.fit(**own) if own else stage


def _bank(stage: Any) -> Tensor | None:
    """The unlabelled images an adjuster was fitted with."""
    return getattr(stage, "bank_", None) if isinstance(stage, Adjuster) else None
