"""CHiLS: a coarse class is recognized by its finer kinds.

Novack et al. 2023, "CHiLS: Zero-Shot Image Classification with Hierarchical Label Sets", ICML,
arXiv:2302.02551; authors' code: acmi-lab/CHILS (MIT).

    normal:   q_j     = softmax_j(kinds) * softmax_c(coarse classes)[parent of j]             (1)
    hat:      q_j     = softmax_j(kinds) * sum of softmax(kinds) over the siblings of j       (2)
    both:     class   = parent of argmax_j q_j,  so  score_c = max_{j of c} q_j               (3)
    supagg:   score_c = softmax_c(coarse classes) * sum_{j of c} softmax_j(kinds)             (4)

`texts` has the prompts of coarse classes and of kinds. `parents[j]` is the number of the class that
kind j belongs to; the parent of a coarse class is itself. A coarse class without kinds is its own
only kind. Columns of `scores` are those of `texts`: `q_j` for a kind, the class's score for a
coarse class. To classify, compare the coarse columns.

| here | paper |
|---|---|
| coarse class, kind | superclass, subclass |
| normal, hat, supagg | confidence reweighting, and two of the authors' ablations |

Departures from the authors' code: none in the numbers; theirs multiply in place and hard-code the
logit scale 100.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._door import Method
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble


@dataclass(frozen=True)
class CHiLS(Method):
    """Scores of coarse classes and of their kinds."""

    mode: Literal["normal", "hat", "supagg"] = "normal"
    """how kinds and coarse classes become one score: equations (1) and (3), (2) and (3), or (4)"""

    transductive: ClassVar[bool] = False

    @property
    def output(self) -> Output:
        """Products of probabilities; the columns of the coarse classes need not sum to 1."""
        return "probability"

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
        *,
        parents: Int[Tensor, " c"],
    ) -> Float[Tensor, "n c"]:
        """A column for every text class: kinds and coarse classes.

        Raises:
            UserError: a parent that has a parent itself.
        """
        coarse, kinds = levels(parents)
        logits = logit_scale * Ensemble().scores(images, texts, text_mask)
        p_coarse = logits.masked_fill(~coarse, -torch.inf).softmax(1)
        p_kind = logits.masked_fill(~kinds, -torch.inf).softmax(1)
        p_family = torch.zeros_like(p_kind).index_add_(1, parents, p_kind)  # summed over kinds
        if self.mode == "supagg":
            q, score = p_coarse[:, parents] * p_kind, p_coarse * p_family  # (4)
        else:
            prior = p_coarse if self.mode == "normal" else p_family
            q = p_kind * prior[:, parents]  # (1), (2)
            columns = parents.expand_as(q)
            score = torch.zeros_like(q).scatter_reduce_(1, columns, q, "amax")  # (3)
        return torch.where(coarse, score, q)


def levels(parents: Int[Tensor, " c"]) -> tuple[Bool[Tensor, " c"], Bool[Tensor, " c"]]:
    """Which classes are coarse, and which are kinds; a coarse class without kinds is both."""
    coarse = parents == torch.arange(len(parents), device=parents.device)
    if not bool(coarse[parents].all()):
        where = int((~coarse[parents]).nonzero()[0])
        raise UserError(
            f"parents: class {where} belongs to class {int(parents[where])}, which belongs to "
            "another; chils takes two levels, and a class of the upper one names itself"
        )
    families = torch.bincount(parents, minlength=len(parents))
    return coarse, ~coarse | (families == 1)
