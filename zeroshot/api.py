"""The functions of `import zeroshot`, which imports them, and torch, on first use.

Each function has a typed signature; its keywords are the fields of the task's options
(`tests/test_options.py` compares the two), so a function is one call. What it is called with is
checked at its door (`tasks.arguments`).
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL.Image import Image

from zeroshot import models as loaders
from zeroshot.cache.embedding_cache import EmbeddingCache, NullCache, open_cache
from zeroshot.datasets.protocols import EvaluationTask
from zeroshot.errors import UserError
from zeroshot.evaluation.evaluate_options import EvaluateOptions
from zeroshot.evaluation.evaluation import Evaluation, Sampling, evaluation
from zeroshot.evaluation.experiment import experiment
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.resolve import find
from zeroshot.inputs.source import Input, Source, with_captions
from zeroshot.inputs.text_files import whole_text
from zeroshot.methods import Captioner, Dense, Scorer
from zeroshot.metrics.bootstrap import CONFIDENCE, DRAWS
from zeroshot.model_set.model_set import ModelSet, resolve
from zeroshot.model_set.spec import is_set
from zeroshot.models.base import DualEncoder, ImageEncoder, LanguageModel, TextEncoder
from zeroshot.results.duplicate import DedupeResult
from zeroshot.results.explained import ExplainResult
from zeroshot.results.regions import DetectResult, SegmentResult
from zeroshot.results.result import (
    CaptionResult,
    ClassifyResult,
    EmbedResult,
    Results,
    SearchResult,
)
from zeroshot.results.text import AskResult, MatchResult, ReadResult
from zeroshot.tasks import search as searching
from zeroshot.tasks.arguments import checks_arguments
from zeroshot.tasks.captioning.caption_options import CaptionOptions, ReadOptions
from zeroshot.tasks.captioning.caption_task import caption_task
from zeroshot.tasks.captioning.trained import Read
from zeroshot.tasks.classification.calibration import Calibration
from zeroshot.tasks.classification.classify_options import (
    ClassifyOptions,
    LongText,
    ScoreKind,
    SetRule,
)
from zeroshot.tasks.classification.classify_task import Classify
from zeroshot.tasks.duplicates import dedupe as duplicates
from zeroshot.tasks.duplicates.dedupe_options import DedupeOptions
from zeroshot.tasks.embed import Embed
from zeroshot.tasks.embed_options import EmbedOptions
from zeroshot.tasks.explaining import explain as explaining
from zeroshot.tasks.explaining.explain_options import ExplainOptions
from zeroshot.tasks.localization.detect_options import DetectOptions, RegionSource
from zeroshot.tasks.localization.detection import Detect
from zeroshot.tasks.localization.segment_options import SegmentOptions
from zeroshot.tasks.localization.segmentation import Segment
from zeroshot.tasks.matching.match_options import MatchOptions, MatchScore
from zeroshot.tasks.matching.match_task import Match
from zeroshot.tasks.matching.thresholds import Thresholds
from zeroshot.tasks.options import BATCH_SIZE
from zeroshot.tasks.search_options import SearchIndex, SearchOptions
from zeroshot.tasks.task import Task
from zeroshot.tasks.tuning.recipe import Recipe
from zeroshot.tasks.tuning.tune_options import TuneOptions
from zeroshot.tasks.tuning.tune_task import tune_images
from zeroshot.tasks.vqa.ask_options import PRESENT, AskOptions
from zeroshot.tasks.vqa.ask_task import Ask

QueryTerm = str | Path | bytes | Image | Source
"""Words, or an image: a path as an object, a PIL image, bytes."""
Model = DualEncoder | ImageEncoder | TextEncoder | LanguageModel
O = TypeVar("O")  # noqa: E741


@checks_arguments()
def load(
    name: str | Path,
    *,
    device: str = "auto",
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto",
    offline: bool = False,
    trust_remote_code: bool = False,
    fast: bool = False,
    encoder: str | None = None,
    language_model: str | None = None,
) -> Model | ModelSet:
    """A model by its name, or a model set by its name or directory.

    `encoder` and `language_model` replace those of a model set; the others are those of
    `models.load`.

    >>> zeroshot.load("open_clip:ViT-B-32/openai").encode_texts(["a cat"]).shape
    torch.Size([1, 512])
    >>> zeroshot.load("pocket").language_model.decode([5, 8])

    Raises:
        UserError: an unknown name or option. NotAvailableError: a model that is not here.
    """
    how: Any = {
        "device": device,
        "precision": precision,
        "offline": offline,
        "trust_remote_code": trust_remote_code,
        "fast": fast,
    }
    if is_set(str(name)):
        return resolve(str(name), encoder=encoder, language_model=language_model, **how)
    if encoder is not None or language_model is not None:
        raise UserError(f"encoder and language_model are for a model set, and '{name}' is a model")
    model: Model = loaders.load(str(name), **how)
    return model


@checks_arguments(CaptionOptions, batch_size=BATCH_SIZE)
def caption(
    images: Input | Iterable[Input],
    models: str | Path | ModelSet = "base",
    method: str | Captioner | None = None,
    *,
    preset: str | None = None,
    lm: str | None = None,
    model: str | None = None,
    coupling: str | None = None,
    recipe: str | Path | Recipe | None = None,
    prompt: str | Sequence[str] | Mapping[str, str] | None = None,
    remember_texts: bool = False,
    box: Any = (),
    margin: float = 0.25,
    trace: bool = False,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | bool | None = None,
    **options: Any,
) -> Results[CaptionResult]:
    """One result per image, in order; an image that cannot be read has an `error`.

    Args:
        images: paths, folders, PIL images, bytes or files opened for bytes, one or many.
        models: a model set, its name or its directory.
        method: `mbr`, `magic`, ... (`zeroshot methods`), or an object with `caption`. Default: the
            set's own; otherwise `mbr` if its anchors have captions, else `magic`.
        preset: a method's named settings: `coco`, `flickr30k`, `story` of `magic`.
        lm: a language model in place of the set's.
        model: with `method="native"` or `"dlc"`, a trained captioner.
        coupling: in place of the set's, `asif`, `csa`, ...; `auto` chooses.
        recipe: what `tune(captions=...)` chose, or its file: method, options and coupling.
        prompt: what captions begin with (a title with `preset="story"`): one for all, one per
            image, or one by path.
        remember_texts: keep the texts that `magic` tries in the cache, for later runs.
        box: parts of the images to caption instead: one box, several for all images, or those of
            each by its path: `{r.path: [x.box for x in r.boxes] for r in detect(...)}`. A box is
            left, top, right, bottom in pixels. Each result is a `results.RegionsResult`, whose
            `regions` have `box`, `caption` and `score`.
        margin: what is seen around a box on each side, as a share of its width and height.
        trace: record every choice as `result.trace`, which has `figure()` and `save()`.
        batch_size: images that decode together.
        cache: where embeddings are stored; it stays open. Default: the user's cache; False: none.
        options: of the method, as `k=45`.

    Raises:
        UserError: an unknown name or option. NotAvailableError: a model that is not here.
    """
    given = _options(CaptionOptions, locals())
    return _results(caption_task(_set(models), given), find(images).sources, locals())


@checks_arguments(ClassifyOptions, batch_size=BATCH_SIZE)
def classify(
    images: Input | Iterable[Input],
    labels: str | Path | Sequence[str] = (),
    models: str | Path | ModelSet = "base",
    method: str | Scorer | None = None,
    *,
    templates: str | Path | Sequence[str] | None = None,
    score: ScoreKind | None = "auto",
    top_k: int | None = None,
    multi: bool = False,
    against: str | Sequence[str] = (),
    threshold: float | None = None,
    coupling: str | None = None,
    long_text: LongText = "error",
    shots: str | Path | None = None,
    bank: Input | Iterable[Input] = (),
    prior: str | Path | Sequence[float] = (),
    hierarchy: str | Path | None = None,
    recipe: str | Path | Recipe | None = None,
    calibration: str | Path | Calibration | None = None,
    abstain: float | None = None,
    none_of_these: bool = False,
    words: str | Sequence[str] = "",
    sets: float | None = None,
    set_rule: SetRule = "lac",
    explain: int = 0,
    views: int = 0,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | bool | None = None,
    **options: Any,
) -> Results[ClassifyResult]:
    """One result per image, in order, with the best labels.

    Args:
        images, models, batch_size, cache, options: as for `caption`.
        labels: a list, `"cat,dog"`, a file, or `"imagenet"`.
        method: a name (`zeroshot methods`), `"zpe+stata"`, or an object with `scores`.
        templates: `simple` (7, the default), `openai` (80), `none`, `waffle`, sentences with `{}`,
            or a file.
        score: `softmax`, `sigmoid` or `cosine`; `auto` is the model's own.
        top_k: labels in a result. Default: 5, and all of them with `multi`.
        multi: several labels may hold, each scored by itself: by sigmoid (SigLIP) or cosine.
        against: with `multi`, negative prompts: a score is the softmax probability against them.
        threshold: with `multi`, the lowest score of a label in a result.
        coupling: as for `caption`.
        long_text: `truncate` prompts that are longer than the text encoder reads, or `error`.
        shots: labelled images to learn from: a folder per class, or a CSV file with path,label.
        bank: unlabelled images to learn from.
        prior: how frequent each label is, in their order.
        hierarchy: instead of `labels`, a JSON file of labels with their kinds.
        recipe: what `tune` chose, or its file; it has the labels, prompts and method.
        calibration: the file that `zeroshot calibrate` wrote.
        abstain: with `calibration`, the fraction of images to leave unlabelled.
        none_of_these: also say how likely an image is to show none of the labels; `calibration` and
            `abstain` then leave such images unlabelled.
        words: with `none_of_these`, words that are no label, in place of 2000 common ones.
        sets: with `calibration`, also the set of labels that are possible: it has the right one
            for at least this fraction of images.
        set_rule: `lac` for the smallest sets, `aps` or `raps`.
        explain: how many anchors to name that contributed most to the best label (couplings).
        views: random crops of each image, itself included.

    Raises:
        UserError: an unknown name or option, a prompt longer than the text encoder reads.
        NotAvailableError: a model that is not here.
    """
    task = Classify.from_options(_set(models), _options(ClassifyOptions, locals()))
    return _results(task, find(images).sources, locals())


@checks_arguments(TuneOptions, batch_size=BATCH_SIZE)
def tune(
    images: Input | Iterable[Input] = (),
    labels: str | Sequence[str] = (),
    models: str | ModelSet = "base",
    *,
    shots: str | Path | None = None,
    truth: str | Path | None = None,
    queries: str | Path | None = None,
    captions: str | Path | None = None,
    split: str | None = None,
    templates: Sequence[str] = ("simple", "openai", "none"),
    among: Sequence[str] = (),
    budget: float = 60.0,
    suggest: int = 0,
    seed: int = 0,
    long_text: LongText = "error",
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | bool | None = None,
) -> Recipe:
    """Choose the method for these images; `classify(images, recipe=...)` uses the choice.

    With labelled images the choice is measured on images that took no part in it. The figures,
    `recipe.figures`, are balanced accuracies: each class weighs the same. With `queries` the recipe
    is for `search` and its figures are mean reciprocal ranks; with `captions` it is for `caption`,
    and they are CIDEr.

    Args:
        images: unlabelled images of the kind that is expected; may be none. A single folder is also
            where the images that `queries` or `captions` name are.
        labels, models, long_text, batch_size, cache: as for `classify`.
        shots: labelled images to learn from and to choose by: a folder per class, or a CSV file.
        truth: labelled images that only measure the methods.
        queries: instead of labels, a file of images with the queries that should find them.
        captions: instead of labels, a file of images with reference captions.
        split: of those files, if they have several.
        templates: prompts to try, the default first; among those of yours the best are searched.
        among: methods to try; all that the data allow by default.
        budget: seconds of one slow core for the choice, counted in operations beforehand.
        suggest: how many unlabelled images to name that are worth a label.
        seed: of the folds.

    Raises:
        UserError: no labels, no images, or an image or label that cannot be read.
        TuneInterruptedError: Ctrl-C during the choice, a KeyboardInterrupt; its `recipe` is the
            best so far.
    """
    options = TuneOptions(
        labels=labels, shots=shots, truth=truth, queries=queries, captions=captions, split=split,
        templates=templates, among=among, budget=budget, suggest=suggest, seed=seed,
        long_text=long_text,
    )  # fmt: skip
    unlabelled = list(find(images).sources) if images else []
    with _open(cache) as opened:
        return tune_images(
            _set(models),
            options,
            unlabelled,
            opened,
            Path(),
            lambda *_: None,
            batch_size=batch_size,
            root=Path(images) if isinstance(images, str | Path) and Path(images).is_dir() else None,
        )


@checks_arguments(SearchOptions, batch_size=BATCH_SIZE)
def search(
    query: QueryTerm | Sequence[QueryTerm],
    images: Input | Iterable[Input],
    models: str | Path | ModelSet = "base",
    method: str | None = None,
    *,
    plus: QueryTerm | Sequence[QueryTerm] = (),
    minus: QueryTerm | Sequence[QueryTerm] = (),
    compose: Literal["sum", "product"] = "sum",
    caption_weight: float | None = None,
    top_k: int = 10,
    min_score: float | None = None,
    bank: QueryTerm | Sequence[QueryTerm] = (),
    recipe: str | Path | Recipe | None = None,
    index: SearchIndex = "exact",
    coupling: str | None = None,
    half: bool = False,
    hide_duplicates: bool = False,
    explain: int = 0,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | bool | None = None,
    **options: Any,
) -> Results[SearchResult]:
    """The `top_k` best images for each query, best first, then the images that have an `error`.

    Args:
        query: words; an image as a path object, a PIL image or bytes; or several queries.
        images, models, batch_size, cache: as for `caption`.
        method: re-rank by `dis`, `nnn`, `csls`, `inverted_softmax` or `dn`, with a `bank`.
        plus, minus: what one query adds and subtracts.
        compose: of a query of images and words, their `sum`, or the `product` of the similarities.
        caption_weight: search captions that come with the images too: 0 is the image alone, 1 its
            caption alone.
        min_score: leave out hits that score less.
        bank: other queries of the same kind.
        recipe: what `tune(queries=...)` chose, or its file: method, options, coupling and bank.
        index: how to search; `ivf` and `ivfpq` are approximate (faiss), and warn with their recall.
        coupling: as for `caption`.
        half: keep embeddings in float16 during the search; scores are float32.
        hide_duplicates: leave out copies of better hits; `hidden` of a result says how many.
        explain: anchors to name for each hit of a query of words (couplings only).
        options: of the method, as `alpha=0.5`.

    Raises:
        UserError: an unknown name or option, a query that cannot be encoded.
        NotAvailableError: a model that is not here.
    """
    given = _options(SearchOptions, locals())
    queries = [searching.Query((_term(one),)) for one in _several(query)]
    if not queries:
        raise UserError("query is an empty list: give at least one text or image to look for")
    if more := [_term(x) for x in _several(plus)] + [_term(x, -1) for x in _several(minus)]:
        if len(queries) != 1:
            raise UserError(f"plus and minus go with one query, not with {len(queries)}")
        queries = [searching.Query((*queries[0].terms, *more))]
    others: Sequence[searching.Query] = [searching.Query((_term(one),)) for one in _several(bank)]
    given, others = searching.by_recipe(given, others)
    with _open(cache) as store:
        found = searching.search(
            queries,
            find(images).sources,
            _set(models),
            given,
            store,
            Meter(),
            bank=others,
            batch_size=batch_size,
        )
        return Results(found.results, SearchResult.schema)


@checks_arguments(DedupeOptions, batch_size=BATCH_SIZE)
def dedupe(
    images: Input | Iterable[Input],
    models: str | Path | ModelSet = "base",
    *,
    threshold: float = 0.8,
    whole_threshold: float = 0.5,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | bool | None = None,
) -> Results[DedupeResult]:
    """Which images are copies of others, and which to keep: one result per image.

    `keep` says whether to keep it, `reason` why. The images come in order, then those that have an
    `error`.

    Args:
        images, models, batch_size, cache: as for `caption`.
        threshold: the least cosine of a copy that is cropped or turned a little.
        whole_threshold: the least cosine of a copy that shows the whole image, also mirrored,
            turned by 90 degrees, smaller or re-saved.

    Raises:
        UserError: an unknown name or option.
        NotAvailableError: a model that is not here.
    """
    given = _options(DedupeOptions, locals())
    with _open(cache) as store:
        found = duplicates.dedupe(
            find(images).sources, _set(models), given, store, Meter(), batch_size=batch_size
        )
        return Results(found.results, DedupeResult.schema)


@checks_arguments(ExplainOptions, batch_size=BATCH_SIZE)
def explain(
    images: Input | Iterable[Input] = (),
    models: str | Path | ModelSet = "base",
    *,
    words: str | Sequence[str] = "",
    texts: str | Sequence[str] = (),
    mean: bool = False,
    bank: Input | Iterable[Input] = (),
    top_k: int = 10,
    coupling: str | None = None,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | bool | None = None,
    **options: Any,
) -> Results[ExplainResult]:
    """What images, folders and texts look like to a model, as sums of few words (SpLiCE).

    One result per image, or with `mean` per folder, in order; then one per text; then the images
    that have an `error`. To explain a hit of `search`, give its `source`.

    Args:
        images, models, batch_size, cache: as for `caption`.
        words: the words to explain by, or their file; default: 2000 common ones.
        texts: texts or labels to explain too.
        mean: one result for each folder, the mean of its images.
        bank: images whose mean is subtracted. Default: the images that are explained; of fewer
            than 20 nothing is subtracted. `mean_of` of a result says which.
        top_k: words of a result.
        coupling: as for `caption`.
        options: of the method, as `penalty=0.1`.

    Raises:
        UserError: nothing to explain, an unknown option, too few images in the bank.
        NotAvailableError: a model that is not here.
    """
    given = _options(ExplainOptions, locals())
    with _open(cache) as store:
        found = explaining.explain(
            find(images).sources, _set(models), given, store, Meter(), batch_size=batch_size
        )
        return Results(found.results, ExplainResult.schema)


@checks_arguments(EmbedOptions, batch_size=BATCH_SIZE)
def embed(
    images: Input | Iterable[Input],
    models: str | Path | ModelSet = "base",
    *,
    captions: bool = False,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | bool | None = None,
) -> Results[EmbedResult]:
    """Unit embeddings of the set's image encoder, one result per image, in order.

    `captions` embeds the captions that come with the images too, with the text encoder: a result
    for each caption.
    """
    task = Embed.from_options(_set(models), _options(EmbedOptions, locals()))
    found = find(images).sources
    return _results(task, tuple(with_captions(found, each=True)) if captions else found, locals())


@checks_arguments(SegmentOptions, batch_size=BATCH_SIZE)
def segment(
    images: Input | Iterable[Input],
    labels: str | Path | Sequence[str] = (),
    models: str | Path | ModelSet = "base",
    method: str | Dense | None = None,
    *,
    background: str | Path | Sequence[str] | None = None,
    templates: str | Path | Sequence[str] | None = None,
    model: str | None = None,
    patches_by: str | None = None,
    threshold: float | None = None,
    examples: str | Path | None = None,
    mix: float = 0.5,
    resolution: int = 0,
    refine: int = 20,
    window: int | None = None,
    masks: str | Path | None = None,
    draw: str | Path | None = None,
    overwrite: bool = False,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | bool | None = None,
    **options: Any,
) -> Results[SegmentResult]:
    """One result per image, in order, with the pixels of each label: `result.regions[0].mask`.

    Args:
        images, models, batch_size, cache, options: as for `caption`.
        labels: a list, `"cat,dog"`, or a file.
        method: how the patches of the set's dual encoder are read, a name or an object with
            `attend`. Default: `naclip`.
        background: what is none of the labels, in words, or `()`; a pixel that fits it best has no
            label. Default with a dual encoder: `prompts.BACKGROUND`.
        templates: as for `classify`. Default: `simple`, or `a photo of a {}` with a `model`.
        model: a segmentation model (CLIPSeg, GroupViT, SAM 3) instead.
        patches_by: a second vision encoder, by whose patches `proxyclip` attends and `lposs`
            spreads scores.
        threshold: pixels that score less have no label.
        examples: images of labels as prompts: a folder per label, or a CSV file.
        mix: weight of the examples in a label's prompt.
        resolution: shorter side in pixels of what a dual encoder sees; 0 for 1.5 times its own.
        refine: rounds of refinement at the edges of the image; 0 for none.
        window: side of a dual encoder's windows; 0 for the whole image. Default: its own.
        masks, draw: folders for masks and for images with the regions drawn on them.
        overwrite: replace files in these folders that hold something else.

    Raises:
        UserError: an unknown name or option, an encoder without patches, a file that is in the way.
        NotAvailableError: a model that is not here.
    """
    task = Segment.from_options(_set(models), _options(SegmentOptions, locals()))
    return _results(task, find(images).sources, locals())


@checks_arguments(DetectOptions, batch_size=BATCH_SIZE)
def detect(
    images: Input | Iterable[Input],
    labels: str | Path | Sequence[str] = (),
    models: str | Path | ModelSet = "base",
    *,
    query_images: Input | Iterable[Input] = (),
    sentence: str | None = None,
    model: str | None = None,
    threshold: float | None = None,
    word_threshold: float = 0.25,
    overlap: float = 0.5,
    background: str | Path | Sequence[str] | None = None,
    templates: str | Path | Sequence[str] | None = None,
    regions: RegionSource = "auto",
    resolution: int = 0,
    refine: int = 20,
    coupling: str | None = None,
    draw: str | Path | None = None,
    overwrite: bool = False,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | bool | None = None,
) -> Results[DetectResult]:
    """One result per image, in order, with a box for each thing found.

    Args:
        images, models, batch_size, cache: as for `caption`.
        labels: a list, `"cat,dog"`, or a file.
        query_images: instead of labels, images of what is looked for.
        sentence: instead of labels, a sentence; each of its phrases gets boxes.
        model: a detection model (OWL-ViT, OWLv2, Grounding DINO). Default: the set's dual encoder
            labels regions.
        threshold: boxes that score less are left out.
        word_threshold: words of the sentence that score less do not belong to a box.
        overlap: if two boxes of one label have a larger IoU, the one that scores less is left out.
        background: for a dual encoder, what is none of the labels, in words, or `()`. Default:
            `prompts.BACKGROUND`.
        templates: as for `classify`; a detection model reads one prompt for each label.
        regions: `dense` or `windows`: where a dual encoder looks.
        coupling: as for `caption`.
        resolution: shorter side in pixels of the image that a dual encoder's dense map is made of.
        refine: rounds of refinement of that map; 0 for none.
        draw: a folder for images with the boxes drawn on them.
        overwrite: replace files in that folder that hold something else.

    Raises:
        UserError: an unknown option, or a model that cannot do this.
        NotAvailableError: a model that is not here.
    """
    task = Detect.from_options(_set(models), _options(DetectOptions, locals()))
    return _results(task, find(images).sources, locals())


@checks_arguments(MatchOptions, batch_size=BATCH_SIZE)
def match(
    pairs: Input | Iterable[Any],
    texts: str | Sequence[str] = (),
    models: str | Path | ModelSet = "base",
    *,
    model: str | None = None,
    against: str | Sequence[str] = (),
    score: MatchScore = "cosine",
    coupling: str | None = None,
    thresholds: str | Path | Thresholds | None = None,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | bool | None = None,
) -> Results[MatchResult]:
    """How well texts fit images: one result per image, in order.

    Args:
        pairs: images as for `caption`, tables of path,caption, or `(image, text)` tuples.
        texts: matched with every image. Default: the captions that come with each.
        models: a model set, whose encoder gives cosines.
        model: instead, a model whose head reads image and text together:
            `hf:Salesforce/blip-itm-base-coco`.
        against: negative prompts: a score is the softmax probability against them (of an encoder).
        score: of an encoder; `sigmoid` is for models trained with one (SigLIP).
        coupling: as for `caption`.
        thresholds: from `tasks.matching.thresholds.learn`, or a file of them; then every text has
            a label too.

    Raises:
        UserError: an unknown name. NotAvailableError: a model that is not here.
    """
    task = Match.from_options(_set(models), _options(MatchOptions, locals()))
    sources = _pairs(pairs)
    return _results(task, sources if texts else tuple(with_captions(sources)), locals())


@checks_arguments(AskOptions, batch_size=BATCH_SIZE)
def ask(
    images: Input | Iterable[Input],
    question: str | Sequence[str] | Mapping[str, Sequence[str]],
    models: str | Path | ModelSet = "base",
    *,
    model: str | None = None,
    top_k: int = 1,
    answers: str | Path | Sequence[str] = (),
    among: str | Path | Sequence[str] = (),
    present: float = PRESENT,
    coupling: str | None = None,
    regions: str | Path | None = None,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | bool | None = None,
) -> Results[AskResult]:
    """Answers about images: one result per image, in order.

    Args:
        images: as for `caption`.
        question: one or several about every image, or those of each by its path.
        models: a model set, whose encoder answers by matching statements.
        model: a model that answers instead: `hf:dandelin/vilt-b32-finetuned-vqa`.
        top_k: answers to each question.
        answers: to choose from, by matching; with `regions`, the names of the model's outputs.
        among: by matching, names of what may be in the images: a list, `"cat,dog"` or a file.
        present: fraction of the softmax over `among` at which a name counts as present.
        coupling: as for `caption`.
        regions: an .npz of what a detector found, for LXMERT and VisualBERT.

    Raises:
        UserError: an unknown name, a question that matching cannot answer.
        NotAvailableError: a model that is not here.
    """
    task = Ask.from_options(_set(models), _options(AskOptions, locals()), question)
    return _results(task, find(images).sources, locals())


@checks_arguments(ReadOptions, batch_size=BATCH_SIZE)
def read(
    images: Input | Iterable[Input],
    model: str = "hf:microsoft/trocr-base-printed",
    *,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | bool | None = None,
) -> Results[ReadResult]:
    """The line of text that each image shows: one result per image, in order."""
    task = Read.from_options(_set("base"), _options(ReadOptions, locals()))
    return _results(task, find(images).sources, locals())


@checks_arguments(EvaluateOptions, batch_size=BATCH_SIZE)
def evaluate(
    data: str | Path,
    task: EvaluationTask | None = None,
    models: str | Path | ModelSet = "base",
    methods: str | Sequence[str] | None = None,
    *,
    protocol: str | None = None,
    truth: str | Path | None = None,
    split: str | None = None,
    labels: str | Path | Sequence[str] | None = None,
    templates: str | Path | Sequence[str] | None = None,
    coupling: str | None = None,
    score: ScoreKind | None = "auto",
    against: str | Sequence[str] = (),
    threshold: float | None = None,
    held_out: float | None = None,
    long_text: LongText = "error",
    judge: DualEncoder | None = None,
    draws: int = DRAWS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | bool | None = None,
    **options: Any,
) -> Evaluation:
    """How good methods are on images whose truth is known, with confidence intervals.

    Args:
        data: a folder of images, a CLIP_benchmark webdataset, or a file of labels.
        task: `classify`, `multilabel`, `caption` or `retrieve`. Default: that of the protocol.
        models, batch_size, cache: as for `caption`.
        methods: one or several, each tested against the first. Default: the set's own.
        protocol: class names, templates and split by one name (docs/evaluation.md).
        truth: labels or captions of the images, in a file.
        split, labels, templates: of the data; `labels` and `templates` as for `classify`.
        coupling: as for `caption`.
        score, against, long_text: as for `classify`; `against` is for `multilabel`.
        threshold: for `multilabel`, the score from which a label holds; without it there is no F1.
        held_out: fraction of the images used to choose the threshold instead of passing one.
        judge: for captions, an encoder for CLIPScore.
        draws, confidence, seed: of the bootstrap intervals.
        options: of the method, if there is one.

    Raises:
        UserError: an unknown name or option, data of another kind.
    """
    given = _options(EvaluateOptions, locals())
    names = [methods] if methods is None or isinstance(methods, str) else list(methods)
    if len(set(names)) < len(names):
        raise UserError(f"methods is {names}, and each of them is measured once")
    if options and len(names) > 1:
        raise UserError("options are for one method, and several are compared")
    with _open(cache) as store:
        measured = experiment(
            Path(data),
            _set(models),
            given,
            store,
            Meter(),
            judge=None if judge is None else lambda: judge,
            batch_size=batch_size,
        )
        predictions = [measured.evaluate_method(name, options) for name in names]
        return evaluation(measured, predictions, Sampling(draws, confidence, seed))


def _options(kind: type[O], given: Mapping[str, Any]) -> O:
    """The options dataclass, from the arguments of a function by their names."""
    declared: Any = kind
    return kind(**{f.name: given[f.name] for f in fields(declared) if f.name in given})


def _results(task: Task[Any], sources: Sequence[Source], given: Mapping[str, Any]) -> Results[Any]:
    """What the task says of the images; `given` has `batch_size` and `cache`."""
    return Results(_run(task, sources, given["cache"], given["batch_size"]), task.schema)


def _run(
    task: Task[Any], sources: Sequence[Source], cache: EmbeddingCache | bool | None, batch_size: int
) -> Iterator[Any]:
    meter = Meter()
    with _open(cache) as store:
        yield from task.open(store, meter, batch_size)(sources, meter)


def _open(cache: EmbeddingCache | bool | None) -> AbstractContextManager[EmbeddingCache]:
    """The given cache, which stays open, or the user's, which is closed at the end, or none."""
    if isinstance(cache, EmbeddingCache):
        return nullcontext(cache)
    if cache is False:
        return NullCache()
    opened = open_cache()
    if opened.write_error is not None:
        warnings.warn(opened.write_error, stacklevel=4)
    return opened


def _set(models: str | Path | ModelSet) -> ModelSet:
    return models if isinstance(models, ModelSet) else resolve(str(models))


def _several(given: QueryTerm | Sequence[QueryTerm]) -> Sequence[QueryTerm]:
    return [given] if isinstance(given, QueryTerm) else given


def _term(given: QueryTerm, sign: Literal[1, -1] = 1) -> searching.Term:
    if isinstance(given, str):
        if not given.strip():
            raise UserError("the query is empty; give a text or an image")
        return searching.Term(text=whole_text(given, "the query"), sign=sign)
    return searching.Term(image=find(given).sources[0], sign=sign)


def _pairs(pairs: Any) -> tuple[Source, ...]:
    """Images; a tuple of an image and its text is one that came with its caption."""
    given = [pairs] if isinstance(pairs, Input) else list(pairs)
    found: list[Source] = []
    for pair in given:
        if not isinstance(pair, tuple):
            found += find(pair).sources
            continue
        if len(pair) != 2 or not isinstance(pair[1], str):
            raise UserError("a pair is an image and its text")
        image, text = pair
        (source,) = find(image).sources
        found.append(Source(source.path, source.content, {**source.fields, "caption": text}))
    return tuple(found)
