"""Text encoders of transformers, pooled as their sentence-transformers directory says.

Without such a directory the embedding is the mean over a text's tokens.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from zeroshot.errors import UserError, unknown
from zeroshot.models.devices import precision_name
from zeroshot.models.encoding import CachedTextEncoder, encode_texts
from zeroshot.models.hf import common
from zeroshot.models.model_files import Files

__all__ = ["POOLINGS", "Recipe", "TransformersTextEncoder", "load_text_encoder"]

PREPROCESSING = "text.1"

Pooling = Callable[[Float[Tensor, "b s e"], Int[Tensor, "b s"]], Float[Tensor, "b e"]]


def cls(hidden: Float[Tensor, "b s e"], mask: Int[Tensor, "b s"]) -> Float[Tensor, "b e"]:
    """The first token."""
    return hidden[:, 0]


def largest(hidden: Float[Tensor, "b s e"], mask: Int[Tensor, "b s"]) -> Float[Tensor, "b e"]:
    """The largest value of each channel."""
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(dim=1)


def mean(hidden: Float[Tensor, "b s e"], mask: Int[Tensor, "b s"]) -> Float[Tensor, "b e"]:
    """The mean over tokens."""
    return total(hidden, mask) / mask.sum(dim=1, keepdim=True)


def mean_sqrt_len(hidden: Float[Tensor, "b s e"], mask: Int[Tensor, "b s"]) -> Float[Tensor, "b e"]:
    """The sum over tokens divided by the square root of their number."""
    return total(hidden, mask) / mask.sum(dim=1, keepdim=True).sqrt()


def last_token(hidden: Float[Tensor, "b s e"], mask: Int[Tensor, "b s"]) -> Float[Tensor, "b e"]:
    """The last token."""
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]


def total(hidden: Float[Tensor, "b s e"], mask: Int[Tensor, "b s"]) -> Float[Tensor, "b e"]:
    """The sum over tokens."""
    return (hidden * mask.unsqueeze(-1)).sum(dim=1)


# In the order in which sentence-transformers joins several of them.
POOLINGS: dict[str, Pooling] = {
    "cls": cls,
    "max": largest,
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
class Recipe:
    """What follows the network: pooling, then perhaps dense layers."""

    poolings: tuple[str, ...] = ("mean",)
    dense: tuple[Callable[[Tensor], Tensor], ...] = ()
    max_tokens: int | None = None
    lower: bool = False
    prompt: str = ""
    """Put before every text."""


class TransformersTextEncoder(CachedTextEncoder):
    """A text model, its tokenizer and what turns its tokens into one row."""

    def __init__(self, name: str, model: Any, tokenizer: Any, recipe: Recipe) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.context_length = recipe.max_tokens or common.context_length(tokenizer, model.config)

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """As `base.TextEncoder`; tokens beyond `context_length` are cut off."""
        return encode_texts(texts, self._features)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """As `base.TextEncoder`."""
        return common.count_tokens(self.tokenizer, self._prepared(texts))

    def _features(self, texts: list[str]) -> Float[Tensor, "b d"]:
        tokens = common.tokenize(self.tokenizer, self._prepared(texts), self.context_length)
        tokens = tokens.to(self.model.device)
        hidden = self.model(**tokens).last_hidden_state.float()
        mask = tokens["attention_mask"]
        rows = torch.cat([POOLINGS[pooling](hidden, mask) for pooling in self.recipe.poolings], 1)
        for layer in self.recipe.dense:
            rows = layer(rows)
        return rows

    def _prepared(self, texts: Sequence[str]) -> list[str]:
        prompted = [self.recipe.prompt + text for text in texts]
        return [text.lower() for text in prompted] if self.recipe.lower else prompted


def load_text_encoder(
    files: Files, device: torch.device, dtype: torch.dtype, trust_remote_code: bool
) -> TransformersTextEncoder:
    """The text model in `files`."""
    config = common.load_config(files, trust_remote_code)
    # T5 and its like have an encoder of their own in this list; the others are not in it.
    listed = type(config) in common.AutoModelForTextEncoding._model_mapping
    auto_class = common.AutoModelForTextEncoding if listed else common.AutoModel
    model, _ = common.load_model(
        auto_class, files, device, dtype, trust_remote_code, spare=("pooler.",)
    )
    tokenizer = common.load_tokenizer(files, trust_remote_code)
    if tokenizer.pad_token is None:  # of a language model; the mask hides whatever pads
        tokenizer.pad_token = tokenizer.eos_token
    return TransformersTextEncoder(
        f"{files.identity}/{PREPROCESSING}/{precision_name(dtype)}",
        model,
        tokenizer,
        read_recipe(files, device),
    )


def read_recipe(files: Files, device: torch.device) -> Recipe:
    """The recipe in `modules.json`; the mean over tokens if there is none.

    UserError for a module this package does not know.
    """
    if not (files.directory / "modules.json").is_file():
        return Recipe()
    poolings: tuple[str, ...] = ()
    dense: list[Callable[[Tensor], Tensor]] = []
    for module in json.loads((files.directory / "modules.json").read_text(encoding="utf-8")):
        kind, path = module["type"].rpartition(".")[2], module["path"]
        if kind == "Pooling":
            poolings = _poolings(files.read(f"{path}/config.json"))
        elif kind == "Dense":
            dense.append(_dense(files, path, device))
        elif kind == "Transformer" and path:
            raise UserError(f"{files.name}: its transformer is in {path}/, not in the directory")
        elif kind not in ("Transformer", "Normalize"):
            raise unknown(
                f"sentence-transformers module in {files.name}",
                kind,
                ["Transformer", "Pooling", "Dense", "Normalize"],
            )
    return _with_settings(files, Recipe(poolings or ("mean",), tuple(dense)))


def _poolings(config: dict[str, Any]) -> tuple[str, ...]:
    prefix = "pooling_mode_"
    asked = {
        key.removeprefix(prefix).removesuffix("_tokens").removesuffix("_token")
        for key, value in config.items()
        if key.startswith(prefix) and value is True
    }
    if isinstance(config.get("pooling_mode"), str):
        asked.add(config["pooling_mode"])
    for pooling in asked - set(POOLINGS):
        raise unknown("pooling", pooling, POOLINGS)
    return tuple(pooling for pooling in POOLINGS if pooling in asked)


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


def _with_settings(files: Files, recipe: Recipe) -> Recipe:
    sentence = files.read("sentence_bert_config.json")
    prompts = files.read("config_sentence_transformers.json")
    chosen = prompts.get("default_prompt_name")
    return Recipe(
        recipe.poolings,
        recipe.dense,
        max_tokens=sentence.get("max_seq_length"),
        lower=bool(sentence.get("do_lower_case")),
        prompt=prompts["prompts"][chosen] if chosen else "",
    )
