"""What the defaults reach on recorded embeddings of labelled images: `python benchmarks/defaults.py
SETS --models MODELS`.

SETS is a folder of .npz files with `images [n d]` of the set's image encoder (of any length),
`labels [n]`, and `texts [c t e]`: prompts of its text encoder. MODELS is a model set with anchors.

Each file is split into two halves once, class by class. Whatever the defaults owe to these images
was chosen on half A (`--half A`: shots and measured images are both from A). The figures are from
half B (`--half B`, the default): shots are drawn from A, all of B is measured. Errors are standard
errors over the draws of the shots; balanced accuracy and expected calibration error in %.
"""

import argparse
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from zeroshot import methods, metrics
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inference.coupled_models import LABELS, with_coupling_for_task
from zeroshot.inference.meter import Meter
from zeroshot.methods import as_logits
from zeroshot.model_set.coupled_encoder import CoupledEncoder
from zeroshot.model_set.model_set import resolve
from zeroshot.ops import normalize

torch.set_num_threads(1)
SHOTS = (1, 2, 4, 8)
FEW_SHOT = ("ncm", "ridge", "evidence", "gda", "timo", "proker", "tip_adapter", "ape")
PROBABLE = (
    "ensemble",
    "stata",
    "transclip",
    "center",
    "zlap",
    "inmap",
    "frolic",
    "autoclip",
    "zpe",
)
Figures = dict[str, list[tuple[float, float]]]
"""Balanced accuracy and calibration error of each method, draw by draw."""


@dataclass(frozen=True)
class Space:
    """A coupled pair, and a name for its couplings."""

    name: str
    pair: CoupledEncoder

    def texts(self, texts: Tensor) -> Tensor:
        """Prompts in the joint space."""
        joint = self.pair.project_texts(texts.flatten(0, 1))
        return joint.view(*texts.shape[:2], -1)


@dataclass(frozen=True)
class Recorded:
    """One file."""

    name: str
    images: Tensor
    labels: Tensor
    texts: Tensor
    half: Tensor
    """Whether an image is in half A."""

    @classmethod
    def read(cls, path: Path) -> "Recorded":
        """Unit embeddings, and the halves."""
        with np.load(path) as file:
            images, texts = (torch.from_numpy(file[n]).float() for n in ("images", "texts"))
            labels = torch.from_numpy(file["labels"].astype(np.int64))
        generator = torch.Generator().manual_seed(12345)
        half = torch.zeros(len(labels), dtype=torch.bool)
        for label in labels.unique():
            own = (labels == label).nonzero()[:, 0]
            own = own[torch.randperm(len(own), generator=generator)]
            half[own[: (len(own) + 1) // 2]] = True
        return cls(path.stem, normalize(images), labels, normalize(texts), half)

    def draws(self, shots: int, measured: str, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices of the shots, and of the images that are measured.

        On half A alone a third of a class, one image at least, is kept to measure.
        """
        for seed in range(count):
            generator = torch.Generator().manual_seed(1000 * seed + shots)
            drawn = []
            for label in self.labels.unique():
                own = (self.half & (self.labels == label)).nonzero()[:, 0]
                own = own[torch.randperm(len(own), generator=generator)]
                most = len(own) if measured == "B" else len(own) - max(1, len(own) // 3)
                drawn.append(own[: min(shots, most)])
            train = torch.cat(drawn)
            rest = self.half.clone() if measured == "A" else ~self.half
            rest[train] = False
            yield train, rest.nonzero()[:, 0]


def figures(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """Balanced accuracy and calibration error, in %, of logits."""
    best = scores.argmax(1)
    right = [(best[labels == c] == c).double().mean() for c in labels.unique()]
    error = metrics.ece(scores.double().softmax(1).numpy(), labels.numpy())
    return 100 * float(torch.stack(right).mean()), 100 * error


def score(
    name: str, data: Recorded, space: Space, measured: Tensor, shots: Tensor | None = None
) -> Tensor:
    """Logits of a method, with shots or without."""
    pair = space.pair
    method = methods.configure(name, {})
    texts, images = space.texts(data.texts), pair.project_images(data.images[measured])
    more = {}
    if shots is not None:
        given = {
            "shots": pair.project_images(data.images[shots]),
            "shot_labels": data.labels[shots],
            "own_shots": data.images[shots],
        }
        taken = methods.parameters(method, "fit")
        method = method.fit(**{k: v for k, v in given.items() if k in taken})
        if "own_images" in methods.parameters(method, "scores"):
            more["own_images"] = data.images[measured]
    scores = method.scores(images, texts, None, pair.logit_scale, **more)
    return as_logits(scores, method.output, pair.logit_scale)


def spaces(name: str) -> dict[str, Space]:
    """The former default, the choice of `auto`, and the default."""
    models = resolve(name)
    with EmbeddingCache() as cache:
        default = with_coupling_for_task(models, None, LABELS, cache, Meter()).coupled
    return {
        "asif": Space("asif", models.with_coupling("asif").coupled),
        "auto": Space("auto", models.with_coupling("auto", splits=1).coupled),
        "default": Space("default", default),
    }


def table(
    title: str, columns: list[str], sets: list[Recorded], cell: Callable[[Recorded, str], Figures]
) -> None:
    """Accuracy, and calibration error, of sets by columns, with the mean of the sets."""
    print(f"\n{title}\n")
    print("| set | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    rows: list[list[tuple[float, float, float]]] = []
    for data in sets:
        row = []
        for column in columns:
            found = np.array(cell(data, column)[column])
            error = found[:, 0].std(ddof=1) / len(found) ** 0.5 if len(found) > 1 else 0.0
            row.append((*found.mean(0), error))
        rows.append(row)
        print(f"| {data.name} | " + " | ".join(map(shown, row)) + " |", flush=True)
    every = np.array(rows)
    error = np.sqrt((every[..., 2] ** 2).sum(0)) / len(sets)
    mean = zip(every[..., 0].mean(0), every[..., 1].mean(0), error, strict=True)
    print("| mean | " + " | ".join(map(shown, mean)) + " |")


def shown(cell: tuple[float, float, float]) -> str:
    """`54.7 ± 0.6, 9`: accuracy and its error, calibration error."""
    accuracy, calibration, error = cell
    return f"{accuracy:.1f}" + (f" ± {error:.1f}" if error else "") + f", {calibration:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", type=Path)
    parser.add_argument("--models", required=True, help="a model set with anchors")
    parser.add_argument("--half", choices=("A", "B"), default="B")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--only", default="zero,shots,probabilities", help="which tables")
    given: Any = parser.parse_args()
    warnings.simplefilter("ignore")
    sets = [Recorded.read(path) for path in sorted(given.sets.glob("*.npz"))]
    every = spaces(given.models)
    print(f"half {given.half}; {given.draws} draws of the shots; accuracy ± its error, calibration")

    def zero(data: Recorded, column: str) -> Figures:
        measured = (data.half if given.half == "A" else ~data.half).nonzero()[:, 0]
        return {
            column: [
                figures(score("ensemble", data, every[column], measured), data.labels[measured])
            ]
        }

    def few(data: Recorded, column: str, shots: int) -> Figures:
        found = []
        for train, measured in data.draws(shots, given.half, given.draws):
            name = "ensemble" if column == "zero-shot" else column
            learned = None if column == "zero-shot" else train
            scores = score(name, data, every["default"], measured, learned)
            found.append(figures(scores, data.labels[measured]))
        return {column: found}

    def probable(data: Recorded, column: str) -> Figures:
        measured = (data.half if given.half == "A" else ~data.half).nonzero()[:, 0]
        scores = score(column, data, every["default"], measured)
        return {column: [figures(scores, data.labels[measured])]}

    if "zero" in given.only:
        table("No shots, by coupling", list(every), sets, zero)
    for shots in SHOTS if "shots" in given.only else ():
        table(
            f"{shots} shots of each class",
            ["zero-shot", *FEW_SHOT],
            sets,
            lambda data, column, shots=shots: few(data, column, shots),
        )
    if "probabilities" in given.only:
        table("No shots, by method", list(PROBABLE), sets, probable)


if __name__ == "__main__":
    main()
