"""A model set, loaded part by part when a task first needs the part."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from zeroshot import methods, models
from zeroshot.errors import UserError
from zeroshot.methods.auto import Auto
from zeroshot.model_set.anchor_file import Anchors, read_anchors
from zeroshot.model_set.coupled_encoder import CoupledEncoder, calibrate
from zeroshot.model_set.spec import CouplingSpec, SetSpec, find_set, require
from zeroshot.models.base import (
    Answerer,
    ClipScorer,
    Detector,
    DualEncoder,
    LanguageModel,
    PairScorer,
    RegionAnswerer,
    Segmenter,
    Writer,
)

__all__ = ["COUPLED", "ModelSet", "read_anchors", "resolve"]

COUPLED = "coupled"
"""As `--encoder coupled`: the set's unimodal pair instead of its dual encoder."""


@dataclass(frozen=True)
class ModelSet:
    """The models a task works with; each is loaded when it is first asked for."""

    spec: SetSpec
    device: str = "auto"
    precision: str = "auto"
    offline: bool = False
    trust_remote_code: bool = False
    fast: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        """A set travels as what it was made of, and is loaded again where it arrives."""
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    @property
    def name(self) -> str:
        """As it was asked for."""
        return self.spec.name

    @cached_property
    def encoder(self) -> "DualEncoder | CoupledEncoder":
        """The dual encoder of the set, or its coupled pair where it has none."""
        if self.spec.encoder is None:
            return self.coupled
        return models.load_dual_encoder(self.spec.encoder, **self._how)

    @cached_property
    def coupled(self) -> CoupledEncoder:
        """The set's image encoder and text encoder, coupled by its anchors."""
        spec = self.spec
        if spec.image_encoder is None or spec.text_encoder is None or spec.coupling is None:
            raise UserError(
                f"model set '{spec.name}' has no coupled pair: that takes the tables "
                "[image_encoder], [text_encoder] and [coupling]"
            )
        image_encoder = models.load_image_encoder(spec.image_encoder, **self._how)
        text_encoder = models.load_text_encoder(spec.text_encoder, **self._how)
        self.anchors.check_encoders(image_encoder.name, text_encoder.name)
        anchors = self.anchors.images, self.anchors.texts
        fitted = self.coupling.fit(*anchors)
        return CoupledEncoder(
            image_encoder=image_encoder,
            text_encoder=text_encoder,
            coupling=fitted,
            logit_scale=calibrate(fitted, *anchors),
            anchors=self.anchors.fingerprint,
        )

    @cached_property
    def coupling(self) -> Any:
        """The set's coupling, not fitted; ASIF without options chooses its own, `auto` all."""
        spec = _coupling(self.spec)
        chosen = methods.configure(spec.method, spec.options)
        if not isinstance(chosen, methods.Coupling):
            couplings = [n for n in methods.names() if hasattr(methods.get(n), "map_images")]
            raise UserError(
                f"method '{spec.method}' couples no encoders; these do: {', '.join(couplings)}"
            )
        if spec.method == "asif" and not spec.options:
            chosen = Auto(among="asif", splits=1)
        if isinstance(chosen, Auto):
            chosen = chosen.choose(self.anchors.images, self.anchors.texts).chosen.coupling
        return chosen

    def with_coupling(self, method: str, **options: Any) -> "ModelSet":
        """This set with another coupling of its anchors.

        Raises:
            UserError: a set without anchors.
        """
        coupling = replace(_coupling(self.spec), method=method, options=options)
        return replace(self, spec=replace(self.spec, coupling=coupling))

    def with_coupled_encoder(self, coupled: CoupledEncoder) -> "ModelSet":
        """This set, what it has loaded included, with another coupled pair."""
        twin = replace(self)
        vars(twin).update(vars(self), coupled=coupled)
        return twin

    @property
    def has_default_coupling(self) -> bool:
        """Whether it couples by `asif` and gives no options."""
        coupling = self.spec.coupling
        named = coupling is not None and coupling.method == "asif" and not coupling.options
        return named and self.spec.encoder is None

    @cached_property
    def with_caption_coupling(self) -> "ModelSet":
        """This set; one that leaves its coupling open, with the one `auto` chooses.

        What ASIF finds among a few thousand pairs tells labels apart, and is too coarse to tell
        words apart.
        """
        return self.with_coupling("auto", splits=1) if self.has_default_coupling else self

    @cached_property
    def anchors(self) -> Anchors:
        """The set's anchor pairs."""
        return read_anchors(_coupling(self.spec).anchors)

    @cached_property
    def language_model(self) -> LanguageModel:
        """The set's language model."""
        if self.spec.language_model is None:
            raise UserError(f"model set '{self.spec.name}' has no language model; give --lm NAME")
        return models.load_language_model(self.spec.language_model, **self._how)

    def segmenter(self, name: str) -> Segmenter:
        """A segmentation model, loaded as the set's own models are."""
        return models.load_segmenter(name, **self._how)

    def detector(self, name: str) -> Detector:
        """A detection model, loaded as the set's own models are."""
        return models.load_detector(name, **self._how)

    def pair_scorer(self, name: str) -> PairScorer:
        """The model called `name`, where this set's run: one that scores picture and text."""
        return models.load_pair_scorer(name, **self._how)

    def clip_scorer(self, name: str) -> ClipScorer:
        """As `pair_scorer`, a model of clips."""
        return models.load_clip_scorer(name, **self._how)

    def answerer(self, name: str) -> Answerer:
        """As `pair_scorer`, one that answers questions about pictures."""
        return models.load_answerer(name, **self._how)

    def region_answerer(self, name: str, answers: Sequence[str] | None) -> RegionAnswerer:
        """As `pair_scorer`, one that answers questions from regions; `answers` are its head's."""
        return models.load_region_answerer(name, answers, **self._how)

    def writer(self, name: str) -> Writer:
        """As `pair_scorer`, a trained captioner or a reader."""
        return models.load_writer(name, **self._how)

    def require(self, *, language_model: bool) -> None:
        """See that what a task needs is on this disk or can be fetched, before any of it loads.

        Raises:
            NotAvailableError: naming all that is missing, and what to do.
        """
        spec = self.spec if language_model else replace(self.spec, language_model=None)
        if spec.encoder is not None:
            spec = replace(spec, image_encoder=None, text_encoder=None)
        require(spec, offline=self.offline)

    @property
    def _how(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "precision": self.precision,
            "offline": self.offline,
            "trust_remote_code": self.trust_remote_code,
            "fast": self.fast,
        }


def resolve(
    name: str = "base",
    *,
    encoder: str | None = None,
    language_model: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    offline: bool = False,
    trust_remote_code: bool = False,
    fast: bool = False,
) -> ModelSet:
    """The set called `name` with parts replaced; nothing is loaded yet. Options as `models.load`.

    With both an encoder and a language model given, the set itself is not consulted for either,
    so that two model names alone are enough.
    """
    spec = find_set(name)
    if encoder == COUPLED:
        spec = replace(spec, encoder=None)
    elif encoder is not None:
        spec = replace(spec, encoder=encoder, caption={}, classify={})
    if language_model is not None:
        spec = replace(spec, language_model=language_model)
    return ModelSet(spec, device, precision, offline, trust_remote_code, fast)


def _coupling(spec: SetSpec) -> CouplingSpec:
    if spec.coupling is None:
        raise UserError(
            f"model set '{spec.name}' has no anchors (a [coupling] table in models.toml)"
        )
    return spec.coupling
