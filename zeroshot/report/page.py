"""The page: the tables of the other files in the template `page.html`."""

from importlib import resources
from typing import Any

from zeroshot import __version__
from zeroshot.datasets.protocols import EvaluationTask
from zeroshot.errors import NotAvailableError
from zeroshot.packaging.extras import how_to_install
from zeroshot.report import caption_tables, figures, label_tables, multilabel_tables, traces
from zeroshot.report.caption_tables import Order
from zeroshot.report.galleries import row_gallery
from zeroshot.report.recipe_tables import recipe_section
from zeroshot.report.result_files import Group, LoadedResults, confidence_of, pretty

PICTURES = 30
HEADINGS: dict[EvaluationTask, str] = {
    "classify": "Labels",
    "multilabel": "Several labels",
    "caption": "Captions",
    "retrieve": "Retrieval",
}


def render(
    results: LoadedResults,
    *,
    title: str = "zeroshot report",
    pictures: int | None = None,
    order: Order = "data",
) -> str:
    """The page as HTML.

    Args:
        results: see `load_results`.
        title: the title of the page.
        pictures: the number of images that are shown with their captions, of each data set (30),
            and in grids, of each file (600).
        order: show the first images, or those with the worst captions.

    Raises:
        NotAvailableError: Jinja2 is missing.
    """
    try:
        import jinja2
    except ImportError:
        raise NotAvailableError(f"a report needs Jinja2: {how_to_install('report')}") from None
    folder = resources.files("zeroshot.report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    beside = PICTURES if pictures is None else pictures
    galleries = [row_gallery.gallery(file, pictures) for file in results.files]
    return environment.get_template("page.html").render(
        title=title,
        galleries=[(one, row_gallery.summary(one)) for one in galleries],
        named=row_gallery.NAMED,
        version=__version__,
        recipes=[recipe_section(file, recipe) for file, recipe in results.recipes],
        groups=[_section(group, beside, order) for group in results.groups],
        traces=list(traces.traces(results.traces[:beside])),
    )


def _section(group: Group, pictures: int, order: Order) -> dict[str, Any]:
    confidence = confidence_of(group)
    return {
        "task": group.task,
        "heading": HEADINGS[group.task],
        "dataset": group.dataset,
        "methods": [method.name for method in group.methods],
        "count": max(len(method.rows) for method in group.methods),
        "failed": max(
            sum(bool(row.get("error")) for row in method.rows) for method in group.methods
        ),
        "confidence": f"{100 * confidence:g}",
        "table": figures.table(group),
        "plot": figures.plot(group),
        "first": group.comparison["first"] if group.comparison else "",
        "differences": figures.differences(group, confidence),
        "captions": caption_tables.captions(group, pictures, order)
        if group.task == "caption"
        else [],
        "labels": label_tables.labels(group) if group.task == "classify" else [],
        "multilabel": multilabel_tables.table(group) if group.task == "multilabel" else None,
        "worst": multilabel_tables.worst(group) if group.task == "multilabel" else [],
        "misses": label_tables.misses(group) if group.task == "retrieve" else [],
        "details": [
            (method.name, pretty(method.result)) for method in group.methods if method.result
        ],
    }
