"""Rows that nobody measured: images with what was said of them, in groups.

Labels are grouped by the best one, hits by their query, copies by their group, pairs by whether
they are kept. Each kind of rows is one function from rows to groups.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from zeroshot.errors import UserError, counted
from zeroshot.inputs.text_files import is_number
from zeroshot.output.formats import Row
from zeroshot.report.result_files import RowFile
from zeroshot.report.thumbnails import thumbnail

SIDE = 200
"""Longer side of a thumbnail in pixels."""
AT_ONCE = 12
"""Images of a group that are shown before the others are asked for."""
MOST = 600
"""Images of a file that are on the page."""
UNSURE = 0.1
"""Share of the images that are marked as the least sure."""
SEVERAL = 4
"""Fewer images have no least sure one."""
SHARES = ("softmax", "uncalibrated")
"""Scores that sum to one, so that the best two can be compared."""
NAMED = 30
"""Groups that the table of contents names."""


@dataclass
class Tile:
    """An image, and lines about it."""

    path: str
    lines: Sequence[str]
    mark: str = ""
    size: tuple[int, int] = (0, 0)
    boxes: Sequence[tuple[float, float, float, float, str]] = ()
    """Left, top, width, height in pixels of that size, and what it is."""
    thumbnail: str = ""
    name: str = ""


@dataclass
class Cluster:
    """Images of one group; `rest` is shown when asked for."""

    title: str
    tiles: list[Tile]
    count: int = 0
    rest: list[Tile] = field(default_factory=list)

    @property
    def left_out(self) -> int:
        """Images that are not on the page."""
        return self.count - len(self.tiles) - len(self.rest)


@dataclass(frozen=True)
class RowGallery:
    """A file of rows."""

    heading: str
    name: str
    count: int
    note: str
    clusters: Sequence[Cluster]
    failures: Sequence[tuple[str, str]]
    wide: bool
    """Whether its lines are sentences."""


Clusters = Iterable[tuple[str, list[Tile]]]


def gallery(file: RowFile, most: int | None = None) -> RowGallery:
    """The images of a file in groups, at most `most` of them with thumbnails.

    Raises:
        UserError: rows that no command writes.
    """
    heading, note, wide, clusters_of = KINDS[file.schema]
    good = [row for row in file.rows if not row.get("error")]
    try:
        clusters = [
            Cluster(title, tiles, len(tiles)) for title, tiles in clusters_of(good) if tiles
        ]
        failures = [_failure(row) for row in file.rows if row.get("error")]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"'{file.name}' has a row that is none of {file.schema} ({type(error).__name__}: "
            f"{error!s:.80})"
        ) from None
    _show(clusters, MOST if most is None else most)
    return RowGallery(heading, file.name, len(file.rows), note, clusters, failures, wide)


def _failure(row: Row) -> tuple[str, str]:
    error = row["error"]
    reason = error.get("message") if isinstance(error, Mapping) else error
    return _text(row.get("path")), _text(reason)


def _show(clusters: Sequence[Cluster], most: int) -> None:
    """Split groups into what is shown, what is asked for, and what is left out; thumbnails.

    Small groups are shown whole, large ones get an equal share of what is left.
    """
    for number, cluster in enumerate(sorted(clusters, key=lambda cluster: cluster.count)):
        room = min(cluster.count, most // (len(clusters) - number))
        most -= room
        cluster.rest = cluster.tiles[AT_ONCE:room]
        cluster.tiles = cluster.tiles[: min(AT_ONCE, room)]
        for tile in (*cluster.tiles, *cluster.rest):
            tile.name = PurePath(tile.path).name
            tile.thumbnail = thumbnail(tile.path, SIDE)


# Each kind of rows


def _labels(rows: Sequence[Row]) -> Clusters:
    """By the best label, the largest group first; the least sure images first."""
    shares = all(row.get("scored", "softmax") in SHARES for row in rows)
    sure = {i: _sureness(row["labels"], shares) for i, row in enumerate(rows) if row["labels"]}
    marked = set(sorted(sure, key=sure.__getitem__)[: round(UNSURE * len(sure)) or 1])
    if len(sure) < SEVERAL:
        marked = set()
    groups: dict[str, list[tuple[float, Tile]]] = {}
    none: list[tuple[float, Tile]] = []
    for i, row in enumerate(rows):
        labels = [f"{_text(x['label'])} {_number(x['score'])}" for x in row["labels"][:3]]
        abstained = bool(row.get("abstained")) or not labels
        mark = "least sure" if i in marked and not abstained else ""
        tile = Tile(_path(row), labels or ["no label holds"], mark)
        best = "" if abstained else _text(row["labels"][0]["label"])
        (none if abstained else groups.setdefault(best, [])).append((sure.get(i, 0.0), tile))
    for label, tiles in sorted(groups.items(), key=lambda item: -len(item[1])):
        yield label, [tile for _, tile in sorted(tiles, key=lambda pair: pair[0])]
    yield "Without a label", [tile for _, tile in sorted(none, key=lambda pair: -pair[0])]


def _sureness(labels: Sequence[Mapping[str, Any]], shares: bool) -> float:
    """How far the best label is ahead of the second; its score if several may hold."""
    scores = [float(label["score"]) for label in labels[:2]]
    return scores[0] - scores[1] if shares and len(scores) > 1 else scores[0]


def _captions(rows: Sequence[Row]) -> Clusters:
    yield "", [Tile(_path(row), [_text(row["caption"])]) for row in rows]


def _captioned_boxes(rows: Sequence[Row]) -> Clusters:
    tiles = []
    for row in rows:
        tile = Tile(_path(row), [_text(x["caption"]) for x in row["regions"]] or ["no boxes"])
        tile.size = int(row["width"]), int(row["height"])
        tile.boxes = [_box(x, _text(x["caption"])) for x in row["regions"]]
        tiles.append(tile)
    yield "", tiles


def _texts(rows: Sequence[Row]) -> Clusters:
    yield "", [Tile(_path(row), [_text(row["text"]) or "no text"]) for row in rows]


def _hits(rows: Sequence[Row]) -> Clusters:
    queries: dict[str, list[Tile]] = {}
    for row in rows:
        lines = [f"{row['rank']:d}. {_number(row['score'])}"]
        if row.get("hidden"):
            lines.append(f"{row['hidden']:d} copies hidden")
        queries.setdefault(_text(row["query"]), []).append(Tile(_path(row), lines))
    yield from queries.items()


def _boxes(rows: Sequence[Row]) -> Clusters:
    found: list[Tile] = []
    nothing: list[Tile] = []
    for row in rows:
        best: dict[str, float] = {}
        count = Counter(_text(box["label"]) for box in row["boxes"])
        for box in row["boxes"]:
            best[box["label"]] = max(best.get(box["label"], -math.inf), float(box["score"]))
        lines = [
            f"{label}{f' x {count[label]}' if count[label] > 1 else ''} {_number(best[label])}"
            for label in sorted(best, key=lambda label: -best[label])
        ]
        tile = Tile(_path(row), lines or ["nothing"])
        tile.size = int(row["width"]), int(row["height"])
        tile.boxes = [
            _box(box, f"{_text(box['label'])} {_number(box['score'])}") for box in row["boxes"]
        ]
        (found if lines else nothing).append(tile)
    yield "Something found", found
    yield "Nothing found", nothing


def _regions(rows: Sequence[Row]) -> Clusters:
    found = []
    for row in rows:
        lines = [f"{_text(x['label'])} {100 * float(x['share']):.0f} %" for x in row["regions"]]
        found.append(Tile(_path(row), lines or ["nothing but background"]))
    yield "", found


def _copies(rows: Sequence[Row]) -> Clusters:
    groups: dict[int, list[Tile]] = {}
    alone = []
    for row in sorted(rows, key=lambda row: not row["keep"]):
        if row["group"] is None:
            alone.append(Tile(_path(row), ["no copies"]))
            continue
        size = f"{row['width']} x {row['height']}" if row.get("width") else ""
        lines = [size] if row["keep"] else [f"{_text(row['kind'])} copy", size]
        mark = "keep" if row["keep"] else ""
        tile = Tile(_path(row), [line for line in lines if line], mark)
        groups.setdefault(int(row["group"]), []).append(tile)
    for number, tiles in sorted(groups.items()):
        yield f"Group {number}", tiles
    yield "Without copies", alone


def _pairs(rows: Sequence[Row]) -> Clusters:
    for kept, title in ((True, "Kept"), (False, "Left out")):
        own = sorted((r for r in rows if r["kept"] is kept), key=lambda r: -float(r["score"]))
        yield (
            title,
            [
                Tile(
                    _path(row),
                    [f"{_number(row['score'])} {_text(row['caption'])}"],
                    "copy" if row.get("copy_of") else "",
                )
                for row in own
            ],
        )


def _matches(rows: Sequence[Row]) -> Clusters:
    yield (
        "",
        [
            Tile(_path(row), [f"{_number(x['score'])} {_text(x['text'])}" for x in row["texts"]])
            for row in rows
        ],
    )


def _answers(rows: Sequence[Row]) -> Clusters:
    questions: dict[str, list[Tile]] = {}
    for row in rows:
        for one in row["questions"]:
            lines = [
                _text(answer["answer"])
                + ("" if answer["score"] is None else f" {_number(answer['score'])}")
                for answer in one["answers"][:3]
            ]
            tile = Tile(_path(row), lines or ["no answer"])
            questions.setdefault(_text(one["question"]), []).append(tile)
    yield from questions.items()


def _words(rows: Sequence[Row]) -> Clusters:
    kinds: dict[str, list[Tile]] = {"Images": [], "Folders": [], "Texts": []}
    for row in rows:
        lines = [f"{_text(x['word'])} {_number(x['weight'])}" for x in row["words"]]
        text, lines = _text(row.get("text")), lines or ["no words"]
        kind = "Texts" if text else "Folders" if "images" in row else "Images"
        kinds[kind].append(Tile(_path(row), [text, *lines] if text else lines))
    yield from kinds.items()


KINDS: Mapping[str, tuple[str, str, bool, Callable[[Sequence[Row]], Clusters]]] = {
    "zeroshot.classify/1": (
        "Labels",
        "Grouped by the best label, the least sure images of each group first. Marked is the tenth "
        "of all images whose best label is the least ahead of the second (of scores that do not "
        "sum to one, the lowest).",
        False,
        _labels,
    ),
    "zeroshot.caption/1": ("Captions", "", True, _captions),
    "zeroshot.regions/1": (
        "Captions of regions",
        "The captions in the order of the boxes.",
        True,
        _captioned_boxes,
    ),
    "zeroshot.read/1": ("Text in the images", "", True, _texts),
    "zeroshot.search/1": ("Hits", "The best ranked first.", False, _hits),
    "zeroshot.detect/1": (
        "Boxes",
        "The best score of each label.",
        False,
        _boxes,
    ),
    "zeroshot.segment/1": ("Regions", "Shares of the image.", False, _regions),
    "zeroshot.dedupe/1": ("Copies", "The image to keep comes first.", False, _copies),
    "zeroshot.filter/1": ("Pairs", "The cosine and the caption, the highest first.", True, _pairs),
    "zeroshot.match/1": ("Texts that match", "The score and the text.", True, _matches),
    "zeroshot.ask/1": ("Answers", "", False, _answers),
    "zeroshot.explain/1": ("Words", "The largest weight first.", False, _words),
}
"""For each kind of rows: a heading, a note, whether lines are sentences, and its groups."""


def _path(row: Row) -> str:
    return _text(row["path"])


def _box(box: Mapping[str, Any], title: str) -> tuple[float, float, float, float, str]:
    left, top, right, bottom = map(float, box["box"])
    return left, top, max(0.0, right - left), max(0.0, bottom - top), title


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is no text")
    return value


def _number(value: object) -> str:
    if not is_number(value):
        raise ValueError(f"{value!r:.40} is no number")
    return f"{value:.2f}"


def summary(one: RowGallery) -> str:
    """`56 images, 1 of them without a result`."""
    failed = f", {len(one.failures)} without a result" if one.failures else ""
    return f"{counted(one.count, 'row')}{failed}"
