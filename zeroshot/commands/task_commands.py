"""The commands that make one row per image, but for labels: one task each.

As `cli`, nothing heavy is imported here.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from zeroshot.commands.annotations.export_runs import ExportOptions, exporting
from zeroshot.commands.command import Images, command
from zeroshot.commands.runner import OutputOptions
from zeroshot.commands.sidecars.sidecar_runs import (
    SidecarRemove,
    XmpNameFlag,
    remove_sidecars,
    show_with_sidecars,
)
from zeroshot.errors import UserError, counted
from zeroshot.tasks.captioning.caption_options import CaptionOptions, ReadOptions
from zeroshot.tasks.embed_options import EmbedOptions
from zeroshot.tasks.filter_options import FilterOptions
from zeroshot.tasks.localization.detect_options import DetectOptions
from zeroshot.tasks.localization.segment_options import SegmentOptions
from zeroshot.tasks.matching.match_options import MatchOptions
from zeroshot.tasks.sidecars.text_options import TextOptions
from zeroshot.tasks.vqa.ask_options import AskOptions

if TYPE_CHECKING:
    from zeroshot.distributed.sharding import Inputs
    from zeroshot.inputs.source import Source
    from zeroshot.model_set.model_set import ModelSet
    from zeroshot.results.result import FilterResult, Result
    from zeroshot.tasks.matching.match_task import Match

ResultStream = Iterator[Any]
LayoutFlag = Annotated[
    Literal["rows", "safetensors", "clip-retrieval"] | None,
    typer.Option(
        "--layout",
        envvar="ZEROSHOT_LAYOUT",
        help="What to write into a folder: rows, rows with a matrix in safetensors (the default), "
        "or the files of clip-retrieval.",
    ),
]
Half = Annotated[
    bool,
    typer.Option(
        "--half",
        envvar="ZEROSHOT_HALF",
        help="Matrices in float16; those of clip-retrieval always are.",
    ),
]

# Captions and texts


@command
def caption(
    run: OutputOptions,
    options: CaptionOptions,
    text: TextOptions,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders, globs or -; default: the images of --prompts or --boxes."
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            envvar="ZEROSHOT_PROMPTS",
            help="A prompt per image: JSON lines with path and prompt.",
        ),
    ] = None,
    sidecar: Annotated[
        Literal["txt", "xmp"] | None,
        typer.Option(
            "--sidecar",
            envvar="ZEROSHOT_SIDECAR",
            help="Also write each caption beside its image. txt: a.txt for a.jpg; existing files "
            "stay, unless --overwrite is given. xmp: description and alternative text, merged into "
            "a sidecar that exists.",
        ),
    ] = None,
    xmp_name: XmpNameFlag = "full",
    sidecar_remove: SidecarRemove = False,
    boxes: Annotated[
        Path | None,
        typer.Option(
            "--boxes",
            envvar="ZEROSHOT_BOXES",
            help="Rows of detect: caption each of their boxes.",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            envvar="ZEROSHOT_TRACE",
            help="Write every choice of the decoding to a file, one JSON line per caption.",
        ),
    ] = None,
) -> None:
    """Caption images.

    Default method: the set's own; otherwise mbr if its anchors have captions, else magic. --preset,
    --prompt and --trace use magic.

    Examples:
        zeroshot caption photos/ --out captions.jsonl
        zeroshot caption photos/ --method magic -o k=20 --sidecar txt
    """
    from zeroshot.datasets.questions import read_prompts
    from zeroshot.tasks.captioning.caption_task import caption_task

    if sidecar_remove:
        remove_sidecars(run, images or [], xmp_name)
        return
    text.check(sidecar)
    if options.prompt is not None and prompts is not None:
        raise UserError("--prompt is one text for all images, --prompts one for each: give one")
    if options.box and boxes is not None:
        raise UserError("--box is for all images, --boxes has those of each: give one")
    each = read_prompts(prompts) if prompts is not None else {}
    found = _boxes_of(boxes) if boxes is not None else {}
    if not images and not each and not found:
        raise UserError("caption needs images: files, folders, globs or -")
    given = replace(options, prompt=each or options.prompt, trace=trace is not None)
    given = replace(given, box=found or options.box)
    task = caption_task(run.model_set(), given)
    if sidecar and given.box:
        raise UserError("a sidecar has one caption, of the whole image: leave the boxes out")
    sources = _prompted(run, images or list(each) or list(found), each, prompts)
    if trace is not None and run.folder is not None:
        raise UserError("--trace needs one output file; a folder of shards has no traces")
    with _traces(trace, run) as traced:
        if sidecar:
            from zeroshot.tasks.sidecars.sidecar_task import SidecarCaption
            from zeroshot.tasks.sidecars.text_sidecars import TextSidecars
            from zeroshot.tasks.sidecars.xmp_sidecars import XmpSidecars

            txt = TextSidecars(run.overwrite, text=text)
            writer = XmpSidecars("captions", xmp_name) if sidecar == "xmp" else txt
            with_files = SidecarCaption(
                models=task.models, options=given, inner=task, writer=writer
            )
            show_with_sidecars(run, with_files, sources, traced)
        else:
            run.show(task, sources, traced)


def _boxes_of(file: Path) -> dict[str, Any]:
    """The boxes of each image in rows of `detect`, by its path."""
    from zeroshot.distributed.saved_rows import saved_rows
    from zeroshot.output.annotations.annotated import DETECT, Annotations
    from zeroshot.tasks.captioning.region_captions import ImageBoxes

    saved = saved_rows(file)
    if saved.schema != DETECT:
        raise UserError(f"--boxes '{file}' has rows of {saved.schema}; rows of detect have boxes")
    if saved.unfinished:
        raise UserError(f"--boxes '{file}' lacks {counted(saved.unfinished, 'shard')}: finish it")
    found: dict[str, ImageBoxes] = {}
    for image in Annotations(DETECT, saved.rows).images():
        boxes = tuple(mark.box for mark in image.marks if mark.box is not None)
        if found.setdefault(image.name, own := ImageBoxes(boxes, image.id)) != own:
            raise UserError(f"--boxes '{file}' has several rows for '{image.name}'")
    failed = ImageBoxes((), missing=f"'{file}' has an error and no boxes for it")
    return {name: found.get(name, failed) for name in (str(r["path"]) for r in saved.rows())}


def _prompted(
    run: OutputOptions, images: Sequence[str], each: Mapping[str, str], prompts: Path | None
) -> "Inputs":
    """What `images` name; if each image has a prompt, none may lack one."""
    if not each:
        return run.inputs(images)
    sources = run.sources(images)
    lacking = [source.path for source in sources if source.path not in each]
    if lacking:
        without = counted(len(lacking), "image")
        raise UserError(f"'{prompts}' has no prompt for {without}: '{lacking[0]}'")
    return sources


@contextlib.contextmanager
def _traces(
    path: Path | None, run: OutputOptions
) -> Iterator[Callable[[ResultStream], ResultStream]]:
    """What passes results on, and writes the trace of each to `path`.

    With --out the file grows with the rows, and a trace that a killed run wrote without its row is
    not written again. Otherwise it is written whole.
    """
    if path is None:
        yield lambda results: results
        return
    from zeroshot.output import atomic
    from zeroshot.output.appended import AppendedFile

    atomic.check_place(path)
    if run.out is None:
        if path.exists() and not run.overwrite:
            raise UserError(f"'{path}' exists; --overwrite replaces it")
        ended: BaseException | None = None
        with atomic.whole(path, overwrite=run.overwrite) as new:
            try:
                yield lambda results: _traced(results, new.write)
            except (typer.Exit, KeyboardInterrupt) as error:  # all traces so far are complete
                ended = error
        if ended is not None:
            raise ended
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = AppendedFile(path)
    except OSError as error:
        raise atomic.start_error(path, error) from error

    def grown(results: ResultStream) -> ResultStream:
        lines = [] if run.overwrite else path.read_bytes().splitlines(keepends=True)
        complete = [line for line in lines if line.endswith(b"\n")]
        file.cut(sum(map(len, complete)))
        written = Counter(complete)

        def write(line: bytes) -> None:
            if written[line]:
                written[line] -= 1
            else:
                file.append(line)

        yield from _traced(results, write)
        file.sync()

    try:
        yield grown
    finally:
        file.close()


def _traced(results: ResultStream, write: Callable[[bytes], object]) -> ResultStream:
    """The results; the trace of each is written before it."""
    from zeroshot.output.formats import to_json, utf8

    for result in results:
        if result.error is None:
            for row in result.trace_rows():
                write(utf8(to_json(row)) + b"\n")
        yield result


@command
def read(run: OutputOptions, options: ReadOptions, images: Images) -> None:
    """Read the line of text that each image shows.

    Examples:
        zeroshot read lines/ --out texts.jsonl
        zeroshot read lines/ --model hf:microsoft/trocr-base-handwritten
    """
    from zeroshot.tasks.captioning.trained import Read

    run.show(Read.from_options(run.model_set(), options), run.inputs(images))


@command
def ask(
    run: OutputOptions,
    options: AskOptions,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGES...] [QUESTION]",
            help="Images, then the question, unless --question or --questions has it.",
        ),
    ] = None,
    question: Annotated[
        list[str] | None,
        typer.Option("--question", help="A question about every image; may be repeated."),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            envvar="ZEROSHOT_QUESTIONS",
            help="Questions of each image: JSON lines with path and question.",
        ),
    ] = None,
) -> None:
    """Answer questions about images.

    Examples:
        zeroshot ask photos/ "What colour is it?" --answers red,blue,green
        zeroshot ask photos/ "Is there a dog?" --among cat,dog,bird --out answers.csv
    """
    from zeroshot.datasets.questions import read_questions
    from zeroshot.tasks.vqa.ask_task import Ask

    names, texts = list(images or []), list(question or [])
    each = read_questions(questions) if questions is not None else {}
    if not texts and not each:
        if len(names) < 2:
            raise UserError('ask needs images and a question: zeroshot ask photos/ "Is it day?"')
        texts = [names.pop()]
        if os.path.lexists(texts[0]) and run.resolved(names, {"the question": texts}):
            raise UserError(
                f"the question '{texts[0]}' is a path; images come first, and the question last"
            )
    if texts and each:
        raise UserError("--question is for every image, --questions has those of each: give one")
    task = Ask.from_options(run.model_set(), options, each or texts)
    run.show(task, run.inputs(names or list(each), {"the question": texts}))


# Embeddings, masks and boxes


@command
def embed(
    run: OutputOptions, images: Images, layout: LayoutFlag = None, half: Half = False
) -> None:
    """Embed images: fill the cache, and write the embeddings with --json or --out.

    Examples:
        zeroshot embed photos/ --out vectors/
        zeroshot embed photos/ --out rows.jsonl
    """
    show_embeddings(run, run.model_set(), run.inputs(images), layout, half)


def show_embeddings(
    run: OutputOptions, models: "ModelSet", sources: "Inputs", layout: str | None, half: bool
) -> None:
    """Run `embed`; clip-retrieval's files have captions too, if there are any."""
    from zeroshot.inputs.containers import needing_captions
    from zeroshot.tasks.embed import Embed

    if layout == "clip-retrieval":
        sources = needing_captions(sources, each=True)
    captions = layout == "clip-retrieval" and _have_captions(sources)
    task = Embed.from_options(models, EmbedOptions(captions))
    run.show(task, sources, layout=layout, half=half, default_layout="safetensors")


def _have_captions(sources: "Inputs") -> bool:
    """Whether images come with captions; if each file is a shard, the first with images tells."""
    from zeroshot.inputs.containers import Containers

    if isinstance(sources, Containers):
        files = (list(file.pictures()) for file in sources.files)
        first = next((images for images in files if images), [])
        return any(source.captions for source in first)
    return any(source.captions for source in sources)


@command
def segment(
    run: OutputOptions, options: SegmentOptions, exports: ExportOptions, images: Images
) -> None:
    """Give each pixel of an image a label.

    Examples:
        zeroshot segment photos/ --labels cat,dog --draw drawn/
        zeroshot segment photos/ --labels sky,tree --background wall --yolo dataset/
    """
    from zeroshot.tasks.localization.segmentation import Segment

    words = {"--labels": options.labels}
    task = Segment.from_options(run.model_set(), options)
    _check_folders(options.masks, options.draw)
    with exporting(run, exports, task, task.labels) as through:
        run.show(task, run.inputs(images, words), through)


@command
def detect(
    run: OutputOptions, options: DetectOptions, exports: ExportOptions, images: Images
) -> None:
    """Find things in images: a box for each.

    Examples:
        zeroshot detect photos/ --labels cat,dog --draw drawn/
        zeroshot detect photos/ --labels cat,dog --threshold 0.3 --coco boxes.json
    """
    from zeroshot.tasks.localization.detection import Detect

    task = Detect.from_options(run.model_set(), options)
    _check_folders(options.draw)
    words = {"--labels": options.labels}
    with exporting(run, exports, task, task.labels) as through:
        run.show(task, run.inputs(images, words), through)


def _check_folders(*folders: str | Path | None) -> None:
    """UserError for a folder that cannot be made."""
    from zeroshot.output.atomic import check_place

    for folder in folders:
        if folder is not None:
            check_place(Path(folder), folder=True)


# Images with texts


@command
def match(
    run: OutputOptions,
    options: MatchOptions,
    pairs: Annotated[
        list[str],
        typer.Argument(
            metavar="PAIRS...",
            help="Tables of path,caption (.csv, .tsv, .jsonl, .parquet), tar files with captions; "
            "with --text any images.",
        ),
    ],
    form: Annotated[
        Literal["pairs", "winoground", "nlvr2"],
        typer.Option(
            "--form", envvar="ZEROSHOT_FORM", help="What a row of PAIRS is; see docs/matching.md."
        ),
    ] = "pairs",
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
    """Score how well texts fit images: cosines, or the probability of a matching head.

    Examples:
        zeroshot match pairs.csv --out scores.csv
        zeroshot match photos/ --text "a cat" --against "a photo"
    """
    from zeroshot.inputs.containers import Containers, needing_captions
    from zeroshot.tasks.matching.match_task import Match

    if learn_thresholds is not None and options.thresholds is not None:
        raise UserError("--thresholds label scores, --learn-thresholds finds them: give one")
    if (learn_thresholds is None) != (order is None):
        raise UserError("--learn-thresholds needs --order, and --order is for nothing else")
    if form != "pairs" and options.texts:
        raise UserError(f"--form {form} has texts of its own, --text is for images")
    sources = _pairs(run, pairs, form, options.texts)
    if not options.texts:
        sources = needing_captions(sources)
    captions = None
    if not isinstance(sources, Containers):  # else their versions identify them, and shards retry
        _check_retry(run, sources)
        captions = None if options.texts else _captions(sources)
    task = Match.from_options(run.model_set(), options, captions)
    if learn_thresholds is not None:
        _learn(run, task, sources, learn_thresholds, (order or "").split(","))
    elif form == "winoground":
        assert not isinstance(sources, Containers)
        _winoground(run, task, sources)
    else:
        run.show(task, sources)


def _pairs(run: OutputOptions, pairs: Sequence[str], form: str, texts: Sequence[str]) -> "Inputs":
    from zeroshot.datasets import winoground

    if form == "pairs":
        return run.inputs(pairs, {"--text": texts})
    read = winoground.winoground if form == "winoground" else winoground.nlvr2
    sources = [source for file in pairs for source in read(Path(file))]
    return sources[: run.limit]


def _check_retry(run: OutputOptions, sources: "Sequence[Source]") -> None:
    if run.retry_failed and len({s.path for s in sources}) < len(sources):
        raise UserError(
            "--retry-failed finds rows by their image, and some images come more than once; start "
            "again with --overwrite (earlier scores are in the cache)"
        )


def _captions(sources: "Sequence[Source]") -> str:
    from zeroshot import prompts

    def one(captions: tuple[str, ...]) -> tuple[str, ...]:
        """As lines, unless a caption has lines of its own."""
        return captions if any("\n" in text for text in captions) else ("\n".join(captions),)

    return prompts.fingerprint([[s.path or "", *one(s.captions)] for s in sources])


def _learn(
    run: OutputOptions, task: "Match", sources: "Inputs", file: Path, labels: Sequence[str]
) -> None:
    """Score the pairs, and write the thresholds that separate their labels."""
    from zeroshot.commands import console
    from zeroshot.output.atomic import check_place
    from zeroshot.tasks.matching.scoring import made_with
    from zeroshot.tasks.matching.thresholds import learn

    if run.out is not None:
        raise UserError("--learn-thresholds writes thresholds; rows need a run of their own")
    if file.exists() and not run.overwrite:
        raise UserError(f"'{file}' exists; --overwrite replaces it")
    check_place(file)

    def through(results: ResultStream) -> ResultStream:
        scores: list[float] = []
        labels_of: list[str] = []
        made = ""
        for result in results:
            if result.error is None:
                label = result.source.text_of("label")
                if label is None:
                    raise UserError(f"'{result.path}' has no label to learn from (--label-column)")
                scores += [fit.score for fit in result.texts]
                labels_of += [label for _ in result.texts]
                made = made_with(result.models, result.scored, task.negatives)
            yield result
        learned = learn(scores, labels_of, [label.strip() for label in labels], made)
        learned.save(file, run.overwrite)
        console.log(
            f"thresholds in {file}: {', '.join(f'{cut:.4g}' for cut in learned.cuts)}; balanced "
            f"accuracy {learned.accuracy:.3f} on the {counted(learned.pairs, 'pair')} they were "
            "learned from"
        )

    run.show(task, sources, through)


def _winoground(run: OutputOptions, task: "Match", sources: "Sequence[Source]") -> None:
    """Score every example, then print the three figures."""
    from zeroshot.commands import console
    from zeroshot.datasets.winoground import winoground_figures

    if run.folder is not None:
        raise UserError("--form winoground has figures of the whole: give --out one file")

    def through(results: ResultStream) -> ResultStream:
        scores: list[list[float]] = []
        for result in results:
            scores.append([fit.score for fit in result.texts])
            yield result
        if len(scores) == len(sources):
            console.log(winoground_figures(scores))
        else:
            console.log("no figures: some rows are of an earlier run; --overwrite starts again")

    run.show(task, sources, through)


@command
def filter(
    run: OutputOptions,
    options: FilterOptions,
    pairs: Annotated[
        list[str],
        typer.Argument(
            help="Tables with paths or URLs and captions (.csv, .tsv, .jsonl, .parquet), "
            "webdataset tar files, hf-dataset:NAME."
        ),
    ],
    kept: Annotated[
        Path | None,
        typer.Option(
            "--kept",
            envvar="ZEROSHOT_KEPT",
            help="Write the pairs to keep: a .jsonl, .csv or .parquet table, or a folder for "
            "webdataset tar files.",
        ),
    ] = None,
    layout: Annotated[
        Literal["rows", "webdataset"] | None,
        typer.Option(
            "--layout",
            envvar="ZEROSHOT_FILTER_LAYOUT",
            help="What to write into a folder: rows, or rows and, for each shard, a tar file of "
            "the pairs to keep.",
        ),
    ] = None,
) -> None:
    """Keep image-text pairs whose image and caption agree, by a threshold or by a fraction.

    Examples:
        zeroshot filter pairs.csv --keep 0.3 --kept good.csv
        zeroshot filter pairs.csv --min-score 0.25 --out scores.jsonl
    """
    from zeroshot.commands import console
    from zeroshot.inputs.containers import Containers, needing_captions
    from zeroshot.output.atomic import check_place
    from zeroshot.output.filtered_pairs import check_target, write_kept
    from zeroshot.tasks.filter import Filter

    task = Filter.from_options(run.model_set(), options)
    if kept is not None and run.folder is not None:
        raise UserError(
            "--kept needs all rows at once: leave --out DIR/, or give --layout webdataset, with "
            "which each shard has its own pairs there"
        )
    whole = (options.needs_all or kept is not None) and run.folder is None
    for path in (run.out if whole else None, kept):
        if path is not None and path.exists() and not run.overwrite:
            raise UserError(
                f"'{path}' exists; it needs all pairs, so it cannot be continued: --overwrite"
            )
    sources = needing_captions(run.inputs(pairs), each=True)
    if not isinstance(sources, Containers) and run.folder is None:
        _check_retry(run, sources)
    if kept is not None:
        check_target(kept, () if isinstance(sources, Containers) else sources)
        check_place(kept)
    chosen: list[FilterResult] = []
    counts = {"scored": 0, "kept": 0, "copies": 0}

    def watched(results: "Iterator[Result]") -> "Iterator[Result]":
        for result in cast("Iterator[FilterResult]", results):
            counts["scored"] += result.error is None
            counts["kept"] += result.kept
            counts["copies"] += result.copy_of is not None
            if kept is not None and result.kept:
                chosen.append(result)
            yield result

    failed = False
    try:
        run.show(task, sources, watched, layout)
    except typer.Exit:
        failed = True
    if kept is not None:
        write_kept(kept, chosen)
    if not run.quiet and run.folder is None:
        number = counts["copies"]
        copies = f", without {number} of copies of their images" if options.dedupe else ""
        console.log(f"kept {counts['kept']} of {counted(counts['scored'], 'pair')}{copies}")
    if failed:
        raise typer.Exit(3)
