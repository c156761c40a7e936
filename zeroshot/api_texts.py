"""Questions, pairs and lines of text, in Python; `import zeroshot` offers them as it does `api`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zeroshot import images as pictures, prompts
from zeroshot.api import _run, _set
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inputs.source import Input, Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.results.result import Results
from zeroshot.results.text import AskResult, MatchResult, ReadResult
from zeroshot.tasks.captioning.trained_task import ReadJob
from zeroshot.tasks.matching.match_task import MatchJob
from zeroshot.tasks.matching.scoring import Score
from zeroshot.tasks.matching.thresholds import Thresholds
from zeroshot.tasks.vqa.ask_task import AskJob
from zeroshot.tasks.vqa.statements import PRESENT


def match(
    pairs: Input | Iterable[Any],
    texts: str | Sequence[str] = (),
    models: str | ModelSet = "base",
    *,
    model: str | None = None,
    against: str | Sequence[str] = (),
    score: Score = "cosine",
    thresholds: Thresholds | None = None,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | None = None,
) -> Results[MatchResult]:
    """How well texts fit pictures: one result per picture, in order.

    Args:
        pairs: pictures as for `caption`, tables of path,caption, or `(picture, text)` tuples.
        texts: matched with every picture; without any, the captions that come with each.
        models: a model set, whose encoder gives cosines.
        model: a model whose head reads picture and text together instead:
            `hf:Salesforce/blip-itm-base-coco`.
        against: texts that those are weighed against, by an encoder.
        score: of an encoder; `sigmoid` is for those that were trained with one (SigLIP).
        thresholds: from `tasks.matching.thresholds.learn`; then every text has a label too.

    Raises:
        UserError: an unknown name. NotAvailableError: a model that is not here.
    """
    job = MatchJob(_set(models), model, _several(texts), _several(against), thresholds, score)
    return Results(_run(job, _pairs(pairs), cache, batch_size))


def ask(
    images: Input | Iterable[Input],
    question: str | Sequence[str] | Mapping[str, Sequence[str]],
    models: str | ModelSet = "base",
    *,
    model: str | None = None,
    top_k: int = 1,
    answers: str | Sequence[str] = (),
    among: str | Sequence[str] = (),
    present: float = PRESENT,
    regions: str | Path | None = None,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | None = None,
) -> Results[AskResult]:
    """Answers about pictures: one result per picture, in order.

    Args:
        images: as for `caption`.
        question: one or several about every picture, or those of each by its path.
        models: a model set, whose encoder answers by matching statements.
        model: a model that answers instead: `hf:dandelin/vilt-b32-finetuned-vqa`.
        top_k: answers to each question.
        answers: to choose from, by matching; with `regions`, the names of the model's outputs.
        among: by matching, names of what may be in the pictures: a list, `"cat,dog"` or a file.
        present: share of the softmax over `among` from which a name is there.
        regions: an .npz of what a detector saw, for LXMERT and VisualBERT.

    Raises:
        UserError: an unknown name, a question that matching cannot answer.
        NotAvailableError: a model that is not here.
    """
    asked = question if isinstance(question, Mapping) else _several(question)
    job = AskJob(
        _set(models),
        asked,
        model,
        top_k,
        prompts.load_labels(answers) if answers else (),
        prompts.load_labels(among) if among else (),
        present,
        None if regions is None else Path(regions),
    )
    return Results(_run(job, pictures.find(images).sources, cache, batch_size))


def read(
    images: Input | Iterable[Input],
    model: str = "hf:microsoft/trocr-base-printed",
    *,
    batch_size: int = AUTO_BATCH,
) -> Results[ReadResult]:
    """The line of text that each picture shows: one result per picture, in order."""
    job = ReadJob(_set("base"), model)
    return Results(_run(job, pictures.find(images).sources, None, batch_size))


def _several(texts: str | Sequence[str]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)


def _pairs(pairs: Any) -> tuple[Source, ...]:
    """Pictures; a tuple of a picture and its text is one that came with its caption."""
    given = [pairs] if isinstance(pairs, Input) else list(pairs)
    found: list[Source] = []
    for pair in given:
        if not isinstance(pair, tuple):
            found += pictures.find(pair).sources
            continue
        if len(pair) != 2 or not isinstance(pair[1], str):
            raise UserError("a pair is a picture and its text")
        picture, text = pair
        (source,) = pictures.find(picture).sources
        found.append(Source(source.path, source.content, {**source.fields, "caption": text}))
    return tuple(found)
