"""Hostile messages among good ones: each is dead-lettered alone, raw and complete, and its neighbours are handled."""

from __future__ import annotations

from collections import Counter

import aiormq
import pytest

from broker.rabbitmq.link import FAILURES
from tests.faults.hostile import BODIES, CONTENT_TYPE, PROPERTIES, send, short
from tests.faults.world import World

CLOUDEVENTS = short(b"application/cloudevents+json; charset=utf-8")


async def accepted(world: World, flags: int, properties: bytes, body: bytes) -> bool:
    """Send a message on a connection of its own; whether RabbitMQ took it."""
    try:
        connection = await aiormq.connect(world.url)
        channel = await connection.channel(publisher_confirms=False)
        await send(channel, flags, properties, body, "number.drawn")
        await channel.exchange_declare("events", passive=True)
        await connection.close()
    except FAILURES:
        return False
    return True


@pytest.mark.row("hostile properties", f"{len(PROPERTIES)} kinds of them as bytes, three times each, among good events")
async def test_hostile_properties(world: World) -> None:
    await world.begin()
    sent: Counter[bytes] = Counter()
    refused: set[bytes] = set()
    with world.fault():
        for _ in range(3):
            for name, (flags, properties) in PROPERTIES.items():
                body = f'{{"hostile": "{name}"}}'.encode()
                if await accepted(world, flags, properties, body):
                    sent[body] += 1
                else:
                    refused.add(body)  # it may be stored all the same: a stream refuses later than a queue
    await world.recovered()
    world.result["refused"] = 3 * len(PROPERTIES) - sent.total()
    books = await world.finish()
    dead = Counter(message.body for message in world.foreign)
    assert {body: count for body, count in dead.items() if body not in refused} == sent
    assert len(sent) >= 26
    assert not books.dead
    assert world.subscriber.codes == []
    assert world.subscriber.lines("disconnected") == 0, refused


@pytest.mark.full
@pytest.mark.row("hostile bodies", f"{len(BODIES)} kinds of what is no event of this type, three times each")
async def test_hostile_bodies(world: World) -> None:
    await world.begin()
    with world.fault():
        for _ in range(3):
            for body in BODIES.values():
                assert await accepted(world, CONTENT_TYPE, CLOUDEVENTS, body)
    await world.recovered()
    books = await world.finish()
    dead = Counter(message.body for message in world.foreign)
    assert dead == Counter(3 * list(BODIES.values())), [name for name, body in BODIES.items() if dead[body] != 3]
    assert not books.dead
    assert world.subscriber.codes == []
    assert world.subscriber.lines("disconnected") == 0
