"""Commands from options: each field of an options dataclass becomes a flag of the command line.

As `cli`, nothing heavy is imported here.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from zeroshot.commands.common_options import CommonOptions, ModelOptions
from zeroshot.errors import UserError
from zeroshot.tasks.options import check_number, default_of, flags_of, option_of

PANELS = {
    "Models": "models encoder device precision batch_size exact offline trust_remote_code devices "
    "engine",
    "Inputs": "limit null image_column caption_column label_column image_root allow_private_urls "
    "url_timeout url_max_mb max_megapixels",
    "Output": "out columns json overwrite retry_failed quiet verbose cache format shard_size "
    "shards",
}
"""Headings of `--help` for what many commands share; a command's own options come first."""
OWN_PANELS = {
    "Method": "method options compose caption_weight coupling preset lm model box boxes "
    "margin templates bank prior hierarchy views recipe index half pooling examples mix resolution "
    "window regions among budget",
    "Scores": "score top_k multi against threshold whole_threshold word_threshold overlap "
    "min_score calibration abstain none_of_these words sets set_rule explain background draws "
    "confidence held_out present",
    "Annotation files": "coco yolo label_studio export_root",
    "Sidecars": "sidecar xmp_name sidecar_remove prefix suffix drop_words max_words",
}
"""The same for what a command does not share, beside the heading Options."""
PANEL_OF = {
    name: panel
    for panels in (OWN_PANELS, PANELS)
    for panel, names in panels.items()
    for name in names.split()
}
PATHS: set[str] = set()
"""The flags whose value is a path."""
EXAMPLES = "\n\nExamples:\n"
"""The heading of a command's last paragraph: lines as one would type them."""

Images = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders (with all below), globs, URLs, .tar files, tables (.csv, .tsv, "
        ".jsonl, .parquet), s3:// and the like, hf-dataset:NAME:SPLIT, or - for names on standard "
        "input."
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", envvar="ZEROSHOT_JSON", help="JSON lines on standard output."),
]
Videos = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders (with all below), globs, URLs, .tar files, tables, or - for names."
    ),
]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters that are options dataclasses become the flags of their fields.

    The parameter `run`, a `ModelOptions`, comes last in `--help`. A `CommonOptions` gives the other
    dataclasses what they share with it: images are listed by its input options. The docstring is
    the help text; lines below `Examples:` are shown at its end.
    """
    own: list[inspect.Parameter] = []
    last: list[inspect.Parameter] = []
    kinds: dict[str, type[Any]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = parameter.annotation
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            kinds[name] = kind
            common = issubclass(kind, ModelOptions)
            (last if common else own).extend(flags(kind))
        else:
            own.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(function)
    def call(**given: Any) -> None:
        built = {name: build(kind, given) for name, kind in kinds.items()}
        for kind in kinds.values():
            for field in dataclasses.fields(kind):
                if option_of(field).on_command_line:
                    given.pop(field.name)
        from zeroshot.commands.terminal import progress

        run = next((x for x in built.values() if isinstance(x, CommonOptions)), None)
        quiet = any(getattr(options, "quiet", False) for options in built.values())
        with progress.shown("starting", quiet=quiet):
            try:
                if run is not None:
                    built = {n: x if x is run else run.with_shared(x) for n, x in built.items()}
                function(**given, **built)
            except (EOFError, BrokenPipeError) as error:  # typer would end the process for them
                raise RuntimeError(f"{type(error).__name__}: {error}") from error

    about, _, lines = (inspect.getdoc(function) or "").partition(EXAMPLES)
    call.__doc__ = about
    call.examples = tuple(line.strip() for line in lines.splitlines())  # type: ignore[attr-defined]
    for parameter in (*own, *last):
        _arrange(parameter)
    call.__signature__ = inspect.Signature([*own, *last])  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in (*own, *last)}
    return call


def register(
    app: typer.Typer, name: str | None = None, panel: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a `command` one of the app, in a panel of its `--help`."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        epilog = "\n\n".join(["Examples:", *(f"  {line}" for line in examples_of(function))])
        return app.command(name, epilog=epilog, rich_help_panel=panel)(function)

    return add


def examples_of(function: Callable[..., None]) -> tuple[str, ...]:
    """The examples of a `command`."""
    found: tuple[str, ...] = function.examples  # type: ignore[attr-defined]
    return found


def _arrange(parameter: inspect.Parameter) -> None:
    """Where `--help` shows an option, and that it does so without its environment variable."""
    info = parameter.annotation.__metadata__[0]
    info.show_envvar = False
    if not isinstance(info, typer.models.OptionInfo):
        return
    if info.rich_help_panel is None:
        info.rich_help_panel = PANEL_OF.get(parameter.name)
    kind = parameter.annotation.__origin__
    if Path in (kind, *get_args(kind)):
        # typer takes the first flag for a default
        written = [x for x in (info.default, *(info.param_decls or ())) if isinstance(x, str)]
        PATHS.update(written or [f"--{parameter.name.replace('_', '-')}"])


def check_paths(arguments: Sequence[str]) -> None:
    """UserError for an empty path, which pathlib would take for the current folder."""
    for flag, value in zip(arguments, [*arguments[1:], None], strict=False):
        if flag.removesuffix("=") in PATHS and (value == "" or flag.endswith("=")):
            raise UserError(f"{flag.removesuffix('=')} is empty; it needs a path ('.' for here)")


def flags(kind: Any) -> list[inspect.Parameter]:
    """A typer parameter for each field that the command line offers."""
    found = []
    for field in dataclasses.fields(kind):
        known = option_of(field)
        if not known.on_command_line:
            continue
        info = typer.Option(
            *flags_of(field),
            envvar=f"ZEROSHOT_{known.env}" if known.env else None,
            help=known.help,
            min=known.min,
            max=known.max,
            metavar=known.metavar,
            parser=known.parser,
            autocompletion=known.complete,
            hidden=known.hidden,
        )
        default = default_of(field)
        if known.typed is not None and not isinstance(default, str | int | float):
            default = None  # `build` puts the field's own in its place
        optional = known.typed is not None and default is None
        typed = known.typed | None if optional else known.typed or field.type
        found.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[typed, info],
            )
        )
    return found


def build(kind: type[Any], given: dict[str, Any]) -> Any:
    """The options that the command line gave; its None stands for a field's default.

    Raises:
        UserError: NaN or infinity, which are in no range of typer's.
    """
    values = {}
    for field in dataclasses.fields(kind):
        known, value = option_of(field), given.get(field.name)
        if isinstance(value, float):
            check_number(flags_of(field)[0], value, known)
        if known.on_command_line and value is not None:
            values[field.name] = known.convert(value) if known.convert else value
    return kind(**values)
