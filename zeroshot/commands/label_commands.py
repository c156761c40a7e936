"""`zeroshot classify` and `calibrate`, for images and, with `video`, for videos; and `tune`.

As `cli`, nothing heavy is imported here.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from zeroshot.commands.annotations.export_runs import (
    LabelExportOptions,
    Through,
    check_several,
    exporting,
)
from zeroshot.commands.command import command
from zeroshot.commands.common_options import CommonOptions
from zeroshot.commands.runner import OutputOptions
from zeroshot.commands.sidecars.sidecar_runs import (
    SidecarRemove,
    XmpNameFlag,
    remove_sidecars,
    show_with_sidecars,
)
from zeroshot.commands.sidecars.sorting_runs import Into, IntoAsFlag, show_sorted
from zeroshot.errors import UserError, counted
from zeroshot.tasks.classification.calibrate_options import CalibrateOptions
from zeroshot.tasks.classification.classify_options import ClassifyOptions
from zeroshot.tasks.sidecars.text_options import TextOptions
from zeroshot.tasks.tuning.tune_options import TuneOptions

if TYPE_CHECKING:
    from zeroshot.distributed.sharding import Inputs
    from zeroshot.model_set.model_set import ModelSet
    from zeroshot.tasks.classification.arrays import Array
    from zeroshot.tasks.classification.classifier import Classifier
    from zeroshot.tasks.classification.classify_task import Classify, ClipClassify
    from zeroshot.tasks.tuning.recipe import Recipe

Compare = Annotated[
    str | None,
    typer.Option(
        "--compare",
        envvar="ZEROSHOT_COMPARE",
        help="Several methods in one table: a,b,zpe+center.",
    ),
]


@command
def classify(
    run: OutputOptions,
    options: ClassifyOptions,
    exports: LabelExportOptions,
    text: TextOptions,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, globs or -; none with --embeddings."),
    ] = None,
    compare: Compare = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            "--embeddings",
            envvar="ZEROSHOT_EMBEDDINGS",
            help="Score the arrays of an .npz file instead; --out then names an .npz file.",
        ),
    ] = None,
    sidecar: Annotated[
        Literal["txt", "xmp"] | None,
        typer.Option(
            "--sidecar",
            envvar="ZEROSHOT_LABEL_SIDECAR",
            help="Also write the labels that hold beside each image; with --multi and --threshold. "
            "txt: tags in a.txt for a.jpg, 'cat, tree'; existing files stay, unless --overwrite is "
            "given. xmp: keywords, merged into a sidecar that exists.",
        ),
    ] = None,
    xmp_name: XmpNameFlag = "full",
    sidecar_remove: SidecarRemove = False,
    into: Into = None,
    into_as: IntoAsFlag = "symlink",
) -> None:
    """Label images, or score arrays of embeddings (--embeddings).

    Examples:
        zeroshot classify photos/ --labels cat,dog,bird --out labels.csv
        zeroshot classify photos/ --labels cat,dog --shots labelled/ --into sorted/
    """
    if exports.targets() and (compare or embeddings is not None):
        raise UserError("--label-studio is for the labels of images by one method")
    if sidecar_remove:
        remove_sidecars(run, images or [], xmp_name)
        return
    if into is not None and (compare or sidecar or embeddings is not None):
        raise UserError(
            "--into sorts images by one method: leave --compare and --embeddings out; --sidecar is "
            "for another run (with the same --out nothing is computed again)"
        )
    if embeddings is not None:
        if images or options.labels:
            raise UserError("--embeddings takes neither images nor --labels: the file has both")
        if compare:
            _compare_arrays(embeddings, compare, options)
        elif options.recipe is not None:
            _score_by_recipe(run, embeddings, options.recipe)
        else:
            _score_arrays(run, embeddings, options)
        return
    if not images:
        raise UserError(
            "classify needs images and --labels (or --hierarchy), or --embeddings FILE.npz"
        )
    from zeroshot.tasks.classification.classify_task import Classify

    text.check(sidecar)
    task = Classify.from_options(run.model_set(), options)
    labels, several = (
        task.vocabulary.labels,
        check_several(exports, options.multi, options.threshold),
    )
    sources = run.inputs(images, {"--labels": options.labels})
    if into is not None:
        with exporting(run, exports, task, labels, several) as through:
            show_sorted(run, task, sources, into, into_as, through)
        return
    if sidecar is None:
        with exporting(run, exports, task, labels, several) as through:
            show_labels(run, task, sources, compare, through)
        return
    from zeroshot.tasks.sidecars.sidecar_task import SidecarLabels, check_keywords
    from zeroshot.tasks.sidecars.text_sidecars import TextSidecars
    from zeroshot.tasks.sidecars.xmp_sidecars import XmpSidecars

    if compare:
        raise UserError("--compare shows several methods, --sidecar writes one: give one of them")
    check_keywords(options, labels, sidecar)
    tags, xmp = TextSidecars(run.overwrite, "tags", text), XmpSidecars("keywords", xmp_name)
    writer = xmp if sidecar == "xmp" else tags
    with_files = SidecarLabels(models=task.models, options=options, inner=task, writer=writer)
    with exporting(run, exports, task, labels, several) as through:
        show_with_sidecars(run, with_files, sources, through)


def show_labels(
    run: OutputOptions,
    task: "Classify | ClipClassify",
    sources: "Inputs",
    compare: str | None,
    through: Through = iter,
) -> None:
    """Run the task, or compare methods on it."""
    from zeroshot.inputs.containers import Containers
    from zeroshot.tasks.classification.classify_task import Classify

    if not compare:
        run.show(task, sources, through)
    elif task.options.method or task.options.calibration or task.options.recipe or run.out:
        raise UserError("--compare takes no --method, --calibration, --recipe or --out")
    elif not isinstance(task, Classify):
        raise UserError(
            "--compare compares methods; leave --model and --pooling attention, which have none"
        )
    else:
        assert not isinstance(sources, Containers)  # they are for folders
        _compare(run, task, compare, list(sources))


def _compare(run: OutputOptions, task: "Classify", compare: str, sources: list[Any]) -> None:
    from zeroshot.commands import console
    from zeroshot.tasks.classification.compare import compare_images
    from zeroshot.tasks.tuning.recipe_classifier import RecipeClassifier

    size, meter = run.images_per_batch, console.meter()
    with run.open_cache() as cache:

        def make(method: str | None, own: dict[str, Any]) -> "Classifier":
            given = dataclasses.replace(task.options, method=method, options=own)
            with meter.phase("loading models", counts=False):
                made = dataclasses.replace(task, options=given).open(cache, meter, size).classifier
            assert not isinstance(made, RecipeClassifier)
            return made

        names, shared = compare.split(","), dict(task.options.options)
        found = list(compare_images(names, shared, make, sources, cache, meter, size))
        console.show_comparison(found)


def _arrays(file: Path, coupling: str | None) -> "Mapping[str, Any]":
    from zeroshot.tasks.classification.arrays import couple_arrays, read_arrays

    arrays = read_arrays(file)
    return arrays if coupling is None else couple_arrays(arrays, coupling)


def _compare_arrays(file: Path, names: str, options: ClassifyOptions) -> None:
    from zeroshot.commands import console
    from zeroshot.tasks.classification.compare import compare_arrays

    arrays = _arrays(file, options.coupling)
    console.show_comparison(compare_arrays(arrays, names.split(","), options.options))


def _score_arrays(run: OutputOptions, file: Path, options: ClassifyOptions) -> None:
    _check_arrays_out(run)
    from zeroshot.tasks.classification.arrays import default_method, score_arrays

    arrays = _arrays(file, options.coupling)
    method = options.method or default_method(arrays)
    _write_scores(run, score_arrays(arrays, method, options.options))


def _score_by_recipe(run: OutputOptions, file: Path, recipe: Path) -> None:
    _check_arrays_out(run)
    from zeroshot.tasks.classification.arrays import read_arrays
    from zeroshot.tasks.tuning.recipe import recipe_of
    from zeroshot.tasks.tuning.tune_task import score_by_recipe

    _write_scores(run, score_by_recipe(read_arrays(file), recipe_of(recipe, "classify")))


def _check_arrays_out(run: OutputOptions) -> None:
    if run.columns is not None:
        raise UserError("--columns is for rows, and --embeddings makes arrays: leave it out")
    if run.out is None or run.out.suffix != ".npz":
        raise UserError("--embeddings needs --out FILE.npz for the scores")
    if run.out.exists() and not run.overwrite:
        raise UserError(f"'{run.out}' exists; --overwrite replaces it")


def _write_scores(run: OutputOptions, scored: "Mapping[str, Array]") -> None:
    from zeroshot.commands import console
    from zeroshot.tasks.classification.arrays import write_arrays

    assert run.out is not None
    write_arrays(run.out, scored, run.overwrite)
    if not run.quiet:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in scored.items())
        console.log(f"wrote {run.out}: {shapes}")


@command
def calibrate(
    run: CommonOptions,
    options: CalibrateOptions,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Unlabelled images of the kind you expect; none with --truth."),
    ] = None,
) -> None:
    """Fit a temperature and thresholds for 'classify --calibration'; --out names a .json file.

    Examples:
        zeroshot calibrate --labels cat,dog --truth labelled/ --out calibration.json
        zeroshot calibrate photos/ --labels cat,dog --method center --out calibration.json
    """
    calibrate_on(run, options, run.model_set(), images)


def calibrate_on(
    run: CommonOptions, options: CalibrateOptions, models: "ModelSet", names: list[str] | None
) -> None:
    """Fit on the images that `names` name, or on the truth; write the file and print a summary.

    Raises:
        UserError: options that do not fit each other, or a file that exists.
    """
    out = _calibration_file(run, options, names)
    from zeroshot.commands import console
    from zeroshot.datasets.labels import read_labeled_images
    from zeroshot.prompts import fingerprint
    from zeroshot.tasks.classification.calibration import calibrate
    from zeroshot.tasks.classification.classifier import fingerprint as of_data, load_classifier
    from zeroshot.tasks.classification.classify_task import read_adaptation, read_vocabulary

    given, meter = options.classify, console.meter()
    vocabulary = read_vocabulary(given)
    data = read_adaptation(given, vocabulary)
    truth = (
        None
        if options.truth is None
        else read_labeled_images(Path(options.truth), vocabulary.labels)
    )
    words = {"--labels": options.labels}
    sources = run.sources(names or [], words) if truth is None else list(truth.sources)
    with run.open_cache() as cache:
        with meter.phase("loading models", counts=False):
            labels, prompts = vocabulary.labels, vocabulary.prompts
            ready = load_classifier(models, labels, prompts, given, cache, meter, data)
        made, reports, sets = calibrate(
            ready,
            sources,
            None if truth is None else truth.classes,
            cache,
            meter,
            prompts=fingerprint(vocabulary.prompts),
            data=of_data(data),
            precision=options.min_precision,
            batch_size=run.images_per_batch,
        )
    made.write(out, run.overwrite)
    if reports:
        console.print_table(
            ("temperature", *reports[0]),
            [
                (round(t, 4), *(round(x, 4) for x in report.values()))
                for t, report in zip((1.0, made.temperature), reports, strict=True)
            ],
        )
    if sets:
        console.show_set_reports(sets, len(sources))
    if not run.quiet:
        count = counted(len(sources), run.modality)
        console.log(f"wrote {out}: temperature {made.temperature:.4g}, {count}")


def _calibration_file(
    run: CommonOptions, options: CalibrateOptions, names: list[str] | None
) -> Path:
    if not options.labels or bool(names) == (options.truth is not None):
        raise UserError(f"calibrate needs --labels, and either {run.modality}s or --truth")
    if run.out is None or run.out.suffix != ".json":
        raise UserError("calibrate needs --out FILE.json for what it learns")
    if run.out.exists() and not run.overwrite:
        raise UserError(f"'{run.out}' exists; --overwrite replaces it")
    if options.min_precision is not None and options.truth is None:
        raise UserError("--min-precision needs --truth: thresholds are fitted on labelled images")
    return run.out


@command
def tune(
    run: CommonOptions,
    options: TuneOptions,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Unlabelled images of the kind you expect; may be left out. With --queries or "
            "--captions: the folder of their images (default: that of the file)."
        ),
    ] = None,
) -> None:
    """Choose the method for your images, and write it as a recipe for 'classify --recipe'.

    With labelled images (--shots, --truth) the choice is measured on images that took no part in
    it; --out names a .toml file. With --queries the recipe is for 'search --recipe', with
    --captions for 'caption --recipe'. Ctrl-C keeps the best so far.

    Examples:
        zeroshot tune photos/ --labels cat,dog --shots labelled/ --out recipe.toml
        zeroshot tune photos/ --labels cat,dog,bird --out recipe.toml
    """
    if run.out is None or run.out.suffix != ".toml":
        raise UserError("tune needs --out FILE.toml for the recipe")
    if run.out.exists() and not run.overwrite:
        raise UserError(f"'{run.out}' exists; --overwrite replaces it")
    from zeroshot.commands import console
    from zeroshot.tasks.tuning.recipe import write_recipe
    from zeroshot.tasks.tuning.tune import TuneInterruptedError

    try:
        recipe = _tuned(run, options, images)
    except TuneInterruptedError as stopped:
        write_recipe(stopped.recipe, run.out)
        console.show_recipe(stopped.recipe, run.out)
        raise
    write_recipe(recipe, run.out)
    console.show_recipe(recipe, run.out)


def _tuned(run: CommonOptions, options: TuneOptions, images: list[str] | None) -> "Recipe":
    from zeroshot.commands import console
    from zeroshot.tasks.tuning.tune_task import tune_arrays, tune_images

    progress = console.tuning_progress(quiet=run.quiet)
    pairs = options.queries or options.captions
    if options.embeddings is not None:
        if images or options.labels or options.shots or options.truth or pairs:
            raise UserError(
                "--embeddings takes no images, --labels, --shots, --truth, --queries or --captions"
            )
        return tune_arrays(Path(options.embeddings), options, progress)
    assert run.out is not None
    folder = Path(images[0]) if images and len(images) == 1 else None
    with run.open_cache() as cache:
        return tune_images(
            run.model_set(),
            options,
            run.sources(images) if images and not options.captions else [],
            cache,
            run.out.parent,
            progress,
            batch_size=run.images_per_batch,
            root=folder if folder and folder.is_dir() else None,
        )
