"""The table of docs/couplings.md: `python tools/couplings_table.py SET [--only auto]`.

SET is a model set with anchors. For each random split 200 pairs are set aside, every coupling is
fitted to the others (`auto` chooses by these alone), and the held-out pictures look for their
own text among the held-out texts, by cosine in the joint space.
"""

import argparse
import time

import torch

from zeroshot.methods import configure
from zeroshot.model_set.model_set import resolve

HELD_OUT = 200
COUPLINGS = [
    ("asif", {}),
    ("asif", {"k": 100, "p": 2}),
    ("asif", {"k": 50, "p": 2, "center": True}),
    ("asif", {"k": 400, "p": 2, "center": True}),
    ("relative", {}),
    ("relative", {"center": True}),
    ("procrustes", {}),
    ("procrustes", {"variant": "procrustes"}),
    ("procrustes", {"variant": "linear"}),
    ("ridge_cca", {}),
    ("ridge_cca", {"lam": 0.003}),
    ("ridge_cca", {"lam": 0.008}),
    ("csa", {"lam": 0, "ridge": 1e-6}),
    ("csa", {}),
    ("csa", {"lam": 3}),
    ("csa", {"lam": 3, "weighting": "cosine"}),
    ("csa", {"lam": 3, "weighting": "cosine", "s": 128}),
    ("csa_asif", {}),
    ("csa_asif", {"k": 400, "p": 2}),
    ("auto", {}),
]


def recalls(similarity: torch.Tensor) -> tuple[float, float]:
    """R@1 and R@5 of row i finding column i; equals count against it."""
    rank = (similarity >= similarity.diagonal()[:, None]).sum(1)
    return float((rank <= 1).double().mean()), float((rank <= 5).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set")
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--only", help="one coupling, by its name")
    given = parser.parse_args()
    couplings = [c for c in COUPLINGS if given.only in (None, c[0])]
    anchors = resolve(given.set).anchors
    found: dict[str, list[tuple[float, float]]] = {}
    seconds: dict[str, float] = {}
    for seed in range(given.splits):
        generator = torch.Generator().manual_seed(1000 + seed)
        order = torch.randperm(len(anchors.images), generator=generator)
        test, train = order[:HELD_OUT], order[HELD_OUT:]
        for name, options in couplings:
            began = time.process_time()
            fitted = configure(name, options).fit(anchors.images[train], anchors.texts[train])
            similarity = fitted.cosines(anchors.images[test], anchors.texts[test][:, None])
            said = " ".join(f"{k}={v}" for k, v in options.items())
            key = f"{name} | {said or 'defaults'}"
            found.setdefault(key, []).append(recalls(similarity))
            seconds[key] = seconds.get(key, 0.0) + time.process_time() - began
            if name == "auto":
                print(f"split {seed}: {fitted.coupling_!r}", flush=True)
    print(f"{len(anchors.images) - HELD_OUT} anchors, {HELD_OUT} held out, {given.splits} splits")
    print("| coupling | options | R@1 | R@5 | CPU s |\n|---|---|---|---|---|")
    for key, rows in found.items():
        mean, spread = torch.tensor(rows).mean(0), torch.tensor(rows).std(0)
        cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(mean, spread, strict=True)]
        print(f"| {key} | {' | '.join(cells)} | {seconds[key] / given.splits:.2f} |")


if __name__ == "__main__":
    main()
