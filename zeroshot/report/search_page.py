"""Hits as one HTML page that needs no other file, with thumbnails; and what any such page has.

Paths, queries and captions are not trusted. All of them are escaped, and the page's policy allows
no script, no URL and no file.
"""

import html
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from zeroshot.errors import counted
from zeroshot.output.atomic import whole
from zeroshot.output.formats import utf8
from zeroshot.results.result import Result, SearchResult, thumbnail

SIZE = 240
"""Longer side of a thumbnail in pixels."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 80em; padding: 0 1em; }
h2 { font-weight: 600; overflow-wrap: anywhere; }
ol { display: grid; gap: 1em; grid-template-columns: repeat(auto-fill, minmax(13em, 1fr));
     list-style: none; padding: 0; }
ol > li { border: 1px solid #8886; border-radius: 6px; padding: .7em; }
img { display: block; height: 12em; margin: 0 auto .5em; object-fit: contain; width: 100%; }
p { margin: .2em 0; overflow-wrap: anywhere; }
.path, .why, footer { font-size: .85em; opacity: .75; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #eee; } }
"""


def search_page(results: Sequence[SearchResult], queries: Sequence[str]) -> str:
    """The hits of each query as a grid of thumbnails, then the images that failed."""
    hits = {
        number: list(group)
        for number, group in groupby(
            (r for r in results if r.error is None), key=lambda r: r.query_number
        )
    }
    sections = [_section(query, hits.get(n, [])) for n, query in enumerate(queries)]
    title = queries[0] if len(queries) == 1 else f"{len(queries)} queries"
    return page_of(f"{title} - zeroshot search", sections, results)


def page_of(title: str, sections: Iterable[str], results: Sequence[Result]) -> str:
    """Sections of HTML as a page, with the images that failed and the names of the models."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "".join(sections)
        + "".join(_failures([r for r in results if r.error is not None]))
        + _footer(results)
        + "</body></html>\n"
    )


def write_page(path: Path, page: str, overwrite: bool = True) -> None:
    """Write a page as UTF-8; bytes of file names that are no UTF-8 are escaped.

    Raises as `output.atomic.whole`.
    """
    with whole(path, overwrite=overwrite) as file:
        file.write(utf8(page))


def _section(query: str, hits: Sequence[SearchResult]) -> str:
    body = f"<ol>{''.join(map(_hit, hits))}</ol>" if hits else "<p>no image</p>"
    return f"<h2>{html.escape(query)}</h2>\n{body}\n"


def _hit(hit: SearchResult) -> str:
    path = html.escape(hit.path or "in memory")
    cosine = "" if hit.score == hit.cosine else f" (cosine {hit.cosine:.3f})"
    why = "".join(f'<p class="why">{html.escape(x.line)}</p>' for x in hit.explanation)
    copies = "1 copy" if hit.hidden == 1 else f"{hit.hidden} copies"
    hidden = f", {copies} hidden" if hit.hidden else ""
    score = f"<p>{hit.rank}. {hit.score:.3f}{cosine}{hidden}</p>"
    return f'<li>{image_of(hit)}{score}<p class="path">{path}</p>{why}</li>\n'


def image_of(result: Result) -> str:
    """The thumbnail of an image, or a note that the file no longer exists."""
    source = thumbnail(result.source, SIZE)
    path = html.escape(result.path or "in memory")
    return f'<img src="{source}" alt="{path}">' if source else "<p><i>no longer there</i></p>"


def _failures(failed: Sequence[Result]) -> Iterator[str]:
    if failed:
        count = counted(len(failed), "image")
        yield f"<h2>{count} could not be read</h2>\n<ul>"
        for result in failed:
            message = result.error.message if result.error else ""
            yield f"<li>{html.escape(result.path or 'in memory')}: {html.escape(message)}</li>\n"
        yield "</ul>\n"


def _footer(results: Sequence[Result]) -> str:
    names = dict.fromkeys(name for r in results for name in r.models.values())
    return f"<footer><p>{html.escape(', '.join(names))}</p></footer>\n" if names else ""
