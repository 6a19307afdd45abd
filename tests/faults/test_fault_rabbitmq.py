"""RabbitMQ goes, in each of three ways, while processes stand at each of the places that matter."""

from __future__ import annotations

import signal

import pytest

from tests.faults.counting import NAME
from tests.faults.told import Handling, Publishing
from tests.faults.world import World
from tests.waiting import until

PATIENT = {"BROKER_PUBLISH_TIMEOUT": "60"}


async def goes(world: World, verb: str) -> None:
    """RabbitMQ goes and comes back."""
    match verb:
        case "stopped":  # in an orderly way, the process too
            await world.do("stop")
            await world.do("start")
        case "killed":
            await world.do("kill")
            await world.do("start")
        case "restarted":  # within its process, which lives on
            await world.control("stop_app")
            await world.control("start_app")


PLACES = {
    "between handler and ack": Handling(point="handled", skip=30, publishes=True),
    "between a retry's confirm and its ack": Handling(point="copied", skip=5, fails_once_every=5),
    "while a handler's event is published": Handling(point="publishing", skip=50, publishes=True),
    "while a service declares": Handling(point="declared", skip=1),
    "while a service drains": Handling(point="given back"),
}
VERBS = ("stopped", "killed", "restarted")


@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=[] if verb == "killed" else pytest.mark.full) for verb in VERBS]
)
@pytest.mark.row(
    "RabbitMQ {verb} while both publish and handle", "{verb}, and started again; deadline of a publish 10 s"
)
async def test_rabbitmq_goes(world: World, verb: str) -> None:
    await world.begin(handling=Handling(publishes=True))
    with world.fault():
        await goes(world, verb)
    await world.recovered()
    await world.finish()
    assert world.subscriber.codes == []


@pytest.mark.full
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.row("RabbitMQ {verb} {place}", "{verb}, and started again, while the process stands there exactly")
async def test_rabbitmq_goes_while(world: World, verb: str, place: str) -> None:
    await world.begin(handling=PLACES[place], works=False, settings=PATIENT)
    drains = place == "while a service drains"
    if drains:
        await world.handled()
        world.subscriber.process.signal(signal.SIGTERM)
    await world.at_point()
    await world.old_queues()
    with world.fault():
        await goes(world, verb)
        world.go_on()
    await world.recovered()
    await world.finish()
    assert set(world.subscriber.codes) <= ({0} if drains else {3})  # at its start a service ends, and says why


@pytest.mark.full
@pytest.mark.row("RabbitMQ killed three times in a row", "kill -9 as soon as it answers again")
async def test_rabbitmq_killed_again_and_again(world: World) -> None:
    await world.begin(Publishing(backlog=4000), Handling(publishes=True, fails_once_every=10), settings=PATIENT)
    await world.old_queues()
    with world.fault():
        for _ in range(3):
            await goes(world, "killed")
    await world.recovered()
    await world.finish()


@pytest.mark.full
@pytest.mark.row("RabbitMQ killed while events wait for their retry", "kill -9; each tenth event waits for an hour")
async def test_rabbitmq_killed_while_events_wait(world: World) -> None:
    await world.begin(Publishing(backlog=4000), Handling(ladder=("1h",), fails_once_every=10))
    await world.old_queues()
    with world.fault():
        await goes(world, "killed")
    await world.recovered()
    books = await world.finish(waits=True)
    assert len(books.waiting) >= 100
    assert not books.waiting & books.handled.keys()


@pytest.mark.full
@pytest.mark.row(
    "RabbitMQ stopped for longer than the deadline of a publish",
    "stopped until 500 publishes have failed, deadline 3 s",
)
async def test_rabbitmq_stays_away(world: World) -> None:
    await world.begin(Publishing(rate=100), settings={"BROKER_PUBLISH_TIMEOUT": "3"})
    with world.fault():
        await world.do("stop")
        await world.failed(500)
        await world.do("start")
    await world.recovered()
    await world.finish()
    assert world.failures() == {"NotConfirmed"}


@pytest.mark.full
@pytest.mark.row(
    "RabbitMQ killed within a second of a queue's declaration",
    "kill -9; if the queue does not survive, as health says then, an operator deletes it",
)
async def test_rabbitmq_killed_with_a_young_queue(world: World) -> None:
    queue = f"{NAME}.retry.1h"
    settings = {"BROKER_HEALTH_PORT": "0", "BROKER_PUBLISH_TIMEOUT": "5"}
    await world.begin(handling=Handling(ladder=("1h",), fails_once_every=10), works=False, settings=settings)
    port = (await world.subscriber.process.logged("health"))["port"]
    await world.subscriber.process.logged("retrying")
    with world.fault():
        await goes(world, "killed")
        before = len(world.numbers("handled"))

        async def well_or_named() -> str:
            reasons = await world.reasons(port)
            named = [reason for reason in reasons if repr(queue) in reason and "delete it" in reason]
            return "named" if named else "well" if len(world.numbers("handled")) > before + 200 else ""

        if await until(well_or_named, 60, every=0.2) == "named":
            async with world.channel() as channel:
                await channel.queue_delete(queue)
            world.result["note"] = "the queue did not survive"
    await world.recovered()
    await world.finish(waits=True)
