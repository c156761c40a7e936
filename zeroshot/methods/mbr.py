"""MBR: many captions modelled on retrieved ones, and of these the one with the least Bayes risk.

Ours, of known parts. An image's nearest captions are *retrieved*. A language model continues their
beginnings and so *writes* new captions, guided by an n-gram model of the retrieved ones, a
nearest-neighbour language model (Khandelwal et al. 2020, arXiv:1911.00172). Of all written and
retrieved captions one is *chosen* by minimum Bayes risk (Kumar and Byrne 2004; for captions Devlin
et al. 2015, arXiv:1505.04467), together with its fit to the image and its fluency:

    w_j      = softmax over the nearest captions of sharpness * logit_scale * cos(text_j, x)     (1)
    write(v) = (1 - alpha) p(v) - alpha penalty(v) + beta q(v)                                   (2)
    score(c) = sum_j w_j CIDEr(c, text_j)
               + relevance * logit_scale * cos(c, x) + fluency * log p(c)                        (3)

`p` is the language model, `penalty` contrastive search's, `q` the n-gram model of the retrieved
captions by their weights `w` (`_continuations.py`); `log p(c)` is per token, the end included. A
caption that repeats a word, other than the pool's most frequent words, is chosen only if all do. A
caption that does not end within `max_tokens` is never chosen.

MaGiC encodes every candidate for every word; MBR encodes each finished caption once. So a choice
among dozens of captions costs less than one caption of MaGiC's, unless the text encoder can reuse
beginnings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.decoding import generate, mean_log_probability
from zeroshot.errors import UserError
from zeroshot.methods._caption_pool import Pool, RetrievedCaptions, retrieve, unique_captions
from zeroshot.methods._continuations import ContinuationGuide, Continuations
from zeroshot.methods._door import Method
from zeroshot.methods._protocols import Caption
from zeroshot.methods._risk import expected_cider, has_repeated_word
from zeroshot.models.base import DualEncoder, LanguageModel

WORDS = (1, 2, 3, 4)
"""Numbers of words in a beginning."""
COMMON = 0.1
"""A word in more than this share of the pool's captions may come twice."""


@dataclass(frozen=True)
class MBR(Method):
    """Writes many captions and chooses the one that agrees most with the retrieved captions."""

    neighbours: int = 50
    """retrieved captions"""
    sharpness: float = 0.5
    """how much more better fitting captions count, in units of the encoder's logit scale"""
    beginnings: int = 24
    """retrieved captions whose beginnings are continued, those of largest score first"""
    k: int = 45
    """candidates per word"""
    alpha: float = 0.1
    """weight of the degeneration penalty against the model's probability, in [0, 1]"""
    beta: float = 1.0
    """weight of the n-gram model of the retrieved captions"""
    max_tokens: int = 20
    """longest caption in language-model tokens, its beginning not counted"""
    relevance: float = 0.1
    """weight of the caption's fit to the image, per logit, against CIDEr"""
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
        """One caption per unit image embedding; the texts of all images are written together."""
        if prompts or trace:
            raise UserError("mbr chooses among many texts: it takes no prompt and leaves no trace")
        if language_model is None:
            raise UserError("mbr needs a language model")
        if self.beginnings < 0:
            raise UserError(f"beginnings={self.beginnings}: at least 0")
        scale = encoder.logit_scale
        pool = unique_captions(pool)
        neighbours = retrieve(images, pool, self.neighbours, self.sharpness * scale)  # (1)
        written = self._write(neighbours, scale, pool, language_model)
        embeddings = _encode(written, encoder)
        captions = []
        for image, retrieved, texts in zip(images.cpu(), neighbours, written, strict=True):
            new = {text: tokens for text, tokens in texts.items() if text not in retrieved.texts}
            candidates = [*new, *retrieved.texts]
            tokens = [*new.values(), *map(language_model.encode, retrieved.texts)]
            encoded = [embeddings[text] for text in new]
            new_cosine = torch.stack(encoded) @ image if new else image[:0]
            cosine = torch.cat([new_cosine, retrieved.cosine])
            fluency = torch.tensor(mean_log_probability(language_model, tokens))
            gain = expected_cider(candidates, retrieved.texts, retrieved.weights, pool.frequency)
            score = gain + self.relevance * scale * cosine + self.fluency * fluency  # (3)
            plain = [
                i
                for i, text in enumerate(candidates)
                if not has_repeated_word(text, pool.frequency, COMMON)
            ]
            allowed = plain or list(range(len(candidates)))
            best = allowed[int(score[allowed].argmax())]
            captions.append(Caption(candidates[best], float(cosine[best]), tuple(tokens[best])))
        return captions

    def _write(
        self,
        neighbours: Sequence[RetrievedCaptions],
        scale: float,
        pool: Pool,
        language_model: LanguageModel,
    ) -> list[dict[str, list[int]]]:
        """Finished texts for each image, with their tokens."""
        prefixes: list[list[int]] = []
        models: list[Continuations] = []
        owners: list[int] = []
        for image, retrieved in enumerate(neighbours):
            whole = [
                [language_model.start, *language_model.encode(text), language_model.end]
                for text in retrieved.texts
            ]
            beginnings = self._beginnings(retrieved, scale, pool, language_model)
            prefixes += beginnings
            models += [Continuations(whole, retrieved.weights.tolist())] * len(beginnings)
            owners += [image] * len(beginnings)
        room = language_model.context_length - max(map(len, prefixes), default=1)
        most = min(self.max_tokens, room)
        generated = generate(  # (2)
            language_model,
            prefixes,
            ContinuationGuide(models, prefixes, self.beta),
            k=self.k,
            alpha=self.alpha,
            max_tokens=most,
        )
        texts: list[dict[str, list[int]]] = [{} for _ in neighbours]
        for image, prefix, rest in zip(owners, prefixes, generated, strict=True):
            if len(rest) < most:
                tokens = [*prefix[1:], *rest]
                text = " ".join(language_model.decode(tokens).split())
                if text:
                    texts[image].setdefault(text, tokens)
        return texts

    def _beginnings(
        self, retrieved: RetrievedCaptions, scale: float, pool: Pool, language_model: LanguageModel
    ) -> list[list[int]]:
        """The start token alone, and with the first words of the best retrieved captions."""
        gain = expected_cider(retrieved.texts, retrieved.texts, retrieved.weights, pool.frequency)
        order = (gain + self.relevance / 2 * scale * retrieved.cosine).argsort(descending=True)
        beginnings: dict[tuple[int, ...], None] = {(language_model.start,): None}
        for j in order[: self.beginnings].tolist():
            words = retrieved.texts[j].split()
            for count in WORDS:
                tokens = language_model.encode(" ".join(words[:count]))
                beginnings[language_model.start, *tokens] = None
        return [list(tokens) for tokens in beginnings]


def _encode(
    texts: Sequence[dict[str, list[int]]], encoder: DualEncoder
) -> dict[str, Float[Tensor, " d"]]:
    """Embeddings of all texts, each encoded once."""
    unique = list(dict.fromkeys(text for own in texts for text in own))
    return dict(zip(unique, encoder.encode_texts(unique).cpu(), strict=True)) if unique else {}
