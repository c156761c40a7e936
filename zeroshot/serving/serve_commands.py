"""`zeroshot serve` and `zeroshot mcp`.

As `cli`, nothing heavy is imported here.
"""

import dataclasses
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from zeroshot.commands.command import command
from zeroshot.commands.common_options import ModelOptions
from zeroshot.errors import UserError, counted
from zeroshot.tasks.options import option

if TYPE_CHECKING:
    from zeroshot.serving.web.server import RunningServer

Folders = Annotated[list[str], typer.Argument(help="Folders of images, with all below.")]


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """Where the server is reached, by whom, and how much it takes."""

    port: int = option(7860, "Port; 0 for one that is free.", env="PORT", min=0, max=65535)
    host: str = option(
        "127.0.0.1",
        "Address to listen on. Any but this machine's own (127.0.0.1) needs --token.",
        env="HOST",
    )
    token: str | None = option(
        None, "What clients send; by default a new one is made and printed.", env="TOKEN"
    )
    no_token: bool = option(False, "Let anybody on this machine in.", "--no-token", env="NO_TOKEN")
    allow_host: list[str] = option(
        [],
        "A name that others reach the server by, themselves or through a proxy; may be repeated.",
        env="ALLOW_HOST",
        typed=list[str],
    )
    max_upload_mb: float = option(
        20.0, "Largest image in a request, in MB.", env="MAX_UPLOAD_MB", min=0.001, max=1000
    )
    queue: int = option(
        256, "Requests that may wait; more are told to ask again.", env="QUEUE", min=1
    )
    open: bool = option(False, "Open the page in a browser.", env="OPEN")
    quiet: bool = option(False, "Print the address alone.", "--quiet", "-q", env="QUIET")


@command
def serve(run: ModelOptions, options: ServeOptions, folders: Folders) -> None:
    """Serve a page to search and look at images, and an API beside it.

    Examples:
        zeroshot serve photos/ --open
        zeroshot serve photos/ --host 0.0.0.0 --token SECRET --allow-host example.org
    """
    from zeroshot.commands import console
    from zeroshot.commands.terminal import process, progress
    from zeroshot.serving import start

    if options.no_token and options.token is not None:
        raise UserError("--token and --no-token: give one of them")
    if not options.quiet:
        console.log("loading the models")
    with run.open_cache() as cache:
        running = start.serve(
            folders,
            run.model_set(),
            port=options.port,
            host=options.host,
            token=None if options.no_token else options.token or "",
            allow_hosts=options.allow_host,
            max_upload_mb=options.max_upload_mb,
            queue=options.queue,
            batch_size=run.images_per_batch,
            cache=cache,
        )
        process.keep()
        stop = threading.Event()
        # before the address is printed: whoever reads it may stop the server at once
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _setter(stop))
        with running:
            progress.print_line(running.page)
            if options.open:
                import webbrowser

                webbrowser.open(running.page)
            if not options.quiet:
                _show_progress(running, stop)
            with progress.hidden():
                stop.wait()
            if not options.quiet:
                console.log("stopping; what was asked is answered")


def _setter(stop: threading.Event) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    return handle


def _show_progress(running: "RunningServer", stop: threading.Event) -> None:
    """Wait until the folders are indexed, and say how that went."""
    from zeroshot.commands import console

    folders = running.state.folders
    with console.meter().phase("images") as phase:
        while not folders.ready.wait(0.2) and not stop.is_set():
            phase.done, phase.total = folders.progress.done, folders.progress.total
    done = folders.progress
    failed = f", {done.failed} could not be read" if done.failed else ""
    count = counted(len(folders.snapshot), "image")
    console.log(done.message or f"{count}{failed}; Ctrl+C stops the server")


@command
def mcp(run: ModelOptions, folders: Folders) -> None:
    """Let an assistant search and look at images: MCP on standard input and output.

    Examples:
        zeroshot mcp photos/
        zeroshot mcp photos/ more/ --offline
    """
    from zeroshot.commands.terminal import progress
    from zeroshot.serving import mcp_tools

    with progress.hidden(), run.open_cache() as cache:
        mcp_tools.run(folders, run.model_set(), cache, run.images_per_batch)
