"""Texts and images as a model of transformers reads them."""

from collections.abc import Callable, Sequence
from typing import Any

import ftfy
import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.models.hf.checkpoint import CLIPTokenizer
from zeroshot.models.towers.word_tokens import WordTokens

__all__ = [
    "check_length",
    "clip_words",
    "context_length",
    "count_tokens",
    "features_by_length",
    "image_inputs",
    "repair_text",
    "tokenize",
]

UNLIMITED = 10**6
"""The `model_max_length` of a tokenizer without a limit is 10**30."""
FEWEST_TOKENS = 256
"""Fewer at once run slower on a CPU than the padding that one batch for two lengths adds."""

# RoBERTa and its descendants number positions from the padding id on.
OFFSET_POSITIONS = (
    "altclip_text_model",
    "camembert",
    "longformer",
    "mpnet",
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)


def context_length(tokenizer: Any, config: Any) -> int | None:
    """Maximum tokens of a text: the tower's positions, or fewer if its tokenizer says so.

    None for relative positions (T5) without such a limit.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return int(tokenizer.model_max_length) if tokenizer.model_max_length < UNLIMITED else None
    if config.model_type in OFFSET_POSITIONS:
        positions -= config.pad_token_id + 1
    return int(min(positions, tokenizer.model_max_length))


def count_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Number of tokens of each whole text, special tokens included."""
    if not texts:
        return []
    return [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]


def check_length(texts: Sequence[str], counts: Sequence[int], limit: int | None) -> None:
    """UserError for a text of more tokens than the model reads."""
    for text, count in zip(texts, counts, strict=True):
        if limit is not None and count > limit:
            start = text if len(text) <= 60 else f"{text[:60]}..."
            raise UserError(
                f"a text of {count} tokens, but the model reads {limit}: '{start}'; shorten it"
            )


def tokenize(
    tokenizer: Any, texts: Sequence[str], max_tokens: int | None, padding: str = "longest"
) -> Any:
    """A batch of token ids `[b s]` with its mask, cut off after `max_tokens`."""
    return tokenizer(
        list(texts),
        padding=padding,
        truncation=max_tokens is not None,
        max_length=max_tokens,
        return_tensors="pt",
    )


def clip_words(tokenizer: Any, limit: int | None) -> WordTokens | None:
    """The tokens of plain texts word by word; None if the tokenizer may not be CLIP's own.

    CLIP's splits at white space, a directory's `tokenizer.json` may do anything.
    """
    if type(tokenizer) is not CLIPTokenizer:
        return None
    own, plain = tokenizer.backend_tokenizer, CLIPTokenizer().backend_tokenizer
    steps = ("normalizer", "pre_tokenizer")
    same = all(str(getattr(own, step)) == str(getattr(plain, step)) for step in steps)
    special = all(token.startswith("<") for token in tokenizer.get_added_vocab())
    if not (same and special):
        return None

    def of_word(word: str) -> list[int]:
        return list(tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"])

    probe = tokenizer("a b")["input_ids"]
    if probe[1:-1] != of_word("a") + of_word("b"):
        return None
    return WordTokens(of_word, probe[0], probe[-1], limit)


def features_by_length(
    tokenizer: Any,
    texts: Sequence[str],
    max_tokens: int | None,
    features: Callable[[Any], Float[Tensor, "b d"]],
    device: torch.device,
) -> Float[Tensor, "n d"]:
    """`features` of tokenized batches, in the order of `texts`.

    On a CPU, where padding costs as much as tokens, a batch has texts of one length if these have
    tokens enough. Texts with the same tokens (a capital, for many tokenizers) are encoded once.
    """
    cut = {"truncation": max_tokens is not None, "max_length": max_tokens}
    paths = [tuple(ids) for ids in tokenizer(list(texts), **cut)["input_ids"]]
    text_of = dict(zip(paths, texts, strict=True))
    batches: list[list[tuple[int, ...]]] = [[]]
    for path in sorted(text_of, key=len):
        batch = batches[-1]
        longer = device.type == "cpu" and batch and len(path) > len(batch[-1])
        if longer and len(batch) * len(batch[-1]) >= FEWEST_TOKENS:
            batches.append(batch := [])
        batch.append(path)
    rows = [
        features(tokenize(tokenizer, [text_of[path] for path in batch], max_tokens).to(device))
        for batch in batches
    ]
    index = {path: i for i, path in enumerate(path for batch in batches for path in batch)}
    return torch.cat(rows)[[index[path] for path in paths]]


def repair_text(text: str) -> str:
    """Broken Unicode, control characters and typographic quotes as OpenAI's tokenizer has them.

    transformers 4 did this in its CLIP tokenizer if ftfy was installed, and open_clip does. The
    tokenizer of transformers 5 does not, and control characters change its tokens.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return text  # ftfy would change nothing, and take its time
    fixed: str = ftfy.fix_text(text)
    return fixed


def image_inputs(image_processor: Any, images: Sequence[Image], model: Any) -> dict[str, Tensor]:
    """Images as the model reads them, in its precision and on its device."""
    inputs = image_processor(images=list(images), return_tensors="pt")
    return dict(inputs.to(model.device, model.dtype))
