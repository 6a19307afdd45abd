"""What comes from RabbitMQ's side is rubbish, or cut anywhere: a clear end of that connection, and a new one."""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker import Service
from tests.conformance.worlds import World
from tests.faults.proxy import Proxy
from tests.parcels import ParcelWeighed, weighed
from tests.waiting import until

ACK = 60 << 16 | 80
DELIVER = 60 << 16 | 60
RETURN = 60 << 16 | 50


def frame(kind: int, channel: int, payload: bytes, *, size: int | None = None, end: int = 0xCE) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload) if size is None else size) + payload + bytes((end,))


def confirm(tag: int) -> bytes:
    return frame(1, 1, struct.pack(">IQB", ACK, tag, 1))


RUBBISH = {
    "bytes of another protocol": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "a frame with another end": frame(1, 1, struct.pack(">IQB", ACK, 1, 0), end=0),
    "a frame larger than agreed": frame(3, 1, b"x", size=2**32 - 1),
    "a frame that says it is shorter than it is": frame(1, 1, struct.pack(">IQB", ACK, 1, 0), size=5),
    "a method cut short": frame(1, 1, b"\x00\x3c"),
    "a confirm of what was never published": confirm(2**63),
    "a confirm of publish 0": confirm(0),
    "a body without a delivery": frame(3, 1, b"x" * 100),
    "a delivery whose names lie about their lengths": frame(1, 1, struct.pack(">I", DELIVER) + b"\xff" * 30),
    "a return of what was never published": frame(1, 1, struct.pack(">IH", RETURN, 312) + b"\x00\x00\x00")
    + frame(2, 1, struct.pack(">HHQH", 60, 0, 0, 0)),
    "content of an absurd size": frame(1, 1, struct.pack(">IH", RETURN, 312) + b"\x00\x00\x00")
    + frame(2, 1, struct.pack(">HHQH", 60, 0, 2**63, 0)),
    "a method that nobody knows": frame(1, 0, struct.pack(">HH", 999, 999)),
    "a frame of a type that nobody knows": frame(77, 0, b"?"),
    "random bytes": bytes(range(255, 0, -1)) * 10,
}


@pytest.fixture
async def proxy(vhost_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(vhost_url) as made:
        yield made


@pytest.fixture
async def far(proxy: Proxy, _impatient: None) -> AsyncIterator[World]:
    async with World(proxy.url) as made:
        yield made


def packing() -> tuple[Service, set[int]]:
    service, packed = Service("packing"), set[int]()

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> None:
        packed.add(event.grams)

    return service, packed


@pytest.mark.parametrize("what", RUBBISH)
async def test_rubbish_ends_the_connection_with_a_clear_error_and_the_next_one_works(
    what: str, far: World, proxy: Proxy, lines: list[dict[str, Any]]
) -> None:
    service, packed = packing()
    broker = await far.broker(publish_timeout=20)
    async with far.serve(service):
        await broker.publish(weighed(1))
        await until(lambda: 1 in packed)

        publishing = asyncio.create_task(broker.publish_many(weighed(n) for n in range(2, 1000)))
        await until(lambda: len(packed) > 1, every=0)
        proxy.inject(RUBBISH[what])
        await publishing

        await until(lambda: packed == set(range(1, 1000)))
        ended = [line for line in lines if line["event"] == "disconnected"]
        assert ended, "both connections were sent rubbish"
        assert all(re.search("sent what is not AMQP: a |Could not unmarshal", line["error"]) for line in ended)


async def test_frames_cut_at_every_byte_are_read_all_the_same(
    far: World, proxy: Proxy, lines: list[dict[str, Any]]
) -> None:
    service, packed = packing()
    broker = await far.broker(publish_timeout=20)
    async with far.serve(service):
        proxy.crumble()
        await broker.publish_many(weighed(n) for n in range(50))
        await until(lambda: packed == set(range(50)))
    assert not [line for line in lines if line["event"] == "disconnected"]


async def test_a_frame_whose_rest_never_comes_is_noticed_though_heartbeats_come(
    far: World, proxy: Proxy, lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.rabbitmq.link.HEARTBEAT", 2)
    monkeypatch.setattr("broker.rabbitmq.link.SILENCE", 4)
    service, packed = packing()
    broker = await far.broker(publish_timeout=20)
    async with far.serve(service):
        await broker.publish(weighed(1))
        await until(lambda: 1 in packed)

        proxy.inject(frame(3, 1, b"", size=100_000))
        await broker.publish(weighed(2))

        await until(lambda: packed == {1, 2})
        ended = [line["error"] for line in lines if line["event"] == "disconnected"]
        assert ended
        assert all("sent half a frame or half a message, and no more" in error for error in ended), ended
