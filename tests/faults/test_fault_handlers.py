"""Handlers fail, block, are cancelled, and take their process with them: one event pays, its neighbours do not."""

from __future__ import annotations

import signal

import pytest

from tests.faults.told import Handling, Publishing
from tests.faults.world import World

POISON = 700
"""A number in the midst of the backlog."""


async def all_but_the_poison(world: World) -> None:
    """It alone is dead, and all others are handled."""
    books = await world.finish()
    assert books.dead == {POISON}
    assert POISON not in books.handled
    assert books.handled.keys() >= books.confirmed - {POISON}


@pytest.mark.row("poison message that fails", "one of 1,500 fails each time; a ladder of three delays")
async def test_poison_fails(world: World) -> None:
    await world.begin(handling=Handling(fails=(POISON,)))
    with world.fault():
        await world.dead(1)
    await world.recovered()
    await all_but_the_poison(world)


@pytest.mark.full
@pytest.mark.parametrize("way", ["kill -9", "os._exit"])
@pytest.mark.row(
    "poison message that kills its process", "{way} in its handler each time, until the delivery limit of 20"
)
async def test_poison_kills(world: World, way: str) -> None:
    poison = Handling(kills=(POISON,)) if way == "kill -9" else Handling(exits=(POISON,))
    await world.begin(Publishing(rate=50), poison)
    with world.fault():
        await world.dead(1)
    await world.recovered()
    await all_but_the_poison(world)
    assert set(world.subscriber.codes) == {-signal.SIGKILL if way == "kill -9" else 7}
    assert 15 <= len(world.subscriber.codes) <= 22


@pytest.mark.full
@pytest.mark.row("poison message, two processes", "kill -9 in its handler each time, whichever process has it")
async def test_poison_kills_two(world: World) -> None:
    await world.begin(Publishing(rate=50), Handling(kills=(POISON,)))
    world.subscribe(Handling(kills=(POISON,)))
    with world.fault():
        await world.dead(1)
    await world.recovered()
    await all_but_the_poison(world)


@pytest.mark.full
@pytest.mark.row("cancelled handler", "a handler that ends with CancelledError, each time")
async def test_handler_cancelled(world: World) -> None:
    await world.begin(handling=Handling(cancels=(POISON,)))
    with world.fault():
        await world.dead(1)
    await world.recovered()
    await all_but_the_poison(world)
    assert world.subscriber.codes == []


@pytest.mark.full
@pytest.mark.row(
    "handler that outlives its time limit", "each 200th handling hangs; BROKER_HANDLER_TIMEOUT 1 s, one retry"
)
async def test_handler_hangs(world: World) -> None:
    await world.begin(handling=Handling(hangs_every=200, ladder=("200ms",)), settings={"BROKER_HANDLER_TIMEOUT": "1"})
    with world.fault():
        await world.dead(3)
    await world.recovered()
    books = await world.finish()
    assert books.dead == {number for number in books.confirmed if number % 200 == 0}


@pytest.mark.full
@pytest.mark.row("handler that blocks the event loop", "for 15 s, with ten deliveries in hand and 90 in line")
async def test_handler_blocks(world: World) -> None:
    await world.begin(Publishing(backlog=2500, rate=60), Handling(blocks=(POISON,), publishes=True))
    with world.fault():
        await world.blocked()
    await world.recovered()
    books = await world.finish()
    assert POISON in books.handled
    assert world.subscriber.codes == []


@pytest.mark.full
@pytest.mark.row("handlers reject", "each tenth event is rejected")
async def test_rejects(world: World) -> None:
    rejected = tuple(range(0, 20_000, 10))
    await world.begin(handling=Handling(rejects=rejected))
    with world.fault():
        await world.dead(50)
    await world.recovered()
    books = await world.finish()
    assert books.dead == books.confirmed & set(rejected)


@pytest.mark.full
@pytest.mark.row(
    "all handlers fail for a while", "a database is down, say: the service pauses five times, then goes on"
)
async def test_pause(world: World) -> None:
    await world.begin(Publishing(rate=60), Handling(fails_while="down"), settings={"BROKER_PAUSE_SECONDS": "2"})
    with world.fault():
        (world.folder / "down").touch()
        await world.subscriber.process.logged("paused", 5)
        (world.folder / "down").unlink()
        await world.subscriber.process.logged("resumed")
    await world.recovered()
    books = await world.finish()
    assert not books.dead


@pytest.mark.full
@pytest.mark.row("ladder climbed by all", "every event fails three times before it is handled")
async def test_everything_retries(world: World) -> None:
    await world.begin(
        Publishing(rate=30), Handling(fails_until_attempt=4), works=False, settings={"BROKER_PAUSE_FAILURES": "2"}
    )
    with world.fault():
        await world.handled(100)
    await world.recovered()
    books = await world.finish()
    assert not books.dead
