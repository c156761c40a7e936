"""`zeroshot calibrate`: a temperature and thresholds for `classify`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zeroshot.commands.options import (
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

if TYPE_CHECKING:
    from zeroshot.model_set.model_set import ModelSet


@dataclasses.dataclass(frozen=True)
class Calibrating:
    """How scores are made and what is learned of them: shared by pictures and clips."""

    labels: Labels = None
    truth: Annotated[
        Path | None,
        option(
            "--truth",
            env="TRUTH",
            help="Labelled ones: a folder per class, or a .csv file with path,label.",
        ),
    ] = None
    min_precision: Annotated[
        float | None,
        option(
            "--min-precision",
            env="MIN_PRECISION",
            help="With --truth: a threshold per label from which this share is the label's own.",
            min=0,
            max=1,
        ),
    ] = None
    templates: Templates = "simple"
    method: Method = None
    method_option: MethodOptions = None
    score: Score = "auto"
    long_text: LongText = "error"

    def fit(self, run: Run, models: "ModelSet", names: list[str] | None) -> None:
        """Fit on what `names` name, or on the truth; write it, and say what it is.

        Raises:
            UserError: options that do not fit each other, or a file that is there already.
        """
        out = self._out(run, names)
        from zeroshot import prompts
        from zeroshot.commands import console
        from zeroshot.datasets.labels import read_labeled_images
        from zeroshot.inference.meter import Meter
        from zeroshot.tasks.classification import calibration as task, classifier as classification

        labels = prompts.load_labels(self.labels or "")
        sentences = prompts.expand(labels, prompts.load_templates(self.templates, labels))
        known = None if self.truth is None else read_labeled_images(self.truth, labels)
        sources = run.sources(names or []) if known is None else list(known.sources)
        meter = Meter()
        with run.open_cache() as cache:
            ready = classification.classifier(
                models,
                labels,
                sentences,
                cache,
                meter,
                method=self.method,
                options=read_options(self.method_option),
                head=None if self.score == "auto" else self.score,
                truncate=self.long_text == "truncate",
            )
            made, reports = task.calibrate(
                ready,
                sources,
                None if known is None else known.classes,
                cache,
                meter,
                prompts=prompts.fingerprint(sentences),
                precision=self.min_precision,
                batch_size=run.at_once,
            )
        made.write(out)
        if reports:
            console.print_table(
                ("temperature", *reports[0]),
                [
                    (round(t, 4), *(round(x, 4) for x in found.values()))
                    for t, found in zip((1.0, made.temperature), reports, strict=True)
                ],
            )
        if not run.quiet:
            console.say(
                f"wrote {out}: temperature {made.temperature:.4g}, {len(sources)} {run.things}"
            )

    def _out(self, run: Run, names: list[str] | None) -> Path:
        if not self.labels or bool(names) == (self.truth is not None):
            raise UserError(f"calibrate needs --labels, and either {run.things} or --truth")
        if run.out is None or run.out.suffix != ".json":
            raise UserError("calibrate needs --out FILE.json for what it learns")
        if run.out.exists() and not run.overwrite:
            raise UserError(f"'{run.out}' exists; --overwrite writes over it")
        if self.min_precision is not None and self.truth is None:
            raise UserError(
                "--min-precision needs --truth: thresholds are fitted on what is labelled"
            )
        return run.out


@on_pictures
def calibrate(
    run: Run,
    asked: Calibrating,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Unlabelled pictures of the kind one expects; none with --truth."),
    ] = None,
) -> None:
    """Fit a temperature and thresholds for 'classify --calibration'; --out names a .json file."""
    asked.fit(run, run.model_set(), images)
