"""Pictures to unit rows: fills the cache, or hands the rows out."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.embedding import (
    AUTO_BATCH,
    embed_pictures,
    embed_texts,
    image_side,
    preprocessed,
    text_side,
)
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.results.result import EmbedResult


def embed(
    sources: Iterable[Source],
    models: ModelSet,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
    captions: bool = False,
) -> Iterator[EmbedResult]:
    """One result per picture, in order; of a coupled pair, rows of its image encoder.

    `captions` embeds the field `caption` of every source as well, with the text encoder.

    Raises:
        UserError: a source without a caption where captions are to be embedded.
    """
    models.require(language_model=False)
    encoder = image_side(models.encoder)
    used = {"image_encoder": encoder.name} | preprocessed(encoder)
    for batch in embed_pictures(sources, encoder, cache, meter, batch_size):
        texts = _captions(batch.sources) if captions else None
        told = None
        if texts is not None:
            told = embed_texts(texts, text_side(models.encoder), cache, meter).tolist()
        for i, row in enumerate(batch.rows.tolist()):
            failure = batch.failures[i]
            yield EmbedResult(
                source=batch.sources[i],
                id=batch.ids[i],
                error=failure,
                models=used,
                method="embed",
                embedding=() if failure else tuple(row),
                caption=None if texts is None else texts[i],
                text_embedding=() if told is None else tuple(told[i]),
            )


def _captions(sources: Sequence[Source]) -> list[str]:
    for source in sources:
        if "caption" not in source.fields:
            raise UserError(f"'{source.path}' has no caption, but other pictures have one")
    return [source.fields["caption"] for source in sources]


def settings(models: ModelSet, captions: bool = False) -> dict[str, Any]:
    """What decides the rows."""
    encoder = image_side(models.encoder)
    used = {"image_encoder": encoder.name} | preprocessed(encoder)
    if captions:
        used["text_encoder"] = text_side(models.encoder).name
    return {"models": used}
