"""`zeroshot calibrate`: a temperature and thresholds for `classify`."""

from pathlib import Path
from typing import Annotated

import typer

from zeroshot.cli_run import (
    Labels,
    LongText,
    Method,
    MethodOptions,
    Run,
    Score,
    Templates,
    on_pictures,
    option,
    read_options,
)
from zeroshot.errors import UserError


@on_pictures
def calibrate(
    run: Run,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Unlabelled pictures of the kind one expects; none with --truth."),
    ] = None,
    labels: Labels = None,
    truth: Annotated[
        Path | None,
        option(
            "--truth",
            env="TRUTH",
            help="Labelled pictures: a folder per class, or a .csv file with path,label.",
        ),
    ] = None,
    min_precision: Annotated[
        float | None,
        option(
            "--min-precision",
            env="MIN_PRECISION",
            help="With --truth: a threshold per label from which this share of the pictures is "
            "the label's own.",
            min=0,
            max=1,
        ),
    ] = None,
    templates: Templates = "simple",
    method: Method = None,
    method_option: MethodOptions = None,
    score: Score = "auto",
    long_text: LongText = "error",
) -> None:
    """Fit a temperature and thresholds for 'classify --calibration'; --out names a .json file."""
    if not labels or bool(images) == (truth is not None):
        raise UserError("calibrate needs --labels, and either pictures or --truth")
    if run.out is None or run.out.suffix != ".json":
        raise UserError("calibrate needs --out FILE.json for what it learns")
    if run.out.exists() and not run.overwrite:
        raise UserError(f"'{run.out}' exists; --overwrite writes over it")
    if min_precision is not None and truth is None:
        raise UserError("--min-precision needs --truth: thresholds are fitted on labelled pictures")
    from zeroshot import prompts, terminal
    from zeroshot.tasks import calibrate as task
    from zeroshot.tasks import classify as classification
    from zeroshot.tasks.labelled import read_labelled
    from zeroshot.tasks.meter import Meter

    names = prompts.load_labels(labels)
    sentences = prompts.expand(names, prompts.load_templates(templates, names))
    known = None if truth is None else read_labelled(truth, names)
    sources = run.sources(images or []) if known is None else list(known.sources)
    meter = Meter()
    with run.open_cache() as cache:
        ready = classification.classifier(
            run.model_set(),
            names,
            sentences,
            cache,
            meter,
            method=method,
            options=read_options(method_option),
            head=None if score == "auto" else score,
            truncate=long_text == "truncate",
        )
        made, reports = task.calibrate(
            ready,
            sources,
            None if known is None else known.classes,
            cache,
            meter,
            prompts=prompts.fingerprint(sentences),
            precision=min_precision,
            batch_size=run.at_once,
        )
    made.write(run.out)
    if reports:
        terminal.print_table(
            ("temperature", *reports[0]),
            [
                (round(t, 4), *(round(x, 4) for x in found.values()))
                for t, found in zip((1.0, made.temperature), reports, strict=True)
            ],
        )
    if not run.quiet:
        terminal.say(
            f"wrote {run.out}: temperature {made.temperature:.4g}, {len(sources)} pictures"
        )
