"""Words of `explain` against captions: `python benchmarks/explain.py PHOTOS --models MODELS`.

PHOTOS is a folder of photographs with `captions.jsonl`. `hits` is the share of the five first words
that occur in an image's captions (or in the plural); `alike` is the mean cosine of two of the five
words, centred, and `whole` the cosine of an image with the best non-negative sum of the five. Rows:
`splice`, as `explain` gives it; the five words with the largest cosine, centred in the same way or
not; five words by chance.

--recorded FILE, an .npz with `images`, `texts` and `image_of_text`, has captions in place of words.
Means come from the first half of its images. Of those of the second half, `own` is the share of the
weight that an image's own captions have among all captions, `first` the share of images whose first
caption is an own one, and `words` the number of captions with a weight.
"""

import argparse
import itertools
import json
import os
import re
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

import zeroshot
from zeroshot.cache.embedding_cache import NullCache
from zeroshot.inference.coupled_models import LABELS, with_coupling_for_task
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
from zeroshot.methods.splice import SpLiCE, lasso
from zeroshot.model_set.model_set import resolve
from zeroshot.ops import normalize
from zeroshot.prompts import common_words
from zeroshot.tasks.classification.none_of_these import WORD

FIRST = 5


def said(captions: list[str]) -> set[str]:
    """The words of captions, each also in the singular."""
    found = set(re.findall("[a-z]+", " ".join(captions).lower()))
    more = {w.removesuffix(s) for w in found for s in ("s", "es")}
    return found | more | {w.removesuffix("ies") + "y" for w in found if w.endswith("ies")}


def photographs(folder: Path, models: str) -> None:
    """The first table."""
    lines = map(json.loads, (folder / "captions.jsonl").read_text("utf-8").splitlines())
    images = {folder / line["file"]: said(line["captions"]) for line in lines}
    words, cache, meter = common_words(), NullCache(), Meter()
    models_ = with_coupling_for_task(resolve(models), None, LABELS, cache, meter)
    encoder = models_.encoder
    sources = [Source(str(path)) for path in images]
    encoded = embed_all(sources, image_encoder_of(encoder), cache, meter)
    rows = project_images(encoder, encoded).double()
    prompts = [WORD.format(word) for word in words]
    texts = project_texts(encoder, embed_texts(prompts, text_encoder_of(encoder), cache, meter))
    texts = texts.double()
    dictionary = SpLiCE().fit(texts).words_
    assert dictionary is not None
    centred = normalize(rows - rows.mean(0))
    place = {word: i for i, word in enumerate(words)}
    explained = zeroshot.explain(list(images), models_, top_k=FIRST, cache=False)
    chance = torch.stack([torch.randperm(len(words))[:FIRST] for _ in images])
    kinds = {
        "splice": [[place[x.word] for x in result.words] for result in explained],
        "largest cosine, centred": (centred @ dictionary.T).topk(FIRST).indices.tolist(),
        "largest cosine": (rows @ texts.T).topk(FIRST).indices.tolist(),
        "chance": chance.tolist(),
    }
    print(f"{len(images)} images, {len(words)} words")
    print("| words | hits | ± | alike | whole |\n|---|---|---|---|---|")
    for name, index in kinds.items():
        hits, alike, whole = [], [], []
        for row, truth, own in zip(centred, images.values(), index, strict=True):
            hits.append(sum(words[i] in truth for i in own) / max(1, len(own)))
            pairs = itertools.combinations(own, 2)
            alike += [float(dictionary[a] @ dictionary[b]) for a, b in pairs]
            weights = lasso(row[None], dictionary[own], 1e-6)
            whole.append(float((normalize(weights @ dictionary[own]) @ row)[0]))
        error = np.std(hits, ddof=1) / len(hits) ** 0.5
        numbers = (np.mean(hits), error, np.mean(alike), np.mean(whole))
        print(f"| {name} | " + " | ".join(f"{x:.3f}" for x in numbers) + " |")
    start = time.perf_counter()
    SpLiCE().fit(texts).decompose(rows, rows.mean(0))
    print(f"{1000 * (time.perf_counter() - start) / len(rows):.0f} ms an image, d {rows.shape[1]}")
    counts = [result.nonzero for result in explained]
    cosine = np.mean([result.cosine for result in explained])
    print(f"all words of splice: {np.mean(counts):.1f} an image, cosine {cosine:.3f}")


def recorded(file: Path) -> None:
    """The second table."""
    with np.load(file) as arrays:
        rows_of = {name: torch.from_numpy(arrays[name]).double() for name in ("images", "texts")}
        owner = torch.from_numpy(arrays["image_of_text"].astype(np.int64))
    images, texts = map(normalize, rows_of.values())
    half = len(images) // 2
    own = owner[None] == torch.arange(half, len(images))[:, None]
    rows, method = images[half:], SpLiCE().fit(texts)
    means: dict[str, Tensor] = {
        "the mean of other images": images[:half].mean(0),
        "their own mean": rows.mean(0),
        "nothing": torch.zeros(images.shape[1], dtype=torch.float64),
        "the mean of the captions": texts.mean(0),
    }
    print(f"\n{half} images, {len(texts)} captions")
    print("| subtracted | own | first | words | cosine |\n|---|---|---|---|---|")
    for name, mean in means.items():
        weights = method.decompose(rows, mean)
        share = (weights * own).sum(1) / weights.sum(1).clamp_min(1e-9)
        first = own.gather(1, weights.argmax(1, keepdim=True)).double()
        count, cosine = (weights > 0).sum(1).double(), method.cosines(weights, rows, mean)
        numbers = (share, first, cosine)
        a, b, c = (float(x.mean()) for x in numbers)
        print(f"| {name} | {a:.3f} | {b:.3f} | {float(count.mean()):.1f} | {c:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="?")
    parser.add_argument("--models", default="pocket")
    parser.add_argument("--recorded", type=Path)
    given: Any = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    if given.photos is not None:
        photographs(given.photos, given.models)
    if given.recorded is not None:
        recorded(given.recorded)


if __name__ == "__main__":
    main()
