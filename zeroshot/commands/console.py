"""Output of the commands: rows on standard output, progress and summary on standard error.

Only this file and `cli` print.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.cells import cell_len
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from zeroshot.commands.terminal import progress, streams
from zeroshot.commands.terminal.progress import meter as meter
from zeroshot.errors import ApproximateWarning, UnsuitableWarning, counted
from zeroshot.inputs.remote.public_names import public
from zeroshot.output.formats import utf8

if TYPE_CHECKING:
    from zeroshot.distributed.local import State
    from zeroshot.inference.meter import Meter, Phase
    from zeroshot.methods import Description
    from zeroshot.results.duplicate import DedupeResult
    from zeroshot.results.result import Result, SearchResult
    from zeroshot.tasks.classification.compare import MethodComparison
    from zeroshot.tasks.classification.label_sets import SetReport
    from zeroshot.tasks.tuning.recipe import Recipe
    from zeroshot.tuning.selection import TuningProgress

SECONDS_PER_LINE = 3.0
LONGEST_LINE = 20_000
"""Characters of a command line in a record."""

CONTROL = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
Show = Literal["json", "table", "nothing"]


_arguments: tuple[str, ...] = ()


def begin(arguments: Sequence[str] = ()) -> None:
    """Start a command: its clock, and what its records say of it."""
    global _arguments
    _arguments = tuple(arguments)
    progress.begin()


def command_line() -> str:
    """The command as a shell reads it, without passwords and signatures; empty in Python.

    Of a very long one (names of images) the middle is left out, and says so.
    """
    line = shlex.join(["zeroshot", *map(public, _arguments)]) if _arguments else ""
    if len(line) <= LONGEST_LINE:
        return line
    half = LONGEST_LINE // 2
    return f"{line[:half]} [{len(line) - 2 * half} characters left out] {line[-half:]}"


def escape_control(text: str) -> str:
    r"""Write characters that control a terminal, and bytes that are no UTF-8, as `\x1b`."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def cell(value: object, style: str = "") -> Text:
    """Plain text for a table, whatever the value contains; makes every cell and every title."""
    return Text(escape_control(str(value)), style=style)


def log(message: str) -> None:
    """One message on standard error, in which addresses show no secrets."""
    progress.messages().print(escape(escape_control(public(message))))


@contextlib.contextmanager
def show_warnings() -> Iterator[None]:
    """Our own warnings as messages of one line; others as Python shows them.

    Pillow warns of images that are large but below our own limit, and of damage around pixels that
    can be read; of others a row says why not.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        warnings.filterwarnings("ignore", "Image size .* exceeds limit", RuntimeWarning)
        show = warnings.showwarning

        def shown(
            message: Warning | str, category: type[Warning], *where: Any, **more: Any
        ) -> None:
            if issubclass(category, (ApproximateWarning, UnsuitableWarning)):
                log(f"warning: {message}")
            else:
                show(escape_control(str(message)), category, *where, **more)

        warnings.showwarning = shown
        yield


def escape_in_json(text: str) -> str:
    r"""JSON without characters that control a terminal; their escapes stand for the same.

    JSON itself escapes those below a space, but not `\x9b`, which begins a control sequence too,
    nor those that change the direction of what follows.
    """
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def print_json(row: Mapping[str, Any]) -> None:
    """One JSON line on standard output; in ASCII, unless that is written as UTF-8."""
    ascii = not streams.is_utf8(sys.stdout)
    text = utf8(json.dumps(row, ensure_ascii=ascii, allow_nan=False)).decode()
    progress.print_line(escape_in_json(text))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on standard output: JSON lines when piped."""
    if not sys.stdout.isatty():
        for row in rows:
            print_json(dict(zip(columns, row, strict=True)))
        return
    table = Table(*(Column(name, overflow="fold") for name in columns))  # a name is copied whole
    for row in rows:
        table.add_row(*map(cell, row))
    progress.rows().print(table)


def show_set_reports(reports: "Mapping[str, Sequence[SetReport]]", count: int) -> None:
    """A table of label sets for each rule and promise that halves of the images can show."""
    from zeroshot.tasks.classification.label_sets import PROMISES, needed

    few = [promise for promise in PROMISES if count // 2 < needed(promise)]
    print_table(
        ("sets", "promise", "coverage", "lowest", "size", "empty", "worst class"),
        [
            (rule, promise, *(round(x, 3) for x in dataclasses.astuple(report)))
            for rule, own in reports.items()
            for promise, report in zip(PROMISES, own, strict=True)
            if promise not in few
        ],
    )
    if few:
        wanted = ", ".join(f"{promise:g} needs {2 * needed(promise)}" for promise in few)
        log(f"--sets: {count} labelled images are too few to measure it by halves: {wanted}")


def show_comparison(rows: "Iterable[MethodComparison]") -> None:
    """A table of methods; JSON lines when piped."""
    print_table(
        ("method", "mean best score", "agreement with the first", "CPU ms per row"),
        [
            (r.method, round(r.confidence, 4), round(r.agreement, 4), round(r.cpu_ms, 3))
            for r in rows
        ],
    )


def show_figures(result: Mapping[str, Any]) -> None:
    """The figures of one method; the whole result as one JSON line when piped."""
    if not sys.stdout.isatty():
        print_json(result)
        return
    from zeroshot.metrics.statistics import to_table_units

    share = f"{100 * result['sampling']['confidence']:g} %"
    table = Table("figure", Column(cell(result["method"])), f"{share} interval")
    table.title = cell(result["dataset"], "table.title")
    for name, value in result["metrics"].items():
        ends = result["intervals"][name]
        interval = " to ".join(f"{to_table_units(name, end):.2f}" for end in ends or ())
        table.add_row(name, f"{to_table_units(name, value):.2f}", interval)
    progress.rows().print(table)
    if "labels" in result:
        _show_labels(result["labels"], share)


def _show_labels(labels: Mapping[str, Any], share: str) -> None:
    """The average precision of each label, the best first."""
    table = Table("label", "images", "average precision", f"{share} interval")
    for name, own in sorted(labels.items(), key=lambda one: -one[1]["average_precision"]):
        ends = own["interval"] or ()
        interval = " to ".join(f"{100 * end:.2f}" for end in ends)
        value = f"{100 * own['average_precision']:.2f}"
        table.add_row(*map(cell, (name, own["pictures"], value, interval)))
    progress.rows().print(table)


def tuning_progress(quiet: bool) -> "TuningProgress":
    """Says every few seconds how far the choice is, and what is best so far."""
    last = time.monotonic()

    def show(leader: str, accuracy: float, done: float) -> None:
        nonlocal last
        if not quiet and time.monotonic() - last > SECONDS_PER_LINE:
            last = time.monotonic()
            log(f"choosing: {done:.0%}; best so far {leader}, {100 * accuracy:.1f}")

    return show


def show_recipe(recipe: "Recipe", path: Path) -> None:
    """What was chosen, what it was measured to be worth, and the ten best that were tried."""
    from zeroshot.tasks.tuning.recipe import MEASURES

    log(f"{recipe.verdict}")
    labels, measure = recipe.task == "classify", MEASURES[recipe.task]
    if (f := recipe.figures) is not None and not labels:
        log(
            f"{measure} {100 * f.accuracy:.1f} on {f.images} images that took no part in the "
            f"choice, 95 % interval {100 * f.low:.1f} to {100 * f.high:.1f}; the default "
            f"{100 * f.plain:.1f}"
        )
    elif f is not None:
        log(
            f"right for {f.accuracy:.1%} of images that took no part in the choice, "
            f"95 % interval {f.low:.1%} to {f.high:.1%} (each class weighs the same); plain "
            f"zero-shot {f.plain:.1%}"
        )
    if recipe.tried:
        print_table(
            ("tried", "right, %" if labels else measure, "error", "folds"),
            [
                (
                    t["name"],
                    *(f"{100 * t[k]:.1f}" for k in ("accuracy", "error")),
                    f"{t['share']:.0%}",
                )
                for t in recipe.tried[:10]
            ],
        )
    if recipe.agreement:
        log("how far other methods agree with it (a hint, no accuracy):")
        rows = [(name, f"{share:.0%}") for name, share in recipe.agreement.items()]
        print_table(("method", "same label"), rows)
    query = ' "QUERY"' if recipe.task == "search" else ""
    for path_to_label in recipe.suggested:
        log(f"label next: {path_to_label}")
    log(f"wrote {path}; use it with: zeroshot {recipe.task}{query} IMAGES --recipe {path}")


def show_differences(comparison: Mapping[str, Any]) -> None:
    """Each method against the first; one JSON line when piped."""
    if not sys.stdout.isatty():
        print_json(comparison)
        return
    from zeroshot.metrics.statistics import to_table_units

    for method, figures in comparison["methods"].items():
        table = Table("figure", "difference", "interval", "p", "p (Holm)")
        table.title = cell(f"{method} minus {comparison['first']}", "table.title")
        for name, own in figures.items():
            ends = " to ".join(f"{to_table_units(name, end):+.2f}" for end in own["interval"])
            difference = f"{to_table_units(name, own['difference']):+.2f}"
            table.add_row(name, difference, ends, f"{own['p']:.3f}", f"{own['p_holm']:.3f}")
        progress.rows().print(table)


def show_hits(hits: "Sequence[SearchResult]", modality: str = "image") -> None:
    """A table for each query: rank, score, path, and the anchors that contribute to a hit."""
    console = progress.rows()
    for _, group in itertools.groupby(hits, key=lambda hit: hit.query_number):
        hits_of_query = list(group)
        title = cell(hits_of_query[0].query, "table.title")
        table = Table("", "score", modality, title=title, title_justify="left")
        for hit in hits_of_query:
            copies = [] if not hit.hidden else [f"hidden copies: {hit.hidden}"]
            why = (anchor.line for anchor in hit.explanation)
            lines = "\n".join([hit.path or "(in memory)", *copies, *why])
            text = cell(lines)
            text.overflow = "fold"
            table.add_row(str(hit.rank), f"{hit.score:.3f}", text)
        console.print(table)


def show_groups(results: "Sequence[DedupeResult]") -> None:
    """A table for each group of copies, the image to keep first."""
    grouped = [r for r in results if r.group is not None]
    grouped.sort(key=lambda r: (r.group, not r.keep))
    for number, group in itertools.groupby(grouped, key=lambda r: r.group):
        table = Table("", "image", "why", title=cell(f"group {number}", "table.title"))
        table.title_justify = "left"
        for result in group:
            what = "keep" if result.keep else result.kind
            table.add_row(*map(cell, (what, result.path or "(in memory)", result.reason)))
        progress.rows().print(table)


def show_method(method: "Description") -> None:
    """A method's docstring and a table of its options."""
    console = progress.rows()
    page = f"{method.name} ({', '.join(method.does)})\n\n{method.about}\n"
    console.print(escape(page), soft_wrap=True)
    table = Table("option", "type", "default", "what it does")
    for option in method.options:
        table.add_row(*map(cell, (option.name, option.kind, option.default, option.about)))
    if method.options:
        console.print(table)


class Screen:
    """Counts results as they come, for the line of progress, and shows them as `show` asks."""

    def __init__(
        self,
        meter: "Meter",
        show: Show,
        modality: str = "image",
        shards: tuple[int, int] | None = None,
    ) -> None:
        """`shards`: the number of finished shards and of all, if only these are known."""
        self.meter = meter
        self.show = show
        self.modality = modality
        self.shards = shards
        self._prefix, self._width = "", 0
        self._phase: Phase | None = None

    def name_images(self, paths: Sequence[str | None]) -> None:
        """Show images by what follows the folder that these have in common."""
        self._prefix = common_folder(paths)
        names = (path.removeprefix(self._prefix) for path in paths if path is not None)
        self._width = max((cell_len(escape_control(name)) for name in names), default=0)

    @contextlib.contextmanager
    def results(self, total: int | None) -> Iterator[None]:
        """The part of the run in which results come, `total` of them if that is known."""
        with self.meter.phase("", total) as self._phase:
            self._count(0, 0)
            yield

    def advance(self, count: int) -> None:
        """Count more finished images."""
        if self._phase is not None:
            self._count(self._phase.done + count, self.meter.shards)

    def count(self, others: "Meter") -> None:
        """Show the number of results of other processes."""
        self._count(others.pictures, others.shards)

    def _count(self, images: int, shards: int) -> None:
        assert self._phase is not None
        self._phase.done, self._phase.name = images, f"{self.modality}s"
        if self.shards is not None:
            done, of = self.shards
            self._phase.name = f"{done + shards} of {of} shards, {self.modality}s"

    def add(self, result: "Result") -> None:
        """Show one result."""
        if self.show == "json":
            print_json(result.row())
        elif self.show == "table":
            out = progress.rows()
            width = min(self._width, out.width // 2)
            out.print(_line(result, self._prefix, width), soft_wrap=False)
        self.advance(1)


def _line(result: "Result", prefix: str = "", width: int = 32) -> Table:
    """The image's name without the prefix, and the answer wrapped beside it."""
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(width=width, overflow="fold")
    line.add_column()
    name = result.path.removeprefix(prefix) if result.path else "(in memory)"
    error = result.error
    answer = f"{error.type}: {error.message}" if error else result.summary()
    line.add_row(cell(name), cell(answer, "red" if error else ""))
    return line


def common_folder(paths: Iterable[str | None]) -> str:
    """The folder that all paths lie in, with its slash; empty if there is none."""
    folders = {_folder(path) for path in paths if path is not None} or {""}
    same = itertools.takewhile(
        lambda pair: pair[0] == pair[1], zip(min(folders), max(folders), strict=False)
    )
    return _folder("".join(character for character, _ in same))


def _folder(path: str) -> str:
    return path[: max(path.rfind("/"), path.rfind(os.sep)) + 1]


def summary(
    meter: "Meter",
    resumed: int,
    verbose: bool,
    *,
    before: "State | None" = None,
    several: bool = False,
    modality: str = "image",
) -> list[str]:
    """The last lines of a run: the number of images, the speed, and the slowest step.

    `before` is the state of a folder when the run began. If `several` processes share the meter,
    the rate is per second of elapsed time.
    """
    from zeroshot.inference.meter import CHOOSING, LOADING

    lines = []
    if resumed:
        lines.append(_resumed(meter, resumed, before))
    failed = f", {meter.failed} failed" if meter.failed else ""
    seconds = meter.elapsed if several else meter.working
    if meter.pictures:
        loading, choosing = (
            0.0 if several else meter.seconds.get(stage, 0.0) for stage in (LOADING, CHOOSING)
        )
        lines.append(
            f"{counted(meter.pictures, modality)}{failed} in {meter.elapsed:.1f} s"
            + (f", {loading:.1f} s of it loading" if loading >= 0.05 else "")
            + (f", {choosing:.1f} s choosing the coupling, once" if choosing >= 0.05 else "")
            + f" ({meter.pictures / max(seconds, 1e-9):.2f} {modality}s/s"
            + (" after that" if loading >= 0.05 else "")
            + f"; {_cached(meter)}slowest step: {meter.bottleneck(modality)})"
        )
    if meter.skipped:
        held = "holds" if meter.skipped == 1 else "hold"
        members = counted(meter.skipped, "member")
        lines.append(f"skipped {members} of tar files that {held} no {modality}")
    if meter.skipped_existing:
        kept = counted(meter.skipped_existing, "sidecar file")
        lines.append(f"kept {kept} that existed; --overwrite replaces them")
    if meter.kept_texts:
        kept = counted(meter.kept_texts, "text")
        lines.append(f"kept {kept} of others in XMP sidecars (descriptions, alternative texts)")
    for reason, (count, first) in meter.unwritten.items():
        more = f" and {count - 1} more" if count > 1 else ""
        lines.append(f"not written: '{first}'{more}: {reason}")
    if verbose:
        lines.append(
            f"encoder: {counted(meter.images_encoded, modality)} encoded, {meter.images_cached} "
            f"from the cache; {counted(meter.texts_encoded, 'text')} encoded, "
            f"{meter.texts_cached} from the cache"
        )
        stages = ", ".join(f"{name} {s:.2f} s" for name, s in meter.seconds.items())
        lines.append(f"time: {stages}; {meter.elapsed:.1f} s in all, loading models included")
        lines += [
            f"{name} took {s:.2f} s in other threads" for name, s in meter.thread_seconds.items()
        ]
        if not meter.images_encoded + meter.texts_encoded:
            lines.append("no encoder call was made: every embedding came from the cache")
    return lines


def _resumed(meter: "Meter", resumed: int, before: "State | None") -> str:
    if before is None:
        return f"resumed: {resumed} of {resumed + meter.pictures} were done already"
    if before.total is not None:
        return f"resumed: {resumed} of {before.total} were done already"
    return (
        f"resumed: {resumed} were done already, {before.finished} of {before.shards} shards were "
        "finished"
    )


def _cached(meter: "Meter") -> str:
    return f"{meter.images_cached} from the cache; " if meter.images_cached else ""


def how_far(state: "State", folder: str) -> str:
    """The progress of a folder of shards, in one line."""
    failed = f", {state.failed} of them failed" if state.failed else ""
    begun = f", {state.unfinished} more in unfinished shards" if state.unfinished else ""
    are = "is" if state.shards == 1 else "are"
    rows = counted(state.rows, "row") if state.total is None else counted(state.total, "row")
    done = "" if state.total is None else f"{state.rows} of "
    return (
        f"{folder}: {state.finished} of {counted(state.shards, 'shard')} {are} finished, "
        f"{done}{rows}{failed}{begun}"
    )
