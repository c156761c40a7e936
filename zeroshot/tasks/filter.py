"""Pairs of a picture and its caption to cosines."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inference.embedding import (
    AUTO_BATCH,
    embed_pictures,
    embed_texts,
    image_side,
    project_images,
    project_texts,
    text_side,
)
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import Embedded
from zeroshot.inputs.source import Source
from zeroshot.models.base import DualEncoder, TextEncoder
from zeroshot.results.result import Failure
from zeroshot.tasks.filtering import pair_cosines


def score_pairs(
    sources: Iterable[Source],
    encoder: DualEncoder,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
    truncate: bool = True,
) -> Iterator[Embedded]:
    """Batches whose rows `[n, 1]` are the cosines of pictures and their captions.

    A pair without a caption fails, and one whose caption is longer than the encoder reads unless
    it may be cut (`truncate`).
    """
    texts = text_side(encoder)
    for batch in embed_pictures(sources, image_side(encoder), cache, meter, batch_size):
        failures = list(batch.failures)
        for i in batch.readable:
            failures[i] = _wrong(batch.sources[i], texts, truncate)
        meter.failed += sum(f is not None for f in failures) - sum(
            f is not None for f in batch.failures
        )
        good = [i for i, failure in enumerate(failures) if failure is None]
        cosines = torch.zeros(len(failures), 1)
        if good:
            captions = [caption_of(batch.sources[i]) for i in good]
            rows = project_texts(encoder, embed_texts(captions, texts, cache, meter))
            with meter.stage("scoring"):
                cosines[good, 0] = pair_cosines(project_images(encoder, batch.rows[good]), rows)
        yield replace(batch, rows=cosines, failures=failures)


def caption_of(source: Source) -> str:
    """The text that came with a picture; empty if there was none."""
    return source.fields.get("caption", "")


def is_cut(caption: str, encoder: TextEncoder) -> bool:
    """Whether the encoder reads only the beginning."""
    limit = encoder.context_length
    return limit is not None and encoder.count_tokens([caption])[0] > limit


def _wrong(source: Source, encoder: TextEncoder, truncate: bool) -> Failure | None:
    caption = caption_of(source)
    if not caption.strip():
        return Failure("NoCaption", "the pair has no caption")
    if not truncate and is_cut(caption, encoder):
        return Failure("LongCaption", f"a caption of more than {encoder.context_length} tokens")
    return None
