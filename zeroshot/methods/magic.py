"""MaGiC: a language model guided by an image-text encoder, token by token.

Su et al. 2022, "Language Models Can See: Plugging Visual Controls in Text Generation",
arXiv:2205.02655; authors' code: github.com/yxuansu/MAGIC.

    score(v) = (1 - alpha) p(v) - alpha penalty(v) + beta f(v)
    f(v)     = softmax over the k candidates of logit_scale * cos(text_v, image)

| here | paper |
|---|---|
| k, alpha, beta | k, alpha, beta of equation 4 |
| penalty | max_j cos(h_v, h_{x_j}), the degeneration penalty |
| f | the magic score, equation 5 |

Departures from the authors' code, none of which changes a word before the end token:
the text ends when the end token is chosen (theirs runs on and cuts afterwards); the candidate
"end" is scored as the text so far, which is what their tokenizer makes of it; candidates that
cannot win are not looked ahead on (`decoding.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.decoding import generate
from zeroshot.errors import UserError
from zeroshot.methods import Caption, Pool
from zeroshot.models.base import DualEncoder, LanguageModel, Matcher

WINDOW = 60
"""Tokens of the language model the encoder is shown, the last ones (the authors' limit)."""


@dataclass(frozen=True)
class MagicGuide:
    """`beta f(v)`: how much better than its rivals each continuation fits the picture."""

    images: Float[Tensor, "n d"]
    encoder: DualEncoder
    language_model: LanguageModel
    beta: float

    def __call__(
        self,
        rows: Sequence[int],
        generated: Sequence[Sequence[int]],
        candidates: Int[Tensor, "b k"],
    ) -> Float[Tensor, "b k"]:
        """See `decoding.Guide`; `rows` index `images`."""
        texts = [
            [self._text([*tokens, candidate]) for candidate in row]
            for tokens, row in zip(generated, candidates.tolist(), strict=True)
        ]
        cosine = self.match(self.images[list(rows)], texts)
        guide = self.beta * (self.encoder.logit_scale * cosine).softmax(-1)
        return guide.to(candidates.device)

    @cached_property
    def match(self) -> Matcher:
        """The encoder, remembering from step to step what texts have in common."""
        return self.encoder.matcher()

    def _text(self, tokens: Sequence[int]) -> str:
        """The last `WINDOW` tokens as text; a closing end token says nothing about the picture."""
        window = tokens[-WINDOW:]
        ended = window[-1] == self.language_model.end
        return self.language_model.decode(window[:-1] if ended else window)


@dataclass(frozen=True)
class MaGiC:
    """Captions by guided decoding.

    The defaults are the authors' for COCO: k=45, alpha=0.1, beta=2 and 15 tokens (their length
    of 16 counts the start token). `beta=0` is contrastive search, which sees no picture.
    """

    k: int = 45
    """candidates per step"""
    alpha: float = 0.1
    """weight of the degeneration penalty against the model's probability, in [0, 1]"""
    beta: float = 2.0
    """weight of the picture"""
    max_tokens: int = 15
    """longest caption in language-model tokens"""

    needs: ClassVar[frozenset[str]] = frozenset({"language_model"})

    def caption(
        self,
        images: Float[Tensor, "n d"],
        encoder: DualEncoder,
        *,
        language_model: LanguageModel | None = None,
        pool: Pool | None = None,
    ) -> list[Caption]:
        """One caption per unit image row; all rows decode together."""
        if language_model is None:
            raise UserError("magic needs a language model")
        guide = None
        if self.beta:
            guide = MagicGuide(images, encoder, language_model, self.beta)
        generated = generate(
            language_model,
            [[language_model.start]] * len(images),
            guide,
            k=self.k,
            alpha=self.alpha,
            max_tokens=self.max_tokens,
        )
        texts = [" ".join(language_model.decode(tokens).split()) for tokens in generated]
        cosine = torch.einsum("nd,nd->n", encoder.encode_texts(texts), images)
        return [
            Caption(text, score, tuple(tokens))
            for text, score, tokens in zip(texts, cosine.tolist(), generated, strict=True)
        ]
