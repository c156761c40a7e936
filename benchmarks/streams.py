"""Methods for streams, on recorded sets in random orders: do they beat plain zero-shot?

    python benchmarks/streams.py SETS --models MODELS.toml [--orders 5]

SETS is a folder of .npz files with `images`, `labels`, `texts` (docs/embeddings.md), encoded by the
encoders of MODELS.toml, which are coupled as `classify` couples them. Balanced accuracies in
percent, means over the orders.
"""

import argparse
import statistics
from pathlib import Path

import torch
from tune import accuracy, spaces_of

from zeroshot.cache.embedding_cache import NullCache
from zeroshot.inference.coupled_models import LABELS, with_coupling_for_task
from zeroshot.inference.meter import Meter
from zeroshot.methods.ensemble import Ensemble
from zeroshot.methods.oga import OGA
from zeroshot.methods.tda import TDA
from zeroshot.model_set.model_set import resolve
from zeroshot.ops import normalize

METHODS = {
    "plain": Ensemble(),
    "tda": TDA(),
    "oga": OGA(),
    "oga compat": OGA(compat=True),
    "oga tau=0.2": OGA(tau=0.2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", type=Path)
    parser.add_argument("--models", required=True)
    parser.add_argument("--orders", type=int, default=5)
    given = parser.parse_args()
    models = with_coupling_for_task(resolve(given.models), None, LABELS, NullCache(), Meter())
    print(f"| set | {' | '.join(METHODS)} |")
    print("|---" * (len(METHODS) + 1) + "|")
    columns: dict[str, list[float]] = {name: [] for name in METHODS}
    for file in sorted(given.sets.glob("*.npz")):
        _, labels, spaces = spaces_of(models, models.encoder, file)
        joint = spaces[0]
        images, texts = normalize(joint.images), joint.prompts["simple"].texts
        found: dict[str, list[float]] = {name: [] for name in METHODS}
        for seed in range(given.orders):
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
            for name, method in METHODS.items():
                scores = method.scores(images[order], texts, None, joint.logit_scale)
                found[name].append(accuracy(scores, labels[order]))
        means = {name: statistics.mean(values) for name, values in found.items()}
        for name, mean in means.items():
            columns[name].append(mean)
        print(f"| {file.stem} | {' | '.join(f'{m:.1f}' for m in means.values())} |", flush=True)
    totals = (f"{statistics.mean(values):.1f}" for values in columns.values())
    print(f"| mean | {' | '.join(totals)} |")


if __name__ == "__main__":
    main()
