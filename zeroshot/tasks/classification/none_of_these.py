"""Whether an image shows none of the labels, by a soft-max of labels and of words far from them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.embedding import (
    embed_texts,
    project_images,
    project_texts,
    text_encoder_of,
)
from zeroshot.inference.meter import Meter
from zeroshot.methods.neglabel import NegLabel
from zeroshot.models.base import DualEncoder
from zeroshot.prompts import common_words, load_labels

WORD = "a photo of a {}."
"""The prompt of a word."""


@dataclass(frozen=True)
class KnownLabels:
    """The labels' prompts among words of which some are far from all labels."""

    method: NegLabel
    encoder: DualEncoder
    texts: Float[Tensor, "c t d"]
    text_mask: Bool[Tensor, "c t"]
    words: str
    """Fingerprint of the words."""

    def probability(self, images: Float[Tensor, "n e"]) -> Float[Tensor, " n"]:
        """That an image shows one of the labels, from embeddings of the image encoder."""
        rows, scale = project_images(self.encoder, images), self.encoder.logit_scale
        scores = self.method.scores(rows, self.texts, self.text_mask, scale)
        return scores.sum(1).clamp_max(1)


def load_words(wanted: bool, given: str, multi: bool) -> tuple[str, ...]:
    """The words that `--words` names, or ours; none unless they are wanted.

    Raises:
        UserError: options that do not go together, or words that cannot be read.
    """
    if given and not wanted:
        raise UserError("--words are for --none-of-these: give it too")
    if wanted and multi:
        raise UserError(
            "--none-of-these is for one label per image; with --multi an image has no label if "
            "none reaches --threshold"
        )
    if not wanted:
        return ()
    return load_labels(given) if given else common_words()


def known_labels(
    labels: Sequence[str],
    texts: Float[Tensor, "c t d"],
    text_mask: Bool[Tensor, "c t"],
    words: Sequence[str],
    encoder: DualEncoder,
    cache: EmbeddingCache,
    meter: Meter,
) -> KnownLabels:
    """Encode the words that are no label; `texts` are the labels' prompts in the joint space.

    Raises:
        UserError: no word is left.
    """
    own = {label.casefold() for label in labels}
    others = [word for word in words if word.casefold() not in own]
    prompts = [WORD.format(word) for word in others]
    encoded = embed_texts(prompts, text_encoder_of(encoder), cache, meter)
    rows = project_texts(encoder, encoded) if others else torch.zeros(0, texts.shape[2])
    known = hashlib.sha256("\n".join(others).encode()).hexdigest()[:12]
    method = NegLabel().fit(rows)
    found = KnownLabels(method, encoder, texts, text_mask, known)
    method.negatives(texts.mean(1))
    return found
