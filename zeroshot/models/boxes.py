"""Boxes: left, top, right, bottom in pixels. Functions of tensors."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Boxes = Float[Tensor, "k 4"]


def clipped(boxes: Float[Tensor, "k 4"], width: int, height: int) -> Float[Tensor, "k 4"]:
    """What of each box lies within a picture."""
    most = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp_min(0), most)


def corners(boxes: Float[Tensor, "k 4"]) -> Float[Tensor, "k 4"]:
    """Left, top, right, bottom of boxes given by centre, width and height."""
    middle, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat([middle - half, middle + half], dim=1)


def area(boxes: Float[Tensor, "k 4"]) -> Float[Tensor, " k"]:
    """In square pixels; 0 for a box that is turned inside out."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(1)


def iou(a: Float[Tensor, "k 4"], b: Float[Tensor, "m 4"]) -> Float[Tensor, "k m"]:
    """Intersection over union; 0 where both boxes are empty."""
    begin = torch.maximum(a[:, None, :2], b[None, :, :2])
    end = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    common = (end - begin).clamp_min(0).prod(2)
    union = area(a)[:, None] + area(b)[None] - common
    return torch.where(union > 0, common / union.clamp_min(1e-12), 0.0)


def shared(a: Float[Tensor, "k 4"], b: Float[Tensor, "m 4"]) -> Float[Tensor, "k m"]:
    """Intersection over the smaller box: 1 where one lies within the other."""
    begin = torch.maximum(a[:, None, :2], b[None, :, :2])
    end = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    smaller = torch.minimum(area(a)[:, None], area(b)[None])
    common = (end - begin).clamp_min(0).prod(2)
    return torch.where(smaller > 0, common / smaller.clamp_min(1e-12), 0.0)


def suppressed(
    boxes: Float[Tensor, "k 4"],
    scores: Float[Tensor, " k"],
    labels: Int[Tensor, " k"],
    overlap: float,
    measure: Callable[[Tensor, Tensor], Tensor] = iou,
) -> Int[Tensor, " m"]:
    """Non-maximum suppression within each label: places of the boxes that stay, best first.

    A box goes if one of its label with a better score stays and their `measure` is above `overlap`.
    Of equal scores the earlier box is the better.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    alike: Bool[Tensor, "k k"] = labels[:, None] == labels[None]
    rivals = (alike & (measure(boxes, boxes) > overlap))[order][:, order]
    stays = torch.ones(len(order), dtype=torch.bool)
    for place in range(len(order)):  # each decision needs those before it
        if stays[place]:
            stays[place + 1 :] &= ~rivals[place, place + 1 :]
    return order[stays]
