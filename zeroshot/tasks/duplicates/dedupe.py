"""Copies among images, and which of them to keep.

- *Exact* copies have the same content.
- *Near* copies are alike in two respects, in the embedding and in the pixels (`images.likeness`):

      cosine >= whole_threshold  and  whole >= WHOLE     the whole image, in one of 8 orientations
      cosine >= threshold        and  fit >= FIT         also a part of it, also at a small angle

  Two photographs of one scene have embeddings as near as those of copies, but other pixels.
- A group is the image that is kept and all that are copies of it. Which is kept: the one with the
  most pixels, then bytes, then the first.

Only images with a near neighbour are decoded. Cosines are compared tile by tile.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UnreadableImageError
from zeroshot.images.likeness import fit, hash_of, oriented, thumbnail_of, whole
from zeroshot.images.reading import fetch
from zeroshot.inference.embedding import AUTO_BATCH, preprocessing_names
from zeroshot.inference.embedding_matrix import EmbeddingMatrix, Failed, embedding_matrix
from zeroshot.inference.meter import Meter
from zeroshot.inference.remembered_models import image_encoder_alone
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.ops import normalize
from zeroshot.ranking.near_groups import ROUNDING, has_neighbour, leaders
from zeroshot.results.duplicate import DedupeResult
from zeroshot.results.result import Failure
from zeroshot.tasks.duplicates.dedupe_options import DedupeOptions

WHOLE = 0.96
"""Least correlation of the pixels of whole images; that of different photographs was up to 0.78."""
FIT = 0.9
"""Least correlation where part of an image fits best on the other."""
DECODED_SIDE = 160
"""A large JPEG is decoded no larger than it has to be."""
THREADS = 4


@dataclass(frozen=True)
class DedupeAnswer:
    """The results, and what decided them."""

    results: Sequence[DedupeResult]
    """In the order of the images; those that failed come last."""
    settings: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Look:
    """What is seen of one image: its size, and a thumbnail."""

    place: int
    width: int
    height: int
    bytes: int | None
    thumbnail: UInt8[Tensor, "3 h w"]

    @property
    def rank(self) -> tuple[int, int, int]:
        """The lowest is kept."""
        return -self.width * self.height, -(self.bytes or 0), self.place


def dedupe(
    sources: Sequence[Source],
    models: ModelSet,
    options: DedupeOptions,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
    seen: Callable[[int], None] = lambda count: None,
) -> DedupeAnswer:
    """One result per image; `seen` is called with the number of images that were embedded."""
    encoder = image_encoder_alone(models, cache, meter)
    matrix = embedding_matrix(sources, encoder, cache, meter, batch_size=batch_size, seen=seen)
    used = {"image_encoder": encoder.name} | preprocessing_names(encoder)
    settings = {
        "models": used,
        "threshold": options.threshold,
        "whole_threshold": options.whole_threshold,
    }
    with meter.stage("scoring"), meter.phase("comparing", counts=False):
        results = list(_results(matrix, options, used, meter))
    return DedupeAnswer(results, settings)


@dataclass(frozen=True, eq=False)
class SameContent:
    """Images of one content: their places, of which the first could be read."""

    look: Look
    places: Sequence[int]


class NearPairs:
    """Images with neighbours, the one to keep before its copies, and how alike two of them are."""

    def __init__(
        self, copies: Sequence[SameContent], embeddings: Tensor, options: DedupeOptions
    ) -> None:
        self.copies = copies
        self.unit: Float[Tensor, "n d"] = normalize(embeddings.float())
        self.correlations: dict[tuple[int, int], float] = {}
        self._options = options
        none = torch.zeros(0, 0)
        self._hashes = torch.stack([hash_of(x.look.thumbnail) for x in copies]) if copies else none

    def cosines(self, one: int, others: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        """In float64, so that no tile changes a digit."""
        return (self.unit[others].double() @ self.unit[one].double()).float()

    def possible(self, first: Int[Tensor, " a"], second: Int[Tensor, " b"]) -> Bool[Tensor, "a b"]:
        """Pairs that pass one of the two rules but for `fit`; see `near_groups.Possible`."""
        found = self.unit[first] @ self.unit[second].T >= self._options.threshold - ROUNDING
        for turned in oriented(self._hashes[first]):
            found |= turned @ self._hashes[second].T >= WHOLE - ROUNDING
        return found

    def agree(self, one: int, others: Int[Tensor, " m"]) -> Bool[Tensor, " m"]:
        """Whether the pixels say that others are copies of one; see `near_groups.Agree`."""
        cosines = self.cosines(one, others) + ROUNDING
        correlations = whole(self._hashes[one], self._hashes[others])
        alike = (correlations >= WHOLE) & (cosines >= self._options.whole_threshold)
        for i in (~alike & (cosines >= self._options.threshold)).nonzero()[:, 0].tolist():
            thumbnails = (self.copies[k].look.thumbnail for k in (one, int(others[i])))
            correlations[i] = fit(*thumbnails)
            alike[i] = correlations[i] >= FIT
        for i in alike.nonzero()[:, 0].tolist():
            self.correlations[one, int(others[i])] = float(correlations[i])
        return alike


def _results(
    matrix: EmbeddingMatrix, options: DedupeOptions, used: Mapping[str, str], meter: Meter
) -> Iterator[DedupeResult]:
    """One result per image, those that failed last."""
    places: dict[str, list[int]] = {}
    for place, id in enumerate(matrix.ids):
        places.setdefault(id, []).append(place)
    firsts = torch.tensor([same[0] for same in places.values()], dtype=torch.long)
    least = min(options.threshold, options.whole_threshold)
    near = has_neighbour(matrix.embeddings[firsts], least).tolist()
    asked = [s for s, alike in zip(places.values(), near, strict=True) if alike or len(s) > 1]
    failed: dict[int, Failure] = {}
    copies = sorted(looked_at(asked, matrix.sources, failed), key=lambda one: one.look.rank)
    meter.failed += len(failed)
    pairs = NearPairs(copies, matrix.embeddings[[one.look.place for one in copies]], options)
    members: dict[int, list[int]] = {}
    leader = leaders(pairs.unit, least, pairs.agree, possible=pairs.possible)
    for member, head in enumerate(leader.tolist()):
        members.setdefault(head, []).append(member)
    groups = [g for g in members.values() if sum(len(copies[i].places) for i in g) > 1]
    groups.sort(key=lambda group: min(copies[i].places[0] for i in group))
    found: dict[int, DedupeResult] = {}
    for number, group in enumerate(groups, 1):
        found |= _group(number, group, pairs, matrix, used)
    for place, source in enumerate(matrix.sources):
        if place in found:
            yield found[place]
        elif place not in failed:
            yield DedupeResult(source, matrix.ids[place], None, used, "dedupe", reason="no copies")
    gone = [Failed(matrix.sources[i], matrix.ids[i], why) for i, why in sorted(failed.items())]
    for one in (*matrix.failed, *gone):
        yield DedupeResult(source=one.source, id=one.id, error=one.failure, keep=False)


def looked_at(
    asked: Sequence[Sequence[int]], sources: Sequence[Source], failed: dict[int, Failure]
) -> Iterator[SameContent]:
    """Images that were looked at; those of one content by the first that can still be read."""

    def first(places: Sequence[int]) -> tuple[Look | None, dict[int, Failure]]:
        reasons: dict[int, Failure] = {}
        for place in places:
            try:
                return _look(place, sources[place]), reasons
            except UnreadableImageError as error:
                reasons[place] = Failure.from_error(error)
        return None, reasons

    with ThreadPoolExecutor(THREADS, thread_name_prefix="look") as pool:
        for places, (look, reasons) in zip(asked, pool.map(first, asked), strict=True):
            failed |= reasons
            if look is not None:
                yield SameContent(look, [place for place in places if place not in reasons])


def _look(place: int, source: Source) -> Look:
    fetched = fetch(source)
    size = len(fetched.content) if isinstance(fetched.content, bytes) else None
    with fetched.decoded(DECODED_SIDE) as picture:
        return Look(place, *picture.size, size, thumbnail_of(picture.image))


def _group(
    number: int,
    group: Sequence[int],
    pairs: NearPairs,
    matrix: EmbeddingMatrix,
    used: Mapping[str, str],
) -> dict[int, DedupeResult]:
    """The results of a group by their places; its first image is kept."""
    head, *others = group
    best = pairs.copies[head]
    kept = matrix.sources[best.look.place].path or "an image in memory"
    cosines = [1.0, *pairs.cosines(head, torch.tensor(others, dtype=torch.long)).tolist()]
    found = {}
    for member, cosine in zip(group, cosines, strict=True):
        look = pairs.copies[member].look
        for place in pairs.copies[member].places:
            shared: dict[str, Any] = {
                "source": matrix.sources[place],
                "id": matrix.ids[place],
                "models": used,
                "method": "dedupe",
                "group": number,
                "width": look.width,
                "height": look.height,
                "bytes": look.bytes,
            }
            if place == best.look.place:
                reason = _why([pairs.copies[i] for i in group])
                found[place] = DedupeResult(**shared, reason=reason)
                continue
            shared |= {"keep": False, "copy_of": matrix.sources[best.look.place].path}
            if member == head:
                reason = f"the same content as {kept}"
                found[place] = DedupeResult(**shared, kind="exact", reason=reason)
                continue
            found[place] = DedupeResult(
                **shared,
                kind="near",
                cosine=cosine,
                correlation=pairs.correlations[head, member],
                reason=f"alike to {kept}, which has {_more(look, best.look)}",
            )
    return found


def _why(group: Sequence[SameContent]) -> str:
    """Why the first of a group is kept."""
    best, count = group[0].look, sum(len(one.places) for one in group)
    rivals = [one for one in group[1:] if one.look.rank[0] == best.rank[0]]
    if not rivals and len(group) > 1:
        return f"the most pixels of {count}: {best.width} x {best.height}"
    if rivals and all(one.look.rank[1] != best.rank[1] for one in rivals):
        return f"as many pixels as others, and the most bytes of {count}: {best.bytes}"
    return f"the first of {count} with as many pixels and bytes"


def _more(copy: Look, kept: Look) -> str:
    """What the image that is kept has more of."""
    if copy.rank[0] != kept.rank[0]:
        return f"{kept.width} x {kept.height} pixels against {copy.width} x {copy.height}"
    if copy.rank[1] != kept.rank[1]:
        return f"as many pixels, and {kept.bytes} bytes against {copy.bytes}"
    return "as many pixels and bytes, and comes first"
