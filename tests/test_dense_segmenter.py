"""A dual encoder as a segmenter, on an encoder whose patches can be followed by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from zeroshot.errors import UserError
from zeroshot.methods.naclip import NACLIP
from zeroshot.tasks.localization.dense_segmenter import DenseSegmenter


class Colours:
    """A patch is 4 pixels wide and its row is its mean colour, at unit length."""

    name, context_length, patch_size, image_size = "colours", 5, 4, 16
    logit_scale, logit_bias = 10.0, None

    def __init__(self):
        self.table = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0)}
        self.sizes = []

    def count_tokens(self, texts):
        return [len(text) for text in texts]

    def encode_texts(self, texts):
        return torch.tensor([self.table[t] for t in texts]) if texts else torch.zeros(0, 3)

    def encode_images(self, images):
        means = np.stack([np.asarray(i, np.float32).mean((0, 1)) for i in images])
        return torch.nn.functional.normalize(torch.from_numpy(means), dim=-1)

    def session(self):
        return self.encode_texts

    def matcher(self):
        raise NotImplementedError

    def encode_patches(self, images, attend, *, whole_block=False):
        self.sizes += [image.size for image in images]
        width, height = images[0].size
        pixels = torch.stack([torch.from_numpy(np.array(i)).float() for i in images])
        cells = pixels.view(len(images), height // 4, 4, width // 4, 4, 3).mean((2, 4))
        return torch.nn.functional.normalize(cells, dim=-1)


def halves(width, height):
    """Red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("window", [0, 8, None])
def test_windows_and_the_whole_see_the_same(window):
    """This encoder's patches know nothing of their neighbours: windows must change nothing."""
    segmenter = DenseSegmenter(Colours(), NACLIP(scale=2.0), resolution=16, window=window)
    red, blue = segmenter.maps([halves(64, 32)], segmenter.encode_prompts(["red", "blue"]))[0]
    assert red.shape == (4, 8)
    expected = torch.zeros(4, 8)
    expected[:, :4] = 2.0  # cosine 1 times the method's scale
    # Bicubic resizing bleeds over the edge between the halves.
    torch.testing.assert_close(red, expected, atol=0.05, rtol=0)
    torch.testing.assert_close(blue, 2.0 - expected, atol=0.05, rtol=0)


def test_windows_overlap_by_half_and_end_with_the_picture():
    encoder = Colours()
    segmenter = DenseSegmenter(encoder, NACLIP(), resolution=16, window=8)
    segmenter.patches([halves(88, 64)])  # becomes 24 x 16 (5.5 patches are 6)
    assert encoder.sizes == [(8, 8)] * (5 * 3)
    encoder.sizes.clear()
    segmenter.patches([halves(64, 64), halves(64, 64)])
    assert encoder.sizes == [(8, 8)] * (3 * 3 * 2)


def test_windows_larger_than_the_picture_are_cut():
    encoder = Colours()
    DenseSegmenter(encoder, NACLIP(), resolution=8, window=16).patches([halves(64, 16)])
    assert encoder.sizes == [(16, 8)] * 3  # 32 x 8: windows at 0, 8 and 16


def test_sizes_in_patches():
    segmenter = DenseSegmenter(Colours(), NACLIP())
    assert segmenter.size == (24, 16)  # half more than its own 16, seen through its own
    assert DenseSegmenter(Colours(), NACLIP(), 30, 15).size == (32, 12)


def test_a_batch_is_as_one_by_one():
    segmenter = DenseSegmenter(Colours(), NACLIP(), window=8)
    images = [halves(40, 30), halves(16, 64), halves(33, 33)]
    prompts = segmenter.encode_prompts(["red", "green"])
    together = segmenter.maps(images, prompts)
    for image, found in zip(images, together, strict=True):
        torch.testing.assert_close(found, segmenter.maps([image], prompts)[0])


def test_overlaps_are_averaged():
    """Rows of windows that disagree: the first window's patches red, all later ones blue."""

    class Fickle(Colours):
        def encode_patches(self, images, attend, *, whole_block=False):
            rows = torch.zeros(len(images), images[0].height // 4, images[0].width // 4, 3)
            rows[:1, ..., 0] = 1.0
            rows[1:, ..., 2] = 1.0
            return rows

    segmenter = DenseSegmenter(Fickle(), NACLIP(), resolution=8, window=8)
    rows = segmenter.patches([halves(24, 16)])[0]  # 12 x 8: windows at 0 and 4
    assert rows[0].tolist() == [[1, 0, 0], [0.5, 0, 0.5], [0, 0, 1]]


def test_what_does_not_fit():
    with pytest.raises(UserError, match="patches of colours are 4 pixels wide"):
        DenseSegmenter(Colours(), NACLIP(), resolution=3)
    with pytest.raises(UserError, match="--window 2"):
        DenseSegmenter(Colours(), NACLIP(), window=2)
    with pytest.raises(UserError, match="a prompt of 12 tokens"):
        DenseSegmenter(Colours(), NACLIP()).encode_prompts(["red", "greenish red"])
