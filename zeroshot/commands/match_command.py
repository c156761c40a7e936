"""`zeroshot match`.

As `cli`, nothing heavy is imported here.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from zeroshot.commands.options import on_pictures, option
from zeroshot.commands.runner import Rows
from zeroshot.errors import UserError

if TYPE_CHECKING:
    from zeroshot.distributed.sharding import Inputs
    from zeroshot.inputs.source import Source
    from zeroshot.tasks.matching.match_task import MatchJob


@on_pictures
def match(
    run: Rows,
    pairs: Annotated[
        list[str],
        typer.Argument(
            metavar="PAIRS...",
            help="Tables of path,caption (.csv, .tsv, .jsonl, .parquet), tar files with captions; "
            "with --text any pictures.",
        ),
    ],
    model: Annotated[
        str | None,
        option(
            "--model",
            env="MODEL",
            help="A model whose head reads picture and text together: BLIP, BLIP-2, ViLT, "
            "BridgeTower, FLAVA. Without one, cosines of --models or --encoder.",
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="Match every picture with this text.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            help="Weigh texts against this one: the score is the share of a softmax.",
        ),
    ] = None,
    score: Annotated[
        Literal["cosine", "sigmoid"],
        option("--score", env="MATCH_SCORE", help="Of encoders; sigmoid is for SigLIP's like."),
    ] = "cosine",
    form: Annotated[
        Literal["pairs", "winoground", "nlvr2"],
        option("--form", env="FORM", help="What a row of PAIRS is; see docs/matching.md."),
    ] = "pairs",
    thresholds: Annotated[
        Path | None,
        option("--thresholds", env="THRESHOLDS", help="Name scores by thresholds of this file."),
    ] = None,
    learn_thresholds: Annotated[
        Path | None,
        typer.Option(
            "--learn-thresholds",
            help="Learn thresholds from the labels of PAIRS and write them to this file.",
        ),
    ] = None,
    order: Annotated[
        str | None,
        typer.Option("--order", help="The labels to learn, lowest score first: no,yes."),
    ] = None,
) -> None:
    """Say how well texts fit pictures: cosines, or a matching head's probability."""
    from zeroshot.inputs.containers import Containers
    from zeroshot.tasks.matching.match_task import MatchJob
    from zeroshot.tasks.matching.thresholds import read_thresholds

    if learn_thresholds is not None and thresholds is not None:
        raise UserError("--thresholds name scores, --learn-thresholds finds them: give one")
    if (learn_thresholds is None) != (order is None):
        raise UserError("--learn-thresholds needs --order, and --order is for nothing else")
    if form != "pairs" and text:
        raise UserError(f"--form {form} has texts of its own, --text is for pictures")
    sources = _sources(run, pairs, form)
    captions = None
    if not isinstance(sources, Containers):  # else their versions answer for them, and shards retry
        _refuse_to_retry_twins(run, sources)
        captions = None if text else _captions(sources)
    job = MatchJob(
        run.model_set(),
        model,
        tuple(text or ()),
        tuple(against or ()),
        None if thresholds is None else read_thresholds(thresholds),
        score,
        captions,
    )
    if learn_thresholds is not None:
        _learn(run, job, sources, learn_thresholds, (order or "").split(","))
    elif form == "winoground":
        assert not isinstance(sources, Containers)
        _winoground(run, job, sources)
    else:
        run.show(job, sources)


def _sources(run: Rows, pairs: Sequence[str], form: str) -> "Inputs":
    from zeroshot.datasets import winoground

    if form == "pairs":
        return run.inputs(pairs)
    read = winoground.winoground if form == "winoground" else winoground.nlvr2
    sources = [source for file in pairs for source in read(Path(file))]
    return sources[: run.limit]


def _refuse_to_retry_twins(run: Rows, sources: "Sequence[Source]") -> None:
    if run.retry_failed and len({s.path for s in sources}) < len(sources):
        raise UserError(
            "--retry-failed finds rows by their picture, and some come more than once; begin anew "
            "with --overwrite (what was scored before is in the cache)"
        )


def _captions(sources: "Sequence[Source]") -> str:
    from zeroshot import prompts

    return prompts.fingerprint([[s.path or "", s.fields.get("caption", "")] for s in sources])


def _learn(
    run: Rows, job: "MatchJob", sources: "Inputs", file: Path, labels: Sequence[str]
) -> None:
    """Score the pairs, and write the thresholds that tell their labels apart."""
    from zeroshot.commands import console
    from zeroshot.tasks.matching.scoring import made_with
    from zeroshot.tasks.matching.thresholds import learn

    if run.out is not None:
        raise UserError("--learn-thresholds writes thresholds; rows are for a run of their own")
    if file.exists() and not run.overwrite:
        raise UserError(f"'{file}' exists; --overwrite writes over it")

    def through(results: Iterator[Any]) -> Iterator[Any]:
        scores: list[float] = []
        found: list[str] = []
        made = ""
        for result in results:
            if result.error is None:
                label = result.source.fields.get("label")
                if label is None:
                    raise UserError(f"'{result.path}' has no label to learn from (--label-column)")
                scores += [fit.score for fit in result.texts]
                found += [label for _ in result.texts]
                made = made_with(result.models, result.scored, job.against)
            yield result
        learned = learn(scores, found, [label.strip() for label in labels], made)
        learned.save(file)
        console.say(
            f"thresholds in {file}: {', '.join(f'{cut:.4g}' for cut in learned.cuts)}; balanced "
            f"accuracy {learned.accuracy:.3f} on the {learned.pairs} pairs they were learned from"
        )

    run.show(job, sources, through)


def _winoground(run: Rows, job: "MatchJob", sources: "Sequence[Source]") -> None:
    """Score every example, and say the three figures once all is scored."""
    from zeroshot.commands import console
    from zeroshot.datasets.winoground import winoground_figures

    if run.folder is not None:
        raise UserError("--form winoground has figures of the whole: give --out one file")

    def through(results: Iterator[Any]) -> Iterator[Any]:
        scores: list[list[float]] = []
        for result in results:
            scores.append([fit.score for fit in result.texts])
            yield result
        if len(scores) == len(sources):
            console.say(winoground_figures(scores))
        else:
            console.say("no figures: some rows are of an earlier run; --overwrite begins anew")

    run.show(job, sources, through)
