"""Minimum Bayes risk: how well a caption would agree with what people may say about an image.

Captions retrieved for an image, weighted by how well they fit, stand for what people would say. A
caption's gain is its expected CIDEr against them (Kumar and Byrne 2004, "Minimum Bayes-Risk
Decoding"; for captions Devlin et al. 2015, arXiv:1505.04467).
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.metrics.captioning import DocumentFrequency
from zeroshot.metrics.ptb_tokenizer import tokenize

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0
"""CIDEr-D's tolerance of lengths that differ, in words."""

Words = Sequence[str]


def expected_cider(
    captions: Sequence[str],
    references: Sequence[str],
    weights: Float[Tensor, " r"],
    frequency: DocumentFrequency,
) -> Float[Tensor, " c"]:
    """CIDEr of each caption, from 0 to 10, expected under the weighted references.

    CIDEr-D without its clipping of counts. A reference that equals a caption does not count for
    it: no caption is evidence for itself.
    """
    words = [tokenize(text) for text in captions]
    reference_words = [tokenize(text) for text in references]
    vectors = _tf_idf([*words, *reference_words], frequency)
    similarity = (vectors[: len(words)] @ vectors[len(words) :].T).toarray()
    difference = np.subtract.outer([len(w) for w in words], [len(w) for w in reference_words])
    similarity *= 10 / len(ORDERS) * np.exp(-(difference**2) / (2 * SIGMA**2))
    columns: dict[str, list[int]] = {}
    for column, text in enumerate(references):
        columns.setdefault(text, []).append(column)
    for row, text in enumerate(captions):
        similarity[row, columns.get(text, [])] = 0
    return torch.from_numpy(similarity).to(weights.dtype) @ weights.cpu()


def _tf_idf(texts: Sequence[Words], frequency: DocumentFrequency) -> Any:
    """tf-idf of the n-grams, at unit length for each n: a sparse matrix of scipy."""
    from scipy import sparse

    log_documents = math.log(max(frequency.images, 2))
    numbers: dict[tuple[str, ...], int] = {}
    rows, columns, values = [], [], []
    for row, words in enumerate(texts):
        for n in ORDERS:
            counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
            weighted = {
                gram: count * (log_documents - math.log(max(1, frequency.counts.get(gram, 0))))
                for gram, count in counts.items()
            }
            norm = math.hypot(*weighted.values())
            for gram, weight in weighted.items():
                if weight > 0:
                    rows.append(row)
                    columns.append(numbers.setdefault(gram, len(numbers)))
                    values.append(weight / norm)
    return sparse.csr_matrix((values, (rows, columns)), shape=(len(texts), max(1, len(numbers))))


def has_repeated_word(text: str, frequency: DocumentFrequency, common: float) -> bool:
    """Whether a word comes twice; words in more than the share `common` of captions may."""
    counts = Counter(tokenize(text))
    most = common * frequency.images
    return any(n > 1 and frequency.counts.get((word,), 0) <= most for word, n in counts.items())
