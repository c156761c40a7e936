"""What the page shows, as plain values: the template only lays them out."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

import numpy as np

from zeroshot.caption_metrics import cider
from zeroshot.formats import Row
from zeroshot.measures import LOWER_IS_BETTER, usual
from zeroshot.protocols import HEADLINE, Task
from zeroshot.report.gather import Group, Method
from zeroshot.report.thumbnails import thumbnail
from zeroshot.treebank import tokenize

Order = Literal["data", "worst"]

CALLED = {
    "acc1": "accuracy",
    "acc5": "among 5",
    "mean_per_class_recall": "recall per class",
    "nll": "NLL",
    "ece": "ECE",
    "adaptive_ece": "adaptive ECE",
    "auroc": "AUROC",
    "average_precision": "AP",
    "aurc": "AURC",
    **{f"Bleu_{n}": f"BLEU-{n}" for n in (1, 2, 3, 4)},
    "ROUGE_L": "ROUGE-L",
    "CIDEr": "CIDEr",
    "CLIPScore": "CLIPScore",
    "RefCLIPScore": "RefCLIPScore",
    "words": "words",
    **{f"rep_{n}": f"rep-{n}" for n in (2, 3, 4)},
    "diversity": "diversity",
    **{f"distinct_{n}": f"distinct-{n}" for n in (1, 2)},
    **{f"text_retrieval_recall@{k}": f"text R@{k}" for k in (1, 5, 10)},
    "text_retrieval_median_rank": "text median rank",
    **{f"image_retrieval_recall@{k}": f"image R@{k}" for k in (1, 5, 10)},
    "image_retrieval_median_rank": "image median rank",
}
"""Figures in the order of a table's columns, and what they are called there."""
LEFT_OUT = {"Bleu_2", "Bleu_3", "rep_3", "rep_4", "distinct_1", "adaptive_ece"}
SHOWN = [name for name in CALLED if name not in LEFT_OUT]
"""What a laptop is wide enough for; the rest is in the details."""
NEUTRAL = frozenset({"words"})
FUNCTION_WORDS = frozenset(
    {"a", "an", "the", "and", "or", "of", "in", "on", "at", "to", "with", "by", "for", "from", "up"}
    | {"out", "over", "near", "next", "its", "it", "is", "are"}
)
"""Not marked in a caption, whether people used them or not."""
BINS = 10
CLASSES = 16
"""Of a confusion matrix: the most frequent ones."""
MISTAKES = 18


# --- figures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A figure as printed, with the ends of its interval."""

    value: str
    low: str
    high: str
    best: bool


@dataclass(frozen=True)
class Table:
    """Methods by figures."""

    columns: Sequence[str]
    lower: Sequence[bool]
    rows: Sequence[tuple[str, Sequence[Cell | None], str]]
    """name, cells, seconds"""


def table(group: Group) -> Table | None:
    """All figures of a group; None where none was measured."""
    measured = [(m.name, m.result) for m in group.methods if m.result is not None]
    if not measured:
        return None
    names = [n for n in SHOWN if any(n in r["metrics"] for _, r in measured)]
    best = {n: _best(n, [r["metrics"][n] for _, r in measured if n in r["metrics"]]) for n in names}
    rows = []
    for name, result in measured:
        cells = [_cell(n, result, best[n] if len(measured) > 1 else None) for n in names]
        seconds = result.get("seconds")
        rows.append((name, cells, f"{seconds:.1f}" if isinstance(seconds, int | float) else ""))
    return Table([CALLED[n] for n in names], [n in LOWER_IS_BETTER for n in names], rows)


def _best(name: str, values: Sequence[float]) -> float | None:
    if name in NEUTRAL or len(set(values)) == 1:
        return None
    return min(values) if name in LOWER_IS_BETTER else max(values)


def _cell(name: str, result: Mapping[str, Any], best: float | None) -> Cell | None:
    if name not in result["metrics"]:
        return None
    value, ends = result["metrics"][name], result["intervals"][name]
    low, high = ("", "") if ends is None else (_printed(name, end) for end in ends)
    return Cell(_printed(name, value), low, high, value == best)


def _printed(name: str, value: float) -> str:
    return f"{usual(name, value):.{_digits(name)}f}"


def _digits(name: str) -> int:
    if name.endswith(("median_rank", "words")):
        return 1
    return 3 if usual(name, 1) == 1 else 2


@dataclass(frozen=True)
class Whisker:
    """A method's interval as places from 0 to 100 along an axis."""

    name: str
    value: str
    at: float
    low: float
    high: float


@dataclass(frozen=True)
class Plot:
    """Intervals of one figure, one below the other."""

    figure: str
    ticks: Sequence[tuple[float, str]]
    whiskers: Sequence[Whisker]


def plot(group: Group) -> Plot | None:
    """The figure by which methods are ranked, of two methods or more."""
    name = HEADLINE[group.task]
    held = [
        (m.name, m.result["metrics"][name], m.result["intervals"][name])
        for m in group.methods
        if m.result is not None and m.result["intervals"].get(name)
    ]
    if len(held) < 2:
        return None
    ends = [usual(name, end) for _, _, pair in held for end in pair]
    step = _step(max(ends) - min(ends))
    first, last = math.floor(min(ends) / step) * step, math.ceil(max(ends) / step) * step
    span = max(last - first, step)

    def at(value: float) -> float:
        return round(100 * (usual(name, value) - first) / span, 2)

    ticks = [
        (round(100 * (tick - first) / span, 2), f"{tick:g}")
        for tick in np.round(np.arange(first, first + span + step / 2, step), 6)
    ]
    whiskers = [
        Whisker(own, _printed(name, value), at(value), at(low), at(high))
        for own, value, (low, high) in held
    ]
    return Plot(CALLED[name], ticks, whiskers)


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten, such that about five fit in."""
    rough = max(span, 1e-3) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 5, 10, 20) if power * m >= rough)


@dataclass(frozen=True)
class Difference:
    """A method's figure less the first one's."""

    method: str
    figure: str
    difference: str
    low: str
    high: str
    p: str
    kind: str
    """`best` or `worse` where the interval leaves out zero and Holm's p-value is small, or empty"""


def differences(group: Group, confidence: float) -> list[Difference]:
    """Of the comparison, in the order of a table's columns."""
    held = (group.comparison or {}).get("methods", {})
    found = []
    for method, figures in held.items():
        for name in SHOWN:
            match figures.get(name) if isinstance(figures, dict) else None:
                case {
                    "difference": float(d) | int(d),
                    "interval": [float(low) | int(low), float(high) | int(high)],
                    "p_holm": float(p) | int(p),
                }:
                    clear = (low > 0 or high < 0) and p < 1 - confidence
                    better = (d < 0) == (name in LOWER_IS_BETTER)
                    found.append(
                        Difference(
                            method,
                            CALLED[name],
                            _signed(name, d),
                            _signed(name, low),
                            _signed(name, high),
                            f"{p:.3f}",
                            "" if not clear or name in NEUTRAL else "best" if better else "worse",
                        )
                    )
    return found


def _signed(name: str, value: float) -> str:
    return f"{usual(name, value):+.{_digits(name)}f}"


# --- captions -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """A caption: its words, and whether some reference has each."""

    method: str
    words: Sequence[tuple[str, bool]]
    cider: str
    best: bool
    error: str = ""


@dataclass(frozen=True)
class Captioned:
    """A picture, what people said of it, what each method says."""

    name: str
    thumbnail: str
    references: Sequence[str]
    said: Sequence[Said]


def captions(group: Group, pictures: int, order: Order) -> list[Captioned]:
    """Captions side by side, of the first pictures or of those with the worst captions."""
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
) -> Captioned:
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
    return Captioned(PurePath(path).name, thumbnail(path), references, said)


def _marked(caption: str, known: set[str]) -> Iterator[tuple[str, bool]]:
    for word in caption.split():
        yield word, not known or set(tokenize(word)) <= known | FUNCTION_WORDS


def _ciders(method: Method, truth: Mapping[str, Row]) -> dict[str, float]:
    """Of each picture by its path, where people said something of two pictures or more."""
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


# --- labels -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bin:
    """Pictures of like confidence, all shares from 0 to 100."""

    left: float
    confidence: float
    accuracy: float
    count: int
    share: float
    """of the fullest bin"""


@dataclass(frozen=True)
class Confusion:
    """Truth by label; a cell is the share of its row, from 0 to 100, and the count."""

    labels: Sequence[str]
    rows: Sequence[Sequence[tuple[float, int]]]
    left_out: int


@dataclass(frozen=True)
class Mistake:
    """A picture that a method is wrong about."""

    name: str
    thumbnail: str
    truth: str
    said: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Labels:
    """One method's labels."""

    method: str
    reliability: Sequence[Bin]
    confusion: Confusion
    mistakes: Sequence[Mistake]
    wrong: int


def labels(group: Group) -> list[Labels]:
    """What each method that classifies is wrong about, and how sure it is."""
    found = []
    for method in group.methods:
        rows = [
            (row, str(group.truth[str(row["path"])].get("label")))
            for row in method.rows
            if not row.get("error") and str(row["path"]) in group.truth
        ]
        if rows:
            wrong = sorted(
                ((row, truth) for row, truth in rows if row["labels"][0]["label"] != truth),
                key=lambda pair: -pair[0]["labels"][0]["score"],
            )
            worst = [_mistake(row, truth) for row, truth in wrong[:MISTAKES]]
            told = Labels(method.name, _reliability(rows), _confusion(rows), worst, len(wrong))
            found.append(told)
    return found


def misses(group: Group) -> list[tuple[str, list[Mistake], int]]:
    """Of retrieval: pictures whose best caption is another picture's."""
    found = []
    for method in group.methods:
        wrong = []
        for row in method.rows:
            own = group.truth.get(str(row["path"]), {}).get("references", ())
            if not row.get("error") and own and row["labels"][0]["label"] not in own:
                wrong.append((row, own[0]))
        wrong.sort(key=lambda pair: -pair[0]["labels"][0]["score"])
        told = [_mistake(row, truth) for row, truth in wrong[:MISTAKES]]
        found.append((method.name, told, len(wrong)))
    return found


def _mistake(row: Row, truth: str) -> Mistake:
    said = [(str(x["label"]), f"{x['score']:.2f}") for x in row["labels"][:3]]
    path = str(row["path"])
    return Mistake(PurePath(path).name, thumbnail(path), truth, said)


def _reliability(rows: Sequence[tuple[Row, str]]) -> list[Bin]:
    """Empty where scores are no probabilities."""
    best = [(row["labels"][0], truth) for row, truth in rows]
    if any(row.get("scored") not in ("softmax", "sigmoid") for row, _ in rows):
        return []
    sure = np.array([float(label["score"]) for label, _ in best])
    right = np.array([label["label"] == truth for label, truth in best])
    place = np.clip(np.ceil(sure * BINS) - 1, 0, BINS - 1).astype(int)
    fullest = np.bincount(place).max()
    return [
        Bin(
            100 * b / BINS,
            float(100 * sure[place == b].mean()),
            float(100 * right[place == b].mean()),
            int((place == b).sum()),
            float(100 * (place == b).sum() / fullest),
        )
        for b in range(BINS)
        if (place == b).any()
    ]


def _confusion(rows: Sequence[tuple[Row, str]]) -> Confusion:
    counts = Counter((truth, str(row["labels"][0]["label"])) for row, truth in rows)
    totals = Counter(truth for _, truth in rows)
    every = sorted({label for pair in counts for label in pair})
    often = sorted(every, key=lambda label: -totals[label])[:CLASSES]
    shown = [label for label in every if label in often]
    cells = [
        [(100 * counts[t, s] / totals[t] if totals[t] else 0.0, counts[t, s]) for s in shown]
        for t in shown
    ]
    return Confusion(shown, cells, len(every) - len(shown))


# --- traces -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A token with the parts of its total, as widths from 0 to 100."""

    text: str
    likely: float
    guide: float
    total: str


@dataclass(frozen=True)
class Step:
    """A choice: the best candidates, the first of which was taken."""

    text: str
    candidates: Sequence[Candidate]


@dataclass(frozen=True)
class Trace:
    """The choices that made a caption."""

    name: str
    thumbnail: str
    caption: str
    steps: Sequence[Step]


def traces(rows: Sequence[Row], shown: int = 5) -> Iterator[Trace]:
    """Choices with what spoke for each candidate; a negative part has no width."""
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
                        Candidate(
                            str(c["text"]) or "(end)",
                            round(100 * _parts(c)[0] / whole, 1),
                            round(100 * _parts(c)[1] / whole, 1),
                            f"{float(c['total']):.3f}",
                        )
                        for c in best
                    ],
                )
            )
        yield Trace(PurePath(path).name, thumbnail(path), str(row.get("caption") or ""), steps)


def _parts(candidate: Mapping[str, Any]) -> tuple[float, float]:
    """The language model's part less the penalty, and the guide's."""
    guide = float(candidate["guide"])
    return max(0.0, float(candidate["total"]) - guide), max(0.0, guide)


def described(task: Task) -> str:
    """What a task is called on the page."""
    return {"classify": "Labels", "caption": "Captions", "retrieve": "Retrieval"}[task]
