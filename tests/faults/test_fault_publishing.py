"""Publishes are cancelled, too large, empty, late: each ends as promised, and the next one works."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime

import pytest
from pamqp.commands import Basic
from pydantic import SecretStr

from broker import Broker, BrokerError, NotConfirmed, PublishFailed, Settings, TooLarge
from broker.envelope import Story, encode
from tests.faults.numbers import NumberDrawn, id_of_number
from tests.faults.proxy import Proxy
from tests.faults.told import Handling, Publishing, Record
from tests.faults.world import World

MIB = 1024 * 1024


async def publish(world: World, broker: Broker, events: Iterable[NumberDrawn]) -> dict[int, BrokerError]:
    """Publish all at once, from here, into the same books; returns those that failed."""
    attempted, confirmed, failed = (Record(world.folder / name) for name in ("attempted", "confirmed", "failed"))
    failures: dict[int, BrokerError] = {}

    async def one(event: NumberDrawn) -> None:
        attempted(event.number)
        try:
            await broker.publish(event, id=id_of_number(event.number))
        except BrokerError as error:
            failures[event.number] = error
            failed(event.number, type(error).__name__, error.stored if isinstance(error, PublishFailed) else "no")
        else:
            confirmed(event.number)

    await asyncio.gather(*map(one, events))
    for record in (attempted, confirmed, failed):
        record.close()
    return failures


def of_size(number: int, size: int) -> NumberDrawn:
    """An event whose message has so many bytes."""
    event = NumberDrawn(number=number)
    event_id = id_of_number(number)
    now = datetime.now(UTC).replace(microsecond=123456)
    bare = len(encode(event, event_id=event_id, source="test", time=now, story=Story(event_id))[0])
    return NumberDrawn(number=number, padding="x" * (size - bare))


@pytest.mark.full
@pytest.mark.row("publishes cancelled", "each third publish cancelled 0 to 6 ms after it began")
async def test_publishes_cancelled(world: World) -> None:
    await world.begin(Publishing(rate=250, cancel_every=3))
    with world.fault():
        await world.confirmed(500)
    await world.recovered()
    await world.finish()
    assert len(world.numbers("cancelled")) > 100
    assert world.failures() == set()


@pytest.mark.row("bodies of up to 16 MiB", "four events of 16 MiB among the others, and one that is larger")
async def test_large(world: World) -> None:
    await world.begin()
    limit = 16 * MIB
    with world.fault():
        async with Broker(world.url, source="test") as broker:
            large = [of_size(1_000_000 + at, limit - 3) for at in range(4)]
            failures = await publish(world, broker, [*large, of_size(1_000_009, limit + 100)])
            assert not await publish(world, broker, [NumberDrawn(number=1_000_010)])
    assert {number: type(error) for number, error in failures.items()} == {1_000_009: TooLarge}
    await world.recovered()
    books = await world.finish()
    assert {1_000_000, 1_000_001, 1_000_002, 1_000_003, 1_000_010} <= books.handled.keys()


@pytest.mark.full
@pytest.mark.row(
    "a body over RabbitMQ's limit", "130 MiB, more than any RabbitMQ takes, among 1,000 others on the same channel"
)
async def test_over_the_limit_of_rabbitmq(world: World) -> None:
    await world.begin()
    settings = Settings(url=SecretStr(world.url), direct=world.direct, max_message_bytes=200 * MIB, publish_timeout=60)
    with world.fault():
        async with Broker(source="test", settings=settings) as broker:
            others = [NumberDrawn(number=number) for number in range(1_000_001, 1_001_001)]
            failures = await publish(world, broker, [of_size(1_000_000, 130 * MIB), *others])
    assert {number: type(error) for number, error in failures.items()} == {1_000_000: TooLarge}
    await world.recovered()
    await world.finish()


@pytest.mark.full
@pytest.mark.row("bodies of 0 bytes", "50 empty messages from another client, with the key of an event")
async def test_empty(world: World) -> None:
    await world.begin()
    with world.fault():
        async with world.channel() as channel:
            for _ in range(50):
                await channel.basic_publish(
                    b"", exchange="events", routing_key="number.drawn", properties=Basic.Properties(delivery_mode=2)
                )
    await world.recovered()
    books = await world.finish()
    assert [message.body for message in world.foreign] == [b""] * 50
    assert not books.dead


@pytest.mark.full
@pytest.mark.row(
    "confirms later than the deadline", "deadlines of 1 to 50 ms under load; published again until confirmed"
)
async def test_confirms_late(world: World) -> None:
    await world.begin()
    failures: dict[int, BrokerError] = {}
    with world.fault():
        async with Proxy(world.url) as proxy:
            for deadline in (0.001, 0.005, 0.02, 0.05):
                settings = Settings(url=SecretStr(proxy.url), direct=world.direct, publish_timeout=deadline)
                async with Broker(source="test", settings=settings) as broker:
                    first = 1_000_000 + int(deadline * 1_000_000)
                    failures |= await publish(world, broker, map(_event, range(first, first + 400)))
                    proxy.stall(up=False)
                    late = await publish(world, broker, map(_event, range(first + 400, first + 800)))
                    assert len(late) == 400
                    failures |= late
                    proxy.resume()
        async with Broker(world.url, source="test") as broker:
            assert not await publish(world, broker, map(_event, failures))
    assert {type(error) for error in failures.values()} == {NotConfirmed}
    await world.recovered()
    await world.finish()


def _event(number: int) -> NumberDrawn:
    return NumberDrawn(number=number)


@pytest.mark.full
@pytest.mark.row("clock moved", "both processes' clocks jump by a day, an hour back, ten years, and back to 1970")
async def test_clock_moved(world: World) -> None:
    day, year = 86_400.0, 365 * 86_400.0
    jumps = (0.0, day, -3600.0, 10 * year, -56 * year, 0.0)
    await world.begin(Publishing(backlog=2000, clock=jumps), Handling(clock=jumps, fails_once_every=10, publishes=True))
    with world.fault():
        await world.handled(1000)
    await world.recovered()
    await world.finish()
