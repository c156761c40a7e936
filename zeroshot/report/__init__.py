"""Results as one page of HTML that needs nothing else: no network, no script, no other file.

`gather` reads what `zeroshot eval`, `caption` and `classify` wrote, `views` turns it into what the
page shows, `page.html` is the page. Whatever came from a file is escaped.
"""

from zeroshot.report.gather import Group, Method, gather
from zeroshot.report.page import render

__all__ = ["Group", "Method", "gather", "render"]
