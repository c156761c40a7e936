"""CoCa's captions: open_clip's model, our own loop.

Yu et al. 2022, arXiv:2205.01917. open_clip's `generate` needs classes that transformers 5 no longer
has. This one is greedy, with open_clip's least length of a text; rows that have ended wait until
all have, so that no row depends on the others.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.models.base import Answer, Image

__all__ = ["CoCa", "greedy"]

LEAST, MOST = 5, 30
"""Tokens of a text with its start, as open_clip has them."""


class CoCa:
    """An open_clip model with a text decoder."""

    def __init__(self, encoder: Any) -> None:
        if not hasattr(encoder.model, "text_decoder"):
            raise UserError(
                f"{encoder.name} writes no captions: of open_clip's models only coca_* have a "
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
            raise UserError(f"{self.name} takes no prompt here")
        model, encoder = self.encoder.model, self.encoder
        pixels = torch.stack([encoder.preprocess(image) for image in images])
        latent, states = model._encode_image(pixels.to(encoder.device, encoder.dtype))

        def logits(tokens: Int[Tensor, "b s"]) -> Float[Tensor, "b v"]:
            out = model(None, tokens, image_latent=latent, image_embs=states, output_labels=False)
            following: Tensor = out["logits"][:, -1].float()
            return following

        begun = torch.full((len(images), 1), self.start, device=encoder.device)
        tokens, chances = greedy(logits, begun, self.end, min(MOST, model.context_length))
        return [
            Answer(self._text(row), chance)
            for row, chance in zip(tokens.tolist(), chances.tolist(), strict=True)
        ]

    def _text(self, tokens: list[int]) -> str:
        tokens = tokens[1:]
        tokens = tokens[: tokens.index(self.end)] if self.end in tokens else tokens
        return str(self.encoder.tokenizer.decode(tokens)).strip()


def greedy(
    logits: Callable[[Tensor], Tensor], begun: Int[Tensor, "b 1"], end: int, most: int = MOST
) -> tuple[Int[Tensor, "b s"], Float[Tensor, " b"]]:
    """The likeliest token again and again, and the mean probability of a row's tokens.

    The mean is geometric, over the tokens written, the end included.
    """
    tokens, total = begun, torch.zeros(len(begun), device=begun.device)
    ended = torch.zeros(len(begun), dtype=torch.bool, device=begun.device)
    count = torch.zeros_like(total)
    while tokens.shape[1] < most and not ended.all():
        following = logits(tokens)
        chances = following.log_softmax(1)
        if tokens.shape[1] < LEAST:
            following[:, end] = -torch.inf
        chosen = following.argmax(1).masked_fill(ended, end)
        total += chances.gather(1, chosen[:, None])[:, 0].masked_fill(ended, 0)
        count += ~ended
        ended |= chosen == end
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
    return tokens, (total / count).exp()
