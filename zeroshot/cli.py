"""The command line: parse, call one task, show what comes.

Nothing heavy is imported here: `zeroshot --help` must not wait for torch. Exit codes: 0 done,
1 a fault of ours, 2 wrong usage, 3 done but some pictures failed, 4 a model or data is not
available, 130 interrupted with everything so far written.
"""

import contextlib
import dataclasses
import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from zeroshot import cli_anchors
from zeroshot.errors import UserError, ZeroshotError

if TYPE_CHECKING:
    from zeroshot.images import Source
    from zeroshot.model_set import ModelSet
    from zeroshot.records import Output
    from zeroshot.results import CaptionResult, Result
    from zeroshot.store import EmbeddingCache
    from zeroshot.tasks.meter import Meter

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


def option(*names: str, env: str, help: str, **more: Any) -> Any:
    """A typer option with its `ZEROSHOT_*` variable."""
    return typer.Option(*names, envvar=f"ZEROSHOT_{env}", help=help, **more)


Images = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders (with all below), globs, or - for paths on standard input."
    ),
]
Method = Annotated[
    str | None, option("--method", env="METHOD", help="The method; 'zeroshot methods' lists them.")
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="KEY=VALUE", help="An option of the method: -o k=45."),
]
LanguageModel = Annotated[
    str | None, option("--lm", env="LM", help="Replace the set's language model.")
]
Labels = Annotated[
    str | None,
    option("--labels", env="LABELS", help="cat,dog,bird, a .txt or .json file, or imagenet."),
]
Templates = Annotated[
    str,
    option(
        "--templates",
        env="TEMPLATES",
        help="simple (7), openai (80), none, waffle (30 random ones), 'a photo of a {}', "
        "a .txt file, or a .json file of sentences per class.",
    ),
]
Score = Annotated[
    Literal["auto", "softmax", "sigmoid", "cosine"],
    option("--score", env="SCORE", help="What a score is; auto is the model's own."),
]
LongText = Annotated[
    Literal["error", "truncate"],
    option("--long-text", env="LONG_TEXT", help="Prompts longer than the encoder reads."),
]
Json = Annotated[bool, option("--json", env="JSON", help="JSON lines on standard output.")]


@dataclasses.dataclass(frozen=True)
class Run:
    """The options that all commands on pictures share: models, output, how loud to be."""

    models: Annotated[
        str,
        option(
            "--models",
            env="MODELS",
            help="Model set: pocket, base, fast, best, or a directory with a models.toml.",
        ),
    ] = "base"
    encoder: Annotated[
        str | None,
        option(
            "--encoder",
            env="ENCODER",
            help="Replace the set's encoder: open_clip:ViT-B-32/openai, hf:./directory; "
            "'coupled' is the set's own unimodal pair.",
        ),
    ] = None
    device: Annotated[str, option(env="DEVICE", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "fp16", "bf16"],
        option(env="PRECISION", help="Of the models; scores are always fp32."),
    ] = "auto"
    batch_size: Annotated[
        str,
        option(env="BATCH_SIZE", help="Pictures at a time; halved when memory runs out."),
    ] = "auto"
    out: Annotated[
        Path | None,
        option(env="OUT", help="Write rows to a file: .jsonl, .csv, .parquet or .txt."),
    ] = None
    json: Json = False
    overwrite: Annotated[
        bool,
        option(
            "--overwrite/--resume",
            env="OVERWRITE",
            help="Begin --out anew, or go on where it stops.",
        ),
    ] = False
    retry_failed: Annotated[
        bool, option("--retry-failed", env="RETRY_FAILED", help="Try failed rows of --out again.")
    ] = False
    limit: Annotated[
        int | None, option(env="LIMIT", help="Stop after this many pictures.", min=1)
    ] = None
    cache: Annotated[
        bool, option("--cache/--no-cache", env="USE_CACHE", help="Keep and reuse embeddings.")
    ] = True
    offline: Annotated[bool, option("--offline", env="OFFLINE", help="Never ask the network.")] = (
        False
    )
    trust_remote_code: Annotated[
        bool,
        option(
            "--trust-remote-code",
            env="TRUST_REMOTE_CODE",
            help="Run Python code that comes with a model, with all your rights on this machine.",
        ),
    ] = False
    quiet: Annotated[
        bool, option("--quiet", "-q", env="QUIET", help="No progress and no summary.")
    ] = False
    verbose: Annotated[
        bool,
        option("--verbose", "-v", env="VERBOSE", help="Say what was encoded, cached and timed."),
    ] = False

    def model_set(self, language_model: str | None = None) -> "ModelSet":
        """The models asked for; nothing is loaded yet."""
        from zeroshot.model_set import resolve

        return resolve(
            self.models,
            encoder=self.encoder,
            language_model=language_model,
            device=self.device,
            precision=self.precision,
            offline=self.offline,
            trust_remote_code=self.trust_remote_code,
        )

    def open_cache(self) -> "EmbeddingCache":
        """The user's cache, or one that holds nothing."""
        from zeroshot.store import EmbeddingCache, NullCache

        return EmbeddingCache() if self.cache else NullCache()

    @property
    def at_once(self) -> int:
        """Pictures in a batch."""
        from zeroshot.tasks.embedding import AUTO_BATCH

        if self.batch_size == "auto":
            return AUTO_BATCH
        if not self.batch_size.isdecimal() or int(self.batch_size) == 0:
            raise UserError(f"--batch-size {self.batch_size}: auto or a number of at least 1")
        return int(self.batch_size)

    def sources(self, images: Sequence[str]) -> "list[Source]":
        """The pictures that `images` name; what a folder holds besides is mentioned."""
        from zeroshot import terminal
        from zeroshot.images import find

        found = find(images)
        if found.left_out and not self.quiet:
            terminal.say(_left_out(found.left_out))
        return list(found.sources[: self.limit])

    def show(
        self,
        sources: "list[Source]",
        task: "Callable[[list[Source]], Iterator[Result]]",
        cache: "EmbeddingCache",
        meter: "Meter",
        schema: str,
        settings: Callable[[], dict[str, Any]],
    ) -> None:
        """Run `task` on what is still to do; show and write its results; end with a summary.

        Raises:
            typer.Exit: with code 3, when a picture failed.
        """
        from zeroshot import terminal

        output = self._output(schema, settings)
        if output is not None:
            sources = [s for s in sources if not output.holds(s.path, _id(s, cache))]
        try:
            with terminal.Screen(self._shown(), len(sources), self.quiet) as screen:
                for result in task(sources) if sources else ():
                    if output is not None:
                        output.write([result.row()])
                    screen.add(result, meter)
        finally:
            if output is not None:
                output.close({"pictures": meter.pictures, "seconds": round(meter.elapsed, 3)})
        if not self.quiet:
            for line in terminal.summary(meter, output.resumed if output else 0, self.verbose):
                terminal.say(line)
        if cache.trouble is not None:
            terminal.say(cache.trouble)
        if meter.failed:
            raise typer.Exit(3)

    def _output(self, schema: str, settings: Callable[[], dict[str, Any]]) -> "Output | None":
        from zeroshot.records import Output

        if self.out is None:
            return None
        return Output(
            self.out,
            schema,
            settings(),
            overwrite=self.overwrite,
            retry_failed=self.retry_failed,
        )

    def _shown(self) -> Literal["json", "table", "nothing"]:
        """JSON when asked for or piped; with a file to fill, rows are shown only when asked for."""
        if self.json:
            return "json"
        if self.out is not None:
            return "nothing"
        return "table" if sys.stdout.isatty() else "json"


def on_pictures(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `run` becomes the options of `Run`."""
    own = {n: p for n, p in inspect.signature(command).parameters.items() if n != "run"}
    hints = get_type_hints(Run, globalns=globals(), include_extras=True)
    shared = {
        f.name: inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name]
        )
        for f in dataclasses.fields(Run)
    }

    @functools.wraps(command)
    def call(**given: Any) -> None:
        run = Run(**{name: given.pop(name) for name in shared})
        command(run=run, **given)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.values()]
    parameters += shared.values()
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call


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
            lambda: task.settings(models, captioner) | ({"prompt": prompt} if prompt else {}),
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
    from zeroshot.cli_calibrate import belief, calibration_for
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
        made = None if calibration is None else calibration_for(calibration, ready)
        if made is not None:
            ready = dataclasses.replace(ready, temperature=made.temperature)
        believe = belief(made, abstain, prompts.fingerprint(sentences), ready)
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


def _id(source: "Source", cache: "EmbeddingCache") -> str | None:
    try:
        return cache.file_id(source.path or "")
    except OSError:
        return None


def _left_out(files: tuple[str, ...]) -> str:
    named = ", ".join(Path(file).name for file in files[:3])
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    holds = "file that holds" if len(files) == 1 else "files that hold"
    return f"left out {len(files)} {holds} no picture: {named}{more}"


def read_options(given: list[str] | None) -> dict[str, str]:
    """`["k=45"]` as a dict; the method's dataclass gives the types."""
    options = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"-o {text}: options are written KEY=VALUE, for example -o k=45")
        options[key] = value
    return options


# Commands in files of their own take what is defined above, so their import comes here.
from zeroshot import cli_calibrate as _cli_calibrate  # noqa: E402, F401


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
