"""MaGiC: a language model guided by an image-text encoder, token by token.

Su et al. 2022, "Language Models Can See: Plugging Visual Controls in Text Generation",
arXiv:2205.02655; authors' code: github.com/yxuansu/MAGIC.

    score(v) = (1 - alpha) p(v) - alpha penalty(v) + beta f(v)                          (4)
    f(v)     = softmax over the k candidates of logit_scale * cos(text_v, image)        (5)

| here | paper |
|---|---|
| k, alpha, beta | k, alpha, beta of equation (4) |
| penalty | max_j cos(h_v, h_{x_j}), the degeneration penalty |
| f | the magic score, equation (5) |

A story follows a title: the title and an end token come first, and only what follows counts as the
text.

Departures from the authors' code, none of which changes a word before the end token: the text
ends when the end token is chosen (theirs continues and cuts afterwards); the candidate "end" is
scored as the text so far, as their tokenizer does in effect; the look-ahead skips candidates that
cannot win (`decoding.py`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.decoding import Choice, stream
from zeroshot.errors import UserError, counted
from zeroshot.methods._caption_pool import Pool
from zeroshot.methods._door import Method
from zeroshot.methods._protocols import Caption
from zeroshot.models.base import DualEncoder, LanguageModel, Matcher
from zeroshot.trace import Candidate, Trace, TraceStep

WINDOW = 60
"""The encoder sees this many of the last language-model tokens (the authors' limit)."""

SENTENCE_END = re.compile(r"(?<=[.!?]) ")


@dataclass(frozen=True)
class MagicGuide:
    """`beta f(v)`: how much better than the other candidates each one fits the image."""

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
        return self.beta * (self.encoder.logit_scale * cosine).softmax(-1)  # (5)

    @cached_property
    def match(self) -> Matcher:
        """The encoder; it reuses from step to step what texts have in common."""
        return self.encoder.matcher()

    def _text(self, tokens: Sequence[int]) -> str:
        """The last `WINDOW` tokens as text; a final end token is left out."""
        window = tokens[-WINDOW:]
        ended = window[-1] == self.language_model.end
        return self.language_model.decode(window[:-1] if ended else window)


@dataclass(frozen=True)
class MaGiC(Method):
    """Captions by guided decoding.

    The defaults are the authors' for COCO: k=45, alpha=0.1, beta=2 and 15 tokens (their length
    of 16 counts the start token). `beta=0` is contrastive search, which sees no image.
    """

    k: int = 45
    """candidates per step"""
    alpha: float = 0.1
    """weight of the degeneration penalty against the model's probability, in [0, 1]"""
    beta: float = 2.0
    """weight of the image"""
    max_tokens: int = 15
    """longest caption in language-model tokens, without the start token or the title"""
    max_length: int = 0
    """longest text with its title or beginning, in tokens; 0 for no limit"""
    title: bool = False
    """a prompt is a title, ended by an end token and not part of the text; else its beginning"""
    sentences: int = 0
    """number of sentences to keep; 0 for all"""

    needs: ClassVar[frozenset[str]] = frozenset({"language_model"})
    takes: ClassVar[frozenset[str]] = frozenset({"prompts", "trace", "written"})

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "coco": {"k": 45, "alpha": 0.1, "beta": 2.0, "max_tokens": 15},
        "flickr30k": {"k": 25, "alpha": 0.1, "beta": 2.0, "max_tokens": 19},
        "story": {
            "k": 5,
            "alpha": 0.6,
            "beta": 0.15,
            "max_tokens": 99,
            "max_length": 100,
            "title": True,
            "sentences": 5,
        },
    }
    """The authors' settings: captions in the style of two data sets, and stories under a title."""

    def caption(
        self,
        images: Float[Tensor, "n d"],
        encoder: DualEncoder,
        *,
        language_model: LanguageModel | None = None,
        pool: Pool | None = None,
        prompts: Sequence[str] | None = None,
        trace: bool = False,
        written: Callable[[int, str], None] | None = None,
    ) -> list[Caption]:
        """One caption per unit image embedding; prompts of equal length decode together."""
        if language_model is None:
            raise UserError("magic needs a language model")
        beginnings = list(prompts) if prompts is not None else [""] * len(images)
        if len(beginnings) != len(images):
            raise UserError(
                f"{counted(len(beginnings), 'prompt')} for {counted(len(images), 'image')}"
            )
        guide = None
        if self.beta:
            guide = MagicGuide(images, encoder, language_model, self.beta)
        choices: list[Choice] = []
        generated: list[list[int]] = [[] for _ in beginnings]

        def text(row: int) -> str:
            beginning = "" if self.title else beginnings[row]
            return self._text(beginning, language_model.decode(generated[row]))

        for row, token in stream(  # (4)
            language_model,
            [self._prefix(prompt, language_model) for prompt in beginnings],
            guide,
            k=self.k,
            alpha=self.alpha,
            max_tokens=self.max_tokens,
            max_length=self.max_length or None,
            observe=choices.append if trace else None,
        ):
            generated[row].append(token)
            if written is not None:
                written(row, text(row))
        texts = [text(row) for row in range(len(generated))]
        cosine = torch.einsum("nd,nd->n", encoder.encode_texts(texts), images)
        traces = _traces(choices, generated, language_model) if trace else [None] * len(texts)
        return [
            Caption(text, score, tuple(tokens), steps)
            for text, score, tokens, steps in zip(
                texts, cosine.tolist(), generated, traces, strict=True
            )
        ]

    def _prefix(self, prompt: str, language_model: LanguageModel) -> list[int]:
        """The tokens before the text: the start and a beginning, or a title and the end token."""
        if self.title and prompt:
            return [*language_model.encode(prompt), language_model.end]
        return [language_model.start, *language_model.encode(prompt)]

    def _text(self, beginning: str, text: str) -> str:
        """Beginning and text with single spaces, and no more than `sentences` sentences."""
        text = " ".join((beginning + text).split())
        if self.sentences:
            text = " ".join(SENTENCE_END.split(text)[: self.sentences])
        return text


def _traces(
    choices: Sequence[Choice], generated: Sequence[Sequence[int]], language_model: LanguageModel
) -> list[Trace]:
    """The choices that were made for all rows together, sorted by row."""
    steps: list[list[TraceStep]] = [[] for _ in generated]
    for choice in choices:
        terms = (choice.candidates, choice.probability, choice.penalty, choice.guide, choice.total)
        for i, row in enumerate(choice.rows):
            numbers = zip(*(term[i].tolist() for term in terms), strict=True)
            candidates = [
                Candidate(token, language_model.decode([token]), *rest) for token, *rest in numbers
            ]
            best = candidates.pop(int(choice.chosen[i]))
            candidates.sort(key=lambda candidate: -candidate.total)
            before = generated[row][: len(steps[row])]
            text = language_model.decode(before) if before else ""
            steps[row].append(TraceStep(text, (best, *candidates)))
    return [Trace(tuple(row)) for row in steps]
