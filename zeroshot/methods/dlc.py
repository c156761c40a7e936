"""DLC: a model that writes is corrected at each token by how well its words fit the image.

Chen et al. 2025, "Mitigating Hallucination of Large Vision-Language Models via Dynamic Logits
Calibration", arXiv:2506.21509; authors' code: github.com/JiaheChen2002/DLC.

    s(v)      = weight cos(recent + v, x) + (1 - weight) cos(v, x)                 v: a candidate
    base      = mean of the last `history` cosines cos(recent, x); the present one for the first 3
    rva(v)    = (s(v) - base) / (1 - base)                         the relative visual advantage
    logit'(v) = logit(v) + |logit(v)| (exp(strength (1 - base)^2 sigmoid(rva(v))) - 1)

`recent` is the text of the last `window` tokens. The `k` most likely tokens are candidates. The
first `start` tokens are not corrected (the authors' `start` is their `window`). The model decodes
greedily as before.

Departures from the authors' code: a negative logit grows as well (theirs is multiplied, which
lowers it; positive logits are theirs to the digit); `recent + v` is decoded as one text (theirs
glues two, and loses spaces with Llama's tokenizer); a candidate without text, the end token above
all, is scored as the text so far (they read "</s>" as a text and leave white space uncorrected,
which lowers it); all images of a batch are corrected (theirs corrects the first).
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.decoding import generate
from zeroshot.errors import UserError
from zeroshot.methods._caption_pool import Pool
from zeroshot.methods._door import Method
from zeroshot.methods._protocols import Caption
from zeroshot.models.base import DualEncoder, LanguageModel, Matcher

WARM_UP = 3
"""Cosines that are not averaged yet."""
ROUNDING = 1e-6
"""The authors', beside 1 - base."""


@dataclass(frozen=True)
class DLC(Method):
    """Corrects the likeliest tokens of a model that writes, by an image-text encoder.

    The model is the set's language model, which sees no image, or that of `--model`, which does.
    """

    k: int = 50
    """candidates per token"""
    window: int = 8
    """tokens of the recent text"""
    start: int = 8
    """the first so many tokens are not corrected; at least 1"""
    weight: float = 0.5
    """weight of a candidate in its context against the candidate alone, in [0, 1]"""
    strength: float = 1.0
    """how much logits change; 0 for not at all"""
    history: int = 8
    """recent texts whose mean cosine a candidate is compared with"""
    max_tokens: int = 30
    """longest caption of the set's language model, in tokens"""

    needs: ClassVar[frozenset[str]] = frozenset({"language_model"})
    takes: ClassVar[frozenset[str]] = frozenset()

    def calibrated(
        self,
        logits: Float[Tensor, "b k"],
        context: Float[Tensor, "b k"],
        alone: Float[Tensor, "b k"],
        base: Float[Tensor, " b"],
    ) -> Float[Tensor, "b k"]:
        """The corrected logits of candidates, whose cosines with the image are in [-1, 1].

        Args:
            context: cosines of the recent text with each candidate.
            alone: cosines of the candidates themselves.
            base: what they are compared with.
        """
        base = base[:, None]
        fit = self.weight * context + (1 - self.weight) * alone
        advantage = (fit - base) / (1 - base + ROUNDING)
        growth = (self.strength * (1 - base) ** 2 * advantage.sigmoid()).expm1()
        return torch.where(logits.isfinite(), logits + logits.abs() * growth, logits)

    def referee(
        self,
        images: Float[Tensor, "n d"],
        encoder: DualEncoder,
        decode: Callable[[Sequence[int]], str],
        ends: Collection[int],
    ) -> "Referee":
        """What corrects the logits of texts about `images`; see `Referee`.

        Raises:
            UserError: an option out of range.
        """
        if min(self.k, self.window, self.start, self.history) < 1:
            numbers = f"k={self.k}, window={self.window}, start={self.start}"
            numbers += f", history={self.history}"
            raise UserError(f"dlc: {numbers}: at least 1")
        if not 0 <= self.weight <= 1 or self.strength < 0:
            numbers = f"weight={self.weight}, strength={self.strength}"
            raise UserError(f"dlc: {numbers}: weight is within [0, 1], strength at least 0")
        return Referee(self, images, encoder, decode, frozenset(ends))

    def caption(
        self,
        images: Float[Tensor, "n d"],
        encoder: DualEncoder,
        *,
        language_model: LanguageModel | None = None,
        pool: Pool | None = None,
        prompts: Sequence[str] | None = None,
        trace: bool = False,
    ) -> list[Caption]:
        """One caption of the language model per unit image embedding."""
        if prompts or trace:
            raise UserError("dlc takes no prompt with a language model, and leaves no trace")
        if language_model is None:
            raise UserError("dlc needs a language model, or a model that writes (--model)")
        written = generate(
            language_model,
            [[language_model.start]] * len(images),
            k=1,
            alpha=0.0,
            max_tokens=self.max_tokens,
            adjust=self.referee(images, encoder, language_model.decode, [language_model.end]),
        )
        texts = [" ".join(language_model.decode(tokens).split()) for tokens in written]
        cosine = torch.einsum("nd,nd->n", encoder.encode_texts(texts), images.cpu())
        return [
            Caption(text, score, tuple(tokens))
            for text, score, tokens in zip(texts, cosine.tolist(), written, strict=True)
        ]


@dataclass(frozen=True)
class Referee:
    """Corrects the logits of texts that grow token by token; as `base.LogitCorrection`."""

    method: DLC
    images: Float[Tensor, "n d"]
    encoder: DualEncoder
    decode: Callable[[Sequence[int]], str]
    ends: Collection[int]
    """The tokens that end a text."""
    _seen: dict[int, deque[float]] = field(default_factory=dict, repr=False)
    """The cosines of the recent texts of each row."""

    @cached_property
    def match(self) -> Matcher:
        """The encoder; it reuses from step to step what texts have in common."""
        return self.encoder.matcher()

    def __call__(
        self, rows: Sequence[int], generated: Sequence[Sequence[int]], logits: Float[Tensor, "b v"]
    ) -> Float[Tensor, "b v"]:
        """The logits with those of the candidates corrected; `rows` index `images`."""
        start, window = self.method.start, self.method.window
        open_ = [
            i
            for i, tokens in enumerate(generated)
            if len(tokens) >= start and not any(token in self.ends for token in tokens)
        ]
        if not open_ or not self.method.strength:
            return logits
        values, candidates = logits[open_].topk(min(self.method.k, logits.shape[1]))
        texts = [
            self._texts(list(generated[i][-window:]), own)
            for i, own in zip(open_, candidates.tolist(), strict=True)
        ]
        cosine = self.match(self.images[[rows[i] for i in open_]], texts).to(values)
        now, context, alone = cosine.tensor_split([1, 1 + values.shape[1]], dim=1)
        base = [self._base(rows[i], x) for i, x in zip(open_, now[:, 0].tolist(), strict=True)]
        corrected = self.method.calibrated(values, context, alone, values.new_tensor(base))
        adjusted = logits.clone()
        adjusted[open_] = adjusted[open_].scatter(1, candidates, corrected)
        return adjusted

    def _texts(self, recent: list[int], candidates: Sequence[int]) -> list[str]:
        """The recent text, the same with each candidate, and each candidate alone."""
        text = self.decode(recent)
        alone = ["" if v in self.ends else self.decode([v]) for v in candidates]
        spoken = list(zip(candidates, alone, strict=True))
        context = [self.decode([*recent, v]) if own.strip() else text for v, own in spoken]
        return [text, *context, *(own if own.strip() else text for own in alone)]

    def _base(self, row: int, now: float) -> float:
        seen = self._seen.setdefault(row, deque(maxlen=self.method.history))
        seen.append(now)
        return now if len(seen) <= WARM_UP else sum(seen) / len(seen)
