"""What the tasks give back: one frozen result per image, a failed image included.

A result knows its row (the JSON the command line prints) and shows itself as a table with
thumbnails in a notebook.
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from PIL.Image import Image

from zeroshot.errors import NotAvailableError, UnreadableImageError
from zeroshot.images.clips import frames_of, open_clip
from zeroshot.images.reading import open_image
from zeroshot.inputs.source import Source
from zeroshot.trace import Trace

THUMBNAIL = 96
"""Longer side of a thumbnail in pixels."""
SHOWN = 100
"""Rows of a notebook table that get a thumbnail; a longer list says how many more there are."""


@dataclass(frozen=True)
class Failure:
    """Why an image has no answer."""

    type: str
    message: str

    @classmethod
    def from_error(cls, error: UnreadableImageError) -> "Failure":
        """The class's name without `Error`, and its message."""
        return cls(type(error).__name__.removesuffix("Error"), str(error))


@dataclass(frozen=True)
class Label:
    """One class of one image: its score as the task defines it, and the raw cosine."""

    label: str
    score: float
    cosine: float


@dataclass(frozen=True)
class AnchorContribution:
    """An anchor that contributes to a decision: its share of the cosine, captions and image."""

    anchor: str
    share: float
    captions: tuple[str, ...] = ()
    path: str | None = None

    @property
    def line(self) -> str:
        """`+0.123  a dog; a cat`: share, and captions or the anchor's name."""
        return f"{self.share:+.3f}  {'; '.join(self.captions) or self.anchor}"

    def row(self) -> dict[str, Any]:
        """JSON-ready fields."""
        held = {"anchor": self.anchor, "share": as_float32(self.share)}
        return held | {"captions": list(self.captions), "path": self.path}


@dataclass(frozen=True)
class Result:
    """One image and what became of it; `error` is None where all went well."""

    source: Source = field(repr=False)
    id: str | None
    error: Failure | None = None
    models: Mapping[str, str] = field(default_factory=dict, repr=False)
    method: str = ""

    schema: ClassVar[str]

    @property
    def path(self) -> str | None:
        """The path as it was given, or the label of an image in memory."""
        return self.source.path

    def answer(self) -> dict[str, Any]:
        """The task's own part of the row."""
        raise NotImplementedError

    def summary(self) -> str:
        """The answer in one line, for a table."""
        raise NotImplementedError

    def row(self) -> dict[str, Any]:
        """The result as JSON-ready fields; floats are the shortest that name a float32."""
        if self.error is not None:
            error = {"type": self.error.type, "message": self.error.message}
            return {"schema": self.schema, "path": self.path, "id": self.id, "error": error}
        return {
            "schema": self.schema,
            "path": self.path,
            "id": self.id,
            **self.answer(),
            "models": dict(self.models),
            "method": self.method,
        }

    def _repr_html_(self) -> str:
        return Results([self])._repr_html_()


@dataclass(frozen=True)
class CaptionResult(Result):
    """A caption and the cosine of its embedding with the image's."""

    caption: str | None = None
    score: float | None = None
    prompt: str | None = None
    """The beginning or the title that was asked for."""
    scored: str = "cosine"
    """What the score is; a trained captioner's is the mean `probability` of a token."""
    trace: Trace | None = field(default=None, repr=False)
    """Every choice that made the caption, where a trace was asked for."""

    schema: ClassVar[str] = "zeroshot.caption/1"

    def answer(self) -> dict[str, Any]:
        """`caption`, `score`, `scored` if that is no cosine, and `prompt` if there was one."""
        more = {"scored": self.scored} if self.scored != "cosine" else {}
        more |= {"prompt": self.prompt} if self.prompt else {}
        return {"caption": self.caption, "score": as_float32(self.score or 0.0), **more}

    def trace_row(self) -> dict[str, Any]:
        """The trace as JSON-ready fields."""
        steps = self.trace.rows() if self.trace else []
        known = {"path": self.path, "id": self.id, "caption": self.caption}
        return {"schema": "zeroshot.trace/1", **known, "steps": steps}

    def summary(self) -> str:
        """The caption."""
        return self.caption or ""


@dataclass(frozen=True)
class ClassifyResult(Result):
    """The best labels, best first; `scored` says what a score is (softmax, sigmoid, ...)."""

    labels: tuple[Label, ...] = ()
    abstained: bool = False
    scored: str = "softmax"
    explanation: tuple[AnchorContribution, ...] = ()
    """Anchors behind the best label, largest share first; all shares sum to its cosine."""

    schema: ClassVar[str] = "zeroshot.classify/1"

    def answer(self) -> dict[str, Any]:
        """`labels`, `abstained`, `scored`."""
        labels = [
            {"label": x.label, "score": as_float32(x.score), "cosine": as_float32(x.cosine)}
            for x in self.labels
        ]
        answer = {"labels": labels, "abstained": self.abstained, "scored": self.scored}
        because = {"because": [x.row() for x in self.explanation]} if self.explanation else {}
        return answer | because

    def summary(self) -> str:
        """`cat 0.91, dog 0.06, bird 0.02`, and the anchors behind the first."""
        lines = [", ".join(f"{x.label} {x.score:.2f}" for x in self.labels[:3])]
        return "\n".join(lines + [x.line for x in self.explanation])


@dataclass(frozen=True)
class EmbedResult(Result):
    """A unit row, float32."""

    embedding: tuple[float, ...] = field(default=(), repr=False)
    caption: str | None = None
    """That came with the image, where captions were to be embedded, too."""
    text_embedding: tuple[float, ...] = field(default=(), repr=False)
    """Of the caption; not part of the row."""

    schema: ClassVar[str] = "zeroshot.embed/1"

    def answer(self) -> dict[str, Any]:
        """`dim`, `embedding`, and `caption` where there is one."""
        numbers = [as_float32(x) for x in self.embedding]
        caption = {} if self.caption is None else {"caption": self.caption}
        return {"dim": len(self.embedding), "embedding": numbers, **caption}

    def summary(self) -> str:
        """`512 numbers: 0.01, -0.03, ...`."""
        head = ", ".join(f"{x:.2f}" for x in self.embedding[:3])
        return f"{len(self.embedding)} numbers: {head}, ..."


@dataclass(frozen=True)
class SearchResult(Result):
    """An image that answers a query: the `rank`-th best, counted from 1."""

    query: str = ""
    query_number: int = 0
    """Which of the queries, counted from 0."""
    rank: int = 0
    score: float = 0.0
    """What the rank follows: the cosine, or what a method makes of it."""
    cosine: float = 0.0
    explanation: tuple[AnchorContribution, ...] = ()
    """Anchors that contribute to the hit, largest share first; all shares sum to the cosine."""

    schema: ClassVar[str] = "zeroshot.search/1"

    def answer(self) -> dict[str, Any]:
        """`query`, `rank`, `score`, `cosine`."""
        because = {"because": [x.row() for x in self.explanation]} if self.explanation else {}
        return {
            "query": self.query,
            "rank": self.rank,
            "score": as_float32(self.score),
            "cosine": as_float32(self.cosine),
            **because,
        }

    def summary(self) -> str:
        """`a red heart: 1. 0.312`, and below it the anchors that contribute to it."""
        lines = [f"{self.query}: {self.rank}. {self.score:.3f}"]
        return "\n".join(lines + [x.line for x in self.explanation])


@dataclass(frozen=True)
class FilterResult(Result):
    """A pair of an image and a caption, their cosine, and whether the pair is kept."""

    caption: str = ""
    score: float = 0.0
    kept: bool = False
    truncated: bool = False
    """Whether the encoder read only the beginning of the caption."""

    schema: ClassVar[str] = "zeroshot.filter/1"

    def answer(self) -> dict[str, Any]:
        """`caption`, `score`, `kept`, and `truncated` where it is so."""
        cut = {"truncated": True} if self.truncated else {}
        return {"caption": self.caption, "score": as_float32(self.score), "kept": self.kept} | cut

    def summary(self) -> str:
        """`kept 0.312  a dog on a beach`."""
        return f"{'kept' if self.kept else '    '} {self.score:.3f}  {self.caption}"


R = TypeVar("R", bound=Result)


class Results(list[R], Generic[R]):
    """A list of results that shows as a table in a notebook."""

    def __init__(self, results: Iterable[R] = ()) -> None:
        super().__init__(results)

    @property
    def failed(self) -> "Results[R]":
        """Those that have an error."""
        return Results(r for r in self if r.error is not None)

    def rows(self) -> list[dict[str, Any]]:
        """All rows, ready for `json` or a data frame."""
        return [r.row() for r in self]

    def _repr_html_(self) -> str:
        body = "".join(_html_row(r) for r in self[:SHOWN])
        more = f"<p>... and {len(self) - SHOWN} more</p>" if len(self) > SHOWN else ""
        return f"<table>{body}</table>{more}"


def _html_row(result: Result) -> str:
    name = html.escape(result.path or "")
    if result.error is not None:
        said = f"<i>{html.escape(result.error.message)}</i>"
        return f"<tr><td></td><td>{name}</td><td>{said}</td></tr>"
    picture = f'<img src="{thumbnail(result.source)}" alt="{name}">'
    said, *_ = html.escape(result.summary()).split("\n")
    because = result.explanation if isinstance(result, ClassifyResult | SearchResult) else ()
    reasons = "".join(_html_reason(reason) for reason in because)
    if reasons:
        said = f"{said}<table>{reasons}</table>"
    return f"<tr><td>{picture}</td><td>{name}</td><td>{said}</td></tr>"


def _html_reason(reason: AnchorContribution) -> str:
    told = html.escape("; ".join(reason.captions) or reason.anchor)
    picture = ""
    if reason.path is not None and (data := thumbnail(Source(reason.path))):
        picture = f'<img src="{data}" alt="{html.escape(reason.anchor)}">'
    return f"<tr><td>{reason.share:+.3f}</td><td>{picture}</td><td>{told}</td></tr>"


def thumbnail(source: Source, size: int = THUMBNAIL) -> str:
    """A PNG of at most `size` pixels as a data address, of a clip its middle.

    Empty if the file is gone by now.
    """
    picture = _shown(source)
    if picture is None:
        return ""
    picture.thumbnail((size, size))
    data = io.BytesIO()
    picture.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _shown(source: Source) -> Image | None:
    try:
        return open_image(source)
    except UnreadableImageError:
        pass
    try:
        with open_clip(source) as clip:
            return frames_of(clip.file, 1)[0]
    except (UnreadableImageError, NotAvailableError):
        return None


def as_float32(number: float) -> float:
    """The shortest number that names the same float32."""
    return float(str(np.float32(number)))
