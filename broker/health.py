"""A service's health over HTTP, for container engines and load balancers: two questions, answered honestly.

``GET /live``: is the process worth keeping? ``GET /ready``: is it doing its work right now? 200 for yes, 503 for no,
with the reasons as JSON either way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus

from broker.errors import BrokerError

LONGEST_REQUEST = 8192
PATIENCE = 5.0
"""Seconds a client has to send its request."""


@contextlib.asynccontextmanager
async def serve_health(host: str, port: int, problems: Callable[[], list[str]]) -> AsyncIterator[int]:
    """Answer on a port for as long as the context lasts, and yield the port (0 asks for a free one).

    Raises:
        BrokerError: the port is taken or may not be used.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.LimitOverrunError, asyncio.IncompleteReadError):
            async with asyncio.timeout(PATIENCE):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(respond(request, problems))
                await writer.drain()
        writer.close()

    try:
        server = await asyncio.start_server(answer, host, port, limit=LONGEST_REQUEST)
    except OSError as error:
        raise BrokerError(
            f"Health cannot be served on {host}:{port}: {error.strerror}. Set BROKER_HEALTH_PORT to a free port."
        ) from None
    async with server:
        yield server.sockets[0].getsockname()[1]


def respond(request: bytes, problems: Callable[[], list[str]]) -> bytes:
    """The answer to one HTTP request."""
    method, _, rest = request.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if method not in (b"GET", b"HEAD"):
        return _response(HTTPStatus.METHOD_NOT_ALLOWED, ["only GET and HEAD are answered"], with_body=True)
    reasons = problems() if path == b"/ready" else []
    status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
    if path not in (b"/live", b"/ready"):
        status, reasons = HTTPStatus.NOT_FOUND, ["ask for /live or /ready"]
    return _response(status, reasons, with_body=method == b"GET")


def _response(status: HTTPStatus, reasons: list[str], *, with_body: bool) -> bytes:
    body = json.dumps({"status": "ok" if status is HTTPStatus.OK else "failing", "reasons": reasons}).encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
