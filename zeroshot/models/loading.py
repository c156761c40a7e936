"""From a model's name to the model: what it is, and whether that is what was asked for."""

from collections.abc import Callable
from typing import Any, Literal, TypedDict, Unpack

import torch

from zeroshot.errors import UserError
from zeroshot.models import model_files, open_clip
from zeroshot.models.base import (
    Detector,
    DualEncoder,
    ImageEncoder,
    LanguageModel,
    Segmenter,
    TextEncoder,
)
from zeroshot.models.devices import resolve_device, resolve_precision
from zeroshot.models.hf import (
    common,
    dual_encoder,
    image_encoder,
    language_model,
    mask_models,
    object_detection,
    text_encoder,
)
from zeroshot.models.model_files import Files
from zeroshot.models.names import parse
from zeroshot.models.vlm import captioners, image_text_matching, question_answering

__all__ = [
    "load",
    "load_detector",
    "load_dual_encoder",
    "load_image_encoder",
    "load_language_model",
    "load_segmenter",
    "load_text_encoder",
]

Role = Literal[
    "dual encoder", "image encoder", "text encoder", "language model", "segmenter", "detector"
]

LOADERS: dict[Role, Callable[[Files, torch.device, torch.dtype, bool], Any]] = {
    "dual encoder": dual_encoder.load_dual_encoder,
    "image encoder": image_encoder.load_image_encoder,
    "text encoder": text_encoder.load_text_encoder,
    "language model": language_model.load_language_model,
    "segmenter": mask_models.load_segmenter,
    "detector": object_detection.load_detector,
}


WITH_TEXTS = {
    "ask": (
        *question_answering.CLASSIFIERS,
        *question_answering.REGION_CLASSIFIERS,
        *captioners.ANSWERERS,
    ),
    "match": tuple(image_text_matching.HEADS),
    "caption --method native": captioners.WRITERS,
    "video classify": ("XCLIPModel",),
}
"""Classes that `vision_language` loads, and a command that asks for them."""


class Options(TypedDict, total=False):
    """What every loader takes beside the model's name; `load` says what each means."""

    device: str
    precision: str
    offline: bool
    trust_remote_code: bool
    fast: bool


def load(
    name: str,
    *,
    device: str = "auto",
    precision: str = "auto",
    offline: bool = False,
    trust_remote_code: bool = False,
    fast: bool = False,
    role: Role | None = None,
) -> Any:
    """The model called `name`: an encoder, a language model, a segmenter or a detector.

    `device` is `auto`, `cpu`, `cuda`, `cuda:1` or `mps`; `precision` is `auto` (bf16 or fp16 on
    CUDA, else fp32), `fp32`, `fp16` or `bf16`. `offline` never asks the network, as
    `HF_HUB_OFFLINE=1` does. `trust_remote_code` runs Python code that comes with the model, with
    all the rights of this process. `fast` takes shortcuts to an image encoder's pixels, which
    change them a little (`preprocessing.Preprocessing.faster`). `role` refuses a model that is
    something else.

    UserError for a name of no known form, a model of another role and files that are no complete
    model; NotAvailableError for a model that is neither on this disk nor reachable.
    """
    parsed = parse(name)
    where = resolve_device(device)
    dtype = resolve_precision(precision, where)
    if parsed.scheme != "hf":
        _check_role(str(parsed), role, "dual encoder")
        return _hastened(open_clip.load_dual_encoder(parsed, where, dtype, offline), fast)
    found = model_files.locate(parsed, model_files.TRANSFORMERS, offline=offline)
    common.refuse_remote_code(found, trust_remote_code)
    kind = _kind(found, role)
    _check_role(str(parsed), role, kind)
    return _hastened(LOADERS[kind](found, where, dtype, trust_remote_code), fast)


def _hastened(model: Any, fast: bool) -> Any:
    if fast and hasattr(model, "preprocessing"):
        model.preprocessing = model.preprocessing.faster()
    return model


def load_dual_encoder(name: str, **options: Unpack[Options]) -> DualEncoder:
    """As `load`; UserError unless the model has an image and a text side in one space."""
    encoder: DualEncoder = load(name, role="dual encoder", **options)
    return encoder


def load_image_encoder(name: str, **options: Unpack[Options]) -> ImageEncoder:
    """As `load`; a dual encoder serves too."""
    encoder: ImageEncoder = load(name, role="image encoder", **options)
    return encoder


def load_text_encoder(name: str, **options: Unpack[Options]) -> TextEncoder:
    """As `load`; a dual encoder serves too."""
    encoder: TextEncoder = load(name, role="text encoder", **options)
    return encoder


def load_language_model(name: str, **options: Unpack[Options]) -> LanguageModel:
    """As `load`; UserError unless the model is a causal language model."""
    model: LanguageModel = load(name, role="language model", **options)
    return model


def load_segmenter(name: str, **options: Unpack[Options]) -> Segmenter:
    """As `load`; UserError unless the model segments by prompts."""
    model: Segmenter = load(name, role="segmenter", **options)
    return model


def load_detector(name: str, **options: Unpack[Options]) -> Detector:
    """As `load`; UserError unless the model detects by prompts."""
    model: Detector = load(name, role="detector", **options)
    return model


def _kind(found: Files, role: Role | None) -> Role:
    """What the model in `found` is, by its own configuration."""
    config = found.read("config.json")
    architecture = (config.get("architectures") or [""])[0]
    if config.get("model_type") in dual_encoder.FAMILIES:
        return "dual encoder"
    if config.get("model_type") in mask_models.FAMILIES:
        return "segmenter"
    if config.get("model_type") in object_detection.FAMILIES:
        return "detector"
    if verb := next((v for v, kinds in WITH_TEXTS.items() if architecture in kinds), None):
        raise UserError(
            f"{found.name} is a {architecture}, which meets pictures and texts together and is no "
            f"encoder: `zeroshot {verb} --model {found.name.label}`"
        )
    if architecture.endswith(("LMHeadModel", "ForCausalLM")):
        # A text encoder made from a language model says so by its pooling.
        pooled = (found.directory / "modules.json").is_file()
        return "text encoder" if pooled and role != "language model" else "language model"
    return "text encoder" if common.has_tokenizer(found) else "image encoder"


def _check_role(name: str, role: Role | None, kind: Role) -> None:
    serves = {kind, "image encoder", "text encoder"} if kind == "dual encoder" else {kind}
    if role is not None and role not in serves:
        raise UserError(f"{name} is {_a(kind)}, not {_a(role)}")


def _a(role: Role) -> str:
    return f"an {role}" if role.startswith("i") else f"a {role}"
