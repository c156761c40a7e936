"""Is the recipe of `zeroshot tune` worth what it says? Recorded sets, each split in half.

    python benchmarks/tune.py SETS --models MODELS.toml [--only cifar10,dtd10] [--shots 0,1,4,8,all]
                              [--splits 10] [--json FILE]
    python benchmarks/tune.py --read FILE...

SETS is a folder of .npz files with `images`, `labels`, `texts` (docs/embeddings.md; `texts` are
prompts by the text encoder of MODELS.toml). Everything is chosen on one half, and measured on the
other: the default for the data, the recipe, plain zero-shot, and every method alone. Balanced
accuracies in percent, with standard errors over the splits. `--json` keeps them; `--read` prints
the table and the means of such files again, so that sets can be run one by one.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from zeroshot.cache.embedding_cache import NullCache
from zeroshot.inference.coupled_models import LABELS, with_coupling_for_task
from zeroshot.inference.meter import Meter
from zeroshot.model_set.model_set import resolve
from zeroshot.ops import normalize
from zeroshot.tasks.tuning.tune import TuneRequest, tune
from zeroshot.tasks.tuning.tuning_data import COUPLINGS, TuningData, coupled_by
from zeroshot.tuning.folds import stratified_folds
from zeroshot.tuning.grid import PLAIN, simplest_first
from zeroshot.tuning.intervals import balanced
from zeroshot.tuning.problem import JointRows, PromptRows, TunedMethod, TuningProblem


def spaces_of(models, encoder, file):
    """Own rows, labels, and joint rows by each coupling, of one recorded set."""
    arrays = np.load(file, allow_pickle=False)
    rows = normalize(torch.from_numpy(arrays["images"]).float())
    texts = torch.from_numpy(arrays["texts"]).float()
    spaces = []
    for name in (None, *COUPLINGS):
        pair = encoder if name is None else coupled_by(models, encoder, name)
        joint = pair.project_texts(texts.flatten(0, 1)).view(*texts.shape[:2], -1)
        images = pair.project_images(rows)
        spaces.append(JointRows(name, images, {"simple": PromptRows(joint)}, pair.logit_scale))
    return rows, torch.from_numpy(arrays["labels"]).long(), spaces


def data_of(rows, labels, spaces, shots, rest):
    """The rows of `shots` with their labels, and those of `rest` without."""
    order = torch.cat([shots, rest])
    moved = [JointRows(s.coupling, s.images[order], s.prompts, s.logit_scale) for s in spaces]
    problem = TuningProblem(labels[shots], moved, rows[order])
    classes = [str(c) for c in range(len(spaces[0].prompts["simple"].texts))]
    names = [str(i) for i in order.tolist()]
    return TuningData(problem, classes, names[: len(shots)], names[len(shots) :], {})


def measured(data, members, truth):
    """Accuracy of a recipe's members, learned from the labelled rows, on the others."""
    problem = data.problem
    train = torch.arange(len(problem.labels))
    test = torch.arange(len(train), len(train) + len(truth))
    p = 0
    for m in members:
        tuned = TunedMethod(m.method, dict(m.options), m.coupling or None, m.templates or None)
        p = p + m.weight * (problem.logits(tuned, train, test).double() / m.temperature).softmax(1)
    return p


def accuracy(scores, truth):
    return 100 * float(balanced((scores.argmax(1) == truth).double(), truth))


def one_split(rows, labels, spaces, shots, split):
    """Figures of one split: name to balanced accuracy, and what the recipe says of itself."""
    generator = torch.Generator().manual_seed(split)
    half = stratified_folds(labels, 2, generator)
    a, b = ((half == side).nonzero()[:, 0] for side in (0, 1))
    if shots != "all":
        parts = []
        for label in labels.unique().tolist():
            own = a[labels[a] == label]
            parts.append(own[torch.randperm(len(own), generator=generator)[: int(shots)]])
        a = torch.cat(parts)
    data = data_of(rows, labels, spaces, a, b)
    truth = labels[b]
    begin = time.process_time()
    recipe = tune(data, TuneRequest(seed=split), lambda *_: None)
    seconds = time.process_time() - begin
    tried = simplest_first(data.problem, shots=len(a) > 0)
    figures = {}
    train = torch.arange(len(a))
    test = torch.arange(len(a), len(a) + len(b))
    for tuned in tried:
        figures[tuned.name] = accuracy(data.problem.logits(tuned, train, test), truth)
    default, plain = figures[tried[0].name], figures[PLAIN]
    best = max(figures.values())
    p = measured(data, recipe.members, truth)
    reached = accuracy(p, truth)
    figures |= {"default": default, "plain": plain, "best in hindsight": best, "recipe": reached}
    confidence, answer = p.max(1)
    figures["ece of the recipe"] = 100 * gap(confidence, answer == truth)
    if len(a) > 0:
        figures["logistic regression"] = logistic(data, truth)
    if recipe.figures:
        inside = 100 * recipe.figures.low <= reached <= 100 * recipe.figures.high
        figures["interval covers"] = 100.0 * inside
        figures["recipe says"] = 100 * recipe.figures.accuracy
    figures["seconds"] = seconds
    return figures, " + ".join(m.method for m in recipe.members)


def gap(confidence, right, bins=15):
    """Expected calibration error."""
    index = (confidence * bins).ceil().sub(1).clamp(0, bins - 1).long()
    difference = torch.zeros(bins, dtype=torch.float64)
    difference.index_add_(0, index, right.double() - confidence.double())
    return float(difference.abs().sum() / len(confidence))


def logistic(data, truth):
    """Logistic regression on own rows: scikit-learn's, C = 1 on rows of unit variance."""
    from sklearn.linear_model import LogisticRegression

    rows, labels = data.centred.double().numpy(), data.problem.labels.numpy()
    if len(np.unique(labels)) < 2:
        return math.nan
    scale = rows[: len(labels)].std()
    fitted = LogisticRegression(max_iter=300).fit(rows[: len(labels)] / scale, labels)
    predicted = torch.from_numpy(fitted.predict(rows[len(labels) :] / scale))
    return 100 * float(balanced((predicted == truth).double(), truth))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", type=Path, nargs="?")
    parser.add_argument("--models")
    parser.add_argument("--only", default="")
    parser.add_argument("--shots", default="0,1,4,8,all")
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--read", type=Path, nargs="+")
    given = parser.parse_args()
    if given.read:
        cells = {k: v for file in given.read for k, v in json.loads(file.read_text()).items()}
        return summary(cells)
    if not (given.sets and given.models):
        parser.error("give SETS and --models, or --read")
    torch.set_num_threads(1)
    models = resolve(given.models, offline=True)
    chosen = with_coupling_for_task(models, None, LABELS, NullCache(), Meter())
    wanted = [name for name in given.only.split(",") if name]
    files = [f for f in sorted(given.sets.glob("*.npz")) if not wanted or f.stem in wanted]
    everything = {}
    for file in files:
        rows, labels, spaces = spaces_of(models, chosen.encoder, file)
        for shots in given.shots.split(","):
            runs = [one_split(rows, labels, spaces, shots, s) for s in range(given.splits)]
            columns = {
                name: [run[0][name] for run in runs if name in run[0]]
                for name in dict.fromkeys(name for run in runs for name in run[0])
            }
            everything[f"{file.stem} {shots}"] = {
                name: (statistics.fmean(values), error(values)) for name, values in columns.items()
            }
            members = {name for _, name in runs}
            shown = ("default", "plain", "best in hindsight", "recipe", "recipe says")
            shown += ("interval covers", "ece of the recipe", "logistic regression", "seconds")
            line = "  ".join(
                f"{name} {statistics.fmean(columns[name]):.1f}±{error(columns[name]):.1f}"
                for name in shown
                if name in columns
            )
            print(f"{file.stem:12} {shots:>3} shots  {line}  {sorted(members)[:4]}", flush=True)
    summary(everything)
    if given.json:
        given.json.write_text(json.dumps(everything, indent=1))


NO_METHOD = ("default", "plain", "best in hindsight", "recipe", "recipe says", "interval covers")
NO_METHOD += ("ece of the recipe", "logistic regression", "seconds")


def summary(everything):
    """A row for each set and number of shots, what they say together, and the means by shots."""
    shown = ("plain", "default", "recipe", "logistic regression", "ece of the recipe")
    shown += ("interval covers",)
    print(f"\n| set | shots | best single method | {' | '.join(shown)} |")
    print("|---" * (len(shown) + 3) + "|")
    near, held, least = [], [], math.inf
    for cell, figures in everything.items():
        name, shots = cell.rsplit(" ", 1)
        single = {method: v for method, v in figures.items() if method not in NO_METHOD}
        best = max(single, key=lambda method: single[method][0])
        columns = [f"{single[best][0]:.1f} ({single[best][1]:.1f}) {best}"]
        columns += [
            f"{figures[f][0]:.1f} ({figures[f][1]:.1f})" if f in figures else "" for f in shown
        ]
        print(f"| {name} | {shots} | {' | '.join(columns)} |")
        near.append((shots != "0", figures["recipe"][0] >= single[best][0] - single[best][1]))
        held += [figures["interval covers"][0]] if "interval covers" in figures else []
        least = min(least, figures["recipe"][0] - figures["default"][0])
    for what, kept in (("all", (True, False)), ("with labels", (True,))):
        own = [within for labelled, within in near if labelled in kept]
        count = f"{sum(own)} of {len(own)}"
        print(f"\nwithin a standard error of the best single method, {what}: {count}")
    print(f"recipe minus default, at least: {least:+.1f}")
    if held:
        print(f"intervals held in {statistics.fmean(held):.1f} % of the trials")
    for shots in dict.fromkeys(cell.rsplit(" ", 1)[1] for cell in everything):
        cells = [v for k, v in everything.items() if k.endswith(f" {shots}")]
        names = dict.fromkeys(name for cell in cells for name in cell)
        means = {n: statistics.fmean(c[n][0] for c in cells if n in c) for n in names}
        print(f"\nmean of {len(cells)} sets, {shots} shots")
        for name, value in sorted(means.items(), key=lambda item: -item[1]):
            print(f"  {name:40} {value:6.1f}")


def error(values):
    """Standard error of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


if __name__ == "__main__":
    main()
