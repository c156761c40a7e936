"""Results as one page of HTML that needs nothing else: no network, no script, no other file.

`gather` reads what `zeroshot eval`, `caption` and `classify` wrote; `figures`, `captions`, `labels`
and `choices` turn it into what the page shows; `page.html` lays it out. Whatever came from a file
is escaped.
"""

from zeroshot.report.gathering import Group, Method, gather
from zeroshot.report.page import render

__all__ = ["Group", "Method", "gather", "render"]
