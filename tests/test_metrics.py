"""Metrics against loops and cases by hand."""

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn

from zeroshot import metrics

RNG = np.random.default_rng(0)


def problem(rows=200, classes=5, scale=2.0):
    logits = scale * RNG.normal(size=(rows, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([RNG.choice(classes, p=p) for p in probabilities])
    return probabilities, labels


def test_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]])
    labels = np.array([0, 1, 1, 0])
    assert metrics.accuracy(probabilities, labels) == 0.75
    expected = -(math.log(0.9) + math.log(0.4) + math.log(0.8) + math.log(0.5)) / 4
    assert metrics.nll(probabilities, labels) == pytest.approx(expected)
    # two bins: (0, 0.5] holds 0.5, right; (0.5, 1] holds 0.9 and 0.8, right, and 0.6, wrong
    assert metrics.ece(probabilities, labels, bins=2) == pytest.approx((0.5 + abs(2 - 2.3)) / 4)
    # two bins of two rows: 0.5 right and 0.6 wrong, 0.8 and 0.9 right
    assert metrics.adaptive_ece(probabilities, labels, bins=2) == pytest.approx((0.1 + 0.3) / 4)
    coverage, risk = metrics.risk_coverage(probabilities.max(1), np.array([1, 0, 1, 1]) == 1)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == [0.0, 0.0, pytest.approx(1 / 3), 0.25]
    assert metrics.aurc(probabilities.max(1), np.array([1, 0, 1, 1]) == 1) == pytest.approx(7 / 48)


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_errors_equal_loops(bins):
    probabilities, labels = problem()
    n = len(labels)
    confidence = [max(p) for p in probabilities]
    correct = [int(p.argmax() == y) for p, y in zip(probabilities, labels, strict=True)]
    total = 0.0
    for b in range(bins):
        inside = [i for i in range(n) if b / bins < confidence[i] <= (b + 1) / bins]
        if inside:
            gap = np.mean([correct[i] for i in inside]) - np.mean([confidence[i] for i in inside])
            total += len(inside) / n * abs(gap)
    assert metrics.ece(probabilities, labels, bins) == pytest.approx(total)
    order = sorted(range(n), key=lambda i: confidence[i])
    total, start = 0.0, 0
    for b in range(bins):
        size = n // bins + (b < n % bins)
        part = order[start : start + size]
        total += abs(sum(correct[i] - confidence[i] for i in part)) / n
        start += size
    assert metrics.adaptive_ece(probabilities, labels, bins) == pytest.approx(total)


def test_auroc_equals_pairs():
    scores = RNG.integers(0, 6, 60).astype(float)
    positive = RNG.random(60) < 0.4
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a in scores[positive]
        for b in scores[~positive]
    ]
    assert metrics.auroc(scores, positive) == pytest.approx(np.mean(wins))
    assert math.isnan(metrics.auroc(scores, np.ones(60, dtype=bool)))


def test_honest_probabilities_have_a_small_error_and_flat_ones_a_large_one():
    probabilities, labels = problem(5000)
    sharp = probabilities**3 / (probabilities**3).sum(1, keepdims=True)
    for error in (metrics.ece, metrics.adaptive_ece):
        assert error(probabilities, labels) < 0.03
        assert error(sharp, labels) > 0.1


def test_more_by_hand():
    scores = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.4, 0.4, 0.2], [0.2, 0.4, 0.4]])
    labels = np.array([1, 2, 1, 2])
    # a tie goes to the class that comes first, as argmax has it
    assert metrics.correct_at(scores, labels).tolist() == [False, True, False, False]
    assert metrics.correct_at(scores, labels, 2).tolist() == [True] * 4
    assert metrics.accuracy(scores, labels, 2) == 1
    # class 0 does not occur; 1 of 3 rows of class 2, and the only one of class 1
    predicted, truth = np.array([2, 0, 1, 1]), np.array([2, 2, 2, 1])
    assert metrics.mean_per_class_recall(predicted, truth) == pytest.approx((1 / 3 + 1) / 2)
    # ranks 1 and 3 are positive: precision 1 and 2/3
    found = metrics.average_precision(np.array([0.9, 0.5, 0.7]), np.array([True, True, False]))
    assert found == pytest.approx((1 + 2 / 3) / 2)
    assert math.isnan(metrics.average_precision(np.array([0.9]), np.array([False])))


def test_scikit_learn_agrees():
    probabilities, labels = problem(300, 6, scale=1.0)
    predicted = probabilities.argmax(1)
    for k in (1, 2, 5):
        expected = sklearn.top_k_accuracy_score(labels, probabilities, k=k)
        assert metrics.accuracy(probabilities, labels, k) == pytest.approx(expected)
    expected = sklearn.balanced_accuracy_score(labels, predicted)
    assert metrics.mean_per_class_recall(predicted, labels) == pytest.approx(expected)
    assert metrics.nll(probabilities, labels) == pytest.approx(
        sklearn.log_loss(labels, probabilities)
    )
    scores = RNG.integers(0, 9, (80, 3)).astype(float)  # with ties
    positive = RNG.random((80, 3)) < [0.1, 0.4, 0.8]
    for own, truth in zip(scores.T, positive.T, strict=True):
        expected = sklearn.average_precision_score(truth, own)
        assert metrics.average_precision(own, truth) == pytest.approx(expected)
        assert metrics.auroc(own, truth) == pytest.approx(sklearn.roc_auc_score(truth, own))
    expected = sklearn.average_precision_score(positive, scores)
    assert metrics.mean_average_precision(scores, positive) == pytest.approx(expected)


def test_a_class_that_no_row_has_is_left_out_of_the_mean():
    scores, positive = RNG.random((9, 3)), RNG.random((9, 3)) < 0.5
    positive[:, 1] = False
    expected = np.mean([metrics.average_precision(scores[:, c], positive[:, c]) for c in (0, 2)])
    assert metrics.mean_average_precision(scores, positive) == pytest.approx(expected)
    assert math.isnan(metrics.mean_average_precision(scores[:, :0], positive[:, :0]))


NAN = float("nan")


def test_scores_that_are_nan_are_never_right():
    labels = np.array([0, 0, 1])
    assert metrics.accuracy(np.full((3, 4), NAN), labels) == 0
    assert metrics.accuracy(np.full((3, 4), NAN, np.float32), labels, 4) == 0
    assert metrics.accuracy(np.full((3, 1), NAN), np.zeros(3, int)) == 0
    mixed = np.array([[NAN, 0.2, 0.1], [0.9, NAN, 0.1], [0.1, 0.8, -np.inf], [0.1, NAN, 0.3]])
    # NaN of the right class; of a wrong one; none, and a score that rules a class out; both
    assert metrics.correct_at(mixed, np.array([0, 0, 1, 1])).tolist() == [False, False, True, False]
    assert metrics.correct_at(mixed, np.array([0, 0, 1, 1]), 2).tolist() == [
        False,
        True,
        True,
        False,
    ]


def test_nan_counts_against_a_ranking():
    positive = np.array([True, True, False, False])
    assert metrics.auroc(np.full(4, NAN), positive) == 0
    assert metrics.auroc(np.array([NAN, 3.0, 2.0, 1.0]), positive) == 0.5
    # the positives come last: precision 1/3 and 2/4, or as one tie 2/4
    assert metrics.average_precision(np.full(4, NAN), positive) == 0.5
    assert metrics.average_precision(np.array([4.0, 3.0, NAN, 1.0]), positive) == pytest.approx(
        (1 / 2 + 2 / 3) / 2
    )
    # scores that are infinite are ties, and no differences of infinities
    assert metrics.average_precision(np.full(4, -np.inf), positive) == 0.5


def test_calibration_errors_of_nan_are_nan():
    probabilities = np.array([[NAN, NAN], [0.9, 0.1]])
    for figure in (metrics.ece, metrics.adaptive_ece, metrics.nll):
        assert math.isnan(figure(probabilities, np.array([0, 0])))
