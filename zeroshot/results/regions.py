"""Results that say where: a label for each pixel, boxes with labels."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from zeroshot.results.coco_rle import Mask, decode
from zeroshot.results.result import Result, as_float32

DECIMALS = 2
"""Of boxes, in pixels."""


@dataclass(frozen=True)
class Region:
    """The pixels of one label."""

    label: str
    score: float
    """Mean probability over the pixels."""
    pixels: int
    rle: dict[str, Any] = field(repr=False)
    """The mask, as COCO's run lengths: `size` and `counts`."""

    @property
    def mask(self) -> Mask:
        """bool [height width]."""
        return decode(self.rle)


@dataclass(frozen=True)
class SegmentResult(Result):
    """The labels that have pixels, in the order they were asked for; the rest is background."""

    width: int = 0
    height: int = 0
    regions: tuple[Region, ...] = ()
    scored: str = "softmax"
    mask: str | None = None
    """File name of the mask as a PNG with a palette, where one was asked for."""
    drawn: str | None = None
    """File name of the image with the regions drawn on it, likewise."""

    schema: ClassVar[str] = "zeroshot.segment/1"

    def share(self, region: Region) -> float:
        """Of the image's pixels."""
        return region.pixels / (self.width * self.height)

    def answer(self) -> dict[str, Any]:
        """`width`, `height`, `regions`, `scored`, and files where there are any."""
        regions = [
            {
                "label": r.label,
                "score": as_float32(r.score),
                "pixels": r.pixels,
                "share": round(self.share(r), 6),
                "rle": r.rle,
            }
            for r in self.regions
        ]
        size = {"width": self.width, "height": self.height}
        return size | {"regions": regions, "scored": self.scored} | files(self.mask, self.drawn)

    def summary(self) -> str:
        """`cat 31 %, remote 2 %`."""
        shares = [f"{r.label} {100 * self.share(r):.0f} %" for r in self.regions]
        return ", ".join(shares) or "nothing but background"


def files(mask: str | None, drawn: str | None) -> dict[str, str]:
    """The files that there are, for a row."""
    return ({"mask": mask} if mask else {}) | ({"drawn": drawn} if drawn else {})


@dataclass(frozen=True)
class Detection:
    """One thing: its label, its box (left, top, right, bottom, in pixels), how sure it is."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    spans: tuple[tuple[int, int], ...] = ()
    """Of a sentence, where the words that name it begin and end, in characters."""

    def row(self) -> dict[str, Any]:
        """JSON-ready fields."""
        held = {
            "label": self.label,
            "score": as_float32(self.score),
            "box": [round(side, DECIMALS) for side in self.box],
        }
        return held | ({"spans": [list(span) for span in self.spans]} if self.spans else {})


@dataclass(frozen=True)
class DetectResult(Result):
    """What was found, best first."""

    width: int = 0
    height: int = 0
    boxes: tuple[Detection, ...] = ()
    drawn: str | None = None
    """File name of the image with the boxes drawn on it, where one was asked for."""

    schema: ClassVar[str] = "zeroshot.detect/1"

    def answer(self) -> dict[str, Any]:
        """`width`, `height`, `boxes`."""
        size = {"width": self.width, "height": self.height}
        return size | {"boxes": [x.row() for x in self.boxes]} | files(None, self.drawn)

    def summary(self) -> str:
        """`cat 0.91, remote 0.55, remote 0.41`."""
        named = ", ".join(f"{x.label} {x.score:.2f}" for x in self.boxes[:5])
        more = f" and {len(self.boxes) - 5} more" if len(self.boxes) > 5 else ""
        return f"{named}{more}" or "nothing"
