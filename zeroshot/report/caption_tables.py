"""Captions of several methods side by side, with the reference captions."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

import numpy as np

from zeroshot.metrics.captioning import cider
from zeroshot.metrics.ptb_tokenizer import tokenize
from zeroshot.output.formats import Row
from zeroshot.report.result_files import Group, LoadedMethod
from zeroshot.report.thumbnails import thumbnail

Order = Literal["data", "worst"]

FUNCTION_WORDS = frozenset(
    {"a", "an", "the", "and", "or", "of", "in", "on", "at", "to", "with", "by", "for", "from", "up"}
    | {"out", "over", "near", "next", "its", "it", "is", "are"}
)
"""Never marked in a caption, even if no reference has them."""


@dataclass(frozen=True)
class MarkedCaption:
    """One method's caption: its words, and whether a reference has each word."""

    method: str
    words: Sequence[tuple[str, bool]]
    cider: str
    best: bool
    error: str = ""


@dataclass(frozen=True)
class CaptionedImage:
    """An image with its references and the caption of each method."""

    name: str
    thumbnail: str
    references: Sequence[str]
    captions: Sequence[MarkedCaption]


def captions(group: Group, pictures: int, order: Order) -> list[CaptionedImage]:
    """Captions side by side, of the first images or of those with the worst captions."""
    by_method = [{str(row["path"]): row for row in method.rows} for method in group.methods]
    scores = [_ciders(method, group.truth) for method in group.methods]
    paths = list(dict.fromkeys(path for rows in by_method for path in rows))
    if order == "worst":
        known = {path: [own[path] for own in scores if path in own] for path in paths}
        paths.sort(key=lambda path: float(np.mean(known[path])) if known[path] else math.inf)
    return [
        _captioned_image(group, path, [rows.get(path, {}) for rows in by_method], scores)
        for path in paths[:pictures]
    ]


def _captioned_image(
    group: Group, path: str, rows: Sequence[Row], scores: Sequence[Mapping[str, float]]
) -> CaptionedImage:
    references = list(group.truth.get(path, {}).get("references", ()))
    known = {word for text in references for word in tokenize(text)}
    own = [round(100 * score[path]) if path in score else None for score in scores]
    best = max((s for s in own if s is not None), default=None)
    captions = [
        MarkedCaption(
            method.name,
            list(_mark(str(row.get("caption") or ""), known)),
            "" if score is None else str(score),
            score is not None and score == best and own.count(best) < len(own),
            _failure(row),
        )
        for method, row, score in zip(group.methods, rows, own, strict=True)
    ]
    return CaptionedImage(PurePath(path).name, thumbnail(path), references, captions)


def _mark(caption: str, known: set[str]) -> Iterator[tuple[str, bool]]:
    for word in caption.split():
        yield word, not known or set(tokenize(word)) <= known | FUNCTION_WORDS


def _ciders(method: LoadedMethod, truth: Mapping[str, Row]) -> dict[str, float]:
    """The CIDEr of each image by its path; empty if fewer than two images have references."""
    rows = [
        row
        for row in method.rows
        if not row.get("error") and truth.get(str(row["path"]), {}).get("references")
    ]
    if len(rows) < 2:
        return {}
    paths = [str(row["path"]) for row in rows]
    scores = cider([row["caption"] for row in rows], [truth[p]["references"] for p in paths])
    return dict(zip(paths, map(float, scores.each), strict=True))


def _failure(row: Row) -> str:
    if not row:
        return "no row"
    error = row.get("error") or {}
    return f"{error.get('type')}: {error.get('message')}" if error else ""
