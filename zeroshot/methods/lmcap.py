"""LMCap: a language model continues a prompt made of captions of similar images.

Ramos, Martins and Elliott 2023, "LMCap: Few-shot Multilingual Image Captioning by Retrieval
Augmented Language Model Prompting", arXiv:2305.19821; authors' code: github.com/RitaRamo/lmcap.

    prompt = example_1 ... example_n, I am an intelligent image captioning bot. Similar images have
             the following captions: c_1 ... c_k. A creative short caption I can generate to
             describe this image is:

`c_1 ... c_k` are the captions of the pool that are nearest to the image; the language model sees
nothing else of it. An example is the same prompt, answered. Labels, if there are any, come in the
words of Zeng et al. 2022 (Socratic Models, arXiv:2204.00598), who prompt with them alone.

Departures: the examples are captions of the pool in place of images, with the captions nearest to
them, since a pool has no images (the authors fixed training images by hand, and translated their
captions); decoding is greedy (theirs has three beams); the prompt begins with the model's start
token and ends without a space, which would split the first word otherwise. A model with a chat
template reads the prompt as a message with a line for each caption, and the answer's first line
counts; the authors' models had no such template, and captions end with the end token.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.decoding import generate
from zeroshot.errors import UserError
from zeroshot.methods._caption_pool import Pool, retrieve, unique_captions
from zeroshot.methods._door import Method
from zeroshot.methods._protocols import Caption
from zeroshot.models.base import ChatModel, DualEncoder, LanguageModel

BEGINNING = "I am an intelligent image captioning bot. Similar images have the following captions: "
LABELS = "I think there might be {} in this image. "
ENDING = "A creative short caption I can generate to describe this image{} is:"


def caption_prompt(
    retrieved: Sequence[str],
    examples: Sequence[tuple[Sequence[str], str]] = (),
    labels: Sequence[str] = (),
    *,
    language: str = "",
    end: str = "\n",
) -> str:
    """The prompt for an image with these `retrieved` captions and `labels`.

    Args:
        examples: retrieved captions of other images, and the right caption of each.
        language: the caption's, if it is not English: `spanish`.
        end: what ends each caption; the authors' is the text of the end token and a space.
    """
    ending = ENDING.format(f" in {language}" if language else "")

    def asked(captions: Sequence[str]) -> str:
        return BEGINNING + "".join(f"{caption}{end}" for caption in captions)

    answered = "".join(f"{asked(own)}{ending} {caption}{end}" for own, caption in examples)
    several = ", ".join(labels[:-1]) + " or " if labels[1:] else ""
    seen = LABELS.format(f"a {several}{labels[-1]}") if labels else ""
    return answered + asked(retrieved) + seen + ending


@dataclass(frozen=True)
class LMCap(Method):
    """Prompts the language model with retrieved captions, for models that follow a prompt."""

    neighbours: int = 4
    """retrieved captions in the prompt, and in each example"""
    examples: int = 3
    """answered prompts that come first"""
    labels: str = ""
    """names of things, separated by commas: the prompt has those that fit the image best"""
    things: int = 3
    """number of labels in the prompt"""
    language: str = ""
    """the caption's language, if it is not English: spanish"""
    max_tokens: int = 30
    """longest caption in language-model tokens"""

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
        """One caption per unit image embedding; prompts of one length are continued together."""
        if prompts or trace:
            raise UserError("lmcap makes the prompt itself: it takes none, and leaves no trace")
        if language_model is None:
            raise UserError("lmcap needs a language model")
        if self.examples < 0 or self.things < 1:
            raise UserError(f"examples={self.examples}, things={self.things}: at least 0 and 1")
        pool = unique_captions(pool)
        examples = self._examples(pool)
        prefixes = [
            self._tokens(own.texts, examples, labels, language_model)
            for own, labels in zip(
                retrieve(images, pool, self.neighbours, 0.0),
                self._labels(images, encoder),
                strict=True,
            )
        ]
        self._check(prefixes, language_model)
        stop = {language_model.end}
        stop |= {language_model.turn_end} if isinstance(language_model, ChatModel) else set()
        written = generate(language_model, prefixes, k=1, alpha=0.0, max_tokens=self.max_tokens)
        texts = [
            _first_line(language_model.decode(list(takewhile(lambda t: t not in stop, tokens))))
            for tokens in written
        ]
        cosine = torch.einsum("nd,nd->n", encoder.encode_texts(texts), images.cpu())
        return [
            Caption(text, score, tuple(tokens))
            for text, score, tokens in zip(texts, cosine.tolist(), written, strict=True)
        ]

    def _examples(self, pool: Pool) -> list[tuple[list[str], str]]:
        """Captions of the pool with those nearest to them; always the same, in any order of it."""
        by_hash = sorted(
            range(len(pool.texts)),
            key=lambda i: hashlib.sha256(pool.texts[i].encode("utf-8", "surrogatepass")).digest(),
        )[: self.examples]
        if not by_hash:
            return []
        near = retrieve(pool.embeddings[by_hash], pool, self.neighbours + 1, 0.0)
        return [
            (
                [text for text in own.texts if text != pool.texts[i]][: self.neighbours],
                pool.texts[i],
            )
            for i, own in zip(by_hash, near, strict=True)
        ]

    def _labels(self, images: Float[Tensor, "n d"], encoder: DualEncoder) -> list[list[str]]:
        """The labels that fit each image best, the best first."""
        names = [name for name in map(str.strip, self.labels.split(",")) if name]
        if not names:
            return [[] for _ in images]
        cosine = images.cpu() @ encoder.encode_texts(names).T
        best = cosine.topk(min(self.things, len(names))).indices
        return [[names[i] for i in own] for own in best.tolist()]

    def _tokens(
        self,
        retrieved: Sequence[str],
        examples: Sequence[tuple[Sequence[str], str]],
        labels: Sequence[str],
        language_model: LanguageModel,
    ) -> list[int]:
        """The prompt in tokens, by the model's chat template if it has one."""
        if isinstance(language_model, ChatModel):
            message = caption_prompt(retrieved, examples, labels, language=self.language)
            if (tokens := language_model.encode_chat(message)) is not None:
                return tokens
        end = f"{language_model.decode([language_model.end])} "
        text = caption_prompt(retrieved, examples, labels, language=self.language, end=end)
        return [language_model.start, *language_model.encode(text)]

    def _check(self, prefixes: Sequence[Sequence[int]], language_model: LanguageModel) -> None:
        longest = max(map(len, prefixes), default=0)
        if longest + self.max_tokens > language_model.context_length:
            raise UserError(
                f"lmcap's prompt of {longest} tokens and max_tokens={self.max_tokens} need "
                f"{longest + self.max_tokens} positions, and {language_model.name} has "
                f"{language_model.context_length}: take a model that reads longer prompts (--lm), "
                f"or fewer examples than {self.examples} and neighbours than {self.neighbours}"
            )


def _first_line(text: str) -> str:
    """The first line that is not empty, with single spaces."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return next(filter(None, lines), "")
