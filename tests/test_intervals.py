"""Bootstrap, McNemar and Holm against scipy, counting and cases by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from zeroshot.metrics import bootstrap
from zeroshot.metrics.bootstrap import Interval

GENERATOR = np.random.default_rng(11)


def seeded(seed=0):
    return np.random.default_rng(seed)


def mean_of(values):
    return lambda rows: {"mean": float(values[rows].mean())}


def test_the_bootstrap_equals_scipy():
    values = GENERATOR.normal(size=80)
    found = bootstrap.bootstrap(mean_of(values), 80, seeded(), draws=4000)["mean"]
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=20000, method="percentile", rng=seeded(1)
    ).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(reference.low, abs=0.02)
    assert found.high == pytest.approx(reference.high, abs=0.02)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    inside = 0
    for seed in range(300):
        values = seeded(seed).exponential(size=60)
        found = bootstrap.bootstrap(
            mean_of(values), 60, seeded(seed + 1000), draws=200, confidence=0.8
        )["mean"]
        inside += found.low <= 1.0 <= found.high
    assert 0.72 < inside / 300 < 0.86


def test_the_same_seed_gives_the_same_interval_and_another_another():
    values = GENERATOR.normal(size=30)
    first, again, other = (
        bootstrap.bootstrap(mean_of(values), 30, seeded(s), draws=50) for s in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_draws_without_a_figure_do_not_count():
    def statistic(rows):
        return {"half": math.nan if rows[0] % 2 else 1.0, "never": math.nan}

    found = bootstrap.bootstrap(statistic, 10, seeded(), draws=40)
    assert (found["half"].low, found["half"].high) == (1.0, 1.0)
    assert math.isnan(found["never"].low)


def test_a_paired_difference_is_narrower_than_its_parts():
    hard = GENERATOR.normal(size=200)
    first, second = hard + 0.01 * GENERATOR.normal(size=200), hard + 0.05
    found = bootstrap.paired_bootstrap(mean_of(first), mean_of(second), 200, seeded())["mean"]
    assert found.value == pytest.approx(second.mean() - first.mean())
    assert 0 < found.low < 0.05 < found.high < 0.1
    assert found.p == pytest.approx(2 / 1001)
    alone = bootstrap.bootstrap(mean_of(first), 200, seeded())["mean"]
    assert found.high - found.low < 0.1 * (alone.high - alone.low)


def test_no_difference_has_a_p_value_of_one():
    values = GENERATOR.normal(size=40)
    found = bootstrap.paired_bootstrap(mean_of(values), mean_of(values), 40, seeded(), draws=20)
    assert found["mean"].p == 1


def test_p_values_of_equal_methods_are_uniform():
    below = 0
    for seed in range(200):
        source = seeded(seed)
        a, b = source.normal(size=(2, 50))
        found = bootstrap.paired_bootstrap(mean_of(a), mean_of(b), 50, source, draws=200)
        below += found["mean"].p <= 0.2
    assert 0.12 < below / 200 < 0.3


def test_mcnemar_counts_the_binomial():
    first = np.array([True] * 6 + [False] * 10 + [True] * 9)
    second = np.array([False] * 6 + [True] * 10 + [True] * 9)
    tail = sum(math.comb(16, k) for k in range(7)) / 2**16
    assert bootstrap.mcnemar(first, second) == pytest.approx(2 * tail)
    assert bootstrap.mcnemar(first, first) == 1
    assert bootstrap.mcnemar(first, second) == bootstrap.mcnemar(second, first)


def test_an_exact_share_by_hand():
    # all of n right: the low end is (alpha / 2) ^ (1 / n)
    every = bootstrap.exact_share(20, 20)
    assert every == Interval(1.0, every.low, 1.0)
    assert every.low == pytest.approx(0.025 ** (1 / 20))
    none = bootstrap.exact_share(0, 20)
    assert (none.low, none.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
    some = bootstrap.exact_share(7, 20, 0.9)
    assert stats.binom.sf(6, 20, some.low) == pytest.approx(0.05)
    assert stats.binom.cdf(7, 20, some.high) == pytest.approx(0.05)


def test_holm_by_hand():
    # 0.01 * 4, 0.02 * 3, 0.03 * 2 (not below the one before), 0.5
    assert bootstrap.holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert bootstrap.holm([0.9, 0.8]) == [1, 1]
