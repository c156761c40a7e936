"""Results as a table in a notebook: HTML that needs no style sheet and no script.

Styles stand in the elements, since notebooks remove `<style>` from what they do not trust. Colours
are the notebook's own (`currentColor`), so the table is readable in dark themes too.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

MOST_LINES = 5
"""Lines of one result; below them stands how many more there are."""
CELL = "text-align:left;vertical-align:top;padding:4px 12px 4px 0"
BAR = (
    "display:inline-block;width:5em;height:.7em;margin-right:.5em;border:1px solid currentColor;"
    "border-radius:2px"
)
NUMBER = "display:inline-block;min-width:3.5em;font-variant-numeric:tabular-nums"


@dataclass(frozen=True)
class Line:
    """One line of an answer, and its score if it has one."""

    text: str
    score: float | None = None


@dataclass(frozen=True)
class Reason:
    """What an answer rests on: the share of an anchor, its image and its captions."""

    share: float
    image: str
    """A data URL; empty if there is no image."""
    name: str
    text: str


@dataclass(frozen=True)
class TableRow:
    """A result as it is shown; `image` is a data URL."""

    image: str
    path: str
    lines: Sequence[Line] = ()
    reasons: Sequence[Reason] = ()
    failure: str | None = None


def html_table(rows: Sequence[TableRow], heading: str, more: int = 0) -> str:
    """A table with a header; `more` results are counted below it.

    A bar is as long as its score: all of it is 1, or the largest score of the table if that is
    above 1.
    """
    full = max([1.0, *(x.score for row in rows for x in row.lines if x.score is not None)])
    names = ("image", "path", heading)
    head = "".join(f'<th scope="col" style="{CELL}">{_text(name)}</th>' for name in names)
    body = "".join(_row(row, full) for row in rows)
    rest = f"<p>... and {more} more</p>" if more else ""
    table = '<table style="border-collapse:collapse;text-align:left">'
    return f"{table}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"


def _row(row: TableRow, full: float) -> str:
    if row.failure is not None:
        image, answer = "", f"<i>{_text(row.failure)}</i>"
    else:
        image = _image(row.image, row.path) if row.image else "<i>no longer there</i>"
        lines = [_line(line, full) for line in row.lines[:MOST_LINES]]
        if hidden := len(row.lines) - MOST_LINES:
            lines += [f"<div>and {hidden} more</div>"] if hidden > 0 else []
        answer = "".join([*lines, *map(_reason, row.reasons)])
    path = f'<span style="overflow-wrap:anywhere">{_text(row.path)}</span>'
    columns = "".join(f'<td style="{CELL}">{cell}</td>' for cell in (image, path, answer))
    return f"<tr>{columns}</tr>"


def _line(line: Line, full: float) -> str:
    text = "<br>".join(_text(part) for part in line.text.split("\n"))
    if line.score is None:
        return f"<div>{text}</div>"
    share = 100 * min(max(line.score / full, 0.0), 1.0)
    filled = f"display:block;height:100%;width:{share:.0f}%;background:currentColor;opacity:.6"
    bar = f'<span style="{BAR}"><span style="{filled}"></span></span>'
    return f'<div>{bar}<span style="{NUMBER}">{line.score:.3f}</span> {text}</div>'


def _reason(reason: Reason) -> str:
    image = f"{_image(reason.image, reason.name)} " if reason.image else ""
    return f"<div>{reason.share:+.3f} {image}{_text(reason.text)}</div>"


def _image(source: str, name: str) -> str:
    return f'<img src="{source}" alt="{_text(name)}" style="margin:0">'


def _text(text: str) -> str:
    r"""Escaped; bytes of a file name that are not UTF-8 as `\udcff`."""
    return html.escape(text).encode("utf-8", "backslashreplace").decode()
