"""Models that an earlier run loaded: this one loads them when something has to be encoded.

The key of what is remembered of a model is the content of all its files. So a model that changed is
loaded, and checked, as if it were new.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.cache.embedding_cache import EmbeddingCache, NullCache
from zeroshot.errors import UserError
from zeroshot.inference.embedding import image_encoder_of, text_encoder_of
from zeroshot.inference.meter import LOADING, Meter
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import ClassifierHead, ImageEncoder, TextEncoder
from zeroshot.models.deferred import Deferred, TextMemory, deferred, facts_of
from zeroshot.models.devices import precision_name, resolve_device, resolve_precision
from zeroshot.models.files import model_files
from zeroshot.models.files.classifier_head import read_classifier_head
from zeroshot.models.names import ModelName, parse
from zeroshot.models.towers.cached_text_encoder import CachedTextEncoder, EmbeddingMemory

LAYOUTS = {
    "hf": model_files.TRANSFORMERS,
    "hf-hub": model_files.OPEN_CLIP,
    "local-dir": model_files.OPEN_CLIP,
}
"""By the scheme of a model's name; which files `open_clip:` means, only open_clip knows."""


CANDIDATES = "candidates"
"""Kind of the texts that guided decoding tries."""
MOST_TEXTS = 65536
"""134 MB at 512 numbers each; as many as a process has in memory."""


def remembered(models: ModelSet, cache: EmbeddingCache, meter: Meter) -> ModelSet:
    """The set with encoders that are loaded on first use, as far as the cache knows them.

    Those that are loaded stay, and those that are loaded later are loaded in `models` too.
    """
    if not remembers(models, cache):
        return models
    coupled = models.spec.encoder is None
    parts = {
        part: _remembered_encoder(models, part, cache, meter)
        for part in (("image_encoder", "text_encoder") if coupled else ("encoder",))
        if not models.is_loaded(part) and getattr(models.spec, part) is not None
    }
    waiting = {part: encoder for part, encoder in parts.items() if encoder is not None}
    return models.with_parts(**waiting) if waiting else models


def image_encoder_alone(models: ModelSet, cache: EmbeddingCache, meter: Meter) -> ImageEncoder:
    """The encoder of a set's images, loaded when it is needed; a coupling is left alone."""
    known = remembered(models, cache, meter)
    return known.image_encoder if _is_coupled(known) else image_encoder_of(known.encoder)


def text_encoder_alone(models: ModelSet, cache: EmbeddingCache, meter: Meter) -> TextEncoder:
    """As `image_encoder_alone`, of texts."""
    known = remembered(models, cache, meter)
    return known.text_encoder if _is_coupled(known) else text_encoder_of(known.encoder)


def _is_coupled(models: ModelSet) -> bool:
    """Whether the encoders stand beside the coupling; those of clips are made with it."""
    return type(models) is ModelSet and models.spec.encoder is None


def remembers(models: ModelSet, cache: EmbeddingCache) -> bool:
    """Whether a cache knows anything of such a set; not of clips, nor of code that comes along."""
    plain = type(models) is ModelSet and not models.trust_remote_code
    return plain and not isinstance(cache, NullCache)


def _remembered_encoder(models: ModelSet, part: str, cache: EmbeddingCache, meter: Meter) -> Any:
    """One encoder; None if it cannot wait."""
    name = parse(getattr(models.spec, part))
    layout = LAYOUTS.get(name.scheme)
    if layout is None:
        return None
    files = model_files.present(name, layout)
    if files is None:
        return None
    paths = model_files.read_by_loading(files, layout)
    contents = cache.file_ids(paths)
    if None in contents:
        return None
    dtype = resolve_precision(models.precision, resolve_device(models.device))
    content = [[path.name, id] for path, id in zip(paths, contents, strict=True)]
    key = ("model", part, name.label, files.revision, content, precision_name(dtype), models.fast)

    def load() -> Any:
        if models.is_loaded(part):
            return getattr(models, part)
        with meter.phase("loading models", counts=False), meter.stage(LOADING):
            return getattr(models, part)

    how = load, _memory(cache), _classes(name, layout)
    encoder = deferred(cache.note(*key), *how)
    if encoder is not None:
        return encoder
    facts = facts_of(getattr(models, part))
    if facts is not None:
        cache.write_note(facts, *key)
    return deferred(facts, *how)


class KeptTexts:
    """Embeddings of candidate texts in the cache, for later runs: `MOST_TEXTS` of an encoder."""

    def __init__(self, cache: EmbeddingCache, encoder: str) -> None:
        self._cache, self._encoder = cache, encoder

    def get(self, texts: Sequence[str]) -> tuple[Float[Tensor, "m d"], Bool[Tensor, " n"]]:
        """The embeddings of those that are there, and which these are."""
        if self._cache.is_closed:
            return torch.empty(0, 0), torch.zeros(len(texts), dtype=torch.bool)
        return self._cache.get(self._encoder, CANDIDATES, _text_ids(texts))

    def put(self, memory: EmbeddingMemory) -> None:
        """Those that were encoded since the last time, as long as there is room."""
        texts, rows = memory.taken()
        spaces = self._cache.info().spaces
        own = [s.rows for s in spaces if (s.encoder, s.kind) == (self._encoder, CANDIDATES)]
        room = max(0, MOST_TEXTS - sum(own))
        self._cache.put(self._encoder, CANDIDATES, _text_ids(texts[:room]), rows[:room])


def keep_texts(encoder: TextEncoder, cache: EmbeddingCache) -> Callable[[], None]:
    """Let an encoder's sessions use, and a call of the result store, texts of other runs.

    Raises:
        UserError: an encoder that remembers no texts.
    """
    loaded = encoder.load() if isinstance(encoder, Deferred) else encoder
    if not isinstance(loaded, CachedTextEncoder):
        raise UserError(f"{encoder.name} remembers no texts; leave out --remember-texts")
    kept, memory = KeptTexts(cache, encoder.name), loaded.memory
    memory.before = kept.get
    return lambda: kept.put(memory)


def _text_ids(texts: Sequence[str]) -> list[str]:
    return [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts]


def _memory(cache: EmbeddingCache) -> TextMemory:
    """Rows of texts, through the cache."""

    def rows(
        fresh: Callable[[Sequence[str]], Tensor], texts: Sequence[str], encoder: str, kind: str
    ) -> Tensor:
        if cache.is_closed:
            return fresh(texts)
        ids = _text_ids(texts)
        return cache(fresh, texts, ids=ids, encoder=encoder, kind=kind, batch_size=len(texts))

    return rows


def _classes(
    name: ModelName, layout: model_files.FileLayout
) -> Callable[[], ClassifierHead | None]:
    @functools.cache
    def classes() -> ClassifierHead | None:
        files = model_files.present(name, layout)
        return None if files is None else read_classifier_head(files)

    return classes
