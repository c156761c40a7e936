"""Several methods as one: `zpe+stata`, read from left to right.

    refine texts, ...     a method that has `refine` and hands on to one that reads texts
    score                 the first method that does not refine
    score again, ...      methods that take `initial`: the logits so far are where they start
    adjust, ...           methods that have `adjust`

Re-scoring and adjusting may come in any order. A refiner that is last, or right before an
adjuster, scores by itself. An adjuster that was fitted with a bank wants the logits that the stages
before it give the bank; where one of these scores rows together, or by arrays that belong to the
images alone, there are none and the adjuster learns from the images. What no stage could mean is
refused when the pipeline is made.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot import methods
from zeroshot.errors import UserError, unknown
from zeroshot.methods import Coupling, Output, Scorer, as_logits

Role = Literal["refine", "score", "score again", "adjust"]


@dataclass(frozen=True)
class Pipeline:
    """A scorer made of scorers."""

    stages: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(self.stages) < 2:
            raise UserError("a pipeline takes two methods or more, as in zpe+stata")
        for stage in self.stages:
            if not isinstance(stage, Scorer):
                raise UserError(f"'{methods.name_of(stage)}' does not classify: no part of a '+'")
            if isinstance(stage, Coupling):
                raise UserError(
                    f"'{methods.name_of(stage)}' couples two encoders and is no part of a '+'; "
                    "with --encoder coupled the other methods work in its space"
                )
        _ = self.roles

    @classmethod
    def configure(cls, name: str, given: Mapping[str, Any]) -> "Pipeline":
        """`zpe+stata` with options `stata.alpha`, or `alpha` where one stage alone has it."""
        names = name.split("+")
        if len(set(names)) < len(names):
            raise UserError(f"'{name}' has a method twice; its options could not be told apart")
        known = {n: methods.options(methods.get(n)) for n in names}
        own: dict[str, dict[str, Any]] = {n: {} for n in names}
        for key, value in given.items():
            stage, dot, option = key.rpartition(".")
            if dot and stage not in known:
                raise unknown(f"stage of {name}", stage, names)
            homes = [stage] if dot else [n for n in names if key in known[n]]
            if len(homes) > 1:
                raise UserError(
                    f"option '{key}' belongs to {' and '.join(homes)}; write "
                    + " or ".join(f"{n}.{key}" for n in homes)
                )
            if not homes:
                raise unknown(
                    f"option of {name}", key, [f"{n}.{o}" for n in names for o in known[n]]
                )
            own[homes[0]][option] = value
        return cls(tuple(methods.configure(n, own[n]) for n in names))

    @property
    def transductive(self) -> bool:
        """Whether any stage is, or becomes so for want of the bank's logits."""
        if any(stage.transductive for stage in self.stages):
            return True
        banks = any(_bank(stage) is not None for stage in self.stages)
        scorers = (s for s, role in zip(self.stages, self.roles, strict=True) if role != "adjust")
        return banks and not all(map(_scores_rows_alone, scorers))

    @property
    def raw_rows(self) -> bool:
        """Whether rows come as they are: the scorer wants them so, and nobody else reads them."""
        return getattr(self.stages[0], "raw_rows", False) and set(self.roles[1:]) == {"adjust"}

    @property
    def output(self) -> Output:
        """What the last stage gives."""
        last: Output = self.stages[-1].output
        return last

    @property
    def roles(self) -> tuple[Role, ...]:
        """What each stage does.

        Raises:
            UserError: a stage that can do nothing with what comes before it.
        """
        roles: list[Role] = []
        for stage, after in zip(self.stages, [*self.stages[1:], None], strict=True):
            if not set(roles) - {"refine"}:
                hands_on = after is not None and not hasattr(after, "adjust")
                roles.append("refine" if hasattr(stage, "refine") and hands_on else "score")
            elif hasattr(stage, "adjust"):
                roles.append("adjust")
            elif "initial" in methods.parameters(stage, "scores"):
                roles.append("score again")
            else:
                what = (
                    "it chooses among prompts; put it before the method that scores"
                    if hasattr(stage, "refine")
                    else "it neither starts from other scores nor adjusts them"
                )
                name, before = methods.name_of(stage), methods.name_of(self.stages[len(roles) - 1])
                raise UserError(f"{name} cannot follow {before}: {what}")
        return tuple(roles)

    def parameters(self, verb: str) -> dict[str, bool]:
        """The arrays that any stage takes, needed if one stage needs them."""
        taken: dict[str, bool] = {}
        for stage, role in zip(self.stages, self.roles, strict=True):
            own = methods.parameters(stage, verb)
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
        scores = logits = images.new_empty(0, 0)
        bank_logits: Tensor | None = None
        for stage, role in zip(self.stages, self.roles, strict=True):
            if role == "refine":
                texts, text_mask = stage.refine(images, texts, text_mask, logit_scale)
                continue
            bank_scores: Tensor | None = None
            if role == "adjust":
                own = bank_logits if _bank(stage) is not None else None
                scores = stage.adjust(logits, own)
                if bank_logits is not None:
                    bank_scores = stage.adjust(bank_logits, bank_logits)
            else:
                taken = methods.parameters(stage, "scores")
                given = {k: v for k, v in extras.items() if k in taken}
                if role == "score again":
                    given["initial"] = logits
                scores = stage.scores(images, texts, text_mask, logit_scale, **given)
                if bank is not None and _scores_rows_alone(stage):
                    bank_scores = stage.scores(bank, texts, text_mask, logit_scale, **given)
            logits = as_logits(scores, stage.output, logit_scale)
            bank_logits = None
            if bank_scores is not None:
                bank_logits = as_logits(bank_scores, stage.output, logit_scale)
        return scores


def _scores_rows_alone(stage: Any) -> bool:
    """Whether other rows than the images could be scored beside them."""
    of_rows = {"views", "initial"} & methods.parameters(stage, "scores").keys()
    return not stage.transductive and not of_rows


def _fitted(stage: Any, arrays: Mapping[str, Tensor]) -> Any:
    own = {k: v for k, v in arrays.items() if k in methods.parameters(stage, "fit")}
    return stage.fit(**own) if own else stage


def _bank(stage: Any) -> Tensor | None:
    """The unlabelled rows an adjuster was fitted with."""
    return getattr(stage, "bank_", None) if hasattr(stage, "adjust") else None
