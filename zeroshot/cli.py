"""The command line: parse, call one task, show what comes.

Nothing heavy is imported here: `zeroshot --help` must not wait for torch. Exit codes: 0 done,
1 a fault of ours, 2 wrong usage, 3 done but some pictures failed, 4 a model or data is not
available, 130 interrupted with everything so far written.
"""

import contextlib
import dataclasses
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zeroshot import cli_anchors, cli_calibrate, cli_search
from zeroshot.cli_run import (
    Images,
    Json,
    Labels,
    LanguageModel,
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
from zeroshot.errors import UserError, ZeroshotError

if TYPE_CHECKING:
    from zeroshot.images import Source
    from zeroshot.results import CaptionResult

INTERRUPTED = 130

app = typer.Typer(
    name="zeroshot",
    help="Captions and labels from frozen vision and language models, with nothing trained.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(help="Model sets: what there is, what is on this disk, fetching.")
cache_app = typer.Typer(help="The cache of embeddings: what it holds, making room.")
app.add_typer(models_app, name="models", no_args_is_help=True)
app.add_typer(cache_app, name="cache", no_args_is_help=True)
app.add_typer(cli_anchors.app, name="anchors", no_args_is_help=True)


@app.command()
@on_pictures
def caption(
    run: Run,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, globs or -; none takes those of --prompts."),
    ] = None,
    method: Method = None,
    option: MethodOptions = None,
    preset: Annotated[
        str | None,
        option("--preset", env="PRESET", help="Named settings of magic: coco, flickr30k, story."),
    ] = None,
    lm: LanguageModel = None,
    prompt: Annotated[
        str | None,
        option("--prompt", env="PROMPT", help="What every text begins with; a story's title."),
    ] = None,
    prompts: Annotated[
        Path | None,
        option("--prompts", env="PROMPTS", help="A prompt per picture: JSON lines, path, prompt."),
    ] = None,
    trace: Annotated[
        Path | None,
        option("--trace", env="TRACE", help="Write every choice to a file, a JSON line each text."),
    ] = None,
) -> None:
    """Caption pictures: by MaGiC unless the model set or --method says otherwise."""
    from zeroshot.prompts import fingerprint
    from zeroshot.tasks import caption as task
    from zeroshot.tasks.meter import Meter

    if prompt is not None and prompts is not None:
        raise UserError("--prompt is one text for all pictures, --prompts one for each: give one")
    models, size, meter = run.model_set(lm), run.at_once, Meter()
    captioner = task.captioner(models, method, read_options(option), preset)
    each = task.read_prompts(prompts) if prompts is not None else {}
    if not images and not each:
        raise UserError("caption needs pictures: files, folders, globs or -")
    sources = run.sources(images or list(each))
    unasked = [source.path for source in sources if each and source.path not in each]
    if unasked:
        raise UserError(f"'{prompts}' has no prompt for {len(unasked)} pictures: '{unasked[0]}'")

    def asked(todo: "list[Source]") -> list[str] | None:
        if each:
            return [each[str(source.path)] for source in todo]
        return None if prompt is None else [prompt] * len(todo)

    with run.open_cache() as cache, _trace_file(trace, run) as traced:
        run.show(
            sources,
            lambda todo: traced(
                task.caption(
                    todo,
                    models,
                    captioner,
                    cache,
                    meter,
                    batch_size=size,
                    prompts=asked(todo),
                    trace=trace is not None,
                )
            ),
            cache,
            meter,
            "zeroshot.caption/1",
            lambda: (
                task.settings(models, captioner)
                | ({"prompt": prompt} if prompt else {})
                | ({"prompts": fingerprint([list(pair) for pair in each.items()])} if each else {})
            ),
        )


@app.command()
@on_pictures
def classify(
    run: Run,
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
    from zeroshot import prompts, terminal
    from zeroshot.tasks import classify as task
    from zeroshot.tasks.compare import compare_pictures
    from zeroshot.tasks.labelled import read_hierarchy, read_labelled, read_prior
    from zeroshot.tasks.meter import Meter

    kinds: tuple[str, ...] = ()
    parents: tuple[int, ...] = ()
    if hierarchy is None:
        names = prompts.load_labels(labels or "")
    else:
        names, kinds, parents = read_hierarchy(hierarchy)
    everything = [*names, *kinds]
    sentences = prompts.expand(everything, prompts.load_templates(templates, everything))
    models, size, meter = run.model_set(), run.at_once, Meter()
    sources = run.sources(images)
    learn = task.Learn(
        shots=None if shots is None else read_labelled(shots, names),
        bank=run.sources(bank) if bank else (),
        prior=() if prior is None else read_prior(prior, names),
        views=views,
        parents=parents,
    )
    with run.open_cache() as cache:

        def make(method: str | None, options: dict[str, Any]) -> task.Classifier:
            return task.classifier(
                models,
                names,
                sentences,
                cache,
                meter,
                method=method,
                options=options,
                head=None if score == "auto" else score,
                truncate=long_text == "truncate",
                learn=learn,
                explained=explain,
            )

        if compare:
            if method or calibration or run.out:
                raise UserError("--compare takes no --method, --calibration or --out")
            found = compare_pictures(
                compare.split(","), read_options(option), make, sources, cache, meter, size
            )
            terminal.show_comparison(found)
            return
        ready = make(method, read_options(option))
        made = None if calibration is None else cli_calibrate.calibration_for(calibration, ready)
        if made is not None:
            ready = dataclasses.replace(ready, temperature=made.temperature)
        believe = cli_calibrate.belief(made, abstain, prompts.fingerprint(sentences), ready)
        run.show(
            sources,
            lambda todo: task.classify(
                todo, ready, cache, meter, batch_size=size, top_k=top_k, believe=believe
            ),
            cache,
            meter,
            "zeroshot.classify/1",
            lambda: (
                task.settings(ready)
                | {"prompts": prompts.fingerprint(sentences), "top_k": top_k}
                | task.learned_from(learn)
                | ({} if made is None else {"calibration": made.fingerprint, "abstain": abstain})
                | ({"explain": explain} if explain else {})
            ),
        )


@contextlib.contextmanager
def _trace_file(
    path: Path | None, run: Run
) -> "Iterator[Callable[[Iterator[CaptionResult]], Iterator[CaptionResult]]]":
    """What passes results on and writes their traces to `path`, a line as soon as it is there."""
    if path is None:
        yield lambda results: results
        return
    from zeroshot.formats import to_json, utf8

    if path.exists() and run.overwrite is False and run.out is None:
        raise UserError(f"'{path}' exists; --overwrite writes over it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb" if run.overwrite or run.out is None else "ab") as file:

        def write(results: "Iterator[CaptionResult]") -> "Iterator[CaptionResult]":
            for result in results:
                if result.error is None:
                    file.write(utf8(to_json(result.trace_row())) + b"\n")
                    file.flush()
                yield result

        yield write


def _compare_arrays(file: Path, names: str, options: dict[str, str]) -> None:
    from zeroshot import terminal
    from zeroshot.tasks.arrays import read_arrays
    from zeroshot.tasks.compare import compare_arrays

    terminal.show_comparison(compare_arrays(read_arrays(file), names.split(","), options))


def _classify_arrays(run: Run, file: Path, method: str, options: dict[str, str]) -> None:
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


app.command()(cli_calibrate.calibrate)
app.command()(cli_search.search)


@app.command()
@on_pictures
def embed(run: Run, images: Images) -> None:
    """Embed pictures: fill the cache, and give the rows out with --json or --out."""
    from zeroshot.tasks import embed as task
    from zeroshot.tasks.meter import Meter

    models, size, meter = run.model_set(), run.at_once, Meter()
    sources = run.sources(images)
    with run.open_cache() as cache:
        run.show(
            sources,
            lambda todo: task.embed(todo, models, cache, meter, batch_size=size),
            cache,
            meter,
            "zeroshot.embed/1",
            lambda: task.settings(models),
        )


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with its paper and options.")] = (
        None
    ),
    json: Json = False,
) -> None:
    """Every method, its paper and its options."""
    from zeroshot import terminal
    from zeroshot.methods import describe, names

    if name is not None and not json:
        terminal.show_method(describe(name))
        return
    rows = [describe(n) for n in ([name] if name else names())]
    if json:
        for row in rows:
            terminal.print_json(dataclasses.asdict(row))
    else:
        terminal.print_table(
            ("method", "does", "about"), [(r.name, ", ".join(r.does), r.title) for r in rows]
        )


@models_app.command("list")
def models_list() -> None:
    """The built-in model sets: what is in them, licence, size, whether they are on this disk."""
    from zeroshot import terminal
    from zeroshot.models.sets import list_sets

    terminal.print_table(
        ("set", "about", "licence", "MB", "on disk"),
        [
            (x.name, x.about, x.licence, x.megabytes or "", "yes" if s.on_disk else "no")
            for s in list_sets()
            for x in [s.spec]
        ],
    )


@models_app.command("show")
def models_show(
    name: Annotated[str, typer.Argument(help="A model set or a directory with a models.toml.")],
) -> None:
    """The parts of a model set, and where they are."""
    from zeroshot import terminal
    from zeroshot.models.sets import describe

    terminal.print_table(
        ("part", "model", "directory", "MB"),
        [
            (p.part, p.model, str(p.directory or "not on this disk"), p.megabytes)
            for p in describe(name).parts
        ],
    )


@models_app.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(help="A model set, or one model such as hf:org/model.")],
) -> None:
    """Fetch a model set, or one model, into the hub's cache (HF_HOME)."""
    from zeroshot import terminal
    from zeroshot.models.sets import pull

    for directory in pull(name):
        terminal.say(f"in {directory}")


@cache_app.command("info")
def cache_info() -> None:
    """What the cache of embeddings holds, and where it is."""
    from zeroshot import terminal
    from zeroshot.store import EmbeddingCache

    with EmbeddingCache() as cache:
        info = cache.info()
    terminal.say(f"{info.root}: {info.bytes / 1e6:.1f} MB, {info.files} files known by their hash")
    terminal.print_table(
        ("encoder", "kind", "rows", "dim", "MB"),
        [(s.encoder, s.kind, s.rows, s.dim, round(s.bytes / 1e6, 1)) for s in info.spaces],
    )


@cache_app.command("prune")
def cache_prune(
    encoder: Annotated[str | None, typer.Option(help="Rows of this encoder only.")] = None,
    older_than: Annotated[
        float | None, typer.Option(help="Rows not used for this many days.", min=0)
    ] = None,
    max_mb: Annotated[
        float | None, typer.Option("--max-mb", help="The longest unused, down to this size.", min=0)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="The whole cache.")] = False,
) -> None:
    """Make room: by encoder, by age, by size, or all of it."""
    from zeroshot import terminal
    from zeroshot.store import EmbeddingCache, erase

    if everything:
        erase()
        terminal.say("the cache is empty")
        return
    if encoder is None and older_than is None and max_mb is None:
        raise UserError("say what to prune: --encoder, --older-than, --max-mb or --all")
    with EmbeddingCache() as cache:
        freed = cache.prune(
            encoder=encoder,
            older_than_days=older_than,
            max_bytes=None if max_mb is None else int(max_mb * 1e6),
        )
    terminal.say(f"{freed / 1e6:.1f} MB freed")


def _version(asked: bool) -> bool:
    if asked:
        from zeroshot import __version__

        print(f"zeroshot {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _zeroshot(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and end the process with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """The exit code of one command; every failure ends as one message on standard error."""
    from zeroshot import terminal

    try:
        with terminal.warnings_said():
            app(list(arguments))
    except SystemExit as done:  # typer's way to end, usage errors printed
        code = int(done.code or 0)
        if code == INTERRUPTED:
            terminal.say("interrupted; what was written so far stays")
        return code
    except ZeroshotError as error:
        terminal.say(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        terminal.say(traceback.format_exc())
        terminal.say(f"a fault of zeroshot, please report it: {type(error).__name__}: {error}")
        return 1
    return 0
