"""Transparent stand-ins for models: every number can be followed by hand."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zeroshot.models.base import LanguageModelOutput


class ToyLanguageModel:
    """Hidden state = table of the token + half the previous state; the cache is the tokens."""

    name = "toy-lm"
    context_length = 64

    def __init__(self, vocabulary: int = 23, width: int = 7, seed: int = 0, end: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(vocabulary, width, generator=generator)
        self.head = 1.5 * torch.randn(width, vocabulary, generator=generator)
        self.start, self.end = 0, end
        self.fed: list[tuple[int, int]] = []

    def encode(self, text: str) -> list[int]:
        return [ord(c) - ord("a") for c in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(ord("a") + t) for t in tokens)

    def states(self, tokens: Tensor) -> Tensor:
        out, state = [], torch.zeros(tokens.shape[0], self.table.shape[1])
        for column in tokens.T:
            state = self.table[column] + 0.5 * state
            out.append(state)
        return torch.stack(out, dim=1)

    def forward(self, tokens: Tensor, cache: Tensor | None = None) -> LanguageModelOutput:
        self.fed.append(tuple(tokens.shape))
        known = tokens if cache is None else torch.cat([cache, tokens], dim=1)
        return LanguageModelOutput(self.states(known)[:, known.shape[1] - tokens.shape[1] :], known)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.head

    def select(self, cache: Tensor, rows: Tensor) -> Tensor:
        return cache[rows]


class ToyEncoder:
    """A text's row depends on its letters and their places; pictures are given as rows."""

    name = "toy-encoder"
    context_length = 77
    logit_bias = None

    def __init__(self, width: int = 5, logit_scale: float = 10.0, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(128, width, generator=generator)
        self.logit_scale = logit_scale
        self.encoded: list[str] = []

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) + 2 for text in texts]

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        self.encoded += texts
        rows = [
            sum((self.table[ord(c) % 128] * (1 + i % 3) for i, c in enumerate(text)), torch.ones(5))
            for text in texts
        ]
        return (
            torch.nn.functional.normalize(torch.stack(rows), dim=-1) if rows else torch.zeros(0, 5)
        )

    def session(self):
        return self.encode_texts

    def matcher(self):
        def match(images, texts):
            rows = self.encode_texts([text for row in texts for text in row])
            return torch.einsum("bkd,bd->bk", rows.view(len(texts), -1, 5), images)

        return match

    def encode_images(self, images: Sequence[object]) -> Tensor:
        raise NotImplementedError
