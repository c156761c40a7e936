"""Regions of pictures: where they come from, what is cut out, what becomes of their scores."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_dense_segmenter import Colours
from zeroshot.errors import UserError
from zeroshot.methods.naclip import NACLIP
from zeroshot.models.base import Detector
from zeroshot.tasks.localization.dense_segmenter import DenseSegmenter
from zeroshot.tasks.localization.region_detector import (
    Prompts,
    RegionDetector,
    crop,
    parts_of,
    pyramid,
)


def squares():
    """Two red squares and a blue one on green, 64 x 48."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[..., 1] = 255
    for left, top, channel in ((4, 4, 0), (44, 24, 0), (24, 28, 2)):
        pixels[top : top + 12, left : left + 12] = 0
        pixels[top : top + 12, left : left + 12, channel] = 255
    return Image.fromarray(pixels)


def detector(**more):
    encoder = Colours()
    encoder.logit_scale = 40.0
    return RegionDetector(encoder, DenseSegmenter(encoder, NACLIP(), 48, 0), margin=0.0, **more)


def prompts(*labels, background=()):
    rows = Colours().encode_texts([*labels, *background])
    return Prompts(rows, len(labels))


def test_parts_are_found_where_they_are():
    assert isinstance(detector(), Detector)
    (found,) = detector().detect([squares()], prompts("red", "blue", background=["green"]), 0.5)
    truth = torch.tensor([[4.0, 4, 16, 16], [44, 24, 56, 36], [24, 28, 36, 40]])
    assert sorted(found.labels.tolist()) == [0, 0, 1]
    for box, label in zip(truth, (0, 0, 1), strict=True):
        near = (found.boxes - box).abs().amax(1)
        assert near.min() <= 3
        assert int(found.labels[near.argmin()]) == label


def test_without_background_prompts_everything_has_a_label():
    (found,) = detector().detect([squares()], prompts("red", "blue"), 0.0)
    assert len(found.boxes) > 0
    (none,) = detector().detect([squares()], prompts("red", background=["green", "blue"]), 1.01)
    assert none.boxes.shape == (0, 4)


def test_batched_as_one_by_one():
    images = [squares(), Image.new("RGB", (30, 40), "red"), Image.new("RGB", (33, 33), "lime")]
    asked = prompts("red", "blue", background=["green"])
    for image, found in zip(images, detector().detect(images, asked, 0.3), strict=True):
        (alone,) = detector().detect([image], asked, 0.3)
        torch.testing.assert_close(found.boxes, alone.boxes)
        torch.testing.assert_close(found.scores, alone.scores)
    assert detector().detect([], asked, 0.3) == []


def test_parts_by_hand():
    """Two cells of one label in opposite corners of 2 x 3; enlarged, each is a quarter's corner."""
    logits = torch.full((2, 2, 3), -20.0)
    logits[1] = 0.0
    logits[0, 0, 0] = logits[0, 1, 2] = 20.0
    boxes = parts_of(logits, 1, (30, 20), 0.5)
    assert len(boxes) == 2
    for left, top, right, bottom in boxes:
        assert (left, top) == (0, 0) or (right, bottom) == (30, 20)
        assert 5 <= right - left <= 15
    assert parts_of(torch.full((2, 2, 3), 0.0), 1, (30, 20), 0.6) == []


def test_touching_parts_of_two_labels_are_also_one():
    logits = torch.full((3, 1, 4), -20.0)
    logits[0, 0, :2] = logits[1, 0, 2:] = 20.0
    logits[2] = 0.0
    boxes = parts_of(logits, 2, (40, 10), 0.5)
    assert (0.0, 0.0, 40.0, 10.0) in boxes
    assert len(boxes) == 3


def test_the_pyramid_covers_the_picture():
    boxes = torch.tensor(pyramid(300, 200))
    assert boxes[0].tolist() == [0, 0, 300, 200]
    assert len(boxes) == len({tuple(box) for box in boxes.tolist()})
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= torch.tensor([300.0, 200]) + 1e-4).all()
    sides = boxes[1:, 2:] - boxes[1:, :2]
    torch.testing.assert_close(sides[:, 0], sides[:, 1])
    for side in {round(s, 3) for s in sides[:, 0].tolist()}:
        lefts = sorted(
            {round(b[0], 3) for b in boxes[1:].tolist() if round(b[2] - b[0], 3) == side}
        )
        assert lefts[0] == 0
        assert lefts[-1] == pytest.approx(300 - side, abs=1e-2)
        assert max(np.diff(lefts), default=0) <= side / 2 + 1e-2


def test_any_encoder_can_look_through_windows():
    found = RegionDetector(Colours(), margin=0.0).detect(
        [Image.new("RGB", (40, 30), "red")], prompts("red", "blue"), 0.5
    )[0]
    assert set(found.labels.tolist()) == {0}


def test_cut_out():
    image = squares()
    assert crop(image, (10, 10, 20, 30), 0.0).size == (20, 20)  # a square around it
    assert crop(image, (10, 10, 20, 30), 0.5).size == (35, 40)  # 40 wide, but for the border
    assert crop(image, (63.6, 47.6, 63.9, 47.9), 0.1).size == (1, 1)
    assert crop(image, (0, 0, 64, 48), 0.5).size == (64, 48)


def test_a_query_image_is_refused():
    with pytest.raises(UserError, match="takes no query image"):
        detector().encode_examples([squares()])
