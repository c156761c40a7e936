"""ClipCap: a frozen CLIP, a small mapper, and GPT-2, which continues the mapper's prefix.

Mokady, Hertz and Bermano 2021, arXiv:2111.09734; weights: github.com/rmokady/CLIP_prefix_caption.
A published file has the weights of the mapper (`clip_project.*`) and of GPT-2 (`gpt.*`). It must be
in a directory with a `clipcap.json` that names the other models:

    {"weights": "coco_weights.pt", "encoder": "open_clip:ViT-B-32/openai",
     "language_model": "hf:openai-community/gpt2", "normalize": false}

The mapper's weights show its kind and its sizes: an MLP, or a transformer over a constant prefix.
`normalize` is for mappers that were trained on unit vectors. Decoding is the authors': five beams,
up to the first full stop.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from zeroshot.errors import UserError
from zeroshot.models.base import Answer, Image
from zeroshot.models.files.model_faults import check_weights, read_settings
from zeroshot.models.isolation import FrozenModel
from zeroshot.models.vlm.generation import generate_texts
from zeroshot.ops import normalize

__all__ = ["FILE", "ClipCap", "build_mapper", "load_clipcap"]

FILE = "clipcap.json"
KEYS = {"weights": str, "encoder": str, "language_model": str, "normalize": bool}
PREPROCESSING = "clipcap.1"
BEAMS = 5
TOKENS = 67
HEADS = 8
"""Attention heads of the authors' transformer mapper; its weights do not show them."""

Weights = dict[str, Tensor]
Mapper = Callable[[Float[Tensor, "b d"], int], Float[Tensor, "b s w"]]
"""Image features and the language model's width to the prefix."""


class ClipCap(FrozenModel):
    """A captioner (`base.Writer`) on CLIP's image features."""

    def __init__(
        self, name: str, encoder: Any, language_model: Any, mapper: Mapper, unit_features: bool
    ) -> None:
        self.name = name
        self.encoder = encoder
        self.language_model = language_model
        self.mapper = mapper
        self.unit_features = unit_features
        self.end: int = language_model.encode(".")[0]

    def write(self, images: Sequence[Image], prompts: Sequence[str] | None = None) -> list[Answer]:
        """As `base.Writer`; takes no prompts."""
        if prompts is not None:
            raise UserError(f"{self.name} takes no prompt: its prefix is the image; leave it out")
        model = self.language_model.model
        with torch.inference_mode():
            # Not `encode_images`: the mapper was trained on features that are not unit vectors.
            pixels = [self.encoder.pixels(image) for image in images]
            features = self.encoder._image_features(pixels).float()
            features = normalize(features) if self.unit_features else features
            width = model.get_input_embeddings().embedding_dim
            prefixes = self.mapper(features, width).to(model.device, model.dtype)
        answers = generate_texts(
            model.generate,
            [{"inputs_embeds": prefix[None]} for prefix in prefixes],
            self._first_sentence,
            [self.end],
            max_new_tokens=TOKENS,
            positions=self.language_model.context_length,
            mean=True,
            num_beams=BEAMS,
            eos_token_id=self.end,
            pad_token_id=self.end,
        )
        return [best for (best,) in answers]

    def _first_sentence(self, ids: Sequence[int]) -> str:
        ids = ids[: ids.index(self.end) + 1] if self.end in ids else ids
        return str(self.language_model.decode(ids)).strip()


def build_mapper(weights: Weights) -> Mapper:
    """The mapper with these weights, whose names do not begin with `clip_project.`.

    UserError for weights of neither kind.
    """
    if weights.keys() == {"model.0.weight", "model.0.bias", "model.2.weight", "model.2.bias"}:
        return lambda features, width: _split(_mlp(weights, features), width)
    if {"linear.weight", "linear.bias", "prefix_const"} <= weights.keys():
        return lambda features, width: _transformer(weights, features, width)
    raise UserError(
        f"the mapper's weights ({', '.join(sorted(weights)[:4])}, ...) are neither those of "
        "ClipCap's MLP nor those of its transformer"
    )


def _split(numbers: Float[Tensor, "b m"], width: int) -> Float[Tensor, "b s w"]:
    """Consecutive numbers as vectors of the language model's width."""
    return numbers.view(len(numbers), -1, width)


def _mlp(weights: Weights, features: Float[Tensor, "b d"]) -> Float[Tensor, "b m"]:
    features = features.to(weights["model.0.weight"].device)
    hidden = functional.linear(features, weights["model.0.weight"], weights["model.0.bias"])
    return functional.linear(hidden.tanh(), weights["model.2.weight"], weights["model.2.bias"])


def _transformer(
    weights: Weights, features: Float[Tensor, "b d"], width: int
) -> Float[Tensor, "b s w"]:
    """Pre-norm blocks over the features, as several vectors, and the constant prefix."""
    features = features.to(weights["linear.weight"].device)
    numbers = functional.linear(features, weights["linear.weight"], weights["linear.bias"])
    states = _split(numbers, width)
    count = states.shape[1]
    states = torch.cat([states, weights["prefix_const"].expand(len(states), -1, -1)], dim=1)
    depth = 1 + max(int(key.split(".")[2]) for key in weights if key.startswith("transformer."))
    for i in range(depth):
        layer = {k.split(".", 3)[3]: v for k, v in weights.items() if k.split(".")[2:3] == [str(i)]}
        states = states + _attention(layer, _norm(layer, "norm1", states))
        hidden = _linear(layer, "mlp.fc1", _norm(layer, "norm2", states)).relu()
        states = states + _linear(layer, "mlp.fc2", hidden)
    return states[:, count:]


def _attention(layer: Weights, states: Float[Tensor, "b s w"]) -> Float[Tensor, "b s w"]:
    def heads(part: Tensor) -> Float[Tensor, "b h s e"]:
        return part.view(*part.shape[:2], HEADS, -1).transpose(1, 2)

    key, value = _linear(layer, "attn.to_keys_values", states).chunk(2, dim=2)
    query = _linear(layer, "attn.to_queries", states)
    output = functional.scaled_dot_product_attention(heads(query), heads(key), heads(value))
    return _linear(layer, "attn.project", output.transpose(1, 2).flatten(2))


def _linear(layer: Weights, name: str, states: Tensor) -> Tensor:
    return functional.linear(states, layer[f"{name}.weight"], layer.get(f"{name}.bias"))


def _norm(layer: Weights, name: str, states: Tensor) -> Tensor:
    weight, bias = layer[f"{name}.weight"], layer[f"{name}.bias"]
    return functional.layer_norm(states, states.shape[-1:], weight, bias)


def load_clipcap(
    directory: Path, load_encoder: Callable[[str], Any], load_language_model: Callable[[str], Any]
) -> ClipCap:
    """The ClipCap in a directory, with the models that its `clipcap.json` names.

    UserError for a wrong `clipcap.json` and for weights that do not fit.
    """
    config = _read_config(directory / FILE)
    file = directory / config["weights"]
    weights = _read_weights(file)
    encoder = load_encoder(config["encoder"])
    language_model = load_language_model(config["language_model"])
    _replace_language_model(file, weights, language_model.model)
    device = language_model.model.device
    mapper_weights = {
        name.removeprefix("clip_project."): weight.float().to(device)
        for name, weight in weights.items()
        if name.startswith("clip_project.")
    }
    mapper = build_mapper(mapper_weights)
    _check_sizes(file, mapper_weights, encoder, language_model)
    with file.open("rb") as opened:
        revision = hashlib.file_digest(opened, "sha256").hexdigest()[:12]
    name = f"clipcap:{directory.name}@{revision}+{encoder.name}+{language_model.name}"
    return ClipCap(
        f"{name}/{PREPROCESSING}",
        encoder,
        language_model,
        mapper,
        unit_features=config.get("normalize", False),
    )


def _read_config(file: Path) -> dict[str, Any]:
    config = read_settings(file)
    needed = KEYS.keys() - {"normalize"}
    if not isinstance(config, dict) or not needed <= config.keys() <= KEYS.keys():
        raise UserError(
            f"'{file}' needs {', '.join(sorted(needed))}, and may have normalize; no other key"
        )
    for key, value in config.items():
        if not isinstance(value, KEYS[key]):
            raise UserError(f"'{file}': {key} is {value!r}, which is no {KEYS[key].__name__}")
    if Path(config["weights"]).name != config["weights"]:
        raise UserError(f"'{file}': weights must be a file beside it, not '{config['weights']}'")
    return config


def _read_weights(file: Path) -> Weights:
    """Tensors of a safetensors or torch file; code in it is never run."""
    if not file.is_file():
        raise UserError(f"no weights at '{file}'")
    check_weights([file])
    try:
        if file.suffix == ".safetensors":
            weights: Any = load_file(file)
        else:
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the readers raise for a damaged or a hostile file
        raise UserError(
            f"'{file}' cannot be read as tensors; a file that holds anything else is never loaded, "
            f"convert it to safetensors ({error})"
        ) from error
    if not isinstance(weights, dict) or not all(torch.is_tensor(v) for v in weights.values()):
        raise UserError(f"'{file}' holds something else than named tensors")
    strange = [name for name in weights if not name.startswith(("clip_project.", "gpt."))]
    if strange or not any(name.startswith("clip_project.") for name in weights):
        raise UserError(
            f"'{file}' is no ClipCap: its weights are named clip_project.* and gpt.*, not "
            f"{', '.join(strange[:3]) or 'gpt.* alone'}"
        )
    return weights


def _replace_language_model(file: Path, weights: Weights, model: Any) -> None:
    """Load the file's own GPT-2, if it has one, into the language model."""
    gpt = {
        name.removeprefix("gpt."): weight
        for name, weight in weights.items()
        # Masks, which older versions of transformers saved as if they were weights.
        if name.startswith("gpt.") and not re.search(r"\.attn\.(masked_)?bias$", name)
    }
    if not gpt:
        return
    try:
        missing, unexpected = model.load_state_dict(gpt, strict=False)
    except RuntimeError as error:
        raise UserError(f"'{file}': its GPT-2 is another one than named: {error}") from error
    wrong = [name for name in missing if name != "lm_head.weight"] + unexpected
    if wrong:
        raise UserError(f"'{file}': its GPT-2 is another one than named: {wrong[:3]}")


def _check_sizes(file: Path, weights: Weights, encoder: Any, language_model: Any) -> None:
    is_mlp = "model.0.weight" in weights
    inputs = weights["model.0.weight" if is_mlp else "linear.weight"].shape[1]
    outputs = len(weights["model.2.weight"]) if is_mlp else weights["prefix_const"].shape[1]
    features = encoder.encode_images([]).shape[1]
    width = language_model.model.get_input_embeddings().embedding_dim
    if inputs != features or outputs % width:
        raise UserError(
            f"'{file}': its mapper takes {inputs} numbers and gives vectors of {outputs}; the "
            f"encoder gives {features}, the language model takes {width}"
        )
