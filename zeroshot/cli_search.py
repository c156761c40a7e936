"""`zeroshot search`: pictures that answer a query."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from zeroshot.cli_run import MethodOptions, Run, on_pictures, option, read_options
from zeroshot.errors import UserError

if TYPE_CHECKING:
    from zeroshot.model_set import ModelSet
    from zeroshot.ranking import Correction
    from zeroshot.tasks.meter import Meter
    from zeroshot.tasks.search import Query, Searched


@on_pictures
def search(
    run: Run,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[QUERY] IMAGES...",
            help="What to look for (not with --image or --queries), then files, folders, globs "
            "or -.",
        ),
    ],
    image: Annotated[
        str | None, option("--image", env="SEARCH_IMAGE", help="A picture as the query.")
    ] = None,
    queries: Annotated[
        Path | None,
        option(
            "--queries",
            env="QUERIES",
            help="Many queries: one a line, or a .jsonl of text or image, plus, minus.",
        ),
    ] = None,
    plus: Annotated[
        list[str] | None,
        option(
            "--plus",
            env="PLUS",
            help="Words, or the path of a picture, to add; may be repeated. text: or image: before "
            "it says which.",
        ),
    ] = None,
    minus: Annotated[
        list[str] | None,
        option("--minus", env="MINUS", help="As --plus, to take away."),
    ] = None,
    top_k: Annotated[
        int, option("--top-k", "-k", env="TOP_K", help="Pictures for each query.", min=1)
    ] = 10,
    min_score: Annotated[
        float | None, option("--min-score", env="MIN_SCORE", help="Leave out what scores less.")
    ] = None,
    method: Annotated[
        str | None,
        option(
            "--method",
            env="SEARCH_METHOD",
            help="Re-rank by dis, nnn, csls, inverted_softmax or dn, with --bank.",
        ),
    ] = None,
    option: MethodOptions = None,
    bank: Annotated[
        Path | None,
        option("--bank", env="SEARCH_BANK", help="Other queries of the same kind, as --queries."),
    ] = None,
    index: Annotated[
        Literal["exact", "ivf", "ivfpq"],
        option(
            "--index",
            env="INDEX",
            help="exact, or approximately with faiss, for very many queries; says its recall.",
        ),
    ] = "exact",
    half: Annotated[
        bool,
        option("--half", env="HALF", help="Keep rows in float16 while they are searched."),
    ] = False,
    explain: Annotated[
        int,
        option(
            "--explain",
            env="EXPLAIN",
            help="Name this many anchors that carried a hit (couplings).",
            min=0,
        ),
    ] = 0,
    html: Annotated[
        Path | None,
        option("--html", env="HTML", help="Write a page with thumbnails that needs nothing else."),
    ] = None,
) -> None:
    """Find pictures by words, by a picture, or by sums and differences of both."""
    from zeroshot import ranking
    from zeroshot.tasks import search as task

    asked, images = _queries(words, image, queries, plus or [], minus or [])
    chosen = None if method is None else ranking.correction(method, read_options(option))
    if (chosen is None) != (bank is None):
        raise UserError("--method re-ranks with --bank FILE, other queries; give both or neither")
    if chosen is None and option:
        raise UserError("-o is an option of a method that re-ranks; give --method and --bank")
    refuse_to_overwrite(run, run.out, html)
    others = [] if bank is None else task.read_queries(bank)
    find_in(
        run,
        asked,
        images,
        run.model_set(),
        top_k=top_k,
        min_score=min_score,
        method=chosen,
        bank=others,
        explain=explain,
        index=index,
        half=half,
        html=html,
    )


def refuse_to_overwrite(run: Run, *paths: Path | None) -> None:
    """UserError for an output that is there, unless it is to be written over."""
    for path in paths:
        if path is not None and path.exists() and not run.overwrite:
            raise UserError(f"'{path}' exists; --overwrite writes over it")


def find_in(
    run: Run,
    asked: "list[Query]",
    names: list[str],
    models: "ModelSet",
    *,
    top_k: int,
    min_score: float | None,
    method: "Correction | None" = None,
    bank: "Sequence[Query]" = (),
    explain: int = 0,
    index: Literal["exact", "ivf", "ivfpq"] = "exact",
    half: bool = False,
    html: Path | None = None,
) -> None:
    """Search in what `names` name; show the hits and write them.

    Raises:
        typer.Exit: with code 3, when a picture failed.
    """
    from zeroshot import terminal
    from zeroshot.tasks import search as task
    from zeroshot.tasks.meter import Meter

    meter, sources = Meter(), run.sources(names)
    with run.open_cache() as cache:
        with terminal.Screen("nothing", len(sources), run.quiet, run.things) as screen:
            found = task.search(
                asked,
                sources,
                models,
                cache,
                meter,
                k=top_k,
                min_score=min_score,
                method=method,
                bank=bank,
                explained=explain,
                index=index,
                half=half,
                batch_size=run.at_once,
                seen=lambda count: screen.advance(count, meter),
            )
        _write(
            run,
            found,
            task.settings(asked, models, method, bank, k=top_k, index=index, half=half),
        )
        if html is not None:
            from zeroshot.page import write_page

            write_page(html, found.results, [query.label for query in asked])
        _show(run, found, asked, meter, min_score)
        if cache.trouble is not None:
            terminal.say(cache.trouble)
    if meter.failed:
        raise typer.Exit(3)


def _queries(
    words: list[str], image: str | None, file: Path | None, plus: list[str], minus: list[str]
) -> "tuple[list[Query], list[str]]":
    """What is asked, and the arguments that name pictures."""
    from zeroshot.tasks import search as task

    if image is not None and file is not None:
        raise UserError("--image is one query, --queries are many: give one")
    if image is None and file is None:
        first, *images = words
        if not images:
            raise UserError(f"search needs pictures: zeroshot search '{first}' DIR")
        return [task.query(task.term(f"text:{first}"), plus, minus)], images
    if not (
        os.path.lexists(words[0]) or re.match(r"-$|\w+:", words[0]) or glob.has_magic(words[0])
    ):
        raise UserError(
            f"'{words[0]}' is no file or folder; with {'--image' if image else '--queries'} all "
            "arguments name pictures to search in: add words with --plus"
        )
    if image is not None:
        return [task.query(task.term(f"image:{image}"), plus, minus)], words
    if plus or minus:
        raise UserError("--plus and --minus go with one query; in a .jsonl file each has its own")
    assert file is not None
    return task.read_queries(file), words


def _write(run: Run, found: "Searched", settings: dict[str, object]) -> None:
    if run.out is None:
        return
    from zeroshot.records import Output

    with Output(run.out, "zeroshot.search/1", settings, overwrite=run.overwrite) as output:
        output.write(result.row() for result in found.results)


def _show(
    run: Run, found: "Searched", asked: "list[Query]", meter: "Meter", least: float | None
) -> None:
    from zeroshot import terminal

    shown, thing = run.shown(), run.things.removesuffix("s")
    for result in found.results:
        if shown == "json":
            terminal.print_json(result.row())
        elif result.error is not None:
            terminal.say(f"'{result.path}': {result.error.message}")
    if shown == "table":
        terminal.show_hits([r for r in found.results if r.error is None], thing)
    for query, count, best in zip(asked, found.counts, found.best, strict=True):
        if not count:
            scored = "" if best is None else f"; the best has {best:.3f}, --min-score is {least}"
            terminal.say(f"no {thing} for '{query.label}'{scored}")
    if not run.quiet:
        for line in terminal.summary(meter, 0, run.verbose, things=run.things):
            terminal.say(line)
