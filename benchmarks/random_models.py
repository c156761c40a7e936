"""Models of real shapes with random weights, their tokenizers included: nothing is downloaded.

Words are made of syllables, so that tokens behave as real ones do: most of the language model's
tokens are a word with its space and one token to CLIP too, some continue the word before, and CLIP
splits a continued word anew. Weights are scaled until the numbers guided decoding lives on look
like those of trained models: next-token probabilities of some tenths, cosines between candidates
that differ by some hundredths.
"""

import math
from itertools import product
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
)
from transformers.pytorch_utils import Conv1D

from zeroshot.models.hf.dual_encoder import FAMILIES, TransformersDualEncoder
from zeroshot.models.hf.language_model import TransformersLanguageModel
from zeroshot.models.hf.model_inputs import repair_text
from zeroshot.models.towers.packed_linear import pack

Model = TypeVar("Model", TransformersDualEncoder, TransformersLanguageModel)

START, END = "<-start_of_text->", "<|endoftext|>"
SYLLABLES = ["".join(pair) for pair in product("bdfgklmnprstvz", "aeiou")]
PAIRS = list(product(SYLLABLES, SYLLABLES))
CLIP_SIZE = {True: 2000, False: 49408}
"""Vocabulary of the text tower, tiny or not."""


def triples(count: int) -> list[tuple[str, str]]:
    """So many words of three syllables, the first two together, in an order of their own."""
    every = [(a + b, c) for (a, b), c in product(PAIRS, SYLLABLES)]
    chosen = np.random.default_rng(0).permutation(len(every))[:count]
    return [every[i] for i in chosen]


def words(size: int) -> list[tuple[str, str]]:
    """What a CLIP vocabulary of `size` has as one token, in two halves: one to three syllables."""
    room = (size - 2 - 2 * 256 - 2 * len(SYLLABLES)) // 2
    return [*PAIRS, *triples(max(0, room - len(PAIRS)))][:room]


def clip_tokenizer(size: int) -> CLIPTokenizer:
    """Bytes, syllables and words, each also as the end of a word."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [pair for s in SYLLABLES for pair in ((s[0], s[1]), (s[0], f"{s[1]}</w>"))]
    merges += [pair for a, b in words(size) for pair in ((a, b), (a, f"{b}</w>"))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    vocab |= {"<|startoftext|>": size - 2, END: size - 1}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def lm_tokenizer(size: int, clip: CLIPTokenizer, split: bool = False) -> GPT2Tokenizer:
    """CLIP's words with their space, a tenth as endings that go on a word, the rest capitals.

    With `split`, words of four to six syllables instead, which are two to four tokens to CLIP.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    if split:
        draw = np.random.default_rng(1)
        many = ["".join(draw.choice(SYLLABLES, 4 + i % 3)) for i in range(size)]
        known = list(dict.fromkeys(many))
    else:
        made = [*SYLLABLES, *map("".join, words(len(clip)))]
        known = [w for w, ids in zip(made, clip(made)["input_ids"], strict=True) if len(ids) == 3]
    made = [f"Ġ{word}" for word in known] + known[: len(known) // 9]
    made += [f"Ġ{word.capitalize()}" for word in known]
    tokens = [*letters, *made][: size - 2]
    vocab = {token: i for i, token in enumerate(tokens)}
    vocab |= {END: size - 2, START: size - 1}
    return GPT2Tokenizer(
        vocab=vocab, merges=[], additional_special_tokens=[START], model_max_length=1024
    )


def language_model(
    small: bool, end_after: float | None, seed: int = 0, split_words: bool = False
) -> TransformersLanguageModel:
    """GPT-2 small, or a tiny one. With `end_after`, texts tend to end after so many tokens.

    The residual stream's first channel carries the position alone, and the end token's logit
    reads it: trained caption models end as surely, and as early.
    """
    size = 2000 if small else 50257
    shape = {"n_embd": 48, "n_layer": 2, "n_head": 3} if small else {}
    tokenizer = lm_tokenizer(size, clip_tokenizer(CLIP_SIZE[small]), split_words)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=size,
            tie_word_embeddings=False,
            bos_token_id=size - 2,
            eos_token_id=size - 2,
            **shape,
        )
        model = GPT2LMHeadModel(config).eval().requires_grad_(False)
        width = config.n_embd
        head = model.lm_head.weight
        head.copy_(torch.randn_like(head) * 4.5 / math.sqrt(width))
        head[len(tokenizer) - 2 :] = 0  # no such words, no end, and no second start
        if end_after is not None:
            _tend_to_end(model, size - 2, end_after)
    return TransformersLanguageModel(f"random-gpt2/{seed}", model, tokenizer, clean_up=False)


def _tend_to_end(model: GPT2LMHeadModel, end: int, after: float) -> None:
    """Let the end token's logit grow by position until it is the likeliest at `after`."""
    transformer, head = model.transformer, model.lm_head.weight
    transformer.wte.weight[:, 0] = 0
    for block in transformer.h:
        for layer in (block.attn.c_proj, block.mlp.c_proj):
            layer.weight[:, 0] = 0
            layer.bias[0] = 0
    seen: list[torch.Tensor] = []
    hook = transformer.ln_f.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    logits = model(torch.randint(0, end, (4, 16))).logits
    hook.remove()
    # The final norm divides by the residual's spread: this channel comes out as position / after.
    positions = torch.arange(model.config.n_positions)
    transformer.wpe.weight[:, 0] = positions / after * float(seen[0].std())
    head[end] = 0
    head[end, 0] = float(logits.amax(-1).mean())


LARGE_VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
LARGE_VISION |= {"num_hidden_layers": 24, "patch_size": 14}
LARGE_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}


def clip(small: bool, seed: int = 0, large: bool = False) -> TransformersDualEncoder:
    """CLIP ViT-B/32, a tiny one, or with `large` ViT-L/14 (tiny, it has smaller patches)."""
    size = CLIP_SIZE[small]
    ids = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    tower = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3}
    tower |= {"num_hidden_layers": 3}
    text: dict[str, Any] = {"vocab_size": size, **ids, **(tower if small else {})}
    vision: dict[str, Any] = {"image_size": 224, "patch_size": 32, **(tower if small else {})}
    if large:
        vision |= {"patch_size": 28} if small else LARGE_VISION
        text |= {} if small else LARGE_TEXT
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = CLIPConfig(
            text_config=text,
            vision_config=vision,
            projection_dim=64 if small else 768 if large else 512,
            logit_scale_init_value=math.log(100),
            **ids,
        )
        model = CLIPModel(config).eval().requires_grad_(False)
        # A fresh tower hardly tells one text from another; trained ones do.
        for part in (model.text_model, model.vision_model):
            for name, weight in part.named_parameters():
                if weight.ndim == 2 and "embedding" not in name:
                    sharp = 2.5 if "q_proj" in name or "k_proj" in name else 1.2
                    weight.normal_(0, sharp / math.sqrt(weight.shape[1]))
        model.text_model.embeddings.token_embedding.weight.normal_(0, 1)
    return TransformersDualEncoder(
        f"random-clip/{seed}",
        model,
        CLIPImageProcessorPil(),
        clip_tokenizer(size),
        repair_text,
        FAMILIES["clip"],
        logit_scale=100.0,
        logit_bias=None,
    )


def as_loaded(given: Model) -> Model:
    """The model, its layers as `zeroshot.models` loads them and not as transformers does."""
    pack(given.model, transposed=(Conv1D,))
    return given


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    """Smooth noise of different colours and grains, each unlike the others."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        grain = int(rng.integers(2, 40))
        values = rng.integers(0, 256, (grain, grain, 3)) * rng.random(3)
        image = Image.fromarray(values.astype(np.uint8))
        made.append(image.resize((224, 224), Image.Resampling.BICUBIC))
    return made
