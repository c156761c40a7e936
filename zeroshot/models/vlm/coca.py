"""Captions of CoCa: open_clip's model with our own loop.

Yu et al. 2022, arXiv:2205.01917. open_clip's `generate` needs classes that transformers 5 no longer
has. This loop is greedy, with open_clip's minimum length of a text. Rows that have ended wait for
the others, so that no row depends on the others.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.models.base import Answer, Image
from zeroshot.models.isolation import FrozenModel
from zeroshot.models.model_checks import check_numbers

__all__ = ["CoCa", "greedy"]

MIN_TOKENS, MAX_TOKENS = 5, 30
"""Length of a text with its start token, as in open_clip."""


class CoCa(FrozenModel):
    """An open_clip model with a text decoder."""

    def __init__(self, encoder: Any) -> None:
        if not hasattr(encoder.model, "text_decoder"):
            raise UserError(
                f"{encoder.name} writes no captions: among open_clip's models only coca_* have a "
                "text decoder"
            )
        self.encoder = encoder
        self.name: str = encoder.name
        self.start: int = encoder.tokenizer.sot_token_id
        self.end: int = encoder.tokenizer.eot_token_id

    @torch.inference_mode()
    def write(self, images: Sequence[Image], prompts: Sequence[str] | None = None) -> list[Answer]:
        """As `base.Writer`; takes no prompts."""
        if prompts is not None:
            raise UserError(f"{self.name} takes no prompt; leave it out")
        model, encoder = self.encoder.model, self.encoder
        pixels = torch.stack([encoder.preprocess(image) for image in images])
        latent, states = model._encode_image(pixels.to(encoder.device, encoder.dtype))

        def logits(tokens: Int[Tensor, "b s"]) -> Float[Tensor, "b v"]:
            out = model(None, tokens, image_latent=latent, image_embs=states, output_labels=False)
            last: Tensor = out["logits"][:, -1].float()
            return last

        start = torch.full((len(images), 1), self.start, device=encoder.device)
        length = min(MAX_TOKENS, model.context_length)
        tokens, probabilities = greedy(logits, start, self.end, length)
        return [
            Answer(self._decode(ids), probability)
            for ids, probability in zip(tokens.tolist(), probabilities.tolist(), strict=True)
        ]

    def _decode(self, tokens: list[int]) -> str:
        tokens = tokens[1:]
        tokens = tokens[: tokens.index(self.end)] if self.end in tokens else tokens
        return str(self.encoder.tokenizer.decode(tokens)).strip()


def greedy(
    logits: Callable[[Tensor], Tensor],
    start: Int[Tensor, "b 1"],
    end: int,
    max_tokens: int = MAX_TOKENS,
) -> tuple[Int[Tensor, "b s"], Float[Tensor, " b"]]:
    """The most probable token at each step, and the mean probability of a row's new tokens.

    The mean is geometric and includes the end token.
    """
    tokens, total = start, torch.zeros(len(start), device=start.device)
    ended = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    count = torch.zeros_like(total)
    while tokens.shape[1] < max_tokens and not ended.all():
        scores = logits(tokens)
        log_probabilities = scores.log_softmax(1)
        if tokens.shape[1] < MIN_TOKENS:
            scores[:, end] = -torch.inf
        best = scores.argmax(1).masked_fill(ended, end)
        total += log_probabilities.gather(1, best[:, None])[:, 0].masked_fill(ended, 0)
        count += ~ended
        ended |= best == end
        tokens = torch.cat([tokens, best[:, None]], dim=1)
    check_numbers(total)
    return tokens, (total / count).exp()
