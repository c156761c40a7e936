"""Results with positions: a label for each pixel, boxes with labels, boxes with captions."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from zeroshot.results.coco_rle import Mask, decode
from zeroshot.results.notebook_table import Line
from zeroshot.results.result import CaptionResult, Result, as_float32
from zeroshot.trace import Trace

DECIMALS = 2
"""Decimals of a box's sides in pixels."""


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
    """The labels that have pixels, in the order of the labels; all other pixels are background."""

    width: int = 0
    height: int = 0
    regions: tuple[Region, ...] = ()
    scored: str = "softmax"
    mask: str | None = None
    """File name of the mask, a PNG with a palette, if it was written."""
    drawn: str | None = None
    """File name of the image with its regions drawn on it, if it was written."""

    schema: ClassVar[str] = "zeroshot.segment/1"
    heading: ClassVar[str] = "share, label"

    def share(self, region: Region) -> float:
        """The share of the image's pixels that a region has."""
        return region.pixels / (self.width * self.height)

    def answer(self) -> dict[str, Any]:
        """`width`, `height`, `regions`, `scored`, and the names of files if there are any."""
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

    def lines(self) -> list[Line]:
        """Each label with its share of the pixels."""
        lines = [Line(r.label, self.share(r)) for r in self.regions]
        return lines or [Line(self.summary())]


def files(mask: str | None, drawn: str | None) -> dict[str, str]:
    """The names of the files that were written, for a row."""
    return ({"mask": mask} if mask else {}) | ({"drawn": drawn} if drawn else {})


@dataclass(frozen=True)
class Detection:
    """One thing: its label, its score, and its box (left, top, right, bottom, in pixels)."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    spans: tuple[tuple[int, int], ...] = ()
    """Where its words begin and end in the sentence, in characters, if there is a sentence."""

    def scaled(self, across: float, down: float) -> "Detection":
        """The same in an image that is larger by these factors."""
        left, top, right, bottom = self.box
        return replace(self, box=(left * across, top * down, right * across, bottom * down))

    def row(self) -> dict[str, Any]:
        """JSON-ready fields."""
        fields = {
            "label": self.label,
            "score": as_float32(self.score),
            "box": [round(side, DECIMALS) for side in self.box],
        }
        return fields | ({"spans": [list(span) for span in self.spans]} if self.spans else {})


@dataclass(frozen=True)
class DetectResult(Result):
    """The detections, best first."""

    width: int = 0
    height: int = 0
    boxes: tuple[Detection, ...] = ()
    drawn: str | None = None
    """File name of the image with its boxes drawn on it, if it was written."""

    schema: ClassVar[str] = "zeroshot.detect/1"
    heading: ClassVar[str] = "score, box"

    def answer(self) -> dict[str, Any]:
        """`width`, `height`, `boxes`."""
        size = {"width": self.width, "height": self.height}
        return size | {"boxes": [x.row() for x in self.boxes]} | files(None, self.drawn)

    def summary(self) -> str:
        """`cat 0.91, remote 0.55, remote 0.41`."""
        named = ", ".join(f"{x.label} {x.score:.2f}" for x in self.boxes[:5])
        more = f" and {len(self.boxes) - 5} more" if len(self.boxes) > 5 else ""
        return f"{named}{more}" or "nothing"

    def lines(self) -> list[Line]:
        """Each label with its box and its score."""
        lines = [Line(f"{x.label} {[round(side) for side in x.box]}", x.score) for x in self.boxes]
        return lines or [Line(self.summary())]


@dataclass(frozen=True)
class RegionCaption:
    """A box (left, top, right, bottom, in pixels), its caption, and the caption's score."""

    box: tuple[float, float, float, float]
    caption: str
    score: float
    trace: Trace | None = field(default=None, repr=False)
    """Every choice that made the caption, if they were recorded."""

    def row(self) -> dict[str, Any]:
        """JSON-ready fields."""
        box = [round(side, DECIMALS) for side in self.box]
        return {"box": box, "caption": self.caption, "score": as_float32(self.score)}


@dataclass(frozen=True)
class RegionsResult(CaptionResult):
    """A caption for each box that was given, in their order; `caption`, of the whole, is None."""

    width: int = 0
    height: int = 0
    regions: tuple[RegionCaption, ...] = ()

    schema: ClassVar[str] = "zeroshot.regions/1"

    def answer(self) -> dict[str, Any]:
        """`width`, `height`, `regions`, then as for a caption."""
        size = {"width": self.width, "height": self.height}
        of_all = {k: v for k, v in super().answer().items() if k not in ("caption", "score")}
        return size | {"regions": [region.row() for region in self.regions]} | of_all

    def trace_rows(self) -> list[dict[str, Any]]:
        """A trace for each region, with its box."""
        return [
            replace(self, caption=region.caption, trace=region.trace).trace_row()
            | {"box": region.row()["box"]}
            for region in self.regions
        ]

    def summary(self) -> str:
        """`10,20,110,220 a red heart`, a line for each box."""
        return "\n".join(line.text for line in self.lines())

    def lines(self) -> list[Line]:
        """Each box with its caption and its score."""
        lines = [
            Line(f"{','.join(f'{side:g}' for side in x.row()['box'])} {x.caption}", x.score)
            for x in self.regions
        ]
        return lines or [Line("no boxes")]
