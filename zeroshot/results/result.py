"""The results of tasks: one frozen result per image, also for an image that failed.

A result gives its row (the JSON that the command line prints), and a table with thumbnails in a
notebook.
"""

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from PIL.Image import Image

from zeroshot.errors import NotAvailableError, UnreadableImageError
from zeroshot.images.clips import frames_of, open_clip
from zeroshot.images.reading import open_image
from zeroshot.inputs.remote.public_names import public
from zeroshot.inputs.source import Source
from zeroshot.results.data_frames import DataTable
from zeroshot.results.notebook_table import Line, Reason, TableRow, html_table
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
    heading: ClassVar[str] = "answer"
    """Of the answers, in a notebook's table."""

    def __init_subclass__(cls, **more: Any) -> None:
        """Every kind of result shows its path, also in tracebacks and in lists."""
        super().__init_subclass__(**more)
        cls.__repr__ = Result.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        shown = {"path": self.path} | {
            f.name: getattr(self, f.name) for f in fields(self) if f.repr
        }
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"

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

    def lines(self) -> list[Line]:
        """The answer for a notebook's table, with scores that it draws as bars."""
        return [Line(self.summary())]

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
    heading: ClassVar[str] = "score, caption"

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

    def trace_rows(self) -> list[dict[str, Any]]:
        """The traces of all captions of the image."""
        return [self.trace_row()]

    def summary(self) -> str:
        """The caption."""
        return self.caption or ""

    def lines(self) -> list[Line]:
        """The caption with its score."""
        return [Line(self.summary(), self.score)]


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
    heading: ClassVar[str] = "score, label"

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

    def lines(self) -> list[Line]:
        """Each label with its score."""
        if self.abstained:
            return [Line("abstained"), *(Line(x.label, x.score) for x in self.labels)]
        return [Line(x.label, x.score) for x in self.labels]


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
    hidden: int | None = None
    """Number of copies of it that are left out before the last hit; None if none are looked for."""
    explanation: tuple[AnchorContribution, ...] = ()
    """Anchors behind the hit, largest share first; all shares sum to its cosine."""

    schema: ClassVar[str] = "zeroshot.search/1"
    heading: ClassVar[str] = "score, hit"

    def answer(self) -> dict[str, Any]:
        """`query`, `rank`, `score`, `cosine`, and `hidden` if copies are left out."""
        more = {} if self.hidden is None else {"hidden": self.hidden}
        return {
            "query": self.query,
            "rank": self.rank,
            "score": as_float32(self.score),
            "cosine": as_float32(self.cosine),
            **more,
            **_explanation_row(self.explanation),
        }

    def summary(self) -> str:
        """`a red heart: 1. 0.312`, and below it the anchors that explain it."""
        lines = [f"{self.query}: {self.rank}. {self.score:.3f}"]
        return "\n".join(lines + [x.line for x in self.explanation])

    def lines(self) -> list[Line]:
        """`1. a red heart` with its score."""
        return [Line(f"{self.rank}. {self.query}", self.score)]


@dataclass(frozen=True)
class FilterResult(Result):
    """A pair of an image and a caption, their cosine, and whether the pair is kept."""

    caption: str = ""
    score: float = 0.0
    kept: bool = False
    truncated: bool = False
    """Whether the encoder read only the beginning of the caption."""
    copy_of: str | None = None
    """The image of a pair with a higher score that this one is left out for, as its copy."""

    schema: ClassVar[str] = "zeroshot.filter/1"

    def answer(self) -> dict[str, Any]:
        """`caption`, `score`, `kept`, `truncated` if it is, and `copy_of` if that is why."""
        more: dict[str, Any] = {"truncated": True} if self.truncated else {}
        more |= {} if self.copy_of is None else {"copy_of": self.copy_of}
        return {"caption": self.caption, "score": as_float32(self.score), "kept": self.kept} | more

    def summary(self) -> str:
        """`kept 0.312  a dog on a beach`."""
        return f"{'kept' if self.kept else '    '} {self.score:.3f}  {self.caption}"


R = TypeVar("R", bound=Result)


class Results(list[R], Generic[R]):
    """A list of results, which is a table too: in a notebook, and as a data frame."""

    def __init__(self, results: Iterable[R] = (), schema: str | None = None) -> None:
        super().__init__(results)
        self._schema = schema

    @property
    def schema(self) -> str | None:
        """The kind of the rows; None for an empty list of which it is not known."""
        return self[0].schema if self else self._schema

    @property
    def failed(self) -> "Results[R]":
        """The results with an error."""
        return Results((r for r in self if r.error is not None), self.schema)

    def rows(self) -> list[dict[str, Any]]:
        """All rows, ready for `json`."""
        return [r.row() for r in self]

    def to_pandas(self, *, long: bool = False) -> Any:
        """A `pandas.DataFrame` with a line for each result, in their order.

        Columns are those of `--out x.parquet`; an `embedding` is an array of float32. A failed
        image has `error_type` and `error_message`, and no other values.

        Args:
            long: a line for each label (`classify`), box (`detect`, with its sides in pixels),
                region (`segment`), text (`match`) or answer (`ask`). An image without any has one
                line.

        Raises:
            NotAvailableError: pandas is not installed.
        """
        return self._table(long).to_pandas()

    def to_polars(self, *, long: bool = False) -> Any:
        """A `polars.DataFrame`, as `to_pandas`; NotAvailableError without polars."""
        return self._table(long).to_polars()

    def to_arrow(self, *, long: bool = False) -> Any:
        """A `pyarrow.Table`, as `to_pandas`; NotAvailableError without pyarrow.

        Every library that reads Arrow takes it: `duckdb.from_arrow(results.to_arrow())`.
        """
        return self._table(long).to_arrow()

    def _table(self, long: bool) -> DataTable:
        return DataTable.from_rows(map(Result.row, self), self.schema, long)

    def _repr_html_(self) -> str:
        shown, heading = self[:MOST_SHOWN], self[0].heading if self else "answer"
        return html_table(list(map(_shown, shown)), heading, len(self) - len(shown))


def _shown(result: Result) -> TableRow:
    name = result.path or ""
    if result.error is not None:
        return TableRow("", name, failure=result.error.message)
    anchors = result.explanation if isinstance(result, ClassifyResult | SearchResult) else ()
    reasons = [
        Reason(
            anchor.share,
            "" if anchor.path is None else thumbnail(Source(anchor.path)),
            anchor.anchor,
            "; ".join(anchor.captions) or anchor.anchor,
        )
        for anchor in anchors
    ]
    return TableRow(thumbnail(result.source), name, result.lines(), reasons)


def _explanation_row(anchors: tuple[AnchorContribution, ...]) -> dict[str, Any]:
    return {"because": [anchor.row() for anchor in anchors]} if anchors else {}


def thumbnail(source: Source, size: int = THUMBNAIL) -> str:
    """An image of at most `size` pixels as a data URL, a JPEG; of a video, its middle frame.

    Empty if the file no longer exists.
    """
    image = _open(source)
    if image is None:
        return ""
    image.thumbnail((size, size))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


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
