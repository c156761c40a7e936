"""Detection without a detection model: a dual encoder compares regions of an image with its texts.

Each proposed region is cropped with a margin, encoded as an image and labelled as by `classify`.
Regions that fit a background prompt best are dropped. Proposals are the connected parts of the
encoder's dense map, of one label or of all labels together; or a pyramid of windows, which works
with any encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import interpolate

from zeroshot.boxes import intersection_over_smaller, nms
from zeroshot.errors import UserError
from zeroshot.models.base import Detections, DualEncoder
from zeroshot.tasks.localization.dense_segmenter import DenseSegmenter

__all__ = ["Prompts", "RegionDetector", "crop", "parts_of", "pyramid"]

FINE = 4
"""The dense map is enlarged to this many cells along a patch before its parts are found."""
NESTED = 0.8
"""If more than this share of a box lies in another box of its label, the box with the lower score
is dropped: it is a part of a thing, or a thing with its surroundings."""
SMALLEST = 0.5
"""Parts with a smaller area, in patches, are noise."""
SCALES = (1.0, 0.7, 0.5, 0.35, 0.25)
"""Sides of the pyramid's windows, relative to the image's shorter side."""
REGION_BATCH = 256
"""Regions that are encoded together."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Prompts:
    """Unit embeddings of the labels, then of the background prompts."""

    embeddings: Float[Tensor, "c d"]
    labels: int
    """Number of labels."""


@dataclass(frozen=True)
class RegionDetector:
    """A dual encoder as a detection model (`base.Detector`)."""

    encoder: DualEncoder
    dense: DenseSegmenter | None = None
    """Makes the dense map; None for the pyramid of windows."""
    margin: float = 0.0
    """Margin of a crop on each side, relative to the region's longer side."""
    min_probability: float = 0.6
    """A cell of the dense map belongs to a part from this probability on."""

    template: ClassVar[str] = "a photo of a {}"

    @property
    def name(self) -> str:
        """As `base.Detector`."""
        return self.encoder.name

    def encode_prompts(self, prompts: Sequence[str]) -> Prompts:
        """As `base.Detector`, without background prompts: every region has one of the labels."""
        return Prompts(self.encoder.encode_texts(prompts), len(prompts))

    def encode_examples(self, examples: Sequence[Image]) -> Prompts:
        """UserError: no threshold tells whether two regions show the same thing."""
        raise UserError(
            "a dual encoder takes no query image, because it cannot tell how similar two regions "
            "must be; OWL-ViT and OWLv2 take one (--model)"
        )

    def detect(
        self, images: Sequence[Image], prompts: Prompts, threshold: float
    ) -> list[Detections]:
        """As `base.Detector`."""
        proposals = self.proposals(images, prompts)
        flat = [(image, box) for image, own in zip(images, proposals, strict=True) for box in own]
        scores = torch.zeros(0, len(prompts.embeddings))
        for start in range(0, len(flat), REGION_BATCH):
            crops = [crop(i, box, self.margin) for i, box in flat[start : start + REGION_BATCH]]
            cosines = self.encoder.encode_images(crops) @ prompts.embeddings.T
            scores = torch.cat([scores, (self.encoder.logit_scale * cosines).softmax(1)])
        detections = []
        for image, own, score in zip(
            images, proposals, torch.split(scores, [len(own) for own in proposals]), strict=True
        ):
            best, label = score.max(1)
            good = (label < prompts.labels) & (best >= threshold)
            boxes, best, label = torch.tensor(own).view(-1, 4)[good], best[good], label[good]
            outer = nms(boxes, best, label, NESTED, intersection_over_smaller)
            detections.append(
                Detections.within(image.size, boxes[outer], best[outer], label[outer])
            )
        return detections

    def proposals(self, images: Sequence[Image], prompts: Prompts) -> list[list[Box]]:
        """Boxes of each image in its pixels, without repetition."""
        if self.dense is None:
            return [pyramid(*image.size) for image in images]
        maps = self.dense.maps(images, prompts.embeddings)
        return [
            parts_of(own, prompts.labels, image.size, self.min_probability)
            for own, image in zip(maps, images, strict=True)
        ]


def parts_of(
    logits: Float[Tensor, "c h w"], labels: int, size: tuple[int, int], min_probability: float
) -> list[Box]:
    """Boxes around the connected parts of a dense map, in pixels of an image of this size.

    There are parts of each label, and parts of all labels together, so that a thing that two
    labels share is also found as a whole.
    """
    from scipy import ndimage

    height, width = logits.shape[1:]
    fine = interpolate(logits[None], scale_factor=FINE, mode="bilinear")[0].softmax(0)
    each = [part >= min_probability for part in fine[:labels]]
    masks = torch.stack([fine[:labels].sum(0) >= min_probability, *each]).numpy()
    across, down = size[0] / (width * FINE), size[1] / (height * FINE)
    boxes: dict[Box, None] = {}
    for mask in masks:
        numbered, _ = ndimage.label(mask)
        for number, where in enumerate(ndimage.find_objects(numbered), 1):
            rows, columns = where
            if np.count_nonzero(numbered[where] == number) >= SMALLEST * FINE**2:
                box = (columns.start * across, rows.start * down)
                boxes[(*box, columns.stop * across, rows.stop * down)] = None
    return list(boxes)


def pyramid(width: int, height: int) -> list[Box]:
    """The whole image, and square windows of several sizes that overlap by half."""
    boxes: dict[Box, None] = {(0.0, 0.0, float(width), float(height)): None}
    for scale in SCALES:
        side = scale * min(width, height)
        for top in _starts(height, side):
            for left in _starts(width, side):
                boxes[(left, top, left + side, top + side)] = None
    return list(boxes)


def _starts(length: float, side: float) -> list[float]:
    """Evenly spaced starts at most half a side apart; the last window ends with the image."""
    count = 1 + int(np.ceil((length - side) / (side / 2) - 1e-9))
    return [float(at) for at in np.linspace(0, length - side, count)]


def crop(image: Image, box: Box, margin: float) -> Image:
    """A square around a box with a margin, clipped to the image."""
    left, top, right, bottom = box
    half = max(right - left, bottom - top) * (0.5 + margin)
    x, y = (left + right) / 2, (top + bottom) / 2
    left, top = max(0, round(x - half)), max(0, round(y - half))
    left, top = min(left, image.width - 1), min(top, image.height - 1)
    right = max(left + 1, min(image.width, round(x + half)))
    bottom = max(top + 1, min(image.height, round(y + half)))
    return image.crop((left, top, right, bottom))
