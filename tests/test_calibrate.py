"""Temperatures and thresholds: against grids and loops, and what they promise."""

import math

import numpy as np
import pytest
import torch

from tests.golden import recorded, tensors
from zeroshot import metrics
from zeroshot.errors import UserError
from zeroshot.tasks.classification.calibration import (
    Calibration,
    fit_temperature,
    matching_temperature,
    p_values,
    precision_threshold,
    read_calibration,
    report,
)


def problem(rows=400, classes=4, temperature=1.0, seed=0):
    """Logits whose softmax at `temperature` is honest."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return temperature * logits, labels


def test_the_temperature_is_the_best_on_a_grid():
    logits, labels = problem(temperature=7.0)
    found = fit_temperature(logits, labels)

    def loss(t):
        return metrics.nll((logits / t).softmax(1).numpy(), labels.numpy())

    grid = np.linspace(4, 12, 801)
    best = grid[np.argmin([loss(t) for t in grid])]
    assert found == pytest.approx(best, abs=0.011)
    assert found == pytest.approx(7.0, rel=0.15)
    before, after = report(logits, labels), report(logits / found, labels)
    assert after["ece"] < before["ece"] / 3
    assert after["accuracy"] == before["accuracy"]


def test_confidence_is_matched():
    logits, _ = problem()
    temperature = matching_temperature(logits, 0.6)
    assert float((logits / temperature).softmax(1).amax(1).mean()) == pytest.approx(0.6, abs=1e-9)
    with pytest.raises(UserError, match=r"no temperature brings the mean confidence to 0.2000"):
        matching_temperature(logits, 0.2)


def test_the_authors_search_ends_within_ten_percent_of_ours():
    """Frolic multiplies and divides by 1.1 until the mean confidence is within 10 %."""
    z = tensors("frolic_a")
    wanted = float(z["hp_target_confidence"])
    logits = z["in_debias_input_zeroshot"]
    theirs = float(recorded("frolic_a")["out_search_T"])
    assert theirs == pytest.approx(1 / 1.1)
    reached = [float((logits * f).softmax(1).amax(1).mean()) for f in (theirs, 1 / theirs)]
    assert min(abs(r - wanted) / wanted for r in reached) < 0.1
    ours = matching_temperature(logits, wanted)
    assert float((logits / ours).softmax(1).amax(1).mean()) == pytest.approx(wanted)


def test_p_values_equal_loops_and_keep_their_promise():
    rng = np.random.default_rng(0)
    reference, fresh = np.sort(rng.random(199)), rng.random(5000)
    values = p_values(fresh.tolist(), reference.tolist())
    for value, confidence in list(zip(values, fresh, strict=True))[:50]:
        assert value == (1 + sum(r <= confidence for r in reference)) / 200
    for alpha in (0.05, 0.2):
        assert np.mean([v <= alpha for v in values]) < alpha + 0.05
    # over many references the share left out is at most alpha
    left_out = []
    for _ in range(300):
        reference, fresh = np.sort(rng.random(19)), rng.random(50)
        left_out += [v <= 0.1 for v in p_values(fresh.tolist(), reference.tolist())]
    assert np.mean(left_out) == pytest.approx(0.1, abs=0.01)


def test_precision_threshold_equals_a_scan():
    generator = torch.Generator().manual_seed(0)
    scores = (torch.rand(80, generator=generator) * 20).round() / 20
    own = (torch.rand(80, generator=generator) < scores).tolist()
    for precision in (0.5, 0.8, 0.95):
        good = [
            float(t)
            for t in scores.unique()
            if np.mean([o for s, o in zip(scores, own, strict=True) if s >= t]) >= precision
        ]
        expected = min(good) if good else None
        assert precision_threshold(scores, own, precision) == (
            None if expected is None else pytest.approx(expected)
        )
    assert precision_threshold(scores, [False] * 80, 0.5) is None


def test_written_and_read_again(tmp_path):
    made = Calibration(
        {"encoder": "x"}, "zpe+center", {"center.lam": 0.5}, "softmax", "abc",
        temperature=1.25, confidences=(0.1, 0.4), thresholds={"cat": 0.5, "dog": None},
        report={"ece": 0.02},
    )  # fmt: skip
    made.write(tmp_path / "deep" / "c.json")
    assert read_calibration(tmp_path / "deep" / "c.json") == made
    (tmp_path / "other.json").write_text('{"schema": "zeroshot.run/1"}')
    for name, message in [("none.json", "no such file"), ("other.json", "not written by")]:
        with pytest.raises(UserError, match=message):
            read_calibration(tmp_path / name)


def test_a_report_without_mistakes_leaves_out_what_needs_one():
    logits = 9 * torch.eye(3, dtype=torch.float64)
    found = report(logits, torch.arange(3))
    assert "auroc" not in found
    assert found["accuracy"] == 1
    assert not any(math.isnan(x) for x in found.values())
