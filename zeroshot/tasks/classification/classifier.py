"""Images and labels to scores: a method with its encoder and encoded prompts."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot import methods
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.datasets.labels import LabeledImages
from zeroshot.errors import UnsuitableWarning, UserError
from zeroshot.inference.coupled_models import LABELS, with_coupling_for_task
from zeroshot.inference.embedding import (
    AUTO_BATCH,
    canonical_names,
    check_lengths,
    concat_batches,
    embed_all,
    embed_images,
    embed_texts,
    image_encoder_of,
    pad_prompts,
    project_images,
    project_texts,
    text_encoder_of,
    with_views,
)
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import EmbeddingBatch
from zeroshot.inference.remembered_coupling import fitted_coupling
from zeroshot.inference.remembered_models import remembered
from zeroshot.inputs.source import Source
from zeroshot.methods import Coupling, Output, Scorer, as_logits
from zeroshot.methods.auto import Auto, explain, open_coupling
from zeroshot.methods.ensemble import Ensemble
from zeroshot.model_set.anchor_file import Anchors
from zeroshot.model_set.coupled_encoder import CoupledEncoder
from zeroshot.model_set.frame_encoder import ClipModels
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import DualEncoder
from zeroshot.results.result import AnchorContribution
from zeroshot.tasks.classification.classify_options import CUT_OFF, ClassifyOptions
from zeroshot.tasks.classification.heads import (
    UNCALIBRATED,
    Head,
    apply_head,
    check_alone,
    check_multilabel,
    default_head,
)
from zeroshot.tasks.classification.none_of_these import KnownLabels, known_labels, load_words
from zeroshot.tasks.options import several

FLAGS = {
    "shots": "--shots",
    "bank": "--bank",
    "prior": "--prior",
    "views": "--views",
    "parents": "--hierarchy",
}
"""The arrays that a method may take, and the option that each comes from."""


@dataclass(frozen=True)
class Adaptation:
    """What a method may use besides the prompts."""

    shots: LabeledImages | None = None
    """Labelled images."""
    bank: Sequence[Source] = ()
    """Unlabelled images."""
    prior: Sequence[float] = ()
    """How frequent each label is."""
    views: int = 0
    """Views of each image, itself included; a video's views are its frames."""
    parents: Sequence[int] = ()
    """For each label, and then for each kind of a label, the index of the label."""

    @property
    def given(self) -> dict[str, str]:
        """The arrays that are given, and the option that each comes from."""
        return {name: flag for name, flag in FLAGS.items() if getattr(self, name)}


@runtime_checkable
class EmbeddingReader(Protocol):
    """What has to be known of a classifier to embed images for it."""

    @property
    def encoder(self) -> DualEncoder:
        """Whose embeddings it scores."""

    @property
    def views(self) -> int:
        """Views of each image that it needs."""

    @property
    def transductive(self) -> bool:
        """Whether an image's scores depend on the other images."""


@dataclass(frozen=True)
class Classifier:
    """A method with the encoder it runs on and the prompts of every class, encoded."""

    method: Scorer
    encoder: DualEncoder
    labels: Sequence[str]
    texts: Float[Tensor, "c t d"]
    text_mask: Bool[Tensor, "c t"]
    head: Head
    views: int = 0
    """Views of each image that the method needs."""
    temperature: float = 1.0
    """Divides the logits."""
    parents: Int[Tensor, " c"] | None = None
    """For each label, and for each kind that follows the labels in `texts`, its label's index."""
    num_explanations: int = 0
    """Number of anchors that explain each image's best label."""
    anchors: Anchors | None = None
    """The set's anchors, if they explain labels."""
    calibrated: bool = False
    """Whether the temperature was fitted to labelled images."""
    negatives: int = 0
    """Negative prompts, which follow the labels in `texts`."""
    known: KnownLabels | None = None
    """Says whether an image shows one of the labels."""

    def __call__(
        self, images: Float[Tensor, "n e"], views: Float[Tensor, "n v e"] | None = None
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        """Scores as the head defines them, and raw cosines, of embeddings of the image encoder."""
        scores, cosines = self._scores(images, views)
        is_probability = self.head in ("softmax", "sigmoid") and self._output == "probability"
        if (is_probability and self.temperature == 1) or self.head == "cosine":
            return scores, cosines
        return self.apply_head(as_logits(scores, self._output, self.encoder.logit_scale)), cosines

    def logits(
        self, images: Float[Tensor, "n e"], views: Float[Tensor, "n v e"] | None = None
    ) -> Float[Tensor, "n a"]:
        """Scores before the head and before the temperature, also of negative prompts."""
        scores, _ = self._scores(images, views)
        return as_logits(scores, self._output, self.encoder.logit_scale)

    @property
    def _output(self) -> Output:
        """A coupling's scores are its cosines."""
        return "similarity" if isinstance(self.method, Coupling) else self.method.output

    def _scores(
        self, images: Float[Tensor, "n e"], views: Float[Tensor, "n v e"] | None
    ) -> tuple[Float[Tensor, "n a"], Float[Tensor, "n c"]]:
        """The method's scores of labels and negative prompts, and the labels' cosines."""
        labels, prompted = len(self.labels), len(self.labels) + self.negatives
        if isinstance(self.method, Coupling):
            cosines = self.method.cosines(images, self.texts, self.text_mask)
            return cosines, cosines[:, :labels]
        more: dict[str, Tensor] = {}
        if _has_own_rows(self.method, self.encoder):
            more["own_images"] = images
        images, scale = project_images(self.encoder, images), self.encoder.logit_scale
        if views is not None:
            projected = project_images(self.encoder, views.flatten(0, 1))
            more["views"] = projected.view(*views.shape[:2], -1)
        if self.parents is not None:
            more["parents"] = self.parents
        scores = self.method.scores(images, self.texts, self.text_mask, logit_scale=scale, **more)
        plain = type(self.method) is Ensemble and self.method.output == "similarity"
        cosines = scores if plain else Ensemble().scores(images, self.texts, self.text_mask)
        return scores[:, :prompted], cosines[:, :labels]

    @property
    def scored(self) -> str:
        """See `heads.Labeller`.

        A softmax is a probability if the temperature was fitted to labelled images, if the method
        fits its own scale to left-out shots, and with the zero-shot scores of a dual encoder, whose
        scale was trained. The scale of a coupled pair was fitted to its anchors, not to images of
        such labels, encoders for search have none, and other methods change the scores but not the
        scale.
        """
        if self.head != "softmax" or self.calibrated:
            return self.head
        trained = getattr(
            self.encoder, "trained_scale", not isinstance(self.encoder, CoupledEncoder)
        )
        own = type(self.method) is Ensemble and trained
        return self.head if own or getattr(self.method, "calibrated", False) else UNCALIBRATED

    def apply_head(self, logits: Float[Tensor, "n a"]) -> Float[Tensor, "n c"]:
        """Scores of logits, at the temperature."""
        bias = self.encoder.logit_bias
        return apply_head(logits / self.temperature, self.head, bias, len(self.labels))

    @property
    def transductive(self) -> bool:
        """Whether an image's scores depend on the other images."""
        return self.method.transductive

    @property
    def used(self) -> dict[str, str]:
        """Canonical names, for rows."""
        return canonical_names(self.encoder)

    @property
    def name(self) -> str:
        """The name of the method, for rows."""
        return methods.name_of(self.method)

    def explain(
        self, image: Float[Tensor, " i"], label: int, cosine: float
    ) -> tuple[AnchorContribution, ...]:
        """The anchors that contributed most to a label; all shares would sum to its cosine."""
        if self.anchors is None:
            return ()
        texts = self.texts[label][self.text_mask[label]]
        return explain_cosine(
            self.method, image, texts, self.anchors, cosine, self.num_explanations
        )


def explain_cosine(
    coupling: Any,
    image: Float[Tensor, " i"],
    texts: Float[Tensor, "t e"],
    anchors: Anchors,
    cosine: float,
    count: int,
) -> tuple[AnchorContribution, ...]:
    """The anchors that contribute most; the shares of all anchors sum to the cosine."""
    explanation = explain(coupling, image, texts, count)
    scale = cosine / explanation.score if explanation.score else 0.0
    return tuple(
        AnchorContribution(entry.id, share * scale, entry.captions, entry.path)
        for index, share in zip(explanation.anchors, explanation.shares, strict=True)
        for entry in [anchors.entries[index]]
    )


def load_classifier(
    models: ModelSet,
    labels: Sequence[str],
    prompts: Sequence[Sequence[str]],
    options: ClassifyOptions,
    cache: EmbeddingCache,
    meter: Meter,
    data: Adaptation | None = None,
    *,
    temperature: float = 1.0,
    weight: float = LABELS,
) -> Classifier:
    """Load the encoder, encode the prompts and fit the method.

    The default method is the set's own, else `evidence` if there are shots, else its coupling, else
    `ensemble`. The default head is
    sigmoid for a model with a bias (SigLIP), else softmax; with `multi`, a softmax with the
    negative prompts if there are any, else sigmoid or cosine.

    Args:
        labels: one name per class.
        prompts: one list per class, then one per kind of a hierarchy; lengths may differ.
        options: of the method, the head and the prompts; `labels` and files in them are not read.
        data: shots, unlabelled images, a prior, views.
        temperature: divides the logits before the head.
        weight: see `with_coupling_for_task`.

    Raises:
        UserError: a method that does not classify, data that it lacks or has no use for, or a
            prompt that is too long.
    """
    models.require(language_model=False)
    data, negatives = data or Adaptation(), several(options.against)
    head = options.head
    check_multilabel(options.multi, head, negatives, data.given)
    models = remembered(models, cache, meter)
    if options.coupling is not None:
        models = with_coupling_for_task(models, options.coupling, weight, cache, meter)
    scorer = _scorer(models, options, shots=data.shots is not None)
    if options.multi:
        _warn_if_one_label(scorer)
    if isinstance(models, ClipModels) and "views" in methods.parameters(scorer, "scores"):
        data = replace(data, views=1 + models.frames)
    _check_method_inputs(scorer, data)
    if options.explain and not (isinstance(scorer, Coupling) and hasattr(scorer, "explain")):
        raise UserError(
            f"{methods.name_of(scorer)} is not a sum over anchors, so it cannot name any; asif, "
            "csa and csa_asif can explain their scores (--method or --coupling)"
        )
    if not isinstance(scorer, Coupling) and options.coupling is None:
        models = with_coupling_for_task(models, None, weight, cache, meter)
    encoder = models.coupled if isinstance(scorer, Coupling) else models.encoder
    prompts = [*prompts, *([text] for text in negatives)]
    flat = [text for group in prompts for text in group]
    if options.long_text == "error":
        check_lengths(flat, text_encoder_of(encoder), "a prompt", CUT_OFF)
    embeddings = embed_texts(flat, text_encoder_of(encoder), cache, meter)
    known = None
    if words := load_words(options.none_of_these, options.words, options.multi):
        own = [len(group) for group in prompts[: len(labels)]]
        joint = pad_prompts(project_texts(encoder, embeddings[: sum(own)]), own)
        known = known_labels(labels, *joint, words, encoder, cache, meter)
    if not isinstance(scorer, Coupling):
        embeddings = project_texts(encoder, embeddings)
    shown: Head = head or default_head(encoder.logit_bias, options.multi, bool(negatives))
    check_alone(labels, shown)
    texts, mask = pad_prompts(embeddings, [len(group) for group in prompts])
    return Classifier(
        method=_fit(scorer, encoder, data, cache, meter),
        encoder=encoder,
        labels=labels,
        texts=texts,
        text_mask=mask,
        head=shown,
        views=data.views,
        temperature=temperature,
        parents=torch.tensor(data.parents) if data.parents else None,
        num_explanations=options.explain,
        anchors=models.anchors if options.explain else None,
        negatives=len(negatives),
        known=known,
    )


def embed_batches(
    sources: Iterable[Source],
    classifier: EmbeddingReader,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int = AUTO_BATCH,
) -> Iterator[EmbeddingBatch]:
    """Embeddings and views for the classifier; one batch of all, if it is transductive."""
    batches = iter_embeddings(sources, classifier, cache, meter, batch_size)
    if not classifier.transductive:
        return batches
    total = len(sources) if isinstance(sources, Sized) else None
    return iter([concat_batches(batches, meter, total)])


def iter_embeddings(
    sources: Iterable[Source],
    classifier: EmbeddingReader,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int = AUTO_BATCH,
) -> Iterator[EmbeddingBatch]:
    """Embeddings and views for the classifier, batch by batch."""
    encoder = image_encoder_of(classifier.encoder)
    batches = embed_images(sources, encoder, cache, meter, batch_size)
    if classifier.views:
        batches = with_views(batches, classifier.views, encoder, cache, meter)
    return batches


def settings(classifier: Classifier) -> dict[str, Any]:
    """The settings that decide the scores, except the prompts."""
    method = classifier.method
    return {
        "models": canonical_names(classifier.encoder),
        "method": methods.name_of(method),
        "options": methods.values(method),
        "score": classifier.head,
    }


def adaptation_settings(data: Adaptation) -> dict[str, Any]:
    """The data of a method, for the settings of a run; empty if there is none."""
    settings: dict[str, Any] = {}
    if data.shots is not None:
        shots = zip(data.shots.sources, data.shots.classes, strict=True)
        settings["shots"] = [[source.path, index] for source, index in shots]
    if data.bank:
        settings["bank"] = [source.path for source in data.bank]
    if data.prior:
        settings["prior"] = list(data.prior)
    if data.views:
        settings["views"] = data.views
    if data.parents:
        settings["parents"] = list(data.parents)
    return settings


def fingerprint(data: Adaptation) -> str:
    """A hash of the data of a method; empty if there is none."""
    given = adaptation_settings(data)
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()[:12] if given else ""


def _default_method(models: ModelSet, options: ClassifyOptions, shots: bool) -> str:
    """The set's own; `evidence` for shots; a coupling that was named; else `ensemble`."""
    coupling = models.spec.coupling if models.spec.encoder is None else None
    if "method" in models.spec.classify:
        return str(models.spec.classify["method"])
    if shots:
        return "evidence"
    if coupling is None or (models.has_default_coupling and options.coupling is None):
        return "ensemble"
    return coupling.method


def _scorer(models: ModelSet, given: ClassifyOptions, shots: bool) -> Scorer:
    """The method; a coupling is fitted with the set's anchors."""
    default = _default_method(models, given, shots)
    defaults = {k: v for k, v in models.spec.classify.items() if k != "method"}
    chosen, own = default if given.method is None else given.method, dict(given.options)
    options = (defaults if chosen == default else {}) | own
    method = methods.configure(chosen, options)
    name = methods.name_of(method)
    if not hasattr(method, "scores"):
        scorers = methods.with_verb("scores")
        raise UserError(f"method '{name}' does not classify; these do: {', '.join(scorers)}")
    if not isinstance(method, Coupling):
        scorer: Scorer = method
        return scorer
    coupling: Any = method
    if given.coupling is not None and given.method is not None:
        raise UserError(
            f"--method {name} is a coupling, and so is --coupling {given.coupling}: give one"
        )
    if not isinstance(chosen, str):
        own_coupling: Scorer = coupling.fit(models.anchors.images, models.anchors.texts)
        return own_coupling
    if models.spec.coupling is not None and models.spec.coupling.method == name:
        if not options:
            return fitted_coupling(models.coupled)
        of_the_set: Any = models.coupling
        if methods.name_of(of_the_set) == name:
            coupling = replace(of_the_set, **{k: getattr(method, k) for k in options})
    elif not isinstance(method, Auto):
        coupling = open_coupling(name, options, models.anchors.images, models.anchors.texts)
    fitted: Scorer = coupling.fit(models.anchors.images, models.anchors.texts)
    return fitted


def _check_method_inputs(scorer: Scorer, data: Adaptation) -> None:
    """The method has a use for each array that is given, and each that it needs is given.

    Raises:
        UserError: an array without use, or a missing one; it names the option.
    """
    name = methods.name_of(scorer)
    fit, score = (methods.parameters(scorer, verb) for verb in ("fit", "scores"))
    if isinstance(scorer, Coupling):
        fit = {}
    for array, flag in data.given.items():
        if array not in fit | score:
            raise UserError(f"method '{name}' has no use for {flag}")
    needed = {array for array, must in (fit | score).items() if must} - {"images", "texts"}
    missing = needed - data.given.keys() - ({"shot_labels"} if data.shots else set())
    if flags := [FLAGS[array] for array in sorted(missing & FLAGS.keys())]:
        raise UserError(f"method '{name}' needs 'zeroshot classify' with {' and '.join(flags)}")
    if other := missing - {"shot_labels"}:
        raise UserError(
            f"method '{name}' needs the array {sorted(other)[0]}: give arrays with 'zeroshot "
            "classify --embeddings'"
        )
    if data.views == 1:
        raise UserError("--views 1: the image itself is the first view; give 2 or more")


def _fit(
    scorer: Scorer, encoder: DualEncoder, data: Adaptation, cache: EmbeddingCache, meter: Meter
) -> Scorer:
    """The method, fitted with its data in the space of its images."""

    def embed(sources: Sequence[Source]) -> Tensor:
        return embed_all(sources, image_encoder_of(encoder), cache, meter)

    arrays: dict[str, Tensor] = {}
    if data.shots is not None:
        own = embed(data.shots.sources)
        arrays["shots"] = project_images(encoder, own)
        arrays["shot_labels"] = torch.tensor(data.shots.classes)
        if _has_own_rows(scorer, encoder):
            arrays["own_shots"] = own
    if data.bank:
        arrays["bank"] = project_images(encoder, embed(data.bank))
    if data.prior:
        arrays["prior"] = torch.tensor(data.prior) / sum(data.prior)
    method: Any = scorer
    if not arrays:
        return scorer
    with meter.phase("fitting the method", counts=False):
        fitted: Scorer = method.fit(**arrays)
    return fitted


def _warn_if_one_label(scorer: Scorer) -> None:
    """Warn of a method that shares each image out, if several labels may hold."""
    stages = getattr(scorer, "stages", (scorer,))
    if names := [methods.name_of(s) for s in stages if getattr(s, "one_label", False)]:
        warnings.warn(
            f"{' and '.join(names)} shares each image out among the labels, as if one of them held "
            "(a prior says what share of the images each has): with --multi, where several may "
            "hold, expect it to lose accuracy; ensemble and center score each label by itself",
            UnsuitableWarning,
            stacklevel=2,
        )


def _has_own_rows(scorer: Scorer, encoder: DualEncoder) -> bool:
    """Whether the method compares rows of the image encoder before they are coupled."""
    coupled = isinstance(encoder, CoupledEncoder)
    return coupled and "own_images" in methods.parameters(scorer, "scores")
