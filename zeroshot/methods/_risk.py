"""Minimum Bayes risk: how well a caption would agree with what people may say of a picture.

Captions retrieved for a picture, each weighed by how well it fits, stand for what people would say,
and a caption is worth its expected CIDEr against them (Kumar and Byrne 2004, "Minimum Bayes-Risk
Decoding"; for captions Devlin et al. 2015, arXiv:1505.04467).
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods import Pool
from zeroshot.metrics.captioning import DocumentFrequency
from zeroshot.metrics.ptb_tokenizer import tokenize
from zeroshot.ops import topk_stream

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0
"""CIDEr-D's tolerance of lengths that differ, in words."""

Words = Sequence[str]


def distinct(pool: Pool | None) -> Pool:
    """The pool, each caption once; UserError without one."""
    if pool is None or not pool.texts:
        raise UserError("a pool of captions to learn from is needed")
    return pool.distinct


def retrieve(
    images: Float[Tensor, "n d"], pool: Pool, neighbours: int, sharpness: float
) -> tuple[Float[Tensor, "n k"], list[list[int]], Float[Tensor, "n k"]]:
    """Cosines, places and weights of the captions of `pool` that fit each picture best.

    Weights are the softmax of `sharpness` times the cosines and sum to 1.

    Raises:
        UserError: options out of range.
    """
    if neighbours < 1 or sharpness < 0:
        raise UserError(f"neighbours={neighbours}, sharpness={sharpness}: at least 1 and 0")
    cosine, index = topk_stream(images, pool.embeddings, neighbours)
    return cosine, index.tolist(), (sharpness * cosine).softmax(1)


def expected_cider(
    captions: Sequence[str],
    references: Sequence[str],
    weights: Float[Tensor, " r"],
    frequency: DocumentFrequency,
) -> Float[Tensor, " c"]:
    """CIDEr of each caption, from 0 to 10, expected under the weighted references.

    CIDEr-D without its clipping of counts. A reference with a caption's very text does not count
    for it: nothing speaks for itself.
    """
    said, heard = [[tokenize(text) for text in texts] for texts in (captions, references)]
    vectors = _vectors([*said, *heard], frequency)
    similarity = (vectors[: len(said)] @ vectors[len(said) :].T).toarray()
    apart = np.subtract.outer([len(w) for w in said], [len(w) for w in heard])
    similarity *= 10 / len(ORDERS) * np.exp(-(apart**2) / (2 * SIGMA**2))
    places: dict[str, list[int]] = {}
    for place, text in enumerate(references):
        places.setdefault(text, []).append(place)
    for row, text in enumerate(captions):
        similarity[row, places.get(text, [])] = 0
    return torch.from_numpy(similarity).to(weights.dtype) @ weights.cpu()


def _vectors(texts: Sequence[Words], frequency: DocumentFrequency) -> sparse.csr_matrix:
    """tf-idf of the n-grams, at unit length for each n."""
    whole = math.log(max(frequency.pictures, 2))
    columns: dict[tuple[str, ...], int] = {}
    rows, places, values = [], [], []
    for row, words in enumerate(texts):
        for n in ORDERS:
            counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
            weighted = {
                gram: count * (whole - math.log(max(1, frequency.counts.get(gram, 0))))
                for gram, count in counts.items()
            }
            norm = math.hypot(*weighted.values())
            for gram, weight in weighted.items():
                if weight > 0:
                    rows.append(row)
                    places.append(columns.setdefault(gram, len(columns)))
                    values.append(weight / norm)
    return sparse.csr_matrix((values, (rows, places)), shape=(len(texts), max(1, len(columns))))


def repeats(text: str, frequency: DocumentFrequency, common: float) -> bool:
    """Whether a word comes twice that no more than a share `common` of the pool's captions has."""
    counts = Counter(tokenize(text))
    most = common * frequency.pictures
    return any(n > 1 and frequency.counts.get((word,), 0) <= most for word, n in counts.items())
