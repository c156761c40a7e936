"""All prompts that `tune` was given, as columns for a search: templates, and prompts of a class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from zeroshot.prompts import Templates, expand, template_sets
from zeroshot.tuning.prompt_search import PromptPool


@dataclass(frozen=True, eq=False)
class PromptColumns:
    """Texts by class and column; a template has one column, and so have the k-th own prompts."""

    texts: Sequence[Sequence[str]]
    """Empty for padding."""
    shared: Sequence[bool]
    starts: Sequence[Sequence[Sequence[bool]]]
    """Each given set."""

    @classmethod
    def of(cls, labels: Sequence[str], given: Mapping[str, Templates]) -> "PromptColumns":
        """The columns of all sets; a prompt that two sets share has one."""
        templates = list(
            dict.fromkeys(t for s in given.values() if isinstance(s, tuple) for t in s)
        )
        by_class = [s for s in given.values() if not isinstance(s, tuple)]
        own = [
            list(dict.fromkeys(text for s in by_class for text in expand([label], s)[0]))
            for label in labels
        ]
        most = max(map(len, own), default=0)
        filled = expand(labels, tuple(templates)) if templates else [[] for _ in labels]
        texts = [
            [*shared, *prompts, *[""] * (most - len(prompts))]
            for shared, prompts in zip(filled, own, strict=True)
        ]
        starts = []
        for templates_of_set in given.values():
            wanted = [set(prompts) for prompts in expand(labels, templates_of_set)]
            starts.append([[t in w for t in row] for row, w in zip(texts, wanted, strict=True)])
        return cls(texts, [True] * len(templates) + [False] * most, starts)

    def pool(self, rows: Mapping[str, Tensor]) -> PromptPool:
        """With the row of each text in a joint space."""
        width = len(next(iter(rows.values())))
        block = torch.zeros(len(self.texts), len(self.shared), width)
        for c, row in enumerate(self.texts):
            for t, text in enumerate(row):
                if text:
                    block[c, t] = rows[text]
        mask = torch.tensor([[bool(text) for text in row] for row in self.texts])
        return PromptPool(block, mask, torch.tensor(self.shared), torch.tensor(self.starts))

    def named(self, chosen: Bool[Tensor, "c t"]) -> list[list[str]]:
        """The prompts of each class that were chosen."""
        return [
            [text for text, taken in zip(row, own, strict=True) if taken]
            for row, own in zip(self.texts, chosen.tolist(), strict=True)
        ]


def is_built_in(name: str) -> bool:
    """Whether templates are known by this name everywhere."""
    return name in template_sets() or name.startswith("waffle:")
