"""A label for every pixel: against torch's own interpolation, and by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from zeroshot.methods._pamr import pamr
from zeroshot.tasks.localization import label_maps
from zeroshot.tasks.localization.label_maps import label_map, refined, upsampled


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


def by_loops(scores, pixels, iterations, steps):
    """The authors' module in words: for each pixel, over its neighbours, one after another."""
    height, width = scores.shape[1:]

    def at(array, y, x):
        return array[:, min(max(y, 0), height - 1), min(max(x, 0), width - 1)]

    shifts = [(a * s, b * s) for s in steps for a in (-1, 0, 1) for b in (-1, 0, 1)]
    for _ in range(iterations):
        new = np.zeros_like(scores)
        for y in range(height):
            for x in range(width):
                window = np.stack([at(pixels, y + a, x + b) for a, b in shifts])
                sigma = window.std(0, ddof=1)
                near = [shift for shift in shifts if shift != (0, 0)]
                logits = np.array(
                    [
                        np.mean(
                            -np.abs(at(pixels, y + a, x + b) - pixels[:, y, x])
                            / (1e-8 + 0.1 * sigma)
                        )
                        for a, b in near
                    ]
                )
                weights = np.exp(logits - logits.max())
                weights /= weights.sum()
                new[:, y, x] = sum(
                    w * at(scores, y + a, x + b) for w, (a, b) in zip(weights, near, strict=True)
                )
        scores = new
    return scores


def test_refinement_is_the_equation():
    rng = np.random.default_rng(0)
    scores, pixels = rng.random((2, 7, 9)), 255 * rng.random((3, 7, 9))
    given = pamr(torch.from_numpy(scores), torch.from_numpy(pixels), 3, (1, 2))
    np.testing.assert_allclose(given, by_loops(scores, pixels, 3, (1, 2)), rtol=1e-5)


def test_refinement_stops_at_edges():
    """A score that covers most of a white square comes to fill it, and leaves the black around."""
    pixels = np.zeros((64, 64), np.uint8)
    pixels[16:48, 16:48] = 255
    logits = torch.full((2, 8, 8), -3.0)
    logits[0, 2:6, 1:5] = 3.0  # the label; over the left edge, and not to the right one
    logits[1] = 0.0
    image = Image.fromarray(pixels)
    before, after = (refined(logits, 1, image, rounds)[0].exp() >= 0.5 for rounds in (0, 40))
    square = torch.from_numpy(pixels > 0)

    def iou(mask):
        return ((mask & square).sum() / (mask | square).sum()).item()

    assert iou(after) > iou(before) + 0.2


def test_refined_maps_add_up_and_are_bounded(monkeypatch):
    """Background prompts are one; without any there is none; large maps are not enlarged."""
    image, logits = Image.new("RGB", (30, 20), "red"), torch.randn(5, 4, 6)
    given = refined(logits, 2, image, 5)
    assert given.shape == (3, 32, 48)
    torch.testing.assert_close(given.exp().sum(0), torch.ones(32, 48), atol=1e-4, rtol=0)
    assert refined(logits, 5, image, 5).shape == (5, 32, 48)
    monkeypatch.setattr(label_maps, "MOST_CELLS", 100)
    assert refined(logits, 2, image, 5).shape == (3, 8, 12)
