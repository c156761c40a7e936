"""How well images and texts fit: cosines, or the scores of a head that reads both together.

All images have the same texts, or each has the captions that came with it (a table of path,
caption). With a dual encoder there may be negative prompts. Then the score of a text is its share
of a softmax with them at the model's own scale, which tells a statement from its opposite (as in
visual entailment: Song et al. 2022, arXiv:2203.07190).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.images.reading import VERSION, read
from zeroshot.inference.batching import batched_with_oom_retry
from zeroshot.inference.decoded_images import ImageBatch, load_batches
from zeroshot.inference.embedding import (
    AUTO_BATCH,
    canonical_names,
    embed_images,
    embed_texts,
    image_encoder_of,
    long_text_failure,
    project_images,
    project_texts,
    text_encoder_of,
)
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.models.base import DualEncoder, Image, PairScorer, TextEncoder
from zeroshot.prompts import nouns_of
from zeroshot.ranking.pair_scores import fclip
from zeroshot.results.result import Failure
from zeroshot.results.text import MatchResult, TextScore
from zeroshot.tasks.matching.match_options import MatchScore
from zeroshot.tasks.matching.thresholds import Thresholds

__all__ = ["MatchSpec", "by_encoder", "by_head"]

PairImages = tuple[tuple[str, Image], ...]
"""The image, or the two images, that a text is about, each with its id."""

PAIR_KIND = f"pair/{VERSION}"
SECOND = "second"
"""The field of a source that names its second image, if its texts are about two images."""


@dataclass(frozen=True)
class MatchSpec:
    """The texts that are scored with every image, and what a score is."""

    texts: tuple[str, ...] = ()
    """For every image; if empty, each image's own captions."""
    negatives: tuple[str, ...] = ()
    """Negative prompts, for a dual encoder."""
    thresholds: Thresholds | None = None
    score: MatchScore = "cosine"
    """For a dual encoder; `sigmoid` needs a model with a bias (SigLIP)."""

    def text_score(
        self, text: str, score: float, scores: Mapping[str, float] | None = None
    ) -> TextScore:
        """A text's score, with its label if there are thresholds."""
        label = None if self.thresholds is None else self.thresholds.label(score)
        return TextScore(text, score, label, scores=scores)

    def texts_of(self, source: Source) -> tuple[str, ...]:
        """The texts for one image: its captions, unless all images have the same texts."""
        if self.texts:
            return self.texts
        return tuple(caption.strip() for caption in source.captions if caption.strip())


def by_encoder(
    sources: Iterable[Source],
    encoder: DualEncoder,
    spec: MatchSpec,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int = AUTO_BATCH,
) -> Iterator[MatchResult]:
    """One result per image, in order; every distinct text of a batch is encoded once.

    UserError for a negative prompt that is longer than the encoder reads.
    """
    scored, used = score_kind(encoder, spec), canonical_names(encoder)
    reader, negatives = text_encoder_of(encoder), None
    if spec.negatives:
        if (too_long := long_text_failure(spec.negatives, reader)) is not None:
            raise UserError(f"--against: {too_long.message}")
        negatives = _embed_texts(encoder, spec.negatives, cache, meter)
    for batch in embed_images(sources, image_encoder_of(encoder), cache, meter, batch_size):
        texts = [spec.texts_of(source) for source in batch.sources]
        failures = [
            failure or _text_failure(reader, own)
            for failure, own in zip(batch.failures, texts, strict=True)
        ]
        good = [i for i, failure in enumerate(failures) if failure is None]
        meter.failed += sum(map(bool, failures)) - sum(map(bool, batch.failures))
        flat = [text for i in good for text in texts[i]]
        embeddings = iter(_embed_texts(encoder, flat, cache, meter))
        images = project_images(encoder, batch.embeddings[good]) if good else batch.embeddings[:0]
        results: dict[int, tuple[TextScore, ...]] = {}
        nouns: dict[str, Tensor] = {}
        if scored == "fclip":
            words = list(dict.fromkeys(word for text in set(flat) for word in nouns_of(text)))
            nouns = dict(zip(words, _embed_texts(encoder, words, cache, meter), strict=True))
        with meter.stage("scoring"):
            for i, image in zip(good, images, strict=True):
                own = torch.stack([next(embeddings) for _ in texts[i]])
                if scored == "fclip":
                    pairs = zip(texts[i], (own @ image).tolist(), strict=True)
                    results[i] = tuple(_with_nouns(spec, image, *pair, nouns) for pair in pairs)
                    continue
                scores = _scores(encoder, image, own, negatives, scored)
                results[i] = tuple(map(spec.text_score, texts[i], scores.tolist()))
        for i, source in enumerate(batch.sources):
            yield MatchResult(
                source=source,
                id=batch.ids[i],
                error=failures[i],
                models=used,
                method="cosine",
                texts=results.get(i, ()),
                scored=scored,
            )


def by_head(
    sources: Iterable[Source],
    scorer: PairScorer,
    spec: MatchSpec,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int = AUTO_BATCH,
) -> Iterator[MatchResult]:
    """One result per image, in order; scores of pairs are cached by the content of both."""
    for batch in load_batches(sources, meter, batch_size):
        texts = [spec.texts_of(source) for source in batch.sources]
        images: dict[int, PairImages] = {}
        failures = list(batch.failures)
        for i in batch.images:
            failures[i] = _text_failure(scorer, texts[i])
            loaded = _load(batch, i, scorer.pictures)
            if isinstance(loaded, Failure):
                failures[i] = failures[i] or loaded
            else:
                images[i] = loaded
        good = [i for i, failure in enumerate(failures) if failure is None]
        meter.failed += len(batch.images) - len(good)
        pairs = [(images[i], text) for i in good for text in texts[i]]
        scores = iter(_score_pairs(pairs, scorer, cache, meter, batch_size))
        results = {
            i: tuple(_text_score(spec, scorer, text, next(scores)) for text in texts[i])
            for i in good
        }
        for i, source in enumerate(batch.sources):
            yield MatchResult(
                source=source,
                id=batch.ids[i],
                error=failures[i],
                models={"scorer": scorer.name},
                method="head",
                texts=results.get(i, ()),
                scored=scorer.scored,
                second=source.text_of(SECOND),
            )


def score_kind(encoder: DualEncoder, spec: MatchSpec) -> str:
    """What a dual encoder's scores are: `softmax` if there are negative prompts.

    UserError for a sigmoid of a model that was not trained with one.
    """
    if spec.score == "cosine":
        return "softmax" if spec.negatives else "cosine"
    if spec.score == "fclip":
        if spec.negatives:
            raise UserError("--against makes a softmax: leave --score fclip out")
        return "fclip"
    if encoder.logit_bias is None:
        raise UserError(
            f"{encoder.name} was not trained with a sigmoid, as SigLIP models are; compare texts "
            "with --against instead"
        )
    if spec.negatives:
        raise UserError("--against makes a softmax: leave --score sigmoid out")
    return "sigmoid"


def _scores(
    encoder: DualEncoder,
    image: Float[Tensor, " m"],
    texts: Float[Tensor, "t m"],
    negatives: Float[Tensor, "a m"] | None,
    scored: str,
) -> Float[Tensor, " t"]:
    cosines = texts @ image
    if scored == "sigmoid":
        return (encoder.logit_scale * cosines + (encoder.logit_bias or 0.0)).sigmoid()
    if negatives is None:
        return cosines
    others = (negatives @ image).expand(len(cosines), -1)
    both = torch.cat([cosines[:, None], others], dim=1)  # [t, 1 + a]
    return (encoder.logit_scale * both).softmax(1)[:, 0]


def _with_nouns(
    spec: MatchSpec,
    image: Float[Tensor, " m"],
    text: str,
    cosine: float,
    rows: Mapping[str, Float[Tensor, " m"]],
) -> TextScore:
    """A text's score with its nouns, and the noun with the lowest cosine."""
    own = nouns_of(text)
    if not own:
        return spec.text_score(text, cosine)
    cosines = torch.stack([rows[noun] for noun in own]) @ image
    every = torch.ones(len(own), dtype=torch.bool)
    score, least = fclip(torch.tensor(cosine), cosines, every), int(cosines.argmin())
    found = spec.text_score(text, float(score))
    return replace(found, weakest=(own[least], float(cosines[least])))


def _embed_texts(
    encoder: DualEncoder, texts: Sequence[str], cache: EmbeddingCache, meter: Meter
) -> Float[Tensor, "n m"]:
    if not texts:
        return torch.zeros(0, 0)
    return project_texts(encoder, embed_texts(texts, text_encoder_of(encoder), cache, meter))


def _text_failure(model: TextEncoder | PairScorer, texts: Sequence[str]) -> Failure | None:
    """Why an image's texts cannot be scored: there are none, or one is too long."""
    if not texts:
        return Failure("NoText", "no caption came with the image; give one with --text")
    return long_text_failure(texts, model)


def _load(batch: ImageBatch, index: int, count: int) -> PairImages | Failure:
    """An image of the batch, with the second one if the model reads two."""
    first = (batch.ids[index] or "", batch.images[index])
    other = batch.sources[index].text_of(SECOND)
    if count == 1:
        return (first,)
    if count != 2 or other is None:
        return Failure("OnePicture", f"the model reads {count} images with a text; give pairs")
    try:
        second = read(other)
    except UnreadableImageError as error:
        return Failure(Failure.from_error(error).type, f"the second image, '{other}': {error}")
    return (first, (second.id, second.image))


def _score_pairs(
    pairs: Sequence[tuple[PairImages, str]],
    scorer: PairScorer,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int,
) -> Float[Tensor, "n k"]:
    """Scores of pairs, from the cache or from the head."""
    keys = [
        hashlib.sha256("\0".join([*(id for id, _ in images), text]).encode()).hexdigest()
        for images, text in pairs
    ]
    known, hits = cache.get(scorer.name, PAIR_KIND, keys)
    cached = iter(known)
    scores: dict[int, Tensor] = {i: next(cached) for i, hit in enumerate(hits.tolist()) if hit}
    missing = [i for i in range(len(pairs)) if i not in scores]

    def work(indices: Sequence[int]) -> Tensor:
        images = [[image for _, image in pairs[i][0]] for i in indices]
        return scorer.score_pairs(images, [pairs[i][1] for i in indices])

    with meter.stage("encoder"):
        for indices, fresh in batched_with_oom_retry(work, missing, batch_size):
            cache.put(scorer.name, PAIR_KIND, [keys[i] for i in indices], fresh)
            scores |= dict(zip(indices, fresh, strict=True))
    meter.texts_encoded += len(missing)
    meter.texts_cached += len(pairs) - len(missing)
    return torch.stack([scores[i] for i in range(len(pairs))]) if pairs else known


def _text_score(spec: MatchSpec, scorer: PairScorer, text: str, scores: Tensor) -> TextScore:
    values = scores.tolist()
    by_label = dict(zip(scorer.labels, values, strict=True)) if len(values) > 2 else None
    return spec.text_score(text, values[scorer.positive], by_label)


def check_head(spec: MatchSpec) -> None:
    """UserError for options that a head does not have: negative prompts, a sigmoid."""
    if spec.score != "cosine":
        raise UserError("--score is for dual encoders; a head (--model) has its own score")
    if spec.negatives:
        raise UserError(
            "--against needs a dual encoder (--encoder); a head (--model) scores each pair "
            "by itself"
        )


def made_with(models: Mapping[str, str], scored: str, negatives: Sequence[str]) -> str:
    """The kind of the scores, the models and the negative prompts, as thresholds record them."""
    others = f" against {', '.join(negatives)}" if negatives else ""
    return f"{scored} of {' and '.join(models.values())}{others}"
