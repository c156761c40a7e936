"""Is the recipe of `zeroshot tune --queries`, or of `--captions`, worth what it says?

    python benchmarks/tune_pairs.py search SET IMAGES PAIRS [--splits 10]
    python benchmarks/tune_pairs.py search ARRAYS.npz [--splits 10]
    python benchmarks/tune_pairs.py caption SET IMAGES PAIRS [--splits 10] [--budget SECONDS]

SET is a model set; IMAGES a folder, PAIRS its images with queries or captions, as `eval` reads
them. ARRAYS has `images`, `texts` and `image_of_text` of a dual encoder. The items are cut in half,
the recipe is chosen on one half and measured on the other: mean reciprocal rank among the images of
that half (with the queries of the first half as the bank), or CIDEr; times 100, with standard
errors over the splits. The same for the default and for each candidate.
"""

import argparse
import math
import statistics
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from zeroshot.cache.embedding_cache import open_cache
from zeroshot.inference.meter import Meter
from zeroshot.methods.auto import OPERATIONS
from zeroshot.metrics.captioning import cider, document_frequency
from zeroshot.model_set.model_set import resolve
from zeroshot.ops import normalize
from zeroshot.ranking.exact import Gallery, correction, search as rank
from zeroshot.tasks.tuning.caption_items import CaptionItems
from zeroshot.tasks.tuning.search_items import DEPTH, SearchItems
from zeroshot.tasks.tuning.tune_pairs import read_items
from zeroshot.tasks.tuning.tuning_data import PairModels
from zeroshot.tuning.folds import stratified_folds
from zeroshot.tuning.outcomes import OutcomeCandidate, choose_by_outcomes


class SearchHalves:
    """Parts of `SearchItems` by items."""

    largest = 1.0

    def __init__(self, items):
        self.items = items
        self.tuned = items.tuned
        self.count = items.count

    def part(self, rows):
        """The items `rows` with their images; joint rows are those of all."""
        everything = self.items
        query = torch.isin(everything.item_of_query, rows).nonzero()[:, 0]
        pairs = everything.pairs[torch.isin(everything.pairs[:, 0], query)]
        image = pairs[:, 1].unique()
        part = SearchItems(
            everything.known,
            everything.rows[image],
            [everything.queries[q] for q in query.tolist()],
            torch.stack(
                [
                    torch.searchsorted(query, pairs[:, 0].clone()),
                    torch.searchsorted(image, pairs[:, 1].clone()),
                ],
                1,
            ),
        )
        for coupling in {one.coupling for one in self.tuned}:
            texts, images = everything._in_coupling(coupling)
            part._joint[coupling] = texts[query], images[image]
        return part

    def measured(self, tuned, learned, other):
        """Mean reciprocal rank on the other half, by item."""
        queries, images = other._joint[tuned.coupling]
        plain = tuned.method == "cosine"
        method = None if plain else correction(tuned.method, {})
        bank = None if plain else learned._joint[tuned.coupling][0]
        hits = rank(queries, Gallery(images), DEPTH, method, bank)
        named = other.pairs[:, 0] * len(images) + other.pairs[:, 1]
        asked = torch.arange(len(queries))[:, None]
        found = torch.isin(asked * len(images) + hits.index, named)
        ranks = torch.where(found.any(1), 1 / (found.int().argmax(1) + 1).double(), 0.0)
        item = other.item_of_query
        return float((item.bincount(ranks) / item.bincount()).mean())


class CaptionHalves:
    """Parts of `CaptionItems`; each caption is written once."""

    largest = 10.0

    def __init__(self, items):
        self.items = items
        self.tuned = items.tuned
        self.count = items.count
        self.texts = {}

    def part(self, rows):
        """The images `rows`."""
        chosen = [self.items.references[i] for i in rows.tolist()]
        frequency = document_frequency(chosen)

        def outcomes(tuned, index):
            own = rows[index]
            missing = [i for i in own.tolist() if (tuned.name, i) not in self.texts]
            if missing:
                written = self.items.captions(tuned, torch.tensor(missing))
                self.texts |= {(tuned.name, i): t for i, t in zip(missing, written, strict=True)}
            texts = [self.texts[tuned.name, i] for i in own.tolist()]
            references = [self.items.references[i] for i in own.tolist()]
            return torch.from_numpy(cider(texts, references, frequency=frequency).each)

        def cost(tuned):
            return self.items.cost(tuned) * len(rows) / len(self.items.rows)

        return SimpleNamespace(outcomes=outcomes, count=len(rows), cost=cost)

    def measured(self, tuned, learned, other):
        """CIDEr on the other half; NaN for what no split has asked for."""
        return float(other.outcomes(tuned, torch.arange(other.count)).mean())


def halves_of(given, opened):
    """What is to be halved."""
    if len(given.where) == 1:
        arrays = np.load(given.where[0], allow_pickle=False)
        images, texts = (
            normalize(torch.from_numpy(arrays[n]).float()) for n in ("images", "texts")
        )
        queries = [str(i) for i in range(len(texts))]
        pairs = torch.stack(
            [torch.arange(len(texts)), torch.from_numpy(arrays["image_of_text"])], 1
        )
        items = SearchItems(SimpleNamespace(couplings=()), images, queries, pairs.long())
        items._joint[None] = texts, images
        return SearchHalves(items)
    name, folder, file = given.where
    known = PairModels(resolve(name, offline=True), opened, Meter(), 32)
    data = read_items(Path(file), Path(folder), None)
    if given.task == "search":
        return SearchHalves(SearchItems.of(known, data, [], 0))
    return CaptionHalves(CaptionItems.of(known, data))


def main():
    """Halve, choose, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("search", "caption"))
    parser.add_argument("where", nargs="+")
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--all", action="store_true", help="also measure what was left out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    taken, said, held = Counter(), [], 0
    with open_cache(True) as opened:
        halves = halves_of(given, opened)
        one_class = torch.zeros(halves.count).long()
        for split in range(given.splits):
            generator = torch.Generator().manual_seed(split)
            side = stratified_folds(one_class, 2, generator)
            a, b = (halves.part((side == s).nonzero()[:, 0]) for s in (0, 1))
            candidates = [
                OutcomeCandidate(t.name, lambda rows, t=t, a=a: a.outcomes(t, rows), a.cost(t))
                for t in halves.tuned
            ]
            result = choose_by_outcomes(
                candidates,
                a.count,
                largest=halves.largest,
                seed=split,
                operations=given.budget * OPERATIONS,
            )
            tuned = [t for t in halves.tuned if t.name not in result.left_out]
            chosen = tuned[result.selection.ensemble.members[0]]
            taken[chosen.name] += 1
            reached = {
                t.name: halves.measured(t, a, b) for t in tuned if given.all or t is tuned[0]
            }
            recipe = halves.measured(chosen, a, b)
            for name, value in (*reached.items(), ("recipe", recipe)):
                found.setdefault(name, []).append(100 * value)
            default = reached[tuned[0].name]
            found.setdefault("recipe - default", []).append(100 * (recipe - default))
            said.append(100 * result.accuracy.value)
            alike = float(b.outcomes(chosen, torch.arange(b.count)).mean())
            held += result.accuracy.low <= alike <= result.accuracy.high
            print(f"split {split}: {result.p:.2f} {chosen.name}", flush=True)
    for name, values in found.items():
        error = statistics.stdev(values) / math.sqrt(len(values))
        print(
            f"| {name} | {statistics.fmean(values):.1f} ({error:.1f}) | least {min(values):+.1f} |"
        )
    print(f"recipes: {dict(taken)}; they say {statistics.fmean(said):.1f}; left out at last:")
    print(
        f"{', '.join(result.left_out) or 'none'}; intervals held in {held} of {given.splits} splits"
    )


if __name__ == "__main__":
    main()
