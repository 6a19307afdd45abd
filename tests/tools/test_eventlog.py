"""The event log, read: nothing lost, nothing twice, and ended where it was to end, whatever lies in it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from broker import ConnectionFailed, ContractError, Malformed
from broker.eventlog import Entry, EventLog, Span, open_log
from broker.rabbitmq import RabbitMQ
from broker.topology import Binding, Queue, Topology
from tests.conformance.test_rabbitmq_hostile import HOSTILE
from tests.conformance.worlds import World
from tests.fuzz.wire import Raw, connected
from tests.parcels import message, weighed
from tests.waiting import until

SMALL_LOG = Topology(
    queues=(
        Queue(
            "events.log",
            {"x-queue-type": "stream", "x-max-length-bytes": 400_000, "x-stream-max-segment-size-bytes": 100_000},
        ),
    ),
    bindings=(Binding("events", "events.log", "#"),),
)


@pytest.fixture
async def log(world: World) -> AsyncIterator[EventLog]:
    """The log of a RabbitMQ where nothing has happened but that somebody declared it."""
    await world.broker()
    async with open_log(world.settings()) as opened:
        yield opened


async def publish(world: World, count: int) -> list[UUID]:
    broker = await world.broker()
    return await broker.publish_many(weighed(number) for number in range(count))


async def read(log: EventLog, begin: int | str | datetime = "first", **rest: int) -> list[Entry]:
    async with asyncio.timeout(20), aclosing(log.read(begin, **rest)) as entries:
        return [entry async for entry in entries]


def ids(entries: list[Entry]) -> list[UUID]:
    return [entry.envelope.id for entry in entries]


def numbers(entries: list[Entry]) -> list[int | None]:
    return [entry.offset for entry in entries]


async def test_an_empty_log_is_read_at_once(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.eventlog.EMPTY", 0.2)
    assert await log.span() == Span(0, 0)
    for begin in ("first", "next", 0, 7, datetime.now(UTC)):
        assert await log.place(begin) == 0
        assert await read(log, begin, end=0) == []


async def test_it_is_read_from_each_place_to_each_end(world: World, log: EventLog) -> None:
    published = await publish(world, 30)
    assert await log.span() == Span(0, 30)
    assert ids(await read(log, end=30)) == published
    for begin, end in ((0, 30), (0, 1), (7, 7), (7, 8), (7, 30), (29, 30), (30, 30), (99, 30)):
        assert ids(await read(log, begin, end=end)) == published[begin:end]
    assert [await log.place(begin) for begin in ("first", 0, 7, 30, 99, "next")] == [0, 0, 7, 30, 30, 30]
    assert numbers(await read(log, 3, end=9, in_hand=1)) == [3, 4, 5, 6, 7, 8]


async def test_a_time_is_when_it_was_stored_to_a_second(world: World, log: EventLog) -> None:
    broker = await world.broker()
    await broker.publish(weighed())
    await asyncio.sleep(1.1 - datetime.now(UTC).microsecond / 1e6)  # into the next second
    at = datetime.now(UTC)
    late = await broker.publish(weighed())
    assert [await log.place(it) for it in (at - timedelta(days=9), at, at + timedelta(minutes=5))] == [0, 1, 2]
    assert await log.place(datetime.fromtimestamp(0, UTC)) == 0
    assert ids(await read(log, at, end=2)) == [late]
    assert await read(log, at + timedelta(minutes=5), end=2) == []


async def test_a_truncated_log_begins_where_it_begins(world: World) -> None:
    await world.transport(declare=SMALL_LOG, log=False)
    published: list[UUID] = []
    async with open_log(world.settings()) as log:

        async def truncated() -> Span | None:
            published.extend(await publish(world, 300))
            span = await log.span()
            return span if span.first > 500 else None

        span = await until(truncated)
        entries = await read(log, end=span.end)
        assert (numbers(entries)[0], numbers(entries)[-1]) == (span.first, span.end - 1)
        assert ids(entries) == published[-len(entries) :]
        assert span.end > len(published), "the beginning of a segment takes a number"
        assert ids(await read(log, 0, end=span.end)) == ids(entries), "what is gone is passed over"
        assert await log.place(0) == span.first
        assert await log.time_at(span.first) == entries[0].envelope.time
        assert await log.time_at(0) is None


def cut(log: EventLog) -> None:
    """Lose the connection that reads."""
    transport = log._transport
    assert isinstance(transport, RabbitMQ)
    transport._consuming.sockets.abort()


@pytest.mark.parametrize("direct", [True, False], ids=["own frames", "aio-pika"])
async def test_a_reconnect_in_the_middle_loses_and_doubles_nothing(direct: bool, world: World) -> None:
    published = await publish(world, 5000)
    found: list[UUID] = []
    async with open_log(world.settings(direct=direct)) as log:
        end = (await log.span()).end
        async with aclosing(log.read("first", end=end)) as entries:
            async for entry in entries:
                found.append(entry.envelope.id)
                if len(found) in (10, 2500, 4990):
                    cut(log)
    assert found == published


async def test_whoever_follows_misses_nothing_before_the_first_message(
    world: World, log: EventLog, lines: list[dict[str, Any]]
) -> None:
    await publish(world, 3)
    broker = await world.broker()
    found: list[UUID] = []

    async def follow() -> None:
        async with aclosing(log.read("next")) as entries:
            async for entry in entries:
                found.append(entry.envelope.id)

    following = asyncio.create_task(follow())
    await until(lambda: any(line["event"] == "consuming" for line in lines))
    cut(log)
    published = [await broker.publish(weighed(number)) for number in range(20)]
    await until(lambda: len(found) >= len(published))
    following.cancel()
    assert found == published


async def test_it_ends_where_it_was_to_end_while_more_comes(world: World, log: EventLog) -> None:
    published = await publish(world, 2000)
    end = (await log.span()).end
    more = asyncio.create_task(publish(world, 2000))
    assert ids(await read(log, end=end)) == published
    await more


async def test_what_anybody_sends_does_not_end_it(world: World, log: EventLog, vhost_url: str) -> None:
    """What cannot even be decoded has its number, too: as the last message, and where a connection breaks."""
    sound = await publish(world, 1)
    sender = await world.transport("sender")
    await sender.publish(
        message(b"hello", content_type=None, headers={"x-stream-offset": 99}), mandatory=True, timeout=5
    )
    async with connected(vhost_url) as wire:
        for flags, properties in HOSTILE.values():
            await wire.publish(Raw("events", b"parcel.sent", struct.pack(">H", flags) + properties, b"{}"))
        await wire.publish(Raw("events", b"parcel.\xff", b"\0\0", b"{}"))
    assert await log.span() == Span(0, 9)
    entries = await read(log, end=9)
    assert numbers(entries) == list(range(9))
    assert ids(entries[:1]) == sound
    assert entries[1].message is not None
    undecodable = [entry for entry in entries if entry.message is None]
    assert len(undecodable) > 3
    for entry in (entries[1], *undecodable):
        with pytest.raises(Malformed):
            _ = entry.envelope
        assert (entry.is_handlings, entry.time) == (False, None)
    async with open_log(world.settings(direct=False)) as plain:
        assert await plain.span() == Span(0, 9)
        assert numbers(await read(plain, end=9)) == list(range(9))


async def test_what_says_nothing_of_its_time_has_none(world: World, log: EventLog) -> None:
    body = b'{"specversion": "1.0", "id": "1", "source": "elsewhere", "type": "Parcel Weighed", "data": {}}'
    at = datetime(2026, 7, 1, 12, tzinfo=UTC)
    sender = await world.transport("sender")
    await sender.publish(message(body), mandatory=True, timeout=30)
    await sender.publish(message(body, timestamp=at), mandatory=True, timeout=30)
    assert [entry.time for entry in await read(log, end=2)] == [None, at]


async def test_there_is_none(world: World) -> None:
    with pytest.raises(ContractError, match="switched off"):
        async with open_log(world.settings(log=False)):
            pass
    log = EventLog(await world.transport(log=False), world.settings())
    with pytest.raises(ContractError, match=r"no event log 'events\.log'"):
        await log.span()


async def test_one_that_hands_out_nothing_is_called_so(
    world: World, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(world, 1)
    monkeypatch.setattr("broker.eventlog.PATIENCE", 0.2)
    with pytest.raises(ConnectionFailed, match="ended early"):
        await read(log, end=7)
