"""`zeroshot eval` and `zeroshot report`: how good a method is, and a page that shows it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from zeroshot.commands.options import (
    Labels,
    LongText,
    Method,
    MethodOptions,
    Run,
    Score,
    on_pictures,
    option,
    read_options,
)
from zeroshot.errors import UserError

if TYPE_CHECKING:
    from zeroshot.evaluation.experiment import Question
    from zeroshot.evaluation.predict import Answers
    from zeroshot.models.base import DualEncoder
    from zeroshot.results.result import CaptionResult

Task = Literal["classify", "multilabel", "caption", "retrieve"]


@on_pictures
def evaluate(
    run: Run,
    data: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of pictures, a CLIP_benchmark webdataset, or a file of labels."
        ),
    ] = None,
    task: Annotated[
        Task | None, option("--task", env="TASK", help="What to measure; a protocol knows.")
    ] = None,
    protocol: Annotated[
        str | None,
        option(
            "--protocol",
            env="PROTOCOL",
            help="Class names, templates and split by one name: clip/imagenet, "
            "karpathy/coco-captions, ... (docs/evaluation.md).",
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        option(
            "--truth",
            env="TRUTH",
            help="Labels (.csv, .jsonl; several also COCO's instances .json) or captions (COCO's "
            "or Karpathy's .json, .jsonl, Flickr's .token) of the pictures in DATA.",
        ),
    ] = None,
    split: Annotated[
        str | None, option("--split", env="SPLIT", help="Of the data: val, test, ...")
    ] = None,
    labels: Labels = None,
    templates: Annotated[
        str | None,
        option(
            "--templates",
            env="TEMPLATES",
            help="As for classify; without, the data set's own, else simple.",
        ),
    ] = None,
    method: Method = None,
    method_option: MethodOptions = None,
    compare: Annotated[
        str | None,
        option(
            "--compare",
            env="COMPARE",
            help="Several methods, each tested against the first: a,b,c.",
        ),
    ] = None,
    predictions: Annotated[
        list[Path] | None,
        option(
            "--predictions",
            env="PREDICTIONS",
            help="Score rows that caption or classify wrote; may be repeated, and then compares.",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        option("--judge", env="JUDGE", help="Also CLIPScore of captions, by this encoder."),
    ] = None,
    coupling: Annotated[
        str | None,
        option("--coupling", env="COUPLING", help="Of captions, in place of the set's."),
    ] = None,
    score: Score = "auto",
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            help="With --task multilabel: a label's score is its share of a softmax with these "
            "texts; may be repeated.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        option(
            "--threshold",
            env="LABEL_THRESHOLD",
            help="With --task multilabel: the score from which a label holds, for F1.",
        ),
    ] = None,
    held_out: Annotated[
        float | None,
        option(
            "--held-out",
            env="HELD_OUT",
            help="With --task multilabel: choose that threshold on this share of the pictures, "
            "drawn by --seed, and measure on the others.",
            min=0,
            max=1,
        ),
    ] = None,
    long_text: LongText = "error",
    draws: Annotated[
        int, option("--draws", env="DRAWS", help="Of pictures, for the intervals.", min=2)
    ] = 1000,
    confidence: Annotated[
        float,
        option("--confidence", env="CONFIDENCE", help="Of the intervals.", min=0.5, max=0.999),
    ] = 0.95,
    seed: Annotated[int, option("--seed", env="SEED", help="Of the draws.", min=0)] = 0,
) -> None:
    """Measure methods on pictures whose truth is known; --out names a folder for the results."""
    if compare and (method or predictions):
        raise UserError("--compare names the methods itself: leave --method and --predictions out")
    if predictions and (method or method_option):
        raise UserError("--predictions are made already: leave --method and its options out")
    if protocol and (labels or templates or split):
        raise UserError(
            f"protocol '{protocol}' fixes labels, templates and split: leave them out, or "
            "--protocol"
        )
    if run.out is not None and run.out.exists() and not run.out.is_dir():
        raise UserError(f"--out '{run.out}' is a file; eval writes a folder")
    from zeroshot.commands import console
    from zeroshot.evaluation.evaluation import Sampling, compared, figures, result
    from zeroshot.evaluation.experiment import question
    from zeroshot.evaluation.predict import Choice
    from zeroshot.inference.meter import Meter

    names = [method] if compare is None else compare.split(",")
    _refuse_twice(names, predictions or ())
    meter, sampling = Meter(), Sampling(draws, confidence, seed)
    with run.open_cache() as cache:
        asked = question(
            task,
            data,
            run.model_set(),
            cache,
            meter,
            protocol=protocol,
            truth=truth,
            split=split,
            labels=labels,
            templates=templates,
            head=None if score == "auto" else score,
            truncate=long_text == "truncate",
            judge=None if judge is None else _judge(run, judge),
            coupling=coupling,
            batch_size=run.at_once,
            rows=predictions[0] if predictions else None,
            choice=Choice(threshold, held_out, seed),
            against=against or (),
        )
        asked = asked if run.limit is None else asked.limited(run.limit)
        each: Iterator[Answers]
        if predictions:
            each = map(asked.told, predictions)
        else:
            each = _answers(run, asked, names, read_options(method_option))
        answers = []
        for own in each:
            answers.append(own)
            found = result(
                own,
                figures(own, sampling),
                task=asked.task,
                about=asked.about(own),
                sampling=sampling,
            )
            console.show_figures(found)
            if run.out is not None:
                _keep(run, asked, own, found)
        if len(answers) > 1:
            comparison = compared(answers, sampling)
            console.show_differences(comparison)
            if run.out is not None:
                _write(run.out / "comparison.json", [comparison], overwrite=True)
    failed = max(own.failed for own in answers)
    if not run.quiet:
        console.say(
            f"{len(answers[0].rows)} pictures"
            + (f", {failed} without an answer" if failed else "")
            + (f"; results in {run.out}" if run.out else "")
        )
    if failed:
        raise typer.Exit(3)


def _answers(
    run: Run, asked: "Question", names: Sequence[str | None], options: dict[str, str]
) -> "Iterator[Answers]":
    """What each method says; with several, an option says whose it is."""
    from zeroshot.commands import console
    from zeroshot.tasks.classification.compare import shared_out

    several = [name for name in names if name is not None]
    own = shared_out(several, options) if len(several) > 1 else {names[0]: options}
    for name, given in own.items():
        with console.Screen("nothing", len(asked.data.sources), run.quiet) as screen:

            def watch(
                results: "Iterable[CaptionResult]", screen: "console.Screen" = screen
            ) -> "Iterator[CaptionResult]":
                for one in results:
                    screen.add(one, asked.meter)
                    yield one

            found = asked.answers(name, given, keep=run.out, overwrite=run.overwrite, watch=watch)
        yield found


def _refuse_twice(names: Sequence[str | None], predictions: Sequence[Path]) -> None:
    given: list[str | None] = [file.name for file in predictions] or list(names)
    twice = {name for name in given if given.count(name) > 1}
    if twice:
        raise UserError(f"'{twice.pop()}' is given twice, and results are known by their names")


def _judge(run: Run, name: str) -> "DualEncoder":
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


def _keep(run: Run, asked: "Question", answers: "Answers", found: Mapping[str, Any]) -> None:
    """The result, the rows and the truth, in the folder of results."""
    assert run.out is not None
    rows = run.out / f"{answers.name}.rows.jsonl"
    if asked.task != "caption" or answers.before:  # captions are written as they come
        _write(rows, answers.rows, overwrite=run.overwrite)
    _write(run.out / "truth.jsonl", asked.truth_rows(), overwrite=True)
    kept = {**found, "rows": rows.name, "truth_rows": "truth.jsonl"}
    _write(run.out / f"{answers.name}.eval.json", [kept], overwrite=True)


def _write(file: Path, rows: Iterable[Mapping[str, Any]], *, overwrite: bool) -> None:
    """JSON lines."""
    from zeroshot.output.formats import to_json, utf8

    if file.exists() and not overwrite:
        raise UserError(f"'{file}' exists; --overwrite writes over it")
    _whole(file, b"".join(utf8(to_json(row)) + b"\n" for row in rows))


def _whole(file: Path, data: bytes) -> None:
    """All of a file, or none of it."""
    from zeroshot.output.atomic import whole

    try:
        with whole(file) as new:
            new.write(data)
    except OSError as error:
        raise UserError(f"cannot write '{file}': {error.strerror}") from error


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of eval, or JSON lines of caption, classify or caption --trace."
        ),
    ],
    out: Annotated[Path, option("--out", env="OUT", help="The page, an .html file.")] = Path(
        "report.html"
    ),
    truth: Annotated[
        Path | None,
        option("--truth", env="TRUTH", help="What people said of the pictures of bare captions."),
    ] = None,
    pictures: Annotated[
        int, option("--pictures", env="PICTURES", help="Shown with their captions.", min=0)
    ] = 30,
    order: Annotated[
        Literal["data", "worst"],
        option("--order", env="ORDER", help="The first pictures, or those captioned worst."),
    ] = "data",
    title: Annotated[str, option("--title", env="TITLE", help="Of the page.")] = "zeroshot report",
    overwrite: Annotated[
        bool, option("--overwrite", env="OVERWRITE", help="Write over an older page.")
    ] = False,
) -> None:
    """One page of HTML, complete in itself: figures, mistakes, captions side by side, choices."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out '{out}': a report is an .html file")
    if out.exists() and not overwrite:
        raise UserError(f"'{out}' exists; --overwrite writes over it")
    from zeroshot.commands import console
    from zeroshot.output.formats import utf8
    from zeroshot.report import gather, render

    page = render(gather(results, truth), title=title, pictures=pictures, order=order)
    _whole(out, utf8(page))
    console.say(f"wrote {out}: {out.stat().st_size / 1e6:.1f} MB")
