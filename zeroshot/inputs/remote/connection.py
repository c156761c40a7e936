"""One HTTP request to an address that is checked first, with a time limit.

A host's name is resolved once, and the connection goes to the address that was checked: a second
resolution may give another address (DNS rebinding). Proxies, cookies and `.netrc` are not used.
"""

import functools
import http.client
import io
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any

from zeroshot.inputs.remote.addresses import is_public


class ForbiddenError(Exception):
    """The address is not public."""


@dataclass(frozen=True)
class Limits:
    """Seconds to connect and without a byte while reading; `end` is a `time.monotonic()`."""

    connect: float
    silence: float
    end: float

    def left(self, at_most: float) -> float:
        """Seconds that are left for the next step; TimeoutError if there are none."""
        left = min(at_most, self.end - time.monotonic())
        if left <= 0:
            raise TimeoutError("took too long")
        return left


class _Timed(io.RawIOBase):
    """A raw file of the bytes that a socket receives within the limits."""

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        self._sock = sock
        self._limits = limits

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Receive into a buffer; the number of bytes."""
        self._sock.settimeout(self._limits.left(self._limits.silence))
        return self._sock.recv_into(buffer)

    def close(self) -> None:
        """Close it, and the socket."""
        super().close()
        self._sock.close()


class _Socket:
    """The part of a socket that `http.client` uses; it closes it before it has read the answer."""

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        self._sock = sock
        self._limits = limits
        self._being_read = False

    def sendall(self, data: bytes) -> None:
        """Send all, within the limits."""
        self._sock.settimeout(self._limits.left(self._limits.silence))
        self._sock.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """The bytes that are received."""
        self._being_read = True
        return io.BufferedReader(_Timed(self._sock, self._limits))

    def close(self) -> None:
        """Close it, unless a reader of it is open, which closes it later."""
        if not self._being_read:
            self._sock.close()


class Connection(http.client.HTTPConnection):
    """A connection for one request. Raises ForbiddenError, OSError and errors of `http.client`."""

    def __init__(
        self, host: str, port: int, *, secure: bool, limits: Limits, allow_private: bool
    ) -> None:
        super().__init__(host, port)
        self.default_port = 443 if secure else 80  # else the Host header would name it
        self._secure = secure
        self._limits = limits
        self._allow_private = allow_private

    def connect(self) -> None:
        """Connect to the first address of the host that is public and answers."""
        infos = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        public = [info for info in infos if self._allow_private or is_public(str(info[4][0]))]
        if not public:
            addresses = ", ".join(dict.fromkeys(str(info[4][0]) for info in infos))
            raise ForbiddenError(f"'{self.host}' is {addresses}")
        for number, (family, kind, protocol, _, address) in enumerate(public, 1):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(self._limits.left(self._limits.connect))
                sock.connect(address)
                if self._secure:
                    sock = _trust().wrap_socket(sock, server_hostname=self.host)
                self.sock = _Socket(sock, self._limits)
                return
            except BaseException as error:
                sock.close()
                if number == len(public) or not isinstance(error, OSError):
                    raise


@functools.cache
def _trust() -> ssl.SSLContext:
    """Certificates that the system trusts."""
    return ssl.create_default_context()
