"""How good scores are: arrays in, numbers out.

Probabilities are `[n c]`, labels class numbers `[n]`; a row's confidence is its largest
probability. Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599 (ECE);
Nixon et al. 2019, "Measuring Calibration in Deep Learning", arXiv:1904.01685 (adaptive); Geifman
and El-Yaniv 2017, "Selective Classification for Deep Neural Networks", arXiv:1705.08500 (risk and
coverage).
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]


def accuracy(probabilities: Floats, labels: Ints) -> float:
    """Share of the rows whose best class is theirs."""
    return float((probabilities.argmax(1) == labels).mean())


def nll(probabilities: Floats, labels: Ints) -> float:
    """Mean negative log-likelihood in nats; a probability of zero counts as the smallest number."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, np.finfo(own.dtype).tiny)).mean())


def ece(probabilities: Floats, labels: Ints, bins: int = 15) -> float:
    """Expected calibration error over bins of equal width, `(a, b]` as in the authors' code."""
    confidence, correct = _judged(probabilities, labels)
    place = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1).astype(int)
    gap = np.bincount(place, correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def adaptive_ece(probabilities: Floats, labels: Ints, bins: int = 15) -> float:
    """As `ece`, over bins that hold as many rows each, as near as the count allows."""
    confidence, correct = _judged(probabilities, labels)
    gap = (correct - confidence)[np.argsort(confidence, kind="stable")]
    parts = np.array_split(gap, min(bins, len(gap)))
    return float(sum(abs(part.sum()) for part in parts) / len(gap))


def auroc(scores: Floats, positive: Bools) -> float:
    """Chance that a positive row scores above a negative one, ties counting half.

    NaN where one of the two kinds is missing.
    """
    count = int(positive.sum())
    if count in (0, len(positive)):
        return float("nan")
    _, place, times = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(times) - (times - 1) / 2  # mean rank of tied scores, from 1
    above = rank[place][positive].sum() - count * (count + 1) / 2
    return float(above / (count * (len(positive) - count)))


def risk_coverage(confidence: Floats, correct: Bools) -> tuple[Floats, Floats]:
    """Coverage and risk when only the most confident rows are answered, for 1 to n of them."""
    order = np.argsort(-confidence, kind="stable")
    answered = np.arange(1, len(order) + 1)
    return answered / len(order), np.cumsum(~correct[order]) / answered


def aurc(confidence: Floats, correct: Bools) -> float:
    """Mean risk over all coverages; lower is better."""
    return float(risk_coverage(confidence, correct)[1].mean())


def _judged(probabilities: Floats, labels: Ints) -> tuple[Floats, Floats]:
    """Confidence of each row, and one where it is right."""
    return probabilities.max(1), (probabilities.argmax(1) == labels).astype(np.float64)
