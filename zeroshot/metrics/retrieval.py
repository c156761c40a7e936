"""Retrieval of texts by images and of images by texts: cosines in, numbers out.

Retrieval as CLIP reports it: for an image with several captions, any of them counts. Winoground:
Thrush et al. 2022, arXiv:2204.03162. CLIPScore: Hessel et al. 2021, arXiv:2104.08718.

    CLIP-S(c, v)        = w max(cos(c, v), 0);  w = 2.5
    RefCLIP-S(c, R, v)  = harmonic mean of CLIP-S(c, v) and max(max_r cos(c, r), 0)

Departure: of tied scores the right one is ranked last; other code leaves that to the sort. So an
encoder that scores everything the same retrieves nothing, and one whose scores are NaN neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from zeroshot.metrics.classification import without_nan

WEIGHT = 2.5
PREFIX = "A photo depicts "
"""The text that the authors of CLIPScore put before captions and references."""

Ranks = Int[np.ndarray, " n"]


def text_ranks(
    scores: Float[np.ndarray, "n m"], image_of_text: Int[np.ndarray, " m"]
) -> Int[np.ndarray, " n"]:
    """The rank of each image's best caption among the captions of all images, from 1."""
    own = image_of_text == np.arange(len(scores))[:, None]
    scores = without_nan(scores, own)
    best = np.where(own, scores, -np.inf).max(1, keepdims=True)
    return np.asarray(1 + np.sum((scores >= best) & ~own, axis=1))


def image_ranks(
    scores: Float[np.ndarray, "n m"], image_of_text: Int[np.ndarray, " m"]
) -> Int[np.ndarray, " m"]:
    """The rank of each caption's image among all images, from 1."""
    scores = without_nan(scores, image_of_text == np.arange(len(scores))[:, None])
    own = scores[image_of_text, np.arange(scores.shape[1])]
    return np.asarray(np.sum(scores >= own, axis=0))


def recall_at(ranks: Ranks, k: int) -> float:
    """Share of the ranks that are `k` or better."""
    return float(np.mean(np.less_equal(ranks, k)))


def median_rank(ranks: Ranks) -> float:
    """The median of the ranks."""
    return float(np.median(ranks))


@dataclass(frozen=True)
class Winoground:
    """Whether the two images and the two captions of each example are told apart."""

    text: Bool[np.ndarray, " n"]
    """each image prefers its own caption"""
    image: Bool[np.ndarray, " n"]
    """each caption prefers its own image"""

    @property
    def group(self) -> Bool[np.ndarray, " n"]:
        """Both."""
        return np.asarray(self.text & self.image)


def winoground(scores: Float[np.ndarray, "n 2 2"]) -> Winoground:
    """Outcomes from `scores[:, image, caption]`; a tie is a failure. The figures are the means."""
    own = scores[:, [0, 1], [0, 1]]
    text = np.all(own > scores[:, [0, 1], [1, 0]], axis=1)
    image = np.all(own > scores[:, [1, 0], [0, 1]], axis=1)
    return Winoground(np.asarray(text), np.asarray(image))


def clip_score(
    images: Float[np.ndarray, "n d"], captions: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, " n"]:
    """CLIPScore of unit embeddings; the captions begin with `PREFIX`."""
    return np.asarray(WEIGHT * np.maximum((images * captions).sum(1), 0))


def ref_clip_score(
    images: Float[np.ndarray, "n d"],
    captions: Float[np.ndarray, "n d"],
    references: Sequence[Float[np.ndarray, "_ d"]],
) -> Float[np.ndarray, " n"]:
    """RefCLIPScore of unit embeddings; `references[i]` are those of image i."""
    nearest = np.array(
        [max(float((own @ row).max()), 0.0) for row, own in zip(captions, references, strict=True)]
    )
    score = clip_score(images, captions)
    whole = score + nearest
    return np.asarray(2 * score * nearest / np.where(whole > 0, whole, 1))
