"""Rows as a table: the columns of each kind of row, and data frames of pandas, polars and Arrow.

A row becomes one line; what it has several of (labels, boxes, ...) is JSON text in a cell, and the
first of them has columns of its own. In the long form each of them has a line instead.

Other libraries read the table of `to_arrow`, by the Arrow PyCapsule interface. There is no
`__dataframe__`: pandas deprecates that protocol in 3 and drops it in 4 (pandas-dev/pandas#56732),
and Arrow's manual sends its readers to the capsules. `Results` has no `__arrow_c_stream__` of its
own, since it is a list: pandas, polars, pyarrow and duckdb read a list as one before they ask.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zeroshot.errors import NotAvailableError
from zeroshot.packaging.extras import how_to_install

COLUMNS = {
    "zeroshot.caption/1": ("caption", "score"),
    "zeroshot.regions/1": ("width", "height", "regions"),
    "zeroshot.classify/1": (
        *("label", "score", "cosine", "abstained", "scored", "labels", "none", "label_set"),
    ),
    "zeroshot.embed/1": ("dim", "embedding"),
    "zeroshot.segment/1": ("width", "height", "regions", "scored", "mask", "drawn"),
    "zeroshot.detect/1": ("width", "height", "boxes", "drawn"),
    "zeroshot.match/1": ("text", "score", "label", "scored", "second", "texts"),
    "zeroshot.ask/1": ("question", "answer", "score", "scored", "questions"),
    "zeroshot.read/1": ("text", "score"),
    "zeroshot.filter/1": ("caption", "score", "kept", "truncated", "copy_of"),
    "zeroshot.search/1": ("query", "rank", "score", "cosine", "hidden", "because"),
    "zeroshot.explain/1": (
        *("word", "weight", "words", "nonzero", "cosine", "mean_of", "text", "images"),
    ),
    "zeroshot.dedupe/1": (
        *("group", "keep", "kind", "copy_of", "cosine", "correlation"),
        *("width", "height", "bytes", "reason"),
    ),
}
"""The columns of a table for each kind of row, between `path, id` and `models, method,
error_type, error_message`. `label, score, cosine` belong to the best label, `word, weight` to the
first word. Lists and objects are JSON."""
LONG = {
    "zeroshot.classify/1": ("rank", "label", "score", "cosine", "abstained", "scored"),
    "zeroshot.regions/1": ("rank", "caption", "score", "left", "top", "right", "bottom"),
    "zeroshot.segment/1": ("rank", "label", "score", "pixels", "share", "scored"),
    "zeroshot.detect/1": ("rank", "label", "score", "left", "top", "right", "bottom"),
    "zeroshot.match/1": ("rank", "text", "score", "label", "scored"),
    "zeroshot.ask/1": ("question", "rank", "answer", "score", "scored"),
    "zeroshot.explain/1": ("rank", "word", "weight", "text"),
}
"""As `COLUMNS`, for the long form of the rows that have one."""
PARTS = ("labels", "regions", "boxes", "texts", "words")
"""What a row may have several of; a row of questions has `answers` in each."""
NUMBERS = {
    *("score", "cosine", "none", "correlation", "share", "weight"),
    *("left", "top", "right", "bottom"),
}
COUNTS = {
    *("rank", "dim", "width", "height", "group", "bytes", "pixels", "hidden", "nonzero"),
    "images",
}
FLAGS = {"abstained", "kept", "truncated", "keep"}


def columns(schema: str) -> tuple[str, ...]:
    """All columns of a table of these rows."""
    return ("path", "id", *COLUMNS[schema], "models", "method", "error_type", "error_message")


def cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its best label, its first text, or its first question and answer as cells."""
    error = row.get("error") or {}
    failure = {"error_type": error.get("type"), "error_message": error.get("message")}
    return {**_best(row), **row, **failure}


def _best(row: Mapping[str, Any]) -> Mapping[str, Any]:
    for several in ("labels", "texts", "words"):
        if row.get(several):
            first: Mapping[str, Any] = row[several][0]
            return first
    questions: Sequence[Mapping[str, Any]] = row.get("questions") or [{"answers": []}]
    return {**questions[0], **next(iter(questions[0]["answers"]), {})}


def _long(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The cells of each label, box, ... of a row; a row without any has one line."""
    parts = [part for name in PARTS for part in row.get(name) or ()]
    lines = [{**part, "rank": rank} for rank, part in enumerate(parts, 1)]
    for asked in row.get("questions") or ():
        lines += [{**asked, **answer, "rank": i} for i, answer in enumerate(asked["answers"], 1)]
    whole = cells({k: v for k, v in row.items() if k not in (*PARTS, "questions")})
    for line in lines or [{}]:
        sides = zip(("left", "top", "right", "bottom"), line.get("box", ()), strict=False)
        yield {**whole, **line, **dict(sides)}


def arrow_type(name: str) -> Any:
    """The Arrow type of a column."""
    import pyarrow

    arrow: Any = pyarrow
    if name in NUMBERS:
        return arrow.float64()
    return arrow.int64() if name in COUNTS else arrow.bool_() if name in FLAGS else arrow.string()


@dataclass(frozen=True)
class DataTable:
    """Columns of equal length, in order; None where a row has no such value."""

    values: Mapping[str, list[Any]]

    @classmethod
    def from_rows(
        cls, rows: Iterable[Mapping[str, Any]], schema: str | None, long: bool = False
    ) -> "DataTable":
        """One line for each row or, with `long`, for each label, box, region, text or answer.

        `schema` says which columns there are; None, for no rows of no known kind, gives none.
        """
        if schema is None:
            return cls({})
        if long and schema in LONG:
            lines = [line for row in rows for line in _long(row)]
            names = ("path", "id", *LONG[schema], "method", "error_type", "error_message")
        else:
            lines, names = [cells(row) for row in rows], columns(schema)
        found = {name: [line.get(name) for line in lines] for name in names}
        return cls({n: v if n == "embedding" else list(map(cell, v)) for n, v in found.items()})

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame`; the types of its columns have a missing value of their own."""
        import numpy as np

        try:
            import pandas
        except ImportError:
            raise _missing("pandas") from None
        kinds = {**dict.fromkeys(NUMBERS, "float64"), **dict.fromkeys(COUNTS, "Int64")}
        kinds |= {**dict.fromkeys(FLAGS, "boolean"), "embedding": "object"}
        found = {**self.values}
        if "embedding" in found:
            lists = found["embedding"]
            found["embedding"] = [None if x is None else np.asarray(x, np.float32) for x in lists]
        series = {n: pandas.Series(v, dtype=kinds.get(n, "string")) for n, v in found.items()}
        return pandas.DataFrame(series)

    def to_polars(self) -> Any:
        """A `polars.DataFrame`."""
        try:
            import polars
        except ImportError:
            raise _missing("polars") from None
        kinds: dict[str, Any] = {
            **dict.fromkeys(NUMBERS, polars.Float64),
            **dict.fromkeys(COUNTS, polars.Int64),
            **dict.fromkeys(FLAGS, polars.Boolean),
            "embedding": polars.List(polars.Float32),
        }
        types = {name: kinds.get(name, polars.String) for name in self.values}
        return polars.DataFrame(dict(self.values), schema=types)

    def to_arrow(self) -> Any:
        """A `pyarrow.Table`."""
        try:
            import pyarrow as arrow
        except ImportError:
            raise NotAvailableError(
                f"an Arrow table needs pyarrow: {how_to_install('data')}"
            ) from None
        numbers = arrow.list_(arrow.float32())
        types = {n: numbers if n == "embedding" else arrow_type(n) for n in self.values}
        return arrow.table(dict(self.values), schema=arrow.schema(list(types.items())))


def cell(value: Any) -> Any:
    """A value as a cell of a table: lists and objects as JSON, text as UTF-8.

    Bytes of a file name that are not UTF-8 become `\\udcff`.
    """
    if isinstance(value, Mapping | list | tuple):
        value = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _missing(library: str) -> NotAvailableError:
    return NotAvailableError(
        f"to_{library} needs {library}: pip install {library}; rows() gives the same without it"
    )
