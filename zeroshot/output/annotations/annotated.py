"""What rows say about images, as annotation files need it: marks with labels, sizes, names."""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeroshot.errors import UserError
from zeroshot.output.formats import Row
from zeroshot.results.coco_rle import Mask, decode
from zeroshot.results.regions import DetectResult, SegmentResult
from zeroshot.results.result import ClassifyResult

DETECT, SEGMENT, CLASSIFY = DetectResult.schema, SegmentResult.schema, ClassifyResult.schema
MARKS = {DETECT: "boxes", SEGMENT: "regions", CLASSIFY: "labels"}
"""The column of a row that has its marks."""
NEEDED = {
    DETECT: ("width", "height", "boxes"),
    SEGMENT: ("width", "height", "regions"),
    CLASSIFY: ("labels", "abstained"),
}
"""The columns that annotations are made from, beside path, id and error."""
MOST_PIXELS = 250_000_000
"""As `segment` writes at most."""


@dataclass(frozen=True)
class Annotation:
    """A box, a mask, or a label of the whole image."""

    label: str
    score: float
    box: tuple[float, float, float, float] | None = None
    """Left, top, right and bottom, in pixels of the upright image."""
    rle: Mapping[str, Any] | None = None
    """As `results.coco_rle` has it."""

    def mask(self) -> Mask:
        """bool [height width]."""
        return decode(dict(self.rle or {}))


@dataclass(frozen=True)
class AnnotatedImage:
    """An image that could be read, and its marks, best first."""

    name: str
    """As its row has it: a path, an address, a label of an image in an archive."""
    id: str | None
    """The sha256 of its file."""
    width: int
    """Of the upright image; 0 for labels of the whole image."""
    height: int
    marks: tuple[Annotation, ...]


@dataclass(frozen=True)
class Annotations:
    """The rows of a run, and what is known of it."""

    schema: str
    rows: Callable[[], Iterable[Row]]
    """All rows, as often as needed."""
    labels: Sequence[str] = ()
    """What was looked for, in its order; the labels of the rows, sorted, come after them."""
    several: bool = False
    """Whether several labels of a whole image may hold; otherwise the first one does."""
    model: str = ""
    """What made the rows, in one line."""
    root: Path | None = None
    """The folder that names of images are relative to."""

    def images(self) -> Iterator[AnnotatedImage]:
        """Each image once, in the order of the rows; images that could not be read are left out.

        Raises:
            UserError: a row that says something else than rows of this schema do.
        """
        seen = set()
        for row in self.rows():
            if row.get("error") or row.get("error_type"):
                continue
            image = _image(row, self.schema, self.several)
            if (image.name, image.id) not in seen:
                seen.add((image.name, image.id))
                yield image

    def names(self) -> list[str]:
        """The labels by their class ids, from 0."""
        known = dict.fromkeys(self.labels)
        found = {mark.label for image in self.images() for mark in image.marks}
        return [*known, *sorted(found - known.keys())]

    def relative(self) -> Callable[[str], str]:
        """The name of an image, relative to `root`, with slashes; addresses stay as they are.

        Without a `root` it is the working folder; or, if an image is outside of that, the folder
        that all images share.

        Raises:
            UserError: an image is outside of the `root` that was given.
        """
        root = os.path.abspath(self.root or os.curdir)
        if self.root is None:
            folders = {os.path.dirname(_absolute(x.name)) for x in self.images() if is_path(x.name)}
            if any(_below(folder, root) is None for folder in folders):
                root = os.path.commonpath(folders)

        def name(path: str) -> str:
            below = _below(_absolute(path), root) if is_path(path) else path
            if below is None:
                raise UserError(
                    f"'{path}' is not in '{root}', the folder that names are relative to: give "
                    "another one by --export-root"
                )
            return below

        return name


def is_path(name: str) -> bool:
    """Whether it is no address such as https://..."""
    return "://" not in name


def _absolute(path: str) -> str:
    return os.path.abspath(path.replace("\0", "_"))


def _below(path: str, root: str) -> str | None:
    relative = os.path.relpath(path, root)
    outside = relative.split(os.sep)[0] == os.pardir
    return None if outside else relative.replace(os.sep, "/")


def _image(row: Row, schema: str, several: bool) -> AnnotatedImage:
    name = str(row.get("path") or f"image-{row.get('id')}")
    try:
        known, id = _value(row[MARKS[schema]]), row.get("id")
        if not isinstance(known, list):
            raise ValueError(f"{known!r:.60} is no list")
        if not isinstance(id, str | None):
            raise ValueError(f"an id {id!r:.60}")
        sized = schema != CLASSIFY
        width, height = (int(row[side]) if sized else 0 for side in ("width", "height"))
        if sized and not (width > 0 and height > 0 and width * height <= MOST_PIXELS):
            raise ValueError(f"a size of {width} x {height} pixels")
        if schema == CLASSIFY:
            known = [] if _value(row["abstained"]) else known if several else known[:1]
        marks = tuple(_mark(mark, width, height) for mark in known)
    except KeyError as error:
        raise UserError(f"the row of '{name}' has no {error}, which annotations need") from error
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"the row of '{name}' has {MARKS[schema]} of another form: {error}"
        ) from error
    return AnnotatedImage(name, id, width, height, marks)


def _value(cell: Any) -> Any:
    """The value of a cell, which a table has as JSON."""
    return json.loads(cell) if isinstance(cell, str) else cell


def _mark(mark: Mapping[str, Any], width: int, height: int) -> Annotation:
    label, score = mark["label"], float(mark["score"])
    if not isinstance(label, str):
        raise ValueError(f"a label {label!r:.60}")
    if not math.isfinite(score):
        raise ValueError(f"a score {score}")
    if "box" in mark:
        left, top, right, bottom = (float(side) for side in mark["box"])
        if not (0 <= left <= right <= width + 0.01 and 0 <= top <= bottom <= height + 0.01):
            raise ValueError(f"a box {mark['box']!r:.60} outside of {width} x {height} pixels")
        return Annotation(label, score, (left, top, right, bottom))
    if "rle" in mark:
        if list(mark["rle"]["size"]) != [height, width]:
            raise ValueError(f"a mask of another size than {width} x {height} pixels")
        if not isinstance(mark["rle"]["counts"], str):
            raise ValueError(f"counts of a mask {mark['rle']['counts']!r:.60}")
        return Annotation(label, score, rle=mark["rle"])
    return Annotation(label, score)
