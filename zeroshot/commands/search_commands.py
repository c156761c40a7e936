"""`zeroshot search`: pictures that answer a query."""

import dataclasses
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from zeroshot.commands.options import MethodOptions, Run, on_pictures, option, read_options
from zeroshot.errors import UserError

if TYPE_CHECKING:
    from zeroshot.inference.meter import Meter
    from zeroshot.model_set.model_set import ModelSet
    from zeroshot.ranking.exact import Correction
    from zeroshot.tasks.search import Query, Searched


@dataclasses.dataclass(frozen=True)
class Searching:
    """What is looked for beside the first words, and how: shared by pictures and clips."""

    queries: Annotated[
        Path | None,
        option(
            "--queries",
            env="QUERIES",
            help="Many queries: one a line, or a .jsonl of text or image, plus, minus.",
        ),
    ] = None
    plus: Annotated[
        list[str] | None,
        option(
            "--plus",
            env="PLUS",
            help="Words, or a file, to add; may be repeated. text: or image: before it says which.",
        ),
    ] = None
    minus: Annotated[
        list[str] | None,
        option("--minus", env="MINUS", help="As --plus, to take away."),
    ] = None
    top_k: Annotated[
        int, option("--top-k", "-k", env="TOP_K", help="Hits for each query.", min=1)
    ] = 10
    min_score: Annotated[
        float | None, option("--min-score", env="MIN_SCORE", help="Leave out what scores less.")
    ] = None
    method: Annotated[
        str | None,
        option(
            "--method",
            env="SEARCH_METHOD",
            help="Re-rank by dis, nnn, csls, inverted_softmax or dn, with --bank.",
        ),
    ] = None
    method_option: MethodOptions = None
    bank: Annotated[
        Path | None,
        option("--bank", env="SEARCH_BANK", help="Other queries of the same kind, as --queries."),
    ] = None
    index: Annotated[
        Literal["exact", "ivf", "ivfpq"],
        option(
            "--index",
            env="INDEX",
            help="exact, or approximately with faiss, for very many queries; says its recall.",
        ),
    ] = "exact"
    half: Annotated[
        bool,
        option("--half", env="HALF", help="Keep rows in float16 while they are searched."),
    ] = False
    explain: Annotated[
        int,
        option(
            "--explain",
            env="EXPLAIN",
            help="Name this many anchors that carried a hit (couplings).",
            min=0,
        ),
    ] = 0

    def find(
        self,
        run: Run,
        words: list[str],
        models: "ModelSet",
        example: tuple[str, str | None],
        html: Path | None = None,
    ) -> None:
        """Search, show the hits and write them; `example` is an option's name and its file.

        Raises:
            typer.Exit: with code 3, when a picture failed.
        """
        from zeroshot import ranking
        from zeroshot.tasks import search as task

        asked, names = self._queries(run, words, *example)
        options = read_options(self.method_option)
        chosen = None if self.method is None else ranking.correction(self.method, options)
        if (chosen is None) != (self.bank is None):
            raise UserError(
                "--method re-ranks with --bank FILE, other queries; give both or neither"
            )
        if chosen is None and options:
            raise UserError("-o is an option of a method that re-ranks; give --method and --bank")
        for path in (run.out, html):
            if path is not None and path.exists() and not run.overwrite:
                raise UserError(f"'{path}' exists; --overwrite writes over it")
        others = [] if self.bank is None else task.read_queries(self.bank)
        _find(run, self, asked, names, models, chosen, others, html)

    def _queries(
        self, run: Run, words: list[str], option: str, example: str | None
    ) -> "tuple[list[Query], list[str]]":
        """What is asked, and the arguments that name where to search."""
        from zeroshot.tasks import search as task

        plus, minus, file = self.plus or [], self.minus or [], self.queries
        if example is not None and file is not None:
            raise UserError(f"{option} is one query, --queries are many: give one")
        if example is None and file is None:
            first, *names = words
            if not names:
                command = "search" if run.things == "pictures" else "video search"
                raise UserError(f"search needs {run.things}: zeroshot {command} '{first}' DIR")
            return [task.query(task.term(f"text:{first}"), plus, minus)], names
        if not (
            os.path.lexists(words[0]) or re.match(r"-$|\w+:", words[0]) or glob.has_magic(words[0])
        ):
            raise UserError(
                f"'{words[0]}' is no file or folder; with {'--queries' if file else option} all "
                f"arguments name {run.things} to search in: add words with --plus"
            )
        if example is not None:
            return [task.query(task.term(f"image:{example}"), plus, minus)], words
        if plus or minus:
            raise UserError(
                "--plus and --minus go with one query; in a .jsonl file each has its own"
            )
        assert file is not None
        return task.read_queries(file), words


Html = Annotated[
    Path | None,
    option("--html", env="HTML", help="Write a page with thumbnails that needs nothing else."),
]


@on_pictures
def search(
    run: Run,
    asked: Searching,
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
    html: Html = None,
) -> None:
    """Find pictures by words, by a picture, or by sums and differences of both."""
    asked.find(run, words, run.model_set(), ("--image", image), html)


def _find(
    run: Run,
    how: Searching,
    asked: "list[Query]",
    names: list[str],
    models: "ModelSet",
    method: "Correction | None",
    bank: "Sequence[Query]",
    html: Path | None,
) -> None:
    from zeroshot.commands import console
    from zeroshot.inference.meter import Meter
    from zeroshot.tasks import search as task

    meter, sources = Meter(), run.sources(names)
    with run.open_cache() as cache:
        with console.Screen("nothing", len(sources), run.quiet, run.things) as screen:
            found = task.search(
                asked,
                sources,
                models,
                cache,
                meter,
                k=how.top_k,
                min_score=how.min_score,
                method=method,
                bank=bank,
                explained=how.explain,
                index=how.index,
                half=how.half,
                batch_size=run.at_once,
                seen=lambda count: screen.advance(count, meter),
            )
        _write(
            run,
            found,
            task.settings(asked, models, method, bank, k=how.top_k, index=how.index, half=how.half),
        )
        if html is not None:
            from zeroshot.report.search_page import write_page

            write_page(html, found.results, [query.label for query in asked])
        _show(run, found, asked, meter, how.min_score)
        if cache.trouble is not None:
            console.say(cache.trouble)
    if meter.failed:
        raise typer.Exit(3)


def _write(run: Run, found: "Searched", settings: dict[str, object]) -> None:
    if run.out is None:
        return
    from zeroshot.output.resumable import Output

    with Output(run.out, "zeroshot.search/1", settings, overwrite=run.overwrite) as output:
        output.write(result.row() for result in found.results)


def _show(
    run: Run, found: "Searched", asked: "list[Query]", meter: "Meter", least: float | None
) -> None:
    from zeroshot.commands import console

    shown, thing = run.shown(), run.things.removesuffix("s")
    for result in found.results:
        if shown == "json":
            console.print_json(result.row())
        elif result.error is not None:
            console.say(f"'{result.path}': {result.error.message}")
    if shown == "table":
        console.show_hits([r for r in found.results if r.error is None], thing)
    for query, count, best in zip(asked, found.counts, found.best, strict=True):
        if not count:
            scored = "" if best is None else f"; the best has {best:.3f}, --min-score is {least}"
            console.say(f"no {thing} for '{query.label}'{scored}")
    if not run.quiet:
        for line in console.summary(meter, 0, run.verbose, things=run.things):
            console.say(line)
