"""Is a search among synonyms and descriptions worth the labels that it takes?

    python benchmarks/prompts.py SETS --models MODELS.toml --prompts FOLDER [--shots 2,4,8,all]
                                 [--splits 10]

SETS as in benchmarks/tune.py, with `classnames`; FOLDER has a NAME.json of prompts by class for
each set to measure: synonyms and descriptions, as `--templates` takes them. The prompts are
searched on one half and measured on the other. Balanced accuracies of plain zero-shot in percent,
by the prompts: the default, all given ones, the best given set by the same labels, the searched
ones; then of the default for labelled images with the default and with the searched prompts.
Standard errors over the splits.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from tune import accuracy, error

from zeroshot.cache.embedding_cache import NullCache
from zeroshot.inference.coupled_models import LABELS, with_coupling_for_task
from zeroshot.inference.embedding import embed_texts, project_images, project_texts, text_encoder_of
from zeroshot.inference.meter import Meter
from zeroshot.model_set.model_set import resolve
from zeroshot.ops import normalize
from zeroshot.prompts import load_templates
from zeroshot.tasks.tuning.prompt_columns import PromptColumns
from zeroshot.tuning.folds import stratified_folds
from zeroshot.tuning.grid import DEFAULT_OF_SHOTS, PLAIN
from zeroshot.tuning.problem import SEARCHED, JointRows, PromptRows, TunedMethod, TuningProblem

SETS = ("simple", "openai", "none")


def space_of(encoder, images, names, file):
    """Joint rows with each set of prompts, and with the pool of all of them."""
    given = {name: load_templates(name, names) for name in (*SETS, str(file))}
    columns = PromptColumns.of(names, given)
    flat = list(dict.fromkeys(text for row in columns.texts for text in row if text))
    rows = embed_texts(flat, text_encoder_of(encoder), NullCache(), Meter())
    pool = columns.pool(dict(zip(flat, project_texts(encoder, rows), strict=True)))
    masks = {**dict(zip(given, pool.starts, strict=True)), "all": pool.mask}
    prompts = {name: PromptRows(pool.texts, mask) for name, mask in masks.items()}
    return JointRows(None, images, prompts, encoder.logit_scale, pool), columns


def one_split(space, rows, labels, shots, split):
    generator = torch.Generator().manual_seed(split)
    half = stratified_folds(labels, 2, generator)
    a, b = ((half == side).nonzero()[:, 0] for side in (0, 1))
    if shots != "all":
        a = torch.cat(
            [
                own[torch.randperm(len(own), generator=generator)[: int(shots)]]
                for own in (a[labels[a] == label] for label in labels.unique().tolist())
            ]
        )
    order = torch.cat([a, b])
    moved = JointRows(
        None, space.images[order], space.prompts, space.logit_scale, space.pool
    )  # fmt: skip
    problem = TuningProblem(labels[a], [moved], rows[order])
    train, test = torch.arange(len(a)), torch.arange(len(a), len(order))

    def reached(method, templates, at=test, truth=labels[b]):
        return accuracy(problem.logits(TunedMethod(method, {}, None, templates), train, at), truth)

    own = {name: reached(PLAIN, name, train, labels[a]) for name in space.prompts}
    begin = time.process_time()
    chosen = problem.searched(train)
    seconds = time.process_time() - begin
    return {
        "default prompts": reached(PLAIN, "simple"),
        "all prompts": reached(PLAIN, "all"),
        "best set": reached(PLAIN, max(own, key=own.__getitem__)),
        "searched": reached(PLAIN, SEARCHED),
        "evidence": reached(DEFAULT_OF_SHOTS, "simple"),
        "evidence, searched": reached(DEFAULT_OF_SHOTS, SEARCHED),
        "prompts a class": float(chosen.sum(1).double().mean()),
        "seconds": seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", type=Path)
    parser.add_argument("--models", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--shots", default="2,4,8,all")
    parser.add_argument("--splits", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    models = resolve(given.models, offline=True)
    encoder = with_coupling_for_task(models, None, LABELS, NullCache(), Meter()).encoder
    means = {}
    for file in sorted(given.prompts.glob("*.json")):
        arrays = np.load(given.sets / f"{file.stem}.npz", allow_pickle=False)
        rows = normalize(torch.from_numpy(arrays["images"]).float())
        labels = torch.from_numpy(arrays["labels"]).long()
        names = [str(name) for name in arrays["classnames"]]
        space, _ = space_of(encoder, project_images(encoder, rows), names, file)
        for shots in given.shots.split(","):
            runs = [one_split(space, rows, labels, shots, s) for s in range(given.splits)]
            columns = {name: [run[name] for run in runs] for name in runs[0]}
            line = "  ".join(
                f"{n} {statistics.fmean(own):.1f}+-{error(own):.1f}" for n, own in columns.items()
            )
            print(f"{file.stem:12} {shots:>3} shots  {line}", flush=True)
            for name, own in columns.items():
                means.setdefault((shots, name), []).append(statistics.fmean(own))
    for (shots, name), own in means.items():
        print(f"mean of {len(own)} sets, {shots} shots: {name:20} {statistics.fmean(own):.1f}")


if __name__ == "__main__":
    main()
