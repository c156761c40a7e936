"""Regions of pictures: where they come from, what is cut out, what becomes of their scores."""

import math

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
    cut_out,
    parts_of,
    probabilities,
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


def test_what_is_not_there_has_no_box():
    """A plain picture of another colour, and one thing that a background prompt fits best."""
    assert boxes_of(Image.new("RGB", (64, 48), "blue"), "red", background=["green"]) == 0
    assert boxes_of(squares(), "red", background=["green", "blue"], threshold=1.01) == 0
    assert boxes_of(squares(), "red", background=["green", "blue"]) == 2


def boxes_of(image, *labels, background=(), threshold=0.5):
    (found,) = detector().detect([image], prompts(*labels, background=background), threshold)
    return len(found.boxes)


def test_other_things_compete_for_regions_and_not_for_cells():
    """Another thing that is red too halves the score; the proposals stay."""
    alone, rows = prompts("red", background=["green"]), prompts("red", background=["green", "red"])
    both = Prompts(rows.embeddings, 1, others=1)
    assert detector().proposals([squares()], alone) == detector().proposals([squares()], both)
    (sure,), (unsure,) = (detector().detect([squares()], asked, 0.0) for asked in (alone, both))
    assert sure.scores.min() > 0.9
    torch.testing.assert_close(unsure.scores, torch.full((2,), 0.5), atol=0.01, rtol=0)


def test_how_often_the_encoder_is_called():
    """The map's windows, a plain colour, and each proposal once; nothing without proposals."""
    one = detector()
    sizes, encode = [], one.encoder.encode_images
    one.encoder.encode_images = lambda images: sizes.append(len(images)) or encode(images)
    one.detect([squares()], prompts("red", "blue", background=["green"]), 0.5)
    assert len(one.encoder.sizes) == 1  # without windows, the whole picture
    assert sizes == [1 + 3]
    one.detect([Image.new("RGB", (64, 48), "lime")], prompts("red", background=["green"]), 0.5)
    assert len(one.encoder.sizes) == 2
    assert sizes == [1 + 3]


def test_probabilities_by_hand():
    """Two labels and a background; the second region is no better than the plain colour."""
    logits = torch.tensor([[8.0, 3.0, 1.0], [2.0, 1.0, 1.0]])
    plain = torch.tensor([[2.0, 1.0, 1.0]])
    given = probabilities(logits, plain)
    below = math.exp(6) + math.exp(2) + 1 + 300
    torch.testing.assert_close(given[0], torch.tensor([math.exp(6), math.exp(2), 1.0]) / below)
    torch.testing.assert_close(given[1], torch.full((3,), 1 / 303))


def test_batched_as_one_by_one():
    images = [squares(), Image.new("RGB", (30, 40), "red"), Image.new("RGB", (33, 33), "lime")]
    asked = prompts("red", "blue", background=["green"])
    for image, found in zip(images, detector().detect(images, asked, 0.3), strict=True):
        (alone,) = detector().detect([image], asked, 0.3)
        torch.testing.assert_close(found.boxes, alone.boxes)
        torch.testing.assert_close(found.scores, alone.scores)
    assert detector().detect([], asked, 0.3) == []


def test_parts_by_hand():
    """Two corners of 12 x 18 cells, a part that is too small, and one on the edge of the range."""
    scores = torch.zeros(1, 12, 18)
    scores[0, :6, :6] = scores[0, 6:, 12:] = 0.5
    scores[0, 11, 0] = 0.9
    assert parts_of(scores, (36, 24), 0.5) == [(0, 0, 12, 12), (24, 12, 36, 24)]
    assert parts_of(scores, (36, 24), 0.51) == []


def test_touching_parts_of_two_labels_are_also_one():
    scores = torch.zeros(2, 8, 16)
    scores[0, :, :8] = scores[1, :, 8:] = 0.9
    boxes = parts_of(scores, (40, 10), 0.5)
    assert boxes == [(0, 0, 40, 10), (0, 0, 20, 10), (20, 0, 40, 10)]


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
    encoder = Colours()
    encoder.logit_scale = 40.0
    found = RegionDetector(encoder, margin=0.0).detect(
        [squares()], prompts("red", "blue", background=["green"]), 0.5
    )[0]
    assert set(found.labels.tolist()) == {0, 1}


def test_cut_out():
    """The box in the middle of the mean colour; boxes are of whole pixels, at least one."""
    image = squares()
    mean = tuple(np.asarray(image).reshape(-1, 3).mean(0).round().astype(int).tolist())
    cut = cut_out(image, (4, 4, 16, 16), 0.5)
    assert cut.size == (24, 24)
    assert {cut.getpixel(at) for at in ((6, 6), (17, 17))} == {(255, 0, 0)}
    assert {cut.getpixel(at) for at in ((5, 6), (18, 17), (0, 0))} == {mean}
    assert cut_out(image, (10, 10, 20, 30), 0.0).size == (20, 20)
    assert cut_out(image, (63.6, 47.6, 63.9, 47.9), 0.0).size == (1, 1)
    assert cut_out(image, (-5, -5, 99, 99), 0.0).size == (64, 64)
    assert cut_out(image, None, 0.5).getcolors() == [(64 * 64, mean)]


def test_a_query_image_is_refused():
    with pytest.raises(UserError, match="takes no query image"):
        detector().encode_examples([squares()])
