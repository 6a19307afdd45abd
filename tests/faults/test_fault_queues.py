"""Operators delete, purge, limit and remake what stands on RabbitMQ, under load. What they remove is counted."""

from __future__ import annotations

import pytest
from pamqp.commands import Basic

from broker.tools.management import Binding
from tests.faults.counting import NAME
from tests.faults.told import Handling, Publishing
from tests.faults.world import World
from tests.waiting import until

PATIENT = {"BROKER_PUBLISH_TIMEOUT": "60"}
BINDING = Binding(source="events", destination=NAME, destination_type="queue", key="number.drawn")


async def bound(world: World) -> bool:
    return BINDING in await world.management.bindings()


@pytest.mark.full
@pytest.mark.row("queue deleted, its consumer cancelled", "queue.delete by an operator under load")
async def test_queue_deleted(world: World) -> None:
    await world.begin()
    with world.fault():
        async with world.removing() as channel:
            deleted = await channel.queue_delete(NAME)
            await world.subscriber.process.logged("connected", 3)
            await until(lambda: bound(world))
    world.removed += deleted.message_count or 0
    await world.recovered()
    await world.finish()
    assert world.result["removed"] > 0


@pytest.mark.full
@pytest.mark.row("queue purged", "queue.purge by an operator under load")
async def test_queue_purged(world: World) -> None:
    await world.begin()
    with world.fault():
        async with world.channel() as channel:
            purged = await channel.queue_purge(NAME)
        world.removed += purged.message_count or 0
    await world.recovered()
    books = await world.finish()
    assert 0 < world.result["removed"] == world.removed
    assert books.missing <= books.logged


@pytest.mark.full
@pytest.mark.row(
    "queue remade with other arguments", "deleted, and declared as a classic queue until the conflict shows"
)
async def test_queue_remade(world: World) -> None:
    await world.begin(Publishing(rate=100))
    with world.fault():
        async with world.removing() as channel:
            deleted = await channel.queue_delete(NAME)
            await channel.queue_declare(NAME, durable=True)
            conflict = await world.subscriber.process.logged("connecting")
            assert "with other arguments" in conflict["error"]
            connected = len(world.subscriber.process.lines("connected"))
            await channel.queue_delete(NAME)
            await world.subscriber.process.logged("connected", connected + 1)
            await until(lambda: bound(world), 60)
    world.removed += deleted.message_count or 0
    await world.recovered()
    await world.finish()
    assert world.subscriber.codes == []


@pytest.mark.full
@pytest.mark.row("binding deleted", "the queue's binding to `events` deleted; it is declared again within 30 s")
async def test_binding_deleted(world: World) -> None:
    await world.begin(Publishing(rate=60))
    with world.fault():
        async with world.removing() as channel:
            await channel.queue_unbind(NAME, "events", "number.drawn")
            await until(lambda: bound(world), 60)
    await world.recovered()
    books = await world.finish()
    assert books.missing <= books.logged


@pytest.mark.full
@pytest.mark.row("exchange deleted", "`events` deleted; it and its bindings are declared again within 30 s")
async def test_exchange_deleted(world: World) -> None:
    await world.begin(Publishing(rate=60))
    with world.fault():
        async with world.removing() as channel:
            await channel.exchange_delete("events")
            await until(lambda: bound(world), 60)
    await world.recovered()
    books = await world.finish()
    assert books.missing <= books.logged


@pytest.mark.full
@pytest.mark.row(
    "the service's own exchange deleted", "`counting` deleted while retries and dead letters go through it"
)
async def test_own_exchange_deleted(world: World) -> None:
    await world.begin(
        Publishing(rate=100), Handling(fails_once_every=7, rejects=tuple(range(1500, 9000, 11))), settings=PATIENT
    )
    with world.fault():
        async with world.channel() as channel:
            await channel.exchange_delete(NAME)
        own = Binding(source=NAME, destination=f"{NAME}.dead", destination_type="queue", key=f"{NAME}.dead")

        async def bound_again() -> bool:
            return own in await world.management.bindings()

        await until(bound_again, 60)
    await world.recovered()
    books = await world.finish(within=300)  # what was due while it was gone, RabbitMQ tries again after 3 minutes
    assert books.dead


@pytest.mark.full
@pytest.mark.row("dead letters unavailable", "the dead letters' queue deleted while events are rejected into it")
async def test_dead_letters_unavailable(world: World) -> None:
    await world.begin(Publishing(rate=100), Handling(rejects=tuple(range(0, 20_000, 5))))
    with world.fault():
        async with world.channel() as channel:
            await channel.queue_delete(f"{NAME}.dead")
        noticed = ("not concluded", "disconnected")  # RabbitMQ may end the connection: it was about to publish into it
        await until(lambda: any(map(world.subscriber.lines, noticed)), 60)
        world.removed += world.subscriber.lines("dead")  # by now it has logged all that the deleted queue confirmed

        async def there() -> bool:
            return any(queue.name == f"{NAME}.dead" for queue in await world.management.queues())

        await until(there, 60)
    await world.recovered()
    books = await world.finish()
    assert books.dead


@pytest.mark.full
@pytest.mark.row(
    "dead letters unavailable to RabbitMQ itself",
    "their queue deleted while 50 undecodable messages are rejected; RabbitMQ tries again after 3 minutes",
)
async def test_dead_letters_unavailable_to_rabbitmq(world: World) -> None:
    await world.begin(Publishing(rate=20))
    with world.fault():
        async with world.channel() as channel:
            await channel.queue_delete(f"{NAME}.dead")
            for number in range(50):
                await channel.basic_publish(
                    f"no event, {number}".encode(),
                    exchange="events",
                    routing_key="number.drawn",
                    properties=Basic.Properties(delivery_mode=2),
                )
        await world.dead(50, timeout=300)
    await world.recovered()
    await world.finish()
    assert {message.body for message in world.foreign} == {f"no event, {number}".encode() for number in range(50)}


@pytest.mark.row(
    "a full queue refuses", "an operator's queue of at most 10, which nacks, until 500 publishes have failed"
)
async def test_full_queue(world: World) -> None:
    await world.begin()
    with world.fault():
        async with world.channel() as channel:
            await channel.queue_declare(
                "full", durable=True, arguments={"x-max-length": 10, "x-overflow": "reject-publish"}
            )
            await channel.queue_bind("full", "events", "#")
            await world.failed(500)
            await channel.queue_delete("full")
    await world.recovered()
    books = await world.finish()
    assert world.failures() == {"PublishRefused"}
    assert len(books.handled) > len(books.confirmed)  # one queue refused, the others stored them


@pytest.mark.full
@pytest.mark.row(
    "no queue is bound, publishes are returned", "the log and the only queue deleted, until 500 have failed"
)
async def test_returned(world: World) -> None:
    await world.declare()
    world.publish(Publishing(rate=250))
    await world.confirmed(1500)
    hold = world.folder / "hold"
    hold.touch()  # a publish under way would break the connection, and the reconnect declare the log again
    await until(lambda: len(world.numbers("confirmed")) == len(world.numbers("attempted")))
    with world.fault():
        async with world.removing() as channel:
            await channel.queue_delete("events.log")
            deleted = await channel.queue_delete(NAME)
            world.removed += deleted.message_count or 0
            hold.unlink()
            await world.failed(500)
            world.subscribe()
            await world.recovered()
    await world.finish(logged=False)
    assert world.failures() == {"Unroutable"}


@pytest.mark.full
@pytest.mark.row("virtual host deleted", "deleted with everything in it, and made again, empty, when both have said so")
async def test_vhost_deleted(world: World) -> None:
    await world.begin(Publishing(rate=100), settings=PATIENT)
    assert world.publisher is not None
    with world.fault():
        async with world.removing(closes=True):
            held = (await world.counts())[NAME]
            await world.management.delete_vhost(world.management.vhost)
            for kept in (world.publisher, world.subscriber):
                refused = await kept.process.logged("connecting")
                assert "no such virtual host" in refused["error"]
            await world.management.create_vhost(world.management.vhost)
            await world.recovered()
    world.removed += sum(held)
    await world.finish(logged=False)
    assert world.subscriber.codes == []
