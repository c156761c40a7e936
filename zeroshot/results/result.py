"""The results of tasks: one frozen result per image, also for an image that failed.

A result gives its row (the JSON that the command line prints), and a table with thumbnails in a
notebook.
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from PIL.Image import Image

from zeroshot.errors import NotAvailableError, UnreadableImageError
from zeroshot.images.clips import frames_of, open_clip
from zeroshot.images.reading import open_image
from zeroshot.inputs.remote.public_names import public
from zeroshot.inputs.source import Source
from zeroshot.trace import Trace

THUMBNAIL = 96
"""Longer side of a thumbnail in pixels."""
MOST_SHOWN = 100
"""Results in a notebook's table; below it stands how many more there are."""


@dataclass(frozen=True)
class Failure:
    """Why an image has no result."""

    type: str
    message: str

    @classmethod
    def from_error(cls, error: UnreadableImageError) -> "Failure":
        """The class's name without `Error`, and its message, in which addresses show no secrets."""
        return cls(type(error).__name__.removesuffix("Error"), public(str(error)))


@dataclass(frozen=True)
class Label:
    """One label of one image: its score as the task defines it, and the raw cosine."""

    label: str
    score: float
    cosine: float


@dataclass(frozen=True)
class AnchorContribution:
    """An anchor that contributes to a cosine: its share, captions and image."""

    anchor: str
    share: float
    captions: tuple[str, ...] = ()
    path: str | None = None

    @property
    def line(self) -> str:
        """`+0.123  a dog; a cat`: the share, and the captions or else the anchor's name."""
        return f"{self.share:+.3f}  {'; '.join(self.captions) or self.anchor}"

    def row(self) -> dict[str, Any]:
        """JSON-ready fields."""
        fields = {"anchor": self.anchor, "share": as_float32(self.share)}
        return fields | {"captions": list(self.captions), "path": self.path}


@dataclass(frozen=True)
class Result:
    """The result of one image; `error` is None unless it failed."""

    source: Source = field(repr=False)
    id: str | None
    error: Failure | None = None
    models: Mapping[str, str] = field(default_factory=dict, repr=False)
    method: str = ""

    schema: ClassVar[str]

    @property
    def path(self) -> str | None:
        """The path as the user gave it, or the label of an image in memory."""
        return self.source.path

    def answer(self) -> dict[str, Any]:
        """The fields of the row that differ between tasks."""
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
    """The beginning or the title, if there was one."""
    scored: str = "cosine"
    """What the score is; that of a trained captioner is the mean `probability` of a token."""
    trace: Trace | None = field(default=None, repr=False)
    """Every choice that made the caption, if they were recorded."""

    schema: ClassVar[str] = "zeroshot.caption/1"

    def answer(self) -> dict[str, Any]:
        """`caption`, `score`, `scored` unless it is the cosine, and `prompt` if there was one."""
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
    none: float | None = None
    """The probability that it shows none of the labels, if that was asked for."""
    label_set: tuple[str, ...] | None = None
    """The labels that are possible, the likeliest first, if sets were asked for."""
    explanation: tuple[AnchorContribution, ...] = ()
    """Anchors behind the best label, largest share first; all shares sum to its cosine."""

    schema: ClassVar[str] = "zeroshot.classify/1"

    def answer(self) -> dict[str, Any]:
        """`labels`, `abstained`, `scored`, and `none` and `label_set` if they were asked for."""
        labels = [
            {"label": x.label, "score": as_float32(x.score), "cosine": as_float32(x.cosine)}
            for x in self.labels
        ]
        answer = {"labels": labels, "abstained": self.abstained, "scored": self.scored}
        if self.none is not None:
            answer["none"] = as_float32(self.none)
        if self.label_set is not None:
            answer["label_set"] = list(self.label_set)
        return answer | _explanation_row(self.explanation)

    def summary(self) -> str:
        """`cat 0.91, dog 0.06, bird 0.02`, and the anchors that explain the first."""
        lines = [", ".join(f"{x.label} {x.score:.2f}" for x in self.labels[:3])]
        if self.none is not None:
            lines[0] = f"none of these {self.none:.2f}; {lines[0]}"
        if self.label_set is not None:
            lines.append(f"set: {', '.join(self.label_set) or 'empty'}")
        return "\n".join(lines + [x.line for x in self.explanation])


@dataclass(frozen=True)
class EmbedResult(Result):
    """A unit embedding in float32."""

    embedding: tuple[float, ...] = field(default=(), repr=False)
    caption: str | None = None
    """The image's caption, if captions are embedded too."""
    text_embedding: tuple[float, ...] = field(default=(), repr=False)
    """The embedding of the caption; the row does not have it."""

    schema: ClassVar[str] = "zeroshot.embed/1"

    def answer(self) -> dict[str, Any]:
        """`dim`, `embedding`, and `caption` if there is one."""
        numbers = [as_float32(x) for x in self.embedding]
        caption = {} if self.caption is None else {"caption": self.caption}
        return {"dim": len(self.embedding), "embedding": numbers, **caption}

    def summary(self) -> str:
        """`512 numbers: 0.01, -0.03, ...`."""
        head = ", ".join(f"{x:.2f}" for x in self.embedding[:3])
        return f"{len(self.embedding)} numbers: {head}, ..."


@dataclass(frozen=True)
class SearchResult(Result):
    """A hit of a query."""

    query: str = ""
    query_number: int = 0
    """The index of the query."""
    rank: int = 0
    """From 1, the best hit."""
    score: float = 0.0
    """The score that decides the rank: the cosine, or that of a method that re-ranks."""
    cosine: float = 0.0
    explanation: tuple[AnchorContribution, ...] = ()
    """Anchors behind the hit, largest share first; all shares sum to its cosine."""

    schema: ClassVar[str] = "zeroshot.search/1"

    def answer(self) -> dict[str, Any]:
        """`query`, `rank`, `score`, `cosine`."""
        return {
            "query": self.query,
            "rank": self.rank,
            "score": as_float32(self.score),
            "cosine": as_float32(self.cosine),
            **_explanation_row(self.explanation),
        }

    def summary(self) -> str:
        """`a red heart: 1. 0.312`, and below it the anchors that explain it."""
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
        """`caption`, `score`, `kept`, and `truncated` if it is."""
        more = {"truncated": True} if self.truncated else {}
        return {"caption": self.caption, "score": as_float32(self.score), "kept": self.kept} | more

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
        """The results with an error."""
        return Results(r for r in self if r.error is not None)

    def rows(self) -> list[dict[str, Any]]:
        """All rows, ready for `json` or a data frame."""
        return [r.row() for r in self]

    def _repr_html_(self) -> str:
        body = "".join(_html_row(r) for r in self[:MOST_SHOWN])
        more = f"<p>... and {len(self) - MOST_SHOWN} more</p>" if self[MOST_SHOWN:] else ""
        return f"<table>{body}</table>{more}"


def _html_row(result: Result) -> str:
    name = html.escape(result.path or "")
    if result.error is not None:
        message = f"<i>{html.escape(result.error.message)}</i>"
        return f"<tr><td></td><td>{name}</td><td>{message}</td></tr>"
    image = f'<img src="{thumbnail(result.source)}" alt="{name}">'
    answer, *_ = html.escape(result.summary()).split("\n")
    anchors = result.explanation if isinstance(result, ClassifyResult | SearchResult) else ()
    if anchors:
        answer = f"{answer}<table>{''.join(map(_html_anchor, anchors))}</table>"
    return f"<tr><td>{image}</td><td>{name}</td><td>{answer}</td></tr>"


def _html_anchor(anchor: AnchorContribution) -> str:
    captions = html.escape("; ".join(anchor.captions) or anchor.anchor)
    image = ""
    if anchor.path is not None and (data := thumbnail(Source(anchor.path))):
        image = f'<img src="{data}" alt="{html.escape(anchor.anchor)}">'
    return f"<tr><td>{anchor.share:+.3f}</td><td>{image}</td><td>{captions}</td></tr>"


def _explanation_row(anchors: tuple[AnchorContribution, ...]) -> dict[str, Any]:
    return {"because": [anchor.row() for anchor in anchors]} if anchors else {}


def thumbnail(source: Source, size: int = THUMBNAIL, kind: Literal["PNG", "JPEG"] = "PNG") -> str:
    """An image of at most `size` pixels as a data URL; of a video, its middle frame.

    Empty if the file no longer exists.
    """
    image = _open(source)
    if image is None:
        return ""
    image.thumbnail((size, size))
    data = io.BytesIO()
    image.save(data, kind, quality=82)  # PNG has no quality
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"


def _open(source: Source) -> Image | None:
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
