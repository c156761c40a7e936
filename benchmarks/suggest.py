"""Are the images that `tune --suggest` names worth more labels than random ones?

    python benchmarks/suggest.py SETS --models MODELS.toml [--only cifar10,dtd10] [--seeds 10]
                                 [--rounds 5] [--count 10] [--json FILE]

SETS as in benchmarks/tune.py. One half of each set is the pool, without labels at first. In each
round `tune` names COUNT images of it, these get their labels, and the next round knows them. The
default for labelled images is then measured on the other half, with these labels and with as many
of random images. Balanced accuracies in percent, with standard errors over the seeds; `+-` of the
difference is that of the paired seeds.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from tune import accuracy, error, spaces_of

from zeroshot.cache.embedding_cache import NullCache
from zeroshot.inference.coupled_models import LABELS, with_coupling_for_task
from zeroshot.inference.meter import Meter
from zeroshot.model_set.model_set import resolve
from zeroshot.tasks.tuning.tune import TuneRequest, tune
from zeroshot.tasks.tuning.tuning_data import TuningData
from zeroshot.tuning.folds import stratified_folds
from zeroshot.tuning.grid import DEFAULT_OF_SHOTS, PLAIN
from zeroshot.tuning.problem import JointRows, TunedMethod, TuningProblem


def data_of(rows, labels, spaces, known, rest):
    """The rows `known` with their labels, and `rest` without; in the default coupling alone."""
    order = torch.cat([known, rest])
    space = spaces[0]
    moved = [JointRows(None, space.images[order], space.prompts, space.logit_scale)]
    classes = [str(c) for c in range(len(next(iter(space.prompts.values())).texts))]
    names = [str(i) for i in order.tolist()]
    problem = TuningProblem(labels[known], moved, rows[order])
    return TuningData(problem, classes, names[: len(known)], names[len(known) :], {})


def reached(rows, labels, spaces, known, test):
    """Accuracy of the default for labelled images on `test`."""
    problem = data_of(rows, labels, spaces, known, test).problem
    method = TunedMethod(DEFAULT_OF_SHOTS if len(known) else PLAIN, {})
    train, rest = torch.arange(len(known)), torch.arange(len(known), len(known) + len(test))
    return accuracy(problem.logits(method, train, rest), labels[test])


def one_seed(rows, labels, spaces, seed, rounds, count):
    """Accuracies after each round of suggestions, and with as many random labels."""
    generator = torch.Generator().manual_seed(seed)
    half = stratified_folds(labels, 2, generator)
    pool, test = ((half == side).nonzero()[:, 0] for side in (0, 1))
    shuffled = pool[torch.randperm(len(pool), generator=generator)]
    known = pool[:0]
    suggested, random = [], []
    for step in range(1, rounds + 1):
        rest = pool[~torch.isin(pool, known)]
        among = (DEFAULT_OF_SHOTS,) if len(known) else ()
        request = TuneRequest(among=among, suggest=count, seed=seed)
        recipe = tune(data_of(rows, labels, spaces, known, rest), request, lambda *_: None)
        known = torch.cat([known, torch.tensor([int(name) for name in recipe.suggested])])
        suggested.append(reached(rows, labels, spaces, known, test))
        random.append(reached(rows, labels, spaces, shuffled[: step * count], test))
    classes = [len(labels[drawn].unique()) for drawn in (known, shuffled[: rounds * count])]
    return suggested, random, classes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", type=Path)
    parser.add_argument("--models", required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    models = resolve(given.models, offline=True)
    encoder = with_coupling_for_task(models, None, LABELS, NullCache(), Meter()).encoder
    wanted = [name for name in given.only.split(",") if name]
    files = [f for f in sorted(given.sets.glob("*.npz")) if not wanted or f.stem in wanted]
    everything = {}
    for file in files:
        rows, labels, spaces = spaces_of(models, encoder, file)
        runs = [
            one_seed(rows, labels, spaces, seed, given.rounds, given.count)
            for seed in range(given.seeds)
        ]
        ends = [(suggested[-1], random[-1]) for suggested, random, _ in runs]
        columns = {
            "suggested": [s for s, _ in ends],
            "random": [r for _, r in ends],
            "difference": [s - r for s, r in ends],
            "classes suggested": [classes[0] for *_, classes in runs],
            "classes random": [classes[1] for *_, classes in runs],
        }
        everything[file.stem] = {
            name: (statistics.fmean(own), error(own)) for name, own in columns.items()
        }
        line = "  ".join(f"{n} {m:.1f}+-{e:.1f}" for n, (m, e) in everything[file.stem].items())
        print(f"{file.stem:12} {line}", flush=True)
        for name, which in (("suggested", 0), ("random", 1)):
            steps = [statistics.fmean(run[which][k] for run in runs) for k in range(given.rounds)]
            print(f"{'':12} {name:9} by round: {'  '.join(f'{x:.1f}' for x in steps)}", flush=True)
            everything[file.stem][f"{name} by round"] = steps
    print(f"mean of {len(files)} sets")
    for name in ("suggested", "random", "difference"):
        print(f"  {name:12} {statistics.fmean(c[name][0] for c in everything.values()):.1f}")
    if given.json:
        given.json.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
