"""The rows of very many pictures as one matrix: what is known is looked up all at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inference.content_ids import known_ids
from zeroshot.inference.embedding import AUTO_BATCH, embed_pictures
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import image_kind
from zeroshot.inputs.source import Source
from zeroshot.models.base import ImageEncoder
from zeroshot.results.result import Failure

CHUNK = 50_000
"""Pictures that are looked up at a time."""


@dataclass(frozen=True)
class Failed:
    """A picture that has no row, and why."""

    source: Source
    id: str | None
    failure: Failure


@dataclass(frozen=True)
class EmbeddingMatrix:
    """`rows[i]` belongs to `sources[i]`; those that failed are apart."""

    sources: Sequence[Source]
    ids: Sequence[str]
    rows: Float[Tensor, "n d"]
    failed: Sequence[Failed]


@dataclass(frozen=True)
class _Chunk:
    """Some of the pictures, in order; a row counts where there is no failure."""

    sources: Sequence[Source]
    ids: Sequence[str | None]
    rows: Float[Tensor, "n d"]
    failures: Sequence[Failure | None]


def embedding_matrix(
    sources: Sequence[Source],
    encoder: ImageEncoder,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
    half: bool = False,
    seen: Callable[[int], None] = lambda count: None,
) -> EmbeddingMatrix:
    """Rows of `encoder` for every picture that can be read, encoding what the cache lacks.

    Args:
        half: round the rows to float16, half the memory, as they come.
        seen: told how many pictures are done, as they are.
    """
    dtype = torch.float16 if half else torch.float32
    rows = torch.zeros(0, 0, dtype=dtype)
    kept: list[Source] = []
    ids: list[str] = []
    failed: list[Failed] = []
    for start in range(0, len(sources), CHUNK):
        chunk = _chunk(sources[start : start + CHUNK], encoder, cache, meter, batch_size, seen)
        good = [i for i, failure in enumerate(chunk.failures) if failure is None]
        if good and not rows.shape[1]:
            rows = torch.empty(len(sources) - len(failed), chunk.rows.shape[1], dtype=dtype)
        found = chunk.rows if len(good) == len(chunk.rows) else chunk.rows[good]
        rows[len(kept) : len(kept) + len(good)] = found
        kept += [chunk.sources[i] for i in good]
        ids += [chunk.ids[i] or "" for i in good]
        failed += [
            Failed(source, id, failure)
            for source, id, failure in zip(chunk.sources, chunk.ids, chunk.failures, strict=True)
            if failure is not None
        ]
    return EmbeddingMatrix(kept, ids, rows[: len(kept)], failed)


def _chunk(
    sources: Sequence[Source],
    encoder: ImageEncoder,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int,
    seen: Callable[[int], None],
) -> _Chunk:
    with meter.stage("cache"):
        ids, held, found = _known(sources, encoder, cache)
    hits = [i for i, hit in enumerate(found) if hit]
    meter.pictures += len(hits)
    meter.images_cached += len(hits)
    seen(len(hits))
    if len(hits) == len(sources):
        return _Chunk(sources, ids, held, [None] * len(sources))
    missing = [i for i, hit in enumerate(found) if not hit]
    failures: list[Failure | None] = [None] * len(sources)
    rows = held.new_zeros(0, 0)
    places: Iterator[int] = iter(missing)
    for batch in embed_pictures([sources[i] for i in missing], encoder, cache, meter, batch_size):
        for id, row, failure in zip(batch.ids, batch.rows, batch.failures, strict=True):
            place = next(places)
            ids[place], failures[place] = id, failure
            if failure is None:
                if not rows.shape[1]:
                    rows = torch.zeros(len(sources), len(row))
                rows[place] = row
        seen(len(batch.sources))
    if hits:
        if not rows.shape[1]:
            rows = torch.zeros(len(sources), held.shape[1])
        rows[hits] = held
    return _Chunk(sources, ids, rows, failures)


def _known(
    sources: Sequence[Source], encoder: ImageEncoder, cache: EmbeddingCache
) -> tuple[list[str | None], Tensor, list[bool]]:
    """Ids of files, the rows that the cache holds of them, and which of the pictures have one."""
    ids = known_ids(sources, cache)
    asked = [i for i, id in enumerate(ids) if id is not None]
    rows, hits = cache.get(encoder.name, image_kind(encoder), [ids[i] or "" for i in asked])
    found = [False] * len(sources)
    for i, hit in zip(asked, hits.tolist(), strict=True):
        found[i] = hit
    return ids, rows, found
