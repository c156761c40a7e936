"""What re-ranking does to retrieval on recorded embeddings: `python benchmarks/rerank.py FILE.npz`.

The file holds `images [n d]`, `texts [m d]` and `image_of_text [m]`. Recall at 1 in %, image to
text (any of a picture's captions counts) and text to image. Two banks: the queries that are scored
themselves, and queries about other pictures. For the second the pictures are split in halves, ten
times at random: one half is the gallery with its queries, the other half gives the bank. A bank
that described the rest of the gallery would hold down wrong answers only, and flatter every method.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from zeroshot.methods.csls import csls
from zeroshot.methods.dis import dis
from zeroshot.methods.inverted_softmax import inverted_softmax
from zeroshot.methods.nnn import nnn
from zeroshot.ops import normalize

Rerank = Callable[[Tensor, Tensor, Tensor], Tensor]


def centred(queries: Tensor, gallery: Tensor, bank: Tensor) -> Tensor:
    """Both sides less a quarter of their mean, as `dn` does."""
    shifted = normalize(queries - 0.25 * bank.mean(0))
    return shifted @ normalize(gallery - 0.25 * gallery.mean(0)).T


METHODS: dict[str, Rerank] = {
    "plain": lambda q, g, b: q @ g.T,
    "dis": lambda q, g, b: dis(q @ g.T, b @ g.T),
    "nnn": lambda q, g, b: nnn(q @ g.T, b @ g.T),
    "csls": lambda q, g, b: csls(q @ g.T, b @ g.T),
    "inverted_softmax": lambda q, g, b: inverted_softmax(q @ g.T, b @ g.T),
    "dn": centred,
}


def recall(scores: Tensor, query_of: Tensor, gallery_of: Tensor) -> float:
    """Share of the queries whose best item belongs to the same picture."""
    return 100 * float((gallery_of[scores.argmax(1)] == query_of).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    with np.load(parser.parse_args().file) as held:
        images, texts = (normalize(torch.from_numpy(held[k]).double()) for k in ("images", "texts"))
        owner = torch.from_numpy(held["image_of_text"]).long()
    places = torch.arange(len(images))
    splits = [
        torch.randperm(len(images), generator=torch.Generator().manual_seed(s)) for s in range(10)
    ]
    half = len(images) // 2
    halves = [part for s in splits for part in ((s[:half], s[half:]), (s[half:], s[:half]))]
    columns = ["i2t, own queries", "t2i, own queries", "i2t, other bank", "t2i, other bank"]
    print("| method | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, rerank in METHODS.items():
        found = [
            recall(rerank(images, texts, images), places, owner),
            recall(rerank(texts, images, texts), owner, places),
        ]
        apart: list[list[float]] = [[], []]
        for inside, outside in halves:
            mine, theirs = (torch.isin(owner, part) for part in (inside, outside))
            scores = rerank(images[inside], texts[mine], images[outside])
            apart[0].append(recall(scores, inside, owner[mine]))
            scores = rerank(texts[mine], images[inside], texts[theirs])
            apart[1].append(recall(scores, owner[mine], inside))
        found += [sum(values) / len(values) for values in apart]
        print(f"| {name} | " + " | ".join(f"{x:.1f}" for x in found) + " |")


if __name__ == "__main__":
    main()
