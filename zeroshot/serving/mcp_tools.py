"""`zeroshot mcp`: what an assistant can do with the served folders, over standard input and output.

All tools only read. Images are named by their paths below the served folders, never by other paths.
"""

from collections.abc import Sequence
from typing import Any

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import NotAvailableError, UserError, ZeroshotError
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.packaging.extras import how_to_install
from zeroshot.results.result import Result, as_float32
from zeroshot.serving.engine import Engine
from zeroshot.serving.folders import ServedFolders, Snapshot
from zeroshot.serving.operations import LABEL, OPERATIONS, check_text, read_request
from zeroshot.serving.small_copies import thumbnail_of
from zeroshot.tasks.search import Query, Term
from zeroshot.tasks.search_options import SearchOptions

SIDE = 768
"""Longer side of an image that the assistant looks at, in pixels."""
MOST = 50
"""Images in one answer."""
ABOUT = (
    "Search and look at the user's images, on this machine. Paths are relative to the served "
    "folders. Scores are cosines: they rank images of one query, and are no probabilities."
)


class ImageTools:
    """The tools, as functions of texts and numbers."""

    def __init__(self, engine: Engine, folders: ServedFolders) -> None:
        self.engine = engine
        self.served = folders

    def _snapshot(self) -> Snapshot:
        self.served.ready.wait()
        return self.served.snapshot

    def _source(self, path: str, snapshot: Snapshot) -> Source:
        """The served image with this name; UserError for any other path."""
        place = snapshot.by_text.get(path)
        if place is None:
            raise UserError(f"no served image is called '{path[:200]}'; see search_images")
        return self.served.image(snapshot, place)

    def folders(self) -> dict[str, Any]:
        """The served folders: how many images, how many that cannot be read, which models."""
        snapshot = self._snapshot()
        return {
            "folders": [root.rstrip("/").rpartition("/")[2] for root in self.served.roots],
            "images": len(snapshot),
            "unreadable": len(snapshot.failed_names),
            "models": self.engine.models.name,
        }

    def search_images(self, query: str, count: int = 10) -> list[dict[str, Any]]:
        """The images that fit words best, best first: path and score of each."""
        check_text("query", query)
        return self._search(Query((Term(query),)), count)

    def similar_images(self, path: str, count: int = 10) -> list[dict[str, Any]]:
        """The images most similar to one of them, which comes first itself."""
        source = self._source(path, self._snapshot())
        return self._search(Query((Term(image=source),)), count)

    def _search(self, query: Query, count: int) -> list[dict[str, Any]]:
        if not 1 <= count <= MOST:
            raise UserError(f"count is from 1 to {MOST}, not {count}")
        snapshot = self._snapshot()
        hits = self.engine.search(query, SearchOptions(top_k=count), snapshot).result()
        return [
            {"path": snapshot.texts[snapshot.by_path[hit.path]], "score": as_float32(hit.score)}
            for hit in hits
        ]

    def look_at(self, path: str) -> bytes:
        """An image as PNG, at most 768 pixels wide or high, without metadata."""
        return thumbnail_of(self._source(path, self._snapshot()), SIDE, kind="PNG")

    def describe(self, path: str) -> str:
        """A caption of an image, written by small models on this machine."""
        if (reason := self.engine.cannot.get("caption")) is not None:
            raise UserError(reason)
        return self._row("caption", path, {})["caption"] or ""

    def label(self, path: str, labels: list[str]) -> list[dict[str, Any]]:
        """How well each of some labels fits an image, best first; the scores sum to 1."""
        for text in labels:
            check_text("labels", text, LABEL)
        row = self._row("classify", path, {"labels": labels, "top_k": max(1, len(labels))})
        return [{"label": one["label"], "score": one["score"]} for one in row["labels"]]

    def _row(self, name: str, path: str, given: dict[str, Any]) -> dict[str, Any]:
        asked = read_request(OPERATIONS[name], given)
        source = self._source(path, self._snapshot())
        result: Result = self.engine.row(asked, source).result()
        if result.error is not None:
            raise UserError(f"'{path}': {result.error.message}")
        return result.row()


TOOLS = ("folders", "search_images", "similar_images", "look_at", "describe", "label")


def build_server(tools: ImageTools) -> Any:
    """The MCP server with these tools.

    Raises:
        NotAvailableError: the extra `mcp` is not installed.
    """
    try:
        from mcp.server.mcpserver import Image, MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
        from mcp.types import ToolAnnotations
    except ImportError as error:
        raise NotAvailableError(
            f"'zeroshot mcp' needs {error.name}: {how_to_install('mcp')}"
        ) from error
    server = MCPServer("zeroshot", instructions=ABOUT)
    for name in TOOLS:
        function = getattr(tools, name)
        server.add_tool(
            _told(function, ToolError, Image if name == "look_at" else None),
            name=name,
            description=function.__doc__,
            annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
            structured_output=False,
        )
    return server


def _told(function: Any, error_kind: type[Exception], image: Any) -> Any:
    """The function with its errors as the protocol has them, and an image as its content."""
    import functools
    import inspect

    @functools.wraps(function)
    def call(**given: Any) -> Any:
        try:
            answer = function(**given)
        except ZeroshotError as error:
            raise error_kind(str(error)) from None
        return answer if image is None else image(data=answer, format="png")

    call.__signature__ = inspect.signature(function).replace(  # type: ignore[attr-defined]
        return_annotation=inspect.Signature.empty
    )
    call.__annotations__.pop("return", None)
    return call


def run(folders: Sequence[str], models: ModelSet, cache: EmbeddingCache, batch_size: int) -> None:
    """Serve until standard input ends.

    Raises:
        UserError: a folder that is none. NotAvailableError: a model, or the extra, is not here.
    """
    with cache:
        engine = Engine(models, cache, batch_size)
        served = None
        try:
            served = ServedFolders(folders, engine.index)
            server = build_server(ImageTools(engine, served))
            engine.load()
            served.start()
            server.run("stdio")
        finally:
            if served is not None:
                served.close()
            engine.close()
