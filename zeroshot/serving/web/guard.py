"""Who may ask, and how much: what stands between the network and the routes.

A page of any site can make a browser ask this server. So the `Host` must be a name that the server
is known by (or a rebound DNS name would do), a foreign `Origin` and cross-site requests are
refused, no answer has a CORS header, and a token is needed that the browser keeps in a strict
cookie. Bodies are counted while they stream, and a client that is slow to send is let go.
"""

import asyncio
import hmac
import ipaddress
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from zeroshot.errors import (
    NotAvailableError,
    OutputError,
    UnreadableImageError,
    UnsupportedError,
    UserError,
    ZeroshotError,
)
from zeroshot.serving.batcher import BusyError, StoppingError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; img-src 'self' blob:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
OPEN = ("/healthz", "/page.css", "/page.js", "/icon.svg", "/favicon.ico")
"""What needs no token: nothing of the user's is in it."""
HEAD_SECONDS = 15.0
"""For the head of a request."""
BODY_SECONDS = 60.0
"""For a body."""
IN_FLIGHT = 600
"""Requests that are worked on at a time, whatever they ask for."""
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
"""Upper bounds of the histogram of seconds in /metrics."""

NO_TOKEN = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>zeroshot</title>
<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="/page.css"></head>
<body class="alone"><main><h1>zeroshot</h1><p>This address needs the token that
<code>zeroshot serve</code> printed when it started: open the whole address.</p></main></body>
</html>
"""


class RefusedError(ZeroshotError):
    """A request that is answered with a status of its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def status_of(error: Exception) -> int:
    """The status of an error of the library."""
    if isinstance(error, RefusedError):
        return error.status
    kinds: tuple[tuple[type[Exception], int], ...] = (
        (BusyError, 503),
        (StoppingError, 503),
        (UnsupportedError, 501),
        (NotAvailableError, 501),
        (UnreadableImageError, 415),
        (UserError, 400),
        (OutputError, 507),
    )
    return next((status for kind, status in kinds if isinstance(error, kind)), 500)


def error_response(status: int, message: str) -> Response:
    """An error in OpenAI's shape, with one sentence."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    headers = {"retry-after": "1"} if status == 503 else {}
    return JSONResponse({"error": error}, status, headers)


@dataclass(frozen=True)
class Rules:
    """Who may ask, and how much."""

    port: int
    token: str | None
    """None: anybody on this machine may ask."""
    names: frozenset[str] = frozenset({"127.0.0.1", "localhost", "::1"})
    """Names that the server is known by, without the port."""
    any_address: bool = False
    """Whether a numeric address is such a name too, for a server that others reach."""
    max_upload: int = 20_000_000
    """Bytes of an image."""

    @property
    def cookie(self) -> str:
        """Cookies are shared by the ports of a host, so the name has the port."""
        return f"zeroshot-{self.port}"

    @property
    def max_body(self) -> int:
        """Bytes of a body: an image in base64, and some more."""
        return self.max_upload * 4 // 3 + 100_000

    def refusal(self, scope: Scope) -> RefusedError | None:
        """Why a request is refused; None if it is not."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._knows(host):
            return RefusedError(421, "the server is not known by this name; see --allow-host")
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"http://{host.lower()}":
            return RefusedError(403, "requests of other sites are refused")
        site = headers.get("sec-fetch-site", "none")
        to_page = headers.get("sec-fetch-mode") == "navigate" and scope["path"] == "/"
        if site not in ("none", "same-origin") and not (to_page and scope["method"] == "GET"):
            return RefusedError(403, "requests of other sites are refused")
        if self.token is not None and scope["path"] not in OPEN and not self._has_token(headers):
            return RefusedError(401, "a token is needed: Authorization: Bearer TOKEN")
        return None

    def _knows(self, host: str) -> bool:
        name, colon, port = host.rpartition(":")
        if not colon or "]" in port:
            name, port = host, "80"
        if port != str(self.port):
            return False
        name = name.removeprefix("[").removesuffix("]").lower().removesuffix(".")
        if name in self.names:
            return True
        try:
            return self.any_address and bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def _has_token(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.is_token(given.strip()):
            return True
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        return self.cookie in cookies and self.is_token(cookies[self.cookie].value)

    def is_token(self, given: str) -> bool:
        """Whether this is the token; takes as long for any other."""
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())


@dataclass
class Served:
    """What was answered, for /metrics."""

    by_route: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: Counter[float] = field(default_factory=Counter)
    total_seconds: float = 0.0
    in_flight: int = 0
    gone: int = 0
    """Clients that left before their answer."""

    def add(self, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self.by_route[route, status] += 1
        self.total_seconds += seconds
        self.seconds[next((b for b in BUCKETS if seconds <= b), float("inf"))] += 1


class Guard:
    """The ASGI application that asks `Rules` first, and makes every error one sentence."""

    def __init__(self, app: App, rules: Rules, report: Callable[[Exception], None]) -> None:
        self.app = app
        self.rules = rules
        self.report = report
        """Takes an error that is no user's."""
        self.served = Served()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served")
        begin, status, started = time.perf_counter(), 499, False

        async def guarded(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        self.served.in_flight += 1
        try:
            await self._answer(scope, receive, guarded)
        except ClientDisconnect:
            self.served.gone += 1
        except Exception as error:
            if not isinstance(error, ZeroshotError):
                self.report(error)
            if started:
                raise
            code = status_of(error)
            message = str(error) if code != 500 else "the server failed; its log says why"
            await error_response(code, message)(scope, receive, guarded)
        finally:
            self.served.in_flight -= 1
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self.served.add(path, status, time.perf_counter() - begin)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.served.in_flight > IN_FLIGHT:
            raise BusyError(f"{IN_FLIGHT} requests are being answered; ask again in a second")
        refused = self.rules.refusal(scope)
        at_page = scope["path"] == "/" and scope["method"] in ("GET", "HEAD")
        if refused is not None and refused.status == 401 and at_page:
            await self._sign_in(scope)(scope, receive, send)
        elif refused is not None:
            raise refused
        elif at_page and b"token=" in scope["query_string"]:
            await self._sign_in(scope)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _sign_in(self, scope: Scope) -> Response:
        """Put the token of the address into a cookie, and go to the address without it."""
        fields = parse_qs(scope["query_string"].decode("latin-1"))
        given = fields.pop("token", [""])[0]
        if self.rules.token is not None and not self.rules.is_token(given):
            return HTMLResponse(NO_TOKEN, 401)
        rest = urlencode(fields, doseq=True)
        response = RedirectResponse(f"/?{rest}" if rest else "/", 303)
        if self.rules.token is not None:
            response.set_cookie(self.rules.cookie, given, httponly=True, samesite="strict")
        return response


async def body_of(request: Request, most: int) -> bytes:
    """The body, counted while it streams.

    Raises:
        RefusedError: it is larger than `most` bytes, or takes longer than `BODY_SECONDS`.
    """
    too_large = RefusedError(413, f"the body is larger than {most} bytes; see --max-upload-mb")
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdecimal() and int(declared[:20]) > most:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise RefusedError(408, f"the body took longer than {BODY_SECONDS:g} seconds") from None
    return b"".join(parts)


class ImpatientProtocol(H11Protocol):
    """HTTP that closes a connection whose request does not come."""

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def handle_events(self) -> None:
        """Once a head is there, `body_of` and the keep-alive timeout are responsible."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._deadline.cancel()

    def data_received(self, data: bytes) -> None:
        """The beginning of a further request has its time too."""
        super().data_received(data)
        waits = self.cycle is not None and self.cycle.response_complete
        if waits and self._deadline.cancelled() and not self.transport.is_closing():
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave no timer behind."""
        self._deadline.cancel()
        super().connection_lost(exc)

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
