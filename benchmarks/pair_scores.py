"""Wrong captions by scores of pairs: `python benchmarks/pair_scores.py FILE --captions TABLE
--models MODELS`.

FILE is an .npz with unit rows `images [n d]`, `texts [m d]` and `image_of_text [m]`. In each draw
half of the images have a caption of their own, a quarter one of the remaining images: of the one
most like them, or of any. AUROC of right against wrong captions, and its error.

TABLE is a .jsonl of `file` and `captions` beside the images. In each caption one noun is exchanged.
AUROC of right against wrong captions, how often the right one of an image scores more, and how
often the noun with the lowest cosine is the exchanged one.
"""

import argparse
import json
import os
import random
import re
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from zeroshot import metrics
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inference.coupled_models import SENTENCES, with_coupling_for_task
from zeroshot.inference.embedding import (
    embed_all,
    embed_texts,
    image_encoder_of,
    project_images,
    project_texts,
    text_encoder_of,
)
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import resolve
from zeroshot.ops import normalize
from zeroshot.prompts import nouns_of
from zeroshot.ranking.pair_scores import fclip, negclip

torch.set_num_threads(1)
NOUNS = re.findall(
    r"\w+",
    "dog cat horse train bus car pizza cake bear elephant zebra giraffe boat umbrella skateboard "
    "surfboard bed chair toilet laptop phone clock tree flower boy woman man bird cow sheep bench "
    "kitchen table street plane",
)


def auroc(right: list[float], wrong: list[float]) -> float:
    """Of the right ones."""
    return float(metrics.auroc(np.array(right + wrong), np.arange(len(right + wrong)) < len(right)))


def pairs(path: Path, draws: int) -> None:
    """Scores that look at one pair, and at all of them."""
    with np.load(path) as file:
        images, texts = (normalize(torch.from_numpy(file[n]).float()) for n in ("images", "texts"))
        owner = torch.from_numpy(file["image_of_text"].astype(np.int64))
    generator = torch.Generator().manual_seed(0)

    def caption(image: int) -> int:
        own = (owner == image).nonzero()[:, 0]
        return int(own[torch.randint(len(own), (1,), generator=generator)])

    print("| wrong captions | cosine | centred cosine | negclip |\n|---|---|---|---|")
    for alike in (True, False):
        rows = []
        for _ in range(draws):
            order = torch.randperm(len(images), generator=generator)
            right, wrong, rest = order.tensor_split([len(order) // 2, 3 * len(order) // 4])
            places = torch.randint(len(rest), (len(wrong),), generator=generator)
            if alike:
                places = (images[wrong] @ images[rest].T).argmax(1)
            said = [caption(int(i)) for i in torch.cat([right, rest[places]])]
            v, t = images[torch.cat([right, wrong])], texts[torch.tensor(said)]
            around = normalize(v - v.mean(0)), normalize(t - t.mean(0))
            cosines = (v * t).sum(1), (around[0] * around[1]).sum(1)
            every = [*cosines, negclip(v, t, torch.arange(len(v)), 0.01)]
            rows.append([auroc(s[: len(right)].tolist(), s[len(right) :].tolist()) for s in every])
        error = np.std(rows, 0, ddof=1) / draws**0.5
        found = zip(np.mean(rows, 0), error, strict=True)
        cells = " | ".join(f"{mean:.3f} ± {e:.3f}" for mean, e in found)
        print(f"| {'of the most alike image' if alike else 'of any image'} | {cells} |")


def nouns(table: Path, name: str) -> None:
    """The mean with nouns, and the noun that it names."""
    cache, meter, rng = EmbeddingCache(), Meter(), random.Random(0)
    encoder: Any = with_coupling_for_task(resolve(name), None, SENTENCES, cache, meter).encoder
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    sources = [Source(str(table.parent / row["file"])) for row in rows]
    images = project_images(encoder, embed_all(sources, image_encoder_of(encoder), cache, meter))
    changed = []
    for i, row in enumerate(rows):
        for text in map(str.lower, row["captions"]):
            own = nouns_of(text)
            if len(own) > 1:
                old, new = rng.choice(own), rng.choice(NOUNS)
                wrong = re.sub(rf"\b{old}\b", new, text)
                changed.append((i, text, own, wrong, [new if n == old else n for n in own], new))
    known = sorted({t for _, a, b, c, d, _ in changed for t in (a, c, *b, *d)})
    encoded = embed_texts(known, text_encoder_of(encoder), cache, meter)
    vectors = dict(zip(known, project_texts(encoder, encoded), strict=True))

    def score(image: Tensor, text: str, own: Any) -> tuple[float, float, int]:
        cosines = torch.stack([vectors[n] for n in own]) @ image
        cosine, every = vectors[text] @ image, torch.ones(len(own), dtype=torch.bool)
        return float(cosine), float(fclip(cosine, cosines, every)), int(cosines.argmin())

    right = [score(images[i], text, own) for i, text, own, *_ in changed]
    wrong = [score(images[i], text, own) for i, *_, text, own, _ in changed]
    print(f"\n{len(changed)} captions\n\n| score | AUROC | right above wrong |\n|---|---|---|")
    for column, label in enumerate(("cosine", "fclip")):
        a, b = ([s[column] for s in scores] for scores in (right, wrong))
        above = np.mean([x > y for x, y in zip(a, b, strict=True)])
        print(f"| {label} | {auroc(a, b):.3f} | {above:.3f} |")
    found = [own[s[2]] == new for s, (*_, own, new) in zip(wrong, changed, strict=True)]
    chance = np.mean([1 / len(own) for *_, own, _ in changed])
    print(
        f"\nthe noun that is named is the wrong one: {np.mean(found):.3f}, by chance {chance:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--captions", type=Path, help="a .jsonl of file and captions")
    parser.add_argument("--models", default="base")
    given: Any = parser.parse_args()
    pairs(given.file, given.draws)
    if given.captions is not None:
        nouns(given.captions, given.models)


if __name__ == "__main__":
    main()
