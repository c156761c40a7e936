"""Causal language models of transformers: GPT-2, Llama and others with the same cache."""

import copy
import inspect
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.models.base import KeyValueCache, LanguageModelOutput
from zeroshot.models.hf.checkpoint import (
    AutoModelForCausalLM,
    Checkpoint,
    DynamicCache,
    DynamicLayer,
)
from zeroshot.models.isolation import FrozenModel

__all__ = ["TransformersLanguageModel", "load_language_model"]

PREPROCESSING = "tokens.1"

PIECES = True
"""Whether the text of a token is looked up; else each candidate's whole text is decoded."""
HALF = "\ufffd"
"""What decoding shows for bytes that are no character."""

START_OF_TEXT = "<-start_of_text->"
END_OF_TEXT = "<|endoftext|>"

# The replacements of transformers 4 in decoded text, in its order.
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


class TransformersLanguageModel(FrozenModel):
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
        arguments = inspect.signature(model.base_model.forward).parameters
        # Since transformers 5.24, and before.
        self._cache_argument = "cache" if "cache" in arguments else "past_key_values"
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        self._bytewise = type(decoder).__name__ == "ByteLevel"
        self._raw = partial(raw_text, tokenizer)
        self._piece = lru_cache(1 << 17)(self._raw)
        self._beginning = lru_cache(1 << 10)(self._raw)

    def encode(self, text: str) -> list[int]:
        """As `base.LanguageModel`."""
        return list(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))

    @property
    def turn_end(self) -> int:
        """As `base.ChatModel`."""
        ends = self.tokenizer.eos_token_id
        return self.end if ends is None or not self.tokenizer.chat_template else int(ends)

    def encode_chat(self, message: str) -> list[int] | None:
        """As `base.ChatModel`."""
        if not self.tokenizer.chat_template:
            return None
        text: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
        )
        return self.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """As `base.LanguageModel`."""
        text = self._joined(tuple(tokens)) if PIECES and self._bytewise else self._raw(tokens)
        return clean_up_spaces(text) if self.clean_up else text

    def _joined(self, tokens: tuple[int, ...]) -> str:
        """The same, from what comes before the last token and that token's own text.

        A byte-level tokenizer joins the bytes of its tokens; half a character shows as U+FFFD.
        """
        if len(tokens) < 2:
            return self._piece(tokens)
        before, piece = self._beginning(tokens[:-1]), self._piece(tokens[-1:])
        return self._raw(tokens) if HALF in before or HALF in piece else before + piece

    @torch.inference_mode()
    def forward(
        self, tokens: Int[Tensor, "b s"], cache: KeyValueCache | None = None
    ) -> LanguageModelOutput:
        """As `base.LanguageModel`; UserError beyond `context_length`."""
        longer = DynamicCache(config=self.model.config) if cache is None else branch(cache)
        length = longer.get_seq_length() + tokens.shape[1]
        if length > self.context_length:
            raise UserError(
                f"a text of {length} tokens, but {self.name} has {self.context_length} positions"
            )
        outputs = self.model.base_model(
            tokens.to(self.model.device), use_cache=True, **{self._cache_argument: longer}
        )
        return LanguageModelOutput(outputs.last_hidden_state.float(), longer)

    @torch.inference_mode()
    def logits(self, hidden: Float[Tensor, "b e"]) -> Float[Tensor, "b v"]:
        """As `base.LanguageModel`."""
        head = self.model.get_output_embeddings()
        scores: Tensor = head(hidden.to(self.model.device, self.model.dtype))
        return scores.float()

    @torch.inference_mode()
    def select(self, cache: KeyValueCache, rows: Int[Tensor, " r"]) -> KeyValueCache:
        """As `base.LanguageModel`."""
        selection = branch(cache)
        selection.reorder_cache(rows)
        return selection


def raw_text(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The tokenizer's own text."""
    text: str = tokenizer.decode(
        list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text


def branch(cache: Any) -> Any:
    """A cache that shares the tensors of `cache` and can grow without changing it.

    A dynamic layer that grows gets new, longer tensors; the old ones are not written to.
    """
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def clean_up_spaces(text: str) -> str:
    """Remove the space before punctuation and English contractions, as transformers 4 did."""
    for spaced, joined in CLEAN_UP:
        text = text.replace(spaced, joined)
    return text


def load_language_model(checkpoint: Checkpoint) -> TransformersLanguageModel:
    """The causal language model in `checkpoint`."""
    # Published captioning models were trained with transformers 4, which cleaned up spaces unless
    # the tokenizer's configuration said otherwise.
    config = checkpoint.files.read("tokenizer_config.json")
    language_model = TransformersLanguageModel(
        checkpoint.name(PREPROCESSING),
        checkpoint.load_model(AutoModelForCausalLM),
        checkpoint.load_tokenizer(),
        clean_up=bool(config.get("clean_up_tokenization_spaces", True)),
    )
    _check(language_model)
    return language_model


@torch.inference_mode()
def _check(language_model: TransformersLanguageModel) -> None:
    """UserError for a model whose cache or logits are not as this file assumes."""
    model = language_model.model
    probe = torch.tensor([[language_model.start]])
    output = language_model.forward(probe)
    if not all(isinstance(layer, DynamicLayer) for layer in output.cache.layers):
        raise UserError(
            f"{language_model.name}: its cache contains more than keys and values; use a "
            "transformer such as GPT-2 or Llama"
        )
    expected = model(probe.to(model.device)).logits[:, -1].float()
    distance = (language_model.logits(output.hidden[:, -1]) - expected).abs().max()
    if distance > 0.05 * expected.std():  # half precision stays well below
        raise UserError(
            f"{language_model.name}: its logits are not those of its head on the last hidden "
            "state; use a transformer such as GPT-2 or Llama"
        )
