"""From a model's name to one that meets pictures and texts together, by what it is wanted for.

One model may be several: BLIP-2 answers and captions, FLAVA is a dual encoder with a matching head.
So the caller says the role, and the class that the configuration names decides who loads it.
"""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

from zeroshot.errors import UserError
from zeroshot.models import model_files
from zeroshot.models.base import Answerer, ClipScorer, PairScorer, RegionAnswerer, Writer
from zeroshot.models.devices import resolve_device, resolve_precision
from zeroshot.models.hf import common, xclip
from zeroshot.models.hf.text_inputs import architecture
from zeroshot.models.loading import Options, load
from zeroshot.models.model_files import Files
from zeroshot.models.names import parse
from zeroshot.models.vlm import captioners, chat, image_text_matching, question_answering
from zeroshot.models.vlm.clipcap import FILE as CLIPCAP, load_clipcap
from zeroshot.models.vlm.coca import CoCa

__all__ = [
    "load_answerer",
    "load_clip_scorer",
    "load_pair_scorer",
    "load_region_answerer",
    "load_writer",
]

Loader = Callable[..., Any]


def load_pair_scorer(name: str, **options: Unpack[Options]) -> PairScorer:
    """The model called `name` with a head that scores a picture and a text together.

    UserError for a model without one; NotAvailableError for one that is not here.
    """
    scorer: PairScorer = _load(name, image_text_matching.load_pair_scorer, **options)
    return scorer


def load_answerer(name: str, **options: Unpack[Options]) -> Answerer:
    """As `load_pair_scorer`, for a model that answers questions about a picture."""

    def loader(found: Files, *how: Any) -> Any:
        kind = architecture(found)
        if kind in question_answering.CLASSIFIERS:
            return question_answering.load_vilt(found, *how)
        if kind in captioners.ANSWERERS:
            return captioners.load_generator(found, *how)
        if kind in question_answering.REGION_CLASSIFIERS:
            raise UserError(
                f"{found.name} reads what a detector saw, not pixels; give regions (--regions)"
            )
        return _chat(found, "answers no questions", *how)

    answerer: Answerer = _load(name, loader, **options)
    return answerer


def load_clip_scorer(name: str, **options: Unpack[Options]) -> ClipScorer:
    """As `load_pair_scorer`, for a model of clips."""
    scorer: ClipScorer = _load(name, xclip.load_clip_scorer, **options)
    return scorer


def load_region_answerer(
    name: str, answers: Sequence[str] | None = None, **options: Unpack[Options]
) -> RegionAnswerer:
    """As `load_pair_scorer`, for LXMERT and VisualBERT; `answers` names the head's outputs."""

    def loader(found: Files, *how: Any) -> Any:
        return question_answering.load_region_answerer(found, answers, *how)

    answerer: RegionAnswerer = _load(name, loader, **options)
    return answerer


def load_writer(name: str, **options: Unpack[Options]) -> Writer:
    """As `load_pair_scorer`, for a trained captioner or a reader of text."""
    parsed = parse(name)
    if parsed.scheme != "hf":
        return CoCa(load(name, role="dual encoder", **options))
    if parsed.directory is not None and (parsed.directory / CLIPCAP).is_file():
        return load_clipcap(
            parsed.directory,
            lambda part: load(part, role="dual encoder", **options),
            lambda part: load(part, role="language model", **options),
        )

    def loader(found: Files, *how: Any) -> Any:
        if architecture(found) in captioners.WRITERS:
            return captioners.load_generator(found, *how)
        return _chat(found, "writes nothing", *how)

    writer: Writer = _load(name, loader, **options)
    return writer


def _load(name: str, loader: Loader, **options: Unpack[Options]) -> Any:
    parsed = parse(name)
    if parsed.scheme != "hf":
        raise UserError(
            f"{parsed} is a dual encoder of open_clip; it scores and answers by matching "
            "(--encoder)"
        )
    device = resolve_device(options.get("device", "auto"))
    dtype = resolve_precision(options.get("precision", "auto"), device)
    trust = options.get("trust_remote_code", False)
    found = model_files.locate(
        parsed, model_files.TRANSFORMERS, offline=options.get("offline", False)
    )
    common.refuse_remote_code(found, trust)
    return loader(found, device, dtype, trust)


def _chat(found: Files, lack: str, *how: Any) -> Any:
    """An instructed model, if transformers knows it as one that meets pictures in its prompt."""
    if not common.knows_pictures_in_prompts(found.read("config.json").get("model_type")):
        raise UserError(f"{found.name} is a {architecture(found)}, which {lack}")
    return chat.load_chat(found, *how)
