"""`zeroshot search`: images, or with `video` videos, that answer a query; `dedupe`; `explain`.

As `cli`, nothing heavy is imported here.
"""

import dataclasses
import glob
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zeroshot.commands.command import Images, command
from zeroshot.commands.common_options import RowOptions
from zeroshot.errors import UserError, counted
from zeroshot.tasks.duplicates.dedupe_options import DedupeOptions
from zeroshot.tasks.explaining.explain_options import ExplainOptions
from zeroshot.tasks.search_options import SearchOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from zeroshot.inference.meter import Meter
    from zeroshot.model_set.model_set import ModelSet
    from zeroshot.results.result import Result
    from zeroshot.tasks.search import Query, SearchAnswer

Queries = Annotated[
    Path | None,
    typer.Option(
        "--queries",
        envvar="ZEROSHOT_QUERIES",
        help="Many queries: one per line, or a .jsonl with text or image, plus, minus.",
    ),
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        envvar="ZEROSHOT_HTML",
        help="Write a page with thumbnails; it needs no other file and no network.",
    ),
]


@command
def search(
    run: RowOptions,
    options: SearchOptions,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[QUERY] IMAGES...",
            help="What to look for (not with --image or --queries), then files, folders, globs "
            "or -.",
        ),
    ],
    image: Annotated[
        str | None,
        typer.Option("--image", envvar="ZEROSHOT_SEARCH_IMAGE", help="An image as the query."),
    ] = None,
    queries: Queries = None,
    html: Html = None,
) -> None:
    """Find images by words, by an image, or by sums and differences of both.

    Examples:
        zeroshot search "a red bicycle" photos/ -k 5 --html found.html
        zeroshot search --image a.png photos/ --minus snow
    """
    asked, names = queries_of(run, options, words, queries, ("--image", image))
    find(run, options, asked, names, run.model_set(), html)


def queries_of(
    run: RowOptions,
    options: SearchOptions,
    words: list[str],
    file: Path | None,
    example: tuple[str, str | None],
) -> "tuple[list[Query], list[str]]":
    """The queries, and the arguments that name where to search.

    `example` is the option that names an image or a video as the query, and its value.

    Raises:
        UserError: options that do not fit each other, or nothing to search in.
    """
    from zeroshot.tasks import search as task

    plus, minus, (flag, path) = list(options.plus), list(options.minus), example
    if path is not None and file is not None:
        raise UserError(f"{flag} is one query, --queries are many: give one")
    if path is None and file is None:
        first, *names = words
        if not names:
            name = "search" if run.modality == "image" else "video search"
            raise UserError(f"search needs {run.modality}s: zeroshot {name} '{first}' DIR")
        if os.path.isfile(first) and (option := _option_for(first, flag)):
            raise UserError(
                f"the query '{first}' is a file: {option} {first} searches by what is in it, and "
                f"'text:{first}' for these words"
            )
        return [task.query(task.term(f"text:{first.removeprefix('text:')}"), plus, minus)], names
    if not (
        os.path.lexists(words[0]) or re.match(r"-$|\w+:", words[0]) or glob.has_magic(words[0])
    ):
        raise UserError(
            f"'{words[0]}' is no file or folder; with {'--queries' if file else flag} all "
            f"arguments name {run.modality}s to search in: add words with --plus"
        )
    if path is not None:
        return [task.query(task.term(f"image:{path}"), plus, minus)], words
    if plus or minus:
        raise UserError("--plus and --minus go with one query; in a .jsonl file each has its own")
    assert file is not None
    return task.read_queries(file), words


def _option_for(file: str, example: str) -> str:
    """The option for a file that stands where the words are; empty if its name says nothing."""
    from zeroshot.inputs.source import CLIPS, PICTURES

    suffix = os.path.splitext(file)[1]
    if (CLIPS if example == "--clip" else PICTURES).fullmatch(suffix):
        return example
    return "--queries" if suffix.lower() in (".txt", ".jsonl") else ""


def find(
    run: RowOptions,
    options: SearchOptions,
    queries: "list[Query]",
    names: list[str],
    models: "ModelSet",
    html: Path | None,
) -> None:
    """Search, show the hits and write them.

    Raises:
        typer.Exit: with code 3, if an image failed.
    """
    from zeroshot.commands import console
    from zeroshot.inference.coupled_models import SENTENCES, with_coupling_for_task
    from zeroshot.results.result import SearchResult
    from zeroshot.tasks import search as task

    if options.recipe is None:
        task.correction_of(options, bool(options.bank))
    bank: Sequence[Query] = task.read_queries(Path(options.bank)) if options.bank else []
    options, bank = task.by_recipe(options, bank)
    task.correction_of(options, bool(bank))
    check_outputs(run, SearchResult.schema, html)
    words = {"the query": [query.only_text for query in queries if query.only_text is not None]}
    sources, meter = run.sources(names, words), console.meter()
    screen = console.Screen(meter, "nothing", run.modality)
    with run.open_cache() as cache:
        with meter.phase("loading models", counts=False):
            models.require(language_model=False)
            models = with_coupling_for_task(models, options.coupling, SENTENCES, cache, meter)
            options = dataclasses.replace(options, coupling=None)  # the models have it
            _ = models.encoder
            meter.opened()
        with screen.results(len(sources)):
            found = task.search(
                queries,
                sources,
                models,
                options,
                cache,
                meter,
                bank=bank,
                batch_size=run.images_per_batch,
                seen=screen.advance,
            )
        write_rows(run, SearchResult.schema, found.settings, found.results)
        if html is not None:
            from zeroshot.report.search_page import search_page, write_page

            with meter.phase("making thumbnails", counts=False):
                page = search_page(found.results, [query.label for query in queries])
                write_page(html, page, run.overwrite)
        _show(run, found, queries, meter, options.min_score)
    if meter.failed:
        raise typer.Exit(3)


def check_outputs(run: RowOptions, schema: str, html: Path | None) -> None:
    """UserError for a file that is there already, or whose name says no known format."""
    from zeroshot.output.atomic import check_place
    from zeroshot.output.formats import format_for

    columns = run.table_columns(schema)
    if run.out is not None:
        format_for(run.out, schema, columns)
    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--html '{html}': a page is an .html file")
    for path in (run.out, html):
        if path is not None:
            if path.exists() and not run.overwrite:
                raise UserError(f"'{path}' exists; --overwrite replaces it")
            check_place(path)


def write_rows(
    run: RowOptions, schema: str, settings: "Mapping[str, Any]", results: "Sequence[Result]"
) -> None:
    """Write the rows to `--out`, if it is given."""
    if run.out is not None:
        from zeroshot.commands import console
        from zeroshot.output.resumable import write_all

        rows = (result.row() for result in results)
        about = {"command": console.command_line()}
        columns = run.table_columns(schema)
        write_all(
            run.out, schema, settings, rows, overwrite=run.overwrite, about=about, columns=columns
        )


@command
def dedupe(run: RowOptions, options: DedupeOptions, images: Images, html: Html = None) -> None:
    """Find copies among images (also cropped, re-saved or turned), and which to keep.

    Nothing is moved or deleted.

    Examples:
        zeroshot dedupe photos/ --html copies.html
        zeroshot dedupe photos/ --out copies.csv
    """
    from zeroshot.commands import console
    from zeroshot.results.duplicate import DedupeResult
    from zeroshot.tasks.duplicates import dedupe as task

    if run.out is not None and run.out.suffix.lower() == ".txt":
        raise UserError(f"--out {run.out}: a line of text cannot say which to keep; use .csv")
    check_outputs(run, DedupeResult.schema, html)
    models, sources, meter = run.model_set(), run.sources(images), console.meter()
    screen = console.Screen(meter, "nothing", run.modality)
    with run.open_cache() as cache, screen.results(len(sources)):
        found = task.dedupe(
            sources,
            models,
            options,
            cache,
            meter,
            batch_size=run.images_per_batch,
            seen=screen.advance,
        )
    write_rows(run, DedupeResult.schema, found.settings, found.results)
    if html is not None:
        from zeroshot.report.dedupe_page import dedupe_page
        from zeroshot.report.search_page import write_page

        with meter.phase("making thumbnails", counts=False):
            write_page(html, dedupe_page(found.results), run.overwrite)
    if _show_rows(run, found.results) == "table":
        console.show_groups(found.results)
    copies = [r for r in found.results if r.kind is not None]
    groups = len({r.group for r in copies})
    _end(run, meter, [f"{counted(groups, 'group')}, {counted(len(copies), 'image')} to leave out"])


def _show_rows(run: RowOptions, results: "Sequence[Result]") -> str:
    """Print all rows as JSON, or what failed; returns how the others are to be shown."""
    from zeroshot.commands import console

    shown = run.shown()
    for result in results:
        if shown == "json":
            console.print_json(result.row())
        elif result.error is not None:
            console.log(f"'{result.path}': {result.error.message}")
    return shown


def _end(run: RowOptions, meter: "Meter", notes: "Iterable[str]") -> None:
    """Print the notes and the summary; exit code 3 if an image failed."""
    from zeroshot.commands import console

    if not run.quiet:
        for line in (*notes, *console.summary(meter, 0, run.verbose, modality=run.modality)):
            console.log(line)
    if meter.failed:
        raise typer.Exit(3)


@command
def explain(
    run: RowOptions,
    options: ExplainOptions,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, globs or -; none if only texts are explained."),
    ] = None,
) -> None:
    """Say what an image, a folder or a text looks like to the model, as a sum of few words.

    Examples:
        zeroshot explain photos/ --mean --words dog,cat,tree
        zeroshot explain a.png --text crane --out words.jsonl
    """
    from zeroshot.commands import console
    from zeroshot.results.explained import ExplainResult
    from zeroshot.tasks.explaining import explain as task

    check_outputs(run, ExplainResult.schema, None)
    models, meter = run.model_set(), console.meter()
    sources = run.sources(images, {"--words": options.words}) if images else []
    screen = console.Screen(meter, "nothing", run.modality)
    with run.open_cache() as cache, screen.results(len(sources)):
        found = task.explain(
            sources,
            models,
            options,
            cache,
            meter,
            batch_size=run.images_per_batch,
            seen=screen.advance,
        )
    write_rows(run, ExplainResult.schema, found.settings, found.results)
    good = [result for result in found.results if result.error is None]
    if _show_rows(run, found.results) == "table":
        rows = [(r.text or r.path or "", r.summary(), f"{r.cosine:.2f}") for r in good]
        console.print_table(("", "words", "cosine"), rows)
    few = "nothing, as fewer than 20 images give no mean (--bank IMAGES takes it from others)"
    subtracted = dict.fromkeys(r.mean_of for r in good)
    notes = [few if of == task.NOTHING else f"the mean of {of}" for of in subtracted]
    _end(run, meter, [f"subtracted: {note}" for note in notes])


def _show(
    run: RowOptions,
    found: "SearchAnswer",
    queries: "list[Query]",
    meter: "Meter",
    min_score: float | None,
) -> None:
    from zeroshot.commands import console

    shown, modality = run.shown(), run.modality
    for result in found.results:
        if shown == "json":
            console.print_json(result.row())
        elif result.error is not None:
            console.log(f"'{result.path}': {result.error.message}")
    if shown == "table":
        console.show_hits([r for r in found.results if r.error is None], modality)
    for query, count, best in zip(queries, found.counts, found.best, strict=True):
        if not count:
            scored = (
                "" if best is None else f"; the best has {best:.3f}, --min-score is {min_score}"
            )
            console.log(f"no {modality} for '{query.label}'{scored}")
    if not run.quiet:
        for line in console.summary(meter, 0, run.verbose, modality=run.modality):
            console.log(line)
