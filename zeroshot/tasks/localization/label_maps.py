"""From logits of a coarse grid to a label for every pixel of an image."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL.Image import Image, Resampling
from torch import Tensor
from torch.nn.functional import interpolate

from zeroshot.methods._pamr import pamr
from zeroshot.models.base import SegmenterHead

PIXELS_AT_ONCE = 1 << 22
"""Logits in memory at a time; larger maps are computed in strips."""
FINE = 8
"""A map is refined on this many cells along a patch"""
MOST_CELLS = 1 << 18
"""but on no more than this many in all, whatever the image."""
LEAST = 1e-6
"""Probability of a label that is not there."""
FAINT = 0.1
"""Labels that are nowhere more probable than this are left out of the refinement."""


@dataclass(frozen=True)
class LabelMap:
    """A label for each pixel, and the score of each label."""

    index: np.ndarray[tuple[int, int], np.dtype[np.uint16]]
    """[height width]: 0 for the background, else the label's index plus one."""
    scores: tuple[float, ...]
    """Mean probability over each label's pixels; 0 for a label without pixels."""


def label_map(
    logits: Float[Tensor, "c h w"],
    size: tuple[int, int],
    head: SegmenterHead,
    labels: int,
    threshold: float = 0.0,
) -> LabelMap:
    """The best label of each pixel.

    Args:
        logits: of the labels, then of the background prompts.
        size: height and width of the image; logits are interpolated bilinearly.
        head: `softmax` over all prompts, or the `sigmoid` of each.
        labels: the number of labels; a pixel is background if another prompt is best.
        threshold: a pixel is also background if the best probability is lower than this.
    """
    height, width = size
    index = np.zeros(size, np.uint16)
    total, count = torch.zeros(labels, dtype=torch.float64), torch.zeros(labels, dtype=torch.long)
    rows = max(1, PIXELS_AT_ONCE // (width * len(logits)))
    for start in range(0, height, rows):
        stop = min(height, start + rows)
        strip = upsampled(logits, size, start, stop)
        best, prompt = _best(strip, head)
        label = torch.where((prompt < labels) & (best >= threshold), prompt + 1, 0)
        index[start:stop] = label.numpy()
        total += torch.bincount(label.flatten(), best.double().flatten(), labels + 1)[1:]
        count += torch.bincount(label.flatten(), minlength=labels + 1)[1:]
    return LabelMap(index, tuple((total / count.clamp_min(1)).tolist()))


def refined(
    logits: Float[Tensor, "c h w"], labels: int, image: Image, iterations: int
) -> Float[Tensor, "k h2 w2"]:
    """Log-probabilities on a finer grid, moved to the edges of the image (`methods._pamr`).

    They are of the labels, and then of all background prompts together, if there are any, which
    compete as one.
    """
    height, width = logits.shape[1:]
    fine = max(1, min(FINE, math.isqrt(MOST_CELLS // (height * width))))
    size = (height * fine, width * fine)
    each = interpolate(logits[None], size=size, mode="bilinear")[0].softmax(0)
    groups = [each[:labels], each[labels:].sum(0, keepdim=True)][: 1 + (len(logits) > labels)]
    scores = torch.cat(groups)
    small = image.convert("RGB").resize((size[1], size[0]), Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(small, np.float32)).permute(2, 0, 1)
    there = scores.flatten(1).amax(1) >= FAINT
    moved = torch.zeros_like(scores)
    moved[there] = pamr(scores[there], pixels, iterations)
    return moved.clamp_min(LEAST).log()


def _best(
    strip: Float[Tensor, "c h w"], head: SegmenterHead
) -> tuple[Float[Tensor, "h w"], Int[Tensor, "h w"]]:
    """Probability and index of each pixel's best prompt."""
    logit, index = strip.max(0)
    if head == "sigmoid":
        return logit.sigmoid(), index
    return (logit - strip.logsumexp(0)).exp(), index


def upsampled(
    logits: Float[Tensor, "c h w"], size: tuple[int, int], start: int, stop: int
) -> Float[Tensor, "c r w2"]:
    """Rows `start` to `stop` of the logits, interpolated bilinearly to `size`.

    The same as `interpolate` with `align_corners=False`, without the rest of the image.
    """
    height = logits.shape[1]
    at = ((torch.arange(start, stop) + 0.5) * height / size[0] - 0.5).clamp(0, height - 1)
    above = at.floor().long()
    below = (above + 1).clamp_max(height - 1)
    rows = torch.lerp(logits[:, above], logits[:, below], (at - above)[None, :, None])
    return interpolate(rows[None], size=(stop - start, size[1]), mode="bilinear")[0]
