"""Captions of pictures held out from a set's own anchors: what settings may be chosen by.

    python benchmarks/caption_folds.py SET --method mbr@auto:beginnings=12 --method mbr
    python benchmarks/caption_folds.py SET --only '^\\d{12}' --seed 1 --method consensus

The anchors whose ids match `--only` are dealt into folds. Of each fold the captions are asked for
while all other anchors couple the encoders and fill the pool; the coupling is the one that captions
of the set use, chosen once on all anchors. Behind @auto stands that coupling without the image
encoder's classifier. CIDEr is that of each fold by itself, whose mean over all pictures is printed
with its standard error, and the difference from the first method with its own, picture by picture.
CPU-seconds are those of captions alone, without the coupling and the pool.
"""

import argparse
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from zeroshot import methods
from zeroshot.methods import Pool
from zeroshot.metrics.captioning import cider
from zeroshot.model_set.coupled_encoder import CoupledEncoder, calibrate, with_classifier_head
from zeroshot.model_set.model_set import ModelSet, resolve

AT_ONCE = 8


@dataclass(frozen=True)
class Fold:
    """Anchors to caption, and all that is known without them."""

    held: np.ndarray
    encoder: CoupledEncoder
    pool: Pool


def folds(
    models: ModelSet, named: bool, chosen: np.ndarray, count: int, rows: torch.Tensor
) -> Iterator[Fold]:
    """Fold by fold; `rows` are those of all captions, one after the other.

    `named`: with the image encoder's own classifier, if it fits.
    """
    coupled, anchors = models.coupled, models.anchors
    texts = [text for entry in anchors.entries for text in entry.captions]
    owner = np.repeat(np.arange(len(anchors)), [len(e.captions) for e in anchors.entries])
    for held in np.array_split(chosen, count):
        held = np.sort(held)
        rest = torch.from_numpy(np.setdiff1d(np.arange(len(anchors)), held))
        pairs = anchors.images[rest], anchors.texts[rest]
        coupling = models.coupling.fit(*pairs)
        if named:
            read = coupled.text_encoder.encode_texts
            coupling = with_classifier_head(coupling, coupled.image_encoder, read, *pairs)
        encoder = CoupledEncoder(
            coupled.image_encoder,
            coupled.text_encoder,
            coupling,
            calibrate(coupling, *pairs),
            anchors.fingerprint,
        )
        kept = np.flatnonzero(~np.isin(owner, held))
        pool = Pool([texts[i] for i in kept], encoder.project_texts(rows[kept]))
        yield Fold(held, encoder, pool)


def measure(
    models: ModelSet, name: str, given: dict[str, str], dealt: list[Fold]
) -> tuple[np.ndarray, float]:
    """CIDEr of each picture, and CPU-seconds for one."""
    method, anchors = methods.configure(name, given), models.anchors
    each, seconds = [], 0.0
    for fold in dealt:
        images = fold.encoder.project_images(anchors.images[fold.held])
        began = time.process_time()
        said = [
            caption.text
            for part in images.split(AT_ONCE)
            for caption in method.caption(
                part, fold.encoder, language_model=models.language_model, pool=fold.pool
            )
        ]
        seconds += time.process_time() - began
        each.append(cider(said, [anchors.entries[i].captions for i in fold.held]).each)
    every = np.concatenate(each)
    return every, seconds / len(every)


def spread(values: np.ndarray) -> str:
    """A mean and its standard error."""
    return f"{values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"


def main() -> None:
    """Deal, caption, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", metavar="SET", help="a model set with anchors and captions")
    parser.add_argument("--only", default="", help="regular expression of ids to hold out")
    parser.add_argument("--most", type=int, default=1_000_000, help="anchors held out in all")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the deal")
    parser.add_argument(
        "--method", action="append", help="NAME or NAME@auto, :KEY=VALUE,...; again for another"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    plain = resolve(options.models, device="cpu")
    models = plain.with_coupling("auto", splits=1)
    entries = plain.anchors.entries
    matching = [i for i, entry in enumerate(entries) if re.search(options.only, entry.id)]
    if len(matching) < 2 * options.folds:
        sys.exit(f"{len(matching)} anchors match '{options.only}': too few for the folds")
    chosen = np.random.default_rng(options.seed).permutation(matching)[: options.most]
    texts = [text for entry in entries for text in entry.captions]
    rows = models.coupled.text_encoder.encode_texts(texts)
    dealt: dict[str, list[Fold]] = {}
    first = None
    print("| method | CIDEr | over the first | CPU-s a picture | pictures |\n|---|---|---|---|---|")
    for asked in options.method or ["mbr"]:
        what, _, pairs = asked.partition(":")
        name, _, coupling = what.partition("@")
        if coupling not in ("", "auto"):
            sys.exit(f"@{coupling}: expected @auto, or nothing for auto with the classifier")
        if coupling not in dealt:
            dealt[coupling] = list(folds(models, not coupling, chosen, options.folds, rows))
        given = dict(pair.split("=") for pair in pairs.split(",") if pair)
        each, seconds = measure(models, name, given, dealt[coupling])
        first = each if first is None else first
        over = "" if first is each else spread(each - first)
        print(f"| {asked} | {spread(each)} | {over} | {seconds:.2f} | {len(each)} |", flush=True)


if __name__ == "__main__":
    main()
