"""A label for every pixel: against torch's own interpolation, and by hand."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from zeroshot.tasks.localization import label_maps
from zeroshot.tasks.localization.label_maps import label_map, upsampled


@pytest.mark.parametrize("size", [(37, 53), (5, 7), (3, 90), (2, 2)])
def test_strips_are_parts_of_the_whole(size):
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 7)
    whole = interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    for start, stop in ((0, size[0]), (0, 1), (size[0] // 2, size[0])):
        torch.testing.assert_close(upsampled(logits, size, start, stop), whole[:, start:stop])


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_strips_give_what_the_whole_gives(head, monkeypatch):
    torch.manual_seed(1)
    logits, size = 2 * torch.randn(4, 6, 5), (41, 33)
    whole = interpolate(logits[None], size=size, mode="bilinear")[0]
    probability = whole.softmax(0) if head == "softmax" else whole.sigmoid()
    best, place = probability.max(0)
    expected = torch.where((best >= 0.4) & (place < 3), place + 1, 0).numpy()
    monkeypatch.setattr(label_maps, "PIXELS_AT_ONCE", 3 * 33 * 4)
    found = label_map(logits, size, head, 3, threshold=0.4)
    np.testing.assert_array_equal(found.index, expected)
    for label in range(3):
        mine = best.numpy()[expected == label + 1]
        assert found.scores[label] == pytest.approx(mine.mean() if mine.size else 0.0, rel=1e-5)


def test_by_hand():
    """Two labels and a background prompt, one pixel each, and one that nothing is sure of."""
    logits = torch.tensor([[9.0, 0.0, 0.0, 0.1], [0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0]])
    found = label_map(logits[:, None], (1, 4), "softmax", 2, threshold=0.5)
    assert found.index.tolist() == [[1, 2, 0, 0]]
    assert label_map(logits[:, None], (1, 4), "softmax", 2).index.tolist() == [[1, 2, 0, 1]]
