"""The options of `classify` that pictures and clips share, and the job that they make.

As `cli`, nothing heavy is imported here.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zeroshot.commands.options import (
    Labels,
    LongText,
    Method,
    MethodOptions,
    Score,
    option,
    read_options,
)
from zeroshot.commands.runner import Rows
from zeroshot.errors import UserError

if TYPE_CHECKING:
    from zeroshot.distributed.sharding import Inputs
    from zeroshot.inputs.source import Source
    from zeroshot.model_set.model_set import ModelSet
    from zeroshot.tasks.classification.classifier import Classifier
    from zeroshot.tasks.classification.classify_task import ClassifyJob
    from zeroshot.tasks.classification.heads import Head

Against = Annotated[
    list[str] | None,
    typer.Option(
        "--against",
        help="With --multi: a label's score is its share of a softmax with these texts; may be "
        "repeated.",
    ),
]


@dataclasses.dataclass(frozen=True)
class Labelling:
    """How labels are asked for, what a method learns from, and what of the scores is shown."""

    labels: Labels = None
    templates: Annotated[
        str | None,
        option(
            "--templates",
            env="TEMPLATES",
            help="simple (7, without one), openai (80), none (of a model of clips without one), "
            "waffle (30 random ones), 'a photo of a {}', a .txt file, or a .json file of sentences "
            "per class.",
        ),
    ] = None
    method: Method = None
    method_option: MethodOptions = None
    score: Score = "auto"
    top_k: Annotated[
        int | None,
        option(
            "--top-k",
            "-k",
            env="TOP_K",
            help="Labels in a row, best first: 5, and with --multi all.",
            min=1,
        ),
    ] = None
    multi: Annotated[
        bool,
        option(
            "--multi",
            env="MULTI",
            help="Several labels may hold: each is scored by itself, by sigmoid where the model "
            "was trained with it, else by cosine.",
        ),
    ] = False
    against: Against = None
    threshold: Annotated[
        float | None,
        option(
            "--threshold",
            env="LABEL_THRESHOLD",
            help="With --multi: leave out labels that score less.",
        ),
    ] = None
    long_text: LongText = "error"
    shots: Annotated[
        Path | None,
        option(
            "--shots",
            env="SHOTS",
            help="Labelled ones to learn from: a folder per class, or a .csv with path,label.",
        ),
    ] = None
    bank: Annotated[
        list[str] | None,
        option("--bank", env="BANK", help="Unlabelled ones to learn from; may be repeated."),
    ] = None
    prior: Annotated[
        str | None,
        option(
            "--prior",
            env="PRIOR",
            help="How frequent the labels are: 0.5,0.3,0.2 in their order, or a .json object.",
        ),
    ] = None
    hierarchy: Annotated[
        Path | None,
        option(
            "--hierarchy",
            env="HIERARCHY",
            help="Instead of --labels: a .json object of labels with the kinds of each.",
        ),
    ] = None
    calibration: Annotated[
        Path | None,
        option("--calibration", env="CALIBRATION", help="What 'calibrate' wrote."),
    ] = None
    abstain: Annotated[
        float | None,
        option(
            "--abstain",
            env="ABSTAIN",
            help="With --calibration: say nothing of this share of those like the ones it was "
            "made of, and of more where they are unlike.",
            min=0,
            max=1,
        ),
    ] = None
    compare: Annotated[
        str | None,
        option("--compare", env="COMPARE", help="Several methods in one table: a,b,zpe+center."),
    ] = None
    explain: Annotated[
        int,
        option(
            "--explain",
            env="EXPLAIN",
            help="Name this many anchors that carried the best label (couplings).",
            min=0,
        ),
    ] = 0

    def refuse_without_labels(self, needs: str) -> None:
        """UserError, which begins with what the command `needs`, without labels or hierarchy."""
        if bool(self.labels) == (self.hierarchy is not None):
            raise UserError(
                f"{needs} and --labels (or --hierarchy): cat,dog, a .txt or a .json file"
            )

    @property
    def head(self) -> "Head | None":
        """What a score is; None for the model's own."""
        return None if self.score == "auto" else self.score

    def prompted(self, templates: str) -> tuple[tuple[str, ...], tuple[int, ...], list[list[str]]]:
        """Labels, the parents of a hierarchy, and the sentences of labels and kinds.

        `templates` are those where the user names none.
        """
        from zeroshot import prompts
        from zeroshot.datasets.labels import read_hierarchy

        kinds: tuple[str, ...] = ()
        parents: tuple[int, ...] = ()
        if self.hierarchy is None:
            names = prompts.load_labels(self.labels or "")
        else:
            names, kinds, parents = read_hierarchy(self.hierarchy)
        everything = [*names, *kinds]
        loaded = prompts.load_templates(self.templates or templates, everything)
        return names, parents, prompts.expand(everything, loaded)

    def job(self, run: Rows, models: "ModelSet", views: int = 0) -> "ClassifyJob":
        """The job that is asked for."""
        from zeroshot.tasks.classification.calibration import read_calibration
        from zeroshot.tasks.classification.classify_task import ClassifyJob

        names, parents, sentences = self.prompted("simple")
        return ClassifyJob(
            models,
            names,
            sentences,
            self.method,
            read_options(self.method_option),
            self.head,
            self.long_text == "truncate",
            self._learn(run, names, views, parents),
            self.explain,
            self.top_k,
            None if self.calibration is None else read_calibration(self.calibration),
            self.abstain,
            self.multi,
            tuple(self.against or ()),
            self.threshold,
        )

    def _learn(
        self, run: Rows, names: tuple[str, ...], views: int, parents: tuple[int, ...]
    ) -> Any:
        from zeroshot.datasets.labels import read_labeled_images, read_prior
        from zeroshot.tasks.classification.classifier import Learn

        return Learn(
            shots=None if self.shots is None else read_labeled_images(self.shots, names),
            bank=run.sources(self.bank) if self.bank else (),
            prior=() if self.prior is None else read_prior(self.prior, names),
            views=views,
            parents=parents,
        )

    def show(self, run: Rows, job: "ClassifyJob", sources: "Inputs") -> None:
        """Run the job, or compare the methods that are named."""
        from zeroshot.inputs.containers import Containers

        if not self.compare:
            run.show(job, sources)
        elif self.method or self.calibration or run.out:
            raise UserError("--compare takes no --method, --calibration or --out")
        else:
            assert not isinstance(sources, Containers)  # they are for folders
            _compare(run, job, self.compare, list(sources))


def _compare(run: Rows, job: "ClassifyJob", compare: str, sources: "list[Source]") -> None:
    from zeroshot.commands import console
    from zeroshot.inference.meter import Meter
    from zeroshot.tasks.classification.compare import compare_pictures

    size, meter = run.at_once, Meter()
    with run.open_cache() as cache:

        def make(method: str | None, options: dict[str, Any]) -> "Classifier":
            own = dataclasses.replace(job, method=method, options=options)
            return own.open(cache, meter, size).classifier

        found = compare_pictures(
            compare.split(","), dict(job.options), make, sources, cache, meter, size
        )
        console.show_comparison(found)
