"""Pictures to unit rows: fills the cache, or hands the rows out."""

from collections.abc import Iterable, Iterator
from typing import Any

from zeroshot.images import Source
from zeroshot.model_set import ModelSet
from zeroshot.results import EmbedResult
from zeroshot.store import EmbeddingCache
from zeroshot.tasks.embedding import AUTO_BATCH, embed_pictures, image_side, preprocessed
from zeroshot.tasks.meter import Meter


def embed(
    sources: Iterable[Source],
    models: ModelSet,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
) -> Iterator[EmbedResult]:
    """One result per picture, in order; of a coupled pair, rows of its image encoder."""
    models.require(language_model=False)
    encoder = image_side(models.encoder)
    used = {"image_encoder": encoder.name} | preprocessed(encoder)
    for batch in embed_pictures(sources, encoder, cache, meter, batch_size):
        for source, key, row, failure in zip(
            batch.sources, batch.ids, batch.rows.tolist(), batch.failures, strict=True
        ):
            rows = () if failure else tuple(row)
            yield EmbedResult(
                source=source, id=key, error=failure, models=used, method="embed", embedding=rows
            )


def settings(models: ModelSet) -> dict[str, Any]:
    """What decides the rows."""
    encoder = image_side(models.encoder)
    return {"models": {"image_encoder": encoder.name} | preprocessed(encoder)}
