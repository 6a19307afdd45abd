"""How services stand: what is counted, what is concluded, and that looking changes nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from broker import Reject, Retry, Service
from broker.backfill.note import Note
from broker.copies import Failure, copy
from broker.errors import ContractError
from broker.rabbitmq.lock import locked
from broker.retry import Delay
from broker.tools.management import Management, Sample
from broker.tools.status import Backfilling, ServiceStatus, Status, Waiting, oldest, read_status
from broker.topology import backfill_lock, backfill_topology, retry_queue, retry_topology, service_topology
from tests.conformance.worlds import World
from tests.parcels import ParcelWeighed, message, weighed
from tests.waiting import until

NOW = datetime(2026, 7, 1, 12, 30, tzinfo=UTC)
PACKING = service_topology("packing", ["parcel.*"], "events")


# -- what is concluded -----------------------------------------------------------------------------------------------


def minutes(*counts: int) -> list[Sample]:
    """How many had been published now, a minute ago, and so on."""
    return [Sample(count=count, at=NOW - timedelta(minutes=ago)) for ago, count in enumerate(counts)]


@pytest.mark.parametrize(
    ("counts", "ready", "waited"),
    [
        ((), 5, None),
        ((100, 90, 50, 0), 0, None),
        ((100, 90, 50, 0), 5, 1),
        ((100, 90, 50, 0), 10, 1),
        ((100, 90, 50, 0), 11, 2),
        ((100, 90, 50, 0), 100, 3),
        ((100, 90, 50, 20), 100, 3),
        ((100, 100, 100, 20), 100, 3),
    ],
    ids=str,
)
def test_since_when_the_oldest_waits(counts: tuple[int, ...], ready: int, waited: int | None) -> None:
    expected = None if waited is None else timedelta(minutes=waited)
    assert oldest(minutes(*counts), ready, NOW) == expected


WELL = ServiceStatus("crm", consumers=1)
STOPPED = ServiceStatus("stopped", ready=5)
PAUSED = ServiceStatus("paused", consumers=1, paused="until 12:00:00 UTC: the database is down")
DEAD = ServiceStatus("unlucky", consumers=1, dead=3)
BEHIND = ServiceStatus("slow", consumers=1, ready=5000, rate_in=10, rate_out=5)
LEFT_OFF = ServiceStatus("late", backfill=Backfilling(5, 9, running=False))
WAITING = ServiceStatus("patient", consumers=1, waiting=(Waiting(Delay.parse("1s"), 2, None),))


@pytest.mark.parametrize(
    ("services", "command"),
    [
        ((), "broker run MODULE"),
        ((WELL,), "broker tail"),
        ((WELL, WAITING), "broker dead show patient --waiting"),
        ((WAITING, BEHIND, WELL), "broker run shop.slow"),
        ((BEHIND, DEAD), "broker dead show unlucky"),
        ((DEAD, PAUSED), "broker status paused --watch"),
        ((PAUSED, STOPPED, DEAD), "broker run MODULE:stopped"),
        ((LEFT_OFF,), "broker run MODULE:late --backfill 7d"),
        ((replace(LEFT_OFF, consumers=1), PAUSED), "broker run MODULE:late --backfill 7d"),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_the_next_command_is_for_the_worst(services: tuple[ServiceStatus, ...], command: str) -> None:
    assert Status("4.0.5", services, modules={"slow": "shop.slow"}).next_command == command


# -- what is counted -------------------------------------------------------------------------------------------------


async def test_a_service_that_nobody_runs(world: World, management: Management) -> None:
    delay = Delay.parse("1h")
    transport = await world.transport(declare=PACKING | retry_topology("packing", delay))
    waiting = retry_queue("packing", delay)
    await transport.publish(message(key="parcel.weighed"), mandatory=True, timeout=30)
    for error in (ValueError("no tape"), ValueError("no tape"), KeyError("x")):
        failure = Failure("packing", "pack", error, 1, "parcel.weighed", NOW)
        for queue in ("packing.dead", waiting):
            await transport.publish(copy(message(), failure, queue), mandatory=True, timeout=30)

    async def counted() -> ServiceStatus | None:
        (found,) = (await read_status(management)).services
        counted = (found.ready, found.dead, len(found.waiting)) == (1, 3, 1)
        return found if counted and found.oldest and found.oldest < timedelta(minutes=3) else None

    found = await until(counted)
    assert (found.service, found.consumers, found.paused) == ("packing", 0, None)
    assert (found.error, found.error_count) == ("ValueError: no tape", 2)
    assert found.waiting == (Waiting(delay, 3, NOW + timedelta(hours=1)),)
    for _ in range(25):
        await read_status(management)

    async def as_before() -> bool:
        counts = await asyncio.gather(*map(transport.count, ("packing", "packing.dead", waiting)))
        return counts == [1, 3, 3]

    await until(as_before)


async def test_a_paused_service_says_until_when_and_why(world: World, management: Management) -> None:
    service = Service("packing", retry=Retry("1h"))

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> None:
        raise ConnectionError("the database is down")

    broker = await world.broker("scales")
    async with world.serve(service, pause_window=5, pause_seconds=60):
        await broker.publish_many([weighed(n) for n in range(8)])

        async def paused() -> str | None:
            (found,) = (await read_status(management, "packing")).services
            return found.paused

        told = await until(paused)
    assert told.startswith("until ")
    assert "ConnectionError: the database is down" in told


async def test_a_service_resumed_is_no_longer_called_paused(world: World, management: Management) -> None:
    service, well = Service("packing", retry=Retry("1h")), asyncio.Event()

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> None:
        if not well.is_set():
            raise ConnectionError("the database is down")

    async def paused() -> bool:
        (found,) = (await read_status(management)).services
        return found.paused is not None

    async def resumed() -> bool:
        return not await paused()

    broker = await world.broker("scales")
    async with world.serve(service, pause_window=3, pause_seconds=0.5):
        await broker.publish_many([weighed(n) for n in range(6)])
        await until(paused)
        well.set()
        await broker.publish(weighed())
        await until(resumed)


async def test_what_rabbitmq_moved_by_itself_is_named(world: World, management: Management) -> None:
    service = Service("packing")

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> None:
        raise Reject("never called")

    async with world.serve(service):
        await world.send(message(b"\xff"))

        async def named() -> bool:
            (found,) = (await read_status(management)).services
            return (found.error, found.error_count) == ("Malformed", 1)

        await until(named)


async def test_an_unfinished_backfill_says_how_far_it_is(world: World, management: Management) -> None:
    transport = await world.transport(declare=PACKING | backfill_topology("packing"))
    note = Note(first=100, next=1600, begun=1700, seam=5000)

    async def found(done: int, of: int | None, *, running: bool) -> ServiceStatus | None:
        (it,) = (await read_status(management)).services
        return it if it.backfill == Backfilling(done, of, running) else None

    await until(lambda: found(0, None, running=False))
    await transport.publish(note.message("packing"), mandatory=True, timeout=30)
    await until(lambda: found(1500, None, running=False))
    await transport.publish(note.but(next=2600, end=5100).message("packing"), mandatory=True, timeout=30)
    unfinished = await until(lambda: found(2500, 5000, running=False))
    assert unfinished.stopped
    assert unfinished.as_json()["backfill"] == {"done": 2500, "of": 5000, "running": False}
    assert str(unfinished.backfill) == "2,500 of 5,000"
    async with locked(backfill_lock("packing"), world.settings(), refusal="held"):
        assert not (await until(lambda: found(2500, 5000, running=True))).stopped


async def test_a_service_that_is_not_there_is_named_with_the_near_miss(world: World, management: Management) -> None:
    await world.transport(declare=PACKING)
    with pytest.raises(ContractError, match="Did you mean 'packing'"):
        await read_status(management, "packng")
    assert (await read_status(management, "packing")).services[0].service == "packing"


async def test_nothing_there_yet(management: Management) -> None:
    found = await read_status(management)
    assert (found.services, found.next_command) == ((), "broker run MODULE")
