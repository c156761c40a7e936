"""What can be tried for a set of labelled images, and how: methods on joint rows and own rows.

The images that carry a label come first, in every tensor; images without a label may follow them.
Methods that learn from all images see both, but no label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot import methods
from zeroshot.methods import as_logits
from zeroshot.tuning.prompt_search import MOST_COSINES, PromptPool, search_prompts, taken
from zeroshot.tuning.selection import Configuration

SEARCHED = "searched"
"""Templates of this name are the prompts that a search finds on the rows that are learned from."""
OF_A_SEARCH = 2000
"""Operations for each cosine of a labelled row and a prompt, beside those of the cosine."""

PASSES = {"inmap": 300, "stata": 90, "transclip": 70, "zlap": 60, "proker": 30}
"""Multiplications of all images with all classes that a method costs; of others 10."""
SOLVES = {"ncm": 1, "ridge": 6, "evidence": 7}
"""Multiplications of own rows with own rows."""
OF_LEAVE_ONE_OUT = 5
"""A method with `tune=loo` costs as many times its published form."""


@dataclass(frozen=True, eq=False)
class PromptRows:
    """The prompts of each class in a joint space, at unit length."""

    texts: Float[Tensor, "c t d"]
    mask: Bool[Tensor, "c t"] | None = None


@dataclass(frozen=True, eq=False)
class JointRows:
    """Images and prompts in one space: a dual encoder's, or a coupling's."""

    coupling: str | None
    """The coupling's name; None for the default, or for a dual encoder."""
    images: Float[Tensor, "n d"]
    prompts: Mapping[str, PromptRows]
    """By the name of the templates, the default first."""
    logit_scale: float = 100.0
    pool: PromptPool | None = None
    """What a search for prompts takes them from; None for no search."""


@dataclass(frozen=True)
class TunedMethod:
    """A method with its options, on the prompts and in the space that it is to use."""

    method: str
    options: Mapping[str, Any]
    coupling: str | None = None
    templates: str | None = None
    """None for the default."""

    @property
    def name(self) -> str:
        """`gda alpha=1, by csa, on openai`."""
        options = "".join(f" {key}={value}" for key, value in self.options.items())
        coupling = f", coupled by {self.coupling}" if self.coupling else ""
        templates = f", templates {self.templates}" if self.templates else ""
        return f"{self.method}{options}{coupling}{templates}"


@dataclass(frozen=True, eq=False)
class TuningProblem:
    """All rows, and the labels of the first of them."""

    labels: Int[Tensor, " m"]
    spaces: Sequence[JointRows]
    own: Float[Tensor, "n f"] | None = None
    """Rows of the image encoder before they are coupled; None if there is no coupling."""
    learn: bool = True
    """Whether methods may learn from the labels; else they are chosen by them alone."""
    _found: dict[bytes, Bool[Tensor, "c t"]] = field(default_factory=dict, init=False, repr=False)

    def configuration(self, tuned: TunedMethod) -> Configuration:
        """How `tuning.selection` runs this method on the rows."""
        takes = methods.parameters(methods.configure(tuned.method, {}), "fit")
        learns = (self.learn and "shots" in takes) or tuned.templates == SEARCHED

        def logits(train: Tensor, test: Tensor) -> Tensor:
            return self.logits(tuned, train, test)

        return Configuration(tuned.name, logits, learns, self._cost(tuned))

    def logits(
        self, tuned: TunedMethod, train: Int[Tensor, " s"], test: Int[Tensor, " h"]
    ) -> Float[Tensor, "h c"]:
        """Logits of the rows `test`, learned from the labels of the rows `train`.

        A transductive method scores all rows at once, since it learns from the others.
        """
        space = next(s for s in self.spaces if s.coupling == tuned.coupling)
        prompts = self._prompts(space, tuned.templates, train)
        method = methods.configure(tuned.method, dict(tuned.options))
        known = {"bank": space.images}
        if self.learn and len(train):
            known |= {"shots": space.images[train], "shot_labels": self.labels[train]}
            if self.own is not None:
                known["own_shots"] = self.own[train]
        taken = methods.parameters(method, "fit")
        given = {name: value for name, value in known.items() if name in taken}
        fitted = method.fit(**given) if given else method
        scored = torch.arange(len(space.images)) if fitted.transductive else test
        more: dict[str, Tensor] = {}
        if self.own is not None and "own_images" in methods.parameters(fitted, "scores"):
            more["own_images"] = self.own[scored]
        scores = fitted.scores(
            space.images[scored], prompts.texts, prompts.mask, space.logit_scale, **more
        )
        found = as_logits(scores, fitted.output, space.logit_scale)
        return found[test] if fitted.transductive else found

    def searched(self, train: Int[Tensor, " s"]) -> Bool[Tensor, "c t"]:
        """The prompts of the pool that a search takes, by the labels of the rows `train`."""
        space = self.spaces[0]
        assert space.pool is not None
        key = train.numpy().tobytes()
        if key not in self._found:
            generator = torch.Generator().manual_seed(0)
            self._found[key] = search_prompts(
                space.pool,
                space.images[train],
                self.labels[train],
                space.logit_scale,
                generator,
            )
        return self._found[key]

    def _prompts(
        self, space: JointRows, templates: str | None, train: Int[Tensor, " s"]
    ) -> PromptRows:
        if templates != SEARCHED:
            return _named(space, templates)
        assert space.pool is not None
        return PromptRows(*taken(space.pool, self.searched(train)))

    def _cost(self, tuned: TunedMethod) -> float:
        """Operations of one fit and its scores, roughly: see `PASSES` and `SOLVES`."""
        space = next(s for s in self.spaces if s.coupling == tuned.coupling)
        images, width = space.images.shape
        own = width if self.own is None else self.own.shape[1]
        one_pass = images * width * len(_named(space, None).texts)
        one_solution = own * len(self.labels) ** 2
        stages = tuned.method.split("+")
        passes = sum(PASSES.get(name, 10) for name in stages)
        passes *= OF_LEAVE_ONE_OUT if tuned.options.get("tune") == "loo" else 1
        search = 0
        if tuned.templates == SEARCHED and space.pool is not None:
            cosines = min(len(self.labels) * space.pool.mask.numel(), MOST_COSINES)
            search = cosines * (width + OF_A_SEARCH)
        solutions = sum(SOLVES.get(name, 0) for name in stages)
        return passes * one_pass + solutions * one_solution + search


def _named(space: JointRows, templates: str | None) -> PromptRows:
    return space.prompts[templates] if templates else next(iter(space.prompts.values()))
