"""Embeddings of very many images as one matrix; cached ones are looked up in large chunks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inference.content_ids import known_ids
from zeroshot.inference.embedding import AUTO_BATCH, embed_images
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import image_kind
from zeroshot.inputs.source import Source
from zeroshot.models.base import ImageEncoder
from zeroshot.results.result import Failure

CHUNK = 50_000
"""Images that are looked up at a time."""


@dataclass(frozen=True)
class Failed:
    """An image without an embedding, and why."""

    source: Source
    id: str | None
    failure: Failure


@dataclass(frozen=True)
class EmbeddingMatrix:
    """`embeddings[i]` belongs to `sources[i]`; images that failed are listed apart."""

    sources: Sequence[Source]
    ids: Sequence[str]
    embeddings: Float[Tensor, "n d"]
    failed: Sequence[Failed]


@dataclass(frozen=True)
class _Chunk:
    """Some of the images, in order. The embedding of a failed image means nothing."""

    sources: Sequence[Source]
    ids: Sequence[str | None]
    embeddings: Float[Tensor, "n d"]
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
    """Embeddings of every image that can be read; those that the cache lacks are encoded.

    Args:
        half: round the embeddings to float16, chunk by chunk, which takes half the memory.
        seen: called with the number of images that are done since the last call.
    """
    dtype = torch.float16 if half else torch.float32
    matrix = torch.zeros(0, 0, dtype=dtype)
    readable: list[Source] = []
    ids: list[str] = []
    failed: list[Failed] = []
    for start in range(0, len(sources), CHUNK):
        chunk = _chunk(sources[start : start + CHUNK], encoder, cache, meter, batch_size, seen)
        good = [i for i, failure in enumerate(chunk.failures) if failure is None]
        block = chunk.embeddings
        if good and not matrix.shape[1]:
            matrix = torch.empty(len(sources) - len(failed), block.shape[1], dtype=dtype)
        begin = len(readable)
        matrix[begin : begin + len(good)] = block if len(good) == len(block) else block[good]
        readable += [chunk.sources[i] for i in good]
        ids += [chunk.ids[i] or "" for i in good]
        failed += [
            Failed(source, id, failure)
            for source, id, failure in zip(chunk.sources, chunk.ids, chunk.failures, strict=True)
            if failure is not None
        ]
    return EmbeddingMatrix(readable, ids, matrix[: len(readable)], failed)


def _chunk(
    sources: Sequence[Source],
    encoder: ImageEncoder,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int,
    seen: Callable[[int], None],
) -> _Chunk:
    with meter.stage("cache"):
        ids = known_ids(sources, cache)
        with_id = [i for i, id in enumerate(ids) if id is not None]
        keys = [ids[i] or "" for i in with_id]
        cached, found = cache.get(encoder.name, image_kind(encoder), keys)
    hits = [i for i, hit in zip(with_id, found.tolist(), strict=True) if hit]
    meter.pictures += len(hits)
    meter.images_cached += len(hits)
    seen(len(hits))
    if len(hits) == len(sources):
        return _Chunk(sources, ids, cached, [None] * len(sources))
    missing = sorted(set(range(len(sources))) - set(hits))
    failures: list[Failure | None] = [None] * len(sources)
    matrix = cached.new_zeros(0, 0)
    remaining = iter(missing)
    for batch in embed_images([sources[i] for i in missing], encoder, cache, meter, batch_size):
        for id, embedding, failure in zip(batch.ids, batch.embeddings, batch.failures, strict=True):
            i = next(remaining)
            ids[i], failures[i] = id, failure
            if failure is None:
                if not matrix.shape[1]:
                    matrix = torch.zeros(len(sources), len(embedding))
                matrix[i] = embedding
        seen(len(batch.sources))
    if hits:
        if not matrix.shape[1]:
            matrix = torch.zeros(len(sources), cached.shape[1])
        matrix[hits] = cached
    return _Chunk(sources, ids, matrix, failures)
