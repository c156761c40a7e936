"""A server that starts, answers and stops; `start.serve` makes one."""

import asyncio
import contextlib
import ipaddress
import socket
import threading
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.routing import Router
from uvicorn import Config, Server

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.serving.web.api_routes import ApiRoutes, not_found
from zeroshot.serving.web.guard import Guard, ImpatientProtocol
from zeroshot.serving.web.page_routes import PageRoutes
from zeroshot.serving.web.state import ServerState

CONNECTIONS = 900
"""Open at a time; a process may often have 1024 files open."""
STOP_SECONDS = 60
"""For answers that are under way when the server stops."""


class RunningServer:
    """A server in threads of its own. It is a context manager, and stops at the end of `with`."""

    def __init__(self, state: ServerState, listener: socket.socket, cache: EmbeddingCache) -> None:
        """See `serve`."""
        self.state = state
        self._cache = cache
        self._socket = listener
        self._address = str(listener.getsockname()[0]).partition("%")[0]
        self._loop = asyncio.new_event_loop()
        guard = Guard(_application(state), state.rules)
        state.served = guard.served
        config = Config(
            guard,
            http=ImpatientProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        self._server = Server(config)
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._server.serve(sockets=[self._socket]))
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    def start(self) -> "RunningServer":
        """Take requests, and look at the folders."""
        self.state.folders.start()
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            self._thread.join(0.01)
        return self

    @property
    def token(self) -> str | None:
        """What a client sends as `Authorization: Bearer TOKEN`; None if none is needed."""
        return self.state.rules.token

    @property
    def url(self) -> str:
        """The address, without the token."""
        address, port = ipaddress.ip_address(self._address), self.state.rules.port
        if address.is_unspecified:
            address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
        return f"http://{address}:{port}" if address.version == 4 else f"http://[{address}]:{port}"

    @property
    def page(self) -> str:
        """The address of the page, with the token."""
        return self.url + (f"/?token={quote(self.token, safe='')}" if self.token else "/")

    def wait_until_indexed(self, seconds: float = 600) -> "RunningServer":
        """Return when the folders were looked at once.

        Raises:
            TimeoutError: that takes longer.
        """
        if not self.state.folders.ready.wait(seconds):
            raise TimeoutError(f"the folders are not indexed after {seconds:g} seconds")
        return self

    def close(self) -> None:
        """Take no more requests, answer those that are under way, and end all threads."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has just ended by itself
                self._loop.call_soon_threadsafe(self.state.stopping.set)
            self._server.should_exit = True
            self._thread.join()
        self._socket.close()
        self.state.folders.close()
        self.state.engine.close()
        self.state.thumbnails.close()
        self._cache.close()

    def __enter__(self) -> "RunningServer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _application(state: ServerState) -> Any:
    router = Router([*PageRoutes(state).routes(), *ApiRoutes(state).routes()])
    router.redirect_slashes = False

    async def application(scope: Any, receive: Any, send: Any) -> None:
        scope["app"] = application  # so that a route that is missing is an exception
        try:
            await router(scope, receive, send)
        except HTTPException as error:
            from starlette.requests import Request

            response = await not_found(Request(scope), error)
            await response(scope, receive, send)

    return application
