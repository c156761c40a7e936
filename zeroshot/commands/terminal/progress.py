"""One console: messages, and on a terminal a line below them that says what a run is doing."""

import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zeroshot.commands.terminal import streams

if TYPE_CHECKING:
    from zeroshot.inference.meter import Meter, Phase

REFRESHES = 4
"""Times per second that the line is drawn."""
MOMENT = 0.3
"""Seconds: a shorter phase is not shown."""
WIDTH = 40
"""Widest bar, in characters."""
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

_shown: "Bar | None" = None
_began = time.perf_counter()
_meter: "Meter | None" = None


def begin() -> None:
    """Start the clock of a command."""
    global _began, _meter
    _began, _meter = time.perf_counter(), None


def meter() -> "Meter":
    """The meter of the command; its time includes the import of libraries."""
    global _meter
    if _meter is None:
        from zeroshot.inference.meter import Meter

        _meter = Meter(started=_began)
    return _meter


class _Errors(Console):
    """Standard error."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False, soft_wrap=True)

    def show_cursor(self, show: bool = True) -> bool:
        """Leave the cursor as it is: a process that is killed could not show it again."""
        return False


def messages() -> Console:
    """The console of messages; while a bar is shown, its own, which prints above it."""
    return _Errors() if _shown is None else _shown.errors


def rows() -> Console:
    """The console of what standard output gets; above a bar that is on the same terminal."""
    return Console(highlight=False) if _shown is None or not _shown.shared else _shown.errors


@contextmanager
def shown(what: str, quiet: bool = False) -> Iterator[None]:
    """A block with the line of progress; it says `what`, where no other phase is begun."""
    if quiet or _shown is not None:
        yield
        return
    bar = Bar(meter())
    try:
        bar.show()
        with bar.meter.phase(what, counts=False):
            yield
    finally:
        bar.hide()


@contextmanager
def hidden() -> Iterator[None]:
    """A block without the line of progress: a person types."""
    bar = _shown
    if bar is not None:
        bar.hide()
    try:
        yield
    finally:
        if bar is not None:
            bar.show()


def print_line(text: str) -> None:
    """A line on standard output, at once and as it is."""
    if _shown is None or not _shown.shared:
        print(text, flush=True)
    else:
        _shown.errors.print(Text(text), soft_wrap=True)


class Bar:
    """The line of a meter's last phase, where standard error is a terminal."""

    def __init__(self, meter: "Meter") -> None:
        self.meter = meter
        self.errors = _Errors()
        self.shared = False
        """Whether standard output is the terminal that the bar is on."""
        self._live: Live | None = None
        self._notes = _Notes(self)

    def show(self) -> None:
        """Draw it, from now on."""
        global _shown
        if _shown is None and sys.stderr.isatty() and not self.errors.is_dumb_terminal:
            self._live = Live(
                self,
                console=self.errors,
                refresh_per_second=REFRESHES,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
            self._notes.begin()
            _shown, self.shared = self, streams.one_terminal()

    def hide(self) -> None:
        """Remove it."""
        global _shown
        if self._live is not None:
            _shown = None
            self._notes.end()
            self._live.stop()
            self._live = None

    def __rich__(self) -> RenderableType:
        """The last phase that is no matter of a moment, and what a library is drawing."""
        phases = list(self.meter.phases)
        lasting = [phase for phase in phases if phase.seconds > MOMENT] or phases[:1]
        if not lasting:
            return Text()
        line = _line(lasting[-1], self.errors)
        return Group(line, Text(self._notes.last, no_wrap=True)) if self._notes.last else line


def _line(phase: "Phase", console: Console) -> Table:
    """`encoding texts ━━━━━╸━━━━━ 4096/80000 102.4/s 0:12:21 left`."""
    line = Table.grid(padding=(0, 1))
    cells: list[RenderableType] = [Text(phase.name)]
    seconds = phase.seconds
    end = f"{clock(seconds)}"
    if phase.counts and phase.done:
        rate = phase.done / max(seconds, 1e-9)
        end = f"{rate:.1f}/s {end}"
        if phase.total is not None and phase.total > phase.done:
            end = f"{rate:.1f}/s {clock((phase.total - phase.done) / rate)} left"
    if phase.counts and phase.total is not None:
        room = console.width - len(phase.name) - 2 * len(str(phase.total)) - len(end) - 5
        cells.append(ProgressBar(phase.total or 1, phase.done, width=max(5, min(WIDTH, room))))
        cells.append(Text(f"{phase.done}/{phase.total}"))
    elif phase.counts and phase.done:
        cells.append(Text(str(phase.done)))
    for _ in cells:
        line.add_column(no_wrap=True)
    line.add_column(no_wrap=True)
    line.add_row(*cells, Text(end))
    return line


def clock(seconds: float) -> str:
    """`0:01:05`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


class _Notes:
    """Standard error while a bar is shown: whole lines go above it, an unfinished one below it.

    An unfinished line is that of a library with a bar of its own, such as that of a download.
    """

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._lock = threading.Lock()
        self._stream: TextIO | None = None
        self.last = ""

    def begin(self) -> None:
        """Take the place of standard error."""
        self._stream, self.last = sys.stderr, ""
        sys.stderr = cast(TextIO, self)

    def end(self) -> None:
        """Give standard error back, and print what has no end."""
        if sys.stderr is cast(TextIO, self) and self._stream is not None:
            sys.stderr = self._stream
        self.write("\n")

    @property
    def rich_proxied_file(self) -> Any:
        """What rich writes to."""
        return self._stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Print lines that end, keep the last one."""
        with self._lock:
            *whole, self.last = _CONTROL.sub("", self.last + text).split("\n")
            self.last = self.last.rpartition("\r")[2] if not self.last.endswith("\r") else self.last
        for line in whole:
            shown = line.rstrip("\r").rpartition("\r")[2]
            if shown.strip():
                self._bar.errors.print(Text(shown), soft_wrap=True)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""
