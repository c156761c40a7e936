"""Captions and their references in, numbers out: BLEU, ROUGE-L, CIDEr; distinct-n and rep-n.

The first three equal pycocoevalcap's, which needs Java. BLEU: Papineni et al. 2002, "BLEU: a Method
for Automatic Evaluation of Machine Translation". ROUGE-L: Lin 2004, "ROUGE: A Package for Automatic
Evaluation of Summaries". CIDEr: Vedantam et al. 2015, arXiv:1411.5726. distinct-n: Li et al. 2016,
arXiv:1510.03055. rep-n: Welleck et al. 2020, arXiv:1908.04319.

    p_n    = sum of clipped n-gram matches / sum of n-grams, of the whole corpus
    BLEU-N = min(1, exp(1 - r / c)) (p_1 ... p_N)^(1/N);  r: closest reference lengths
    ROUGE-L = (1 + b^2) P R / (R + b^2 P);  b = 1.2, P and R the best of the references
    CIDEr-D = 10/4 sum_n mean_j exp(-(l_c - l_j)^2 / 2 6^2) min(g(c), g(j)) . g(j) / |g(c)| |g(j)|
    CIDEr plain = 10/4 sum_n mean_j g(c) . g(j) / |g(c)| |g(j)|

`g` holds the tf-idf weights of the n-grams, `l` a length. pycocoevalcap's class `Cider`, and every
table of captioners with a column "CIDEr", compute CIDEr-D; so does `cider` here by default.

Departures: a caption without words scores 0 even against a reference without words, where
pycocoevalcap's ROUGE-L gives 1; CIDEr for a single image, whose idf is 0 everywhere, is refused;
a zero vector has similarity 0 with everything, not NaN.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from zeroshot.errors import UserError
from zeroshot.metrics.ptb_tokenizer import tokenize

Words = Sequence[str]
Gram = tuple[str, ...]
ORDERS = (1, 2, 3, 4)

# --- what every metric takes --------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """A metric of the corpus, and of each caption."""

    corpus: float
    each: Float[np.ndarray, " n"]


def _tokenized(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[Words], list[list[Words]]]:
    """Words of each caption and of each of its references.

    Raises:
        UserError: nothing to score, a caption without references, or lists that do not fit.
    """
    if isinstance(captions, str) or any(isinstance(texts, str) for texts in references):
        raise UserError(
            "a text where a list is expected: give a list of captions, and for each "
            "caption a list of references"
        )
    if len(captions) != len(references):
        raise UserError(f"{len(captions)} captions for {len(references)} lists of references")
    if not captions:
        raise UserError("no captions to score")
    bare = [i for i, texts in enumerate(references) if not texts]
    if bare:
        raise UserError(
            f"no references for caption {bare[0]} ({captions[bare[0]]!r}) and "
            f"{len(bare) - 1} others; give each at least one, or leave it out"
        )
    words = [tokenize(text) for text in captions]
    return list(words), [[tokenize(text) for text in texts] for texts in references]


def _grams(words: Words, n: int) -> list[Gram]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


# --- BLEU ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bleu:
    """BLEU-1 to BLEU-4, and the counts they are made of."""

    corpus: tuple[float, ...]
    each: Float[np.ndarray, "n 4"]
    length: int
    """words of all captions"""
    reference_length: int
    """words of each caption's reference of the closest length, the shorter of two as close"""
    matches: tuple[int, ...]
    """n-grams of the captions that a reference has, n = 1 to 4"""
    totals: tuple[int, ...]
    """n-grams of the captions"""
    counts: Int[np.ndarray, "n 10"]
    """of each caption: matches and totals for n = 1 to 4, its words, those of the reference"""

    def of(self, rows: Int[np.ndarray, " m"]) -> tuple[float, ...]:
        """BLEU-1 to 4 of a corpus of the captions with these indices, which may repeat."""
        whole = self.counts[rows].sum(0).tolist()
        return _Counts(tuple(whole[:4]), tuple(whole[4:8]), *whole[8:]).scores()


@dataclass(frozen=True)
class _Counts:
    """The counts that BLEU adds up over captions."""

    matches: tuple[int, ...]
    totals: tuple[int, ...]
    length: int
    closest: int

    @classmethod
    def of(cls, words: Words, texts: Sequence[Words]) -> "_Counts":
        matches, totals = [], []
        for n in ORDERS:
            most: Counter[Gram] = Counter()
            for text in texts:
                most |= Counter(_grams(text, n))
            own = Counter(_grams(words, n))
            matches.append((own & most).total())
            totals.append(own.total())
        closest = min((abs(len(text) - len(words)), len(text)) for text in texts)[1]
        return cls(tuple(matches), tuple(totals), len(words), closest)

    @classmethod
    def sum(cls, counts: Sequence["_Counts"]) -> "_Counts":
        return cls(
            tuple(map(sum, zip(*(c.matches for c in counts), strict=True))),
            tuple(map(sum, zip(*(c.totals for c in counts), strict=True))),
            sum(c.length for c in counts),
            sum(c.closest for c in counts),
        )

    def scores(self) -> tuple[float, ...]:
        """BLEU-1 to 4, smoothed as by pycocoevalcap: 1e-15 matches and 1e-9 n-grams more."""
        ratio = (self.length + 1e-15) / (self.closest + 1e-9)
        brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
        precisions = [
            (m + 1e-15) / (t + 1e-9) for m, t in zip(self.matches, self.totals, strict=True)
        ]
        return tuple(brevity * math.prod(precisions[:n]) ** (1 / n) for n in ORDERS)


def _bleu(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> Bleu:
    counts = [_Counts.of(*pair) for pair in zip(captions, references, strict=True)]
    whole = _Counts.sum(counts)
    each = np.array([c.scores() for c in counts])
    table = np.array([(*c.matches, *c.totals, c.length, c.closest) for c in counts])
    return Bleu(
        whole.scores(), each, whole.length, whole.closest, whole.matches, whole.totals, table
    )


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Bleu:
    """BLEU-1 to 4, from 0 to 1. The corpus's is of its counts, not the mean of its captions'."""
    return _bleu(*_tokenized(captions, references))


# --- ROUGE-L ------------------------------------------------------------------------------------


def _common(a: Words, b: Words) -> int:
    """Length of the longest common subsequence, a row of the table as the bits of one number."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    rows = full = (1 << len(a)) - 1  # a bit is 0 where the length grows (Hyyrö 2004)
    for word in b:
        here = rows & places.get(word, 0)
        rows = (rows + here | rows - here) & full
    return len(a) - rows.bit_count()


def _rouge_l(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> Score:
    each = np.zeros(len(captions))
    for i, (words, texts) in enumerate(zip(captions, references, strict=True)):
        common = [_common(words, text) for text in texts]
        if max(common) > 0:
            precision = max(common) / len(words)
            recall = max(c / len(text) for c, text in zip(common, texts, strict=True) if c)
            each[i] = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    return Score(float(each.mean()), each)


def rouge_l(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """ROUGE-L, from 0 to 1; the corpus's is the mean of its captions'."""
    return _rouge_l(*_tokenized(captions, references))


# --- CIDEr --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DocumentFrequency:
    """For each n-gram, the number of images with a reference that has it."""

    counts: Mapping[Gram, int]
    images: int
    """The number of all images."""


def frequency_of_words(references: Sequence[Sequence[Words]]) -> DocumentFrequency:
    """As `document_frequency`, of texts that are tokenized."""
    counts: Counter[Gram] = Counter()
    for texts in references:
        counts.update({gram for text in texts for n in ORDERS for gram in _grams(text, n)})
    return DocumentFrequency(counts, len(references))


def document_frequency(references: Sequence[Sequence[str]]) -> DocumentFrequency:
    """The document frequency of a corpus, for CIDEr of a few images or of one."""
    return frequency_of_words([[tokenize(text) for text in texts] for texts in references])


@dataclass(frozen=True)
class _Weighted:
    """tf-idf of a text's n-grams and its norm, for n = 1 to 4, and how many words it has."""

    weights: list[dict[Gram, float]]
    norms: list[float]
    words: int

    @classmethod
    def of(cls, words: Words, frequency: DocumentFrequency) -> "_Weighted":
        whole = math.log(frequency.images)
        weights = [
            {
                gram: count * (whole - math.log(max(1, frequency.counts.get(gram, 0))))
                for gram, count in Counter(_grams(words, n)).items()
            }
            for n in ORDERS
        ]
        norms = [math.sqrt(sum(w * w for w in of_n.values())) for of_n in weights]
        return cls(weights, norms, len(words))


def _similarity(caption: _Weighted, reference: _Weighted) -> tuple[float, float]:
    """Sums over n: clipped and with the penalty on lengths (CIDEr-D), and plain cosines (CIDEr)."""
    clipped = plain = 0.0
    for c, r, norms in zip(
        caption.weights,
        reference.weights,
        map(math.prod, zip(caption.norms, reference.norms, strict=True)),
        strict=True,
    ):
        if norms > 0:
            shared = c.keys() & r.keys()
            clipped += sum(min(c[gram], r[gram]) * r[gram] for gram in shared) / norms
            plain += sum(c[gram] * r[gram] for gram in shared) / norms
    # pycocoevalcap counts pairs of words: a text of one word is as long as one of none
    apart = max(caption.words - 1, 0) - max(reference.words - 1, 0)
    return clipped * math.exp(-(apart**2) / (2 * 6.0**2)), plain


def _ciders(
    captions: Sequence[Words],
    references: Sequence[Sequence[Words]],
    frequency: DocumentFrequency | None,
) -> tuple[Score, Score]:
    frequency = frequency or frequency_of_words(references)
    if frequency.images < 2:
        raise UserError(
            "CIDEr weighs words by how few images they belong to, and there is one image; "
            "score more at once, or give frequency=document_frequency(references of a corpus)"
        )
    each = np.zeros((len(captions), 2))
    for i, (words, texts) in enumerate(zip(captions, references, strict=True)):
        caption = _Weighted.of(words, frequency)
        pairs = [_similarity(caption, _Weighted.of(text, frequency)) for text in texts]
        each[i] = 10 / len(ORDERS) * np.mean(pairs, axis=0)
    clipped, plain = (Score(float(column.mean()), column) for column in each.T)
    return clipped, plain


def cider(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    plain: bool = False,
    frequency: DocumentFrequency | None = None,
) -> Score:
    """CIDEr, from 0 to 10; the corpus's is the mean of its captions'.

    Args:
        captions: one for each image.
        references: texts for each image.
        plain: without clipping and without the penalty on lengths, as the paper first defines it;
            CIDEr-D otherwise, which pycocoevalcap and the tables of papers call CIDEr.
        frequency: of the n-grams; that of `references` without one.

    Raises:
        UserError: captions and references that do not fit, a single image without `frequency`.
    """
    return _ciders(*_tokenized(captions, references), frequency)[plain]


# --- all of them --------------------------------------------------------------------------------


@dataclass(frozen=True)
class CaptionScores:
    """BLEU, ROUGE-L and CIDEr of the same captions."""

    bleu: Bleu
    rouge_l: Score
    cider: Score
    """CIDEr-D, which is what tables call CIDEr"""
    cider_plain: Score

    def percent(self) -> dict[str, float]:
        """The columns of the usual table, times 100."""
        return {
            **{f"B@{n}": 100 * score for n, score in zip(ORDERS, self.bleu.corpus, strict=True)},
            "ROUGE-L": 100 * self.rouge_l.corpus,
            "CIDEr": 100 * self.cider.corpus,
        }


def caption_scores(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    frequency: DocumentFrequency | None = None,
) -> CaptionScores:
    """Every metric that compares captions with references, in one pass over the texts.

    >>> caption_scores(["a dog runs", "two bikes"], [["the dog runs"], ["bikes"]]).percent()
    """
    words, texts = _tokenized(captions, references)
    return CaptionScores(
        _bleu(words, texts), _rouge_l(words, texts), *_ciders(words, texts, frequency)
    )


# --- stories ------------------------------------------------------------------------------------


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams of all texts together, as a share of all n-grams: higher is more varied."""
    grams = [gram for text in texts for gram in _grams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(texts: Sequence[str], n: int) -> Int[np.ndarray, "t 2"]:
    """Different and all n-grams of each text; words are what white space separates.

    Raises:
        UserError: no texts.
    """
    if not texts:
        raise UserError("no texts to score")
    return np.array([(len(set(g)), len(g)) for g in (_grams(t.split(), n) for t in texts)])


def rep_n(texts: Sequence[str], n: int) -> Score:
    """The share of n-grams that are repetitions within their text; lower is better.

    The corpus's score uses the summed counts, as the authors of SimCTG and MaGiC do; their code
    leaves out the last n-gram of each text.
    """
    counts = repetition(texts, n)
    unique, total = counts.sum(0)
    each = 1 - counts[:, 0] / np.maximum(counts[:, 1], 1)
    each[counts[:, 1] == 0] = 0
    return Score(float(1 - unique / total) if total else 0.0, each)


def diversity(texts: Sequence[str]) -> float:
    """The product of `1 - rep_n` for n = 2, 3, 4."""
    return math.prod(1 - rep_n(texts, n).corpus for n in (2, 3, 4))
