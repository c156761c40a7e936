"""Captions of several methods side by side, with what people said."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

import numpy as np

from zeroshot.metrics.captioning import cider
from zeroshot.metrics.ptb_tokenizer import tokenize
from zeroshot.output.formats import Row
from zeroshot.report.load_results import Group, Method
from zeroshot.report.thumbnails import thumbnail

Order = Literal["data", "worst"]

FUNCTION_WORDS = frozenset(
    {"a", "an", "the", "and", "or", "of", "in", "on", "at", "to", "with", "by", "for", "from", "up"}
    | {"out", "over", "near", "next", "its", "it", "is", "are"}
)
"""Not marked in a caption, whether people used them or not."""


@dataclass(frozen=True)
class Said:
    """A caption: its words, and whether some reference has each."""

    method: str
    words: Sequence[tuple[str, bool]]
    cider: str
    best: bool
    error: str = ""


@dataclass(frozen=True)
class CaptionedImages:
    """An image, what people said of it, what each method says."""

    name: str
    thumbnail: str
    references: Sequence[str]
    said: Sequence[Said]


def captions(group: Group, pictures: int, order: Order) -> list[CaptionedImages]:
    """Captions side by side, of the first images or of those with the worst captions."""
    by_method = [{str(row["path"]): row for row in method.rows} for method in group.methods]
    scores = [_ciders(method, group.truth) for method in group.methods]
    paths = list(dict.fromkeys(path for rows in by_method for path in rows))
    if order == "worst":
        known = {path: [own[path] for own in scores if path in own] for path in paths}
        paths.sort(key=lambda path: float(np.mean(known[path])) if known[path] else math.inf)
    return [
        _captioned(group, path, [rows.get(path, {}) for rows in by_method], scores)
        for path in paths[:pictures]
    ]


def _captioned(
    group: Group, path: str, rows: Sequence[Row], scores: Sequence[Mapping[str, float]]
) -> CaptionedImages:
    references = list(group.truth.get(path, {}).get("references", ()))
    known = {word for text in references for word in tokenize(text)}
    own = [round(100 * score[path]) if path in score else None for score in scores]
    best = max((s for s in own if s is not None), default=None)
    said = [
        Said(
            method.name,
            list(_marked(str(row.get("caption") or ""), known)),
            "" if score is None else str(score),
            score is not None and score == best and own.count(best) < len(own),
            _failure(row),
        )
        for method, row, score in zip(group.methods, rows, own, strict=True)
    ]
    return CaptionedImages(PurePath(path).name, thumbnail(path), references, said)


def _marked(caption: str, known: set[str]) -> Iterator[tuple[str, bool]]:
    for word in caption.split():
        yield word, not known or set(tokenize(word)) <= known | FUNCTION_WORDS


def _ciders(method: Method, truth: Mapping[str, Row]) -> dict[str, float]:
    """Of each image by its path, where people said something of two images or more."""
    rows = [
        row
        for row in method.rows
        if not row.get("error") and truth.get(str(row["path"]), {}).get("references")
    ]
    if len(rows) < 2:
        return {}
    found = cider(
        [row["caption"] for row in rows], [truth[str(row["path"])]["references"] for row in rows]
    )
    return {str(row["path"]): float(s) for row, s in zip(rows, found.each, strict=True)}


def _failure(row: Row) -> str:
    if not row:
        return "no row"
    error = row.get("error") or {}
    return f"{error.get('type')}: {error.get('message')}" if error else ""
