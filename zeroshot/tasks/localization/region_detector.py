"""Detection without a detection model: parts of an image against the texts of a dual encoder.

Regions are proposed, each is cut out with some of what is around it and encoded as an image of its
own, and labelled as `classify` would; what fits a background prompt best is none. Regions come from
the dense map of the encoder, connected parts of one label or of anything at all, or from a pyramid
of windows, which any encoder can have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from PIL.Image import Image
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate

from zeroshot.errors import UserError
from zeroshot.models.base import Detections, DualEncoder
from zeroshot.models.boxes import intersection_over_smaller, nms
from zeroshot.tasks.localization.dense_segmenter import DenseSegmenter

__all__ = ["Prompts", "RegionDetector", "cut_out", "parts_of", "pyramid"]

FINE = 4
"""Cells along a patch that the dense map is enlarged to before its parts are found."""
NESTED = 0.8
"""Share of a box within another of its label above which the less sure of both goes: a part of a
thing, or a thing with what is around it."""
SMALLEST = 0.5
"""Area of a part, in patches, below which it is noise."""
SCALES = (1.0, 0.7, 0.5, 0.35, 0.25)
"""Sides of the pyramid's windows, to the image's shorter side."""
AT_ONCE = 256
"""Regions that are encoded together."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Prompts:
    """Unit rows of the labels, and after them those of what is none."""

    rows: Float[Tensor, "c d"]
    labels: int


@dataclass(frozen=True)
class RegionDetector:
    """A dual encoder that stands where a detection model stands (`base.Detector`)."""

    encoder: DualEncoder
    dense: DenseSegmenter | None = None
    """Makes the dense map; without one regions are those of the pyramid."""
    margin: float = 0.0
    """What is cut out around a region on each side, to the region's longer side."""
    sure: float = 0.6
    """Probability from which on a cell of the dense map belongs to a part."""

    template: ClassVar[str] = "a photo of a {}"

    @property
    def name(self) -> str:
        """As `base.Detector`."""
        return self.encoder.name

    def encode_prompts(self, prompts: Sequence[str]) -> Prompts:
        """As `base.Detector`; without background prompts every region has one of the labels."""
        return Prompts(self.encoder.encode_texts(prompts), len(prompts))

    def encode_examples(self, examples: Sequence[Image]) -> Prompts:
        """UserError: next to an image's row every text's loses, and nothing else would."""
        raise UserError(
            "a dual encoder takes no query image here: nothing tells how like two parts of "
            "images have to be; OWL-ViT and OWLv2 take one (--model)"
        )

    def detect(
        self, images: Sequence[Image], prompts: Prompts, threshold: float
    ) -> list[Detections]:
        """As `base.Detector`."""
        proposed = self.proposals(images, prompts)
        flat = [(image, box) for image, own in zip(images, proposed, strict=True) for box in own]
        scores = torch.zeros(0, len(prompts.rows))
        for start in range(0, len(flat), AT_ONCE):
            cut = [cut_out(i, box, self.margin) for i, box in flat[start : start + AT_ONCE]]
            cosines = self.encoder.encode_images(cut) @ prompts.rows.T
            scores = torch.cat([scores, (self.encoder.logit_scale * cosines).softmax(1)])
        found = []
        for image, own, score in zip(
            images, proposed, torch.split(scores, [len(own) for own in proposed]), strict=True
        ):
            best, label = score.max(1)
            kept = (label < prompts.labels) & (best >= threshold)
            boxes, best, label = torch.tensor(own).view(-1, 4)[kept], best[kept], label[kept]
            whole = nms(boxes, best, label, NESTED, intersection_over_smaller)
            found.append(Detections.within(image.size, boxes[whole], best[whole], label[whole]))
        return found

    def proposals(self, images: Sequence[Image], prompts: Prompts) -> list[list[Box]]:
        """Boxes of each image in its pixels, each once."""
        if self.dense is None:
            return [pyramid(*image.size) for image in images]
        maps = self.dense.maps(images, prompts.rows)
        return [
            parts_of(own, prompts.labels, image.size, self.sure)
            for own, image in zip(maps, images, strict=True)
        ]


def parts_of(
    logits: Float[Tensor, "c h w"], labels: int, size: tuple[int, int], sure: float
) -> list[Box]:
    """Boxes around the connected parts of a dense map, in pixels of an image of this size.

    Parts are of each label, and of all labels together: what two labels share is then one thing.
    """
    height, width = logits.shape[1:]
    fine = interpolate(logits[None], scale_factor=FINE, mode="bilinear")[0].softmax(0)
    one = [part >= sure for part in fine[:labels]]
    masks = torch.stack([fine[:labels].sum(0) >= sure, *one]).numpy()
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
    """Square windows of several sizes that overlap by half, the image as a whole first."""
    boxes: dict[Box, None] = {(0.0, 0.0, float(width), float(height)): None}
    for scale in SCALES:
        side = scale * min(width, height)
        for top in _starts(height, side):
            for left in _starts(width, side):
                boxes[(left, top, left + side, top + side)] = None
    return list(boxes)


def _starts(length: float, side: float) -> list[float]:
    """Evenly spaced, no further apart than half a side, the last at the end."""
    count = 1 + int(np.ceil((length - side) / (side / 2) - 1e-9))
    return [float(at) for at in np.linspace(0, length - side, count)]


def cut_out(image: Image, box: Box, margin: float) -> Image:
    """A square around a box with some of what is around it; less where the image ends."""
    left, top, right, bottom = box
    half = max(right - left, bottom - top) * (0.5 + margin)
    x, y = (left + right) / 2, (top + bottom) / 2
    left, top = max(0, round(x - half)), max(0, round(y - half))
    left, top = min(left, image.width - 1), min(top, image.height - 1)
    right = max(left + 1, min(image.width, round(x + half)))
    bottom = max(top + 1, min(image.height, round(y + half)))
    return image.crop((left, top, right, bottom))
