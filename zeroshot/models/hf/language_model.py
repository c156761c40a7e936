"""Causal language models of transformers: GPT-2, Llama and whoever caches as they do."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.models.base import Cache, Step
from zeroshot.models.devices import precision_name
from zeroshot.models.hf import common
from zeroshot.models.model_files import Files

__all__ = ["TransformersLanguageModel", "load_language_model"]

PREPROCESSING = "tokens.1"

START_OF_TEXT = "<-start_of_text->"
END_OF_TEXT = "<|endoftext|>"

# What transformers 4 took out of decoded text, in its order.
CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class TransformersLanguageModel:
    """A causal language model with a growing cache of keys and values."""

    def __init__(self, name: str, model: Any, tokenizer: Any, clean_up: bool) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.clean_up = clean_up
        vocabulary = tokenizer.get_vocab()
        begin = tokenizer.bos_token_id
        self.end: int = vocabulary.get(END_OF_TEXT, tokenizer.eos_token_id)
        self.start: int = vocabulary.get(START_OF_TEXT, self.end if begin is None else begin)
        self.context_length: int = model.config.max_position_embeddings
        renamed = "cache" in inspect.signature(model.base_model.forward).parameters
        self._cache_argument = "cache" if renamed else "past_key_values"  # since 5.24, and before

    def encode(self, text: str) -> list[int]:
        """As `base.LanguageModel`."""
        return list(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """As `base.LanguageModel`."""
        text = self.tokenizer.decode(
            list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return clean_up_spaces(text) if self.clean_up else text

    @torch.inference_mode()
    def forward(self, tokens: Int[Tensor, "b s"], cache: Cache | None = None) -> Step:
        """As `base.LanguageModel`; UserError beyond `context_length`."""
        longer = common.DynamicCache(config=self.model.config) if cache is None else branch(cache)
        length = longer.get_seq_length() + tokens.shape[1]
        if length > self.context_length:
            raise UserError(f"{length} tokens; {self.name} has {self.context_length} positions")
        outputs = self.model.base_model(
            tokens.to(self.model.device), use_cache=True, **{self._cache_argument: longer}
        )
        return Step(outputs.last_hidden_state.float(), longer)

    @torch.inference_mode()
    def logits(self, hidden: Float[Tensor, "b e"]) -> Float[Tensor, "b v"]:
        """As `base.LanguageModel`."""
        head = self.model.get_output_embeddings()
        scores: Tensor = head(hidden.to(self.model.device, self.model.dtype))
        return scores.float()

    @torch.inference_mode()
    def select(self, cache: Cache, rows: Int[Tensor, " r"]) -> Cache:
        """As `base.LanguageModel`."""
        chosen = branch(cache)
        chosen.reorder_cache(rows)
        return chosen


def branch(cache: Any) -> Any:
    """A cache that shares the tensors of `cache` and can grow without changing it.

    Growing a dynamic layer binds new, longer tensors to it and never writes into the old ones.
    """
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


def clean_up_spaces(text: str) -> str:
    """Take out the space before punctuation and English contractions, as transformers 4 did."""
    for spaced, joined in CLEAN_UP:
        text = text.replace(spaced, joined)
    return text


def load_language_model(
    files: Files, device: torch.device, dtype: torch.dtype, trust_remote_code: bool
) -> TransformersLanguageModel:
    """The causal language model in `files`."""
    model, _ = common.load_model(
        common.AutoModelForCausalLM, files, device, dtype, trust_remote_code
    )
    # The captioning models people have were trained and published with transformers 4, where the
    # clean-up was on unless the tokenizer's configuration switched it off.
    clean_up = files.read("tokenizer_config.json").get("clean_up_tokenization_spaces", True)
    language_model = TransformersLanguageModel(
        f"{files.identity}/{PREPROCESSING}/{precision_name(dtype)}",
        model,
        common.load_tokenizer(files, trust_remote_code),
        clean_up=bool(clean_up),
    )
    _verify(language_model)
    return language_model


@torch.inference_mode()
def _verify(language_model: TransformersLanguageModel) -> None:
    """UserError for a model whose cache or logits are not what this file takes them to be."""
    model = language_model.model
    probe = torch.tensor([[language_model.start]])
    step = language_model.forward(probe)
    if not all(isinstance(layer, common.DynamicLayer) for layer in step.cache.layers):
        raise UserError(f"{language_model.name}: its cache is not made of keys and values alone")
    own = model(probe.to(model.device)).logits[:, -1].float()
    apart = (language_model.logits(step.hidden[:, -1]) - own).abs().max()
    if apart > 0.05 * own.std():  # half precision stays well below
        raise UserError(
            f"{language_model.name}: its logits are not its head on the last hidden state"
        )
