"""Processes die: killed (-9) at every place that matters."""

from __future__ import annotations

import signal

import pytest

from tests.faults.told import Handling, Publishing
from tests.faults.world import World


@pytest.mark.row("publisher killed while publishing", "kill -9, twice, with hundreds of publishes without a confirm")
async def test_publisher_killed_while_publishing(world: World) -> None:
    await world.declare()
    publisher = world.publish(Publishing(backlog=1100, point="publishing", kills=2, skip=1050))
    await world.hit(2)
    world.subscribe()
    await world.recovered()
    await world.finish()
    assert publisher.codes == [-signal.SIGKILL] * 2


@pytest.mark.full
@pytest.mark.row("publisher killed while declaring", "kill -9, three times, when the event log had answered")
async def test_publisher_killed_while_declaring(world: World) -> None:
    await world.begin()
    assert world.publisher is not None
    await world.publisher.close()
    with world.fault():
        publisher = world.publish(Publishing(backlog=100, point="declared", kills=3))
        await world.at_point(3)
    await world.recovered()
    await world.finish()
    assert publisher.codes == [-signal.SIGKILL] * 3


PLACES = {
    "between handler and ack": Handling(point="handled", kills_at_point=3, skip=30),
    "between a retry's confirm and its ack": Handling(point="copied", kills_at_point=3, skip=5, fails_once_every=5),
    "while publishing what handlers returned": Handling(point="publishing", kills_at_point=3, skip=50, publishes=True),
    "while declaring": Handling(point="declared", kills_at_point=3, skip=1),
}


@pytest.mark.parametrize(
    "place",
    [
        "between handler and ack",
        *(pytest.param(place, marks=pytest.mark.full) for place in PLACES if place != "between handler and ack"),
    ],
)
@pytest.mark.row("subscriber killed {place}", "kill -9, three times, there exactly")
async def test_subscriber_killed(world: World, place: str) -> None:
    await world.begin(handling=PLACES[place], works=False)
    await world.hit(3)
    await world.recovered()
    await world.finish()
    assert world.subscriber.codes == [-signal.SIGKILL] * 3


@pytest.mark.full
@pytest.mark.row("subscriber killed while draining", "SIGTERM, and kill -9 when it gives the first delivery back")
async def test_subscriber_killed_while_draining(world: World) -> None:
    await world.begin(handling=Handling(point="given back", kills_at_point=1))
    world.subscriber.process.signal(signal.SIGTERM)
    await world.hit(1)
    await world.recovered()
    await world.finish()
    assert world.subscriber.codes == [-signal.SIGKILL]


@pytest.mark.full
@pytest.mark.row("subscriber told to stop, five times", "SIGTERM under load; it drains, exits 0, and is started again")
async def test_subscriber_drains(world: World) -> None:
    await world.begin(Publishing(backlog=2500))
    with world.fault(moments=True):
        for life in range(1, 6):
            world.subscriber.process.signal(signal.SIGTERM)
            await world.handled(50)
            assert len(world.subscriber.codes) == life
    await world.recovered()
    books = await world.finish()
    assert world.subscriber.codes == [0] * 5
    assert books.twice == 0


@pytest.mark.full
@pytest.mark.row("one of two processes of a service killed", "kill -9 of one, three times; the other works on")
async def test_one_of_two_killed(world: World) -> None:
    await world.begin(Publishing(backlog=2500, rate=400))
    other = world.subscribe()
    await other.process.logged("started")
    with world.fault(moments=True):
        for _ in range(3):
            world.subscriber.process.signal(signal.SIGKILL)
            await world.handled(200)
    await world.recovered()
    await world.finish()
    assert world.subscriber.codes == [-signal.SIGKILL] * 3
    assert other.codes == []


@pytest.mark.full
@pytest.mark.row(
    "subscriber frozen until RabbitMQ gives it up", "SIGSTOP of the subscriber until then, SIGCONT afterwards"
)
async def test_subscriber_frozen(world: World) -> None:
    await world.begin(Publishing(backlog=2000, rate=50))
    with world.fault():
        world.subscriber.process.signal(signal.SIGSTOP)
        await world.gone("counting (consume)")
        world.subscriber.process.signal(signal.SIGCONT)
    await world.recovered()
    await world.finish()
    assert world.subscriber.codes == []
