"""From logits of a coarse grid to a label for every pixel of an image."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from zeroshot.models.base import Head

PIXELS_AT_ONCE = 1 << 22
"""Numbers of all labels together that are held at a time: maps of any size pass in strips."""


@dataclass(frozen=True)
class LabelMap:
    """A label for each pixel, and how sure each label is where it stands."""

    index: np.ndarray[tuple[int, int], np.dtype[np.uint16]]
    """[height width]: 0 for the background, else the label's place plus one."""
    scores: tuple[float, ...]
    """Mean probability over each label's pixels; 0 for a label without any."""


def label_map(
    logits: Float[Tensor, "c h w"],
    size: tuple[int, int],
    head: Head,
    labels: int,
    threshold: float = 0.0,
) -> LabelMap:
    """The best label of each pixel.

    Args:
        logits: of the labels, and after them those of background prompts.
        size: height and width of the image; logits are interpolated bilinearly.
        head: `softmax` over all prompts, or the `sigmoid` of each.
        labels: how many of the logits are labels; where another prompt wins, there is background.
        threshold: a probability below which there is background too.
    """
    height, width = size
    index = np.zeros(size, np.uint16)
    total, count = torch.zeros(labels, dtype=torch.float64), torch.zeros(labels, dtype=torch.long)
    rows = max(1, PIXELS_AT_ONCE // (width * len(logits)))
    for start in range(0, height, rows):
        stop = min(height, start + rows)
        strip = upsampled(logits, size, start, stop)
        best, place = _best(strip, head)
        place = torch.where((place < labels) & (best >= threshold), place + 1, 0)
        index[start:stop] = place.numpy()
        total += torch.bincount(place.flatten(), best.double().flatten(), labels + 1)[1:]
        count += torch.bincount(place.flatten(), minlength=labels + 1)[1:]
    return LabelMap(index, tuple((total / count.clamp_min(1)).tolist()))


def _best(
    strip: Float[Tensor, "c h w"], head: Head
) -> tuple[Float[Tensor, "h w"], Int[Tensor, "h w"]]:
    """Probability and place of each pixel's best prompt."""
    logit, place = strip.max(0)
    if head == "sigmoid":
        return logit.sigmoid(), place
    return (logit - strip.logsumexp(0)).exp(), place


def upsampled(
    logits: Float[Tensor, "c h w"], size: tuple[int, int], start: int, stop: int
) -> Float[Tensor, "c r w2"]:
    """Rows `start` to `stop` of the logits, interpolated bilinearly to `size`.

    As `interpolate` with `align_corners=False` gives them, without the rest of the image.
    """
    own = logits.shape[1]
    at = ((torch.arange(start, stop) + 0.5) * own / size[0] - 0.5).clamp(0, own - 1)
    above = at.floor().long()
    below = (above + 1).clamp_max(own - 1)
    rows = torch.lerp(logits[:, above], logits[:, below], (at - above)[None, :, None])
    return interpolate(rows[None], size=(stop - start, size[1]), mode="bilinear")[0]
