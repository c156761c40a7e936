"""Whether one image is a copy of another: by their pixels at thumbnail size.

Two measures, both correlations of pixels and at most 1. Brightness and contrast change neither.

- `whole`: of 8 x 8 pixels, in the best of eight orientations (mirrored, turned by 90 degrees): a
  perceptual hash that is compared by its dot product.
- `fit`: the middle of one thumbnail is moved over the other, in eight orientations, at several
  scales and small angles. A copy that was cropped or turned a little fits somewhere. So do plain
  surfaces, so this needs images that are alike in another respect too.
"""

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image, Resampling
from torch import Tensor
from torch.nn import functional

SIDE = 40
"""Longer side of a thumbnail in pixels."""
PART = 0.75
"""Share of each side that is moved over the other thumbnail: a turned copy has new corners."""
SCALES = tuple(1.07**-i for i in range(9))
"""Sizes of that part; a copy that was cropped to 60 % fits at the last."""
ANGLES = tuple(range(-9, 10, 3))
"""In degrees."""
HASHED = 8
"""Side of a hash in pixels."""
FLAT = 2.0
"""Standard deviation in grey levels of a thumbnail that shows nothing."""
SAME_LEVEL = 8.0
"""Difference of two flat thumbnails of the same colour, in grey levels."""


def thumbnail_of(image: Image) -> UInt8[Tensor, "3 h w"]:
    """The image at `SIDE` pixels, without change of its shape."""
    scale = SIDE / max(image.size)
    size = (max(4, round(image.width * scale)), max(4, round(image.height * scale)))
    small = image.convert("RGB").resize(size, Resampling.BOX if scale < 1 else Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(small).transpose(2, 0, 1).copy())


def hash_of(thumbnail: UInt8[Tensor, "3 h w"]) -> Float[Tensor, " d"]:
    """A unit vector; zero for a thumbnail that shows nothing."""
    small = functional.adaptive_avg_pool2d(thumbnail.float(), HASHED)
    centred = (small - small.mean((1, 2), keepdim=True)).flatten()
    return functional.normalize(centred, dim=0) if _shows(thumbnail) else centred * 0


def whole(hash: Float[Tensor, " d"], others: Float[Tensor, "m d"]) -> Float[Tensor, " m"]:
    """The correlation of one image with each of others, as wholes."""
    return torch.stack([others @ one[0] for one in oriented(hash[None])]).amax(0)


def oriented(hashes: Float[Tensor, "n d"]) -> list[Float[Tensor, "n d"]]:
    """Hashes of the same images in each of the eight orientations."""
    return [one.flatten(1) for one in _orientations(hashes.view(-1, 3, HASHED, HASHED))]


def fit(a: UInt8[Tensor, "3 h w"], b: UInt8[Tensor, "3 k l"]) -> float:
    """The correlation where part of one thumbnail fits best on the other.

    Of two that show nothing, 1 for the same colour and else 0.
    """
    first, second = a.float(), b.float()
    if not (_shows(a) and _shows(b)):
        levels = (first.mean((1, 2)) - second.mean((1, 2))).abs()
        return float(not _shows(a) and not _shows(b) and bool(levels.amax() < SAME_LEVEL))
    return min(1.0, max(_fit(first, second), _fit(second, first)))


def _shows(thumbnail: UInt8[Tensor, "3 h w"]) -> bool:
    return bool(thumbnail.float().std((1, 2), correction=0).amax() >= FLAT)


def _orientations(image: Float[Tensor, "*n 3 h w"]) -> list[Float[Tensor, "*n 3 _ _"]]:
    """As it is, mirrored, upside down, both; then the same, transposed."""
    upright = [image, image.flip(-1), image.flip(-2), image.flip(-2, -1)]
    return upright + [one.transpose(-2, -1) for one in upright]


def _fit(onto: Float[Tensor, "3 h w"], other: Float[Tensor, "3 k l"]) -> float:
    """The largest correlation of the middle of `other` with a part of `onto`."""
    best, every = 0.0, _orientations(other)
    for orientations in (every[:4], every[4:]):
        images = torch.stack(orientations)
        for scale in SCALES:
            parts = _parts(images, scale)
            if parts.shape[2] <= onto.shape[1] and parts.shape[3] <= onto.shape[2]:
                best = max(best, float(_correlations(onto, parts).amax()))
    return best


def _parts(images: Float[Tensor, "o 3 h w"], scale: float) -> Float[Tensor, "m 3 k l"]:
    """The middle of each image, made smaller and turned by each angle."""
    height, width = (max(4, round(side * scale)) for side in images.shape[-2:])
    smaller = functional.interpolate(
        images, (height, width), mode="bilinear", antialias=True, align_corners=False
    )
    grid = _grid(height, width)
    every = smaller.repeat_interleave(len(grid), 0)
    return functional.grid_sample(
        every, grid.repeat(len(smaller), 1, 1, 1), align_corners=False, padding_mode="border"
    )


@cache
def _grid(height: int, width: int) -> Float[Tensor, "a k l 2"]:
    """Where the pixels of the middle lie in an image of this size, for each angle."""
    y, x = torch.meshgrid(_middle(height), _middle(width), indexing="ij")
    angle = torch.tensor(ANGLES).mul(torch.pi / 180)[:, None, None]
    turned = torch.stack([angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y], -1)
    return turned * torch.tensor([2 / width, 2 / height])


def _middle(side: int) -> Float[Tensor, " k"]:
    """Places of the middle pixels, from the centre; as many are left out before as after."""
    kept = side - 2 * (round(side * (1 - PART)) // 2)
    return torch.arange(kept) - (kept - 1) / 2


def _correlations(
    onto: Float[Tensor, "3 h w"], parts: Float[Tensor, "m 3 k l"]
) -> Float[Tensor, "m i j"]:
    """Correlation of each part with `onto` at each place, the mean of each colour left out."""
    parts = parts - parts.mean((2, 3), keepdim=True)
    norms = parts.flatten(1).norm(dim=1)[:, None, None]
    products = functional.conv2d(onto[None], parts)[0]
    size = (parts.shape[2], parts.shape[3])
    mean = functional.avg_pool2d(onto[None], size, stride=1)[0]
    square = functional.avg_pool2d(onto[None] ** 2, size, stride=1)[0]
    spread = ((square - mean**2).clamp_min(0).sum(0) * size[0] * size[1]).sqrt()
    least = FLAT * (size[0] * size[1]) ** 0.5  # what shows nothing correlates with everything
    return torch.where((spread > least) & (norms > least), products / (norms * spread), 0.0)
