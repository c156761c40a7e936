"""How a caption was chosen: the candidates of every step, with the parts of their scores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from zeroshot.output.formats import Row
from zeroshot.report.thumbnails import thumbnail


@dataclass(frozen=True)
class CandidateRow:
    """A token with the parts of its total score, as widths from 0 to 100."""

    text: str
    likely: float
    guide: float
    total: str


@dataclass(frozen=True)
class Step:
    """A step: the best candidates, of which the first was chosen."""

    text: str
    candidates: Sequence[CandidateRow]


@dataclass(frozen=True)
class TraceTable:
    """The choices that made a caption."""

    name: str
    thumbnail: str
    caption: str
    steps: Sequence[Step]


def traces(rows: Sequence[Row], shown: int = 5) -> Iterator[TraceTable]:
    """The steps of each caption; a negative part of a score has no width."""
    for row in rows:
        path = str(row.get("path") or "")
        steps = []
        for step in row.get("steps", ()):
            best = step["candidates"][:shown]
            whole = max(1e-9, *(_parts(c)[0] + _parts(c)[1] for c in best)) if best else 1.0
            steps.append(
                Step(
                    str(step["text"]),
                    [
                        CandidateRow(
                            str(c["text"]) or "(end)",
                            round(100 * _parts(c)[0] / whole, 1),
                            round(100 * _parts(c)[1] / whole, 1),
                            f"{float(c['total']):.3f}",
                        )
                        for c in best
                    ],
                )
            )
        yield TraceTable(PurePath(path).name, thumbnail(path), str(row.get("caption") or ""), steps)


def _parts(candidate: Mapping[str, Any]) -> tuple[float, float]:
    """The language model's part minus the penalty, and the guide's part."""
    guide = float(candidate["guide"])
    return max(0.0, float(candidate["total"]) - guide), max(0.0, guide)
