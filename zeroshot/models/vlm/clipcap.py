"""ClipCap: a frozen CLIP, a small mapper, and GPT-2, which writes on from what the mapper says.

Mokady, Hertz and Bermano 2021, arXiv:2111.09734; weights: github.com/rmokady/CLIP_prefix_caption.
A released file holds the mapper (`clip_project.*`) and GPT-2 (`gpt.*`). It stands in a directory
with a `clipcap.json` that says what else it needs:

    {"weights": "coco_weights.pt", "encoder": "open_clip:ViT-B-32/openai",
     "language_model": "hf:openai-community/gpt2", "normalize": false}

The mapper's kind and sizes are read from its weights: an MLP, or a transformer over a constant
prefix. `normalize` is for mappers that were trained on unit features. Decoding is the authors':
five beams, up to the first full stop.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from zeroshot.errors import UserError
from zeroshot.models.base import Answer, Image
from zeroshot.models.vlm.generation import written
from zeroshot.ops import normalize

__all__ = ["FILE", "ClipCap", "load_clipcap", "mapper"]

FILE = "clipcap.json"
KEYS = {"weights": str, "encoder": str, "language_model": str, "normalize": bool}
PREPROCESSING = "clipcap.1"
BEAMS = 5
TOKENS = 67
HEADS = 8
"""Of the authors' transformer mapper; its weights do not say."""

Weights = dict[str, Tensor]
Mapper = Callable[[Float[Tensor, "b d"], int], Float[Tensor, "b s w"]]
"""Features and the width of the language model to the prefix."""


class ClipCap:
    """A captioner of CLIP's features."""

    def __init__(
        self, name: str, encoder: Any, language_model: Any, project: Mapper, unit: bool
    ) -> None:
        self.name = name
        self.encoder = encoder
        self.language_model = language_model
        self.project = project
        self.unit = unit
        self.end: int = language_model.encode(".")[0]

    def write(self, images: Sequence[Image], prompts: Sequence[str] | None = None) -> list[Answer]:
        """As `base.Writer`; takes no prompts."""
        if prompts is not None:
            raise UserError(f"{self.name} takes no prompt: its prefix is the picture")
        model = self.language_model.model
        with torch.inference_mode():
            # Not `encode_images`: the mapper knows features at the length they have.
            pixels = [self.encoder.pixels(image) for image in images]
            features = self.encoder._image_features(pixels).float()
            features = normalize(features) if self.unit else features
            width = model.get_input_embeddings().embedding_dim
            prefixes = self.project(features, width).to(model.device, model.dtype)
        answers = written(
            model.generate,
            [{"inputs_embeds": prefix[None]} for prefix in prefixes],
            lambda ids: self._sentence(ids),
            [self.end],
            max_new_tokens=TOKENS,
            positions=self.language_model.context_length,
            mean=True,
            num_beams=BEAMS,
            eos_token_id=self.end,
            pad_token_id=self.end,
        )
        return [best for (best,) in answers]

    def _sentence(self, ids: Sequence[int]) -> str:
        ids = list(ids)
        ids = ids[: ids.index(self.end) + 1] if self.end in ids else ids
        return str(self.language_model.decode(ids)).strip()


def mapper(weights: Weights) -> Mapper:
    """The mapper whose weights these are, `clip_project.` taken off their names.

    UserError for weights of neither kind.
    """
    if weights.keys() == {"model.0.weight", "model.0.bias", "model.2.weight", "model.2.bias"}:
        return lambda features, width: rows_of(_mlp(weights, features), width)
    if {"linear.weight", "linear.bias", "prefix_const"} <= weights.keys():
        return lambda features, width: _transformer(weights, features, width)
    raise UserError(
        f"the mapper's weights ({', '.join(sorted(weights)[:4])}, ...) are neither those of "
        "ClipCap's MLP nor those of its transformer"
    )


def rows_of(numbers: Float[Tensor, "b m"], width: int) -> Float[Tensor, "b s w"]:
    """Consecutive numbers as rows of the language model's width."""
    return numbers.view(len(numbers), -1, width)


def _mlp(weights: Weights, features: Float[Tensor, "b d"]) -> Float[Tensor, "b m"]:
    features = features.to(weights["model.0.weight"].device)
    hidden = functional.linear(features, weights["model.0.weight"], weights["model.0.bias"])
    return functional.linear(hidden.tanh(), weights["model.2.weight"], weights["model.2.bias"])


def _transformer(
    weights: Weights, features: Float[Tensor, "b d"], width: int
) -> Float[Tensor, "b s w"]:
    """Pre-norm blocks over the features, spread out to some rows, and the constant prefix."""
    features = features.to(weights["linear.weight"].device)
    spread = functional.linear(features, weights["linear.weight"], weights["linear.bias"])
    rows = rows_of(spread, width)
    count = rows.shape[1]
    rows = torch.cat([rows, weights["prefix_const"].expand(len(rows), -1, -1)], dim=1)
    depth = 1 + max(int(key.split(".")[2]) for key in weights if key.startswith("transformer."))
    for layer in range(depth):
        own = {
            k.split(".", 3)[3]: v for k, v in weights.items() if k.split(".")[2:3] == [str(layer)]
        }
        rows = rows + _attention(own, _norm(own, "norm1", rows))
        hidden = _linear(own, "mlp.fc1", _norm(own, "norm2", rows)).relu()
        rows = rows + _linear(own, "mlp.fc2", hidden)
    return rows[:, count:]


def _attention(own: Weights, rows: Float[Tensor, "b s w"]) -> Float[Tensor, "b s w"]:
    def heads(part: Tensor) -> Float[Tensor, "b h s e"]:
        return part.view(*part.shape[:2], HEADS, -1).transpose(1, 2)

    key, value = _linear(own, "attn.to_keys_values", rows).chunk(2, dim=2)
    query = _linear(own, "attn.to_queries", rows)
    seen = functional.scaled_dot_product_attention(heads(query), heads(key), heads(value))
    return _linear(own, "attn.project", seen.transpose(1, 2).flatten(2))


def _linear(own: Weights, name: str, rows: Tensor) -> Tensor:
    return functional.linear(rows, own[f"{name}.weight"], own.get(f"{name}.bias"))


def _norm(own: Weights, name: str, rows: Tensor) -> Tensor:
    return functional.layer_norm(rows, rows.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"])


def load_clipcap(
    directory: Path, load_encoder: Callable[[str], Any], load_language_model: Callable[[str], Any]
) -> ClipCap:
    """The ClipCap in a directory, with the models that its `clipcap.json` names.

    UserError for a `clipcap.json` that says something else and for weights that do not fit.
    """
    told = _read(directory / FILE)
    file = directory / told["weights"]
    found = _tensors(file)
    encoder = load_encoder(told["encoder"])
    language_model = load_language_model(told["language_model"])
    _into_language_model(file, found, language_model.model)
    project = {
        name.removeprefix("clip_project."): weight.float().to(language_model.model.device)
        for name, weight in found.items()
        if name.startswith("clip_project.")
    }
    _check_sizes(file, project, encoder, language_model)
    with file.open("rb") as opened:
        revision = hashlib.file_digest(opened, "sha256").hexdigest()[:12]
    name = f"clipcap:{directory.name}@{revision}+{encoder.name}+{language_model.name}"
    return ClipCap(
        f"{name}/{PREPROCESSING}",
        encoder,
        language_model,
        mapper(project),
        unit=told.get("normalize", False),
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"'{file}' is not JSON: {error}") from None
    needed = KEYS.keys() - {"normalize"}
    if not isinstance(told, dict) or not needed <= told.keys() <= KEYS.keys():
        raise UserError(f"'{file}' needs {', '.join(sorted(needed))}, and may have normalize")
    for key, value in told.items():
        if not isinstance(value, KEYS[key]):
            raise UserError(f"'{file}': {key} is {value!r}, which is no {KEYS[key].__name__}")
    if Path(told["weights"]).name != told["weights"]:
        raise UserError(f"'{file}': weights must be a file beside it, not '{told['weights']}'")
    return told


def _tensors(file: Path) -> Weights:
    """Tensors of a safetensors or torch file; code in it is never run."""
    if not file.is_file():
        raise UserError(f"no weights at '{file}'")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            held: Any = load_file(file)
        else:
            held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or a hostile file makes the readers say
        raise UserError(
            f"'{file}' cannot be read as tensors; a file that holds anything else is never loaded, "
            f"convert it to safetensors ({error})"
        ) from error
    if not isinstance(held, dict) or not all(torch.is_tensor(v) for v in held.values()):
        raise UserError(f"'{file}' holds something else than named tensors")
    strange = [name for name in held if not name.startswith(("clip_project.", "gpt."))]
    if strange or not any(name.startswith("clip_project.") for name in held):
        raise UserError(
            f"'{file}' is no ClipCap: its weights are named clip_project.* and gpt.*, not "
            f"{', '.join(strange[:3]) or 'gpt.* alone'}"
        )
    return held


def _into_language_model(file: Path, found: Weights, model: Any) -> None:
    """The file's own GPT-2, if it has one, in place of the language model's weights."""
    own = {
        name.removeprefix("gpt."): weight
        for name, weight in found.items()
        # Masks, which older versions of transformers saved as if they were weights.
        if name.startswith("gpt.") and not re.search(r"\.attn\.(masked_)?bias$", name)
    }
    if not own:
        return
    try:
        lost, spare = model.load_state_dict(own, strict=False)
    except RuntimeError as error:
        raise UserError(f"'{file}': its GPT-2 is another one than named: {error}") from error
    lost = [name for name in lost if name != "lm_head.weight"]
    if lost or spare:
        raise UserError(f"'{file}': its GPT-2 is another one than named: {(lost + spare)[:3]}")


def _check_sizes(file: Path, project: Weights, encoder: Any, language_model: Any) -> None:
    first = project.get("model.0.weight", project.get("linear.weight"))
    last = project.get("model.2.weight", project.get("prefix_const"))
    if first is None or last is None:
        mapper(project)  # says what is wrong
        return
    seen = encoder.encode_images([]).shape[1]
    width = language_model.model.get_input_embeddings().embedding_dim
    long = last.shape[0] if last.ndim == 2 and "model.2.weight" in project else last.shape[1]
    if first.shape[1] != seen or long % width:
        raise UserError(
            f"'{file}': its mapper takes {first.shape[1]} numbers and gives rows of {long}; the "
            f"encoder gives {seen}, the language model takes {width}"
        )
