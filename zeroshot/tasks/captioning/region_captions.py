"""Captions of regions: each box of an image is cut out and captioned as an image of its own.

Boxes are those of `detect`: left, top, right and bottom in pixels of the upright image. What is cut
out is larger than the box by a margin, a share of the box's width and height on each side, as far
as the image goes: encoders are trained on images that show some surroundings. Gu et al. 2021
(ViLD, arXiv:2104.13921) embed crops of 1.5 times the box for the same reason, a margin of 0.25.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UnreadableImageError, UserError, counted
from zeroshot.inference.decoded_images import FULL_SIZE, load_batches
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Picture, Source
from zeroshot.models.base import Image
from zeroshot.results.regions import RegionCaption, RegionsResult
from zeroshot.results.result import CaptionResult, Failure
from zeroshot.tasks.captioning.caption_options import CaptionOptions
from zeroshot.tasks.options import as_json
from zeroshot.tasks.task import Runner, Task

PixelBox = tuple[float, float, float, float]
EXPECTED = "a box is left, top, right and bottom in pixels, such as 10,20,110,220"


@dataclass(frozen=True)
class ImageBoxes:
    """The boxes of one image."""

    boxes: tuple[PixelBox, ...]
    id: str | None = None
    """The id of the image that they were found in, if it is known."""
    missing: str = ""
    """Why there are none."""


Boxes = tuple[PixelBox, ...] | Mapping[str, ImageBoxes]
"""The boxes of every image, or those of each by its path."""


def read_boxes(given: Any) -> Boxes:
    """The boxes that `--box` or `box=` gives: one, several, or those of each image by its path.

    Raises:
        UserError: not four finite numbers, or a box without area or left of or above the image.
    """
    if isinstance(given, Mapping):
        boxes: Boxes = {
            str(path): own if isinstance(own, ImageBoxes) else ImageBoxes(_several(own))
            for path, own in given.items()
        }
    else:
        boxes = _several(given)
    if not boxes:
        raise UserError(f"there are no boxes: leave them out to caption whole images; {EXPECTED}")
    return boxes


def _several(given: Any) -> tuple[PixelBox, ...]:
    """One box or several."""
    given = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(given, Sequence):
        raise UserError(f"{given!r:.60} is no box; {EXPECTED}")
    single = isinstance(given, str) or (given and all(_is_number(side) for side in given))
    return tuple(_box(one) for one in ([given] if single else given))


def _box(given: Any) -> PixelBox:
    given = given.tolist() if hasattr(given, "tolist") else given
    try:
        parts = given.split(",") if isinstance(given, str) else list(given)
        left, top, right, bottom = (float(side) for side in parts)
    except (TypeError, ValueError):
        raise UserError(f"{_shown(given)} is no box; {EXPECTED}") from None
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise UserError(f"the box {_shown(given)} has a side that is no finite number; {EXPECTED}")
    if left < 0 or top < 0:
        raise UserError(f"the box {_shown(given)} begins outside of the image; {EXPECTED}")
    if left >= right or top >= bottom:
        raise UserError(
            f"the box {_shown(given)} is empty: right is more than left, and bottom more than top"
        )
    return left, top, right, bottom


def _is_number(value: object) -> bool:
    return hasattr(value, "__float__")


def _shown(box: object) -> str:
    return f"'{box:.60}'" if isinstance(box, str) else f"{box!r:.60}"


def cut(picture: Picture, box: PixelBox, margin: float) -> Picture:
    """The part of an image that a box and its margin cover, in whole pixels, with an id of its own.

    Raises:
        UnreadableImageError: the box reaches beyond the image.
    """
    width, height = picture.size
    left, top, right, bottom = box
    if right > width or bottom > height:
        sides = ",".join(f"{side:g}" for side in box)
        raise UnreadableImageError(f"the box {sides} is not within {width} x {height} pixels")
    across, down = margin * (right - left), margin * (bottom - top)
    image = picture.image
    x, y = image.width / width, image.height / height  # below 1 if it was decoded smaller
    place = (
        math.floor(max(0.0, left - across) * x),
        math.floor(max(0.0, top - down) * y),
        min(image.width, math.ceil((right + across) * x)),
        min(image.height, math.ceil((bottom + down) * y)),
    )
    id = hashlib.sha256(f"{picture.id}/box {place}".encode()).hexdigest()
    part: Image = image.crop(place)
    return Picture(id, part)


@dataclass(frozen=True, kw_only=True)
class CaptionRegions(Task[CaptionOptions]):
    """Captions of the regions of images by another task, which captions images."""

    inner: Task[CaptionOptions]
    boxes: Boxes

    schema: ClassVar[str] = RegionsResult.schema

    def on(self, device: str) -> "CaptionRegions":
        """The same task on another device."""
        return replace(self, inner=self.inner.on(device))

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "RegionRunner":
        """Load the models."""
        return RegionRunner(self, self.inner.open(cache, meter, batch_size))


@dataclass(frozen=True)
class RegionRunner:
    """Gives the regions of images to another runner."""

    task: CaptionRegions
    inner: Runner

    @property
    def batch_size(self) -> int:
        """The batch size of the other runner."""
        return self.inner.batch_size

    def settings(self) -> dict[str, Any]:
        """The settings of the other runner, and what is cut out."""
        boxes: Any = self.task.boxes
        if isinstance(boxes, Mapping):
            lines = sorted((path, own.id, own.boxes, own.missing) for path, own in boxes.items())
            boxes = hashlib.sha256(repr(lines).encode("utf-8", "backslashreplace")).hexdigest()
        return self.inner.settings() | {
            "boxes": as_json(boxes),
            "margin": self.task.options.margin,
        }

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[RegionsResult]:
        """One result per image, in order; if one of its boxes is outside, the image has an error.

        Raises:
            UserError: images without boxes.
        """
        if isinstance(sources, Sequence):
            self._check(sources)
        for batch in load_batches(sources, meter, min(self.batch_size, FULL_SIZE)):
            counts = Meter()
            failures = list(batch.failures)
            for i, picture in batch.pictures.items():
                failures[i] = self._failure(batch.sources[i], picture)
            parts = (
                Source(source.path, cut(batch.pictures[i], box, self.task.options.margin))
                for i, source in enumerate(batch.sources)
                if failures[i] is None
                for box in self._boxes(source).boxes
            )
            captions: Any = self.inner(parts, counts)
            for i, source in enumerate(batch.sources):
                if failures[i] is None:
                    yield self._result(source, batch.pictures[i], captions)
                else:
                    yield RegionsResult(source=source, id=batch.ids[i], error=failures[i])
            next(captions, None)  # so that its threads end
            counts.pictures = counts.failed = 0  # of the regions
            outside = sum(failures[i] is not None for i in batch.pictures)
            meter.failed += outside
            meter.add(counts.counts())

    def _boxes(self, source: Source) -> ImageBoxes:
        boxes = self.task.boxes
        return boxes[source.path or ""] if isinstance(boxes, Mapping) else ImageBoxes(boxes)

    def _check(self, sources: Sequence[Source]) -> None:
        if not isinstance(boxes := self.task.boxes, Mapping):
            return
        lacking = [source for source in sources if (source.path or "") not in boxes]
        if lacking:
            first = lacking[0].path or "an image in memory"
            raise UserError(
                f"there are no boxes for {len(lacking)} of {counted(len(sources), 'image')}, first "
                f"for '{first}'"
            )

    def _failure(self, source: Source, picture: Picture) -> Failure | None:
        """Why an image's regions have no captions."""
        own = self._boxes(source)
        if own.missing:
            return Failure("NoBoxes", own.missing)
        if own.id not in (None, picture.id):
            return Failure("ChangedImage", "it has changed since its boxes were found")
        try:
            for box in own.boxes:
                cut(picture, box, 0)
        except UnreadableImageError as error:
            return Failure("OutsideImage", str(error))
        return None

    def _result(
        self, source: Source, picture: Picture, captions: Iterator[CaptionResult]
    ) -> RegionsResult:
        """The next captions as those of the boxes of one image."""
        boxes = self._boxes(source).boxes
        own = [next(captions) for _ in boxes]
        for each in own:
            if each.error is not None:
                return RegionsResult(source=source, id=picture.id, error=each.error)
        known = self.inner.settings()
        like = own[0] if own else CaptionResult(source, picture.id)
        return RegionsResult(
            source=source,
            id=picture.id,
            models=known["models"] if not own else like.models,
            method=known["method"],
            prompt=like.prompt,
            scored=like.scored,
            width=picture.size[0],
            height=picture.size[1],
            regions=tuple(
                RegionCaption(box, each.caption or "", each.score or 0.0, each.trace)
                for box, each in zip(boxes, own, strict=True)
            ),
        )
