"""What the renderer knows of where things are."""

import numpy as np

from tests.tools import world

drawing = world()


def scene(*things, relation="", background="white"):
    return drawing.Scene(tuple(drawing.Thing(*t.split()) for t in things), relation, background)


def test_masks_are_the_pixels_of_their_things():
    """On plain white a pixel is far from white where a thing is, and nowhere else."""
    two = scene("large red heart", "small blue ring", relation="left of")
    drawn = drawing.render(np.random.default_rng(3), two, side=128)
    assert drawn.masks.shape == (2, 128, 128)
    assert not (drawn.masks[0] & drawn.masks[1]).any()
    pixels = np.asarray(drawn.image).astype(int)
    red = (pixels[..., 0] > pixels[..., 2] + 60) & (pixels[..., 1] < 140)
    blue = (pixels[..., 2] > pixels[..., 0] + 60) & (pixels[..., 1] < 170)
    for mask, seen in zip(drawn.masks, (red, blue), strict=True):
        assert (mask & seen).sum() / (mask | seen).sum() > 0.9


def test_boxes_are_around_masks():
    drawn = drawing.render(np.random.default_rng(4), scene("large green cross"), side=96)
    ((left, top, right, bottom),) = drawn.boxes
    mask = drawn.masks[0]
    assert mask[top:bottom, left:right].sum() == mask.sum()
    assert mask[top].any()
    assert mask[bottom - 1].any()
    assert mask[:, left].any()
    assert mask[:, right - 1].any()


def test_around_by_hand():
    mask = np.zeros((5, 7), bool)
    mask[1, 2] = mask[3, 5] = True
    assert drawing.around(mask) == (2, 1, 6, 4)
