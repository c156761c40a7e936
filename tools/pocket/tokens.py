"""Tokenizers for the pocket models, in the shapes the real ones have, each holding every word of the world whole.

CLIP and GPT-2 have byte-level BPE, so any text can be encoded; BERT has WordPiece over ASCII characters.
"""

import json
import string

from language import vocabulary
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertTokenizer, CLIPTokenizer, GPT2Tokenizer

START, PAD, END = "<-start_of_text->", "<-pad->", "<|endoftext|>"


def learn_merges(words: list[str], suffix: str = "") -> list[tuple[str, str]]:
    """BPE merges that make every word one token."""
    ending = {"end_of_word_suffix": suffix} if suffix else {}
    tokenizer = Tokenizer(models.BPE(**ending))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,  # no limit: merge until every word is whole
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        **ending,
    )
    tokenizer.train_from_iterator(words, trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


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


def lm_tokenizer() -> GPT2Tokenizer:
    """GPT-2's with a start and a padding token, as the published MaGiC models have."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges([*vocabulary(), *(f" {word}" for word in vocabulary())])
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
    """Lower-case WordPiece: special tokens, ASCII characters alone and inside words, whole words."""
    letters = string.ascii_lowercase + string.digits
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = number(
        [*special, *letters, *string.punctuation, *(f"##{c}" for c in letters), *vocabulary()]
    )
    return BertTokenizer(vocab=vocab, model_max_length=64, clean_up_tokenization_spaces=False)
