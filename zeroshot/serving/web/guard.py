"""Who may ask, and how much: what stands between the network and the routes.

A page of any site can make a browser ask this server. So the `Host` must be a name that the server
is known by (or a rebound DNS name would do), a foreign `Origin` and cross-site requests are
refused, no answer has a CORS header, and a token is needed that the browser keeps in a strict
cookie. Bodies are counted while they stream, and a client that is slow to send is let go.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, RedirectResponse, Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from zeroshot.serving.batcher import BusyError
from zeroshot.serving.web.bodies import ROOM, Bodies, BodyRoom
from zeroshot.serving.web.refusals import RefusedError, answer_to, error_response

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
OPEN = ("/healthz", "/page.css", "/page.js", "/icon.svg", "/tick.svg", "/favicon.ico")
"""What needs no token: nothing of the user's is in it."""
HEAD_SECONDS = 15.0
"""For the head of a request."""
READ_SECONDS = 60.0
"""For a client to read some of the answer that waits for it."""
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


@dataclass(frozen=True)
class Rules:
    """Who may ask, and how much."""

    port: int
    token: str | None
    """None: anybody on this machine may ask."""
    names: frozenset[str] = frozenset({"127.0.0.1", "localhost", "::1"})
    """Names that this machine knows the server by, without the port."""
    others: frozenset[str] = frozenset()
    """Names that others reach it by, at any port: a proxy may stand in front of it."""
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
        if not self._is_own(headers.get("origin"), host.lower()):
            return RefusedError(403, "requests of other sites are refused")
        site = headers.get("sec-fetch-site", "none")
        to_page = headers.get("sec-fetch-mode") == "navigate" and scope["path"] == "/"
        if site not in ("none", "same-origin") and not (to_page and scope["method"] == "GET"):
            return RefusedError(403, "requests of other sites are refused")
        if self.token is not None and scope["path"] not in OPEN and not self._has_token(headers):
            return RefusedError(401, "a token is needed: Authorization: Bearer TOKEN")
        return None

    def _knows(self, host: str) -> bool:
        name, port = _split(host)
        if name in self.others:
            return True
        if port != str(self.port):
            return False
        if name in self.names:
            return True
        try:
            return self.any_address and not ipaddress.ip_address(name).is_unspecified
        except ValueError:
            return False

    def _is_own(self, origin: str | None, host: str) -> bool:
        """Whether a request comes from the server's own page; a proxy may speak TLS."""
        own = [f"http://{host}"] + [f"https://{host}"] * (_split(host)[0] in self.others)
        return origin is None or origin.lower() in own

    def _has_token(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.is_token(given.strip()):
            return True
        # by hand: the parser of http.cookies reads none, if another program's is not well-formed
        cookies = (part.strip() for part in headers.get("cookie", "").split(";"))
        own = f"{self.cookie}="
        return any(
            _same(part.removeprefix(own), self.ticket) for part in cookies if part.startswith(own)
        )

    @property
    def ticket(self) -> str:
        """What the cookie has instead of the token, which may be of any characters."""
        return hashlib.sha256(f"zeroshot {self.token}".encode()).hexdigest()

    def is_token(self, given: str) -> bool:
        """Whether this is the token; takes as long for any other."""
        return self.token is not None and _same(given, self.token)


def _same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode(), secret.encode())


def _split(host: str) -> tuple[str, str]:
    """Name and port of a `Host`, in lower case."""
    name, colon, port = host.rpartition(":")
    if not colon or "]" in port:
        name, port = host, "80"
    return name.removeprefix("[").removesuffix("]").lower().removesuffix("."), port


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

    def __init__(self, app: App, rules: Rules) -> None:
        self.app = app
        self.rules = rules
        self.served = Served()
        self.room = BodyRoom(max(ROOM, 2 * rules.max_body))

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
        scope["bodies"] = bodies = Bodies(self.room)
        try:
            await self._answer(scope, receive, guarded)
        except ClientDisconnect:
            self.served.gone += 1
        except Exception as error:
            code, message = answer_to(error)
            if started:
                raise
            await error_response(code, message)(scope, receive, guarded)
        finally:
            bodies.give_back()
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
            response.set_cookie(
                self.rules.cookie, self.rules.ticket, httponly=True, samesite="strict"
            )
        return response


class ImpatientProtocol(H11Protocol):
    """HTTP that closes a connection whose request does not come, or whose answer is not read."""

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._unread = 0
        self._reading: asyncio.TimerHandle | None = None
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
        self._stop_waiting()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client has to read now."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """It did."""
        self._stop_waiting()
        super().resume_writing()

    def _wait_for_reader(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        self._reading = self.loop.call_later(READ_SECONDS, self._check_reader)

    def _check_reader(self) -> None:
        """As long as it reads, however slowly, it may go on."""
        if self.transport.get_write_buffer_size() < self._unread:
            self._wait_for_reader()
        else:
            self.transport.abort()  # `close` would wait for the reader

    def _stop_waiting(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
