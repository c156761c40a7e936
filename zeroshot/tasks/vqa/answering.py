"""Images and questions to answers: by a model, from the regions of a detector, or by matching."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

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
    embed_images,
    embed_texts,
    image_encoder_of,
    long_text_failure,
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
)
from zeroshot.prompts import expand, load_templates
from zeroshot.results.result import Failure
from zeroshot.results.text import AskResult, QuestionAnswers
from zeroshot.tasks.vqa.ask_options import PRESENT
from zeroshot.tasks.vqa.statements import Question, covered, parse, statements

__all__ = ["ByMatching", "QuestionsOf", "by_matching", "by_model", "by_regions", "matching"]

NO_QUESTION = Failure("NoQuestion", "there is no question about this image")

QuestionsOf = Callable[[Source], Sequence[str]]
"""The questions about an image."""


def by_model(
    sources: Iterable[Source],
    answerer: Answerer,
    questions: QuestionsOf,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
    top_k: int = 1,
) -> Iterator[AskResult]:
    """One result per image, in order, with the answers to all its questions."""

    def answer(images: Sequence[Image], texts: Sequence[str]) -> list[tuple[Answer, ...]]:
        return answerer.answer(images, texts, top_k)

    how = _Answering("answer", "language model", answer, lambda batch, i: batch.images[i])
    return _answer_batches(sources, answerer, questions, meter, batch_size, how)


def by_regions(
    sources: Iterable[Source],
    answerer: RegionAnswerer,
    regions: Mapping[str, Regions],
    questions: QuestionsOf,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
    top_k: int = 1,
) -> Iterator[AskResult]:
    """As `by_model`, from the regions of a detector. The images are read only for their ids."""

    def answer(inputs: Sequence[Regions], texts: Sequence[str]) -> list[tuple[Answer, ...]]:
        return answerer.answer_regions(inputs, texts, top_k)

    def failure(source: Source) -> Failure | None:
        if _absolute(source) in regions:
            return None
        return Failure("NoRegions", "there are no regions of this image")

    how = _Answering(
        "regions",
        "encoder",
        answer,
        lambda batch, i: regions[_absolute(batch.sources[i])],
        failure,
    )
    return _answer_batches(sources, answerer, questions, meter, batch_size, how)


def _absolute(source: Source) -> str:
    return os.path.abspath(source.path or "")


Input = TypeVar("Input")


@dataclass(frozen=True)
class _Answering(Generic[Input]):
    """How a model answers, and what it is given of an image: pixels or regions."""

    method: str
    stage: str
    answer: Callable[[Sequence[Input], Sequence[str]], list[tuple[Answer, ...]]]
    input_of: Callable[[ImageBatch, int], Input]
    """The input for the image with this index in a batch."""
    failure: Callable[[Source], Failure | None] = lambda source: None
    """Why an image has no input."""


def _answer_batches(
    sources: Iterable[Source],
    answerer: Answerer | RegionAnswerer,
    questions: QuestionsOf,
    meter: Meter,
    batch_size: int,
    how: _Answering[Input],
) -> Iterator[AskResult]:
    def work(pairs: Sequence[tuple[Input, str]]) -> list[tuple[Answer, ...]]:
        inputs, texts = zip(*pairs, strict=True)
        return how.answer(inputs, texts)

    for batch in load_batches(sources, meter, batch_size):
        texts = [tuple(questions(source)) for source in batch.sources]
        failures = [
            failure or _question_failure(answerer, own) or how.failure(source)
            for failure, own, source in zip(batch.failures, texts, batch.sources, strict=True)
        ]
        good = [i for i in batch.images if failures[i] is None]
        meter.failed += len(batch.images) - len(good)
        pairs = [(how.input_of(batch, i), question) for i in good for question in texts[i]]
        with meter.stage(how.stage):
            parts = batched_with_oom_retry(work, pairs, batch_size)
            answers = iter([answer for _, part in parts for answer in part])
        results = {i: tuple(QuestionAnswers(q, next(answers)) for q in texts[i]) for i in good}
        for i, source in enumerate(batch.sources):
            yield AskResult(
                source=source,
                id=batch.ids[i],
                error=failures[i],
                models={"answerer": answerer.name},
                method=how.method,
                questions=results.get(i, ()),
                scored=answerer.scored,
            )


def _question_failure(
    answerer: Answerer | RegionAnswerer, questions: Sequence[str]
) -> Failure | None:
    """Why an image's questions cannot be answered: there are none, or one is too long."""
    if not questions:
        return NO_QUESTION
    return long_text_failure(questions, answerer)


@dataclass(frozen=True)
class ByMatching:
    """A dual encoder that answers, with the answers to choose from or the names to look for."""

    encoder: DualEncoder
    answers: tuple[str, ...] = ()
    among: tuple[str, ...] = ()
    """Names of things that images may show."""
    present: float = PRESENT
    """A name is present if its share of the softmax over all names is at least this."""
    names: Float[Tensor, "c m"] = field(default_factory=lambda: torch.zeros(0, 0))

    @property
    def scored(self) -> str:
        """What a score is: a softmax over statements or, with names, the certainty of presence."""
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
    """Encode the names, each as the mean over all templates."""
    if answers and among:
        raise UserError(
            "--answers are chosen from and --among are looked for in the image: give one of them"
        )
    if not 0 < present < 1:
        raise UserError(f"present={present}: expected a number between 0 and 1")
    names = torch.zeros(0, 0)
    if among:
        prompts = expand(tuple(among), load_templates(templates, tuple(among)))
        names = _means(encoder, prompts, cache, meter)
    return ByMatching(encoder, tuple(answers), tuple(among), present, names)


def by_matching(
    sources: Iterable[Source],
    ready: ByMatching,
    questions: QuestionsOf,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
    top_k: int = 1,
) -> Iterator[AskResult]:
    """As `by_model`, by a dual encoder; every distinct question is encoded once.

    UserError for an open question without answers to choose from.
    """
    encoder, used = ready.encoder, canonical_names(ready.encoder)
    known: dict[str, tuple[Question, Mapping[str, Tensor]]] = {}
    for batch in embed_images(sources, image_encoder_of(encoder), cache, meter, batch_size):
        texts = [tuple(questions(source)) for source in batch.sources]
        for text in {text for own in texts for text in own} - known.keys():
            known[text] = _encode_answers(parse(text), ready, cache, meter)
        failures = [
            failure or (None if own else NO_QUESTION)
            for failure, own in zip(batch.failures, texts, strict=True)
        ]
        meter.failed += sum(map(bool, failures)) - sum(map(bool, batch.failures))
        with meter.stage("scoring"):
            results = _match(replace(batch, failures=failures), texts, ready, known, top_k)
        for i, source in enumerate(batch.sources):
            yield AskResult(
                source=source,
                id=batch.ids[i],
                error=failures[i],
                models=used,
                method="matching",
                questions=results.get(i, ()),
                scored=ready.scored,
            )


def _encode_answers(
    question: Question, ready: ByMatching, cache: EmbeddingCache, meter: Meter
) -> tuple[Question, Mapping[str, Tensor]]:
    """A question, and an embedding for each of its answers; no answers if names are looked for."""
    if ready.among:
        if question.form == "open":
            statements(question)  # raises, and says what to do
        covered(question.what, ready.among)
        return question, {}
    texts = statements(question, ready.answers)
    embeddings = _means(ready.encoder, list(texts.values()), cache, meter)
    return question, dict(zip(texts, embeddings, strict=True))


def _match(
    batch: EmbeddingBatch,
    texts: Sequence[tuple[str, ...]],
    ready: ByMatching,
    known: Mapping[str, tuple[Question, Mapping[str, Tensor]]],
    top_k: int,
) -> dict[int, tuple[QuestionAnswers, ...]]:
    """The answers to all questions about each image, by the image's index."""
    good, scale = batch.readable, ready.encoder.logit_scale
    if not good:
        return {}
    images = project_images(ready.encoder, batch.embeddings[good])

    def answers(text: str, image: Tensor) -> tuple[Answer, ...]:
        question, options = known[text]
        if ready.among:
            shares = (scale * (ready.names @ image)).softmax(0)
            return (present_answer(question, shares, ready),)
        scores = (scale * (torch.stack(list(options.values())) @ image)).softmax(0)
        best = scores.topk(min(top_k, len(scores)))
        names = list(options)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return tuple(Answer(names[index], score) for index, score in pairs)

    return {
        i: tuple(QuestionAnswers(text, answers(text, image)) for text in texts[i])
        for i, image in zip(good, images, strict=True)
    }


def present_answer(question: Question, shares: Float[Tensor, " c"], ready: ByMatching) -> Answer:
    """Whether, or how many, of the names that a question covers are present.

    The score of one name is `s / (s + present)`, where `s` is its share: one half at the threshold.
    The score of an answer that depends on several names is that of the least certain name.
    """
    share = shares[covered(question.what, ready.among)]
    certainty = share / (share + ready.present)
    present = share >= ready.present
    if question.form == "count":
        lowest = torch.where(present, certainty, 1 - certainty).min()
        return Answer(str(int(present.sum())), float(lowest))
    best = float(certainty.max())
    return Answer("yes", best) if present.any() else Answer("no", 1 - best)


def _means(
    encoder: DualEncoder, prompts: Sequence[Sequence[str]], cache: EmbeddingCache, meter: Meter
) -> Float[Tensor, "c m"]:
    """The mean embedding of each group of prompts, at unit length.

    UserError for a prompt that is longer than the encoder reads.
    """
    flat, reader = [prompt for group in prompts for prompt in group], text_encoder_of(encoder)
    if (failure := long_text_failure(flat, reader, "the encoder")) is not None:
        raise UserError(f"a statement of {failure.message}")
    embeddings = project_texts(encoder, embed_texts(flat, reader, cache, meter))
    block, mask = pad_prompts(embeddings, [len(group) for group in prompts])
    mean = block.sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(mean, dim=1)
