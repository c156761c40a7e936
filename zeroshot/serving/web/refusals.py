"""Errors as answers: each has a status, and one sentence that tells no secret of the server."""

import sys
import traceback

from starlette.responses import JSONResponse, Response

from zeroshot.errors import (
    NotAvailableError,
    OutputError,
    UnreadableImageError,
    UnsupportedError,
    UserError,
    ZeroshotError,
)
from zeroshot.serving.batcher import BusyError, StoppingError

FAULT = "the server failed; its log says why"
LONGEST = 1000
"""Characters of a message; what a client sent may be part of it."""


class RefusedError(ZeroshotError):
    """A request that is answered with a status of its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


KINDS: tuple[tuple[type[Exception], int], ...] = (
    (BusyError, 503),
    (StoppingError, 503),
    (UnsupportedError, 501),
    (NotAvailableError, 501),
    (UnreadableImageError, 415),
    (UserError, 400),
    (OutputError, 507),
)


def answer_to(error: Exception) -> tuple[int, str]:
    """The status and the sentence for an error; a fault of the server goes to its log instead."""
    if isinstance(error, RefusedError):
        return error.status, str(error)
    status = next((status for kind, status in KINDS if isinstance(error, kind)), 500)
    if not isinstance(error, ZeroshotError):
        print("".join(traceback.format_exception(error)), file=sys.stderr, flush=True)
    return status, FAULT if status == 500 else one_line(str(error))


def one_line(text: str) -> str:
    """A text on one line: names that a client sends may have line breaks, and no end."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def error_response(status: int, message: str) -> Response:
    """An error in OpenAI's shape, with one sentence."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": one_line(message), "type": kind, "param": None, "code": None}
    headers = {"retry-after": "1"} if status == 503 else {}
    return JSONResponse({"error": error}, status, headers)
