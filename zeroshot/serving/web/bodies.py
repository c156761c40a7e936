"""The bodies of requests: counted while they stream, together and alone; and parsed as JSON.

The size of a body does not bound the memory that its values take: 26 MB of `[],[],` are a
gigabyte. So the values are counted before they are made.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from zeroshot.errors import UserError
from zeroshot.serving.batcher import BusyError
from zeroshot.serving.web.refusals import RefusedError

BODY_SECONDS = 60.0
"""For a body."""
ROOM = 256_000_000
"""Bytes of the bodies of all requests that are being answered; but room for two of the largest."""
LARGE = 1 << 18
"""Bytes that are parsed in a thread, so that other requests need not wait."""
MOST_VALUES = 1_000_000
"""In a body of JSON."""
DEEPEST = 16
"""Lists and objects of JSON that may be in one another."""


@dataclass
class BodyRoom:
    """Bytes that the bodies of all requests take together."""

    size: int
    taken: int = 0


class Bodies:
    """What the bodies of one request take, of the room of all."""

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self._size = 0

    def take(self, size: int) -> None:
        """Take room for some bytes.

        Raises:
            BusyError: there is none.
        """
        if self._room.taken + size > self._room.size:
            raise BusyError("too many large requests are being answered; ask again in a second")
        self._room.taken += size
        self._size += size

    def give_back(self) -> None:
        """Let others have it, when the request is answered."""
        self._room.taken -= self._size
        self._size = 0


async def body_of(request: Request, most: int) -> bytes:
    """The body, counted while it streams.

    Raises:
        RefusedError: it is larger than `most` bytes, or takes longer than `BODY_SECONDS`.
        BusyError: the bodies of other requests leave no room for it.
    """
    too_large = RefusedError(413, f"the body is larger than {most} bytes; see --max-upload-mb")
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdecimal() and int(declared[:20]) > most:
        raise too_large
    room: Bodies = request.scope["bodies"]
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                room.take(len(part))
                parts.append(part)
    except TimeoutError:
        raise RefusedError(408, f"the body took longer than {BODY_SECONDS:g} seconds") from None
    return b"".join(parts)


async def object_of(request: Request, most: int) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        UserError: it is none.
        RefusedError, BusyError: as of `body_of`; or it has too many values.
    """
    body = await body_of(request, most)
    if len(body) > LARGE:
        return await asyncio.to_thread(_parsed, body)
    return _parsed(body)


def _parsed(body: bytes) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise ValueError(name)

    if sum(map(body.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise RefusedError(413, f"the JSON has more than {MOST_VALUES} values")
    try:
        given = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError):  # also bytes that are no UTF-8
        raise UserError("the body is no valid JSON; expected an object") from None
    if not isinstance(given, dict):
        raise UserError("the body is a JSON object, not a list or a text")
    if _is_deep(given):
        raise UserError(f"the JSON has lists and objects more than {DEEPEST} deep")
    return given


def _is_deep(value: list[Any] | dict[str, Any]) -> bool:
    """Whether more than `DEEPEST` lists and objects are in one another."""
    level = [value]
    for _ in range(DEEPEST):
        inside = (x for one in level for x in (one.values() if isinstance(one, dict) else one))
        level = [x for x in inside if isinstance(x, list | dict)]
        if not level:
            return False
    return True
