"""A fitted coupling that an earlier run chose: this one fits it to map something new.

To fit takes most of a second, to choose ten times that. What follows from the anchors and
the encoders alone is noted in the cache; the joint vectors of a run's first images and texts are
rows of it.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from zeroshot import methods
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.embedding import embed_texts
from zeroshot.inference.meter import CHOOSING, Meter
from zeroshot.methods import Coupling, Output
from zeroshot.methods._conse import ConSE
from zeroshot.model_set.coupled_encoder import CoupledEncoder, calibrate, with_classifier_head
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import ClassifyingEncoder, TextEncoder

IMAGES, TEXTS = 1024, 16_384
"""Joint vectors that a run adds to the cache: beside more, to fit takes no time that counts."""


@dataclass(frozen=True)
class CouplingFacts:
    """What a coupling is, and what was computed with it."""

    method: str
    options: Mapping[str, Any]
    classes: bool
    """Whether the image encoder's classifier is part of it."""
    text: str
    """Its `repr`, which is part of names."""
    logit_scale: float
    anchors: str
    """Their fingerprint."""

    @classmethod
    def read(cls, stored: Any) -> "CouplingFacts | None":
        """Those that were stored; None if they are not what they should be."""
        kinds = {
            "method": str,
            "options": dict,
            "classes": bool,
            "text": str,
            "logit_scale": float,
            "anchors": str,
        }
        if not isinstance(stored, dict) or set(stored) != set(kinds):
            return None
        if not all(isinstance(stored[name], kind) for name, kind in kinds.items()):
            return None
        try:
            coupling = methods.configure(stored["method"], stored["options"])
        except UserError:
            return None
        is_one = isinstance(coupling, Coupling) and math.isfinite(stored["logit_scale"])
        return cls(**stored) if is_one else None

    @classmethod
    def of(cls, pair: CoupledEncoder) -> "CouplingFacts":
        """Those of a pair."""
        classes = isinstance(pair.coupling, ConSE)
        inner: Any = pair.coupling.coupling if isinstance(pair.coupling, ConSE) else pair.coupling
        name, options = methods.name_of(inner), methods.values(inner)
        return cls(name, options, classes, repr(pair.coupling), pair.logit_scale, pair.anchors)

    def written(self) -> dict[str, Any]:
        """As JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class PairFit:
    """How a set's coupled pair comes about."""

    chosen: ModelSet
    """With the encoders and the coupling."""
    weight: float | None
    """Of the image encoder's classifier, if the names of its classes fit; None leaves it out."""
    cache: EmbeddingCache
    meter: Meter

    def pair(self) -> CoupledEncoder:
        """The pair; its coupling is chosen and fitted now."""
        coupled, anchors = self.chosen.coupled, self.chosen.anchors
        if self.weight is None:
            return coupled
        pairs = anchors.images, anchors.texts
        both = with_classifier_head(
            coupled.coupling,
            coupled.image_encoder,
            functools.partial(self._embed, coupled.text_encoder),
            *pairs,
            self.weight,
        )
        if both is coupled.coupling:
            return coupled
        return replace(coupled, coupling=both, logit_scale=calibrate(both, *pairs))

    def remembered(self) -> CoupledEncoder:
        """The pair; if an earlier run noted its coupling, that is fitted when it is needed."""
        spec = self.chosen.spec.coupling
        images, texts = self.chosen.image_encoder, self.chosen.text_encoder
        assert spec is not None
        files = self.cache.file_ids([spec.anchors, spec.anchors.with_suffix(".jsonl")])
        options = repr(sorted(spec.options.items()))
        of = (spec.method, options, files, images.name, texts.name)
        key = ("coupling", self.weight, *of)
        facts, fit = CouplingFacts.read(self.cache.note(*key)), self._fitted_anew
        if facts is None:
            # for another weight, the same choice among couplings was perhaps made before
            known = CouplingFacts.read(self.cache.note("choice", *of))
            choice = self if known is None else replace(self, chosen=self._as_chosen(known))
            with self.meter.phase(CHOOSING, counts=False), self.meter.stage(CHOOSING):
                pair = choice.pair()
            facts = CouplingFacts.of(pair)
            if self.weight is not None:
                self.cache.write_note(facts.written(), "choice", *of)
            self.cache.write_note(facts.written(), *key)

            def fit(facts: CouplingFacts) -> Coupling:
                return pair.coupling

        explains = not facts.classes and hasattr(methods.get(facts.method), "explain")
        kind = ExplainingCoupling if explains else RememberedCoupling
        space = f"{facts.text}[{images.name} + {texts.name}, anchors {facts.anchors}]"
        coupling = kind(facts.text, functools.partial(fit, facts), self.cache, space)
        return CoupledEncoder(images, texts, coupling, facts.logit_scale, facts.anchors)

    def _as_chosen(self, facts: CouplingFacts) -> ModelSet:
        return self.chosen.with_coupling(facts.method, **facts.options)

    def _fitted_anew(self, facts: CouplingFacts) -> Coupling:
        anchors = self.chosen.anchors
        coupling: Coupling = methods.configure(facts.method, facts.options)
        with self.meter.phase("fitting the coupling", counts=False):
            fitted = coupling.fit(anchors.images, anchors.texts)
            if not facts.classes or self.weight is None:
                return fitted
            encoder = self.chosen.image_encoder
            head = encoder.classes if isinstance(encoder, ClassifyingEncoder) else None
            if head is None:
                raise UserError(f"the files of {encoder.name} changed during the run")
            names = self._embed(self.chosen.text_encoder, head.names)
            return ConSE(fitted, head.weights, names, self.weight)

    def _embed(self, encoder: TextEncoder, names: Sequence[str]) -> Float[Tensor, "n e"]:
        return embed_texts(names, encoder, self.cache, self.meter)


class RememberedCoupling:
    """A fitted coupling that is fitted again when the cache lacks a joint vector."""

    transductive = False
    output: Output = "similarity"

    def __init__(self, text: str, fit: Callable[[], Coupling], cache: EmbeddingCache, space: str):
        self._text = text
        self._fit = fit
        self._fitted: Coupling | None = None
        self._cache = cache
        self._space = space
        self._room = {"joint images": IMAGES, "joint texts": TEXTS}

    def __repr__(self) -> str:
        return self._text

    @property
    def fitted(self) -> Coupling:
        """The coupling itself."""
        if self._fitted is None:
            self._fitted = self._fit()
        return self._fitted

    def fit(
        self, anchor_images: Real[Tensor, "a d"], anchor_texts: Real[Tensor, "_a e"]
    ) -> Coupling:
        """See `methods.Coupling`, as all that follows."""
        return self.fitted.fit(anchor_images, anchor_texts)

    def add(self, images: Float[Tensor, "m d"], texts: Float[Tensor, "_m e"]) -> Coupling:
        """With these pairs appended."""
        return self.fitted.add(images, texts)

    def remove(self, index: Int[Tensor, " m"]) -> Coupling:
        """Without the pairs at `index`."""
        return self.fitted.remove(index)

    def map_images(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """Joint vectors, from the cache if it has all of them."""
        return self._mapped("joint images", images, lambda: self.fitted.map_images(images))

    def map_texts(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n m"]:
        """As `map_images`."""
        return self._mapped("joint texts", texts, lambda: self.fitted.map_texts(texts))

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Scores of the coupling itself."""
        return self.fitted.scores(images, texts, text_mask, logit_scale)

    def cosines(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None = None,
    ) -> Float[Tensor, "n c"]:
        """Cosines of the coupling itself."""
        return self.fitted.cosines(images, texts, text_mask)

    def match(
        self, images: Float[Tensor, "b m"], texts: Float[Tensor, "b k e"]
    ) -> Float[Tensor, "b k"]:
        """Cosines of the coupling itself."""
        return self.fitted.match(images, texts)

    def _mapped(self, kind: str, rows: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        fits = 0 < len(rows) <= self._room[kind] and rows.dtype == torch.float32
        if not fits or self._cache.is_closed:
            return compute()
        ids = [hashlib.sha256(row.tobytes()).hexdigest() for row in rows.numpy()]
        if self._fitted is None:
            known, found = self._cache.get(self._space, kind, ids)
            if found.all():
                return known
        mapped = compute()
        if mapped.dtype == torch.float32 and mapped.isfinite().all():
            self._room[kind] -= len(rows)
            self._cache.put(self._space, kind, ids, mapped)
        return mapped


def fitted_coupling(pair: CoupledEncoder) -> Coupling:
    """The coupling of a pair itself, whose class and options say what it is."""
    coupling = pair.coupling
    return coupling.fitted if isinstance(coupling, RememberedCoupling) else coupling


class ExplainingCoupling(RememberedCoupling):
    """One whose scores are sums over anchors."""

    def explain(
        self, image: Float[Tensor, " d"], texts: Float[Tensor, "t e"], count: int = 5
    ) -> methods.Explanation:
        """The anchors with the largest shares of a score."""
        coupling: Any = self.fitted
        explanation: methods.Explanation = coupling.explain(image, texts, count)
        return explanation
