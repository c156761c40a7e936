"""How good scores are: arrays in, numbers out.

Probabilities are `[n c]`, labels class numbers `[n]`; a row's confidence is its largest
probability. Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599 (ECE);
Nixon et al. 2019, "Measuring Calibration in Deep Learning", arXiv:1904.01685 (adaptive); Geifman
and El-Yaniv 2017, "Selective Classification for Deep Neural Networks", arXiv:1705.08500 (risk and
coverage). Average precision is scikit-learn's: a step function, without interpolation.

A score that is NaN counts against its row: as the worst one where the class is right, as the best
one where it is wrong.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]


def correct_at(scores: Floats, labels: Ints, k: int = 1) -> Bools:
    """Whether each row's class is among its `k` best; of equal scores the first class is better."""
    classes = np.arange(scores.shape[1])
    scores = without_nan(scores, classes == labels[:, None])
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    better = (scores > own) | ((scores == own) & (classes < labels[:, None]))
    return np.asarray((better.sum(1) < k) & (own[:, 0] > -np.inf))


def without_nan(scores: Floats, right: Bools) -> Floats:
    """The scores, with the lowest one for NaN where the class is `right`, else the highest."""
    unknown = np.isnan(scores)
    return np.where(unknown, np.where(right, -np.inf, np.inf), scores) if unknown.any() else scores


def accuracy(probabilities: Floats, labels: Ints, k: int = 1) -> float:
    """Share of the rows whose class is among the `k` best."""
    return float(correct_at(probabilities, labels, k).mean())


def mean_per_class_recall(predicted: Ints, labels: Ints) -> float:
    """The mean recall of the classes that occur."""
    rows = np.bincount(labels)
    right = np.bincount(labels[predicted == labels], minlength=len(rows))
    return float((right[rows > 0] / rows[rows > 0]).mean())


def nll(probabilities: Floats, labels: Ints) -> float:
    """Mean negative log-likelihood in nats; a probability of zero counts as the smallest number."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, np.finfo(own.dtype).tiny)).mean())


def ece(probabilities: Floats, labels: Ints, bins: int = 15) -> float:
    """Expected calibration error over bins of equal width, `(a, b]` as in the authors' code."""
    return confidence_gap(*_outcomes(probabilities, labels), bins)


def adaptive_ece(probabilities: Floats, labels: Ints, bins: int = 15) -> float:
    """As `ece`, over bins with equal numbers of rows, as far as possible."""
    return adaptive_gap(*_outcomes(probabilities, labels), bins)


def confidence_gap(confidence: Floats, correct: Floats, bins: int = 15) -> float:
    """`ece` from the confidence of each row, and 1 or 0 for right or wrong."""
    index = np.clip(np.ceil(np.nan_to_num(confidence) * bins) - 1, 0, bins - 1).astype(int)
    gap = np.bincount(index, correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def adaptive_gap(confidence: Floats, correct: Floats, bins: int = 15) -> float:
    """`adaptive_ece` from the same arrays as `confidence_gap`."""
    gap = (correct - confidence)[np.argsort(confidence, kind="stable")]
    parts = np.array_split(gap, min(bins, len(gap)))
    return float(sum(abs(part.sum()) for part in parts) / len(gap))


def auroc(scores: Floats, positive: Bools) -> float:
    """The chance that a positive row scores above a negative one; ties count half.

    NaN if there are no positive or no negative rows.
    """
    count = int(positive.sum())
    if count in (0, len(positive)):
        return float("nan")
    scores = without_nan(scores, positive)
    _, index, times = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(times) - (times - 1) / 2  # mean rank of tied scores, from 1
    above = rank[index][positive].sum() - count * (count + 1) / 2
    return float(above / (count * (len(positive) - count)))


def average_precision(scores: Floats, positive: Bools) -> float:
    """Mean precision at the positive rows, best scores first; tied rows share one threshold.

    NaN without a positive row.
    """
    if not positive.any():
        return float("nan")
    scores = without_nan(scores, positive)
    order = np.argsort(-scores, kind="stable")
    last_of_ties = ends_of_ties(scores[order])
    hits = np.cumsum(positive[order])[last_of_ties]
    precision = hits / (np.flatnonzero(last_of_ties) + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / hits[-1])


def ends_of_ties(ordered: Floats) -> Bools:
    """Whether each of these ordered scores is the last of its value, infinite ones included."""
    return np.append(ordered[1:] != ordered[:-1], True)


def mean_average_precision(scores: Floats, positive: Bools) -> float:
    """The mean of the classes' average precisions; rows may have several labels, `[n c]` both.

    Classes without a positive row are left out; NaN if no class is left.
    """
    each = [
        average_precision(own, truth)
        for own, truth in zip(scores.T, positive.T, strict=True)
        if truth.any()
    ]
    return float(np.mean(each)) if each else float("nan")


def risk_coverage(confidence: Floats, correct: Bools) -> tuple[Floats, Floats]:
    """Coverage and risk when only the most confident rows are answered, for 1 to n of them."""
    order = np.argsort(-confidence, kind="stable")
    answered = np.arange(1, len(order) + 1)
    return answered / len(order), np.cumsum(~correct[order]) / answered


def aurc(confidence: Floats, correct: Bools) -> float:
    """Mean risk over all coverages; lower is better."""
    return float(risk_coverage(confidence, correct)[1].mean())


def _outcomes(probabilities: Floats, labels: Ints) -> tuple[Floats, Floats]:
    """The confidence of each row, and 1 if it is right, else 0."""
    return probabilities.max(1), correct_at(probabilities, labels).astype(np.float64)
