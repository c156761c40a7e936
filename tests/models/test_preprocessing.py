"""Preprocessing in halves against the library's own, bit for bit; and its shortcuts, measured."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    Siglip2ImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from zeroshot.images import pixels
from zeroshot.models.open_clip import import_open_clip
from zeroshot.models.preprocessing import FAST, from_processor, from_transform

CPU = torch.device("cpu")
MEAN, STD = (0.48, 0.45, 0.4), (0.26, 0.27, 0.28)
PROCESSORS = {
    "clip": CLIPImageProcessorPil(),
    "clip, odd crop": CLIPImageProcessorPil(size={"shortest_edge": 61}, crop_size=48),
    "siglip": SiglipImageProcessorPil(size={"height": 56, "width": 40}),
    "vit": ViTImageProcessorPil(size={"height": 48, "width": 48}),
    "convnext": ConvNextImageProcessorPil(size={"shortest_edge": 48}),
    "padded": CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=56),
    "siglip2 patches": Siglip2ImageProcessorPil(max_num_patches=36),
}
TRANSFORMS = {
    mode: import_open_clip().image_transform(
        (57, 57), is_train=False, mean=MEAN, std=STD, resize_mode=mode
    )
    for mode in ("shortest", "squash", "longest")
}
SIZED = ["clip", "clip, odd crop", "siglip", "vit"]


def noise(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def smooth(width, height, seed=0):
    return noise(9, 7, seed).resize((width, height), Image.Resampling.BICUBIC)


def batch(preprocessing, images, dtype=torch.float32):
    return preprocessing.batch([preprocessing.pixels(image) for image in images], CPU, dtype)


ours = {name: from_processor(processor) for name, processor in PROCESSORS.items()}
ours |= {name: from_transform(transform) for name, transform in TRANSFORMS.items()}


def library(name, images):
    if name in PROCESSORS:
        return dict(PROCESSORS[name](images=images, return_tensors="pt"))
    return {"image": torch.stack([TRANSFORMS[name](image) for image in images])}


@pytest.mark.parametrize("name", ours)
@settings(deadline=None, max_examples=25)
@given(sizes=st.lists(st.tuples(st.integers(9, 150), st.integers(9, 150)), min_size=1, max_size=3))
def test_halves_are_the_library_bit_for_bit(name, sizes):
    images = [noise(*size, seed=i) for i, size in enumerate(sizes)]
    expected = library(name, images)
    given = batch(ours[name], images)
    assert list(given) == list(expected)
    for key, value in expected.items():
        assert torch.equal(given[key], value), key


@pytest.mark.parametrize("name", ours)
def test_which_run_in_halves(name):
    """Bytes in threads where the library resizes, crops and normalises; else its whole."""
    halves = isinstance(ours[name].pixels(noise(70, 60)), torch.Tensor)
    assert halves == (name != "siglip2 patches")
    assert (ours[name]._geometry is not None) == (name in [*SIZED, "shortest", "squash"])
    if halves:
        assert ours[name].pixels(noise(70, 60)).dtype == torch.uint8


def test_tones_are_rounded_as_the_networks_inputs_were():
    expected = library("clip", [noise(300, 250)])["pixel_values"]
    for dtype in (torch.float16, torch.bfloat16):
        given = batch(ours["clip"], [noise(300, 250)], dtype)["pixel_values"]
        assert torch.equal(given, expected.to(dtype))


class Different(CLIPImageProcessorPil):
    """Does more than its switches tell."""

    def normalize(self, image, mean, std, **kwargs):
        return super().normalize(image[:, ::-1] ** 2, mean, std, **kwargs)


class Shifted(CLIPImageProcessorPil):
    """Crops elsewhere than its settings let one think."""

    def center_crop(self, image, size, **kwargs):
        return super().center_crop(image[:, 1:, :], size, **kwargs)


@pytest.mark.parametrize("processor", [Different(), Shifted()])
def test_halves_are_tried_and_not_believed(processor):
    images = [noise(301, 240), noise(240, 300)]
    made = from_processor(processor)
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    assert torch.equal(batch(made, images)["pixel_values"], expected)
    assert made.faster() is made


def test_pictures_padded_to_the_largest_go_together():
    class Padding(CLIPImageProcessorPil):
        do_pad = True

    processor = Padding(do_center_crop=False, do_pad=True)
    images = [noise(301, 240), noise(240, 300)]
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    assert torch.equal(batch(from_processor(processor), images)["pixel_values"], expected)


# Shortcuts


@pytest.mark.parametrize("name", [*SIZED, "shortest", "squash"])
@pytest.mark.parametrize("picture", [noise, smooth])
def test_torch_resizes_as_pil_does_but_for_a_level_here_and_there(name, picture):
    fast = ours[name].faster()
    assert (fast.shortcuts, ours[name].shortcuts) == (FAST, "")
    for size in [(640, 480), (333, 500), (50, 41)]:
        exact, quick = (p.pixels(picture(*size)).int() for p in (ours[name], fast))
        apart = (exact - quick).abs()
        assert exact.shape == quick.shape
        assert apart.max() <= 2
        assert (apart > 0).float().mean() < 0.02
        assert (apart > 1).float().mean() < 1e-3


@pytest.mark.parametrize("name", ["convnext", "padded", "siglip2 patches", "longest"])
def test_without_a_known_geometry_there_are_no_shortcuts(name):
    assert ours[name].faster() is ours[name]
    assert (ours[name].shortcuts, ours[name].draft_side) == ("", None)


def test_drafts_keep_twice_the_pixels_of_the_input():
    assert ours["clip"].faster().draft_side == 448
    assert ours["siglip"].faster().draft_side == 112


def jpeg(image, **options):
    data = io.BytesIO()
    image.save(data, "JPEG", quality=95, **options)
    return data.getvalue()


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((640, 480), None, (640, 480)),
        ((640, 480), 448, (640, 480)),
        ((640, 480), 241, (640, 480)),
        ((640, 480), 240, (320, 240)),
        ((641, 481), 240, (321, 241)),
        ((1920, 1280), 448, (960, 640)),
        ((640, 480), 100, (160, 120)),
        ((640, 480), 1, (80, 60)),
    ],
)
def test_a_draft_is_the_smallest_that_is_large_enough(size, side, expected):
    image = smooth(*size)
    drafted = pixels.decode(jpeg(image), 10**6 * 3, side)
    assert (drafted.size, drafted.mode) == (expected, "RGB")
    shrunk = np.asarray(image.resize(expected, Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(drafted) - shrunk).mean() < 2


def test_a_draft_is_turned_and_grey_and_checked_as_the_whole():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = pixels.decode(jpeg(smooth(640, 480), exif=exif), 10**6, 200)
    assert turned.size == (240, 320)
    assert pixels.decode(jpeg(smooth(640, 480).convert("L")), 10**6, 200).size == (320, 240)
    assert pixels.decode(jpeg(smooth(640, 480).convert("CMYK")), 10**6, 200).size == (320, 240)
    assert pixels.decode(jpeg(smooth(640, 480)), 50_000, 200).size == (160, 120)  # at most
    with pytest.raises(
        pixels.UnreadableImageError, match=r"80 x 60 .* more than 0\.004 megapixels"
    ):
        pixels.decode(jpeg(smooth(640, 480)), 4000, 200)
    with pytest.raises(pixels.UnreadableImageError, match="truncated JPEG"):
        pixels.decode(jpeg(noise(640, 480))[:40_000], 10**6, 200)


def test_other_formats_have_no_drafts():
    data = io.BytesIO()
    noise(640, 480).save(data, "PNG")
    assert pixels.decode(data.getvalue(), 10**6, 100).size == (640, 480)
