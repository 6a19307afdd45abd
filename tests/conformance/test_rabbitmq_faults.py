"""RabbitMQ stops, is killed, freezes, closes connections, loses queues: what was promised holds all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import Any

import pytest

from broker import Broker, Context, NotConfirmed, Retry, Service
from broker.events import id_of
from broker.rabbitmq import RabbitMQ
from broker.tools.management import Management
from broker.tools.node import Node
from broker.tools.server import Server
from broker.transport import Message
from tests.conformance.worlds import World
from tests.parcels import ParcelWeighed, weighed
from tests.waiting import until


@pytest.fixture
async def management(vhost_url: str, server: Server) -> AsyncIterator[Management]:
    async with Management(vhost_url, server.management_url) as client:
        yield client


def packing(retry: Retry | None = None) -> tuple[Service, list[ParcelWeighed]]:
    service, packed = Service("packing", retry=retry), []

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> None:
        packed.append(event)

    return service, packed


async def close_connections(management: Management, purpose: str) -> None:
    """As an operator in the management UI."""

    def ours(connections: list[Any]) -> list[str]:
        named = [(it.name, it.client_properties.get("connection_name", "")) for it in connections]
        return [name for name, called in named if purpose in called]

    async def found() -> list[str]:
        return ours(await management.connections())

    for name in await until(found):
        await management.close_connection(name)


# -- RabbitMQ goes and comes back ----------------------------------------------------------------------------------


async def test_while_rabbitmq_restarts_publishes_wait_and_consumers_resume(node: Callable[[], Node]) -> None:
    rabbit = await asyncio.to_thread(node)
    service, packed = packing()
    async with World(rabbit.url) as world:
        broker = await world.broker(publish_timeout=60)
        impatient = await world.broker("impatient", publish_timeout=0.5)
        async with world.serve(service):
            await broker.publish(weighed(1))
            await until(lambda: len(packed) == 1)

            await asyncio.to_thread(rabbit.stop)
            late = weighed(0)
            began = monotonic()
            with pytest.raises(NotConfirmed) as caught:
                await impatient.publish(late)
            assert caught.value.event_id == id_of(late)
            assert 0.4 < monotonic() - began < 9, "not the 10 s of the default"

            waiting = asyncio.create_task(broker.publish_many([weighed(n) for n in range(2, 22)]))
            await asyncio.to_thread(rabbit.start)
            await waiting
            await until(lambda: len({event.grams for event in packed}) >= 21)

            assert await until(lambda: tried(impatient, late)) == id_of(late)
            await until(lambda: late in packed)
        log = await world.take("events.log", offset="first")
        await until(lambda: len(set(log.bodies)) >= 22)


async def tried(broker: Broker, event: ParcelWeighed) -> Any:
    try:
        return await broker.publish(event)
    except NotConfirmed:
        return None


async def test_a_frozen_rabbitmq_fails_publishes_at_their_deadline_and_not_later(node: Callable[[], Node]) -> None:
    rabbit = await asyncio.to_thread(node)
    async with World(rabbit.url) as world:
        broker = await world.broker(publish_timeout=0.5)
        await broker.publish(weighed())
        await asyncio.to_thread(rabbit.pause)
        try:
            began = monotonic()
            with pytest.raises(ExceptionGroup) as caught:
                await broker.publish_many([weighed() for _ in range(50)])
            assert 0.4 < monotonic() - began < 9, "not the 10 s of the default"
        finally:
            await asyncio.to_thread(rabbit.resume)
        assert {type(error) for error in caught.value.exceptions} == {NotConfirmed}
        assert len({getattr(error, "event_id", None) for error in caught.value.exceptions}) == 50
        event = weighed()
        assert await until(lambda: tried(broker, event)) == id_of(event)


# -- connections ---------------------------------------------------------------------------------------------------


async def test_closed_connections_lose_nothing(
    rabbit: World, management: Management, lines: list[dict[str, Any]]
) -> None:
    service, packed = packing()
    broker = await rabbit.broker("scales", publish_timeout=20.0)
    closed, published = asyncio.Event(), 0

    def few_in_line() -> bool:
        return published - len(packed) < 200

    async def coming() -> AsyncIterator[ParcelWeighed]:
        nonlocal published
        while not closed.is_set():
            yield weighed(published)
            published += 1
            await until(few_in_line)

    async with rabbit.serve(service, publish_timeout=20.0):
        publishing = asyncio.create_task(broker.publish_many(coming()))
        for purpose in ("scales (publish)", "packing (consume)", "packing (publish)"):
            await close_connections(management, purpose)
        closed.set()
        await publishing
        await until(lambda: len({event.grams for event in packed}) == published)
    lost = {line["service"] for line in lines if line["event"] == "disconnected"}
    assert lost == {"scales", "packing"}


async def test_a_delivery_of_a_closed_connection_comes_again_and_its_late_ack_does_nothing(
    rabbit: World, management: Management
) -> None:
    service, attempts = Service("packing"), []
    release = asyncio.Event()

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> None:
        attempts.append(event)
        if len(attempts) == 1:
            await release.wait()

    broker = await rabbit.broker()
    async with rabbit.serve(service):
        await broker.publish(weighed())
        await until(lambda: attempts)
        await close_connections(management, "packing (consume)")
        await until(lambda: len(attempts) == 2)
        release.set()
        await broker.publish(weighed(2))
        await until(lambda: len(attempts) == 3)
    assert [event.grams for event in attempts] == [1, 1, 2]


# -- queues --------------------------------------------------------------------------------------------------------


async def test_a_consumer_whose_queue_was_deleted_has_a_new_one_within_two_seconds(
    rabbit: World, management: Management, lines: list[dict[str, Any]]
) -> None:
    service, packed = packing()
    broker = await rabbit.broker()
    async with rabbit.serve(service):
        await broker.publish(weighed(1))
        await until(lambda: len(packed) == 1)
        await management.delete_queue("packing")
        deleted = monotonic()
        while len(packed) == 1:
            await broker.publish(weighed(2))
            assert monotonic() - deleted < 2
    errors = [str(line.get("error")) for line in lines if line["event"] == "disconnected"]
    assert any("was its queue deleted?" in error or "no queue 'packing'" in error for error in errors), errors


async def test_a_deleted_retry_queue_is_declared_again(rabbit: World, management: Management) -> None:
    service, attempts = Service("packing", retry=Retry("20ms")), []

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> None:
        attempts.append(event.grams)
        if len(attempts) % 2:
            raise ValueError("no tape")

    broker = await rabbit.broker()
    async with rabbit.serve(service):
        await broker.publish(weighed(1))
        await until(lambda: attempts == [1, 1])
        await management.delete_queue("packing.retry.20ms")
        await broker.publish(weighed(2))
        await until(lambda: attempts == [1, 1, 2, 2])


async def test_the_original_of_a_copy_waits_until_its_new_queue_can_be_trusted(vhost_url: str) -> None:
    """RabbitMQ, killed within a second, may bring a queue that young back without what it confirmed."""
    service = Service("packing", retry=Retry("1h"))

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> None:
        raise ValueError("no tape")

    async with World(vhost_url) as world:
        broker = await world.broker()
        began = monotonic()
        async with world.serve(service) as subscriber:
            await broker.publish(weighed())
            await until(lambda: subscriber.busy)
            await until(lambda: not subscriber.busy)
            assert monotonic() - began >= 2


async def test_a_queue_that_takes_no_copy_is_named_with_what_helps(
    rabbit: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue declared just before RabbitMQ was killed may come back like that; the delivery is kept meanwhile."""
    service, attempts = Service("packing", retry=Retry("20ms")), []
    publish, survived = RabbitMQ.publish, asyncio.Event()

    async def to_no_retry_queue(self: RabbitMQ, message: Message, **how: Any) -> None:
        if message.key.startswith("packing.retry") and not survived.is_set():
            raise NotConfirmed("no confirm within 10 s")
        await publish(self, message, **how)

    monkeypatch.setattr(RabbitMQ, "publish", to_no_retry_queue)

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        attempts.append(context.attempt)
        if context.attempt == 1:
            raise ValueError("no tape")

    broker = await rabbit.broker()
    async with rabbit.serve(service) as subscriber:
        await broker.publish(weighed())
        (problem,) = await until(subscriber.problems)
        assert "the queue 'packing.retry.20ms' takes no copy: no confirm within 10 s" in problem
        assert "delete it" in problem
        survived.set()
        await until(lambda: attempts == [1, 2])
        await until(lambda: subscriber.problems() == [])
