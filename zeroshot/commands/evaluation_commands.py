"""`zeroshot eval` and `zeroshot report`: how good a method is, and a page that shows it.

As `cli`, nothing heavy is imported here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from zeroshot.commands.command import command
from zeroshot.commands.common_options import CommonOptions
from zeroshot.errors import UserError, counted
from zeroshot.evaluation.evaluate_options import EvaluateOptions
from zeroshot.tasks import completion

if TYPE_CHECKING:
    from zeroshot.evaluation.evaluation import Sampling
    from zeroshot.evaluation.experiment import Experiment
    from zeroshot.evaluation.predict import Predictions
    from zeroshot.models.base import DualEncoder


@command
def evaluate(
    run: CommonOptions,
    options: EvaluateOptions,
    data: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of images, a CLIP_benchmark webdataset, or a file of labels."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            envvar="ZEROSHOT_METHOD",
            help="The method; 'zeroshot methods' lists them.",
            autocompletion=completion.methods,
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            envvar="ZEROSHOT_COMPARE",
            help="Several methods, each tested against the first: a,b,c.",
        ),
    ] = None,
    predictions: Annotated[
        list[Path] | None,
        typer.Option(
            "--predictions",
            envvar="ZEROSHOT_PREDICTIONS",
            help="Score rows that caption or classify wrote; may be repeated to compare them.",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            envvar="ZEROSHOT_JUDGE",
            help="For captions: also CLIPScore, by this encoder.",
        ),
    ] = None,
) -> None:
    """Measure methods on images whose truth is known; --out names a folder for the results.

    Examples:
        zeroshot eval labelled/ --task classify --compare ensemble,center
        zeroshot eval photos/ --task caption --truth truth.jsonl --out results/
    """
    _check_options(run, options, method, compare, predictions)
    from zeroshot.commands import console
    from zeroshot.evaluation.evaluation import Sampling, compared
    from zeroshot.evaluation.experiment import experiment

    names = [method] if compare is None else compare.split(",")
    _check_names(names, predictions or ())
    meter, sampling = console.meter(), Sampling(options.draws, options.confidence, options.seed)
    with run.open_cache() as cache:
        with meter.phase("reading the data", counts=False):
            measured = experiment(
                data,
                run.model_set(),
                options,
                cache,
                meter,
                judge=None if judge is None else lambda: _judge(run, judge),
                batch_size=run.images_per_batch,
                rows=predictions[0] if predictions else None,
            )
        measured = measured if run.limit is None else measured.limited(run.limit)
        if run.out is not None and not run.overwrite:
            _check_new(run.out, measured, names, predictions or ())
        each: Iterator[Predictions]
        if predictions:
            each = map(measured.from_predictions, predictions)
        else:
            each = _answers(run, measured, names, options.options)
        answers = [_show(run, measured, own, sampling) for own in each]
        if len(answers) > 1:
            with meter.phase("drawing samples for the differences", counts=False):
                comparison = compared(answers, sampling)
            console.show_differences(comparison)
            if run.out is not None:
                _write(run.out / "comparison.json", [comparison], overwrite=True)
    failed = max(own.failed for own in answers)
    if not run.quiet:
        console.log(
            counted(len(answers[0].rows), "image")
            + (f", {failed} without an answer" if failed else "")
            + (f"; results in {run.out}" if run.out else "")
        )
    if failed:
        raise typer.Exit(3)


def _check_options(
    run: CommonOptions,
    options: EvaluateOptions,
    method: str | None,
    compare: str | None,
    predictions: Sequence[Path] | None,
) -> None:
    """UserError for options that do not fit each other."""
    if compare and (method or predictions):
        raise UserError("--compare names the methods itself: leave --method and --predictions out")
    if predictions and (method or options.options):
        raise UserError("--predictions exist already: leave --method and its options out")
    if run.out is not None and run.out.exists() and not run.out.is_dir():
        raise UserError(f"--out '{run.out}' is a file; eval writes a folder")
    if run.out is not None and not run.overwrite and not any(run.out.glob("*.eval.json")):
        for name in ("truth.jsonl", "comparison.json"):  # an earlier eval may have written them
            if (run.out / name).exists():
                raise UserError(f"'{run.out / name}' exists; --overwrite replaces it")


def _show(
    run: CommonOptions, measured: "Experiment", answers: "Predictions", sampling: "Sampling"
) -> "Predictions":
    """Print the figures of one method, and write them if there is a folder for them."""
    from zeroshot.commands import console
    from zeroshot.evaluation.evaluation import figures, result

    with measured.meter.phase("drawing samples for the intervals", counts=False):
        drawn = figures(answers, sampling)
    found = result(
        answers,
        drawn,
        task=measured.task,
        about=measured.about(answers),
        sampling=sampling,
    )
    console.show_figures(found)
    if run.out is not None:
        _keep(run, measured, answers, found)
    return answers


def _check_new(
    folder: Path, measured: "Experiment", names: Sequence[str | None], predictions: Sequence[Path]
) -> None:
    """UserError, before anything is measured, for a result that is there.

    Captions are no such result: they are continued.
    """
    if measured.task == "caption" and not predictions:
        return
    from zeroshot.evaluation.predictions import name_of

    for name in list(map(name_of, predictions)) or names:
        file = _rows_file(folder, name or measured.default_method)
        if file.exists():
            raise UserError(f"'{file}' exists; --overwrite replaces it")


def _rows_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.rows.jsonl"


def _answers(
    run: CommonOptions,
    measured: "Experiment",
    names: Sequence[str | None],
    options: Mapping[str, Any],
) -> "Iterator[Predictions]":
    """What each method says; with several, an option says whose it is."""
    from zeroshot.tasks.classification.compare import options_of_each

    several = [name for name in names if name is not None]
    own = options_of_each(several, options) if len(several) > 1 else {names[0]: options}
    for name, given in own.items():
        yield measured.evaluate_method(name, given, keep=run.out, overwrite=run.overwrite)


def _check_names(names: Sequence[str | None], predictions: Sequence[Path]) -> None:
    given: list[str | None] = [file.name for file in predictions] or list(names)
    twice = {name for name in given if given.count(name) > 1}
    if twice:
        raise UserError(f"'{twice.pop()}' is given twice, and results are known by their names")


def _judge(run: CommonOptions, name: str) -> "DualEncoder":
    """The encoder of a model set, or the one called so."""
    from zeroshot.model_set.model_set import resolve
    from zeroshot.model_set.spec import is_set

    return resolve(
        name if is_set(name) else run.models,
        encoder=None if is_set(name) else name,
        device=run.device,
        precision=run.precision,
        offline=run.offline,
        trust_remote_code=run.trust_remote_code,
    ).encoder


def _keep(
    run: CommonOptions, measured: "Experiment", answers: "Predictions", found: Mapping[str, Any]
) -> None:
    """The result, the rows and the truth, in the folder of results."""
    assert run.out is not None
    rows = _rows_file(run.out, answers.name)
    if measured.task != "caption" or answers.from_file:  # captions are written as they come
        _write(rows, answers.rows, overwrite=run.overwrite)
    _write(run.out / "truth.jsonl", measured.truth_rows(), overwrite=True)
    kept = {**found, "rows": rows.name, "truth_rows": "truth.jsonl"}
    _write(run.out / f"{answers.name}.eval.json", [kept], overwrite=True)


def _write(file: Path, rows: Iterable[Mapping[str, Any]], *, overwrite: bool) -> None:
    """JSON lines."""
    from zeroshot.output.atomic import whole
    from zeroshot.output.formats import to_json, utf8

    data = b"".join(utf8(to_json(row)) + b"\n" for row in rows)
    with whole(file, overwrite=overwrite) as new:
        new.write(data)


@command
def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of eval, recipes of tune, JSON lines of any command but embed (or "
            "folders of their shards), or of caption --trace."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", envvar="ZEROSHOT_OUT", help="Path of the page, an .html file."),
    ] = Path("report.html"),
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth",
            envvar="ZEROSHOT_TRUTH",
            help="Reference captions, for files that do not contain them.",
        ),
    ] = None,
    pictures: Annotated[
        int | None,
        typer.Option(
            "--pictures",
            envvar="ZEROSHOT_PICTURES",
            help="Number of images shown: 30 with captions side by side, 600 of a file in grids.",
            min=0,
        ),
    ] = None,
    order: Annotated[
        Literal["data", "worst"],
        typer.Option(
            "--order",
            envvar="ZEROSHOT_ORDER",
            help="Show the first images, or those with the worst captions.",
        ),
    ] = "data",
    title: Annotated[
        str, typer.Option("--title", envvar="ZEROSHOT_TITLE", help="Title of the page.")
    ] = "zeroshot report",
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", envvar="ZEROSHOT_OVERWRITE", help="Replace an older page."),
    ] = False,
) -> None:
    """Write one self-contained HTML page: figures, mistakes, captions; rows as grids of images.

    Examples:
        zeroshot report results/ --out report.html
        zeroshot report captions.jsonl --order worst --truth truth.jsonl
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out '{out}': a report is an .html file")
    if out.exists() and not overwrite:
        raise UserError(f"'{out}' exists; --overwrite replaces it")
    from zeroshot.commands import console
    from zeroshot.output.atomic import check_place, whole
    from zeroshot.output.formats import utf8
    from zeroshot.report import load_results, render

    check_place(out)
    with console.meter().phase("making the page", counts=False):
        page = render(load_results(results, truth), title=title, pictures=pictures, order=order)
    with whole(out, overwrite=overwrite) as file:
        file.write(utf8(page))
    console.log(f"wrote {out}: {out.stat().st_size / 1e6:.1f} MB")
