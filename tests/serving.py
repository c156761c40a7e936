"""A server of the example scenes on the pocket set, shared by the tests of one process."""

import base64
import functools
import json
import ssl
from contextlib import contextmanager
from pathlib import Path

import httpx

import zeroshot
from zeroshot.cache.embedding_cache import EmbeddingCache

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
HEART, STAR = SCENES / "1-red-heart.png", SCENES / "2-blue-star.png"
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For http: `httpx` would load all certificates for each client."""
get = functools.partial(httpx.get, verify=PLAIN)


def data_uri(data):
    if isinstance(data, Path):
        data = data.read_bytes()
    return "data:image/png;base64," + base64.b64encode(data).decode()


@contextmanager
def running(folder, cache, **options):
    """An indexed server, and a client that has its token."""
    store = EmbeddingCache(Path(cache))
    with zeroshot.serve(folder, cache=store, **{"models": "pocket", **options}) as server:
        server.wait_until_indexed()
        headers = {"authorization": f"Bearer {server.token}"} if server.token else {}
        with httpx.Client(base_url=server.url, headers=headers, timeout=60, verify=PLAIN) as client:
            yield server, client


def events(response):
    """The events of a stream: name and value."""
    for block in response.read().decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "event" in lines:
            yield lines["event"], json.loads(lines["data"])


def sentence(response):
    """The message of an error: one sentence."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    assert error["message"]
    assert len(error["message"]) < 600
    return error["message"]
