"""Pictures and questions to answers: by a model that answers, from regions, or by matching."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.batching import batched_with_oom_retry
from zeroshot.inference.decoded_images import ImageBatch, load_batches
from zeroshot.inference.embedding import (
    AUTO_BATCH,
    canonical_names,
    embed_pictures,
    embed_texts,
    image_encoder_of,
    pad_prompts,
    project_images,
    project_texts,
    text_encoder_of,
)
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import EmbeddingBatch
from zeroshot.inputs.source import Source
from zeroshot.models.base import (
    Answer,
    Answerer,
    DualEncoder,
    Image,
    RegionAnswerer,
    Regions,
    TextEncoder,
)
from zeroshot.prompts import expand, load_templates
from zeroshot.results.result import Failure
from zeroshot.results.text import AskResult, QuestionAnswers
from zeroshot.tasks.vqa.ask_options import PRESENT
from zeroshot.tasks.vqa.statements import Question, covered, parse, statements

__all__ = ["ByMatching", "Questions", "by_matching", "by_model", "by_regions", "matching"]

NO_QUESTION = Failure("NoQuestion", "there is no question about this picture")

Questions = Callable[[Source], Sequence[str]]
"""The questions about a picture."""


def by_model(
    sources: Iterable[Source],
    answerer: Answerer,
    questions: Questions,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
    top_k: int = 1,
) -> Iterator[AskResult]:
    """One result per picture, in order, with the answers to all its questions."""

    def answer(images: Sequence[Image], asked: Sequence[str]) -> list[tuple[Answer, ...]]:
        return answerer.answer(images, asked, top_k)

    look = _Look("answer", "language model", answer, lambda batch, i: batch.images[i])
    return _each(sources, answerer, questions, meter, batch_size, look)


def by_regions(
    sources: Iterable[Source],
    answerer: RegionAnswerer,
    regions: Mapping[str, Regions],
    questions: Questions,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
    top_k: int = 1,
) -> Iterator[AskResult]:
    """As `by_model`, from what a detector saw; the pictures are opened for their ids alone."""

    def answer(seen: Sequence[Regions], asked: Sequence[str]) -> list[tuple[Answer, ...]]:
        return answerer.answer_regions(seen, asked, top_k)

    look = _Look(
        "regions",
        "encoder",
        answer,
        lambda batch, i: regions[_place(batch.sources[i])],
        lambda source: _unseen(source, regions),
    )
    return _each(sources, answerer, questions, meter, batch_size, look)


Seen = TypeVar("Seen")


@dataclass(frozen=True)
class _Look(Generic[Seen]):
    """What an answerer is shown of a picture, and how it is asked."""

    method: str
    stage: str
    answer: Callable[[Sequence[Seen], Sequence[str]], list[tuple[Answer, ...]]]
    seen: Callable[[ImageBatch, int], Seen]
    """Of the picture at a place of a batch."""
    unseen: Callable[[Source], Failure | None] = lambda source: None
    """Why there is nothing to show."""


def _each(
    sources: Iterable[Source],
    answerer: Answerer | RegionAnswerer,
    questions: Questions,
    meter: Meter,
    batch_size: int,
    look: _Look[Seen],
) -> Iterator[AskResult]:
    def work(pairs: Sequence[tuple[Seen, str]]) -> list[tuple[Answer, ...]]:
        seen, asked = zip(*pairs, strict=True)
        return look.answer(seen, asked)

    for batch in load_batches(sources, meter, batch_size):
        asked = [tuple(questions(source)) for source in batch.sources]
        failures = [
            failure or _wrong(answerer, q) or look.unseen(source)
            for failure, q, source in zip(batch.failures, asked, batch.sources, strict=True)
        ]
        good = [i for i in batch.images if failures[i] is None]
        meter.failed += len(batch.images) - len(good)
        pairs = [(look.seen(batch, i), question) for i in good for question in asked[i]]
        with meter.stage(look.stage):
            answers = iter(
                [a for _, said in batched_with_oom_retry(work, pairs, batch_size) for a in said]
            )
        said = {i: tuple(QuestionAnswers(q, next(answers)) for q in asked[i]) for i in good}
        for i, source in enumerate(batch.sources):
            yield AskResult(
                source=source,
                id=batch.ids[i],
                error=failures[i],
                models={"answerer": answerer.name},
                method=look.method,
                questions=said.get(i, ()),
                scored=answerer.scored,
            )


@dataclass(frozen=True)
class ByMatching:
    """What answers by matching: an encoder, answers or names to choose from."""

    encoder: DualEncoder
    answers: tuple[str, ...] = ()
    among: tuple[str, ...] = ()
    """Names of what may be in the pictures."""
    present: float = PRESENT
    """Share of the softmax over all names from which a name is taken to be there."""
    names: Float[Tensor, "c m"] = field(default_factory=lambda: torch.zeros(0, 0))

    @property
    def scored(self) -> str:
        """Shares of a softmax over statements; with names, how sure the presence is."""
        return "presence" if self.among else "softmax"


def matching(
    encoder: DualEncoder,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    answers: Sequence[str] = (),
    among: Sequence[str] = (),
    present: float = PRESENT,
    templates: str = "a {}",
) -> ByMatching:
    """Encode the names, each in all the templates, whose rows are averaged."""
    if answers and among:
        raise UserError("--answers are chosen from, --among are looked for: give one of them")
    if not 0 < present < 1:
        raise UserError(f"present={present}: a share between 0 and 1")
    names = torch.zeros(0, 0)
    if among:
        sentences = expand(tuple(among), load_templates(templates, tuple(among)))
        names = _means(encoder, sentences, cache, meter)
    return ByMatching(encoder, tuple(answers), tuple(among), present, names)


def by_matching(
    sources: Iterable[Source],
    ready: ByMatching,
    questions: Questions,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
    top_k: int = 1,
) -> Iterator[AskResult]:
    """As `by_model`, by a dual encoder, each different statement encoded once.

    UserError for an open question without answers to choose from.
    """
    encoder, used = ready.encoder, canonical_names(ready.encoder)
    known: dict[str, tuple[Question, Mapping[str, Tensor]]] = {}
    for batch in embed_pictures(sources, image_encoder_of(encoder), cache, meter, batch_size):
        asked = [tuple(questions(source)) for source in batch.sources]
        for text in {text for texts in asked for text in texts} - known.keys():
            known[text] = _prepared(parse(text), ready, cache, meter)
        failures = [
            failure or (None if texts else NO_QUESTION)
            for failure, texts in zip(batch.failures, asked, strict=True)
        ]
        meter.failed += sum(map(bool, failures)) - sum(map(bool, batch.failures))
        with meter.stage("scoring"):
            said = _answered(replace(batch, failures=failures), asked, ready, known, top_k)
        for i, source in enumerate(batch.sources):
            yield AskResult(
                source=source,
                id=batch.ids[i],
                error=failures[i],
                models=used,
                method="matching",
                questions=said.get(i, ()),
                scored=ready.scored,
            )


def _prepared(
    question: Question, ready: ByMatching, cache: EmbeddingCache, meter: Meter
) -> tuple[Question, Mapping[str, Tensor]]:
    """A question and a row for each of its answers; none where names are looked for."""
    if ready.among:
        if question.form == "open":
            statements(question)  # says what to do
        covered(question.what, ready.among)
        return question, {}
    sentences = statements(question, ready.answers)
    rows = _means(ready.encoder, list(sentences.values()), cache, meter)
    return question, dict(zip(sentences, rows, strict=True))


def _answered(
    batch: EmbeddingBatch,
    asked: Sequence[tuple[str, ...]],
    ready: ByMatching,
    known: Mapping[str, tuple[Question, Mapping[str, Tensor]]],
    top_k: int,
) -> dict[int, tuple[QuestionAnswers, ...]]:
    good, scale = batch.readable, ready.encoder.logit_scale
    if not good:
        return {}
    images = project_images(ready.encoder, batch.rows[good])
    said = {}
    for i, image in zip(good, images, strict=True):
        here = []
        for text in asked[i]:
            question, rows = known[text]
            if ready.among:
                shares = (scale * (ready.names @ image)).softmax(0)
                answers: tuple[Answer, ...] = (present_answer(question, shares, ready),)
            else:
                scores = (scale * (torch.stack(list(rows.values())) @ image)).softmax(0)
                best = scores.topk(min(top_k, len(scores)))
                options = list(rows)
                answers = tuple(
                    Answer(options[place], score)
                    for place, score in zip(
                        best.indices.tolist(), best.values.tolist(), strict=True
                    )
                )
            here.append(QuestionAnswers(text, answers))
        said[i] = tuple(here)
    return said


def present_answer(question: Question, shares: Float[Tensor, " c"], ready: ByMatching) -> Answer:
    """Whether, or how many, of the names that a question covers are there.

    How sure that is: of one name `s / (s + present)` for its share `s`, which is a half where it
    decides; of an answer that hangs on several names, as sure as the least sure of them.
    """
    share = shares[covered(question.what, ready.among)]
    sure = share / (share + ready.present)
    there = share >= ready.present
    if question.form == "count":
        least = torch.where(there, sure, 1 - sure).min()
        return Answer(str(int(there.sum())), float(least))
    best = float(sure.max())
    return Answer("yes", best) if there.any() else Answer("no", 1 - best)


def _means(
    encoder: DualEncoder, sentences: Sequence[Sequence[str]], cache: EmbeddingCache, meter: Meter
) -> Float[Tensor, "c m"]:
    """The mean row of each group of sentences, at unit length.

    UserError for a sentence that is longer than the encoder reads.
    """
    flat = [sentence for group in sentences for sentence in group]
    _refuse_long(flat, text_encoder_of(encoder))
    rows = project_texts(encoder, embed_texts(flat, text_encoder_of(encoder), cache, meter))
    block, mask = pad_prompts(rows, [len(group) for group in sentences])
    mean = block.sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(mean, dim=1)


def _refuse_long(sentences: Sequence[str], reader: TextEncoder) -> None:
    limit = reader.context_length
    if limit is None:
        return
    for sentence, length in zip(sentences, reader.count_tokens(sentences), strict=True):
        if length > limit:
            raise UserError(
                f"a statement of {length} tokens, but the encoder reads {limit}: "
                f"'{sentence[:60]}...'"
            )


def _wrong(answerer: Any, questions: Sequence[str]) -> Failure | None:
    """Why a picture's questions cannot be asked: there are none, or one is too long."""
    if not questions:
        return NO_QUESTION
    limit = answerer.context_length
    counts = answerer.count_tokens(questions) if limit else ()
    for question, length in zip(questions, counts, strict=False):
        if length > limit:
            reason = f"{length} tokens, but the model reads {limit}: '{question[:60]}...'"
            return Failure("LongText", reason)
    return None


def _place(source: Source) -> str:
    return os.path.abspath(source.path or "")


def _unseen(source: Source, regions: Mapping[str, Regions]) -> Failure | None:
    if _place(source) in regions:
        return None
    return Failure("NoRegions", "there are no regions of this picture")
