"""Tokenizers for the pocket models, shaped as the real ones, with every word of the world whole.

CLIP and GPT-2 have byte-level BPE, so any text can be encoded; BERT has WordPiece over ASCII.
"""

import string
from collections import Counter
from itertools import pairwise
from typing import Any

from language import vocabulary
from tokenizers import pre_tokenizers
from transformers import BertTokenizer, CLIPTokenizer, GPT2Tokenizer

START, PAD, END = "<-start_of_text->", "<-pad->", "<|endoftext|>"


def learn_merges(words: list[str], suffix: str = "") -> list[Any]:
    """BPE merges that make every word one token: the commonest pair first, ties by alphabet.

    The trainer of `tokenizers` breaks ties in a different order each time.
    """
    split = [[*word[:-1], word[-1] + suffix] for word in words]
    merges = []
    while pairs := Counter(pair for word in split for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [merge(word, best) for word in split]
    return merges


def merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    """The pieces of a word with every such pair made one."""
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def number(tokens: list[str]) -> dict[str, int]:
    """Ids in order of first appearance."""
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def clip_tokenizer() -> CLIPTokenizer:
    """Laid out as CLIP's: bytes, bytes that end a word, merges, start, end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges(vocabulary(), "</w>")
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    vocab = number([*tokens, "<|startoftext|>", END])
    return CLIPTokenizer(
        vocab=vocab, merges=merges, model_max_length=77, clean_up_tokenization_spaces=False
    )


def lm_tokenizer(more: tuple[str, ...] = ("on",)) -> GPT2Tokenizer:
    """GPT-2's with a start and a padding token, as the published MaGiC models have.

    The word "on" ends a list of things, so it must not be two tokens: CLIP judges texts after each
    token, and "a red heart o" fits no picture.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted({*vocabulary(), *more})
    merges = learn_merges([*words, *(f"Ġ{word}" for word in words)])
    vocab = number([*letters, *map("".join, merges), END, START, PAD])
    return GPT2Tokenizer(
        vocab=vocab,
        merges=merges,
        pad_token=PAD,
        additional_special_tokens=[START],
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def bert_tokenizer() -> BertTokenizer:
    """Lower-case WordPiece: special tokens, ASCII characters, whole words."""
    letters = string.ascii_lowercase + string.digits
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = number(
        [*special, *letters, *string.punctuation, *(f"##{c}" for c in letters), *vocabulary()]
    )
    return BertTokenizer(vocab=vocab, model_max_length=64, clean_up_tokenization_spaces=False)
