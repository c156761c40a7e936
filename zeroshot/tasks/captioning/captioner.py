"""Images to captions."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from zeroshot import methods
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError, unknown
from zeroshot.inference.batching import batched_with_oom_retry
from zeroshot.inference.embedding import (
    AUTO_BATCH,
    canonical_names,
    embed_images,
    embed_texts,
    image_encoder_of,
    project_images,
    project_texts,
    text_encoder_of,
)
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.methods import Caption, Captioner, Pool
from zeroshot.model_set.coupled_encoder import calibrate, with_classifier_head
from zeroshot.model_set.model_set import ModelSet
from zeroshot.results.result import CaptionResult

POOLED = 50_000
"""Captions of a pool above which they are not embedded unasked: some minutes on one core."""


def captioner(
    models: ModelSet,
    method: str | None,
    options: Mapping[str, Any],
    preset: str | None = None,
    asked: Mapping[str, bool] = MappingProxyType({}),
) -> Captioner:
    """The captioner asked for, with the preset's options, else the set's, where none are given.

    Without a method it is the set's; else `mbr` where the set has captions to learn from, and
    `magic` where it has none. `magic` is also meant by what it alone has: a preset, and what is
    `asked` of `prompts` and `trace`.

    Raises:
        UserError: the method or preset is unknown, or the method does not caption.
    """
    of_the_set = dict(models.spec.caption)
    own = of_the_set.pop("method", None) or ("magic" if of_the_set else _default_method(models))
    means_magic = own == "mbr" and (preset is not None or any(asked.values()))
    name = method or ("magic" if means_magic else own)
    given = of_the_set if name == own else {}
    if preset is not None:
        presets = getattr(methods.get(name), "presets", {})
        if preset not in presets:
            raise unknown(f"preset of {name}", preset, presets)
        given = dict(presets[preset])
    chosen = methods.configure(name, given | dict(options))
    if not isinstance(chosen, Captioner):
        captioners = [n for n in methods.names() if hasattr(methods.get(n), "caption")]
        raise UserError(f"method '{name}' does not caption; these do: {', '.join(captioners)}")
    return chosen


def _default_method(models: ModelSet) -> str:
    """`mbr` for a set with a language model and captions beside its anchors, else `magic`."""
    spec = models.spec
    if spec.language_model is None or spec.coupling is None:
        return "magic"
    return "mbr" if 0 < len(models.anchors.captions) <= POOLED else "magic"


def caption(
    sources: Iterable[Source],
    models: ModelSet,
    method: Captioner,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
    prompts: Callable[[Source], str] | None = None,
    trace: bool = False,
    pool: Pool | None = None,
) -> Iterator[CaptionResult]:
    """One result per image, in order; the rows of a batch decode together.

    `prompts` says what an image's text begins with or is titled; `trace` keeps every choice;
    `pool` is what a method chooses among, embedded anew without it.

    Raises:
        UserError: the method takes no prompts or leaves no trace.
    """
    check_takes(method, {"prompts": prompts is not None, "trace": trace})
    models.require(language_model="language_model" in method.needs)
    encoder = models.encoder
    language_model = models.language_model if "language_model" in method.needs else None
    if pool is None and "pool" in method.needs:
        pool = pool_of(models, cache, meter)
    used = canonical_names(encoder, language_model)

    def work(rows: Sequence[tuple[Tensor, str | None]]) -> list[Caption]:
        images, asked = zip(*rows, strict=True)
        return method.caption(
            torch.stack(images),
            encoder,
            language_model=language_model,
            pool=pool,
            prompts=None if prompts is None else asked,
            trace=trace,
        )

    for batch in embed_images(sources, image_encoder_of(encoder), cache, meter, batch_size):
        good = batch.readable
        images = project_images(encoder, batch.embeddings[good])
        asked = [None if prompts is None else prompts(source) for source in batch.sources]
        captions: list[Caption] = []
        with meter.stage("language model" if language_model else "scoring"):
            rows = list(zip(images, (asked[i] for i in good), strict=True))
            for _, answered in batched_with_oom_retry(work, rows, batch_size):
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
                prompt=asked[i],
                trace=answer.trace if answer else None,
            )


def check_takes(method: Captioner, given: dict[str, bool]) -> None:
    """UserError for something given that the method does not take."""
    for what, there in given.items():
        if there and what not in method.takes:
            raise UserError(f"method '{methods.name_of(method)}' takes no {what}")


def settings(models: ModelSet, method: Captioner) -> dict[str, Any]:
    """What decides the words: rows made under other settings do not belong in one file."""
    language_model = models.language_model if "language_model" in method.needs else None
    return {
        "models": canonical_names(models.encoder, language_model),
        "method": methods.name_of(method),
        "options": asdict(method),  # type: ignore[call-overload]
    }


def captioning_models(
    models: ModelSet, coupling: str | None, cache: EmbeddingCache, meter: Meter
) -> ModelSet:
    """The set as captions use it: coupled as asked for, else as it says, else as suits captions.

    The last is what `auto` chooses, with the image encoder's own classifier beside it if its
    classes have names that fit (docs/captioning.md).
    """
    if coupling is not None:
        return models.with_coupling(coupling)
    chosen = models.with_caption_coupling
    if not models.has_default_coupling:
        return chosen
    coupled, anchors = chosen.coupled, chosen.anchors

    def read(names: Sequence[str]) -> Tensor:
        return embed_texts(names, coupled.text_encoder, cache, meter)

    pairs = anchors.images, anchors.texts
    beside = with_classifier_head(coupled.coupling, coupled.image_encoder, read, *pairs)
    if beside is coupled.coupling:
        return chosen
    scale = calibrate(beside, *pairs)
    return chosen.with_coupled_encoder(replace(coupled, coupling=beside, logit_scale=scale))


def pool_of(models: ModelSet, cache: EmbeddingCache, meter: Meter) -> Pool:
    """The captions of the set's anchors."""
    texts = models.anchors.captions
    if not texts:
        raise UserError(f"the anchors of model set '{models.name}' have no captions to choose from")
    rows = embed_texts(texts, text_encoder_of(models.encoder), cache, meter)
    return Pool(texts, project_texts(models.encoder, rows))
