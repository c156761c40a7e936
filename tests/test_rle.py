"""COCO's run lengths: a case by hand, the way back, and pycocotools where it is installed."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from zeroshot.errors import UserError
from zeroshot.results import coco_rle


def test_by_hand():
    """Down the columns: 0 1 1 | 1 0 0 | 0 0 1, so runs of 1, 3, 4 and 1.

    The fourth is written less the second, -2: five bits 30 and no more follow, `N`.
    """
    mask = np.array([[0, 1, 0], [1, 0, 0], [1, 0, 1]], bool)
    assert coco_rle.encode(mask) == {"size": [3, 3], "counts": "134N"}
    np.testing.assert_array_equal(coco_rle.decode({"size": [3, 3], "counts": "134N"}), mask)


def test_a_long_run_takes_two_characters():
    """100 is 3 * 32 + 4: 4 with the sixth bit set, then 3."""
    assert coco_rle.encode(np.zeros((10, 10), bool))["counts"] == chr(48 + 4 + 32) + chr(48 + 3)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_back_and_forth(mask):
    np.testing.assert_array_equal(coco_rle.decode(coco_rle.encode(mask)), mask)


# pycocotools' own arrays, not ours
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.02, 0.5, 0.98]))
def test_pycocotools_agrees(seed, share):
    coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    rng = np.random.default_rng(seed)
    mask = rng.random((int(rng.integers(1, 70)), int(rng.integers(1, 70)))) < share
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    ours = coco_rle.encode(mask)
    assert ours == {"size": theirs["size"], "counts": theirs["counts"].decode()}
    np.testing.assert_array_equal(coco.decode(ours).astype(bool), mask)


@pytest.mark.parametrize("counts", ["134", "134N1", "134n", "13 4"])
def test_broken_counts(counts):
    with pytest.raises(UserError):
        coco_rle.decode({"size": [3, 3], "counts": counts})
