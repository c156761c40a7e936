"""Folds of labelled rows: each class is spread over them as evenly as it can be."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

MOST_FOLDS = 5


def fold_count(labels: Int[Tensor, " n"]) -> int:
    """5 folds, or as many as the rows of the larger half of the classes allow; 0 below two.

    With up to five rows a class, each fold holds out one row of each class.
    """
    sizes = labels.bincount()
    sizes = sizes[sizes > 0]
    usual = int(sizes.double().quantile(0.5, interpolation="higher")) if len(sizes) else 0
    return min(MOST_FOLDS, usual) if usual > 1 else 0


def stratified_folds(
    labels: Int[Tensor, " n"], count: int, generator: torch.Generator
) -> Int[Tensor, " n"]:
    """The fold of each row, 0 to `count` - 1: classes are shuffled and dealt out one after another.

    The fold sizes differ by at most one, and so do a class's rows in two folds. The only row of a
    class is in no fold (-1): what is learned without it would not know the class.
    """
    fold = torch.full_like(labels, -1)
    dealt = 0
    for label in labels.bincount().nonzero()[:, 0].tolist():
        rows = (labels == label).nonzero()[:, 0]
        if len(rows) == 1:
            continue
        rows = rows[torch.randperm(len(rows), generator=generator)]
        fold[rows] = (torch.arange(len(rows)) + dealt) % count
        dealt += len(rows)
    return fold


def class_weights(labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Weights of the rows that sum to 1, and to the same in each class: for balanced accuracy."""
    size = labels.bincount()
    return 1 / (size[labels] * (size > 0).sum()).double()
