"""Images behind http and https addresses, fetched with as little trust as possible.

Every address that a URL or a redirect leads to must be public (`addresses`). A fetch ends at its
time-out, however slowly the server answers, and at its size limit, whatever size the server states.
A request reveals nothing about this machine but the name of this package.
"""

import http
import http.client
import random
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from zeroshot.errors import UnreadableImageError
from zeroshot.inputs.remote.connection import Connection, ForbiddenError, Limits
from zeroshot.inputs.remote.public_names import public

REDIRECTS = 5
TRIES = 3
"""Number of attempts if a server is busy or fails, or a connection breaks."""
BACKOFF = 0.5
"""Seconds before the second attempt. Each further wait is twice as long; all are randomized."""
_OWN = random.Random()
"""Not the generator of the process, which a user may have seeded, and which threads share."""
CHUNK = 1 << 16
AGAIN = (429, 500, 502, 503, 504)
ELSEWHERE = (301, 302, 303, 307, 308)
_PLAIN = "%/:?@!$&'()*+,;=~-._[]"
"""Characters of a path or a query that are not escaped."""
HEADERS = {"User-Agent": "zeroshot", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}


@dataclass(frozen=True)
class Fetch:
    """How URLs are fetched."""

    timeout: float = 30.0
    """Seconds for one URL, including all redirects and attempts."""
    connect: float = 10.0
    """Seconds until the connection must be there."""
    silence: float = 10.0
    """Seconds that a server may send nothing."""
    max_bytes: int = 64 << 20
    allow_private: bool = False
    """Fetch from addresses of this machine and of private networks, too."""
    offline: bool = False
    """Fetch nothing."""


class _TemporaryError(Exception):
    """A failure that may not recur. `wait` is the pause in seconds that the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Url:
    """The bytes of an image behind a URL."""

    url: str
    fetch: Fetch

    @property
    def stamp(self) -> str | None:
        """None: only the server knows the state, and a request takes as long as a fetch."""
        return None

    def read(self) -> bytes:
        """The bytes; UnreadableImageError with the reason."""
        if self.fetch.offline:
            raise UnreadableImageError("a URL needs the network (--offline)")
        end = time.monotonic() + self.fetch.timeout
        waits = _waits()
        while True:
            try:
                return _follow(self.url, self.fetch, end)
            except UnreadableImageError as error:
                raise UnreadableImageError(public(str(error))) from None
            except _TemporaryError as error:
                again = time.monotonic() + max(error.wait, next(waits, self.fetch.timeout))
                if again >= end:
                    raise UnreadableImageError(str(error)) from None
            time.sleep(max(0.0, again - time.monotonic()))


def _waits() -> Iterator[float]:
    """Seconds before each further attempt, randomized so that clients do not return together."""
    for number in range(TRIES - 1):
        yield BACKOFF * 2**number * (1 + _OWN.random())


def _follow(url: str, fetch: Fetch, end: float) -> bytes:
    """The bytes at a URL or where it redirects to."""
    for _ in range(REDIRECTS + 1):
        data, elsewhere = _get(_parsed(url), fetch, end)
        if elsewhere is None:
            return data
        url = urljoin(url, elsewhere)
    raise UnreadableImageError(f"more than {REDIRECTS} redirects")


def _parsed(url: str) -> SplitResult:
    """The parts of a URL that may be fetched."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname)
        parts.port  # noqa: B018  raises for what is no number
    except ValueError as error:
        why = "" if "@" in url else f": {error}"  # which may quote a password
        raise UnreadableImageError(f"no valid URL{why}") from None
    if not known:
        raise UnreadableImageError(f"leads to '{url:.80}', which is no http or https address")
    if parts.username is not None:
        raise UnreadableImageError("a URL with a user name or a password, which are never sent")
    return parts


def _get(parts: SplitResult, fetch: Fetch, end: float) -> tuple[bytes, str | None]:
    """The bytes of one answer, or the address that it redirects to."""
    secure = parts.scheme == "https"
    limits = Limits(fetch.connect, fetch.silence, end)
    target = quote(parts.path or "/", safe=_PLAIN) + ("?" if parts.query else "")
    connection = None
    try:
        connection = Connection(
            (parts.hostname or "").encode("idna").decode("ascii"),
            parts.port or (443 if secure else 80),
            secure=secure,
            limits=limits,
            allow_private=fetch.allow_private,
        )
        connection.request("GET", target + quote(parts.query, safe=_PLAIN), headers=HEADERS)
        with connection.getresponse() as answer:
            return _content(answer, fetch.max_bytes)
    except UnreadableImageError:
        raise
    except ForbiddenError as error:
        raise UnreadableImageError(
            f"{error}, no public address; --allow-private-urls fetches from such as well"
        ) from None
    except ssl.SSLCertVerificationError as error:
        raise UnreadableImageError(
            f"its certificate is not trusted: {error.verify_message}"
        ) from None
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise _TemporaryError(f"'{parts.hostname}' is not resolved: {error.strerror}") from None
        raise UnreadableImageError(f"no host '{parts.hostname}'") from None
    except TimeoutError:
        waited = "too slow" if time.monotonic() < end else f"not there after {fetch.timeout:g} s"
        raise _TemporaryError(f"'{parts.hostname}': {waited}") from None
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, http.client.InvalidURL):
            raise UnreadableImageError(f"no valid URL: {error}") from None
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise _TemporaryError(f"'{parts.hostname}': {reason}") from None
    except ValueError as error:  # a host name that is none
        raise UnreadableImageError(f"no valid URL: {error}") from None
    finally:
        if connection is not None:
            connection.close()


def _content(answer: http.client.HTTPResponse, max_bytes: int) -> tuple[bytes, str | None]:
    """As `_get`, from an answer of which the headers have been read."""
    status, length = answer.status, answer.length
    if status in ELSEWHERE:
        address = answer.headers.get("Location")
        if not address:
            raise UnreadableImageError(f"HTTP {status} without an address to go to")
        return b"", address
    if status != 200:
        known = http.HTTPStatus(status).phrase if status in list(http.HTTPStatus) else ""
        reason = f"HTTP {status} {known}".rstrip()
        if status in AGAIN:
            wait = answer.headers.get("Retry-After", "")
            raise _TemporaryError(
                reason, float(wait) if wait.isascii() and wait.isdecimal() else 0.0
            )
        raise UnreadableImageError(reason)
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise UnreadableImageError(f"the server sent {encoding[:40]!r}, which was not requested")
    too_large = f"larger than {max_bytes / (1 << 20):g} MiB (--url-max-mb)"
    if length is not None and length > max_bytes:
        raise UnreadableImageError(too_large)
    data = bytearray()
    while chunk := answer.read(CHUNK):
        data += chunk
        if len(data) > max_bytes:
            raise UnreadableImageError(too_large)
    if length is not None and len(data) < length:
        raise _TemporaryError(f"cut off: {len(data)} of {length} bytes came")
    return bytes(data), None
