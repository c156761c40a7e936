"""Label sets on recorded embeddings of labelled images: `python benchmarks/sets.py SETS --models
MODELS`.

SETS and MODELS are as for `benchmarks/defaults.py`. Each split draws a third of the images to
calibrate, a third to test, and a third as unlabelled images (for `sinkhorn`). Coverage is the share
of test images whose label is in their set, its error that of the mean over the splits.

Columns: `softmax` are the labels from the most probable on until their mass reaches the promise,
which promises nothing. `bank` is lac after `sinkhorn` (uniform shares, three rounds) with the
unlabelled images. `confot` balances calibration and test images together, with uniform shares or
with those of the calibration labels, as its authors do.
"""

import argparse
import os
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from defaults import Recorded, Space, score, spaces
from torch import Tensor

from zeroshot.methods.sinkhorn import biases
from zeroshot.tasks.classification.label_sets import RULES, draw, nonconformity, quantile

Found = dict[str, list[tuple[float, float, float]]]
"""Coverage, size and share of empty sets of each column, split by split."""


def sets_of(scores: Tensor, labels: Tensor, fitted: Tensor, promise: float) -> Tensor:
    """Sets of all rows by the threshold of some."""
    return scores <= quantile(scores[fitted, labels[fitted]], promise)


def figures(found: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Coverage, size, share of empty sets."""
    own = found.gather(1, labels[:, None])[:, 0].double().mean()
    return float(own), float(found.sum(1).double().mean()), float((~found.any(1)).double().mean())


def measure(data: Recorded, space: Space, promise: float, splits: int) -> Found:
    """All columns on random splits."""
    n, labels, found = len(data.labels), data.labels, Found()
    logits = score("ensemble", data, space, torch.arange(n)).double()
    u, classes = draw([str(i) for i in range(n)]), logits.shape[1]
    plain = logits.softmax(1)
    mass, order = plain.sort(1, descending=True)
    reached = torch.empty_like(mass, dtype=torch.bool)
    reached.scatter_(1, order, mass.cumsum(1) - mass < promise)
    even = torch.full((classes,), 1 / classes, dtype=torch.float64)
    scored = {rule: nonconformity(plain, rule, u) for rule in RULES}
    generator = torch.Generator().manual_seed(0)
    for _ in range(splits):
        fitted, test, bank = torch.randperm(n, generator=generator).tensor_split(3)
        columns = {"softmax": reached[test]}
        for rule in RULES:
            columns[rule] = sets_of(scored[rule], labels, fitted, promise)[test]
        balanced = logits + biases(logits[bank], even, 3)
        columns["bank"] = sets_of(1 - balanced.softmax(1), labels, fitted, promise)[test]
        both, own = logits[torch.cat([fitted, test])], labels[torch.cat([fitted, test])]
        first = torch.arange(len(fitted))
        counts = torch.bincount(labels[fitted], minlength=classes).double() / len(fitted)
        for name, shares in (("confot, uniform", even), ("confot, labels", counts)):
            z = (both + biases(both, shares, 3, classes_first=True)).softmax(1)
            columns[name] = sets_of(1 - z, own, first, promise)[len(fitted) :]
        for name, sets in columns.items():
            found.setdefault(name, []).append(figures(sets, labels[test]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", type=Path)
    parser.add_argument("--models", required=True, help="a model set with anchors")
    parser.add_argument("--splits", type=int, default=200)
    given: Any = parser.parse_args()
    warnings.simplefilter("ignore")
    space = spaces(given.models)["default"]
    print(f"{given.splits} splits; coverage ± its error, labels in a set, empty sets in %\n")
    header: list[str] = []
    for path in sorted(given.sets.glob("*.npz")):
        data = Recorded.read(path)
        for promise in (0.8, 0.9, 0.95):
            found = measure(data, space, promise, given.splits)
            if not header:
                header = ["set", "promise", *found]
                print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
            cells = []
            for values in found.values():
                coverage, size, empty = np.mean(values, 0)
                error = np.std([v[0] for v in values], ddof=1) / len(values) ** 0.5
                broken = " !" if coverage < promise - 2 * error else ""
                cells.append(f"{coverage:.3f} ± {error:.3f}{broken}, {size:.2f}, {100 * empty:.0f}")
            print(f"| {data.name} | {promise} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
