"""Search among images and captions, and composed search: `python benchmarks/mixed_search.py FILE`.

FILE is an .npz with unit rows `images [n d]`, `texts [m d]` and `image_of_text [m]`. In each split
half of the images is left to give the means. Of the others half is searched as images, half by one
caption each, and the query is another caption; recall at 1. Without FILE only the second table.

Composed search is measured on drawn scenes with the pocket set: two pictures of each colour, shape
and background. A query is a third picture, and words for another background or another colour;
right are the two pictures of the same thing there. Mean average precision in %, and its error.
"""

import argparse
import itertools
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tools" / "pocket"))

import numpy as np
import torch
from torch import Tensor
from world import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing, render

from zeroshot.model_set.model_set import resolve
from zeroshot.ops import normalize
from zeroshot.ranking.composed import product_scores
from zeroshot.ranking.modality_means import ModalityMeans, QueryTerms

torch.set_num_threads(1)
Figures = dict[str, list[float]]


def mixed(path: Path, splits: int) -> Figures:
    """Recall at 1 of all queries, of those with an image and of those with a caption to find."""
    with np.load(path) as file:
        images, texts = (normalize(torch.from_numpy(file[n]).float()) for n in ("images", "texts"))
        owner = torch.from_numpy(file["image_of_text"].astype(np.int64))
    found: Figures = {}
    generator = torch.Generator().manual_seed(0)
    for _ in range(splits):
        order = torch.randperm(len(images), generator=generator)
        others, searched = order.tensor_split(2)
        own = [(owner == i).nonzero()[:, 0] for i in searched.tolist()]
        pairs = torch.stack([o[torch.randperm(len(o), generator=generator)[:2]] for o in own])
        weight = (torch.arange(len(searched)) % 2).float()  # 1: by its caption
        elsewhere = texts[torch.isin(owner, others)]
        means = ModalityMeans(images[others].mean(0), elsewhere.mean(0))
        none = torch.zeros_like(means.images)
        queries = texts[pairs[:, 1]]
        count = torch.tensor([[0.0, 1.0]]).expand(len(queries), 2)
        terms = QueryTerms(torch.zeros_like(queries), queries, count)
        for name, m in (("plain", ModalityMeans(none, none)), ("centred", means)):
            rows = m.rows(images[searched], texts[pairs[:, 0]], weight)
            hits = (normalize(terms.centred(m).total) @ rows.T).argmax(1)
            right = hits == torch.arange(len(hits))
            for kind, which in (("all", weight >= 0), ("image", weight == 0), ("text", weight > 0)):
                found.setdefault(f"{name}, {kind}", []).append(float(right[which].double().mean()))
    return found


def pictures(seed: int, encoder: Any) -> Tensor:
    """Embeddings of one picture of everything."""
    images = []
    for number, (colour, shape, ground) in enumerate(everything()):
        scene = Scene((Thing("large", colour, shape),), "", ground)
        images.append(render(np.random.default_rng([seed, number]), scene, side=64).image)
    parts = [encoder.encode_images(images[i : i + 64]) for i in range(0, len(images), 64)]
    return torch.cat(parts)


def everything() -> list[tuple[str, str, str]]:
    """Colour, shape and background."""
    return list(itertools.product(COLOURS, SHAPES, BACKGROUNDS))


def composed(count: int) -> dict[str, Figures]:
    """Average precision by what is changed and how the query is composed."""
    encoder, shown = resolve("pocket").encoder, everything()
    gallery, asked = torch.cat([pictures(s, encoder) for s in (0, 1)]), pictures(2, encoder)
    mean_image, styles = gallery.mean(0), [f"a {b} background" for b in BACKGROUNDS]
    things = encoder.encode_texts([f"a {c} {s}" for c in COLOURS for s in SHAPES])
    projector = projected(things, encoder.encode_texts(styles))
    words = {b: encoder.encode_texts([f"a {b} background"])[0] for b in BACKGROUNDS}
    words |= {c: encoder.encode_texts([f"a {c} thing"])[0] for c in COLOURS}
    rng, found = np.random.default_rng(0), dict[str, Figures]()
    for place, names in ((2, BACKGROUNDS), (0, tuple(COLOURS))):
        figures = found.setdefault("colour" if place == 0 else "background", {})
        for _ in range(count):
            number = int(rng.integers(len(shown)))
            wanted = list(shown[number])
            old, wanted[place] = wanted[place], str(rng.choice(names))
            if old == wanted[place]:
                continue
            right = torch.tensor([one == tuple(wanted) for one in shown * 2])
            i, t = gallery @ asked[number], gallery @ words[wanted[place]]
            without = gallery @ words[old]
            centred = gallery - mean_image
            near = centred @ (projector @ (asked[number] - mean_image))
            said = centred @ (words[wanted[place]] - things.mean(0))
            near, said = ((x - x.min()) / (x.max() - x.min()) for x in (near, said))
            basic = said * near - 0.1 * (said + near) ** 2
            scores = {
                "image alone": i,
                "words alone": t,
                "sum": i + t,
                "sum, minus the old": i + t - without,
                "product": product_scores(i[None], t[None])[0],
                "product, minus the old": product_scores(i[None], (t - without)[None])[0],
                "BASIC, no expansion": basic,
                "product as published": product_scores(i[None], t[None], zero=True)[0],
            }
            for name, values in scores.items():
                figures.setdefault(name, []).append(precision(values, right))
    return found


def projected(things: Tensor, styles: Tensor, components: int = 20) -> Tensor:
    """BASIC's projector: what varies among things, without what varies among styles."""
    a, b = (rows - things.mean(0) for rows in (things, styles))
    c = 0.8 * a.T @ a / (len(a) - 1) - 0.2 * b.T @ b / (len(b) - 1)
    values, vectors = torch.linalg.eigh(c)
    kept = vectors[:, -components:][:, values[-components:] > 0]
    return kept @ kept.T


def precision(scores: Tensor, right: Tensor) -> float:
    """Average precision in %."""
    found = right[scores.argsort(descending=True, stable=True)].double()
    at = found.cumsum(0) / torch.arange(1, len(found) + 1)
    return 100 * float((at * found).sum() / found.sum())


def table(title: str, figures: Figures, digits: int) -> None:
    """Means and their errors."""
    print(f"\n| {title} | mean | ± |\n|---|---|---|")
    for name, values in figures.items():
        error = np.std(values, ddof=1) / len(values) ** 0.5
        print(f"| {name} | {np.mean(values):.{digits}f} | {error:.{digits}f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--splits", type=int, default=40)
    parser.add_argument("--queries", type=int, default=200)
    given: Any = parser.parse_args()
    if given.file is not None:
        table("images and captions, recall at 1", mixed(given.file, given.splits), 3)
    for changed, figures in composed(given.queries).items():
        table(f"another {changed}, mAP in %", figures, 1)


if __name__ == "__main__":
    main()
