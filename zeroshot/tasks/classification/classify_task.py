"""Images, or videos, to labels, as tasks."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from zeroshot import prompts
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.datasets.labels import read_hierarchy, read_labeled_images, read_prior
from zeroshot.errors import UserError
from zeroshot.inference.embedding import AUTO_BATCH, embed_images
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import EmbeddingBatch
from zeroshot.inputs.resolve import find
from zeroshot.inputs.source import EITHER, Source
from zeroshot.inputs.tables import InputOptions
from zeroshot.model_set.frame_encoder import FRAMES, ClipModels, FrameAttentionScorer
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import ClipScorer
from zeroshot.prompts import Templates
from zeroshot.results.result import ClassifyResult
from zeroshot.tasks.classification import classifier as scoring, clip_scoring
from zeroshot.tasks.classification.calibration import (
    Calibration,
    abstention_rule,
    accepted,
    label_sets,
    none_rule,
    read_calibration,
)
from zeroshot.tasks.classification.classifier import Adaptation, Classifier
from zeroshot.tasks.classification.classify_options import ClassifyOptions, VideoClassifyOptions
from zeroshot.tasks.classification.clip_scoring import ClipClassifier, ScoredClips
from zeroshot.tasks.classification.heads import Acceptance, label
from zeroshot.tasks.classification.label_sets import LabelSets
from zeroshot.tasks.options import as_json, default_of, flags_of, several
from zeroshot.tasks.task import OpenedTask, Task
from zeroshot.tasks.tuning.recipe import Recipe, recipe_of
from zeroshot.tasks.tuning.recipe_classifier import RecipeClassifier, check_options, load_recipe

TOP = 5
"""Labels in a row if one label holds."""
OF_VIDEO_MODELS = {
    *{"labels", "templates", "score", "top_k", "multi", "against", "threshold"},
    *{"model", "pooling", "frames"},
}
"""Options without a method, which also serve a model whose text embeddings depend on the video."""


@dataclass(frozen=True)
class Vocabulary:
    """The labels that the options name, and their prompts."""

    labels: tuple[str, ...]
    prompts: list[list[str]]
    """For each label, then for each kind of a hierarchy."""
    parents: tuple[int, ...] = ()
    """For each label and each kind, the index of its label."""
    templates: Templates = ()

    def about(self) -> dict[str, Any]:
        """Labels and templates, as JSON."""
        return {"labels": list(self.labels), "templates": as_json(self.templates)}


def read_vocabulary(options: ClassifyOptions, templates: str = "simple") -> Vocabulary:
    """Labels or a hierarchy, in the options' templates or in `templates`.

    Raises:
        UserError: no labels, both of them, or a file that cannot be read.
    """
    if bool(options.labels) == (options.hierarchy is not None):
        raise UserError(
            "one of --labels (cat,dog, a .txt or a .json file) and --hierarchy (a .json file) is "
            "needed"
        )
    kinds: tuple[str, ...] = ()
    parents: tuple[int, ...] = ()
    if options.hierarchy is None:
        labels = prompts.load_labels(options.labels)
    else:
        labels, kinds, parents = read_hierarchy(Path(options.hierarchy))
    names = [*labels, *kinds]
    loaded = prompts.load_templates(options.templates, names, templates)
    return Vocabulary(labels, prompts.expand(names, loaded), parents, loaded)


def read_adaptation(options: ClassifyOptions, vocabulary: Vocabulary) -> Adaptation:
    """Shots, bank, prior and views, read from the files that the options name."""
    labels, shots, prior = vocabulary.labels, options.shots, options.prior
    return Adaptation(
        shots=None if shots is None else read_labeled_images(Path(shots), labels),
        bank=find(options.bank, options=InputOptions(suffixes=EITHER)).sources,
        prior=read_prior(prior, labels) if isinstance(prior, str) or prior else (),
        views=options.views,
        parents=vocabulary.parents,
    )


def check_threshold(options: ClassifyOptions) -> None:
    """UserError for a threshold if an image has only one label."""
    if options.threshold is not None and not options.multi:
        raise UserError("--threshold chooses among labels that may all hold: give --multi")


def num_labels(options: ClassifyOptions, labels: Sequence[str]) -> int:
    """How many labels a row has."""
    return options.top_k or (len(labels) if options.multi else TOP)


def label_settings(options: ClassifyOptions, vocabulary: Vocabulary) -> dict[str, Any]:
    """The settings that decide which labels a row has."""
    settings: dict[str, Any] = {
        "prompts": prompts.fingerprint(vocabulary.prompts),
        "top_k": num_labels(options, vocabulary.labels),
    }
    if options.multi:
        negatives = list(several(options.against))
        settings |= {"multi": True, "against": negatives, "threshold": options.threshold}
    return settings


@dataclass(frozen=True, kw_only=True)
class Classify(Task[ClassifyOptions]):
    """The best labels of images, by a method."""

    vocabulary: Vocabulary
    data: Adaptation
    calibration: Calibration | None = None
    recipe: Recipe | None = None
    recipe_folder: Path = Path()
    """Its labelled images are relative to it."""

    schema: ClassVar[str] = ClassifyResult.schema

    @classmethod
    def from_options(cls, models: ModelSet, options: ClassifyOptions) -> "Classify":
        """See `Task`."""
        if options.recipe is not None:
            return cls._of_recipe(models, options)
        vocabulary, calibration = read_vocabulary(options), options.calibration
        if isinstance(calibration, str | Path):
            calibration = read_calibration(Path(calibration))
        return cls(
            models=models,
            options=options,
            vocabulary=vocabulary,
            data=read_adaptation(options, vocabulary),
            calibration=calibration,
        )

    @classmethod
    def _of_recipe(cls, models: ModelSet, options: ClassifyOptions) -> "Classify":
        recipe, folder = options.recipe, Path()
        if isinstance(recipe, str | Path):
            folder = Path(recipe).parent
        recipe = recipe_of(recipe, "classify")
        check_options(recipe, options)
        return cls(
            models=models,
            options=options,
            vocabulary=Vocabulary(recipe.labels, []),
            data=Adaptation(),
            recipe=recipe,
            recipe_folder=folder,
        )

    def about(self) -> dict[str, Any]:
        """See `Task`."""
        return self.vocabulary.about()

    def _open_recipe(
        self, recipe: Recipe, cache: EmbeddingCache, meter: Meter, batch_size: int
    ) -> "ClassifyRunner":
        options = self.options
        loaded = load_recipe(
            recipe, self.recipe_folder, self.models, cache, meter, long_text=options.long_text
        )
        accept: Acceptance | None = None
        if options.abstain is not None:
            if recipe.held_out is None:
                raise UserError(
                    "--abstain: the recipe was not measured (too few labelled images, or tune was "
                    "interrupted)"
                )
            reference, alpha = sorted(recipe.held_out.confidences), options.abstain
            thresholds = [0.0] * len(recipe.labels)
            accept = lambda scores: accepted(scores, reference, alpha, thresholds)  # noqa: E731
        return ClassifyRunner(
            task=self, classifier=loaded, accept=accept, cache=cache, batch_size=batch_size
        )

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "ClassifyRunner":
        """Encode the prompts and fit the method."""
        if self.recipe is not None:
            return self._open_recipe(self.recipe, cache, meter, batch_size)
        options, vocabulary, calibration = self.options, self.vocabulary, self.calibration
        check_threshold(options)
        if options.multi and calibration is not None:
            raise UserError(
                "--calibration is for one label per image: leave it out, or leave --multi out "
                "(with --multi, --threshold chooses the labels)"
            )
        classifier = scoring.load_classifier(
            self.models, vocabulary.labels, vocabulary.prompts, options, cache, meter, self.data
        )
        if calibration is not None:
            calibration.check(classifier)
            fitted = bool(calibration.report)
            classifier = replace(classifier, temperature=calibration.temperature, calibrated=fitted)
        fingerprint = prompts.fingerprint(vocabulary.prompts)
        return ClassifyRunner(
            task=self,
            classifier=classifier,
            accept=abstention_rule(calibration, options.abstain, fingerprint, classifier),
            sets=label_sets(
                calibration,
                options.sets,
                options.set_rule,
                fingerprint,
                scoring.fingerprint(self.data),
                classifier,
            ),
            cache=cache,
            batch_size=batch_size,
        )


@dataclass(frozen=True, kw_only=True)
class ClassifyRunner(OpenedTask[Classify]):
    """A classifier with its models, and its rule to abstain."""

    classifier: Classifier | RecipeClassifier
    accept: Acceptance | None
    sets: LabelSets | None = None

    @property
    def transductive(self) -> bool:
        """Whether an image's scores depend on the other images."""
        return self.classifier.transductive

    @property
    def views(self) -> int:
        """Views of each image, itself included; 0 for none."""
        return self.classifier.views

    def resolved(self) -> dict[str, Any]:
        """See `OpenedTask`."""
        task, calibration = self.task, self.task.calibration
        if isinstance(self.classifier, RecipeClassifier):
            return self.classifier.settings() | label_settings(task.options, task.vocabulary)
        settings = scoring.settings(self.classifier)
        settings |= label_settings(task.options, task.vocabulary)
        settings |= scoring.adaptation_settings(task.data)
        if self.classifier.known is not None:
            settings["words"] = self.classifier.known.words
        if calibration is not None:
            abstain = task.options.abstain
            settings |= {"calibration": calibration.fingerprint, "abstain": abstain}
        return settings

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[ClassifyResult]:
        """One result per image, in order; a transductive method reads all images first."""
        for batch in scoring.embed_batches(
            sources, self.classifier, self.cache, meter, self.batch_size
        ):
            yield from self.score(batch, meter)

    def embed(self, sources: Iterable[Source], meter: Meter) -> Iterator[EmbeddingBatch]:
        """Embeddings and views, batch by batch."""
        return scoring.iter_embeddings(sources, self.classifier, self.cache, meter, self.batch_size)

    def score(self, everything: EmbeddingBatch, meter: Meter) -> Iterator[ClassifyResult]:
        """One result per image of a batch."""
        options = self.task.options
        count = num_labels(options, self.classifier.labels)
        known = None if isinstance(self.classifier, RecipeClassifier) else self.classifier.known
        beside = None if self.sets is None and known is None else self._beside
        how = (count, self.accept, options.threshold, beside)
        return label(everything, self.classifier, meter, *how)

    def _beside(self, images: Tensor, ids: Sequence[str]) -> list[dict[str, Any]]:
        """The label sets of images, and the probability that they show none of the labels."""
        assert isinstance(self.classifier, Classifier)
        more: list[dict[str, Any]] = [{} for _ in ids]
        if self.classifier.known is not None:
            known = self.classifier.known.probability(images)
            none = none_rule(self.task.calibration, self.task.options.abstain)(known)
            for fields, p, abstained in zip(more, known.tolist(), none, strict=True):
                fields |= {"none": 1 - p, "abstained": abstained}
        if self.sets is None:
            return more
        logits, names = self.classifier.logits(images), self.classifier.labels
        found, order = self.sets.of(logits, ids), logits.sort(1, descending=True).indices
        for fields, best, own in zip(more, order, found, strict=True):
            fields["label_set"] = tuple(names[c] for c in best.tolist() if own[c])
        return more


@dataclass(frozen=True, kw_only=True)
class ClipClassify(Task[VideoClassifyOptions]):
    """The best labels of videos, by a model whose text embeddings depend on the video."""

    vocabulary: Vocabulary

    schema: ClassVar[str] = ClassifyResult.schema

    def about(self) -> dict[str, Any]:
        """See `Task`."""
        return self.vocabulary.about()

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "ClipClassifyRunner":
        """Load the model and encode the prompts."""
        check_threshold(self.options)
        labels, texts = self.vocabulary.labels, self.vocabulary.prompts
        classifier = clip_scoring.load_clip_classifier(
            self._scorer(), labels, texts, self.options, cache, meter
        )
        return ClipClassifyRunner(
            task=self, classifier=classifier, cache=cache, batch_size=batch_size
        )

    def _scorer(self) -> ClipScorer:
        if self.options.model is not None:
            return self.models.clip_scorer(self.options.model)
        self.models.require(language_model=False)
        return FrameAttentionScorer(self.models.encoder, self.options.frames or FRAMES)


@dataclass(frozen=True, kw_only=True)
class ClipClassifyRunner(OpenedTask[ClipClassify]):
    """A video model with its prompts."""

    classifier: ClipClassifier

    def resolved(self) -> dict[str, Any]:
        """See `OpenedTask`."""
        settings = clip_scoring.settings(self.classifier)
        return settings | label_settings(self.task.options, self.task.vocabulary)

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[ClassifyResult]:
        """One result per video, in order."""
        options, encoder = self.task.options, ScoredClips(self.classifier.scorer)
        count = num_labels(options, self.classifier.labels)
        for batch in embed_images(sources, encoder, self.cache, meter, self.batch_size):
            yield from label(batch, self.classifier, meter, count, threshold=options.threshold)


def video_task(models: ModelSet, options: VideoClassifyOptions) -> Classify | ClipClassify:
    """The task for videos: a method on the mean of a video's frames, or a video model.

    Raises:
        UserError: options that do not fit each other.
    """
    model, attention = options.model, options.pooling == "attention"
    if model is None and not attention:
        default = models.frames if isinstance(models, ClipModels) else FRAMES
        return Classify.from_options(
            ClipModels.from_model_set(models, options.frames or default), options
        )
    if model is not None and (options.frames is not None or attention):
        raise UserError("a video model (--model) takes no --frames and no --pooling")
    unused = [
        flags_of(field)[0]
        for field in fields(options)
        if field.name not in OF_VIDEO_MODELS and getattr(options, field.name) != default_of(field)
    ]
    if unused:
        raise UserError(
            f"{', '.join(unused)}: needs one embedding per video, but with --model or --pooling "
            "attention a video has one for each text; leave one or the other out"
        )
    vocabulary = read_vocabulary(options, "simple" if model is None else "none")
    return ClipClassify(models=models, options=options, vocabulary=vocabulary)
