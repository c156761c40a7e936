"""Text encoders of transformers, with the pooling that their sentence-transformers files name.

Without such files the embedding is the mean over a text's tokens.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from zeroshot.errors import UserError, unknown
from zeroshot.models.files.model_files import Files
from zeroshot.models.hf import model_inputs
from zeroshot.models.hf.checkpoint import AutoModel, AutoModelForTextEncoding, Checkpoint
from zeroshot.models.towers.cached_text_encoder import CachedTextEncoder

__all__ = ["POOLINGS", "EmbeddingRecipe", "TransformersTextEncoder", "load_text_encoder"]

PREPROCESSING = "text.1"

Pooling = Callable[[Float[Tensor, "b s e"], Int[Tensor, "b s"]], Float[Tensor, "b e"]]


def cls(hidden: Float[Tensor, "b s e"], mask: Int[Tensor, "b s"]) -> Float[Tensor, "b e"]:
    """The first token."""
    return hidden[:, 0]


def max_over_tokens(
    hidden: Float[Tensor, "b s e"], mask: Int[Tensor, "b s"]
) -> Float[Tensor, "b e"]:
    """The largest value of each channel."""
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(dim=1)


def mean(hidden: Float[Tensor, "b s e"], mask: Int[Tensor, "b s"]) -> Float[Tensor, "b e"]:
    """The mean over tokens."""
    return sum_over_tokens(hidden, mask) / mask.sum(dim=1, keepdim=True)


def mean_sqrt_len(hidden: Float[Tensor, "b s e"], mask: Int[Tensor, "b s"]) -> Float[Tensor, "b e"]:
    """The sum over tokens divided by the square root of their number."""
    return sum_over_tokens(hidden, mask) / mask.sum(dim=1, keepdim=True).sqrt()


def last_token(hidden: Float[Tensor, "b s e"], mask: Int[Tensor, "b s"]) -> Float[Tensor, "b e"]:
    """The last token."""
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]


def sum_over_tokens(
    hidden: Float[Tensor, "b s e"], mask: Int[Tensor, "b s"]
) -> Float[Tensor, "b e"]:
    """The sum over tokens."""
    return (hidden * mask.unsqueeze(-1)).sum(dim=1)


# In the order in which sentence-transformers concatenates several of them.
POOLINGS: dict[str, Pooling] = {
    "cls": cls,
    "max": max_over_tokens,
    "mean": mean,
    "mean_sqrt_len": mean_sqrt_len,
    "lasttoken": last_token,
}

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Identity": lambda rows: rows,
    "Tanh": torch.tanh,
    "ReLU": torch.relu,
    "GELU": nn.functional.gelu,
}


@dataclass(frozen=True)
class EmbeddingRecipe:
    """The steps after the network: pooling, then perhaps dense layers."""

    poolings: tuple[str, ...] = ("mean",)
    dense: tuple[Callable[[Tensor], Tensor], ...] = ()
    max_tokens: int | None = None
    lower: bool = False
    prompt: str = ""
    """Precedes every text."""


class TransformersTextEncoder(CachedTextEncoder):
    """A text model, its tokenizer, and the steps from its tokens to one embedding."""

    def __init__(self, name: str, model: Any, tokenizer: Any, recipe: EmbeddingRecipe) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.context_length = recipe.max_tokens or model_inputs.context_length(
            tokenizer, model.config
        )

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """As `base.TextEncoder`."""
        return model_inputs.count_tokens(self.tokenizer, self._prepare(texts))

    def _text_features(self, texts: list[str]) -> Float[Tensor, "b d"]:
        prepared = self._prepare(texts)
        return model_inputs.features_by_length(
            self.tokenizer, prepared, self.context_length, self._pooled, self.model.device
        )

    def _pooled(self, tokens: Any) -> Float[Tensor, "b d"]:
        hidden = self.model(**tokens).last_hidden_state.float()
        mask = tokens["attention_mask"]
        pooled = torch.cat([POOLINGS[name](hidden, mask) for name in self.recipe.poolings], 1)
        for layer in self.recipe.dense:
            pooled = layer(pooled)
        return pooled

    def _prepare(self, texts: Sequence[str]) -> list[str]:
        prepared = [self.recipe.prompt + text for text in texts]
        return [text.lower() for text in prepared] if self.recipe.lower else prepared


def load_text_encoder(checkpoint: Checkpoint) -> TransformersTextEncoder:
    """The text model in `checkpoint`."""
    # T5 and its relatives are in this mapping, with an encoder of their own; others are not.
    is_listed = type(checkpoint.load_config()) in AutoModelForTextEncoding._model_mapping
    auto_class = AutoModelForTextEncoding if is_listed else AutoModel
    model = checkpoint.load_model(auto_class, optional=("pooler.",))
    tokenizer = checkpoint.load_tokenizer()
    if tokenizer.pad_token is None:  # a language model's; the mask hides whatever pads
        tokenizer.pad_token = tokenizer.eos_token
    recipe = read_recipe(checkpoint.files, checkpoint.device)
    return TransformersTextEncoder(checkpoint.name(PREPROCESSING), model, tokenizer, recipe)


def read_recipe(files: Files, device: torch.device) -> EmbeddingRecipe:
    """The recipe in `modules.json`; the mean over tokens if there is none.

    UserError for a module that this package does not know.
    """
    if not (files.directory / "modules.json").is_file():
        return EmbeddingRecipe()
    poolings: tuple[str, ...] = ()
    dense: list[Callable[[Tensor], Tensor]] = []
    for module in json.loads((files.directory / "modules.json").read_text(encoding="utf-8")):
        kind, path = module["type"].rpartition(".")[2], module["path"]
        if kind == "Pooling":
            poolings = _poolings(files.read(f"{path}/config.json"))
        elif kind == "Dense":
            dense.append(_dense(files, path, device))
        elif kind == "Transformer" and path:
            raise UserError(
                f"{files.name}: its transformer is in {path}/; it must be in the directory itself"
            )
        elif kind not in ("Transformer", "Normalize"):
            raise unknown(
                f"sentence-transformers module in {files.name}",
                kind,
                ["Transformer", "Pooling", "Dense", "Normalize"],
            )
    return _with_settings(files, EmbeddingRecipe(poolings or ("mean",), tuple(dense)))


def _poolings(config: dict[str, Any]) -> tuple[str, ...]:
    prefix = "pooling_mode_"
    names = {
        key.removeprefix(prefix).removesuffix("_tokens").removesuffix("_token")
        for key, value in config.items()
        if key.startswith(prefix) and value is True
    }
    if isinstance(config.get("pooling_mode"), str):
        names.add(config["pooling_mode"])
    for pooling in names - set(POOLINGS):
        raise unknown("pooling", pooling, POOLINGS)
    return tuple(pooling for pooling in POOLINGS if pooling in names)


def _dense(files: Files, path: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    config = files.read(f"{path}/config.json")
    activation = str(config["activation_function"]).rpartition(".")[2]
    if activation not in ACTIVATIONS:
        raise unknown(f"activation in {files.name}/{path}", activation, ACTIVATIONS)
    weights = {key: value.float().to(device) for key, value in _tensors(files, path).items()}
    return lambda rows: ACTIVATIONS[activation](
        nn.functional.linear(rows, weights["linear.weight"], weights.get("linear.bias"))
    )


def _tensors(files: Files, path: str) -> dict[str, Tensor]:
    safe = files.directory / path / "model.safetensors"
    tensors: dict[str, Tensor] = (
        load_file(safe)
        if safe.is_file()
        else torch.load(safe.with_name("pytorch_model.bin"), weights_only=True)
    )
    return tensors


def _with_settings(files: Files, recipe: EmbeddingRecipe) -> EmbeddingRecipe:
    settings = files.read("sentence_bert_config.json")
    prompts = files.read("config_sentence_transformers.json")
    prompt_name = prompts.get("default_prompt_name")
    return replace(
        recipe,
        max_tokens=settings.get("max_seq_length"),
        lower=bool(settings.get("do_lower_case")),
        prompt=prompts["prompts"][prompt_name] if prompt_name else "",
    )
