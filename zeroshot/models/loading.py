"""From a model's name to the model, with a check that it is of the expected kind."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from PIL import Image

from zeroshot.errors import UserError
from zeroshot.models import open_clip
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
    clip_scorers,
    dual_encoder,
    image_encoder,
    language_model,
    mask_models,
    object_detection,
    text_encoder,
)
from zeroshot.models.hf.checkpoint import Checkpoint
from zeroshot.models.isolation import loads
from zeroshot.models.model_checks import check_vocabulary, model_errors
from zeroshot.models.names import ModelName, parse
from zeroshot.models.vlm import (
    captioners,
    image_text_matching,
    prompted_encoder,
    question_answering,
)

BUNDLED = Path(__file__).parent
"""Models in here are our own: they need not be tried out."""

__all__ = [
    "load",
    "load_detector",
    "load_dual_encoder",
    "load_image_encoder",
    "load_language_model",
    "load_segmenter",
    "load_text_encoder",
]

ModelRole = Literal[
    "dual encoder", "image encoder", "text encoder", "language model", "segmenter", "detector"
]


def _load_dual(checkpoint: Checkpoint) -> Any:
    prompted = prompted_encoder.prompted(checkpoint.files)
    load = prompted_encoder.load_prompted_encoder if prompted else dual_encoder.load_dual_encoder
    return load(checkpoint)


LOADERS: dict[ModelRole, Callable[[Checkpoint], Any]] = {
    "dual encoder": _load_dual,
    "image encoder": image_encoder.load_image_encoder,
    "text encoder": text_encoder.load_text_encoder,
    "language model": language_model.load_language_model,
    "segmenter": mask_models.load_segmenter,
    "detector": object_detection.load_detector,
}

FAMILIES: dict[ModelRole, frozenset[str]] = {
    "dual encoder": frozenset(dual_encoder.FAMILIES),
    "segmenter": frozenset(mask_models.FAMILIES),
    "detector": frozenset(object_detection.FAMILIES),
}
"""Model types that show what a model is."""

COMMANDS = {
    "ask": {
        *question_answering.CLASSIFIERS,
        *question_answering.REGION_ANSWERERS,
        *captioners.ANSWERERS,
    },
    "match": {*image_text_matching.HEADS},
    "caption --method native": {*captioners.WRITERS},
    "video classify": {*clip_scorers.ARCHITECTURES},
}
"""For classes that read images and texts together, a command that loads them."""

NEAREST = (
    (
        r"Video|Clip[A-Z]\w*Video|PeAudio",
        "clips: `zeroshot video classify --model hf:microsoft/xclip-base-patch32`",
    ),
    (
        r"Detection",
        "boxes for words: `zeroshot detect --model hf:IDEA-Research/grounding-dino-tiny`",
    ),
    (
        r"Sam\d|Segmentation|Edgetam",
        "masks for words: `zeroshot segment --model hf:CIDAS/clipseg-rd64-refined`",
    ),
    (r"", "images and texts: `--encoder hf:google/siglip2-base-patch16-224`"),
)
"""For classes that are not loaded, by a part of their names: what comes nearest."""
IMAGE_SIDES = ("vision_config", "image_config", "backbone_config", "image_encoder_config")
TEXT_SIDES = ("text_config", "llm_config", "language_config")
"""Keys of configurations of models that have both."""


class LoadOptions(TypedDict, total=False):
    """The options of every loader; see `load`."""

    device: str
    precision: str
    offline: bool
    trust_remote_code: bool
    fast: bool


@loads
def load(
    name: str,
    *,
    device: str = "auto",
    precision: str = "auto",
    offline: bool = False,
    trust_remote_code: bool = False,
    fast: bool = False,
    role: ModelRole | None = None,
) -> Any:
    """The model called `name`: an encoder, a language model, a segmenter or a detector.

    `device` is `auto`, `cpu`, `cuda`, `cuda:1` or `mps`; `precision` is `auto` (bf16 or fp16 on
    CUDA, else fp32), `fp32`, `fp16` or `bf16`. `offline` makes no network requests, as
    `HF_HUB_OFFLINE=1` does. `trust_remote_code` runs Python code that comes with the model, with
    all the rights of this process. `fast` takes shortcuts in an image encoder's preprocessing,
    which change pixels a little (`preprocessing.Preprocessing.faster`). `role` refuses a model of
    another kind.

    UserError for an invalid name, a model of another role and an incomplete model.
    NotAvailableError for a model that is neither on this disk nor downloadable.
    """
    parsed = parse(name)
    target = resolve_device(device)
    dtype = resolve_precision(precision, target)
    with model_errors(parsed):
        if parsed.scheme != "hf":
            _check_role(str(parsed), role, "dual encoder")
            model: Any = open_clip.load_dual_encoder(parsed, target, dtype, offline)
        else:
            checkpoint = Checkpoint.locate(
                parsed, target, dtype, offline=offline, trust_remote_code=trust_remote_code
            )
            kind = _kind(checkpoint, role)
            _check_role(str(parsed), role, kind)
            model = LOADERS[kind](checkpoint)
        if parsed.directory is None or BUNDLED not in Path(parsed.directory).parents:
            model.files_of = parsed
            if parsed.directory is not None:
                _try_out(model, parsed)
    if fast and hasattr(model, "preprocessing"):
        model.preprocessing = model.preprocessing.faster()
    return model


def _try_out(model: Any, name: ModelName) -> None:
    """Encode texts and an image, so that files that do not fit together are found now."""
    check_vocabulary(name, getattr(model, "tokenizer", None), model.model)
    if isinstance(model, TextEncoder):
        model.count_tokens(["a"])
        model.encode_texts(["a", "a text of more words, so that the first is padded"])
    if isinstance(model, ImageEncoder):
        model.encode_images([Image.new("RGB", (16, 16), "gray")])


def load_dual_encoder(name: str, **options: Unpack[LoadOptions]) -> DualEncoder:
    """As `load`; UserError unless the model encodes images and texts in one space."""
    encoder: DualEncoder = load(name, role="dual encoder", **options)
    return encoder


def load_image_encoder(name: str, **options: Unpack[LoadOptions]) -> ImageEncoder:
    """As `load`; a dual encoder is one too."""
    encoder: ImageEncoder = load(name, role="image encoder", **options)
    return encoder


def load_text_encoder(name: str, **options: Unpack[LoadOptions]) -> TextEncoder:
    """As `load`; a dual encoder is one too."""
    encoder: TextEncoder = load(name, role="text encoder", **options)
    return encoder


def load_language_model(name: str, **options: Unpack[LoadOptions]) -> LanguageModel:
    """As `load`; UserError unless the model is a causal language model."""
    model: LanguageModel = load(name, role="language model", **options)
    return model


def load_segmenter(name: str, **options: Unpack[LoadOptions]) -> Segmenter:
    """As `load`; UserError unless the model segments by prompts."""
    model: Segmenter = load(name, role="segmenter", **options)
    return model


def load_detector(name: str, **options: Unpack[LoadOptions]) -> Detector:
    """As `load`; UserError unless the model detects by prompts."""
    model: Detector = load(name, role="detector", **options)
    return model


def _kind(checkpoint: Checkpoint, role: ModelRole | None) -> ModelRole:
    """What the model is, by its own configuration."""
    files = checkpoint.files
    if prompted_encoder.prompted(files):
        return "dual encoder"
    for kind, model_types in FAMILIES.items():
        if files.model_type in model_types:
            return kind
    for command, architectures in COMMANDS.items():
        if files.architecture in architectures:
            raise UserError(
                f"{files.name} is a {files.architecture}, which reads images and texts together "
                f"and is no encoder: `zeroshot {command} --model {files.name.label}`"
            )
    _check_loads(checkpoint)
    if files.architecture.endswith(("LMHeadModel", "ForCausalLM")):
        # A text encoder made from a language model has pooling modules.
        pooled = (files.directory / "modules.json").is_file()
        return "text encoder" if pooled and role != "language model" else "language model"
    return "text encoder" if checkpoint.has_tokenizer else "image encoder"


def _check_loads(checkpoint: Checkpoint) -> None:
    """UserError for a model of images and texts, or of boxes, that no loader here knows."""
    files = checkpoint.files
    config = files.read("config.json")
    sides = [any(key in config for key in keys) for keys in (IMAGE_SIDES, TEXT_SIDES)]
    if checkpoint.is_chat_model and all(sides):
        raise UserError(
            f"{files.name} is a {files.architecture}, which writes about images and is no encoder: "
            f'`zeroshot ask photos/ "What is this?" --model {files.name.label}`, or caption '
            "--method native"
        )
    if all(sides) or files.architecture.endswith("ObjectDetection"):
        nearest = next(what for part, what in NEAREST if re.search(part, files.architecture))
        reason = "which zeroshot does not load" if all(sides) else "whose labels are fixed"
        raise UserError(
            f"{files.name} is a {files.architecture}, {reason}; what comes nearest for {nearest}"
        )


def _check_role(name: str, role: ModelRole | None, kind: ModelRole) -> None:
    roles = {kind, "image encoder", "text encoder"} if kind == "dual encoder" else {kind}
    if role is not None and role not in roles:
        raise UserError(f"{name} is {_with_article(kind)}, not {_with_article(role)}")


def _with_article(role: ModelRole) -> str:
    return f"an {role}" if role.startswith("i") else f"a {role}"
