"""MaGiC as the paper's code runs it: one picture at a time, every step in full.

The yardstick of `benchmarks/magic.py` and of the tests: k copies of the language model's cache, k
look-aheads with all their logits, k whole texts through the text tower, to the last step whether
the text has ended or not. Written from the paper's equations; it shares no code with the package.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GPT2Model

SINCE_5_24 = "cache" in inspect.signature(GPT2Model.forward).parameters
"""Whether this transformers calls its cache so; `past_key_values` before."""


@torch.inference_mode()
def plain_magic(
    model: Any,
    decode: Callable[[list[int]], str],
    encode_texts: Callable[[list[str]], Tensor],
    image: Tensor,
    *,
    prefix: list[int],
    end: int,
    logit_scale: float,
    k: int,
    alpha: float,
    beta: float,
    steps: int,
) -> list[int]:
    """The tokens after `prefix`, up to the first `end`.

    `model` is a causal language model of transformers, `encode_texts` gives a text tower's raw
    rows, `image [d]` is a unit row.
    """
    device = image.device
    cache = DynamicCache()
    how: dict[str, Any] = {"use_cache": True, "output_hidden_states": True}
    how["cache" if SINCE_5_24 else "past_key_values"] = cache
    out = model(torch.tensor([prefix], device=device), **how)
    logits, states = out.logits[0, -1], out.hidden_states[-1][0]
    chosen: list[int] = []
    for _ in range(steps):
        p, top = logits.float().softmax(-1).topk(min(k, len(logits)))
        cache.batch_repeat_interleave(len(top))
        ahead = model(top[:, None], **how)
        after = ahead.hidden_states[-1][:, 0]  # [k, e]
        penalty = torch.nn.functional.cosine_similarity(after[:, None], states[None], dim=-1)
        score = (1 - alpha) * p - alpha * penalty.amax(1)
        if beta:
            texts = [decode([*chosen, int(token)]) for token in top]
            rows = torch.nn.functional.normalize(encode_texts(texts).float(), dim=-1)
            score = score + beta * (logit_scale * rows @ image).softmax(-1)
        best = int(score.argmax())
        chosen.append(int(top[best]))
        cache.batch_select_indices(torch.tensor([best], device=device))
        logits, states = ahead.logits[best, -1], torch.cat([states, after[best][None]])
    return chosen[: chosen.index(end)] if end in chosen else chosen
