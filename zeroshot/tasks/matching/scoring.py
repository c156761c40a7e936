"""Pictures and texts to how well they fit: by cosines, or by a head that reads both together.

A picture's texts are those asked for, or the captions that came with it (a table of path,caption).
By a dual encoder a text may be weighed `against` others: then its score is its share of a softmax
at the model's own scale, which is how a statement is told from its contrary (Song et al. 2022,
arXiv:2203.07190, do visual entailment so).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
    embed_pictures,
    embed_texts,
    image_encoder_of,
    project_images,
    project_texts,
    text_encoder_of,
)
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.models.base import DualEncoder, Image, PairScorer
from zeroshot.results.result import Failure
from zeroshot.results.text import MatchResult, TextScore
from zeroshot.tasks.matching.match_options import Score
from zeroshot.tasks.matching.thresholds import Thresholds

__all__ = ["MatchSpec", "by_encoder", "by_head", "texts_of"]

PAIR_KIND = f"pair/{VERSION}"
SECOND = "second"
"""The field of a source that names the other picture its texts speak of."""


@dataclass(frozen=True)
class MatchSpec:
    """What is matched with every picture, and how scores are told."""

    texts: tuple[str, ...] = ()
    """For every picture; without any, the captions that come with each."""
    against: tuple[str, ...] = ()
    """What a text is weighed against, by a dual encoder."""
    thresholds: Thresholds | None = None
    score: Score = "cosine"
    """Of a dual encoder; `sigmoid` is that of a model with a bias (SigLIP)."""

    def fit(self, text: str, score: float, scores: Mapping[str, float] | None = None) -> TextScore:
        """A text's score, with its label where there are thresholds."""
        label = None if self.thresholds is None else self.thresholds.label(score)
        return TextScore(text, score, label, scores)


def texts_of(source: Source, matching: MatchSpec) -> tuple[str, ...]:
    """The texts of one picture; several captions of one row stand in lines of their own."""
    if matching.texts:
        return matching.texts
    lines = source.fields.get("caption", "").split("\n")
    return tuple(line.strip() for line in lines if line.strip())


def by_encoder(
    sources: Iterable[Source],
    encoder: DualEncoder,
    matching: MatchSpec,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int = AUTO_BATCH,
) -> Iterator[MatchResult]:
    """One result per picture, in order; every different text of a batch is encoded once.

    UserError for a text to weigh against that is longer than the encoder reads.
    """
    scored, used = scored_by(encoder, matching), canonical_names(encoder)
    other = matching.against
    if other and (failure := _wrong(text_encoder_of(encoder), other)) is not None:
        raise UserError(f"--against: {failure.message}")
    against = _rows(encoder, other, cache, meter) if other else None
    for batch in embed_pictures(sources, image_encoder_of(encoder), cache, meter, batch_size):
        asked = [texts_of(source, matching) for source in batch.sources]
        failures = [
            failure or _wrong(text_encoder_of(encoder), texts)
            for failure, texts in zip(batch.failures, asked, strict=True)
        ]
        good = [i for i, failure in enumerate(failures) if failure is None]
        meter.failed += sum(f is not None for f in failures) - sum(
            f is not None for f in batch.failures
        )
        flat = [text for i in good for text in asked[i]]
        texts = iter(_rows(encoder, flat, cache, meter))
        images = project_images(encoder, batch.rows[good]) if good else batch.rows
        fits: dict[int, tuple[TextScore, ...]] = {}
        with meter.stage("scoring"):
            for i, image in zip(good, images, strict=True):
                rows = torch.stack([next(texts) for _ in asked[i]])
                scores = _scores(encoder, image, rows, against, scored)
                fits[i] = tuple(map(matching.fit, asked[i], scores.tolist()))
        for i, source in enumerate(batch.sources):
            yield MatchResult(
                source=source,
                id=batch.ids[i],
                error=failures[i],
                models=used,
                method="cosine",
                texts=fits.get(i, ()),
                scored=scored,
            )


def by_head(
    sources: Iterable[Source],
    scorer: PairScorer,
    matching: MatchSpec,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int = AUTO_BATCH,
) -> Iterator[MatchResult]:
    """One result per picture, in order; what a pair was given is kept by what both hold."""
    for batch in load_batches(sources, meter, batch_size):
        asked = [texts_of(source, matching) for source in batch.sources]
        shown: dict[int, tuple[tuple[str, Image], ...]] = {}
        failures = list(batch.failures)
        for i in batch.images:
            failures[i] = _wrong(scorer, asked[i])
            seen = _pictures(batch, i, scorer.pictures)
            if isinstance(seen, Failure):
                failures[i] = failures[i] or seen
            else:
                shown[i] = seen
        good = [i for i, failure in enumerate(failures) if failure is None]
        meter.failed += len(batch.images) - len(good)
        pairs = [(shown[i], text) for i in good for text in asked[i]]
        rows = iter(_headed(pairs, scorer, cache, meter, batch_size))
        fits = {
            i: tuple(_fit(matching, scorer, text, next(rows)) for text in asked[i]) for i in good
        }
        for i, source in enumerate(batch.sources):
            yield MatchResult(
                source=source,
                id=batch.ids[i],
                error=failures[i],
                models={"scorer": scorer.name},
                method="head",
                texts=fits.get(i, ()),
                scored=scorer.scored,
                second=source.fields.get(SECOND),
            )


def scored_by(encoder: DualEncoder, matching: MatchSpec) -> str:
    """What a dual encoder's scores are: shares of a softmax where something is against.

    UserError for a sigmoid of a model that was not trained with one.
    """
    if matching.score == "cosine":
        return "softmax" if matching.against else "cosine"
    if encoder.logit_bias is None:
        raise UserError(
            f"{encoder.name} was not trained with a sigmoid; SigLIP and its like are. Weigh texts "
            "with --against instead"
        )
    if matching.against:
        raise UserError("--against is a share of a softmax: leave --score sigmoid")
    return "sigmoid"


def _scores(
    encoder: DualEncoder,
    image: Float[Tensor, " m"],
    texts: Float[Tensor, "t m"],
    against: Float[Tensor, "a m"] | None,
    scored: str,
) -> Float[Tensor, " t"]:
    cosines = texts @ image
    if scored == "sigmoid":
        return (encoder.logit_scale * cosines + (encoder.logit_bias or 0.0)).sigmoid()
    if against is None:
        return cosines
    other = (against @ image).expand(len(cosines), -1)
    both = torch.cat([cosines[:, None], other], dim=1)  # [t, 1 + a]
    return (encoder.logit_scale * both).softmax(1)[:, 0]


def _rows(
    encoder: DualEncoder, texts: Sequence[str], cache: EmbeddingCache, meter: Meter
) -> Float[Tensor, "n m"]:
    if not texts:
        return torch.zeros(0, 0)
    return project_texts(encoder, embed_texts(texts, text_encoder_of(encoder), cache, meter))


def _wrong(reader: Any, texts: Sequence[str]) -> Failure | None:
    """Why a picture's texts cannot be scored: there are none, or one is too long."""
    if not texts:
        return Failure("NoText", "no caption came with the picture; give one with --text")
    limit = reader.context_length
    for text, length in zip(texts, reader.count_tokens(texts) if limit else (), strict=False):
        if length > limit:
            return Failure(
                "LongText", f"{length} tokens, but the model reads {limit}: '{text[:60]}...'"
            )
    return None


def _pictures(batch: ImageBatch, place: int, count: int) -> tuple[tuple[str, Image], ...] | Failure:
    """The picture, and the second where a text speaks of two, each with its id."""
    first = (batch.ids[place] or "", batch.images[place])
    other = batch.sources[place].fields.get(SECOND)
    if count == 1:
        return (first,)
    if count != 2 or other is None:
        return Failure("OnePicture", f"the model reads {count} pictures for a text; give pairs")
    try:
        second = read(other)
    except UnreadableImageError as error:
        return Failure(Failure.of(error).type, f"the second picture, '{other}': {error}")
    return (first, (second.id, second.image))


def _headed(
    pairs: Sequence[tuple[tuple[tuple[str, Image], ...], str]],
    scorer: PairScorer,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int,
) -> Float[Tensor, "n k"]:
    """Scores of pairs; those that the cache does not hold come from the head."""
    keys = [
        hashlib.sha256("\0".join([*(id for id, _ in shown), text]).encode()).hexdigest()
        for shown, text in pairs
    ]
    rows, found = cache.get(scorer.name, PAIR_KIND, keys)
    held = iter(rows)
    scores: dict[int, Tensor] = {i: next(held) for i, hit in enumerate(found.tolist()) if hit}
    missing = [i for i in range(len(pairs)) if i not in scores]

    def work(places: Sequence[int]) -> Tensor:
        pictures = [[image for _, image in pairs[i][0]] for i in places]
        return scorer.score_pairs(pictures, [pairs[i][1] for i in places])

    with meter.stage("encoder"):
        for places, fresh in batched_with_oom_retry(work, missing, batch_size):
            cache.put(scorer.name, PAIR_KIND, [keys[i] for i in places], fresh)
            scores |= dict(zip(places, fresh, strict=True))
    meter.texts_encoded += len(missing)
    meter.texts_cached += len(pairs) - len(missing)
    return torch.stack([scores[i] for i in range(len(pairs))]) if pairs else rows


def _fit(matching: MatchSpec, scorer: PairScorer, text: str, row: Tensor) -> TextScore:
    values = row.tolist()
    several = dict(zip(scorer.labels, values, strict=True)) if len(values) > 2 else None
    return matching.fit(text, values[scorer.positive], several)


def check_head(matching: MatchSpec) -> None:
    """UserError for options that a head does not have: negative prompts, a sigmoid."""
    if matching.score != "cosine":
        raise UserError("--score is for encoders; a head (--model) has a score of its own")
    if matching.against:
        raise UserError(
            "--against weighs texts by a dual encoder (--encoder); a head (--model) "
            "scores each pair by itself"
        )


def with_thresholds(
    matching: MatchSpec, thresholds: Thresholds | None, made_with: str
) -> MatchSpec:
    """The same with thresholds that were learned on the same scores; UserError for others."""
    if thresholds is not None:
        thresholds.check(made_with)
    return replace(matching, thresholds=thresholds)


def made_with(models: Mapping[str, str], scored: str, against: Sequence[str]) -> str:
    """What makes the scores, as thresholds remember it."""
    weighed = f" against {', '.join(against)}" if against else ""
    return f"{scored} of {' and '.join(models.values())}{weighed}"
