"""The command line: parse, call one task, show what comes.

Nothing heavy is imported here: `zeroshot --help` must not wait for torch. Exit codes: 0 done,
1 a fault of ours, 2 wrong usage, 3 done but some pictures failed, 4 a model or data is not
available, 130 interrupted with everything so far written.
"""

import dataclasses
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from zeroshot import (
    cli_anchors,
    cli_ask,
    cli_calibrate,
    cli_caption,
    cli_classify,
    cli_embed,
    cli_match,
)
from zeroshot.cli_run import Json
from zeroshot.errors import UserError, ZeroshotError

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


app.command()(cli_caption.caption)
app.command()(cli_classify.classify)
app.command()(cli_calibrate.calibrate)
app.command()(cli_embed.embed)
app.command()(cli_match.match)
app.command()(cli_ask.ask)
app.command()(cli_ask.read)


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
