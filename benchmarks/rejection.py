"""None of the labels: `python benchmarks/rejection.py SETS --models MODELS`.

SETS and MODELS are as for `benchmarks/defaults.py`. AUROC of one set's images against images that
show none of its labels: *near* are the images of its other classes, if every second class is a
label, and the images of the other set of objects; *far* are the images of another kind of set.

`softmax` is the largest probability (what `classify --abstain` looks at without --none-of-these),
`mcm` the same of cosines without a logit scale (Ming et al. 2022, arXiv:2211.13445), `cosine` the
largest cosine. `neglabel` has our words. `adjectives` and `csp` add 1000 adjectives of the file
--adjectives, one a line, in the prompts of NegLabel and of CSP; `groups` averages over 100 groups.

The last columns are of `neglabel`: the share of own images, and of the others, that are none of
these below 0.5; and with a threshold from half of the own images, unlabelled, for 5 %.
"""

import argparse
import os
import random
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from defaults import Recorded, Space, spaces
from torch import Tensor

from zeroshot import metrics
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inference.embedding import embed_texts
from zeroshot.inference.meter import Meter
from zeroshot.methods.ensemble import Ensemble
from zeroshot.methods.neglabel import NegLabel
from zeroshot.prompts import common_words
from zeroshot.tasks.classification.calibration import p_values
from zeroshot.tasks.classification.none_of_these import WORD

PAIRS = {
    "near": (("caltech50", "caltech24lt"), ("caltech24lt", "caltech50")),
    "far": (
        *(("caltech50", "dtd10"), ("caltech50", "cifar10"), ("caltech24lt", "flowers5")),
        *(("cifar10", "dtd10"), ("dtd10", "flowers5"), ("flowers5", "trashnet")),
        ("trashnet", "caltech24lt"),
    ),
}
SUPER = (
    *("environment", "space", "object", "scene", "animal", "plant", "tool", "food", "material"),
    *("structure", "place", "creature", "item", "event"),
)
"""CSP's kind of words that follow an adjective."""


def auroc(own: Tensor, others: Tensor) -> float:
    """Of scores that are higher for own images."""
    truth = np.arange(len(own) + len(others)) < len(own)
    return float(metrics.auroc(torch.cat([own, others]).numpy(), truth))


def problems(sets: dict[str, Recorded], space: Space) -> list[tuple[str, str, Tensor, Any, Any]]:
    """Name, near or far, prompts of the labels, own images, other images."""
    texts = {name: space.texts(data.texts) for name, data in sets.items()}
    images = {name: space.pair.project_images(data.images) for name, data in sets.items()}
    found = []
    for name, data in sets.items():
        known = torch.arange(len(texts[name])) % 2 == 0
        own = known[data.labels]
        rows = images[name][own], images[name][~own]
        found.append((f"{name}, other classes", "near", texts[name][known], *rows))
    for kind, pairs in PAIRS.items():
        for one, other in pairs:
            if {one, other} <= sets.keys():
                rows = images[one], images[other]
                found.append((f"{one}, images of {other}", kind, texts[one], *rows))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", type=Path)
    parser.add_argument("--models", required=True, help="a model set with anchors")
    parser.add_argument("--adjectives", type=Path, help="one a line")
    given: Any = parser.parse_args()
    warnings.simplefilter("ignore")
    space = spaces(given.models)["default"]
    pair, scale = space.pair, space.pair.logit_scale
    sets = {path.stem: Recorded.read(path) for path in sorted(given.sets.glob("*.npz"))}

    def encode(prompts: list[str]) -> Tensor:
        return pair.project_texts(
            embed_texts(prompts, pair.text_encoder, EmbeddingCache(), Meter())
        )

    pools = {"neglabel": encode([WORD.format(word) for word in common_words()])}
    if given.adjectives is not None:
        words, rng = given.adjectives.read_text().split()[:1000], random.Random(0)
        more = {
            "adjectives": [f"This is a {w} photo." for w in words],
            "csp": [WORD.format(f"{w} {rng.choice(SUPER)}") for w in words],
        }
        pools |= {k: torch.cat([pools["neglabel"], encode(v)]) for k, v in more.items()}
    methods = {name: NegLabel().fit(rows) for name, rows in pools.items()}
    methods["groups"] = NegLabel(groups=100).fit(pools["neglabel"])
    columns = ["softmax", "mcm", "cosine", *methods]
    ends = ["own < .5", "others < .5", "own at 5 %", "others at 5 %"]
    print("| labels of | | " + " | ".join([*columns, *ends]) + " |")
    print("|---" * (len(columns) + len(ends) + 2) + "|")
    means: dict[str, list[list[float]]] = {"near": [], "far": []}
    for name, kind, texts, own, others in problems(sets, space):
        weights = Ensemble().classifier(texts).T
        cosines = own @ weights, others @ weights
        row = [
            auroc(*((scale * x).softmax(1).amax(1) for x in cosines)),
            auroc(*(x.softmax(1).amax(1) for x in cosines)),
            auroc(*(x.amax(1) for x in cosines)),
        ]
        known: dict[str, list[Tensor]] = {}
        for column, method in methods.items():
            known[column] = [method.scores(x, texts, None, scale).sum(1) for x in (own, others)]
            row.append(auroc(*known[column]))
        mine, theirs = known["neglabel"]
        row += [float((x < 0.5).double().mean()) for x in (mine, theirs)]
        order = torch.randperm(len(mine), generator=torch.Generator().manual_seed(0))
        reference = mine[order[::2]].sort().values.tolist()
        for rows in (mine[order[1::2]], theirs):
            row.append(float(np.mean([p <= 0.05 for p in p_values(rows.tolist(), reference)])))
        means[kind].append(row)
        print(f"| {name} | {kind} | " + " | ".join(f"{x:.3f}" for x in row) + " |", flush=True)
    for kind, rows_of_kind in means.items():
        cells = " | ".join(f"{x:.3f}" for x in np.mean(rows_of_kind, 0))
        print(f"| mean | {kind} | {cells} |")


if __name__ == "__main__":
    main()
