"""Health over HTTP."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

import pytest

from broker import BrokerError
from broker.health import LONGEST_REQUEST, respond, serve_health


def problems() -> list[str]:
    return ["not connected"]


def nothing() -> list[str]:
    return []


def parsed(response: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = response.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    headers = dict(field.split(": ", 1) for field in fields)
    return int(status.split()[1]), headers, body


@pytest.mark.parametrize(
    ("request_line", "status", "reasons"),
    [
        ("GET /live HTTP/1.1", 200, []),
        ("GET /ready HTTP/1.1", 503, ["not connected"]),
        ("GET /ready?verbose HTTP/1.0", 503, ["not connected"]),
        ("GET / HTTP/1.1", 404, ["ask for /live or /ready"]),
        ("POST /ready HTTP/1.1", 405, ["only GET and HEAD are answered"]),
        ("nonsense", 405, ["only GET and HEAD are answered"]),
        ("", 405, ["only GET and HEAD are answered"]),
    ],
)
def test_answers(request_line: str, status: int, reasons: list[str]) -> None:
    code, headers, body = parsed(respond(request_line.encode() + b"\r\n\r\n", problems))
    assert (code, json.loads(body)["reasons"]) == (status, reasons)
    assert json.loads(body)["status"] == ("ok" if status == 200 else "failing")
    assert headers["Content-Length"] == str(len(body))
    assert headers["Content-Type"] == "application/json"


def test_ready_when_nothing_is_wrong() -> None:
    assert parsed(respond(b"GET /ready HTTP/1.1\r\n\r\n", nothing))[0] == 200


def test_head_has_no_body() -> None:
    code, headers, body = parsed(respond(b"HEAD /ready HTTP/1.1\r\n\r\n", problems))
    assert (code, body) == (503, b"")
    assert int(headers["Content-Length"]) > 0


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


async def test_it_answers_on_a_port_one_client_after_the_other() -> None:
    wrong: list[str] = []
    async with serve_health("127.0.0.1", 0, lambda: wrong) as port:
        assert parsed(await ask(port, b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200
        wrong.append("the queue is gone")
        assert b"the queue is gone" in await ask(port, b"GET /ready HTTP/1.1\r\n\r\n")
    with pytest.raises(OSError, match="onnect"):
        await ask(port, b"GET /live HTTP/1.1\r\n\r\n")


async def test_a_client_that_says_too_much_is_hung_up_on() -> None:
    async with serve_health("127.0.0.1", 0, nothing) as port:
        with suppress(ConnectionResetError):
            assert await ask(port, b"GET /live HTTP/1.1\r\n" + b"a" * 3 * LONGEST_REQUEST) == b""
        assert parsed(await ask(port, b"GET /live HTTP/1.1\r\n\r\n"))[0] == 200


async def test_a_silent_client_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.health.PATIENCE", 0.02)
    async with serve_health("127.0.0.1", 0, nothing) as port:
        assert await ask(port, b"GET /live") == b""


async def test_a_port_that_is_taken_is_an_error_that_says_so() -> None:
    async with serve_health("127.0.0.1", 0, nothing) as port:
        with pytest.raises(BrokerError, match=rf"127.0.0.1:{port}.*BROKER_HEALTH_PORT"):
            async with serve_health("127.0.0.1", port, nothing):
                pass
