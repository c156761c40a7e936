"""Images to captions."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
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
from zeroshot.inference.remembered_models import keep_texts
from zeroshot.inputs.source import Source
from zeroshot.methods import Caption, Captioner, Pool
from zeroshot.metrics.ptb_tokenizer import tokenize
from zeroshot.model_set.model_set import ModelSet
from zeroshot.results.result import CaptionResult

Written = Callable[[Source, str], None]
"""Takes an image and its text so far."""

LARGEST_POOL = 50_000
"""`mbr` is the default only up to this many captions: to embed more takes minutes on a core."""


def captioner(
    models: ModelSet,
    method: Any,
    options: Mapping[str, Any],
    preset: str | None = None,
    features: Mapping[str, bool] = MappingProxyType({}),
) -> Captioner:
    """The captioner. Its options are those given, else the preset's, else the set's.

    The default method is the set's own; otherwise `mbr` if its anchors have captions, else
    `magic`. A preset, a prompt or a trace also selects `magic`, because no other method supports
    them; `features` says whether there are `prompts` or a `trace`.

    Raises:
        UserError: the method or preset is unknown, or the method does not caption.
    """
    defaults = dict(models.spec.caption)
    default = defaults.pop("method", None) or ("magic" if defaults else _default_method(models))
    needs_magic = default == "mbr" and (preset is not None or any(features.values()))
    name = method if method is not None else "magic" if needs_magic else default
    if name != default:
        defaults = {}
    if preset is not None:
        if not isinstance(name, str):
            raise UserError("a preset is for a method by its name, and method is an object")
        presets = getattr(methods.get(name), "presets", {})
        if preset not in presets:
            raise unknown(f"preset of {name}", preset, presets)
        defaults = dict(presets[preset])
    chosen = methods.configure(name, defaults | dict(options))
    if not isinstance(chosen, Captioner):
        captioners = methods.with_verb("caption")
        shown = methods.name_of(chosen)
        raise UserError(f"method '{shown}' does not caption; these do: {', '.join(captioners)}")
    return chosen


def _default_method(models: ModelSet) -> str:
    """`mbr` for a set with a language model and captions of its anchors, else `magic`."""
    spec = models.spec
    if spec.language_model is None or spec.coupling is None:
        return "magic"
    return "mbr" if 0 < len(models.anchors.captions) <= LARGEST_POOL else "magic"


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
    written: Written | None = None,
    remember_texts: bool = False,
) -> Iterator[CaptionResult]:
    """One result per image, in order; the captions of a batch are decoded together.

    Args:
        prompts: the beginning, or the title, of an image's text.
        trace: record every choice.
        pool: the captions that a method chooses among; without it they are embedded here.
        written: called with an image and its text so far, after every token of a method that
            decodes texts one token after another; other methods never call it.
        remember_texts: keep candidate texts in the cache, and take those of other runs from there.

    Raises:
        UserError: the method takes no prompts or records no trace, or tries no texts.
    """
    check_takes(method, {"prompts": prompts is not None, "trace": trace})
    models.require(language_model="language_model" in method.needs)
    encoder = models.encoder
    language_model = models.language_model if "language_model" in method.needs else None
    keep = None
    if remember_texts:
        if language_model is None or "pool" in method.needs:
            raise UserError(f"--remember-texts: method '{methods.name_of(method)}' tries no texts")
        keep = keep_texts(text_encoder_of(encoder), cache)
    if pool is None and "pool" in method.needs:
        pool = pool_of(models, cache, meter)
    used = canonical_names(encoder, language_model)

    def work(pairs: Sequence[tuple[Tensor, str | None, Source]]) -> list[Caption]:
        images, texts, own = zip(*pairs, strict=True)
        more: dict[str, Any] = {}
        if written is not None and "written" in method.takes:
            more["written"] = lambda row, text: written(own[row], text)
        return method.caption(
            torch.stack(images),
            encoder,
            language_model=language_model,
            pool=pool,
            prompts=None if prompts is None else texts,
            trace=trace,
            **more,
        )

    for batch in embed_images(sources, image_encoder_of(encoder), cache, meter, batch_size):
        good = batch.readable
        images = project_images(encoder, batch.embeddings[good])
        texts = [None if prompts is None else prompts(source) for source in batch.sources]
        pairs = [(one, texts[i], batch.sources[i]) for one, i in zip(images, good, strict=True)]
        with meter.stage("language model" if language_model else "scoring"):
            parts = batched_with_oom_retry(work, pairs, batch_size)
            captions = dict(zip(good, [one for _, part in parts for one in part], strict=True))
        if keep is not None:
            keep()
        for i, source in enumerate(batch.sources):
            caption = captions.get(i)
            yield CaptionResult(
                source=source,
                id=batch.ids[i],
                error=batch.failures[i],
                models=used,
                method=methods.name_of(method),
                caption=caption.text if caption else None,
                score=caption.score if caption else None,
                prompt=texts[i],
                trace=caption.trace if caption else None,
            )


def check_takes(method: Captioner, features: Mapping[str, bool]) -> None:
    """UserError for prompts or a trace, if the method does not support them."""
    for name, used in features.items():
        if used and name not in method.takes:
            raise UserError(f"method '{methods.name_of(method)}' takes no {name}")


def settings(models: ModelSet, method: Captioner) -> dict[str, Any]:
    """The settings that decide the captions, except the images and the prompts."""
    language_model = models.language_model if "language_model" in method.needs else None
    return {
        "models": canonical_names(models.encoder, language_model),
        "method": methods.name_of(method),
        "options": asdict(method),  # type: ignore[call-overload]
    }


def pool_of(models: ModelSet, cache: EmbeddingCache, meter: Meter) -> Pool:
    """The captions of the set's anchors, encoded."""
    texts = models.anchors.captions
    if not texts:
        raise UserError(f"the anchors of model set '{models.name}' have no captions to choose from")
    embeddings = embed_texts(texts, text_encoder_of(models.encoder), cache, meter)
    return Pool(texts, project_texts(models.encoder, embeddings), _words(texts, cache))


def _words(texts: Sequence[str], cache: EmbeddingCache) -> list[list[str]]:
    """The tokenized texts; the cache has those of an earlier run."""
    key = "words", hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
    stored = cache.note(*key)
    if isinstance(stored, list) and len(stored) == len(texts) and all(map(_are_words, stored)):
        return stored
    words = [tokenize(text) for text in texts]
    cache.write_note(words, *key)
    return words


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)
