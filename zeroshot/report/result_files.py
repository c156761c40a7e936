"""Files that commands wrote: what was measured by task and data set, and rows without truth."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zeroshot.datasets.captions import CaptionDataset, check_captions, read_image_captions
from zeroshot.datasets.protocols import TASKS, EvaluationTask
from zeroshot.errors import UserError
from zeroshot.evaluation import predictions
from zeroshot.evaluation.evaluation import COMPARISON, SCHEMA, Sampling, figures, result
from zeroshot.evaluation.predict import score_captions
from zeroshot.inputs.source import Source
from zeroshot.inputs.tables import path_below
from zeroshot.inputs.text_files import is_number, read_json, read_json_lines, suffix_of
from zeroshot.metrics.bootstrap import CONFIDENCE
from zeroshot.output.formats import Row
from zeroshot.tasks.tuning.recipe import Recipe, read_recipe

TRACE = "zeroshot.trace/1"
SHOWN_ROWS = (
    *("classify", "caption", "read", "search", "detect", "segment", "dedupe", "filter", "match"),
    *("ask", "explain", "regions"),
)
"""Commands whose rows are shown."""
SHARD = re.compile(r"\d{5,}\.jsonl")


@dataclass(frozen=True)
class LoadedMethod:
    """The rows of one method and, if it was measured, its result."""

    name: str
    rows: Sequence[Row]
    result: Mapping[str, Any] | None = None


@dataclass
class Group:
    """Methods on the same images."""

    task: EvaluationTask
    dataset: str
    methods: list[LoadedMethod] = field(default_factory=list)
    truth: dict[str, Row] = field(default_factory=dict)
    """by the path of an image: its `label`, `labels` or `references`"""
    comparison: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class RowFile:
    """Rows that nobody measured."""

    name: str
    schema: str
    rows: Sequence[Row]


@dataclass
class LoadedResults:
    """Everything that a page shows."""

    groups: list[Group] = field(default_factory=list)
    files: list[RowFile] = field(default_factory=list)
    traces: list[Row] = field(default_factory=list)
    recipes: list[tuple[Path, Recipe]] = field(default_factory=list)


def load_results(
    paths: Iterable[Path], truth: Path | None = None, sampling: Sampling | None = None
) -> LoadedResults:
    """Read results, rows and traces.

    Args:
        paths: folders or files that `eval` wrote, recipes of `tune`, JSON lines of other commands
            and of `caption --trace`, or folders of shards of them.
        truth: reference captions, for rows without them, which are then measured.
        sampling: how intervals are computed.

    Raises:
        UserError: a file of another kind.
    """
    results = LoadedResults()
    groups: dict[object, Group] = {}
    for file in _files(paths):
        if suffix_of(file.name) == ".json":
            _add_result(file, groups)
        elif suffix_of(file.name) == ".toml":
            results.recipes.append((file, read_recipe(file)))
        else:
            _add_rows(file, groups, results, truth, sampling or Sampling())
    for group in list(groups.values()):
        if group.task == "caption" and not group.truth and len(group.methods) == 1:
            [alone] = group.methods  # nothing to compare
            results.files.append(RowFile(alone.name, predictions.CAPTION, alone.rows))
            groups = {key: own for key, own in groups.items() if own is not group}
    results.groups = list(groups.values())
    return results


def _files(paths: Iterable[Path]) -> list[Path]:
    files = []
    for path in paths:
        if path.is_dir():
            inside = sorted(path.glob("*.eval.json")) + sorted(path.glob("comparison.json"))
            if not inside and any(SHARD.fullmatch(file.name) for file in path.iterdir()):
                inside = [path]
            if not inside:
                raise UserError(
                    f"'{path}' has no results (*.eval.json) of zeroshot eval, and no shards of "
                    "rows (00000.jsonl)"
                )
            files += inside
        else:
            files.append(path)
    return files


def _add_result(file: Path, groups: dict[object, Group]) -> None:
    document = read_json(file)
    match document:
        case {"schema": "zeroshot.comparison/1", "first": str(), "methods": dict()}:
            for group in groups.values():
                names = [document["first"], *document["methods"]]
                if set(names) == {method.name for method in group.methods}:
                    group.comparison = document
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
        } if task in TASKS.values() and _are_figures(metrics, intervals):
            pass
        case _:
            raise UserError(f"'{file}' is no result ({SCHEMA}, {COMPARISON}) of zeroshot eval")
    if task == TASKS["multilabel"] and not _are_label_figures(document.get("labels")):
        raise UserError(f"'{file}' has no average precision of each label")
    kind = next(kind for kind, name_in_results in TASKS.items() if name_in_results == task)
    group = groups.setdefault((kind, truth), Group(kind, dataset))
    rows, truth_rows = (
        _read_beside(file, document[key]) if key in document else []
        for key in ("rows", "truth_rows")
    )
    group.truth |= {str(row.get("path")): row for row in truth_rows}
    _add(group, LoadedMethod(name, rows, document), file)


def _read_beside(file: Path, name: object) -> list[Row]:
    """The rows of another file in the same folder or below."""
    path = Path(path_below(file.parent, str(name), f"'{file}'"))
    return [row for _, row in read_json_lines(path)]


def _add(group: Group, method: LoadedMethod, file: Path) -> None:
    """Add a method; if its name is taken, the name of its folder is added to it."""
    taken = {own.name for own in group.methods}
    name = method.name
    if name in taken:
        name = f"{name} ({file.resolve().parent.name})"
    if name in taken:
        name = f"{method.name} ({len(taken) + 1})"
    group.methods.append(LoadedMethod(name, method.rows, method.result))


def _add_rows(
    file: Path,
    groups: dict[object, Group],
    results: LoadedResults,
    truth: Path | None,
    sampling: Sampling,
) -> None:
    shards = [file]
    if file.is_dir():
        shards = sorted(each for each in file.iterdir() if SHARD.fullmatch(each.name))
    rows = [row for each in shards for _, row in read_json_lines(each)]
    if rows and all(row.get("schema") == TRACE for row in rows):
        results.traces += rows
        return
    schemas = {str(row.get("schema")) for row in rows}
    known = {f"zeroshot.{name}/1" for name in SHOWN_ROWS}
    if len(schemas) != 1 or not schemas <= known:
        has = f"it has {', '.join(sorted(schemas))}" if schemas else "it has no rows"
        raise UserError(
            f"'{file}' cannot be shown: {has}, and rows of one of {', '.join(SHOWN_ROWS)} are "
            "needed"
        )
    schema = schemas.pop()
    if schema != predictions.CAPTION or file.is_dir():
        results.files.append(RowFile(file.stem, schema, rows))
        return
    key = ("caption", "rows")
    group = groups.setdefault(key, Group("caption", truth.parent.name if truth else ""))
    saved = predictions.read_captions(file)
    dataset = _caption_dataset(saved, truth)
    measured = None
    if dataset is not None:
        pairs = zip(dataset.sources, dataset.references, strict=True)
        group.truth |= {str(s.path): {"references": list(own)} for s, own in pairs}
        measured = _measure(saved, dataset, sampling)
    _add(group, LoadedMethod(saved.name, saved.rows, measured), file)


def _caption_dataset(
    saved: predictions.SavedPredictions, truth: Path | None
) -> CaptionDataset | None:
    """The images of the rows with their references; `truth` may have more images."""
    if truth is None:
        return saved.dataset if saved.references is not None else None
    captions = {}
    for image in read_image_captions(truth):
        check_captions(image)
        captions[image.name] = image.captions
    references = list(captions.values())
    indices = predictions.match_images(saved, [Source(name) for name in captions])
    return CaptionDataset(
        tuple(Source(row["path"]) for row in saved.rows),
        tuple(references[index] for index in indices),
    )


def _measure(
    saved: predictions.SavedPredictions, dataset: CaptionDataset, sampling: Sampling
) -> Mapping[str, Any] | None:
    if sum(not row.get("error") for row in saved.rows) < 2:
        return None
    answers = score_captions(saved.name, dataset, saved.rows)
    return result(answers, figures(answers, sampling), task="caption", about={}, sampling=sampling)


def _are_figures(metrics: Mapping[str, Any], intervals: Mapping[str, Any]) -> bool:
    """Whether metrics are numbers, and intervals are pairs of numbers or None."""
    return all(map(is_number, metrics.values())) and all(
        _is_interval(intervals.get(name)) for name in metrics
    )


def _are_label_figures(labels: object) -> bool:
    """Whether each label has a figure, its interval and a number of images."""
    return isinstance(labels, dict) and all(
        isinstance(own, dict)
        and is_number(own.get("average_precision"))
        and _is_interval(own.get("interval"))
        and isinstance(own.get("pictures"), int)
        for own in labels.values()
    )


def _is_interval(value: object) -> bool:
    pair = isinstance(value, list) and len(value) == 2 and all(map(is_number, value))
    return value is None or pair


def confidence_of(group: Group) -> float:
    """The confidence of a group's intervals."""
    for method in group.methods:
        if method.result is not None:
            return float(method.result.get("sampling", {}).get("confidence", CONFIDENCE))
    return CONFIDENCE


def pretty(value: object) -> str:
    """Indented JSON."""
    return json.dumps(value, ensure_ascii=False, indent=1)
