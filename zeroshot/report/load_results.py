"""Files that `eval`, `caption` and `classify` wrote, gathered by what they are about."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from zeroshot.datasets.captions import CaptionDataset, check_captions, read_image_captions
from zeroshot.datasets.protocols import TASKS, Task
from zeroshot.errors import UserError
from zeroshot.evaluation import predictions
from zeroshot.evaluation.evaluation import COMPARISON, SCHEMA, Sampling, figures, result
from zeroshot.evaluation.predict import captioned
from zeroshot.inputs.source import Source
from zeroshot.inputs.tables import path_below
from zeroshot.inputs.text_files import read_json, read_json_lines, suffix_of
from zeroshot.metrics.bootstrap import CONFIDENCE
from zeroshot.output.formats import Row

TRACE = "zeroshot.trace/1"
OF_ROWS: dict[str, Task] = {predictions.CAPTION: "caption", predictions.CLASSIFY: "classify"}


@dataclass(frozen=True)
class Method:
    """What one method said and, where that is known, how good it is."""

    name: str
    rows: Sequence[Row]
    result: Mapping[str, Any] | None = None


@dataclass
class Group:
    """Methods on the same images."""

    task: Task
    dataset: str
    methods: list[Method] = field(default_factory=list)
    truth: dict[str, Row] = field(default_factory=dict)
    """by the path of an image: its `label`, `labels` or `references`"""
    comparison: Mapping[str, Any] | None = None


@dataclass
class LoadedResults:
    """All that a page shows."""

    groups: list[Group] = field(default_factory=list)
    traces: list[Row] = field(default_factory=list)


def load_results(
    places: Iterable[Path], truth: Path | None = None, sampling: Sampling | None = None
) -> LoadedResults:
    """Read results, rows and traces.

    Args:
        places: folders that `eval` wrote, files of theirs, or JSON lines of `caption`, `classify`
            and `caption --trace`.
        truth: captions of the images of bare caption rows, which then are measured.
        sampling: how.

    Raises:
        UserError: a file of another kind.
    """
    found = LoadedResults()
    keyed: dict[object, Group] = {}
    for file in _files(places):
        if suffix_of(file.name) == ".json":
            _add_result(file, keyed)
        else:
            _add_rows(file, keyed, found.traces, truth, sampling or Sampling())
    found.groups = list(keyed.values())
    if not found.groups and not found.traces:
        raise UserError("nothing to report: no *.eval.json and no rows")
    return found


def _files(places: Iterable[Path]) -> list[Path]:
    files = []
    for place in places:
        if place.is_dir():
            held = sorted(place.glob("*.eval.json")) + sorted(place.glob("comparison.json"))
            if not held:
                raise UserError(f"'{place}' holds no results (*.eval.json) of zeroshot eval")
            files += held
        else:
            files.append(place)
    return files


def _add_result(file: Path, groups: dict[object, Group]) -> None:
    held = read_json(file)
    match held:
        case {"schema": "zeroshot.comparison/1", "first": str(), "methods": dict()}:
            for group in groups.values():
                names = [held["first"], *held["methods"]]
                if set(names) == {method.name for method in group.methods}:
                    group.comparison = held
                    group.methods.sort(key=lambda method: names.index(method.name))
            return
        case {
            "schema": "zeroshot.eval/1",
            "task": str(task),
            "dataset": str(dataset),
            "method": str(name),
            "truth": str(truth),
            "metrics": dict(metrics),
            "intervals": dict(intervals),
        } if task in TASKS.values() and _numbers(metrics, intervals):
            pass
        case _:
            raise UserError(f"'{file}' is no result ({SCHEMA}, {COMPARISON}) of zeroshot eval")
    if task == TASKS["multilabel"] and not _labels(held.get("labels")):
        raise UserError(f"'{file}' has no average precision of each label")
    kind = next(own for own, called in TASKS.items() if called == task)
    group = groups.setdefault((kind, truth), Group(kind, dataset))
    rows, told = (_beside(file, held[key]) if key in held else [] for key in ("rows", "truth_rows"))
    group.truth |= {str(row.get("path")): row for row in told}
    _add(group, Method(name, rows, held), file)


def _beside(file: Path, name: object) -> list[Row]:
    place = Path(path_below(file.parent, str(name), f"'{file}'"))
    return [row for _, row in read_json_lines(place)]


def _add(group: Group, method: Method, file: Path) -> None:
    """Under its own name, or with its folder's where the name is taken."""
    taken = {own.name for own in group.methods}
    name = method.name
    if name in taken:
        name = f"{name} ({file.resolve().parent.name})"
    if name in taken:
        name = f"{method.name} ({len(taken) + 1})"
    group.methods.append(Method(name, method.rows, method.result))


def _add_rows(
    file: Path,
    groups: dict[object, Group],
    traces: list[Row],
    truth: Path | None,
    sampling: Sampling,
) -> None:
    rows = [row for _, row in read_json_lines(file)]
    if rows and all(row.get("schema") == TRACE for row in rows):
        traces += rows
        return
    schemas = {row.get("schema") for row in rows}
    if len(schemas) != 1 or not schemas <= OF_ROWS.keys():
        raise UserError(
            f"'{file}' holds no rows of caption or classify: {', '.join(map(str, schemas))}"
        )
    task = OF_ROWS[cast(str, schemas.pop())]
    group = groups.setdefault((task, "rows"), Group(task, truth.parent.name if truth else ""))
    if task == "caption":
        given = predictions.read_captions(file)
        held = _captioned(given, truth)
        measured = None
        if held is not None:
            told = zip(held.sources, held.references, strict=True)
            group.truth |= {str(s.path): {"references": list(own)} for s, own in told}
            measured = _measured(given, held, sampling)
        _add(group, Method(given.name, given.rows, measured), file)
    else:
        given = predictions.read_labels(file)
        _add(group, Method(given.name, given.rows), file)


def _captioned(given: predictions.SavedPredictions, truth: Path | None) -> CaptionDataset | None:
    """The references of the rows' images; a truth may hold more images."""
    if truth is None:
        return given.captioned if given.references is not None else None
    known = {}
    for image in read_image_captions(truth):
        check_captions(image)
        known[image.name] = image.captions
    sources = [Source(name) for name in known]
    places = predictions.found_in(given, sources)
    return CaptionDataset(
        tuple(Source(row["path"]) for row in given.rows),
        tuple(known[str(sources[place].path)] for place in places),
    )


def _measured(
    given: predictions.SavedPredictions, held: CaptionDataset, sampling: Sampling
) -> Mapping[str, Any] | None:
    if sum(not row.get("error") for row in given.rows) < 2:
        return None
    answers = captioned(given.name, held, given.rows)
    return result(answers, figures(answers, sampling), task="caption", about={}, sampling=sampling)


def _numbers(metrics: Mapping[str, Any], intervals: Mapping[str, Any]) -> bool:
    """Whether figures are numbers, and intervals pairs of them or nothing."""
    return all(map(_number, metrics.values())) and all(
        _interval(intervals.get(name)) for name in metrics
    )


def _labels(labels: object) -> bool:
    """Whether there is a figure with its interval and its count of images for each label."""
    return isinstance(labels, dict) and all(
        isinstance(own, dict)
        and _number(own.get("average_precision"))
        and _interval(own.get("interval"))
        and isinstance(own.get("pictures"), int)
        for own in labels.values()
    )


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _interval(value: object) -> bool:
    pair = isinstance(value, list) and len(value) == 2 and all(map(_number, value))
    return value is None or pair


def share(group: Group) -> float:
    """The confidence of a group's intervals."""
    for method in group.methods:
        if method.result is not None:
            return float(method.result.get("sampling", {}).get("confidence", CONFIDENCE))
    return CONFIDENCE


def pretty(value: object) -> str:
    """JSON for reading."""
    return json.dumps(value, ensure_ascii=False, indent=1)
