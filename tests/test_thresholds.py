"""Cuts on a score, against all cuts there are."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from zeroshot.errors import UserError
from zeroshot.tasks.matching.thresholds import Thresholds, learn, read_thresholds


def balanced(scores, found, labels, cuts):
    """Mean over labels of the share that is found, in the words of the definition."""
    shares = []
    for place, label in enumerate(labels):
        low = -np.inf if place == 0 else cuts[place - 1]
        high = np.inf if place == len(cuts) else cuts[place]
        own = [score for score, name in zip(scores, found, strict=True) if name == label]
        shares.append(np.mean([low <= score < high for score in own]))
    return float(np.mean(shares))


def best(scores, found, labels):
    """Over all cuts between neighbouring scores and beyond the ends."""
    values = sorted(set(scores))
    places = [values[0], *((a + b) / 2 for a, b in itertools.pairwise(values)), values[-1] + 1]
    cuts = itertools.combinations_with_replacement(places, len(labels) - 1)
    return max(balanced(scores, found, labels, c) for c in cuts)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 3).flatmap(
        lambda n: st.lists(st.tuples(st.integers(-4, 4), st.integers(0, n - 1)), min_size=n).map(
            lambda pairs: (n, [*pairs, *((0, c) for c in range(n))])
        )
    )
)
def test_no_other_cuts_are_better(case):
    count, pairs = case
    labels = ["a", "b", "c"][:count]
    scores, found = [float(s) for s, _ in pairs], [labels[c] for _, c in pairs]
    learned = learn(scores, found, labels, "x")
    assert learned.accuracy == pytest.approx(best(scores, found, labels))
    assert learned.accuracy == pytest.approx(balanced(scores, found, labels, learned.cuts))
    assert list(learned.cuts) == sorted(learned.cuts)


def test_a_case_by_hand():
    """One no is as high as a yes: whichever way, 1/2 of one label and all of the other."""
    learned = learn([0.1, 0.4, 0.3, 0.4], ["no", "no", "yes", "yes"], ["no", "yes"], "m")
    assert learned.cuts == (pytest.approx(0.2),)
    assert learned.accuracy == pytest.approx((1 / 2 + 1) / 2)
    assert [learned.label(s) for s in (0.19, 0.2, 5)] == ["no", "yes", "yes"]


def test_entailment_in_three():
    scores = [0.1, 0.2, 0.5, 0.6, 0.8, 0.9]
    found = ["contradiction"] * 2 + ["neutral"] * 2 + ["entailment"] * 2
    learned = learn(scores, found, ["contradiction", "neutral", "entailment"], "m")
    assert learned.cuts == pytest.approx((0.35, 0.7))
    assert learned.accuracy == 1
    assert [learned.label(s) for s in scores] == found


@pytest.mark.parametrize(
    ("found", "labels", "message"),
    [
        (["no", "maybe"], ["no", "yes"], "has the label 'maybe'"),
        (["no", "no"], ["no", "yes"], "no pair has the label 'yes'"),
        (["no", "no"], ["no"], "two or more"),
        (["no", "no"], ["no", "no"], "two or more"),
    ],
)
def test_wrong_labels(found, labels, message):
    with pytest.raises(UserError, match=message):
        learn([0.1, 0.2], found, labels, "m")


def test_a_file_gives_back_what_was_saved(tmp_path):
    learned = Thresholds(("no", "yes"), (0.25,), "cosine of m", 0.9, 10)
    learned.save(tmp_path / "deep" / "t.json")
    assert read_thresholds(tmp_path / "deep" / "t.json") == learned
    learned.check("cosine of m")
    with pytest.raises(UserError, match=r"learned on scores of cosine of m, these are .* of n"):
        learned.check("n")


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "other"},
        {"cuts": []},
        {"cuts": [0.1, 0.2]},
        {"cuts": ["a"]},
        {"labels": [1, 2]},
        {"labels": ["a", "b", "c"], "cuts": [0.5, 0.1]},
    ],
)
def test_other_files_are_refused(change, tmp_path):
    Thresholds(("no", "yes"), (0.25,), "m", 0.9, 10).save(tmp_path / "t.json")
    told = json.loads((tmp_path / "t.json").read_text()) | change
    (tmp_path / "t.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="has no thresholds"):
        read_thresholds(tmp_path / "t.json")
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(UserError, match="line 1, character 2 is not JSON"):
        read_thresholds(tmp_path / "t.json")
