"""Pictures and labels to scores."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot import methods
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.datasets.labels import LabeledImages
from zeroshot.errors import UserError
from zeroshot.inference.embedding import (
    AUTO_BATCH,
    canonical_names,
    embed_all,
    embed_pictures,
    embed_texts,
    image_side,
    join_images,
    join_texts,
    ragged,
    refuse_long,
    text_side,
    with_views,
)
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import Embedded
from zeroshot.inputs.source import Source
from zeroshot.methods import Coupling, Output, Scorer, as_logits
from zeroshot.methods.auto import explain
from zeroshot.methods.ensemble import Ensemble
from zeroshot.model_set.anchor_file import Anchors
from zeroshot.model_set.frame_encoder import ClipModels
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import DualEncoder
from zeroshot.results.result import ClassifyResult, Reason
from zeroshot.tasks.classification.heads import Believe, Head, headed, label, own_head, see_to_multi

OPTIONS = {
    "shots": "--shots",
    "bank": "--bank",
    "prior": "--prior",
    "views": "--views",
    "parents": "--hierarchy",
}
"""Arrays, and the option by which each comes of pictures."""


@dataclass(frozen=True)
class Learn:
    """What a method may learn from or be told besides the prompts."""

    shots: LabeledImages | None = None
    """Labelled pictures."""
    bank: Sequence[Source] = ()
    """Unlabelled pictures."""
    prior: Sequence[float] = ()
    """How frequent each label is."""
    views: int = 0
    """Views of each picture, itself included; those of a clip are its frames, and not asked for."""
    parents: Sequence[int] = ()
    """Of the labels, which come first, and of their kinds: the number of the label."""

    @property
    def given(self) -> dict[str, str]:
        """The arrays this stands for, and the option each came by."""
        return {name: flag for name, flag in OPTIONS.items() if getattr(self, name)}


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
    """How many views of each picture the method wants."""
    temperature: float = 1.0
    """Divides the logits."""
    parents: Int[Tensor, " c"] | None = None
    """Of the labels and of the kinds that follow them in `texts`."""
    explained: int = 0
    """Anchors named for each picture's best label."""
    anchors: Anchors | None = None
    """Those that the method knows, where they are to be named."""
    against: int = 0
    """Classes that follow the labels in `texts`: what each label is weighed against."""

    def __call__(
        self, rows: Float[Tensor, "n e"], views: Float[Tensor, "n v e"] | None = None
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        """Scores as the head defines them, and raw cosines, of rows of the image encoder."""
        given, cosine = self._scored(rows, views)
        own = self.head in ("softmax", "sigmoid") and self._output == "probability"
        if (own and self.temperature == 1) or self.head == "cosine":
            return given, cosine
        return self.headed(as_logits(given, self._output, self.encoder.logit_scale)), cosine

    def logits(
        self, rows: Float[Tensor, "n e"], views: Float[Tensor, "n v e"] | None = None
    ) -> Float[Tensor, "n a"]:
        """Scores before the head and before the temperature, also of what labels are against."""
        given, _ = self._scored(rows, views)
        return as_logits(given, self._output, self.encoder.logit_scale)

    @property
    def _output(self) -> Output:
        """A coupling's scores are taken as cosines."""
        return "similarity" if isinstance(self.method, Coupling) else self.method.output

    def _scored(
        self, rows: Float[Tensor, "n e"], views: Float[Tensor, "n v e"] | None
    ) -> tuple[Float[Tensor, "n a"], Float[Tensor, "n c"]]:
        """What the method says of labels and of what is against them, and the labels' cosines."""
        labels, told = len(self.labels), len(self.labels) + self.against
        if isinstance(self.method, Coupling):
            cosine = self.method.cosines(rows, self.texts, self.text_mask)
            return cosine, cosine[:, :labels]
        images, scale = join_images(self.encoder, rows), self.encoder.logit_scale
        more: dict[str, Tensor] = {}
        if views is not None:
            joined = join_images(self.encoder, views.flatten(0, 1))
            more["views"] = joined.view(*views.shape[:2], -1)
        if self.parents is not None:
            more["parents"] = self.parents
        given = self.method.scores(images, self.texts, self.text_mask, logit_scale=scale, **more)
        plain = type(self.method) is Ensemble and self.method.output == "similarity"
        cosine = given if plain else Ensemble().scores(images, self.texts, self.text_mask)
        return given[:, :told], cosine[:, :labels]

    def headed(self, logits: Float[Tensor, "n a"]) -> Float[Tensor, "n c"]:
        """Scores of logits, at the temperature."""
        bias = self.encoder.logit_bias
        return headed(logits / self.temperature, self.head, bias, len(self.labels))

    @property
    def used(self) -> dict[str, str]:
        """Canonical names, for rows."""
        return canonical_names(self.encoder)

    @property
    def name(self) -> str:
        """The method's, for rows."""
        return methods.name_of(self.method)

    def because(self, row: Float[Tensor, " e"], label: int, cosine: float) -> tuple[Reason, ...]:
        """The anchors that carried a label of a picture, their shares scaled to its cosine."""
        if self.anchors is None:
            return ()
        texts = self.texts[label][self.text_mask[label]]
        found = explain(self.method, row, texts, self.explained)
        scale = cosine / found.score if found.score else 0.0
        return tuple(
            Reason(entry.id, share * scale, entry.captions, entry.path)
            for place, share in zip(found.anchors, found.shares, strict=True)
            for entry in [self.anchors.entries[place]]
        )


def classifier(
    models: ModelSet,
    labels: Sequence[str],
    prompts: Sequence[Sequence[str]],
    cache: EmbeddingCache,
    meter: Meter,
    *,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    head: Head | None = None,
    truncate: bool = False,
    learn: Learn | None = None,
    temperature: float = 1.0,
    explained: int = 0,
    multi: bool = False,
    against: Sequence[str] = (),
) -> Classifier:
    """Encode the prompts and make the method ready.

    Args:
        labels: one name per class.
        prompts: the sentences of each class; classes may differ in how many. In a hierarchy, those
            of the kinds follow.
        method: a scorer's name, or a pipeline; without one the set's own, else its coupling, else
            `ensemble`.
        head: without one, sigmoid for a model with a bias (SigLIP), else softmax; with `multi`,
            `against` where something is, else sigmoid or cosine.
        truncate: cut prompts that are longer than the text encoder reads instead of refusing them.
        learn: shots, unlabelled pictures, a prior, views.
        temperature: divides the logits before the head.
        explained: how many anchors to name for each picture's best label; couplings alone can.
        multi: several labels may hold: each has a score of its own.
        against: sentences that each label is weighed against then.

    Raises:
        UserError: a method that does not classify, that lacks what it learns from or has no use
            for it, or a prompt that is too long.
    """
    models.require(language_model=False)
    learn = learn or Learn()
    see_to_multi(multi, head, against, learn.given)
    scorer = _scorer(models, method, options or {})
    if isinstance(models, ClipModels) and "views" in methods.parameters(scorer, "scores"):
        learn = replace(learn, views=1 + models.frames)
    _see_to_arrays(scorer, learn)
    if explained and not (isinstance(scorer, Coupling) and hasattr(scorer, "explain")):
        raise UserError(
            f"{methods.name_of(scorer)} is no sum over anchors, so that none can be named; asif, "
            "csa and csa_asif explain themselves"
        )
    encoder = models.coupled if isinstance(scorer, Coupling) else models.encoder
    prompts = [*prompts, *([other] for other in against)]
    flat = [sentence for sentences in prompts for sentence in sentences]
    if not truncate:
        refuse_long(flat, text_side(encoder))
    rows = embed_texts(flat, text_side(encoder), cache, meter)
    if not isinstance(scorer, Coupling):
        rows = join_texts(encoder, rows)
    texts, mask = ragged(rows, [len(sentences) for sentences in prompts])
    fitted = _fitted(scorer, encoder, learn, cache, meter)
    return Classifier(
        fitted,
        encoder,
        labels,
        texts,
        mask,
        head or own_head(encoder.logit_bias, multi, bool(against)),
        learn.views,
        temperature,
        torch.tensor(learn.parents) if learn.parents else None,
        explained,
        models.anchors if explained else None,
        len(against),
    )


def classify(
    sources: Iterable[Source],
    classifier: Classifier,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
    top_k: int = 5,
    believe: Believe | None = None,
    least: float | None = None,
) -> Iterator[ClassifyResult]:
    """One result per picture, in order, with the `top_k` best labels, of those from `least` on.

    A transductive method sees all pictures at once, so nothing comes out before the last one.
    `believe` says of scores whether the best label stands; where not, the result abstains.
    """
    for batch in embedded(sources, classifier, cache, meter, batch_size):
        yield from label(batch, classifier, meter, top_k, believe, least)


def embedded(
    sources: Iterable[Source],
    classifier: Classifier,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int = AUTO_BATCH,
) -> Iterator[Embedded]:
    """Rows and views as the classifier wants them; for a transductive one, all as one batch."""
    batches = embed_for(sources, classifier, cache, meter, batch_size)
    return iter([gather(batches)]) if classifier.method.transductive else batches


def embed_for(
    sources: Iterable[Source],
    classifier: Classifier,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int = AUTO_BATCH,
) -> Iterator[Embedded]:
    """Rows and views as the classifier wants them, batch by batch."""
    encoder = image_side(classifier.encoder)
    batches = embed_pictures(sources, encoder, cache, meter, batch_size)
    if classifier.views:
        batches = with_views(batches, classifier.views, encoder, cache, meter)
    return batches


def settings(classifier: Classifier) -> dict[str, Any]:
    """What decides the scores, but for the prompts."""
    method = classifier.method
    return {
        "models": canonical_names(classifier.encoder),
        "method": methods.name_of(method),
        "options": methods.values(method),
        "score": classifier.head,
    }


def learned_from(learn: Learn) -> dict[str, Any]:
    """What a method learned from, for the settings of a run; empty where nothing was given."""
    told: dict[str, Any] = {}
    if learn.shots is not None:
        shots = zip(learn.shots.sources, learn.shots.classes, strict=True)
        told["shots"] = [[source.path, place] for source, place in shots]
    if learn.bank:
        told["bank"] = [source.path for source in learn.bank]
    if learn.prior:
        told["prior"] = list(learn.prior)
    if learn.views:
        told["views"] = learn.views
    if learn.parents:
        told["parents"] = list(learn.parents)
    return told


def _scorer(models: ModelSet, name: str | None, options: dict[str, Any]) -> Scorer:
    """The method asked for; a coupling comes fitted with the set's anchors."""
    own = models.spec.coupling if models.spec.encoder is None else None
    default = models.spec.classify.get("method", own.method if own else "ensemble")
    of_the_set = {k: v for k, v in models.spec.classify.items() if k != "method"}
    name = name or default
    given = (of_the_set if name == default else {}) | options
    chosen = methods.configure(name, given)
    if not hasattr(chosen, "scores"):
        scorers = [n for n in methods.names() if hasattr(methods.get(n), "scores")]
        raise UserError(f"method '{name}' does not classify; these do: {', '.join(scorers)}")
    if not isinstance(chosen, Coupling):
        scorer: Scorer = chosen
        return scorer
    coupling: Any = chosen
    if models.spec.coupling is not None and models.spec.coupling.method == name:
        if not given:
            return models.coupled.coupling
        set_up: Any = models.coupling
        if methods.name_of(set_up) == name:
            coupling = replace(set_up, **{k: getattr(chosen, k) for k in given})
    fitted: Scorer = coupling.fit(models.anchors.images, models.anchors.texts)
    return fitted


def _see_to_arrays(scorer: Scorer, learn: Learn) -> None:
    """What is given has a use, and what is needed is given.

    Raises:
        UserError: naming the option.
    """
    name = methods.name_of(scorer)
    fit, score = (methods.parameters(scorer, verb) for verb in ("fit", "scores"))
    if isinstance(scorer, Coupling):
        fit = {}
    for array, flag in learn.given.items():
        if array not in fit | score:
            raise UserError(f"method '{name}' has no use for {flag}")
    needed = {array for array, must in (fit | score).items() if must} - {"images", "texts"}
    missing = needed - learn.given.keys() - ({"shot_labels"} if learn.shots else set())
    if wanted := [OPTIONS[array] for array in sorted(missing & OPTIONS.keys())]:
        raise UserError(f"method '{name}' needs {' and '.join(wanted)}")
    if other := missing - {"shot_labels"}:
        raise UserError(
            f"method '{name}' needs the array {sorted(other)[0]}: give arrays with --embeddings"
        )
    if learn.views == 1:
        raise UserError("--views 1: the picture itself is the first view; give 2 or more")


def _fitted(
    scorer: Scorer, encoder: DualEncoder, learn: Learn, cache: EmbeddingCache, meter: Meter
) -> Scorer:
    """The method with what it learns from, in the space of its images."""

    def rows(sources: Sequence[Source]) -> Tensor:
        return join_images(encoder, embed_all(sources, image_side(encoder), cache, meter))

    arrays: dict[str, Tensor] = {}
    if learn.shots is not None:
        arrays["shots"] = rows(learn.shots.sources)
        arrays["shot_labels"] = torch.tensor(learn.shots.classes)
    if learn.bank:
        arrays["bank"] = rows(learn.bank)
    if learn.prior:
        arrays["prior"] = torch.tensor(learn.prior) / sum(learn.prior)
    method: Any = scorer
    fitted: Scorer = method.fit(**arrays) if arrays else scorer
    return fitted


def gather(batches: Iterable[Embedded]) -> Embedded:
    """All batches as one; a batch of failures alone has no width of its own."""
    parts = list(batches)
    width = max((part.rows.shape[1] for part in parts), default=0)
    rows = [p.rows if p.rows.shape[1] else torch.zeros(len(p.sources), width) for p in parts]
    views = [
        p.views if p.rows.shape[1] else torch.zeros(*p.views.shape[:2], width)
        for p in parts
        if p.views is not None
    ]
    return Embedded(
        [s for p in parts for s in p.sources],
        [i for p in parts for i in p.ids],
        torch.cat(rows) if rows else torch.zeros(0, 0),
        [f for p in parts for f in p.failures],
        torch.cat(views) if views else None,
    )
