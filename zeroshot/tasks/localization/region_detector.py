"""Detection without a detection model: a dual encoder compares regions of an image with its texts.

This way of detecting is this project's own; nobody published it. Proposals are the connected parts
of the encoder's dense map (NACLIP), refined at the edges of the image (PAMR), of one label or of
all labels together. Each is cut out, put on the image's mean colour with a margin, so that nothing
else is seen, and encoded. Labels and background prompts compete for it by how much better they fit
it than that colour alone, which leaves out that some texts fit any image; and they have to be much
better, or else a region would surely be what it is least unlike. Labels in another colour compete
too. Without a dense map, proposals are a pyramid of windows, which works with any encoder.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PILImage, ImageStat
from PIL.Image import Image
from torch import Tensor

from zeroshot.boxes import intersection_over_smaller, nms
from zeroshot.errors import UserError
from zeroshot.models.base import Detections, DualEncoder
from zeroshot.tasks.localization.dense_segmenter import DenseSegmenter
from zeroshot.tasks.localization.label_maps import refined

__all__ = ["Prompts", "RegionDetector", "cut_out", "parts_of", "probabilities", "pyramid"]

UNNAMED = 300
"""So many things that no label names are taken to fit a region as well as a plain colour."""
SAME = 0.7
"""If boxes of two labels have a larger IoU than this, the region has the better label."""
NESTED = 0.8
"""If more than this share of a box lies in another box of its label, the box with the lower score
is dropped: it is a part of a thing, or a thing with its surroundings."""
SMALLEST = 32
"""Parts with fewer cells of the refined map, half a patch, are noise."""
SCALES = (1.0, 0.7, 0.5, 0.35, 0.25)
"""Sides of the pyramid's windows, relative to the image's shorter side."""
PLAIN = 64
"""Side in pixels of a square of one colour."""
REGION_BATCH = 256
"""Regions that are encoded together."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Prompts:
    """Unit embeddings of the labels, of the background prompts, and of other things."""

    embeddings: Float[Tensor, "c d"]
    labels: int
    """Number of labels."""
    others: int = 0
    """Number of other things, which compete for regions, but not for cells of the map."""


@dataclass(frozen=True)
class RegionDetector:
    """A dual encoder as a detection model (`base.Detector`)."""

    encoder: DualEncoder
    dense: DenseSegmenter | None = None
    """Makes the dense map; None for the pyramid of windows."""
    refine: int = 20
    """Rounds of refinement of the dense map."""
    margin: float = 0.5
    """Margin around a cut-out region on each side, relative to its longer side."""
    min_probability: float = 0.5
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
        cuts = (
            cut_out(image, box, self.margin)
            for image, own in zip(images, proposals, strict=True)
            for box in ([None, *own] if own else [])
        )
        logits = torch.zeros(0, len(prompts.embeddings))
        while batch := list(islice(cuts, REGION_BATCH)):
            cosines = self.encoder.encode_images(batch) @ prompts.embeddings.T
            logits = torch.cat([logits, self.encoder.logit_scale * cosines])
        counts = [len(own) + 1 if own else 0 for own in proposals]
        detections = []
        for image, own, each in zip(images, proposals, torch.split(logits, counts), strict=True):
            best, label = probabilities(each[1:], each[:1])[:, : prompts.labels].max(1)
            good = best >= threshold
            boxes, best, label = torch.tensor(own).view(-1, 4)[good], best[good], label[good]
            outer = nms(boxes, best, label, NESTED, intersection_over_smaller)
            outer = outer[nms(boxes[outer], best[outer], torch.zeros_like(outer), SAME)]
            detections.append(
                Detections.within(image.size, boxes[outer], best[outer], label[outer])
            )
        return detections

    def proposals(self, images: Sequence[Image], prompts: Prompts) -> list[list[Box]]:
        """Boxes of each image in its pixels, without repetition."""
        if self.dense is None:
            return [pyramid(*image.size) for image in images]
        embeddings = prompts.embeddings[: len(prompts.embeddings) - prompts.others]
        maps = self.dense.maps(images, embeddings)
        return [
            parts_of(
                refined(own, prompts.labels, image, self.refine)[: prompts.labels].exp(),
                image.size,
                self.min_probability,
            )
            for own, image in zip(maps, images, strict=True)
        ]


def probabilities(
    logits: Float[Tensor, "n c"], plain: Float[Tensor, "#n c"]
) -> Float[Tensor, "n c"]:
    """Of each prompt for each region; they do not sum to 1.

        p_ij = exp(g_ij) / (sum_k exp(g_ik) + UNNAMED),   g = logits - plain

    Args:
        logits: of the regions.
        plain: of their image's mean colour.
    """
    unnamed = torch.full((len(logits), 1), math.log(UNNAMED))
    return torch.cat([logits - plain, unnamed], 1).softmax(1)[:, :-1]


def parts_of(
    scores: Float[Tensor, "k h w"], size: tuple[int, int], min_probability: float
) -> list[Box]:
    """Boxes around the connected parts of maps of labels, in pixels of an image of this size.

    There are parts of each label, and parts of all labels together, so that a thing that two
    labels share is also found as a whole.
    """
    from scipy import ndimage

    height, width = scores.shape[1:]
    masks = torch.cat([scores.sum(0, keepdim=True), scores]).ge(min_probability).numpy()
    across, down = size[0] / width, size[1] / height
    boxes: dict[Box, None] = {}
    for mask in masks:
        numbered, _ = ndimage.label(mask)
        for number, where in enumerate(ndimage.find_objects(numbered), 1):
            rows, columns = where
            if np.count_nonzero(numbered[where] == number) >= SMALLEST:
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


def cut_out(image: Image, box: Box | None, margin: float) -> Image:
    """The pixels of a box in the middle of a square of the image's mean colour, with a margin.

    None for the colour alone.
    """
    colour = image.convert("RGB")
    mean = tuple(round(value) for value in ImageStat.Stat(colour).mean)
    if box is None:
        return PILImage.new("RGB", (PLAIN, PLAIN), mean)
    left, top = (math.floor(max(0.0, side)) for side in box[:2])
    left, top = min(left, image.width - 1), min(top, image.height - 1)
    right = max(left + 1, min(image.width, math.ceil(box[2])))
    bottom = max(top + 1, min(image.height, math.ceil(box[3])))
    side = math.ceil(max(right - left, bottom - top) * (1 + 2 * margin))
    square = PILImage.new("RGB", (side, side), mean)
    corner = ((side - right + left) // 2, (side - bottom + top) // 2)
    square.paste(colour.crop((left, top, right, bottom)), corner)
    return square
