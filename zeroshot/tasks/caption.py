"""Pictures to captions."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from torch import Tensor

from zeroshot import methods
from zeroshot.errors import UserError
from zeroshot.images import Source
from zeroshot.methods import Caption, Captioner, Pool
from zeroshot.model_set import ModelSet
from zeroshot.results import CaptionResult
from zeroshot.store import EmbeddingCache
from zeroshot.tasks.batching import in_batches
from zeroshot.tasks.embedding import (
    AUTO_BATCH,
    canonical_names,
    embed_pictures,
    embed_texts,
    image_side,
    join_images,
    join_texts,
    text_side,
)
from zeroshot.tasks.meter import Meter


def captioner(models: ModelSet, method: str | None, options: dict[str, Any]) -> Captioner:
    """The captioner asked for, with the set's own options where none are given.

    Raises:
        UserError: the method is unknown or does not caption.
    """
    name = method or models.spec.caption.get("method", "magic")
    of_the_set = {k: v for k, v in models.spec.caption.items() if k != "method"}
    same = name == models.spec.caption.get("method", "magic")
    chosen = methods.configure(name, (of_the_set if same else {}) | options)
    if not isinstance(chosen, Captioner):
        captioners = [n for n in methods.names() if hasattr(methods.get(n), "caption")]
        raise UserError(f"method '{name}' does not caption; these do: {', '.join(captioners)}")
    return chosen


def caption(
    sources: Iterable[Source],
    models: ModelSet,
    method: Captioner,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
) -> Iterator[CaptionResult]:
    """One result per picture, in order; the rows of a batch decode together."""
    models.require(language_model="language_model" in method.needs)
    encoder = models.encoder
    language_model = models.language_model if "language_model" in method.needs else None
    pool = _pool(models, cache, meter) if "pool" in method.needs else None
    used = canonical_names(encoder, language_model)

    def work(images: Tensor) -> list[Caption]:
        return method.caption(images, encoder, language_model=language_model, pool=pool)

    for batch in embed_pictures(sources, image_side(encoder), cache, meter, batch_size):
        good = batch.readable
        images = join_images(encoder, batch.rows[good])
        captions: list[Caption] = []
        with meter.stage("language model" if language_model else "scoring"):
            for _, answered in in_batches(work, images, batch_size):
                captions += answered
        answers = dict(zip(good, captions, strict=True))
        for i, source in enumerate(batch.sources):
            answer = answers.get(i)
            yield CaptionResult(
                source=source,
                id=batch.ids[i],
                error=batch.failures[i],
                models=used,
                method=methods.name_of(method),
                caption=answer.text if answer else None,
                score=answer.score if answer else None,
            )


def settings(models: ModelSet, method: Captioner) -> dict[str, Any]:
    """What decides the words: rows made under other settings do not belong in one file."""
    language_model = models.language_model if "language_model" in method.needs else None
    return {
        "models": canonical_names(models.encoder, language_model),
        "method": methods.name_of(method),
        "options": asdict(method),  # type: ignore[call-overload]
    }


def _pool(models: ModelSet, cache: EmbeddingCache, meter: Meter) -> Pool:
    """The captions of the set's anchors."""
    texts = models.anchors.captions
    if not texts:
        raise UserError(f"the anchors of model set '{models.name}' have no captions to choose from")
    rows = embed_texts(texts, text_side(models.encoder), cache, meter)
    return Pool(texts, join_texts(models.encoder, rows))
