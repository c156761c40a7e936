"""Pictures and labels to scores."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot import methods
from zeroshot.anchors import Anchors
from zeroshot.errors import UserError
from zeroshot.images import Source
from zeroshot.methods import Coupling, Output, Scorer
from zeroshot.methods.auto import explain
from zeroshot.methods.ensemble import Ensemble
from zeroshot.model_set import ModelSet
from zeroshot.models.base import DualEncoder, TextEncoder
from zeroshot.results import ClassifyResult, Label, Reason
from zeroshot.store import EmbeddingCache
from zeroshot.tasks.embedding import (
    AUTO_BATCH,
    Embedded,
    canonical_names,
    embed_pictures,
    embed_texts,
    image_side,
    join_images,
    join_texts,
    ragged,
    text_side,
)
from zeroshot.tasks.meter import Meter

Head = Literal["softmax", "sigmoid", "cosine"]


@dataclass(frozen=True)
class Classifier:
    """A method with the encoder it runs on and the prompts of every class, encoded."""

    method: Scorer
    encoder: DualEncoder
    labels: Sequence[str]
    texts: Float[Tensor, "c t d"]
    text_mask: Bool[Tensor, "c t"]
    head: Head
    explained: int = 0
    """Anchors named for each picture's best label."""
    anchors: Anchors | None = None
    """Those that the method knows, where they are to be named."""

    def __call__(
        self, rows: Float[Tensor, "n e"]
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        """Scores as the head defines them, and raw cosines, of rows of the image encoder."""
        if isinstance(self.method, Coupling):
            cosine = self.method.cosines(rows, self.texts, self.text_mask)
            return self._headed(cosine, "similarity"), cosine
        images = join_images(self.encoder, rows)
        scale = self.encoder.logit_scale
        given = self.method.scores(images, self.texts, self.text_mask, logit_scale=scale)
        cosine = Ensemble().scores(images, self.texts, self.text_mask)
        if self.method.output == "similarity":
            cosine = given
        return self._headed(given, self.method.output), cosine

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

    def _headed(self, given: Float[Tensor, "n c"], output: Output) -> Float[Tensor, "n c"]:
        if self.head == "cosine" or output == "probability":
            return given
        logits = given if output == "logit" else given * self.encoder.logit_scale
        if self.head == "softmax":
            return logits.softmax(1)
        return (logits + (self.encoder.logit_bias or 0.0)).sigmoid()


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
    explained: int = 0,
) -> Classifier:
    """Encode the prompts and make the method ready.

    Args:
        labels: one name per class.
        prompts: the sentences of each class; classes may differ in how many.
        method: a scorer's name; without one the set's own, else its coupling, else `ensemble`.
        head: without one, sigmoid for a model with a bias (SigLIP), else softmax.
        truncate: cut prompts that are longer than the text encoder reads instead of refusing them.
        explained: how many anchors to name for each picture's best label; couplings alone can.

    Raises:
        UserError: a method that does not classify, or a prompt that is too long.
    """
    models.require(language_model=False)
    scorer = _scorer(models, method, options or {})
    if explained and not (isinstance(scorer, Coupling) and hasattr(scorer, "explain")):
        raise UserError(
            f"{methods.name_of(scorer)} is no sum over anchors, so that none can be named; asif, "
            "csa and csa_asif explain themselves"
        )
    encoder = models.coupled if isinstance(scorer, Coupling) else models.encoder
    flat = [sentence for sentences in prompts for sentence in sentences]
    if not truncate:
        _refuse_long(flat, text_side(encoder))
    rows = embed_texts(flat, text_side(encoder), cache, meter)
    if not isinstance(scorer, Coupling):
        rows = join_texts(encoder, rows)
    texts, mask = ragged(rows, [len(sentences) for sentences in prompts])
    own: Head = "softmax" if encoder.logit_bias is None else "sigmoid"
    anchors = models.anchors if explained else None
    return Classifier(scorer, encoder, labels, texts, mask, head or own, explained, anchors)


def classify(
    sources: Iterable[Source],
    classifier: Classifier,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
    top_k: int = 5,
) -> Iterator[ClassifyResult]:
    """One result per picture, in order, with the `top_k` best labels.

    A transductive method sees all pictures at once, so nothing comes out before the last one.
    """
    encoder = image_side(classifier.encoder)
    used = canonical_names(classifier.encoder)
    batches = embed_pictures(sources, encoder, cache, meter, batch_size)
    for batch in [_gather(batches)] if classifier.method.transductive else batches:
        good = batch.readable
        labels: dict[int, tuple[Label, ...]] = {}
        because: dict[int, tuple[Reason, ...]] = {}
        with meter.stage("scoring"):
            if good:
                scores, cosines = classifier(batch.rows[good])
                best = _best(classifier.labels, scores, cosines, top_k)
                labels = dict(zip(good, best, strict=True))
                if classifier.explained:
                    because = {
                        i: classifier.because(batch.rows[i], int(top), best[n][0].cosine)
                        for n, (i, top) in enumerate(zip(good, scores.argmax(1), strict=True))
                    }
        for i, source in enumerate(batch.sources):
            yield ClassifyResult(
                source=source,
                id=batch.ids[i],
                error=batch.failures[i],
                models=used,
                method=methods.name_of(classifier.method),
                labels=labels.get(i, ()),
                scored=classifier.head,
                because=because.get(i, ()),
            )


def settings(classifier: Classifier) -> dict[str, Any]:
    """What decides the scores, but for the prompts."""
    method = classifier.method
    return {
        "models": canonical_names(classifier.encoder),
        "method": methods.name_of(method),
        "options": {name: getattr(method, name) for name in methods.options(type(method))},
        "score": classifier.head,
    }


def _scorer(models: ModelSet, name: str | None, options: dict[str, Any]) -> Scorer:
    """The method asked for; a coupling comes fitted with the set's anchors."""
    own = models.spec.coupling if models.spec.encoder is None else None
    default = models.spec.classify.get("method", own.method if own else "ensemble")
    of_the_set = {k: v for k, v in models.spec.classify.items() if k != "method"}
    name = name or default
    given = (of_the_set if name == default else {}) | options
    if not hasattr(methods.get(name), "scores"):
        scorers = [n for n in methods.names() if hasattr(methods.get(n), "scores")]
        raise UserError(f"method '{name}' does not classify; these do: {', '.join(scorers)}")
    chosen = methods.configure(name, given)
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


def _refuse_long(prompts: Sequence[str], encoder: TextEncoder) -> None:
    limit = encoder.context_length
    if limit is None:
        return
    for prompt, length in zip(prompts, encoder.count_tokens(prompts), strict=True):
        if length > limit:
            raise UserError(
                f"a prompt of {length} tokens, but the text encoder reads {limit}: "
                f"'{prompt[:60]}...'; shorten it, or cut it off with --long-text truncate"
            )


def _best(
    labels: Sequence[str],
    scores: Float[Tensor, "n c"],
    cosines: Float[Tensor, "n c"],
    top_k: int,
) -> list[tuple[Label, ...]]:
    values, index = scores.topk(min(top_k, len(labels)), dim=1)
    return [
        tuple(Label(labels[i], s, c) for i, s, c in zip(*columns, strict=True))
        for columns in zip(
            index.tolist(), values.tolist(), cosines.gather(1, index).tolist(), strict=True
        )
    ]


def _gather(batches: Iterable[Embedded]) -> Embedded:
    """All batches as one; a batch of failures alone has no width of its own."""
    parts = list(batches)
    width = max((part.rows.shape[1] for part in parts), default=0)
    rows = [p.rows if p.rows.shape[1] else torch.zeros(len(p.sources), width) for p in parts]
    return Embedded(
        [s for p in parts for s in p.sources],
        [i for p in parts for i in p.ids],
        torch.cat(rows) if rows else torch.zeros(0, 0),
        [f for p in parts for f in p.failures],
    )
