"""Many captions written after what retrieval found, and the one with the least Bayes risk.

Ours, of known parts. A picture's nearest captions are *retrieved*. A language model *writes* on
from how they begin, guided by an n-gram model of them, a nearest-neighbour language model
(Khandelwal et al. 2020, arXiv:1911.00172). Of all that was written or retrieved the caption is
*chosen* that people would expect, by minimum Bayes risk (Kumar and Byrne 2004; for captions Devlin
et al. 2015, arXiv:1505.04467), with the encoder and the language model as judges beside it:

    w_j      = softmax over the nearest captions of sharpness * logit_scale * cos(text_j, x)
    write(v) = (1 - alpha) p(v) - alpha penalty(v) + beta q(v)
    score(c) = sum_j w_j CIDEr(c, text_j) + relevance * logit_scale * cos(c, x) + fluency * log p(c)

`p` is the language model, `penalty` contrastive search's, `q` the n-gram model of the retrieved
captions by their weights `w` (`_continuations.py`); `log p(c)` is per token, the end included. A
caption that repeats a word, other than the pool's commonest, is taken only where all do, and one
that does not end within `max_tokens` not at all.

MaGiC asks the encoder about every candidate for every word; here it is asked once about each
finished caption, so that a choice among dozens costs less than one caption of MaGiC's where the
text encoder cannot reuse beginnings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.decoding import generate, mean_log_probability
from zeroshot.errors import UserError
from zeroshot.methods import Caption, Pool
from zeroshot.methods._continuations import ContinuationGuide, Continuations
from zeroshot.methods._risk import distinct, expected_cider, repeats, retrieve
from zeroshot.models.base import DualEncoder, LanguageModel

WORDS = (1, 2, 3, 4)
"""Words that a beginning has."""
COMMON = 0.1
"""A word that more of the pool's captions have than this share may come twice."""


@dataclass(frozen=True)
class MBR:
    """Captions by writing many and choosing the one that the picture's neighbours expect."""

    neighbours: int = 50
    """retrieved captions"""
    sharpness: float = 0.5
    """how much more the better fitting ones count, in units of the encoder's logit scale"""
    beginnings: int = 24
    """retrieved captions, the most expected first, of which the beginnings are written on from"""
    k: int = 45
    """candidates per word"""
    alpha: float = 0.1
    """weight of the degeneration penalty against the model's probability, in [0, 1]"""
    beta: float = 1.0
    """weight of what retrieved captions go on with"""
    max_tokens: int = 20
    """longest caption in language-model tokens, its beginning not counted"""
    relevance: float = 0.1
    """weight of the caption's fit to the picture, per logit, against CIDEr"""
    fluency: float = 0.7
    """weight of the language model's mean log-probability against CIDEr"""

    needs: ClassVar[frozenset[str]] = frozenset({"language_model", "pool"})
    takes: ClassVar[frozenset[str]] = frozenset()

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
        """One caption per unit image row; the texts of all rows are written together."""
        if prompts or trace:
            raise UserError("mbr chooses among many texts: it takes no prompt and leaves no trace")
        if language_model is None:
            raise UserError("mbr needs a language model")
        if self.beginnings < 0:
            raise UserError(f"beginnings={self.beginnings}: at least 0")
        scale = encoder.logit_scale
        pool = distinct(pool)
        found = retrieve(images, pool, self.neighbours, self.sharpness * scale)
        near = [
            _Near([pool.texts[j] for j in index], weights.cpu(), cosine.cpu())
            for cosine, index, weights in zip(*found, strict=True)
        ]
        written = self._write(near, scale, pool, language_model)
        rows = _encoded(written, encoder)
        captions = []
        for image, own, texts in zip(images.cpu(), near, written, strict=True):
            fresh = {text: tokens for text, tokens in texts.items() if text not in own.texts}
            every = [*fresh, *own.texts]
            new = torch.stack([rows[text] for text in fresh]) @ image if fresh else image[:0]
            cosine = torch.cat([new, own.cosine])
            tokens = [*fresh.values(), *map(language_model.encode, own.texts)]
            fluency = torch.tensor(mean_log_probability(language_model, tokens))
            gain = expected_cider(every, own.texts, own.weights, pool.frequency)
            score = gain + self.relevance * scale * cosine + self.fluency * fluency
            again = torch.tensor([repeats(text, pool.frequency, COMMON) for text in every])
            best = int((score - 1e6 * again).argmax())
            captions.append(Caption(every[best], float(cosine[best]), tuple(tokens[best])))
        return captions

    def _write(
        self, near: Sequence["_Near"], scale: float, pool: Pool, language_model: LanguageModel
    ) -> list[dict[str, list[int]]]:
        """Finished texts for each picture, with their tokens."""
        prefixes: list[list[int]] = []
        models: list[Continuations] = []
        pictures: list[int] = []
        for i, own in enumerate(near):
            whole = [
                [language_model.start, *language_model.encode(text), language_model.end]
                for text in own.texts
            ]
            model = Continuations(whole, own.weights.tolist())
            begun = self._beginnings(own, scale, pool, language_model)
            prefixes += begun
            models += [model] * len(begun)
            pictures += [i] * len(begun)
        room = language_model.context_length - max(map(len, prefixes), default=1)
        most = min(self.max_tokens, room)
        generated = generate(
            language_model,
            prefixes,
            ContinuationGuide(models, prefixes, self.beta),
            k=self.k,
            alpha=self.alpha,
            max_tokens=most,
        )
        texts: list[dict[str, list[int]]] = [{} for _ in near]
        for picture, prefix, rest in zip(pictures, prefixes, generated, strict=True):
            if len(rest) < most:
                tokens = [*prefix[1:], *rest]
                text = " ".join(language_model.decode(tokens).split())
                if text:
                    texts[picture].setdefault(text, tokens)
        return texts

    def _beginnings(
        self, own: "_Near", scale: float, pool: Pool, language_model: LanguageModel
    ) -> list[list[int]]:
        """The start token alone, and with the first words of the most expected captions."""
        gain = expected_cider(own.texts, own.texts, own.weights, pool.frequency)
        order = (gain + self.relevance / 2 * scale * own.cosine).argsort(descending=True)
        begun: dict[tuple[int, ...], None] = {(language_model.start,): None}
        for place in order[: self.beginnings].tolist():
            words = own.texts[place].split()
            for count in WORDS:
                tokens = language_model.encode(" ".join(words[:count]))
                begun[language_model.start, *tokens] = None
        return [list(tokens) for tokens in begun]


@dataclass(frozen=True)
class _Near:
    """The captions retrieved for one picture."""

    texts: list[str]
    weights: Float[Tensor, " k"]
    cosine: Float[Tensor, " k"]


def _encoded(
    texts: Sequence[dict[str, list[int]]], encoder: DualEncoder
) -> dict[str, Float[Tensor, " d"]]:
    """Rows of all texts, each encoded once."""
    every = list(dict.fromkeys(text for own in texts for text in own))
    return dict(zip(every, encoder.encode_texts(every).cpu(), strict=True)) if every else {}
