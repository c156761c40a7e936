"""What couplings cost on a CPU: `python benchmarks/coupling.py [--largest 1600000] [--index N]`.

Beside the figures of ours stands a plain reference in the same run, and their answers are checked
to be equal. CPU-seconds of one thread, so that a busy machine changes little; the best of three.
Memory is the rise of the process's high-water mark.
"""

import argparse
import os
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy import sparse

from zeroshot.methods._anchor_matrix import AnchorMatrix
from zeroshot.methods._relative_representations import RelativeRepresentations
from zeroshot.methods.asif import ASIF
from zeroshot.methods.csa import CSA
from zeroshot.ops import normalize, topk_stream

torch.set_num_threads(1)
DIM, TEXT_DIM, QUERIES, K = 512, 384, 1000, 800


def seconds(work: Callable[[], Any], times: int = 3) -> tuple[float, Any]:
    """CPU-seconds of the fastest call, and its answer."""
    best, answer = float("inf"), None
    for _ in range(times):
        answer = None
        began = time.process_time()
        answer = work()
        best = min(best, time.process_time() - began)
    return best, answer


def memory(work: Callable[[], Any]) -> float:
    """Megabytes that a call needs beside what is there already (Linux)."""

    def told(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(x.split()[1]) for x in lines if x.startswith(field)) / 1000

    Path("/proc/self/clear_refs").write_text("5")
    before = told("VmRSS")
    answer = work()
    peak = told("VmHWM")
    del answer
    return peak - before


def rows(count: int, width: int, seed: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
    """Unit rows of no more than 64 directions and noise, as embeddings are; in blocks."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(64, width, generator=generator)
    generator = torch.Generator().manual_seed(seed)
    out = torch.empty(count, width, dtype=kind)
    for start in range(0, count, 65536):
        size = min(65536, count - start)
        block = torch.randn(size, 64, generator=generator) @ directions
        block += 4 * torch.randn(size, width, generator=generator)
        out[start : start + size] = normalize(block).to(kind)
    return out


def stages() -> None:
    """100 000 anchors, 1000 queries: both stages against the plainest way."""
    anchors, queries = rows(100_000, DIM, 1), rows(QUERIES, DIM, 2)
    other, prompts = rows(100_000, TEXT_DIM, 1), rows(QUERIES, TEXT_DIM, 3)

    def bare() -> None:
        for part in torch.split(queries, 512):
            for block in torch.split(anchors, 8192):
                part @ block.T

    def dense() -> tuple[torch.Tensor, torch.Tensor]:
        found = (queries @ anchors.T).topk(K, dim=1)
        return found.values, found.indices

    floor, _ = seconds(bare)
    plain, expected = seconds(dense, 1)
    ours, found = seconds(lambda: topk_stream(queries, anchors, K))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    same = (found[1].sort(1).values == expected[1].sort(1).values).double().mean()
    assert same > 0.9999, "other neighbours"
    extra = memory(lambda: topk_stream(queries, anchors, K))
    naive = memory(dense)
    print("\n100 000 anchors x 512, 1000 queries, k=800\n")
    print("| stage | CPU s | of the bare product | extra memory |\n|---|---|---|---|")
    print(f"| bare matrix product | {floor:.2f} | 1 | |")
    print(f"| product and topk, dense | {plain:.2f} | {plain / floor:.2f} | {naive:.0f} MB |")
    print(f"| first stage, streamed | {ours:.2f} | {ours / floor:.2f} | {extra:.0f} MB |")
    left = RelativeRepresentations(found[1].int(), found[0].clamp_min(0) ** 8.0, len(anchors))
    texts = RelativeRepresentations.from_embeddings(
        prompts, AnchorMatrix.from_embeddings(other), K, 8.0
    ).normalized()
    second, product = seconds(lambda: left.product(texts))
    full = left.dense(), texts.dense()
    plain, expected = seconds(lambda: full[0] @ full[1].T, 1)
    torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-9)
    print(f"| second stage, dense | {plain:.2f} | {plain / floor:.2f} | {100_000 * 8e-3:.0f} MB |")
    print(f"| second stage, sparse | {second:.2f} | {second / floor:.2f} | |")
    print(f"\nsecond stage / first stage: {second / ours:.2f}")
    assert isinstance(left.matrix(), sparse.csr_matrix)


def sizes(largest: int) -> None:
    """Fit, query and edit at every size; float16 from a million on."""
    print("\n100 pictures x 100 classes; edits of 20 pairs\n")
    print(
        "| anchors | coupling | fit s | query s | query MB | add 20 | remove 20 | next query s |"
        "\n|---|---|---|---|---|---|---|---|"
    )
    for count in [n for n in (1000, 10_000, 100_000, 1_000_000, 1_600_000) if n <= largest]:
        kind = torch.float16 if count >= 1_000_000 else torch.float32
        images, texts = rows(count, DIM, 1, kind), rows(count, TEXT_DIM, 1, kind)
        for coupling in (ASIF(k=min(K, count)), CSA(weighting="cosine")):
            figures = edits(coupling, images, texts)
            print(f"| {count} | {type(coupling).__name__} | {figures} |", flush=True)


def edits(coupling: Any, images: torch.Tensor, texts: torch.Tensor) -> str:
    """One row of the table; what was added and removed again must leave the scores."""
    queries, prompts = rows(100, DIM, 2), rows(100, TEXT_DIM, 3)
    more, more_texts = rows(20, DIM, 4), rows(20, TEXT_DIM, 5)
    count = len(images)
    gone = torch.from_numpy(np.random.default_rng(0).choice(count, 20, replace=False))

    def ask(fitted: Any) -> torch.Tensor:
        scores: torch.Tensor = fitted.scores(queries, prompts[:, None])
        return scores

    fit, fitted = seconds(lambda: coupling.fit(images, texts), 1)
    query, before = seconds(lambda: ask(fitted), 1)
    peak = memory(lambda: ask(fitted))
    add, added = seconds(lambda: fitted.add(more, more_texts))
    remove, removed = seconds(lambda: fitted.remove(gone))
    again, _ = seconds(lambda: ask(removed), 1)
    back = added.remove(torch.arange(count, count + 20))
    torch.testing.assert_close(ask(back), before, rtol=1e-3, atol=1e-5)
    return (
        f"{fit:.2f} | {query:.2f} | {peak:.0f} | {add * 1e3:.1f} ms | {remove * 1e3:.1f} ms "
        f"| {again:.2f}"
    )


def approximate(count: int) -> None:
    """ASIF with and without an index: 100 pictures and 100 texts that are no anchors."""
    kind = torch.float16 if count >= 1_000_000 else torch.float32
    images, texts = rows(count, DIM, 1, kind), rows(count, TEXT_DIM, 1, kind)
    queries, prompts = rows(100, DIM, 2), rows(100, TEXT_DIM, 3)
    print(f"\n{count} anchors, k={K}; 100 pictures x 100 classes, and one x one\n")
    print("| index | fit s | query s | one s | recall | same best |\n|---|---|---|---|---|---|")
    found: Any = None
    for index in ("exact", "ivf"):
        coupling = ASIF(k=K, index=index)  # type: ignore[arg-type]
        with warnings.catch_warnings(record=True):
            fit, fitted = seconds(lambda c=coupling: c.fit(images, texts), 1)
        query, scores = seconds(lambda f=fitted: f.scores(queries, prompts[:, None]), 1)
        one, _ = seconds(lambda f=fitted: f.scores(queries[:1], prompts[:1, None]))
        sides = fitted.relative_images(queries).index, fitted.relative_texts(prompts).index
        if found is None:
            found = sides, scores.argmax(1)
        recalls = [
            np.mean([np.isin(a, b).mean() for a, b in zip(true, side, strict=True)])
            for true, side in zip(found[0], sides, strict=True)
        ]
        same = (scores.argmax(1) == found[1]).double().mean()
        told = " and ".join(f"{recall:.3f}" for recall in recalls)
        print(
            f"| {index} | {fit:.2f} | {query:.2f} | {one:.3f} | {told} | {same:.2f} |", flush=True
        )
        if index == "ivf":
            said = fitted.image_index_.recall, fitted.text_index_.recall
            print(f"\nas measured on anchors: {said[0]:.3f} and {said[1]:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=1_000_000)
    parser.add_argument("--index", type=int, help="only this: so many anchors, with an index")
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {platform.machine()}, one thread")
    if given.index:
        return approximate(given.index)
    stages()
    sizes(given.largest)


if __name__ == "__main__":
    main()
