"""A model set whose models are loaded when a task first needs them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from zeroshot import methods, models
from zeroshot.errors import UnsupportedError, UserError
from zeroshot.methods.auto import open_coupling
from zeroshot.model_set.anchor_file import Anchors, read_anchors
from zeroshot.model_set.availability import require
from zeroshot.model_set.coupled_encoder import CoupledEncoder, calibrate
from zeroshot.model_set.spec import CouplingSpec, SetSpec, find_set
from zeroshot.models.base import (
    Answerer,
    ClipScorer,
    Detector,
    DualEncoder,
    ImageEncoder,
    LanguageModel,
    PairScorer,
    PatchEncoder,
    RegionAnswerer,
    Segmenter,
    TextEncoder,
    Writer,
)
from zeroshot.models.isolation import once

__all__ = ["COUPLED", "ModelSet", "read_anchors", "resolve"]

COUPLED = "coupled"
"""`--encoder coupled`: the set's coupled pair instead of its dual encoder."""
UNCOUPLED = ("image_encoder", "text_encoder", "language_model", "anchors")
"""What does not depend on the coupling."""


@dataclass(frozen=True)
class ModelSet:
    """The models of a task; each is loaded on first use."""

    spec: SetSpec
    device: str = "auto"
    precision: str = "auto"
    offline: bool = False
    trust_remote_code: bool = False
    fast: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled set has no models; they are loaded again on first use."""
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    @property
    def name(self) -> str:
        """The set's name."""
        return self.spec.name

    @once
    def encoder(self) -> "DualEncoder | CoupledEncoder":
        """The set's dual encoder, or its coupled pair if it has none."""
        if self.spec.encoder is None:
            return self.coupled
        return models.load_dual_encoder(self.spec.encoder, **self._options)

    @once
    def image_encoder(self) -> ImageEncoder:
        """The image encoder of the set's coupled pair."""
        if self.spec.image_encoder is None:
            raise self._no_coupled_pair()
        return models.load_image_encoder(self.spec.image_encoder, **self._options)

    @once
    def text_encoder(self) -> TextEncoder:
        """The text encoder of the set's coupled pair."""
        if self.spec.text_encoder is None:
            raise self._no_coupled_pair()
        return models.load_text_encoder(self.spec.text_encoder, **self._options)

    @once
    def coupled(self) -> CoupledEncoder:
        """The set's image encoder and text encoder, coupled by its anchors."""
        spec = self.spec
        if spec.image_encoder is None or spec.text_encoder is None or spec.coupling is None:
            raise self._no_coupled_pair()
        image_encoder, text_encoder = self.image_encoder, self.text_encoder
        self.anchors.check_encoders(image_encoder.name, text_encoder.name)
        anchors = self.anchors.images, self.anchors.texts
        coupling = self.coupling.fit(*anchors)
        return CoupledEncoder(
            image_encoder=image_encoder,
            text_encoder=text_encoder,
            coupling=coupling,
            logit_scale=calibrate(coupling, *anchors),
            anchors=self.anchors.fingerprint,
        )

    @once
    def coupling(self) -> Any:
        """The set's coupling, not fitted; see `methods.auto.open_coupling`."""
        spec = _coupling(self.spec)
        coupling = methods.configure(spec.method, spec.options)
        if not isinstance(coupling, methods.Coupling):
            couplings = methods.with_verb("map_images")
            raise UserError(
                f"method '{spec.method}' couples no encoders; these do: {', '.join(couplings)}"
            )
        return open_coupling(spec.method, spec.options, self.anchors.images, self.anchors.texts)

    def with_language_model(self, name: str) -> "ModelSet":
        """This set with another language model."""
        return replace(self, spec=replace(self.spec, language_model=name))

    def with_coupling(self, method: str, **options: Any) -> "ModelSet":
        """This set with another coupling of its anchors.

        Raises:
            UserError: a set without anchors.
        """
        coupling = replace(_coupling(self.spec), method=method, options=options)
        copy = replace(self, spec=replace(self.spec, coupling=coupling))
        vars(copy).update({part: vars(self)[part] for part in UNCOUPLED if part in vars(self)})
        return copy

    def with_coupled_encoder(self, coupled: CoupledEncoder) -> "ModelSet":
        """This set with another coupled pair; keeps the models that are loaded."""
        return self.with_parts(coupled=coupled)

    def with_parts(self, **parts: Any) -> "ModelSet":
        """This set with these attributes, which are not loaded; keeps those that are."""
        copy = replace(self)
        vars(copy).update(vars(self), **parts)
        return copy

    def is_loaded(self, part: str) -> bool:
        """Whether an attribute was loaded, or set by `with_parts`."""
        return part in vars(self)

    @property
    def has_default_coupling(self) -> bool:
        """Whether the set has only a coupled pair, by `asif` without options."""
        coupling = self.spec.coupling
        default = coupling is not None and coupling.method == "asif" and not coupling.options
        return default and self.spec.encoder is None

    @once
    def with_chosen_coupling(self) -> "ModelSet":
        """This set, with a coupling chosen by `auto` in place of the default coupling."""
        return self.with_coupling("auto", splits=1) if self.has_default_coupling else self

    @once
    def anchors(self) -> Anchors:
        """The set's anchor pairs."""
        return read_anchors(_coupling(self.spec).anchors)

    @once
    def language_model(self) -> LanguageModel:
        """The set's language model."""
        if self.spec.language_model is None:
            raise UnsupportedError(
                f"model set '{self.spec.name}' has no language model; give --lm NAME"
            )
        return models.load_language_model(self.spec.language_model, **self._options)

    def segmenter(self, name: str) -> Segmenter:
        """A segmentation model, loaded with this set's options."""
        return models.load_segmenter(name, **self._options)

    def patch_encoder(self, name: str) -> PatchEncoder:
        """As `segmenter`, an encoder of images whose patches are compared.

        Raises:
            UserError: a model without patches.
        """
        encoder = models.load_image_encoder(name, **self._options)
        if not isinstance(encoder, PatchEncoder):
            raise UserError(f"{name} gives no features of patches; use hf:facebook/dinov2-base")
        return encoder

    def detector(self, name: str) -> Detector:
        """As `segmenter`, a detection model."""
        return models.load_detector(name, **self._options)

    def pair_scorer(self, name: str) -> PairScorer:
        """As `segmenter`, a model that scores an image with a text."""
        return models.load_pair_scorer(name, **self._options)

    def clip_scorer(self, name: str) -> ClipScorer:
        """As `segmenter`, a model of video clips."""
        return models.load_clip_scorer(name, **self._options)

    def answerer(self, name: str) -> Answerer:
        """As `segmenter`, a model that answers questions about images."""
        return models.load_answerer(name, **self._options)

    def region_answerer(self, name: str, answers: Sequence[str] | None) -> RegionAnswerer:
        """As `segmenter`, a model that answers from regions; `answers` names its outputs."""
        return models.load_region_answerer(name, answers, **self._options)

    def writer(self, name: str) -> Writer:
        """As `segmenter`, a trained captioner or a reader of text."""
        return models.load_writer(name, **self._options)

    def require(self, *, language_model: bool) -> None:
        """Download what a task needs and this disk lacks, before any model is loaded.

        Raises:
            NotAvailableError: naming all missing models, and what to do.
        """
        spec = self.spec if language_model else replace(self.spec, language_model=None)
        if spec.encoder is not None:
            spec = replace(spec, image_encoder=None, text_encoder=None)
        require(spec, offline=self.offline)

    def _no_coupled_pair(self) -> UnsupportedError:
        return UnsupportedError(
            f"model set '{self.spec.name}' has no coupled pair; a coupled pair needs the tables "
            "[image_encoder], [text_encoder] and [coupling] in models.toml"
        )

    @property
    def _options(self) -> dict[str, Any]:
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
    """The set called `name`, with another encoder or language model; nothing is loaded yet.

    The other options are those of `models.load`.
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
        raise UnsupportedError(
            f"model set '{spec.name}' has no anchors (a [coupling] table in models.toml)"
        )
    return spec.coupling
