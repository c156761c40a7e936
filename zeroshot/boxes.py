"""Boxes `[k 4]`: left, top, right and bottom in pixels. Functions of tensors."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def clip_to_image(boxes: Float[Tensor, "k 4"], width: int, height: int) -> Float[Tensor, "k 4"]:
    """The part of each box that lies within the image."""
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp_min(0), limit)


def center_to_corners(boxes: Float[Tensor, "k 4"]) -> Float[Tensor, "k 4"]:
    """Boxes from their center, width and height."""
    center, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat([center - half, center + half], dim=1)


def area(boxes: Float[Tensor, "k 4"]) -> Float[Tensor, " k"]:
    """Square pixels; 0 if right is left of left, or bottom above top."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(1)


def intersection(a: Float[Tensor, "k 4"], b: Float[Tensor, "m 4"]) -> Float[Tensor, "k m"]:
    """Area that two boxes have in common."""
    begin = torch.maximum(a[:, None, :2], b[None, :, :2])
    end = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    return (end - begin).clamp_min(0).prod(2)


def iou(a: Float[Tensor, "k 4"], b: Float[Tensor, "m 4"]) -> Float[Tensor, "k m"]:
    """Intersection over union; 0 if both boxes are empty."""
    common = intersection(a, b)
    union = area(a)[:, None] + area(b)[None] - common
    return torch.where(union > 0, common / union.clamp_min(1e-12), 0.0)


def intersection_over_smaller(
    a: Float[Tensor, "k 4"], b: Float[Tensor, "m 4"]
) -> Float[Tensor, "k m"]:
    """Intersection over the smaller box: 1 if one box lies within the other."""
    smaller = torch.minimum(area(a)[:, None], area(b)[None])
    return torch.where(smaller > 0, intersection(a, b) / smaller.clamp_min(1e-12), 0.0)


def nms(
    boxes: Float[Tensor, "k 4"],
    scores: Float[Tensor, " k"],
    labels: Int[Tensor, " k"],
    overlap: float,
    measure: Callable[[Tensor, Tensor], Tensor] = iou,
) -> Int[Tensor, " m"]:
    """Non-maximum suppression within each label: indices of the boxes that remain, best first.

    A box is removed if its `measure` with a better remaining box of its label exceeds `overlap`.
    Among equal scores the earlier box counts as better.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    same_label: Bool[Tensor, "k k"] = labels[:, None] == labels[None]
    rivals = (same_label & (measure(boxes, boxes) > overlap))[order][:, order]
    remains = torch.ones(len(order), dtype=torch.bool)
    for rank in range(len(order)):  # each decision depends on those before it
        if remains[rank]:
            remains[rank + 1 :] &= ~rivals[rank, rank + 1 :]
    return order[remains]
