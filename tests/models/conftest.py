from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models import tiny, tiny_pairs, tiny_prompted
from zeroshot import models

BUILDERS = {
    **tiny.DUAL,
    **tiny.IMAGE,
    **tiny.TEXTS,
    **tiny.LANGUAGE,
    **tiny.SEGMENTERS,
    **tiny.DETECTORS,
    **tiny.CLIPS,
    "open_clip": tiny.open_clip,
    **tiny_pairs.ALL,
    **tiny_prompted.PROMPTED,
}


@pytest.fixture(scope="session")
def directory_of(tmp_path_factory):
    """The directory of the tiny model called so, built once."""

    @cache
    def build(name):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return BUILDERS[name](tmp_path_factory.mktemp("tiny") / name)

    return build


@pytest.fixture(scope="session")
def loaded(directory_of):
    """The tiny model called so, loaded once by a public loader."""

    @cache
    def load(name, loader=models.load):
        return loader(str(directory_of(name)), device="cpu")

    return load


@pytest.fixture(scope="session")
def pictures():
    """Five pictures of different sizes and kinds."""
    noise = np.random.default_rng(0)
    sizes = [(40, 30), (16, 16), (21, 50), (64, 64), (33, 17)]
    return [
        Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for width, height in sizes
    ]
