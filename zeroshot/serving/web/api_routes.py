"""The API of applications: `/v1/...`, `/healthz`, `/metrics`, `/openapi.json`.

A request is a JSON object, with the image in base64 as a `data:` address or a served image by its
`id`; or the image itself as the body, with the other fields in the query string. The answer is the
row that the command line prints.
"""

import asyncio
import base64
import binascii
import contextlib
import re
import resource
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from zeroshot.errors import UnreadableImageError, UnsupportedError, UserError, unknown
from zeroshot.images import pixels
from zeroshot.inputs.source import Source
from zeroshot.output.formats import to_json, utf8
from zeroshot.results.result import CaptionResult, EmbedResult, Result, as_float32
from zeroshot.serving.batcher import MOST
from zeroshot.serving.operations import (
    LABEL,
    OPERATIONS,
    Asked,
    check_text,
    from_query,
    read_request,
    read_search,
)
from zeroshot.serving.web.bodies import body_of, object_of
from zeroshot.serving.web.guard import BUCKETS
from zeroshot.serving.web.openapi import document
from zeroshot.serving.web.refusals import RefusedError, answer_to, error_response
from zeroshot.serving.web.state import ServerState
from zeroshot.tasks.search import Query, Term

T = TypeVar("T")

MAX_PIXELS = 40_000_000
"""Of an image in a request; several are decoded at a time."""
DATA = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)
INPUTS = 2048
"""Texts and images of one request for embeddings, as OpenAI's."""
TOGETHER = MOST
"""Images of a request for embeddings that wait at a time: a full batch."""
TERMS = 32
"""Texts and images that a search adds and subtracts."""
PING_SECONDS = 15.0


async def answer_of(future: "Future[T]", request: Request) -> T:
    """The answer, when it is there. If the client leaves, nothing more is done for it.

    Raises:
        ClientDisconnect: the client has left.
    """
    waiting = asyncio.wrap_future(future)
    gone = asyncio.ensure_future(_gone(request))
    both: set[asyncio.Future[Any]] = {waiting, gone}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientDisconnect
        return waiting.result()
    finally:
        gone.cancel()
        if not waiting.done():
            waiting.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def image_bytes(given: object, state: ServerState) -> bytes:
    """The bytes of an image in base64.

    Raises:
        UserError: it is no `data:` address of an image.
        RefusedError: it is too large.
        UnreadableImageError: it is no image.
    """
    if not isinstance(given, str) or not (begin := DATA.match(given)):
        raise UserError(
            "an image is 'data:image/jpeg;base64,...'; addresses on the network are not fetched"
        )
    try:
        data = base64.b64decode(given[begin.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise UserError("the image is no valid base64") from None
    check_image(data, state)
    return data


def check_image(data: bytes, state: ServerState) -> tuple[int, int]:
    """Width and height of an image in a request; errors as of `image_bytes`."""
    if len(data) > state.rules.max_upload:
        raise RefusedError(
            413, f"the image is larger than {state.rules.max_upload} bytes; see --max-upload-mb"
        )
    return pixels.check(data, MAX_PIXELS)


async def source_of(request: Request, state: ServerState) -> tuple[Source, dict[str, Any]]:
    """The image of a request, and what else it says.

    Raises:
        UserError: no image, or two. RefusedError, UnreadableImageError: as of `image_bytes`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind == "application/octet-stream":
        data = await body_of(request, state.rules.max_upload)
        await asyncio.to_thread(check_image, data, state)
        operation = OPERATIONS[request.url.path.rpartition("/")[2]]
        return Source(None, data), from_query(operation, request.query_params.multi_items())
    if kind not in ("application/json", ""):
        raise RefusedError(415, f"'{kind[:60]}' is not read; send application/json or image/jpeg")
    if request.query_params:
        raise UserError("fields in the address go with an image as the body; put them in the JSON")
    given = await object_of(request, state.rules.max_body)
    image, id = given.pop("image", None), given.pop("id", None)
    if (image is None) == (id is None):
        raise UserError("give one of 'image' (data:image/jpeg;base64,...) and 'id' (a served one)")
    if id is not None:
        return state.source(id), given
    return Source(None, await asyncio.to_thread(image_bytes, image, state)), given


def row_of(result: Result, asked: Asked) -> dict[str, Any]:
    """The row; with the trace of a caption, if it was asked for.

    Raises:
        UnreadableImageError, UserError: the image failed, with the reason.
    """
    if result.error is not None:
        unreadable = result.error.type == "UnreadableImage"
        raise (UnreadableImageError if unreadable else UserError)(result.error.message)
    row = result.row()
    if asked.given.get("trace") and isinstance(result, CaptionResult):
        row["trace"] = result.trace_row()["steps"]
    return row


class ApiRoutes:
    """The routes, on one state."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self._document = document()

    def routes(self) -> list[BaseRoute]:
        """All routes."""
        tasks = [
            Route(f"/v1/{name}", self.task, methods=["POST"], name=name)
            for name in OPERATIONS
            if name not in ("embed", "caption")
        ]
        return [
            *tasks,
            Route("/v1/caption", self.caption, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/search", self.search, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/openapi.json", self.openapi),
            Route("/healthz", self.healthz),
            Route("/metrics", self.metrics),
        ]

    async def task(self, request: Request) -> Response:
        """`/v1/classify`, `/v1/detect`, `/v1/segment`, `/v1/ask`: the row."""
        name = request.url.path.rpartition("/")[2]
        source, given = await source_of(request, self.state)
        asked = await self._asked(name, given)
        result = await answer_of(self.state.engine.row(asked, source), request)
        return json_response(row_of(result, asked))

    async def _asked(self, name: str, given: Mapping[str, Any]) -> Asked:
        reason = (await self.state.cannot()).get(name)
        if reason is not None:
            raise UnsupportedError(reason)
        return read_request(OPERATIONS[name], given)

    async def caption(self, request: Request) -> Response:
        """`/v1/caption`: the row; or words as events, and then the row."""
        source, given = await source_of(request, self.state)
        asked = await self._asked("caption", given)
        if "text/event-stream" not in request.headers.get("accept", ""):
            left = threading.Event()
            future = self.state.engine.row(asked, source, lambda text: not left.is_set())
            try:
                result = await answer_of(future, request)
            finally:
                left.set()
            return json_response(row_of(result, asked))
        words = WordStream(asyncio.get_running_loop())
        words.future = self.state.engine.row(asked, source, words.written)
        return StreamingResponse(words.events(asked), media_type="text/event-stream")

    async def embeddings(self, request: Request) -> Response:
        """`/v1/embeddings`: of texts and images, in the order of the input."""
        given = await object_of(request, self.state.rules.max_body)
        if "image" in given or not _only_short(given):
            inputs = await asyncio.to_thread(embedding_inputs, given, self.state)
        else:  # a thread takes longer than a few texts
            inputs = embedding_inputs(given, self.state)
        form = given.get("encoding_format", "float")
        engine = self.state.engine
        texts = [(i, one) for i, one in enumerate(inputs) if isinstance(one, str)]
        images = [(i, one) for i, one in enumerate(inputs) if isinstance(one, Source)]
        found: dict[int, np.ndarray[Any, np.dtype[np.float32]]] = {}
        tokens = 0
        asked = read_request(OPERATIONS["embed"], {})
        if texts:
            wanted = engine.texts([text for _, text in texts])
            rows, tokens = await answer_of(wanted, request)
            found |= dict(zip((i for i, _ in texts), rows.numpy(), strict=True))
        for start in range(0, len(images), TOGETHER):  # so that one request does not fill the queue
            futures: list[tuple[int, Future[Result]]] = []
            try:
                for i, source in images[start : start + TOGETHER]:
                    futures.append((i, engine.row(asked, source)))
                for i, future in futures:
                    result = await answer_of(future, request)
                    row_of(result, asked)
                    assert isinstance(result, EmbedResult)
                    found[i] = np.asarray(result.embedding, dtype=np.float32)
            finally:
                for _, future in futures:
                    future.cancel()
        data = [
            {"object": "embedding", "index": i, "embedding": _numbers(found[i], form)}
            for i in range(len(inputs))
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        model = self.state.engine.models.name
        return json_response({"object": "list", "data": data, "model": model, "usage": usage})

    async def search(self, request: Request) -> Response:
        """`/v1/search`: the rows of the best images of the served folders."""
        given = await object_of(request, self.state.rules.max_body)
        query, rest = await asyncio.to_thread(read_query, given, self.state)
        options = read_search(rest)
        if options.explain and (reason := (await self.state.cannot()).get("explain")):
            raise UnsupportedError(reason)
        snapshot = self.state.folders.snapshot
        hits = await answer_of(self.state.engine.search(query, options, snapshot), request)
        return json_response({"object": "list", "data": [hit.row() for hit in hits]})

    async def models(self, request: Request) -> Response:
        """`/v1/models`: the set, its encoders, and what it can do."""
        engine, cannot = self.state.engine, await self.state.cannot()
        able = {
            name: cannot.get(name) or True
            for name in (*OPERATIONS, "search", "explain")
            if name != "embed"
        }
        entry = {
            "id": engine.models.name,
            "object": "model",
            "created": 0,
            "owned_by": "zeroshot",
            "models": dict(engine.names),
            "can": {name: value is True for name, value in able.items()},
            "cannot": {name: value for name, value in able.items() if value is not True},
            "captioners": dict(engine.captioners) if "caption" not in cannot else {},
        }
        return json_response({"object": "list", "data": [entry]})

    async def openapi(self, request: Request) -> Response:
        """`/openapi.json`: this API."""
        return json_response(self._document)

    async def healthz(self, request: Request) -> Response:
        """`/healthz`: whether requests are taken."""
        stopping = self.state.stopping.is_set()
        status = {"status": "stopping" if stopping else "ok"}
        return JSONResponse(status, 503 if stopping else 200)

    async def metrics(self, request: Request) -> Response:
        """`/metrics`: in Prometheus' text format."""
        kind = "text/plain; version=0.0.4"
        return PlainTextResponse(metrics_page(self.state), media_type=kind)


def json_response(value: Any) -> Response:
    """JSON as the command line writes it."""
    return Response(utf8(to_json(value)), media_type="application/json")


def _numbers(row: Any, form: str) -> str | list[float]:
    if form == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    return [as_float32(x) for x in row.tolist()]


def _only_short(given: Mapping[str, Any]) -> bool:
    """Whether the input is one short text, or none at all."""
    one = given.get("input", "")
    return not isinstance(one, list | dict) and (not isinstance(one, str) or len(one) < LABEL)


EMBEDDING_FIELDS = ("input", "model", "encoding_format", "dimensions", "modality", "user", "image")


def embedding_inputs(given: Mapping[str, Any], state: ServerState) -> list[str | Source]:
    """The texts and images of a request for embeddings.

    Raises:
        UserError: an unknown field, model or format, or an input that is neither.
        RefusedError, UnreadableImageError: as of `image_bytes`.
    """
    for name in given:
        if name not in EMBEDDING_FIELDS:
            raise unknown("field of /v1/embeddings", name, EMBEDDING_FIELDS)
    models = (state.engine.models.name, *state.engine.names.values())
    if given.get("model", models[0]) not in models:
        raise RefusedError(
            404, f"the model '{str(given['model'])[:60]}' is not served; '{models[0]}' is"
        )
    if given.get("encoding_format", "float") not in ("float", "base64"):
        raise UserError("'encoding_format' is float or base64")
    if given.get("modality", "text") not in ("text", "image"):
        raise UserError("'modality' is text or image")
    if given.get("dimensions") is not None:
        raise UserError("'dimensions': these embeddings cannot be shortened; leave it out")
    if ("input" in given) == ("image" in given):
        raise UserError("give 'input': a text, an image as data:image/jpeg;base64,..., or a list")
    wanted = {"image": given["image"]} if "image" in given else given["input"]
    listed = wanted if isinstance(wanted, list) else [wanted]
    if not 1 <= len(listed) <= INPUTS:
        raise UserError(f"'input' has {len(listed)} texts and images; from 1 to {INPUTS} are read")
    images = given.get("modality") == "image"
    return [_embedding_input(one, images, state) for one in listed]


def _embedding_input(one: object, images: bool, state: ServerState) -> str | Source:
    if isinstance(one, dict) and len(one) == 1:
        kind, value = next(iter(one.items()))
        if kind == "image":
            return Source(None, image_bytes(value, state))
        if kind == "id":
            return state.source(value)
        if kind == "text":
            return check_text("text", value)
    if not isinstance(one, str):
        raise UserError("an input is a text, a data: address, or {'image'|'text'|'id': ...}")
    if images or DATA.match(one):
        return Source(None, image_bytes(one, state))
    return check_text("input", one)


def read_query(given: Mapping[str, Any], state: ServerState) -> tuple[Query, dict[str, Any]]:
    """The terms of a search, and what else it says; errors as of `embedding_inputs`."""
    rest = dict(given)
    first = rest.pop("query", None)
    if first is None:
        raise UserError("a search needs 'query': a text, {'image': ...} or {'id': ...}")
    signed: list[tuple[object, Any]] = [(first, 1)]
    for name, sign in (("plus", 1), ("minus", -1)):
        more = rest.pop(name, [])
        signed += [(one, sign) for one in (more if isinstance(more, list) else [more])]
    if len(signed) > TERMS:
        raise UserError(f"a search has {len(signed)} terms; at most {TERMS} are read")
    terms = []
    for one, sign in signed:
        found = _embedding_input(one, False, state)
        terms.append(Term(found, sign=sign) if isinstance(found, str) else Term(None, found, sign))
    return Query(tuple(terms)), rest


class WordStream:
    """A caption as events, while it is written: what follows the text that was sent."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: Future[Any] = Future()
        self._loop = loop
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._left = False

    def written(self, text: str) -> bool:
        """Take the text so far, in the thread that writes it; False if the client has left."""
        self._left = self._left or not self._put(text)
        return not self._left

    def _put(self, text: str | None) -> bool:
        """Hand on to the server's thread; False if that has ended."""
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, text)
        except RuntimeError:
            return False
        return True

    async def events(self, asked: Asked) -> AsyncIterator[bytes]:
        """`word` for what is added, then `row`; or `error`."""
        self.future.add_done_callback(lambda _: self._put(None))
        sent = ""
        try:
            while (text := await self._next()) is not None:
                if text == "":
                    yield b": still here\n\n"
                elif text.startswith(sent) and len(text) > len(sent) and text[-1] != "\ufffd":
                    yield event("word", {"text": text[len(sent) :]})
                    sent = text
            try:
                row = row_of(self.future.result(), asked)
            except Exception as error:
                status, message = answer_to(error)
                yield event("error", {"status": status, "message": message})
                return
            caption = row["caption"] or ""
            if caption != sent and caption.startswith(sent):
                yield event("word", {"text": caption[len(sent) :]})
            yield event("row", row)
        finally:
            self._left = True
            self.future.cancel()

    async def _next(self) -> str | None:
        try:
            async with asyncio.timeout(PING_SECONDS):
                return await self._queue.get()
        except TimeoutError:
            return ""


def event(name: str, value: Any, id: object = None) -> bytes:
    """A server-sent event with JSON on one line."""
    number = b"" if id is None else f"id: {id}\n".encode()
    return number + f"event: {name}\n".encode() + b"data: " + utf8(to_json(value)) + b"\n\n"


def metrics_page(state: ServerState) -> str:
    """Counts since the start, and what is in memory now."""
    served, counts = state.served, state.engine.batcher.counts
    lines = ["# TYPE zeroshot_requests_total counter"]
    for (route, status), count in sorted(served.by_route.items()):
        lines.append(f'zeroshot_requests_total{{route="{route}",status="{status}"}} {count}')
    lines.append("# TYPE zeroshot_request_seconds histogram")
    below = 0
    for bound in (*BUCKETS, float("inf")):
        below += served.seconds[bound]
        name = "+Inf" if bound == float("inf") else f"{bound:g}"
        lines.append(f'zeroshot_request_seconds_bucket{{le="{name}"}} {below}')
    lines.append(f"zeroshot_request_seconds_sum {served.total_seconds:.6f}")
    lines.append(f"zeroshot_request_seconds_count {below}")
    progress = state.folders.progress
    gauges = {
        "queue_length": state.engine.batcher.waiting,
        "in_flight": served.in_flight,
        "images": len(state.folders.snapshot),
        "images_failed": progress.failed,
        "threads": threading.active_count(),
        "resident_bytes": resident_bytes(),
        "uptime_seconds": round(time.monotonic() - state.started, 3),
    }
    counters = {
        "batches_total": counts.batches,
        "batched_requests_total": counts.items,
        "refused_total": counts.refused,
        "cancelled_total": counts.cancelled,
        "clients_gone_total": served.gone,
        "model_seconds_total": round(counts.busy_seconds, 6),
        "images_encoded_total": state.engine.meter.images_encoded,
        "texts_encoded_total": state.engine.meter.texts_encoded,
    }
    for kind, values in (("gauge", gauges), ("counter", counters)):
        for name, value in values.items():
            lines += [f"# TYPE zeroshot_{name} {kind}", f"zeroshot_{name} {value}"]
    return "\n".join(lines) + "\n"


def resident_bytes() -> int:
    """Memory of this process; where the system does not say, the largest it had."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


async def not_found(request: Request, error: Exception) -> Response:
    """404 and 405 in the API's shape."""
    status = getattr(error, "status_code", 404)
    what = "there is no such address" if status == 404 else "this address takes other methods"
    response = error_response(status, f"{what}; /openapi.json has all")
    response.headers.update(getattr(error, "headers", None) or {})
    return response
