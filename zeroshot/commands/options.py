"""What the commands on pictures share: their options, and how a run goes from pictures to rows.

As `cli`, nothing heavy is imported here.
"""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_type_hints

import typer

from zeroshot.commands.out_path import RemotePath, out_path
from zeroshot.errors import UserError

if TYPE_CHECKING:
    from zeroshot.cache.embedding_cache import EmbeddingCache
    from zeroshot.inputs.resolve import ResolvedInputs
    from zeroshot.inputs.source import Source
    from zeroshot.inputs.tables import InputOptions
    from zeroshot.model_set.model_set import ModelSet


def option(*names: str, env: str, help: str, **more: Any) -> Any:
    """A typer option with its `ZEROSHOT_*` variable."""
    return typer.Option(*names, envvar=f"ZEROSHOT_{env}", help=help, **more)


Images = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders (with all below), globs, URLs, .tar files, tables (.csv, .tsv, "
        ".jsonl, .parquet), s3:// and the like, hf-dataset:NAME:SPLIT, or - for names on standard "
        "input."
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


PANELS = {
    "Models": "models encoder device precision batch_size exact offline trust_remote_code devices "
    "engine",
    "Inputs": "limit image_column caption_column label_column image_root allow_private_urls "
    "url_timeout url_max_mb",
    "Output": "out json overwrite retry_failed quiet verbose cache format shard_size shards",
}
"""Headings of `--help` for what many commands share; a command's own options come first."""


@dataclasses.dataclass(frozen=True)
class Run:
    """The options that all commands on pictures share: models, output, how loud to be."""

    things: ClassVar[str] = "pictures"
    """What the command is about, for what it says."""

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
        option(env="BATCH_SIZE", help="How many at a time; halved when memory runs out."),
    ] = "auto"
    exact: Annotated[
        bool,
        option(
            "--exact/--fast",
            env="EXACT",
            help="Pixels as the model's own library makes them, or quicker and a little different.",
        ),
    ] = True
    out: Annotated[
        Path | None,
        option(
            "--out",
            env="OUT",
            help="Write rows to a file: .jsonl, .csv, .parquet or .txt; or to a folder, in shards, "
            "which may be s3://bucket/folder/ and the like.",
            metavar="PATH",
            parser=out_path,
        ),
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
    limit: Annotated[int | None, option(env="LIMIT", help="Stop after this many.", min=1)] = None
    cache: Annotated[
        bool, option("--cache/--no-cache", env="USE_CACHE", help="Keep and reuse embeddings.")
    ] = True
    offline: Annotated[bool, option("--offline", env="OFFLINE", help="Never ask the network.")] = (
        False
    )
    image_column: Annotated[
        str | None,
        option(
            "--image-column",
            env="IMAGE_COLUMN",
            help="A table's column of paths, URLs or bytes; without it, one of a known name.",
        ),
    ] = None
    caption_column: Annotated[
        str | None,
        option("--caption-column", env="CAPTION_COLUMN", help="A table's column of captions."),
    ] = None
    label_column: Annotated[
        str | None, option("--label-column", env="LABEL_COLUMN", help="A table's column of labels.")
    ] = None
    image_root: Annotated[
        Path | None,
        option(
            "--image-root",
            env="IMAGE_ROOT",
            help="The folder that a table's paths are relative to and have to lie in; its own "
            "without it.",
        ),
    ] = None
    allow_private_urls: Annotated[
        bool,
        option(
            "--allow-private-urls",
            env="ALLOW_PRIVATE_URLS",
            help="Fetch URLs also from this machine and from private networks.",
        ),
    ] = False
    url_timeout: Annotated[
        float,
        option(
            "--url-timeout",
            env="URL_TIMEOUT",
            help="Seconds for one URL, redirects and tries included.",
            min=0.1,
        ),
    ] = 30.0
    url_max_mb: Annotated[
        float,
        option("--url-max-mb", env="URL_MAX_MB", help="Size of one URL's content.", min=0.001),
    ] = 64.0
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

    remote_out: ClassVar[bool] = False
    """Whether --out may be a folder in an object store."""

    def __post_init__(self) -> None:
        """UserError: an --out with a scheme that cannot be."""
        if isinstance(self.out, RemotePath):
            self.out.see_to(self.remote_out, self.offline)

    def model_set(self, language_model: str | None = None) -> "ModelSet":
        """The models asked for; nothing is loaded yet."""
        from zeroshot.model_set.model_set import resolve

        return resolve(
            self.models,
            encoder=self.encoder,
            language_model=language_model,
            device=self.device,
            precision=self.precision,
            offline=self.offline,
            trust_remote_code=self.trust_remote_code,
            fast=not self.exact,
        )

    def open_cache(self) -> "EmbeddingCache":
        """The user's cache, or one that holds nothing."""
        from zeroshot.cache.embedding_cache import EmbeddingCache, NullCache

        return EmbeddingCache() if self.cache else NullCache()

    @property
    def at_once(self) -> int:
        """Pictures in a batch."""
        from zeroshot.inference.embedding import AUTO_BATCH

        if self.batch_size == "auto":
            return AUTO_BATCH
        if not self.batch_size.isdecimal() or int(self.batch_size) == 0:
            raise UserError(f"--batch-size {self.batch_size}: auto or a number of at least 1")
        return int(self.batch_size)

    def sources(self, images: Sequence[str]) -> "list[Source]":
        """The pictures that `images` name; what a folder holds besides is mentioned."""
        return self.listed(self.named(images))

    def named(self, images: Sequence[str]) -> "ResolvedInputs":
        """What `images` name; no file of pictures is opened."""
        from zeroshot import inputs

        return inputs.resolve_inputs(images, options=self._options())

    def listed(self, found: "ResolvedInputs") -> "list[Source]":
        """The pictures of it, up to the limit; what is none is mentioned."""
        left_out = list(found.left_out)
        sources = list(islice(found.pictures(left_out), self.limit))
        self.say_left_out(left_out)
        return sources

    def say_left_out(self, files: Sequence[str]) -> None:
        """Mention files that hold no picture."""
        from zeroshot.commands import console

        if files and not self.quiet:
            console.say(_left_out(files, self.things.removesuffix("s")))

    def _options(self) -> "InputOptions":
        from zeroshot.inputs.columns import Columns
        from zeroshot.inputs.remote.fetch import Fetch
        from zeroshot.inputs.source import CLIPS, PICTURES
        from zeroshot.inputs.tables import InputOptions

        return InputOptions(
            Columns(self.image_column, self.caption_column, self.label_column),
            None if self.image_root is None else str(self.image_root),
            Fetch(
                timeout=self.url_timeout,
                max_bytes=round(self.url_max_mb * (1 << 20)),
                allow_private=self.allow_private_urls,
                offline=self.offline,
            ),
            CLIPS if self.things == "clips" else PICTURES,
        )

    def shown(self) -> Literal["json", "table", "nothing"]:
        """JSON when asked for or piped; with a file to fill, rows are shown only when asked for."""
        if self.json:
            return "json"
        if self.out is not None:
            return "nothing"
        return "table" if sys.stdout.isatty() else "json"


def on_pictures(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters that are dataclasses become the options of their fields.

    One is `run`, a `Run`, whose options come last.
    """
    own: list[inspect.Parameter] = []
    last: list[inspect.Parameter] = []
    made: dict[str, tuple[type, list[str]]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if not dataclasses.is_dataclass(parameter.annotation):
            own.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        kind: Any = parameter.annotation
        options = _options_of(kind)
        made[name] = kind, [o.name for o in options]
        (last if issubclass(kind, Run) else own).extend(options)

    @functools.wraps(command)
    def call(**values: Any) -> None:
        for name, (kind, fields) in made.items():
            values[name] = kind(**{field: values.pop(field) for field in fields})
        command(**values)

    call.__signature__ = inspect.Signature([*own, *last])  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in (*own, *last)}
    return call


def _options_of(kind: Any) -> list[inspect.Parameter]:
    """A parameter for each field of a dataclass, those of `PANELS` under their heading."""
    hints = get_type_hints(kind, include_extras=True)
    for panel, names in PANELS.items():
        for name in names.split():
            if name in hints:
                hints[name].__metadata__[0].rich_help_panel = panel
    return [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name]
        )
        for f in dataclasses.fields(kind)
    ]


def _left_out(files: Sequence[str], thing: str) -> str:
    named = ", ".join(Path(file).name for file in files[:3])
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    holds = "file that holds" if len(files) == 1 else "files that hold"
    return f"left out {len(files)} {holds} no {thing}: {named}{more}"


def read_options(given: list[str] | None) -> dict[str, str]:
    """`["k=45"]` as a dict; the method's dataclass gives the types."""
    options = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"-o {text}: options are written KEY=VALUE, for example -o k=45")
        options[key] = value
    return options
