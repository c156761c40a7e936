"""The functions a notebook needs; `import zeroshot` offers them without importing torch."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

from PIL.Image import Image

from zeroshot import images as pictures, models as loaders, prompts as sentences_of
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.datasets.labels import read_labeled_images
from zeroshot.datasets.protocols import Task
from zeroshot.errors import UserError
from zeroshot.evaluation.evaluation import Evaluation, Sampling, evaluation
from zeroshot.evaluation.experiment import question
from zeroshot.evaluation.predict import Choice
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Input, Source
from zeroshot.metrics.bootstrap import CONFIDENCE, DRAWS
from zeroshot.model_set.model_set import ModelSet, resolve
from zeroshot.model_set.spec import is_set
from zeroshot.models.base import DualEncoder, ImageEncoder, LanguageModel, TextEncoder
from zeroshot.ranking.exact import correction
from zeroshot.results.result import (
    CaptionResult,
    ClassifyResult,
    EmbedResult,
    Results,
    SearchResult,
)
from zeroshot.tasks import search as searching
from zeroshot.tasks.captioning.caption_task import CaptionJob
from zeroshot.tasks.captioning.trained_task import NativeCaptionJob
from zeroshot.tasks.classification.classifier import Learn
from zeroshot.tasks.classification.classify_task import ClassifyJob
from zeroshot.tasks.classification.heads import Head
from zeroshot.tasks.embed_task import EmbedJob
from zeroshot.tasks.task import Job

Asked = str | Path | bytes | Image | Source
"""Words, or a picture: a path as an object, a PIL image, bytes."""
Model = DualEncoder | ImageEncoder | TextEncoder | LanguageModel


def load(name: str, **how: Any) -> "Model | ModelSet":
    """A model by its name, or a model set by its name or directory.

    `how`: `device`, `precision`, `offline`, `trust_remote_code`.

    >>> zeroshot.load("open_clip:ViT-B-32/openai").encode_texts(["a cat"]).shape
    torch.Size([1, 512])
    >>> zeroshot.load("pocket").language_model.decode([5, 8])
    """
    if is_set(name):
        return resolve(name, **how)
    model: Model = loaders.load(name, **how)
    return model


def caption(
    images: Input | Iterable[Input],
    models: str | ModelSet = "base",
    method: str | None = None,
    *,
    preset: str | None = None,
    model: str | None = None,
    prompt: str | Sequence[str] | None = None,
    trace: bool = False,
    coupling: str | None = None,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | None = None,
    **options: Any,
) -> Results[CaptionResult]:
    """One result per picture, in order; a picture that cannot be read has an `error`.

    Args:
        images: paths, folders, PIL images or bytes, one or many.
        models: a model set, its name or its directory.
        method: `mbr`, `magic`, ... (`zeroshot methods`); without one the set's own, else `mbr`
            where the set has captions beside its anchors, and `magic` where it has none.
        model: with `method="native"`, a trained captioner.
        preset: a method's named settings: `coco`, `flickr30k`, `story` of `magic`.
        prompt: what texts begin with (a title with `preset="story"`), one for all or one each.
        trace: keep every choice as `result.trace`, which has `figure()` and `save()`.
        coupling: in place of the set's, `asif`, `csa`, ...; `auto` chooses.
        batch_size: pictures that decode together.
        cache: where embeddings are kept, and stays open; the user's cache without one.
        options: the method's, as `k=45`.

    Raises:
        UserError: an unknown name or option. NotAvailableError: a model that is not here.
    """
    job: Job
    if model is None and method != "native":
        job = CaptionJob(_set(models), method, options, preset, prompt, trace, coupling)
    else:
        job = _native(models, method, model, prompt, bool(options or preset or trace or coupling))
    return Results(_run(job, pictures.find(images).sources, cache, batch_size))


def classify(
    images: Input | Iterable[Input],
    labels: str | Sequence[str],
    models: str | ModelSet = "base",
    method: str | None = None,
    *,
    templates: str = "simple",
    score: Head | None = None,
    top_k: int | None = None,
    shots: str | Path | None = None,
    bank: Input | Iterable[Input] = (),
    prior: Sequence[float] = (),
    views: int = 0,
    explain: int = 0,
    multi: bool = False,
    against: str | Sequence[str] = (),
    threshold: float | None = None,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | None = None,
    **options: Any,
) -> Results[ClassifyResult]:
    """One result per picture, in order, with the best labels.

    Args:
        images, models, method, batch_size, cache, options: as for `caption`.
        labels: a list, `"cat,dog"`, a file, or `"imagenet"`.
        templates: `simple` (7), `openai` (80), `none`, `waffle`, a sentence with `{}`, or a file.
        score: `softmax`, `sigmoid` or `cosine`; the model's own without one.
        top_k: labels in a result; 5 without it, and all with `multi`.
        shots: labelled pictures to learn from: a folder per class, or a CSV file with path,label.
        bank: unlabelled pictures to learn from.
        prior: how frequent each label is, in their order.
        views: random parts of each picture, itself included.
        explain: how many anchors to name that carried the best label (couplings only).
        multi: several labels may hold, each scored by itself: by sigmoid (SigLIP) or cosine.
        against: with `multi`, texts that each label is weighed against.
        threshold: with `multi`, the least score of a label in a result.

    Raises:
        UserError: an unknown name or option, a prompt longer than the text encoder reads.
        NotAvailableError: a model that is not here.
    """
    names = sentences_of.load_labels(labels)
    job = ClassifyJob(
        _set(models),
        names,
        sentences_of.expand(names, sentences_of.load_templates(templates, names)),
        method,
        options,
        score,
        learn=Learn(
            shots=None if shots is None else read_labeled_images(Path(shots), names),
            bank=pictures.find(bank).sources,
            prior=tuple(prior),
            views=views,
        ),
        explain=explain,
        top_k=top_k,
        multi=multi,
        against=(against,) if isinstance(against, str) else tuple(against),
        threshold=threshold,
    )
    return Results(_run(job, pictures.find(images).sources, cache, batch_size))


def search(
    query: Asked | Sequence[Asked],
    images: Input | Iterable[Input],
    models: str | ModelSet = "base",
    method: str | None = None,
    *,
    plus: Asked | Sequence[Asked] = (),
    minus: Asked | Sequence[Asked] = (),
    top_k: int = 10,
    min_score: float | None = None,
    bank: Sequence[Asked] = (),
    explain: int = 0,
    index: Literal["exact", "ivf", "ivfpq"] = "exact",
    half: bool = False,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | None = None,
    **options: Any,
) -> Results[SearchResult]:
    """The `top_k` best pictures for each query, best first, then the pictures that have an `error`.

    Args:
        query: words; a picture as a path object, a PIL image or bytes; or several queries.
        images, models, batch_size, cache: as for `caption`.
        method: re-rank by `dis`, `nnn`, `csls`, `inverted_softmax` or `dn`, with a `bank`.
        plus, minus: what is added to one query and taken away from it.
        min_score: leave out what scores less.
        bank: other queries of the same kind.
        explain: anchors to name for each hit of a query of words (couplings only).
        index: how to search; `ivf` and `ivfpq` are approximate (faiss), and warn with their recall.
        half: keep the rows in float16 while they are searched; scores are float32.
        options: the method's, as `alpha=0.5`.

    Raises:
        UserError: an unknown name or option, a query that cannot be asked.
        NotAvailableError: a model that is not here.
    """
    chosen = None if method is None else correction(method, options)
    if (chosen is None) != (not bank):
        raise UserError("a method re-ranks with a bank of other queries: give both or neither")
    if chosen is None and options:
        raise UserError(f"{', '.join(options)}: options of a method that re-ranks; give one")
    asked = [searching.Query((_term(one),)) for one in _several(query)]
    if plus or minus:
        if len(asked) != 1:
            raise UserError(f"plus and minus go with one query, not with {len(asked)}")
        more = [_term(x) for x in _several(plus)] + [_term(x, -1) for x in _several(minus)]
        asked = [searching.Query((*asked[0].terms, *more))]
    with _open(cache) as store:
        found = searching.search(
            asked,
            pictures.find(images).sources,
            _set(models),
            store,
            Meter(),
            k=top_k,
            min_score=min_score,
            method=chosen,
            bank=[searching.Query((_term(one),)) for one in bank],
            explained=explain,
            index=index,
            half=half,
            batch_size=batch_size,
        )
        return Results(found.results)


def embed(
    images: Input | Iterable[Input],
    models: str | ModelSet = "base",
    *,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | None = None,
) -> Results[EmbedResult]:
    """Unit rows of the set's image encoder, one result per picture, in order."""
    return Results(_run(EmbedJob(_set(models)), pictures.find(images).sources, cache, batch_size))


def evaluate(
    data: str | Path,
    task: Task | None = None,
    models: str | ModelSet = "base",
    methods: str | Sequence[str] | None = None,
    *,
    protocol: str | None = None,
    truth: str | Path | None = None,
    split: str | None = None,
    labels: str | None = None,
    templates: str | None = None,
    score: Head | None = None,
    against: str | Sequence[str] = (),
    threshold: float | None = None,
    held_out: float | None = None,
    judge: DualEncoder | None = None,
    coupling: str | None = None,
    draws: int = DRAWS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | None = None,
    **options: Any,
) -> Evaluation:
    """How good methods are on pictures whose truth is known, with intervals.

    Args:
        data: a folder of pictures, a CLIP_benchmark webdataset, or a file of labels.
        task: `classify`, `multilabel`, `caption` or `retrieve`; a protocol knows.
        models, batch_size, cache: as for `caption`.
        methods: one or several, each tested against the first; the set's own without.
        protocol: class names, templates and split by one name (docs/evaluation.md).
        truth: labels or captions of the pictures, in a file.
        split, labels, templates: of the data; `labels` and `templates` as for `classify`.
        score, against: as for `classify`; `against` of several labels.
        threshold: of several labels, from which one holds; without, F1 is not told.
        held_out: the share of the pictures that a threshold is chosen on instead.
        judge, coupling: of captions: an encoder for CLIPScore, and as for `caption`.
        draws, confidence, seed: of the intervals.
        options: of the method, where it is one.

    Raises:
        UserError: an unknown name or option, data of another kind.
    """
    names = [methods] if methods is None or isinstance(methods, str) else list(methods)
    if options and len(names) > 1:
        raise UserError("options belong to one method, and several are compared")
    sampling = Sampling(draws, confidence, seed)
    with _open(cache) as store:
        asked = question(
            task,
            Path(data),
            _set(models),
            store,
            Meter(),
            protocol=protocol,
            truth=None if truth is None else Path(truth),
            split=split,
            labels=labels,
            templates=templates,
            head=score,
            judge=judge,
            coupling=coupling,
            batch_size=batch_size,
            choice=Choice(threshold, held_out, seed),
            against=[against] if isinstance(against, str) else against,
        )
        return evaluation(asked, [asked.answers(name, options) for name in names], sampling)


def _native(
    models: str | ModelSet,
    method: str | None,
    model: str | None,
    prompt: str | Sequence[str] | None,
    more: bool,
) -> NativeCaptionJob:
    if model is None or method != "native":
        raise UserError('a trained captioner is asked for by method="native" and model=NAME')
    if more or not isinstance(prompt, str | None):
        raise UserError("a trained captioner has no options, and one prompt for all pictures")
    return NativeCaptionJob(_set(models), model, prompt)


def _open(cache: EmbeddingCache | None) -> AbstractContextManager[EmbeddingCache]:
    """The cache given, which stays open, or the user's, which is closed at the end."""
    return EmbeddingCache() if cache is None else nullcontext(cache)


def _run(
    job: Job, sources: Sequence[Source], cache: EmbeddingCache | None, batch_size: int
) -> Iterator[Any]:
    meter = Meter()
    with _open(cache) as store:
        yield from job.open(store, meter, batch_size)(sources, meter)


def _several(given: Asked | Sequence[Asked]) -> Sequence[Asked]:
    return [given] if isinstance(given, Asked) else given


def _term(given: Asked, sign: Literal[1, -1] = 1) -> searching.Term:
    if isinstance(given, str):
        if not given.strip():
            raise UserError("a query without words; give some, or a picture")
        return searching.Term(text=given, sign=sign)
    return searching.Term(picture=pictures.find(given).sources[0], sign=sign)


def _set(models: str | ModelSet) -> ModelSet:
    return models if isinstance(models, ModelSet) else resolve(models)
