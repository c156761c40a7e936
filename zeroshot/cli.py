"""The command line: parse the arguments, run one task, show its results.

Nothing heavy is imported here: `zeroshot --help` must not wait for torch. Exit codes: 0 done,
1 internal error, 2 wrong usage, 3 done but some images failed, 4 a model, data or disk space is not
available, 130 interrupted with all results so far written, 141 nobody reads standard output.
"""

import dataclasses
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from zeroshot.commands import (
    anchor_commands,
    cache_commands,
    evaluation_commands,
    label_commands,
    search_commands,
    task_commands,
    video_commands,
)
from zeroshot.commands.annotations import export_runs
from zeroshot.commands.command import Json, check_paths, command, register
from zeroshot.commands.sidecars import sorting_runs
from zeroshot.commands.terminal import interrupts, process, streams
from zeroshot.errors import ZeroshotError
from zeroshot.serving import serve_commands
from zeroshot.tasks import completion

app = typer.Typer(
    name="zeroshot",
    help="Captions, labels, search, masks and answers from frozen vision and language models, "
    "without training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(help="Model sets: list, show and download.")
COMMANDS = {
    "Describe images": [
        task_commands.caption,
        label_commands.classify,
        task_commands.segment,
        task_commands.detect,
        task_commands.ask,
        task_commands.read,
        sorting_runs.undo,
        export_runs.export,
    ],
    "Find and compare": [
        search_commands.search,
        search_commands.dedupe,
        search_commands.explain,
        task_commands.match,
        task_commands.filter,
        task_commands.embed,
    ],
    "Choose and measure": [
        label_commands.tune,
        label_commands.calibrate,
        evaluation_commands.evaluate,
        evaluation_commands.report,
    ],
    "Serve": [serve_commands.serve, serve_commands.mcp],
}
"""The commands on images, by their headings in `--help`."""
NAMES = {evaluation_commands.evaluate: "eval"}
MODELS = "Models and data"
for panel, functions in COMMANDS.items():
    for function in functions:
        register(app, NAMES.get(function), panel)(function)


@register(app, panel=MODELS)
@command
def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            help="One method, with its paper and options.",
            autocompletion=completion.all_methods,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List all methods, or show one with its paper and options.

    Examples:
        zeroshot methods
        zeroshot methods magic
    """
    from zeroshot.commands import console
    from zeroshot.methods import describe, names

    if name is not None and not json:
        console.show_method(describe(name))
        return
    rows = [describe(n) for n in ([name] if name else names())]
    if json:
        for row in rows:
            console.print_json(dataclasses.asdict(row))
    else:
        console.print_table(
            ("method", "does", "about"), [(r.name, ", ".join(r.does), r.title) for r in rows]
        )


@register(models_app, "list")
@command
def models_list(
    encoders: Annotated[
        bool,
        typer.Option("--encoders", help="Families of encoders instead, with names for --encoder."),
    ] = False,
) -> None:
    """The built-in model sets: models, licence, size, and whether they are on this disk.

    Examples:
        zeroshot models list
        zeroshot models list --encoders
    """
    from zeroshot.commands import console
    from zeroshot.model_set.availability import list_sets
    from zeroshot.models.systems import encoder_rows

    if encoders:
        console.print_table(*encoder_rows())
        return

    console.print_table(
        ("set", "about", "licence", "MB", "on disk"),
        [
            (x.name, x.about, x.licence, x.megabytes or "", "yes" if s.on_disk else "no")
            for s in list_sets()
            for x in [s.spec]
        ],
    )


@register(models_app, "show")
@command
def models_show(
    name: Annotated[
        str,
        typer.Argument(
            help="A model set or a directory with a models.toml.",
            autocompletion=completion.model_sets,
        ),
    ],
) -> None:
    """The parts of a model set, and where they are.

    Examples:
        zeroshot models show base
        zeroshot models show mine/
    """
    from zeroshot.commands import console
    from zeroshot.model_set.availability import describe

    console.print_table(
        ("part", "model", "directory", "MB"),
        [
            (p.part, p.model, str(p.directory or "not on this disk"), p.megabytes)
            for p in describe(name).parts
        ],
    )


@register(models_app, "pull")
@command
def models_pull(
    name: Annotated[
        str,
        typer.Argument(
            help="A model set, or one model such as hf:org/model.",
            autocompletion=completion.model_sets,
        ),
    ],
) -> None:
    """Download a model set, or one model, into the hub's cache (HF_HOME).

    Examples:
        zeroshot models pull base
        zeroshot models pull open_clip:ViT-B-32/openai
    """
    from zeroshot.commands import console
    from zeroshot.model_set.availability import pull

    for directory in pull(name):
        console.log(f"in {directory}")


for name, group in (
    ("models", models_app),
    ("anchors", anchor_commands.app),
    ("cache", cache_commands.app),
    ("video", video_commands.app),
):
    app.add_typer(group, name=name, no_args_is_help=True, rich_help_panel=MODELS)


@app.callback(invoke_without_command=True)
def _zeroshot(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from zeroshot import __version__

        print(f"zeroshot {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line and end the process with its exit code."""
    streams.fill_descriptors()
    interrupts.install()
    code = run(sys.argv[1:])
    interrupts.finished(code)
    process.end(code)


def run(arguments: Sequence[str]) -> int:
    """The exit code of one command; every failure ends as one message on standard error."""
    from zeroshot.commands import console

    console.begin(arguments)
    with streams.guarded(), console.show_warnings():
        try:
            _call(arguments)
            sys.stdout.flush()
        except KeyboardInterrupt:
            console.log("interrupted; all results so far are written")
            return interrupts.INTERRUPTED
        except streams.ReaderGoneError as error:
            return error.exit_code
        except typer.Exit as done:
            return done.exit_code
        except ZeroshotError as error:
            console.log(f"error: {error}")
            return error.exit_code
        except Exception as error:
            console.log(traceback.format_exc())
            console.log(f"internal error, please report it: {type(error).__name__}: {error}")
            return 1
    return 0


def _call(arguments: Sequence[str]) -> None:
    """Run a command; what it raises, and typer.Exit for any exit code but 0."""
    check_paths(arguments)
    try:
        app(list(arguments), prog_name=app.info.name)
    except SystemExit as done:
        if done.code == interrupts.INTERRUPTED:
            raise KeyboardInterrupt from None
        if done.code:
            raise typer.Exit(done.code if isinstance(done.code, int) else 1) from None
