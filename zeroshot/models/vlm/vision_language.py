"""From a model's name to a model that reads images and texts together, by role.

One model may have several roles: BLIP-2 answers and captions, FLAVA is a dual encoder with a
matching head. So the caller names the role, and the class in the configuration selects the loader.
"""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

from zeroshot.errors import UserError
from zeroshot.models.base import Answerer, ClipScorer, PairScorer, RegionAnswerer, Writer
from zeroshot.models.devices import resolve_device, resolve_precision
from zeroshot.models.hf import clip_scorers
from zeroshot.models.hf.checkpoint import Checkpoint
from zeroshot.models.isolation import loads
from zeroshot.models.loading import LoadOptions, load
from zeroshot.models.model_checks import check_vocabulary, model_errors
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


def load_pair_scorer(name: str, **options: Unpack[LoadOptions]) -> PairScorer:
    """The model called `name`, with a head that scores an image and a text together.

    UserError for a model without one; NotAvailableError for one that is not available.
    """
    scorer: PairScorer = _load(name, image_text_matching.load_pair_scorer, **options)
    return scorer


def load_clip_scorer(name: str, **options: Unpack[LoadOptions]) -> ClipScorer:
    """As `load_pair_scorer`, for a model of video clips."""
    scorer: ClipScorer = _load(name, clip_scorers.load_clip_scorer, **options)
    return scorer


def load_region_answerer(
    name: str, answers: Sequence[str] | None = None, **options: Unpack[LoadOptions]
) -> RegionAnswerer:
    """As `load_pair_scorer`, for LXMERT and VisualBERT; `answers` names the head's outputs."""

    def loader(checkpoint: Checkpoint) -> RegionAnswerer:
        return question_answering.load_region_answerer(checkpoint, answers)

    answerer: RegionAnswerer = _load(name, loader, **options)
    return answerer


def load_answerer(name: str, **options: Unpack[LoadOptions]) -> Answerer:
    """As `load_pair_scorer`, for a model that answers questions about an image."""
    answerer: Answerer = _load(name, _answerer, **options)
    return answerer


@loads
def load_writer(name: str, **options: Unpack[LoadOptions]) -> Writer:
    """As `load_pair_scorer`, for a trained captioner or a reader of text."""
    parsed = parse(name)
    if parsed.scheme != "hf":
        coca: Writer = _of(parsed, CoCa(load(name, role="dual encoder", **options)))
        return coca
    if parsed.directory is not None and (parsed.directory / CLIPCAP).is_file():
        with model_errors(parsed):
            clipcap: Writer = load_clipcap(
                parsed.directory,
                lambda part: load(part, role="dual encoder", **options),
                lambda part: load(part, role="language model", **options),
            )
        clipcap.files_of = parsed  # type: ignore[attr-defined]
        return clipcap
    writer: Writer = _load(name, _writer, **options)
    return writer


@loads
def _load(
    name: str,
    loader: Callable[[Checkpoint], Any],
    *,
    device: str = "auto",
    precision: str = "auto",
    offline: bool = False,
    trust_remote_code: bool = False,
    fast: bool = False,  # these models have no shortcuts
) -> Any:
    parsed = parse(name)
    if parsed.scheme != "hf":
        raise UserError(
            f"{parsed} is a dual encoder of open_clip; give it as --encoder, it scores and answers "
            "by cosines"
        )
    target = resolve_device(device)
    dtype = resolve_precision(precision, target)
    with model_errors(parsed):
        model = loader(
            Checkpoint.locate(
                parsed, target, dtype, offline=offline, trust_remote_code=trust_remote_code
            )
        )
        if parsed.directory is not None:
            check_vocabulary(parsed, getattr(model, "tokenizer", None), model.model)
        return _of(parsed, model)


def _of(name: object, model: Any) -> Any:
    """The model; errors of its methods are those of the files of this name."""
    model.files_of = name
    return model


def _answerer(checkpoint: Checkpoint) -> Any:
    architecture = checkpoint.files.architecture
    if architecture in question_answering.CLASSIFIERS:
        return question_answering.load_vilt(checkpoint)
    if architecture in captioners.ANSWERERS:
        return captioners.load_generator(checkpoint)
    if architecture in question_answering.REGION_ANSWERERS:
        raise UserError(
            f"{checkpoint.files.name} reads a detector's regions, not pixels; give regions "
            "(--regions)"
        )
    return _chat(checkpoint, "answers no questions")


def _writer(checkpoint: Checkpoint) -> Any:
    if checkpoint.files.architecture in captioners.WRITERS:
        return captioners.load_generator(checkpoint)
    return _chat(checkpoint, "writes nothing")


def _chat(checkpoint: Checkpoint, lack: str) -> Any:
    """An instruction-tuned model, if transformers knows it as one with images in its prompt."""
    if not checkpoint.is_chat_model:
        files = checkpoint.files
        raise UserError(f"{files.name} is a {files.architecture}, which {lack}")
    return chat.load_chat(checkpoint)
