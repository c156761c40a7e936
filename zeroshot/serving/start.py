"""`zeroshot.serve`: a server for the notebook, the test, and the command."""

import secrets
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import NotAvailableError, UserError
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.model_set.model_set import ModelSet, resolve
from zeroshot.packaging.extras import how_to_install
from zeroshot.serving.engine import Engine
from zeroshot.serving.folders import ServedFolders

if TYPE_CHECKING:
    from zeroshot.serving.web.server import RunningServer

LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(
    folders: str | Path | Iterable[str | Path],
    models: str | ModelSet = "base",
    *,
    port: int = 0,
    host: str = "127.0.0.1",
    token: str | None = "",
    allow_hosts: Sequence[str] = (),
    max_upload_mb: float = 20.0,
    queue: int = 256,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | None = None,
) -> "RunningServer":
    """Serve folders of images: a page to look at, and an API beside it.

    The models are loaded, and the server answers, when this returns; the folders are indexed
    meanwhile. It runs in threads, until `close`.

    Args:
        folders: one or several.
        models: a model set, or its name.
        port: 0 for one that is free.
        host: the address to listen on. Any but this machine's own (127.0.0.1) needs a token.
        token: what clients send; empty for a new one, None for none.
        allow_hosts: names that others reach the server by, themselves or through a proxy.
        max_upload_mb: the largest image in a request, in millions of bytes.
        queue: requests that may wait; more are told to ask again.
        batch_size: images in a batch.
        cache: by default the user's. It is closed with the server.

    Raises:
        UserError: a folder that is none, a port in use, no token where one is needed.
        NotAvailableError: a model that is not here, or the extra `serve`.
    """
    try:
        from zeroshot.serving.web.guard import Rules
        from zeroshot.serving.web.server import RunningServer
        from zeroshot.serving.web.state import ServerState
    except ImportError as error:
        raise NotAvailableError(
            f"a server needs {error.name}: {how_to_install('serve')}"
        ) from error
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise UserError("a --token is of letters, digits and signs, without a space")
    local = host in LOCAL
    if not local and not token:
        raise UserError(f"--host {host} lets other machines in: give a --token of your own")
    given = [folders] if isinstance(folders, str | Path) else list(folders)
    store = EmbeddingCache() if cache is None else cache
    engine = None
    listener = _listen(host, port)
    try:
        chosen = models if isinstance(models, ModelSet) else resolve(models)
        engine = Engine(chosen, store, batch_size, queue)
        served = ServedFolders(given, engine.index)
        engine.load()
    except BaseException:
        listener.close()
        if engine is not None:
            engine.close()
        store.close()
        raise
    names = {*LOCAL, host.lower()} - {"0.0.0.0", "::"}
    rules = Rules(
        port=listener.getsockname()[1],
        token=(token or secrets.token_urlsafe(24)) if token is not None else None,
        names=frozenset(names),
        others=frozenset(name.lower().removesuffix(".") for name in allow_hosts),
        any_address=not local,
        max_upload=int(max_upload_mb * 1e6),
    )
    return RunningServer(ServerState(engine, served, rules), listener, store).start()


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: the port is in use, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        # with the protocol: without it asyncio does not turn Nagle's algorithm off, and the second
        # part of each answer waits 40 ms for an acknowledgement of the first
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(512)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UserError(
            f"cannot listen at {host} port {port} ({error.strerror}); choose another --port"
        ) from error
    return listener
