"""Images, the mean of each folder, and texts, as sums of few words (`methods.splice`).

A word stands in "a photo of a {}." beside images, and alone beside texts. An image is centred by
the mean of the bank, or of the images that are explained; of fewer than `FEWEST` there is no mean,
and nothing is subtracted. Texts are centred by the mean of the words.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot import methods
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError, counted
from zeroshot.inference.coupled_models import LABELS, with_coupling_for_task
from zeroshot.inference.embedding import (
    AUTO_BATCH,
    canonical_names,
    check_lengths,
    embed_all,
    embed_texts,
    image_encoder_of,
    project_images,
    project_texts,
    text_encoder_of,
)
from zeroshot.inference.embedding_matrix import EmbeddingMatrix, embedding_matrix
from zeroshot.inference.meter import Meter
from zeroshot.inputs.resolve import find
from zeroshot.inputs.source import Source, UnreadableBlob
from zeroshot.inputs.text_files import whole_text
from zeroshot.methods.splice import SpLiCE
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import DualEncoder
from zeroshot.prompts import common_words, load_labels
from zeroshot.ranking.modality_means import FEWEST
from zeroshot.results.explained import ExplainResult, WordWeight
from zeroshot.tasks.classification.none_of_these import WORD
from zeroshot.tasks.explaining.explain_options import ExplainOptions
from zeroshot.tasks.options import settings, several

METHOD = "splice"
NOTHING = "nothing"
NO_IMAGE = Source(None, UnreadableBlob("a text has no pixels"))
BLOCK = 256
"""Images that are solved for together."""


@dataclass(frozen=True)
class ExplainAnswer:
    """The results, and what decided them."""

    results: Sequence[ExplainResult]
    """Images, or folders, in their order; then texts; then the images that failed."""
    settings: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class _Space:
    """Words, and how weights become results."""

    method: SpLiCE
    words: Sequence[str]
    top_k: int
    models: Mapping[str, str]
    mean: Float[Tensor, " d"] | None
    mean_of: str

    def result(self, weights: Float[Tensor, " w"], **more: Any) -> ExplainResult:
        """The words of these weights; `more` are the other fields."""
        values, index = weights.topk(min(self.top_k, len(weights)))
        named = zip(index.tolist(), values.tolist(), strict=True)
        return ExplainResult(
            models=self.models,
            method=METHOD,
            words=tuple(WordWeight(self.words[i], v) for i, v in named if v > 0),
            nonzero=int((weights > 0).sum()),
            mean_of=self.mean_of,
            **more,
        )


@dataclass
class _Folder:
    """Sums over the images of a folder."""

    weights: Float[Tensor, " w"]
    cosine: float = 0.0
    count: int = 0


def explain(
    sources: Sequence[Source],
    models: ModelSet,
    options: ExplainOptions,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
    seen: Callable[[int], None] = lambda count: None,
) -> ExplainAnswer:
    """One result per image or, with `mean`, per folder; then one per text.

    Raises:
        UserError: nothing to explain, words or options that do not fit, too few images in the bank.
    """
    method = methods.configure(METHOD, dict(options.options))
    texts = [whole_text(text, "a text to explain") for text in several(options.texts)]
    words = load_labels(options.words) if options.words else common_words()
    bank = find(options.bank).sources
    _check(sources, texts, words, bank, options)
    models.require(language_model=False)
    models = with_coupling_for_task(models, options.coupling, LABELS, cache, meter)
    encoder, used = models.encoder, canonical_names(models.encoder)
    reader = text_encoder_of(encoder)
    check_lengths([*words, *texts], reader, "a word or a text")

    def encode(prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        return project_texts(encoder, embed_texts(prompts, reader, cache, meter))

    decided: dict[str, Any] = {"models": used}
    decided |= {"words": hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]}
    decided |= {"bank": [source.path for source in bank]} if bank else {}
    results: list[ExplainResult] = []
    matrix = EmbeddingMatrix([], [], torch.zeros(0, 0), [])
    if sources:
        matrix = embedding_matrix(
            sources, image_encoder_of(encoder), cache, meter, batch_size=batch_size, seen=seen
        )
    if matrix.sources:
        fitted = method.fit(encode([WORD.format(word) for word in words]))
        with meter.stage("scoring"), meter.phase("explaining", counts=False):
            mean, mean_of = _mean_image(matrix, bank, encoder, cache, meter)
            space = _Space(fitted, words, options.top_k, used, mean, mean_of)
            every = _folders if options.mean else _images
            results += every(space, matrix, encoder)
    if texts:
        fitted = method.fit(encode(words))
        space = _Space(fitted, words, options.top_k, used, None, counted(len(words), "word"))
        rows = encode(texts)
        weights = fitted.decompose(rows)
        cosines = fitted.cosines(weights, rows).tolist()
        for text, own, cosine in zip(texts, weights, cosines, strict=True):
            more = {"source": NO_IMAGE, "id": None, "text": text, "cosine": cosine}
            results.append(space.result(own, **more))
    failed = [ExplainResult(source=f.source, id=f.id, error=f.failure) for f in matrix.failed]
    return ExplainAnswer([*results, *failed], settings(options, decided))


def _check(
    sources: Sequence[Source],
    texts: Sequence[str],
    words: Sequence[str],
    bank: Sequence[Source],
    options: ExplainOptions,
) -> None:
    """UserError for options that do not fit each other."""
    if not all(text.strip() for text in texts):
        raise UserError("a text to explain (--text) is empty")
    if not sources and not texts:
        raise UserError("nothing to explain: give images, or a text (--text)")
    if not sources and (options.mean or options.bank):
        raise UserError("--mean and --bank are for images: name some, or leave them out")
    if len(words) < 2:
        raise UserError("--words has one word, and words are compared with their mean: give more")
    if options.bank and len(bank) < FEWEST:
        raise UserError(
            f"--bank has {counted(len(bank), 'image')}, too few for a mean: {FEWEST} are needed at "
            "least, 100 or more are better"
        )


def _mean_image(
    matrix: EmbeddingMatrix,
    bank: Sequence[Source],
    encoder: DualEncoder,
    cache: EmbeddingCache,
    meter: Meter,
) -> tuple[Float[Tensor, " d"], str]:
    """What is subtracted from images, and of what it is the mean."""
    rows, of = matrix.embeddings, ""
    if bank:
        rows, of = embed_all(bank, image_encoder_of(encoder), cache, meter), " of the bank"
    sums = [
        project_images(encoder, part.float()).double().sum(0) for part in torch.split(rows, BLOCK)
    ]
    if len(rows) < FEWEST:
        return torch.zeros_like(sums[0]), NOTHING
    return torch.stack(sums).sum(0) / len(rows), f"{counted(len(rows), 'image')}{of}"


def _weights(
    space: _Space, matrix: EmbeddingMatrix, encoder: DualEncoder
) -> Iterator[tuple[int, Float[Tensor, " w"], float]]:
    """The place of each image, its weights and its cosine."""
    for places in torch.split(torch.arange(len(matrix.sources)), BLOCK):
        rows = project_images(encoder, matrix.embeddings[places].float())
        weights = space.method.decompose(rows, space.mean)
        cosines = space.method.cosines(weights, rows, space.mean).tolist()
        yield from zip(places.tolist(), weights, cosines, strict=True)


def _images(
    space: _Space, matrix: EmbeddingMatrix, encoder: DualEncoder
) -> Iterator[ExplainResult]:
    for i, weights, cosine in _weights(space, matrix, encoder):
        yield space.result(weights, source=matrix.sources[i], id=matrix.ids[i], cosine=cosine)


def _folders(
    space: _Space, matrix: EmbeddingMatrix, encoder: DualEncoder
) -> Iterator[ExplainResult]:
    folders: dict[str | None, _Folder] = {}
    for i, weights, cosine in _weights(space, matrix, encoder):
        path = matrix.sources[i].path
        name = None if path is None else os.path.dirname(path) or "."
        own = folders.setdefault(name, _Folder(torch.zeros_like(weights)))
        own.weights += weights
        own.cosine += cosine
        own.count += 1
    for name, own in folders.items():
        more = {"images": own.count, "cosine": own.cosine / own.count}
        yield space.result(own.weights / own.count, source=Source(name), id=None, **more)
