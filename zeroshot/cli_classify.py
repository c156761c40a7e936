"""`zeroshot classify`, on pictures and on arrays.

As `cli`, nothing heavy is imported here.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zeroshot.cli_rows import Rows
from zeroshot.cli_run import (
    Labels,
    LongText,
    Method,
    MethodOptions,
    Score,
    Templates,
    on_pictures,
    option,
    read_options,
)
from zeroshot.errors import UserError

if TYPE_CHECKING:
    from zeroshot.images import Source
    from zeroshot.jobs.classify import ClassifyJob
    from zeroshot.tasks.classify import Classifier


@on_pictures
def classify(
    run: Rows,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, globs or -; none with --embeddings."),
    ] = None,
    labels: Labels = None,
    templates: Templates = "simple",
    method: Method = None,
    option: MethodOptions = None,
    score: Score = "auto",
    top_k: Annotated[
        int, option("--top-k", "-k", env="TOP_K", help="Labels in a row, best first.", min=1)
    ] = 5,
    long_text: LongText = "error",
    shots: Annotated[
        Path | None,
        option(
            "--shots",
            env="SHOTS",
            help="Labelled pictures to learn from: a folder per class, or a .csv with path,label.",
        ),
    ] = None,
    bank: Annotated[
        list[str] | None,
        option("--bank", env="BANK", help="Unlabelled pictures to learn from; may be repeated."),
    ] = None,
    prior: Annotated[
        str | None,
        option(
            "--prior",
            env="PRIOR",
            help="How frequent the labels are: 0.5,0.3,0.2 in their order, or a .json object.",
        ),
    ] = None,
    views: Annotated[
        int,
        option("--views", env="VIEWS", help="Random parts of each picture, itself included."),
    ] = 0,
    hierarchy: Annotated[
        Path | None,
        option(
            "--hierarchy",
            env="HIERARCHY",
            help="Instead of --labels: a .json object of labels with the kinds of each.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        option("--calibration", env="CALIBRATION", help="What 'zeroshot calibrate' wrote."),
    ] = None,
    abstain: Annotated[
        float | None,
        option(
            "--abstain",
            env="ABSTAIN",
            help="With --calibration: say nothing of this share of pictures like those, and of "
            "more where they are unlike.",
            min=0,
            max=1,
        ),
    ] = None,
    compare: Annotated[
        str | None,
        option("--compare", env="COMPARE", help="Several methods in one table: a,b,zpe+center."),
    ] = None,
    explain: Annotated[
        int,
        option(
            "--explain",
            env="EXPLAIN",
            help="Name this many anchors that carried the best label (couplings).",
            min=0,
        ),
    ] = 0,
    embeddings: Annotated[
        Path | None,
        option(
            "--embeddings",
            env="EMBEDDINGS",
            help="Score the arrays of an .npz file instead; --out names an .npz file then.",
        ),
    ] = None,
) -> None:
    """Label pictures, or score arrays of embeddings (--embeddings)."""
    if embeddings is not None:
        if images or labels:
            raise UserError("--embeddings takes neither pictures nor --labels: the file has both")
        if compare:
            _compare_arrays(embeddings, compare, read_options(option))
        else:
            _classify_arrays(run, embeddings, method or "ensemble", read_options(option))
        return
    if not images or bool(labels) == (hierarchy is not None):
        raise UserError(
            "classify needs pictures and --labels (or --hierarchy), or --embeddings FILE.npz"
        )
    from zeroshot.jobs.classify import ClassifyJob
    from zeroshot.tasks.calibrate import read_calibration

    names, parents, sentences = prompted(labels, hierarchy, templates)
    job = ClassifyJob(
        run.model_set(),
        names,
        sentences,
        method,
        read_options(option),
        None if score == "auto" else score,
        long_text == "truncate",
        _learn(run, names, shots, bank, prior, views, parents),
        explain,
        top_k,
        None if calibration is None else read_calibration(calibration),
        abstain,
    )
    if not compare:
        run.show(job, run.inputs(images))
    elif method or calibration or run.out:
        raise UserError("--compare takes no --method, --calibration or --out")
    else:
        _compare_pictures(run, job, compare, run.sources(images))


def prompted(
    labels: str | None, hierarchy: Path | None, templates: str
) -> tuple[tuple[str, ...], tuple[int, ...], list[list[str]]]:
    """Labels, the parents of a hierarchy, and the sentences of labels and kinds."""
    from zeroshot import prompts
    from zeroshot.tasks.labelled import read_hierarchy

    kinds: tuple[str, ...] = ()
    parents: tuple[int, ...] = ()
    if hierarchy is None:
        names = prompts.load_labels(labels or "")
    else:
        names, kinds, parents = read_hierarchy(hierarchy)
    everything = [*names, *kinds]
    return names, parents, prompts.expand(everything, prompts.load_templates(templates, everything))


def _learn(
    run: Rows,
    names: tuple[str, ...],
    shots: Path | None,
    bank: list[str] | None,
    prior: str | None,
    views: int,
    parents: tuple[int, ...],
) -> Any:
    from zeroshot.tasks.classify import Learn
    from zeroshot.tasks.labelled import read_labelled, read_prior

    return Learn(
        shots=None if shots is None else read_labelled(shots, names),
        bank=run.sources(bank) if bank else (),
        prior=() if prior is None else read_prior(prior, names),
        views=views,
        parents=parents,
    )


def _compare_pictures(run: Rows, job: "ClassifyJob", compare: str, sources: "list[Source]") -> None:
    from zeroshot import terminal
    from zeroshot.tasks.compare import compare_pictures
    from zeroshot.tasks.meter import Meter

    size, meter = run.at_once, Meter()
    with run.open_cache() as cache:

        def make(method: str | None, options: dict[str, Any]) -> "Classifier":
            own = dataclasses.replace(job, method=method, options=options)
            return own.open(cache, meter, size).classifier

        found = compare_pictures(
            compare.split(","), dict(job.options), make, sources, cache, meter, size
        )
        terminal.show_comparison(found)


def _compare_arrays(file: Path, names: str, options: dict[str, str]) -> None:
    from zeroshot import terminal
    from zeroshot.tasks.arrays import read_arrays
    from zeroshot.tasks.compare import compare_arrays

    terminal.show_comparison(compare_arrays(read_arrays(file), names.split(","), options))


def _classify_arrays(run: Rows, file: Path, method: str, options: dict[str, str]) -> None:
    if run.out is None or run.out.suffix != ".npz":
        raise UserError("--embeddings needs --out FILE.npz for the scores")
    if run.out.exists() and not run.overwrite:
        raise UserError(f"'{run.out}' exists; --overwrite writes over it")
    from zeroshot import terminal
    from zeroshot.tasks.arrays import read_arrays, score_arrays, write_arrays

    scored = score_arrays(read_arrays(file), method, options)
    write_arrays(run.out, scored)
    if not run.quiet:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in scored.items())
        terminal.say(f"wrote {run.out}: {shapes}")
