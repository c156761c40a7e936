"""What the page asks for: the page itself, images by id, labels, duplicates, failures, exports.

An image is named by the hash of its content and never by a path, so that no address of the page
can name another file.
"""

import asyncio
import hashlib
import io
import re
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from zeroshot.errors import UserError, unknown
from zeroshot.inputs.source import Source
from zeroshot.output.formats import format_for
from zeroshot.ranking.near_groups import leaders
from zeroshot.results.result import SearchResult
from zeroshot.serving.engine import NOTHING, FacetTable
from zeroshot.serving.folders import Snapshot
from zeroshot.serving.operations import LABEL, check_text
from zeroshot.serving.small_copies import SIDES
from zeroshot.serving.web.api_routes import (
    answer_of,
    check_image,
    event,
    json_response,
    read_query,
)
from zeroshot.serving.web.bodies import body_of, object_of
from zeroshot.serving.web.refusals import RefusedError
from zeroshot.serving.web.state import ServerState
from zeroshot.tasks.search_options import SearchOptions

FILES = {
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/tick.svg": ("tick.svg", "image/svg+xml"),
    "/favicon.ico": ("icon.svg", "image/svg+xml"),
}
MOST_SHOWN = 200
"""Images in one answer."""
MOST_COMPARED = 20_000
"""Images among which near duplicates are looked for: each is compared with each."""
MOST_GROUPS = 500
SECONDS = 0.25
"""Between two looks at the progress."""
SMALL_BODY = 4_000_000
"""Bytes of what the page sends beside images: the ids of an export."""
ID = re.compile(r"[0-9a-f]{64}")
WIDTH = re.compile(r"[1-9][0-9]{0,3}")
FORMATS = {"paths": "x.txt", "jsonl": "x.jsonl", "csv": "x.csv"}


class PageRoutes:
    """The routes, on one state."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self._files = {
            name: _static(name) for name in ("page.html", *(f for f, _ in FILES.values()))
        }
        self._anchors: dict[str, str] = {}
        """The image files of the model set's anchors, by the anchors' ids."""
        self._duplicates: OrderedDict[tuple[int, float], list[list[int]]] = OrderedDict()
        self._comparing = asyncio.Lock()
        """One comparison at a time: each takes all cores for seconds."""

    def routes(self) -> list[BaseRoute]:
        """All routes."""
        return [
            Route("/", self.page),
            *(Route(path, self.file) for path in FILES),
            Route("/api/state", self.about),
            Route("/api/progress", self.progress),
            Route("/api/image", self.image),
            Route("/api/find", self.find, methods=["POST"]),
            Route("/api/facets", self.facets, methods=["POST"]),
            Route("/api/upload", self.upload, methods=["POST"]),
            Route("/api/duplicates", self.duplicates),
            Route("/api/failures", self.failures),
            Route("/api/export", self.export, methods=["POST"]),
            Route("/thumb/{id}", self.thumb),
            Route("/anchor", self.anchor),
        ]

    async def page(self, request: Request) -> Response:
        """The page."""
        return Response(self._files["page.html"], media_type="text/html")

    async def file(self, request: Request) -> Response:
        """Its script, its style and its icon."""
        name, kind = FILES[request.url.path]
        return Response(self._files[name], media_type=kind, headers={"cache-control": "no-cache"})

    async def about(self, request: Request) -> Response:
        """What is served, and what the models can do."""
        engine, folders = self.state.engine, self.state.folders
        cannot = await self.state.cannot()
        captioners = engine.captioners if "caption" not in cannot else {}
        return json_response(
            {
                "models": engine.models.name,
                "names": dict(engine.names),
                "cannot": dict(cannot),
                "captioners": dict(captioners),
                "nothing": NOTHING,
                "folders": folders.roots,
                "max_upload": self.state.rules.max_upload,
                "cache": engine.cache.write_error or "",
            }
        )

    async def progress(self, request: Request) -> Response:
        """The progress of the index, as events; `Last-Event-ID` is not needed to go on."""
        return StreamingResponse(self._progress(), media_type="text/event-stream")

    async def _progress(self) -> AsyncIterator[bytes]:
        last, quiet = None, 0.0
        while not self.state.stopping.is_set():
            now = self.state.folders.progress
            if now != last:
                images = len(self.state.folders.snapshot)
                row = {**asdict(now), "rate": round(now.rate, 1), "images": images}
                yield event("progress", row, now.version)
                last, quiet = now, 0.0
            elif quiet > 15:
                yield b": still here\n\n"
                quiet = 0.0
            quiet += SECONDS
            try:
                async with asyncio.timeout(SECONDS):
                    await self.state.stopping.wait()
            except TimeoutError:
                continue

    async def thumb(self, request: Request) -> Response:
        """A small copy of a served image."""
        id = request.path_params["id"]
        if not ID.fullmatch(id):
            raise RefusedError(404, "an image is named by its id")
        source = self.state.source(id)
        return await self._copy(request, id, source)

    async def anchor(self, request: Request) -> Response:
        """A small copy of the image of an anchor, by the anchor's id."""
        models, id = self.state.engine.models, request.query_params.get("id", "")
        if not self._anchors and models.spec.coupling is not None:
            entries = await asyncio.to_thread(lambda: models.anchors.entries)
            self._anchors = {entry.id: entry.path for entry in entries if entry.path}
        path = self._anchors.get(id)
        if path is None:
            raise RefusedError(404, "the model set has no image of such an anchor")
        key = hashlib.sha256(f"anchor {id}".encode()).hexdigest()
        return await self._copy(request, key, Source(path))

    async def _copy(self, request: Request, id: str, source: Source) -> Response:
        width = request.query_params.get("w", "320")
        if not WIDTH.fullmatch(width) or int(width) > SIDES[-1]:
            raise UserError(f"w is a number of pixels, from 1 to {SIDES[-1]}")
        tag = f'"{id[:64]}-{width}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"etag": tag})
        future = self.state.thumbnails.submit(id, source, int(width))
        data = await answer_of(future, request)
        headers = {"etag": tag, "cache-control": "private, max-age=86400, immutable"}
        return Response(data, media_type="image/webp", headers=headers)

    async def upload(self, request: Request) -> Response:
        """Keep an image that was dropped on the page; its id can then be searched with."""
        data = await body_of(request, self.state.rules.max_upload)
        width, height = await asyncio.to_thread(check_image, data, self.state)
        id = self.state.uploads.add(data)
        return json_response({"id": id, "width": width, "height": height})

    # Lists of images

    async def find(self, request: Request) -> Response:
        """Images of a query, or all in order; of one label, if labels are given."""
        given = await object_of(request, SMALL_BODY)
        _known(given, "find", ("terms", "facet", "min_score", "offset", "limit"))
        offset, limit = _whole(given, "offset", 0, 10**9), _whole(given, "limit", 60, MOST_SHOWN)
        snapshot = self.state.folders.snapshot
        table, part, places = await self._facet(given.get("facet"), snapshot, request)
        chosen = snapshot if places is None else snapshot.only(places)
        terms = given.get("terms") or []
        label = ""
        if terms:
            query, _ = await asyncio.to_thread(read_query, _query_of(terms), self.state)
            label = query.label
            options = SearchOptions(
                top_k=min(offset + limit, max(1, len(chosen))),
                min_score=_number(given, "min_score"),
            )
            future = self.state.engine.search(query, options, chosen, part)
            hits = await answer_of(future, request)
            page = [self._hit(hit, snapshot) for hit in hits[offset:]]
            more = len(hits) == options.top_k < len(chosen)
            total = len(chosen) if more or options.min_score is None else len(hits)
        else:
            page = [self._item(chosen, i) for i in range(len(chosen))[offset : offset + limit]]
            more, total = offset + limit < len(chosen), len(chosen)
        if table is not None:
            self._add_labels(page, table, snapshot)
        answer = {"images": page, "total": total, "more": more, "query": label}
        return json_response(answer | {"version": snapshot.version})

    async def image(self, request: Request) -> Response:
        """One image by its key."""
        snapshot = self.state.folders.snapshot
        place = snapshot.by_key.get(request.query_params.get("key", ""))
        if place is None:
            raise RefusedError(404, "there is no such image in the served folders")
        return json_response(self._item(snapshot, place))

    def _item(self, snapshot: Snapshot, place: int) -> dict[str, Any]:
        matrix, engine = snapshot.matrix, self.state.engine
        id = matrix.ids[place]
        return {
            "id": id,
            "key": snapshot.keys[place],
            "name": snapshot.names[place],
            "path": matrix.sources[place].path,
            "caption": engine.captions.get(id),
        }

    def _hit(self, hit: SearchResult, snapshot: Snapshot) -> dict[str, Any]:
        place = snapshot.by_path.get(hit.path)
        item = self._item(snapshot, place) if place is not None else {"id": hit.id, "name": ""}
        return item | {"score": hit.row()["score"], "rank": hit.rank}

    async def facets(self, request: Request) -> Response:
        """How many images each label has, and how many none."""
        given = await object_of(request, SMALL_BODY)
        snapshot = self.state.folders.snapshot
        table, _, _ = await self._facet({**given, "label": None}, snapshot, request)
        assert table is not None
        threshold = _number(given, "threshold")
        limit = 0.5 if threshold is None else threshold
        none, *counts = (table.chosen(limit) + 1).bincount(minlength=len(table.labels) + 1).tolist()
        labels = [
            {"label": label, "count": count}
            for label, count in zip(table.labels, counts, strict=True)
        ]
        return json_response({"labels": labels, "none": none, "version": snapshot.version})

    async def _facet(
        self, given: object, snapshot: Snapshot, request: Request
    ) -> tuple[FacetTable | None, Any, list[int] | None]:
        """The labels of all images, a name for the part that has the chosen one, and its places."""
        if given is None:
            return None, None, None
        if not isinstance(given, dict):
            raise UserError("'facet' is an object with labels")
        _known(given, "facets", ("labels", "nothing", "threshold", "label"))
        labels = given.get("labels")
        if not isinstance(labels, list) or not 1 <= len(labels) <= 100:
            raise UserError("'labels' is a list of 1 to 100 texts")
        labels = [check_text("labels", label, LABEL) for label in labels]
        nothing = check_text("nothing", given.get("nothing", NOTHING), LABEL)
        threshold = _number(given, "threshold")
        limit = 0.5 if threshold is None else threshold
        table = await answer_of(self.state.engine.facets(labels, nothing, snapshot), request)
        chosen = given.get("label")
        if chosen is None:
            return table, None, None
        index = -1 if chosen == -1 else _index_of(chosen, table.labels)
        places = (table.chosen(limit) == index).nonzero()[:, 0].tolist()
        return table, (*table.labels, nothing, limit, index), places

    def _add_labels(
        self, page: Sequence[dict[str, Any]], table: FacetTable, snapshot: Snapshot
    ) -> None:
        for item in page:
            place = snapshot.by_path.get(item.get("path"))
            if place is not None and place < len(table.best):
                score = float(table.scores[place])
                label = table.labels[int(table.best[place])]
                item |= {"label": label, "label_score": round(score, 4)}

    async def failures(self, request: Request) -> Response:
        """The images that could not be read, and why."""
        snapshot = self.state.folders.snapshot
        found = [
            {"name": name, "path": one.source.path, "reason": one.failure.message}
            for name, one in zip(snapshot.failed_names, snapshot.matrix.failed, strict=True)
        ]
        return json_response({"failures": found})

    async def duplicates(self, request: Request) -> Response:
        """Groups of images with the same content, or that look alike."""
        text = request.query_params.get("threshold", "0.98")
        try:
            threshold = float(text)
        except ValueError:
            threshold = float("nan")
        if not 0.5 <= threshold <= 1:
            raise UserError("threshold is a cosine, from 0.5 to 1")
        snapshot = self.state.folders.snapshot
        key = (snapshot.version, round(threshold, 4))
        async with self._comparing:
            if key not in self._duplicates:
                self._duplicates[key] = await asyncio.to_thread(alike, snapshot, threshold)
                while len(self._duplicates) > 8:
                    self._duplicates.popitem(last=False)
            groups = self._duplicates[key]
        shown = [[self._item(snapshot, i) for i in group] for group in groups[:MOST_GROUPS]]
        answer = {"groups": shown, "total": len(groups), "compared": len(snapshot)}
        return json_response(answer | {"exact_only": len(snapshot) > MOST_COMPARED})

    async def export(self, request: Request) -> Response:
        """Chosen images as paths, JSON lines or CSV: the rows of a search, if there is one."""
        given = await object_of(request, SMALL_BODY)
        _known(given, "export", ("keys", "format", "terms"))
        form, keys = given.get("format"), given.get("keys")
        if not isinstance(form, str) or form not in FORMATS:
            raise UserError(f"'format' is one of {', '.join(FORMATS)}")
        if not isinstance(keys, list) or not keys or not all(isinstance(k, str) for k in keys):
            raise UserError("'keys' is a list of keys; choose some images")
        snapshot = self.state.folders.snapshot
        lacking = [key for key in keys if key not in snapshot.by_key]
        if lacking:
            raise RefusedError(404, f"no served image has the key '{lacking[0][:80]}'")
        places = [snapshot.by_key[key] for key in dict.fromkeys(keys)]
        chosen = snapshot.only(places)
        rows: list[Mapping[str, Any]]
        schema = "zeroshot.search/1"
        if terms := given.get("terms"):
            query, _ = await asyncio.to_thread(read_query, _query_of(terms), self.state)
            options = SearchOptions(top_k=len(chosen))
            part = tuple(places)
            hits = await answer_of(self.state.engine.search(query, options, chosen, part), request)
            rows = [hit.row() for hit in hits]
        else:
            rows = [
                {"schema": schema, "path": source.path, "id": id}
                for source, id in zip(chosen.matrix.sources, chosen.matrix.ids, strict=True)
            ]
        data = await asyncio.to_thread(encoded, rows, FORMATS[form], schema)
        name = "paths.txt" if form == "paths" else f"images.{form}"
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(data, media_type="text/plain; charset=utf-8", headers=headers)


def encoded(rows: Sequence[Mapping[str, Any]], name: str, schema: str) -> bytes:
    """Rows in the format of a file name."""
    form = format_for(Path(name), schema)
    data = io.BytesIO(form.header)
    data.seek(0, io.SEEK_END)
    for row in rows:
        data.write(form.encode(row))
    return data.getvalue()


def alike(snapshot: Snapshot, threshold: float) -> list[list[int]]:
    """Groups of images with the same content, or with a cosine of at least `threshold`.

    The largest group first. All images of a group are alike to its first; see `near_groups`.
    """
    matrix, firsts = snapshot.matrix, torch.tensor(list(snapshot.place.values()), dtype=torch.long)
    firsts, leader = firsts.sort().values, torch.arange(len(snapshot.place))
    if 1 < len(snapshot) <= MOST_COMPARED:
        leader = leaders(matrix.embeddings[firsts], threshold)
    group = dict(zip(firsts.tolist(), leader.tolist(), strict=True))
    groups: dict[int, list[int]] = defaultdict(list)
    for place, id in enumerate(matrix.ids):
        groups[group[snapshot.place[id]]].append(place)
    return sorted((g for g in groups.values() if len(g) > 1), key=len, reverse=True)


def _static(name: str) -> bytes:
    return resources.files("zeroshot").joinpath("serving", "web", "static", name).read_bytes()


def _known(given: Mapping[str, Any], what: str, fields: Sequence[str]) -> None:
    for name in given:
        if name not in fields:
            raise unknown(f"field of /api/{what}", name, fields)


def _whole(given: Mapping[str, Any], name: str, default: int, most: int) -> int:
    value = given.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise UserError(f"'{name}' is a whole number from 0 to {most}")
    return value


def _number(given: Mapping[str, Any], name: str) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise UserError(f"'{name}' is a number")
    return float(value)


def _index_of(label: object, labels: Sequence[str]) -> int:
    if not isinstance(label, str) or label not in labels:
        raise UserError("'label' is one of the labels, or -1 for none of them")
    return list(labels).index(label)


def _query_of(terms: object) -> dict[str, Any]:
    """`[{"text": "a dog", "sign": 1}]` as the fields of a search; its first term is added."""
    if not isinstance(terms, list) or not all(isinstance(term, dict) for term in terms):
        raise UserError("'terms' is a list of {'text' or 'id': ..., 'sign': 1 or -1}")
    added: list[Any] = []
    taken: list[Any] = []
    for term in terms:
        sign = term.get("sign", 1)
        if sign not in (1, -1):
            raise UserError("'sign' is 1 or -1")
        (added if sign == 1 else taken).append({k: v for k, v in term.items() if k != "sign"})
    if not added:
        raise UserError("a query that only takes away finds nothing: add a text or an image")
    return {"query": added[0], "plus": added[1:], "minus": taken}
