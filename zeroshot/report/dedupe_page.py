"""Groups of copies as one HTML page: each group side by side, the image to keep first."""

import html
from collections import defaultdict
from collections.abc import Sequence

from zeroshot.errors import counted
from zeroshot.report.search_page import image_of, page_of
from zeroshot.results.duplicate import DedupeResult


def dedupe_page(results: Sequence[DedupeResult]) -> str:
    """The groups, then the images that failed."""
    groups: dict[int, list[DedupeResult]] = defaultdict(list)
    for result in results:
        if result.group is not None:
            groups[result.group].append(result)
    copies = sum(map(len, groups.values())) - len(groups)
    summary = f"{counted(len(groups), 'group')}, {counted(copies, 'image')} to leave out"
    sections = [f"<h1>{summary}</h1>\n" if groups else "<h1>No copies</h1>\n"]
    sections += [_group(number, group) for number, group in sorted(groups.items())]
    return page_of(f"{summary} - zeroshot dedupe", sections, results)


def _group(number: int, group: Sequence[DedupeResult]) -> str:
    best_first = sorted(group, key=lambda result: not result.keep)
    title = f"Group {number}: {counted(len(group), 'image')}"
    return f"<h2>{title}</h2>\n<ol>{''.join(map(_image, best_first))}</ol>\n"


def _image(result: DedupeResult) -> str:
    what = "<b>keep</b>" if result.keep else f"{result.kind} copy"
    size = f"{result.width} x {result.height}"
    if result.bytes is not None:
        size += f", {result.bytes:,} bytes"
    if result.cosine is not None:
        size += f"; cosine {result.cosine:.3f}, pixels {result.correlation:.3f}"
    path, reason = html.escape(result.path or "in memory"), html.escape(result.reason)
    return (
        f'<li>{image_of(result)}<p>{what}</p><p class="path">{path}</p><p>{size}</p>'
        f'<p class="why">{reason}</p></li>\n'
    )
