"""`tune` on images and on arrays, and the scores of a recipe on arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from os.path import relpath
from pathlib import Path

import torch

from zeroshot import prompts
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.datasets.labels import LabeledImages, read_labeled_images
from zeroshot.errors import UserError
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.tasks.classification.arrays import Array, read_arrays
from zeroshot.tasks.options import default_of, flags_of
from zeroshot.tasks.tuning.caption_items import CaptionItems
from zeroshot.tasks.tuning.recipe import Recipe, shots_fingerprint
from zeroshot.tasks.tuning.search_items import SearchItems
from zeroshot.tasks.tuning.tune import TuneInterruptedError, TuneRequest, tune
from zeroshot.tasks.tuning.tune_options import TuneOptions
from zeroshot.tasks.tuning.tune_pairs import PairItems, read_items, tune_pairs
from zeroshot.tasks.tuning.tuning_data import PairModels, from_arrays, from_images
from zeroshot.tuning.problem import TunedMethod
from zeroshot.tuning.selection import TuningProgress

OF_LABELS = ("labels", "shots", "truth", "templates", "suggest", "long_text", "embeddings")


def tune_images(
    models: ModelSet,
    options: TuneOptions,
    sources: Sequence[Source],
    cache: EmbeddingCache,
    folder: Path,
    progress: TuningProgress,
    *,
    batch_size: int = AUTO_BATCH,
    root: Path | None = None,
) -> Recipe:
    """The recipe for images; labelled ones are recorded relative to `folder`.

    Args:
        root: a folder of images, in which those lie that the file of queries or captions names.

    Raises:
        UserError: no labels, no images at all, or an image or label that cannot be read.
        TuneInterruptedError: Ctrl-C during the choice; it has the best so far.
    """
    if options.queries or options.captions:
        check_beside_pairs(options)
        items = _items(PairModels(models, cache, Meter(), batch_size), options, sources, root)
        return tune_pairs(items, _request(options, learn=False), progress)
    labels = prompts.load_labels(options.labels)
    if len(labels) < 2:
        raise UserError("tune chooses among answers: give two labels or more")
    shots, truth = (
        None if given is None else read_labeled_images(Path(given), labels)
        for given in (options.shots, options.truth)
    )
    known = [given for given in (shots, truth) if given is not None]
    if not known and not sources:
        raise UserError("tune needs images, or labelled images with --shots or --truth")
    named = {source.path for given in known for source in given.sources}
    data = from_images(
        models,
        labels,
        options.templates,
        [source for given in known for source in given.sources],
        [label for given in known for label in given.classes],
        [source for source in sources if source.path not in named],
        cache,
        Meter(),
        batch_size=batch_size,
        long_text=options.long_text,
    )
    request = _request(options, learn=shots is not None)
    if shots is None:
        return tune(data, request, progress)
    place = Path(str(options.shots))
    try:
        return _with_shots(tune(data, request, progress), place, shots, folder)
    except TuneInterruptedError as stopped:
        found = _with_shots(stopped.recipe, place, shots, folder)
        raise TuneInterruptedError(found) from None


def _items(
    known: PairModels, options: TuneOptions, sources: Sequence[Source], root: Path | None
) -> PairItems:
    """The images of `--queries`, among `sources`, or those of `--captions`."""
    data = read_items(Path(str(options.queries or options.captions)), root, options.split)
    if options.queries:
        return SearchItems.of(known, data, sources, options.seed)
    return CaptionItems.of(known, data)


def check_beside_pairs(options: TuneOptions) -> None:
    """UserError for options of another task than searching, or captions."""
    flag = "--queries" if options.queries else "--captions"
    apart = ("captions",) if options.queries else ()
    for entry in fields(options):
        if entry.name in (*apart, *OF_LABELS) and getattr(options, entry.name) != default_of(entry):
            other = flags_of(entry)[0]
            raise UserError(f"{flag} and {other} are for different tasks: leave one of them out")


def _with_shots(recipe: Recipe, path: Path, shots: LabeledImages, folder: Path) -> Recipe:
    found = shots_fingerprint([str(s.path) for s in shots.sources], shots.classes)
    return replace(recipe, shots=relpath(path, folder or "."), shots_fingerprint=found)


def tune_arrays(file: Path, options: TuneOptions, progress: TuningProgress) -> Recipe:
    """The recipe for arrays: shots with their labels, and images without."""
    data = from_arrays(read_arrays(file))
    return tune(data, _request(options, learn=True), progress)


def _request(options: TuneOptions, *, learn: bool) -> TuneRequest:
    return TuneRequest(learn, options.among, options.budget, options.suggest, options.seed)


def score_by_recipe(arrays: Mapping[str, Array], recipe: Recipe) -> dict[str, Array]:
    """Probabilities of `images` under a recipe, learned from `shots`.

    Raises:
        UserError: arrays of another number of classes, or without the shots that a member needs.
    """
    data = from_arrays(arrays)
    if len(data.labels) != len(recipe.labels):
        raise UserError(
            f"the recipe is for {len(recipe.labels)} labels, the file has {len(data.labels)}"
        )
    problem = data.problem
    train = torch.arange(len(problem.labels))
    test = torch.arange(len(train), len(train) + len(data.unlabelled))
    scores = torch.zeros(len(test), len(recipe.labels), dtype=torch.float64)
    for member in recipe.members:
        tuned = TunedMethod(member.method, dict(member.options), member.coupling or None)
        if problem.configuration(tuned).learns and not len(train):
            raise UserError(f"{member.method} needs the arrays shots and shot_labels")
        logits = problem.logits(tuned, train, test).double() / member.temperature
        scores += member.weight * logits.softmax(1)
    return {"scores": (scores / sum(m.weight for m in recipe.members)).numpy()}
