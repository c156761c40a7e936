"""What spares waits for a device changes no token, and leaves one read a step.

A CPU never waits; what a device would be asked for is counted here.
"""

import json
from collections import Counter
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from tests.test_decoding import guide as toy_guide
from tests.toy import ToyLanguageModel
from zeroshot import decoding, models
from zeroshot.decoding import generate
from zeroshot.errors import ZeroshotError
from zeroshot.methods.magic import MagicGuide
from zeroshot.models import devices
from zeroshot.models.devices import Ways
from zeroshot.models.towers import text_tower
from zeroshot.models.towers.captured import Captured, bucket

DATA = Path(__file__).parent / "data" / "magic"
RUNS = json.loads((DATA / "golden.json").read_text())["runs"]
PLAIN = Ways()
EACH = {
    "one read": Ways(one_read=True),
    "columns": Ways(columns=2),
    "static": Ways(static=True),
    "all": Ways(one_read=True, columns=2, static=True),
}
DEVICE_OPS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "_unique2"}


@contextmanager
def ways(chosen):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(devices.WAYS, "cpu", chosen)
        yield


class Asked(TorchDispatchMode):
    """Counts what would make the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in DEVICE_OPS:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


@contextmanager
def counted():
    """Reads of the device: those by `devices.read`, and any others."""
    with pytest.MonkeyPatch.context() as patch, Asked() as asked:
        here = set()
        from_numpy, tolist, read = torch.from_numpy, torch.Tensor.tolist, devices.read

        def on_host(array):
            tensor = from_numpy(array)
            here.add(tensor.untyped_storage().data_ptr())
            return tensor

        def listed(tensor):
            if tensor.untyped_storage().data_ptr() not in here:
                asked.counts["tolist"] += 1
            return tolist(tensor)

        def counting(tensor):
            asked.counts["reads"] += 1
            return read(tensor)

        patch.setattr(torch, "from_numpy", on_host)
        patch.setattr(torch.Tensor, "tolist", listed)
        patch.setattr(decoding, "read", counting)
        yield asked.counts


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 23),
    alpha=st.sampled_from([0.0, 0.1, 0.6, 0.9]),
    lengths=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    guided=st.booleans(),
    width=st.sampled_from([1, 7]),
    one_read=st.booleans(),
    columns=st.sampled_from([0, 1, 2, 8, 64]),
)
def test_the_tokens_are_those_without(seed, k, alpha, lengths, guided, width, one_read, columns):
    """Large `alpha` lets more candidates win than columns have room, so that steps repeat."""
    model = ToyLanguageModel(seed=seed, width=width)
    prefixes = [[(seed + 5 * i + j) % 20 + 2 for j in range(n)] for i, n in enumerate(lengths)]
    given = (model, prefixes, toy_guide if guided else None)
    expected = generate(*given, k=k, alpha=alpha, max_tokens=9)
    with ways(Ways(one_read=one_read, columns=columns)):
        assert generate(*given, k=k, alpha=alpha, max_tokens=9) == expected


def test_a_step_is_repeated_only_when_more_could_have_won():
    model = ToyLanguageModel(seed=5)
    for alpha, repeats in ((0.0, 0), (0.9, 1)):
        model.fed.clear()
        with ways(Ways(one_read=True, columns=2)), counted() as counts:
            out = generate(model, [[0]] * 4, toy_guide, k=20, alpha=alpha, max_tokens=6)
        steps = max(map(len, out))
        assert counts["reads"] >= steps
        assert (counts["reads"] > steps + 1) == bool(repeats)


@cache
def tiny():
    clip = models.load_dual_encoder(f"hf:{DATA / 'clip'}")
    names = sorted({run["image"] for run in RUNS})
    rows = clip.encode_images([Image.open(DATA / name).convert("RGB") for name in names])
    return clip, models.load_language_model(f"hf:{DATA / 'lm'}"), rows


def captions(steps=6, fresh=("memory", "_trees"), **options):
    """Tokens of the five pictures; of what the encoder keeps, `fresh` is forgotten first."""
    clip, language_model, rows = tiny()
    for kept in fresh:
        clip.__dict__.pop(kept, None)
    guide = MagicGuide(rows, clip, language_model, 2.0)
    prefixes = [[language_model.start]] * len(rows)
    given = {"k": 8, "alpha": 0.1} | options
    return generate(language_model, prefixes, guide, max_tokens=steps, **given)


@pytest.mark.parametrize("name", EACH)
def test_captions_are_those_without(name):
    expected = captions()
    with ways(EACH[name]):
        assert captions() == expected
        assert captions(k=45, alpha=0.6) != expected


def test_one_read_a_step_where_there_were_four():
    found = {}
    for name, chosen in {"plain": PLAIN, **EACH}.items():
        with ways(chosen), counted() as counts:
            captions(steps=6)
        found[name] = dict(counts)
    every = {"reads": 6, "tolist": 6, "nonzero": 6, "_local_scalar_dense": 6}
    assert found["plain"] == found["static"] == every
    assert found["one read"] == {"reads": 6, "tolist": 1, "nonzero": 6}, "the first candidates"
    assert found["columns"].keys() == every.keys() - {"nonzero"}
    assert found["all"] == {"reads": found["all"]["reads"], "tolist": 1}
    assert 6 <= found["all"]["reads"] < 6 + 3, "a step that is done again is read again"


def test_a_score_that_is_no_number_is_an_error():
    """One that the device found, too, whose embeddings nobody looked at."""
    clip, _, _ = tiny()
    weight = clip.model.text_projection.weight
    before = weight.clone()
    try:
        weight.zero_()
        for name, message in ((None, "embedding is zero or not"), ("all", "score is not a number")):
            chosen = EACH.get(name, PLAIN)
            with ways(chosen), pytest.raises(ZeroshotError, match=message):
                captions()
    finally:
        weight.copy_(before)


def test_keys_and_values_are_allocated_once_and_shapes_come_back():
    """Over runs of several sessions; a later one needs nothing that the first had not."""
    clip, _, _ = tiny()
    with ways(EACH["all"]):
        for fresh in (("memory", "_trees"), ("memory",)):  # the second knows its stems already
            captions(fresh=fresh)
        [tree] = clip._trees
        at, shapes = tree._stores[0].data_ptr(), dict(tree._captured.shapes)
        captions(fresh=["memory"])
        assert clip._trees == [tree]
        assert tree._stores[0].data_ptr() == at
        assert dict(tree._captured.shapes) == shapes
        assert len(shapes) <= 4


def test_a_tree_grows_seldom_and_uses_forgotten_slots_again():
    clip, _, _ = tiny()
    tree = text_tower.TokenTree(clip._causal_tower)
    stores = set()
    for length in range(1, 40):
        tree([(1, *range(3, 3 + length), 2)])
        stores.add(tree._stores[0].data_ptr())
        assert len(tree._free) + len(tree._children) + 1 == tree._capacity
    assert len(stores) <= 6
    for _ in range(20):
        tree([(1, *range(9, 19), 2), (5, 2)])
        stores.add(tree._stores[0].data_ptr())
    assert len(stores) <= 6


def test_buckets_waste_at_most_a_third():
    sizes = sorted({bucket(count) for count in range(1, 3000)})
    assert sizes[:6] == [64, 96, 128, 192, 256, 384]
    for count in range(64, 3000):
        assert count <= bucket(count) <= 1.5 * count


def test_elsewhere_than_on_cuda_a_captured_function_is_called():
    doubled = Captured(lambda tensor: 2 * tensor)
    assert doubled(torch.ones(2)).tolist() == [2, 2]
    assert doubled(torch.ones(3)).tolist() == [2, 2, 2]
    assert doubled(torch.zeros(2)).tolist() == [0, 0]
    assert list(doubled.shapes) == [(2,), (3,)]
