"""The site: `make site` builds it from the pages of docs/, without loading anything of zeroshot.

The pages are plain Markdown, as a code host shows it. What a host has no syntax for is here: the
order of the pages, and equations as MathML, which browsers render without a script.
"""

import tomllib
from pathlib import Path
from typing import Any

from docutils import nodes
from math_core import LatexToMathML
from sphinx.application import Sphinx

EQUATIONS = LatexToMathML()
ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

project = "zeroshot"
version = release = PROJECT["version"]
author = "the zeroshot contributors"
html_title = f"zeroshot {release}"

extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["docs/**", "examples/README.md", "*.md"]
exclude_patterns = ["README.md", "docs/_site/**", "**/.*"]
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = {"math"}
myst_heading_anchors = 3
myst_links_external_new_tab = False
suppress_warnings: list[str] = []
nitpicky = True

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
templates_path = ["templates"]
html_additional_pages = {"index": "redirect.html"}
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
html_use_index = False
html_math_renderer = "mathml"

NAVIGATION = {
    "Start": ["install", "tutorial", "choose"],
    "Recipes": [
        "recipes/sort",
        "recipes/keywords",
        "recipes/duplicates",
        "recipes/alt-texts",
        "recipes/training-labels",
        "recipes/training-captions",
        "recipes/bucket",
        "recipes/own-pairs",
        "recipes/offline",
        "recipes/memory",
    ],
    "Tasks": [
        "captioning",
        "sorting",
        "sidecars",
        "search",
        "dedupe",
        "tune",
        "segmentation",
        "detection",
        "annotations",
        "questions",
        "matching",
        "filter",
        "video",
        "serve",
        "evaluation",
    ],
    "Explanation": ["couplings", "guided-decoding", "calibration", "metrics", "performance"],
    "Reference": [
        "cli",
        "python",
        "functions",
        "methods/README",
        "models",
        "systems",
        "pocket",
        "inputs",
        "embeddings",
        "cache",
        "scale",
        "../examples/README",
    ],
    "Help": ["troubleshooting", "glossary"],
    "Project": ["../CONTRIBUTING", "../CHANGELOG", "../SECURITY"],
}
"""The order of the pages, in docs/ or beside it."""
METHODS = sorted(p.stem for p in (ROOT / "docs" / "methods").glob("*.md") if p.stem != "README")


def _toctree(caption: str, pages: list[str]) -> str:
    lines = "\n".join("/" + str(Path("docs", page)) for page in pages)
    lines = lines.replace("/docs/../", "/")
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n"


def add_navigation(_: Sphinx, name: str, source: list[str]) -> None:
    """The pages, in their order, below the first page; the methods below theirs."""
    if name == root_doc:
        source[0] += "".join(_toctree(caption, pages) for caption, pages in NAVIGATION.items())
    if name == "docs/methods/README":
        source[0] += _toctree("", [f"methods/{name}" for name in METHODS]).replace(
            ":caption: \n", ""
        )


def inline_equation(writer: Any, node: nodes.math) -> None:
    """An equation within a sentence."""
    writer.body.append(EQUATIONS.convert_with_local_state(node.astext(), displaystyle=False))
    raise nodes.SkipNode


def displayed_equation(writer: Any, node: nodes.math_block) -> None:
    """An equation of its own, which can be scrolled where the window is narrow."""
    equation = EQUATIONS.convert_with_local_state(node.astext(), displaystyle=True)
    writer.body.append(f'<div class="equation">{equation}</div>')
    raise nodes.SkipNode


LABELS = {
    ' role="heading"><span class="caption-text">': (
        ' role="heading" aria-level="2"><span class="caption-text">'
    ),
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="All pages">',
    '<aside class="toc-drawer': '<aside aria-label="On this page" class="toc-drawer',
}
"""What the theme leaves out for screen readers."""


def label_parts(app: Sphinx, error: Exception | None) -> None:
    """Name the parts of every page for screen readers."""
    if error is None:
        for path in Path(app.outdir).rglob("*.html"):
            text = path.read_text("utf-8")
            for unnamed, named in LABELS.items():
                text = text.replace(unnamed, named)
            path.write_text(text, "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect these to Sphinx."""
    app.connect("source-read", add_navigation)
    app.connect("build-finished", label_parts)
    app.add_html_math_renderer("mathml", (inline_equation, None), (displayed_equation, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
