"""A backfill on RabbitMQ: what a service missed before it first started is handled as if it had been there."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from pydantic import SecretStr

from broker import AccessRefused, Context, ContractError, Envelope, Reject, Retry, Service
from broker.backfill import begin_of
from broker.backfill.note import Note
from broker.eventlog import open_log
from broker.logs import logger
from broker.rabbitmq import delete
from broker.rabbitmq.link import Link
from broker.rabbitmq.lock import locked
from broker.service import Standing, serve
from broker.settings import Settings
from broker.tools.management import Management
from broker.tools.server import Server
from broker.topology import (
    DELIVERY_LIMIT,
    Binding,
    Queue,
    Topology,
    backfill_lock,
    backfill_topology,
    service_permissions,
    service_topology,
)
from broker.transport import Message
from tests.conformance.worlds import World
from tests.parcels import ParcelSent, ParcelWeighed, VanBroke, message, weighed
from tests.waiting import until

PASSWORD = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """RabbitMQ is not overloaded here."""
    for name, seconds in {
        "reading.SETTLING": 0.2,
        "reading.STORING": 0.1,
        "reading.NOTE_EVERY": 0.1,
        "reading.AGAIN": 0.1,
        "process.AGAIN": 0.1,
        "process.LOOKED_AT": 0.3,
    }.items():
        monkeypatch.setattr(f"broker.backfill.{name}", seconds)
    monkeypatch.setattr("broker.eventlog.EMPTY", 0.3)


@pytest.fixture
async def management(vhost_url: str, server: Server) -> AsyncIterator[Management]:
    async with Management(vhost_url, server.management_url) as client:
        yield client


def packing(
    handled: list[int], *, gate: asyncio.Event | None = None, name: str = "packing", **arguments: Any
) -> Service:
    """Notes the weight of what it packs. While the gate is closed, it does not get on."""
    service = Service(name, **arguments)

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> ParcelSent:
        if gate is not None:
            await gate.wait()
        handled.append(event.grams)
        return ParcelSent(parcel_id=event.parcel_id)

    return service


def parcels(*grams: int) -> list[ParcelWeighed]:
    return [weighed(it) for it in grams]


def said(lines: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == what]


async def ended(world: World) -> None:
    """Return when the backfill has left nothing behind."""
    transport = await world.transport("looks")

    async def gone() -> bool:
        return await transport.count("packing.backfill") is None

    await until(gone, every=0.05)


async def ready(world: World, queue: str) -> int | None:
    transport = await world.transport("looks")
    return await transport.count(queue)


async def write(world: World, note: Note | bytes) -> None:
    """As if a process had noted that, and had been killed."""
    transport = await world.transport("noted", declare=backfill_topology("packing"))
    body = note if isinstance(note, bytes) else note.message("packing").body
    await transport.publish(Message("packing", "packing.backfill", body), mandatory=True, timeout=30)


# -- what is handled -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [True, False], ids=["own frames", "aio-pika"])
async def test_a_first_start_handles_what_it_missed_and_then_what_comes(
    rabbit: World, lines: list[dict[str, Any]], direct: bool
) -> None:
    broker, handled = await rabbit.broker("scales"), list[int]()
    await broker.publish_many(parcels(*range(200)))
    await broker.publish(VanBroke(van="blue"))
    async with rabbit.serve(packing(handled), backfill="7d", direct=direct):
        assert Counter(handled) == Counter(range(200)), "before it consumes its queue"
        await broker.publish_many(parcels(*range(200, 300)))
        await until(lambda: len(handled) >= 300)
        await ended(rabbit)
    assert Counter(handled) == Counter(range(300))
    (line,) = said(lines, "backfilled")
    assert line["events"] == 200
    assert await ready(rabbit, "packing.dead") == 0


async def test_a_publisher_that_never_pauses_is_neither_missed_nor_handled_twice(rabbit: World) -> None:
    broker, handled = await rabbit.broker("scales"), list[int]()
    await broker.publish_many(parcels(*range(500)))
    stop, published = asyncio.Event(), 500

    async def publish() -> None:
        nonlocal published
        while not stop.is_set():
            await broker.publish_many(parcels(*range(published, published + 5)))
            published += 5

    publishing = asyncio.create_task(publish())
    async with rabbit.serve(packing(handled), backfill="first"):
        await ended(rabbit)
        stop.set()
        await publishing
        await until(lambda: len(handled) >= published)
    assert Counter(handled) == Counter(range(published))
    assert published > 500


async def test_one_handler_at_a_time_gets_them_in_order(rabbit: World) -> None:
    broker, handled = await rabbit.broker("scales"), list[int]()
    for grams in range(30):
        await broker.publish(weighed(grams))
    async with rabbit.serve(packing(handled), backfill="7d", concurrency=1):
        assert handled == list(range(30))


async def test_what_is_older_is_left_alone(rabbit: World) -> None:
    broker, handled = await rabbit.broker("scales"), list[int]()
    await broker.publish_many(parcels(1, 2))
    async with open_log(rabbit.settings()) as log:

        async def old() -> bool:
            return await log.place(begin_of("1s", datetime.now(UTC))) >= (await log.span()).end

        await until(old, every=0.1)
    async with rabbit.serve(packing(handled), backfill="1s"):
        assert handled == [], "nothing is that young"
        await broker.publish(weighed(3))
        await until(lambda: handled == [3])
    others: list[int] = []
    async with rabbit.serve(packing(others, name="crm"), backfill="1s"):
        assert others == [3]


async def test_an_empty_log_is_no_obstacle(rabbit: World) -> None:
    handled: list[int] = []
    async with rabbit.serve(packing(handled), backfill="first"):
        broker = await rabbit.broker("scales")
        await broker.publish(weighed(1))
        await until(lambda: handled == [1])
        await ended(rabbit)


async def test_failures_go_down_the_ladder_and_to_the_dead_letters(rabbit: World) -> None:
    broker = await rabbit.broker("scales")
    await broker.publish_many(parcels(*range(4)))
    await rabbit.send(message(b"rubbish", headers={"tenant": "a"}))
    attempts: Counter[int] = Counter()
    service = Service("packing", retry=Retry("200ms"))

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        attempts[event.grams] += 1
        assert context.attempt == attempts[event.grams]
        if event.grams == 1:
            raise Reject("too light")
        if event.grams == 2 or (event.grams == 3 and context.attempt == 1):
            raise ValueError("no tape")

    async with rabbit.serve(service, backfill="7d"):
        await until(lambda: attempts == Counter({0: 1, 1: 1, 2: 2, 3: 2}))
        dead = await rabbit.dead("packing")
        await dead.reach(3)
    letters = [it.message for it in dead.deliveries]
    reasons = {str(it.headers["broker-error"]) for it in letters}
    assert {"Reject: too light", "ValueError: no tape"} < reasons
    (raw,) = [it for it in letters if it.body == b"rubbish"]
    assert str(raw.headers["broker-error"]).startswith("Malformed: ")
    assert (raw.headers["broker-key"], raw.headers["tenant"]) == ("parcel.weighed", "a")
    assert not any(name.startswith("x-stream") for it in letters for name in it.headers)


async def test_foreign_messages_are_passed_by_and_counted(rabbit: World, lines: list[dict[str, Any]]) -> None:
    broker, handled = await rabbit.broker("scales"), list[int]()
    await broker.publish(weighed(1))
    for body in (b"hello", b"\xff"):
        await rabbit.send(Message("", "events.log", body))
    await broker.publish(weighed(2))
    async with rabbit.serve(packing(handled), backfill="first"):
        assert sorted(handled) == [1, 2]
    (line,) = said(lines, "foreign messages")
    assert (line["log_level"], line["skipped"]) == ("warning", 2)


async def test_a_pattern_gets_what_it_matches(rabbit: World) -> None:
    broker, names = await rabbit.broker("scales"), list[str]()
    service = Service("packing")

    @service.on("parcel.#")
    async def note(envelope: Envelope) -> None:
        names.append(envelope.name)

    await broker.publish_many([weighed(), VanBroke(van="red"), ParcelSent(parcel_id=uuid4())])
    async with rabbit.serve(service, backfill="1h"):
        assert sorted(names) == ["Parcel Sent", "Parcel Weighed"]


# -- once, and when ----------------------------------------------------------------------------------------------------


async def test_a_service_that_has_started_before_does_not_backfill(rabbit: World, lines: list[dict[str, Any]]) -> None:
    broker, handled = await rabbit.broker("scales"), list[int]()
    await broker.publish(weighed(1))
    async with rabbit.serve(packing(handled)):
        await broker.publish(weighed(2))
        await until(lambda: handled == [2])
    async with rabbit.serve(packing(handled), backfill="7d"):
        await broker.publish(weighed(3))
        await until(lambda: handled == [2, 3])
    (line,) = said(lines, "not backfilled")
    assert "`broker replay packing`" in line["reason"]


async def test_told_to_stop_it_goes_on_next_time_where_it_was(rabbit: World, lines: list[dict[str, Any]]) -> None:
    broker, handled = await rabbit.broker("scales"), list[int]()
    await broker.publish_many(parcels(*range(900)))
    for _ in range(2):
        stopping = asyncio.create_task(run(rabbit, packing(handled)))
        await until(partial(reached, handled, len(handled) + 50), every=0)
        stopping.cancel()
        await asyncio.wait([stopping])
        assert len(handled) < 900
    async with rabbit.serve(packing(handled), backfill="7d"):
        await ended(rabbit)
    assert Counter(handled) == Counter(range(900)), "nothing is lost, nothing comes twice"
    assert len(said(lines, "backfill unfinished")) == 2
    assert [line["resumed"] for line in said(lines, "backfilling") if "resumed" in line] == [False, True, True]


def reached(handled: list[int], count: int) -> bool:
    return len(handled) >= count


async def run(world: World, service: Service, **settings: Any) -> None:
    """A process, until it is cancelled."""
    async with world.serve(service, backfill="7d", **settings):
        await asyncio.Event().wait()


async def test_exactly_once_with_a_database(rabbit: World, tmp_path: Path) -> None:
    """Whatever a crash forgot is in the inbox: the note is set back, and nothing happens twice."""
    database = f"sqlite+aiosqlite:///{tmp_path / 'packing.db'}"
    broker, handled = await rabbit.broker("scales"), list[int]()
    await broker.publish_many(parcels(*range(100)))
    async with rabbit.serve(packing(handled, database=database), backfill="7d"):
        assert sorted(handled) == list(range(100))
        await ended(rabbit)
    await write(rabbit, Note.at(0, seam=0).but(begun=40))
    async with rabbit.serve(packing(handled, database=database), backfill="7d"):
        await broker.publish(weighed(100))
        await until(lambda: len(handled) > 100)
        await ended(rabbit)
    assert sorted(handled) == list(range(101))


async def test_an_event_that_has_killed_its_process_too_often_is_set_aside(rabbit: World) -> None:
    broker, handled = await rabbit.broker("scales"), list[int]()
    await broker.publish_many(parcels(*range(10)))
    await write(rabbit, Note.at(0, seam=0).but(next=2, begun=5, tries=DELIVERY_LIMIT))
    async with rabbit.serve(packing(handled), backfill="7d"):
        dead = await rabbit.dead("packing")
        await dead.reach(1)
    assert "each time its process ended" in str(dead[0].message.headers["broker-error"])
    assert sorted(handled) == list(range(3, 10))


@pytest.mark.parametrize("rubbish", [None, b"{}"])
async def test_without_a_note_that_can_be_read_it_begins_at_the_beginning(rabbit: World, rubbish: bytes | None) -> None:
    """All may be in the queue as well: it is told apart from what came by the log."""
    broker, handled = await rabbit.broker("scales"), list[int]()
    await broker.publish_many(parcels(*range(5)))
    await rabbit.transport(declare=service_topology("packing", ["parcel.weighed"], "events"))
    await broker.publish_many(parcels(*range(5, 10)))
    if rubbish is None:
        await rabbit.transport(declare=backfill_topology("packing"))
    else:
        await write(rabbit, rubbish)
    async with rabbit.serve(packing(handled), backfill="7d"):
        await broker.publish(weighed(10))
        await until(lambda: len(handled) >= 11)
        await ended(rabbit)
    assert Counter(handled) == Counter(range(11))


async def test_killed_while_it_consumed_the_seam_it_remembers_what_was_handled(rabbit: World) -> None:
    broker, handled = await rabbit.broker("scales"), list[int]()
    await broker.publish_many(parcels(*range(5)))
    await rabbit.transport(declare=service_topology("packing", ["parcel.weighed"], "events"))
    await broker.publish_many(parcels(*range(5, 12)))
    await write(rabbit, Note(first=0, next=10, begun=10, seam=3, end=10, depth=7))
    async with rabbit.serve(packing(handled), backfill="7d"):
        await until(lambda: len(handled) >= 2)
        await ended(rabbit)
    assert sorted(handled) == [10, 11]


async def test_a_queue_that_somebody_deleted_meanwhile_leaves_no_gap(rabbit: World) -> None:
    broker, handled = await rabbit.broker("scales"), list[int]()
    await broker.publish_many(parcels(*range(20)))
    await write(rabbit, Note(first=0, next=8, begun=8, seam=3, end=10, depth=7))
    async with rabbit.serve(packing(handled), backfill="7d"):
        await broker.publish(weighed(20))
        await until(lambda: len(handled) >= 13)
    assert sorted(handled) == list(range(8, 21))


async def test_a_log_that_somebody_deleted_is_read_from_its_first(rabbit: World, lines: list[dict[str, Any]]) -> None:
    broker, handled = await rabbit.broker("scales"), list[int]()
    await broker.publish_many(parcels(*range(5)))
    await write(rabbit, Note(first=0, next=8000, begun=8000, seam=9000, end=9900))
    async with rabbit.serve(packing(handled), backfill="7d"):
        assert sorted(handled) == list(range(5))
    assert len(said(lines, "event log is another")) == 1


async def test_a_truncated_log_says_since_when_it_reaches(rabbit: World, lines: list[dict[str, Any]]) -> None:
    transport = await rabbit.transport()
    await delete(Topology(queues=(Queue("events.log"),)), rabbit.settings())
    small = Queue(
        "events.log",
        {"x-queue-type": "stream", "x-max-length-bytes": 200_000, "x-stream-max-segment-size-bytes": 100_000},
    )
    await transport.declare(Topology(queues=(small,), bindings=(Binding("events", small.name, "#"),)))
    broker, handled = await rabbit.broker("scales"), list[int]()
    for first in range(0, 3000, 500):
        await broker.publish_many(parcels(*range(first, first + 500)))
    async with open_log(rabbit.settings()) as log:

        async def truncated() -> int:
            return (await log.span()).first

        await until(truncated)
    async with rabbit.serve(packing(handled), backfill="7d"):
        assert 0 < len(handled) < 3000
        assert sorted(handled) == list(range(min(handled), 3000))
    (line,) = said(lines, "event log truncated")
    assert (line["log_level"], line["since"]) == ("warning", "7d")
    assert line["reaches_back_to"].startswith("20")


# -- several processes ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def process(world: World, service: Service, **settings: Any) -> AsyncIterator[Standing]:
    """A process that starts, and how it stands meanwhile."""
    made = world.settings(**settings)
    transport = world.unconnected(service.name, **settings)
    standing = Standing(transport)

    async def work() -> None:
        log = logger(made, service=service.name)
        async with serve(service, made, log, standing=standing, backfill="7d"):
            await asyncio.Event().wait()

    working = asyncio.create_task(work())
    try:
        yield standing
    finally:
        working.cancel()
        await asyncio.wait([working])


def phase(standing: Standing, begins: str) -> Callable[[], bool]:
    return lambda: any(problem.startswith(begins) for problem in standing.problems())


async def test_a_second_process_waits_and_then_shares_the_queue(rabbit: World, lines: list[dict[str, Any]]) -> None:
    broker, gate = await rabbit.broker("scales"), asyncio.Event()
    await broker.publish_many(parcels(*range(50)))
    first, second = list[int](), list[int]()
    async with process(rabbit, packing(first, gate=gate)) as one:
        await until(phase(one, "backfilling: 0 of 50"))
        async with process(rabbit, packing(second, gate=gate)) as other:
            await until(phase(other, "waiting for the backfill of another process"))
            gate.set()
            await until(lambda: one.problems() == other.problems() == [])
            await broker.publish_many(parcels(*range(50, 200)))
            await until(lambda: len(first) + len(second) >= 200)
            await ended(rabbit)
    assert Counter([*first, *second]) == Counter(range(200))
    assert len(first) > 50
    assert second
    assert len(said(lines, "waiting")) == 1


async def test_when_the_first_is_told_to_stop_the_second_goes_on(rabbit: World) -> None:
    broker, handled = await rabbit.broker("scales"), list[int]()
    gate, other_gate = asyncio.Event(), asyncio.Event()
    await broker.publish_many(parcels(*range(200)))
    async with process(rabbit, packing(handled, gate=gate)) as one:
        await until(phase(one, "backfilling"))
        gate.set()
        await until(lambda: len(handled) >= 60, every=0)
        gate.clear()
        stack = process(rabbit, packing(handled, gate=other_gate))
        other = await stack.__aenter__()
        await until(phase(other, "waiting"))
        gate.set()
    other_gate.set()
    await until(lambda: other.problems() == [])
    await ended(rabbit)
    await stack.__aexit__(None, None, None)
    assert Counter(handled) == Counter(range(200))


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Cuts the connections whose name has that in it, as a network does; returns how many."""
    links: dict[str, Link] = {}
    opened = Link.open

    async def noted(link: Link) -> None:
        links[link._name] = link
        await opened(link)

    def cut(name: str) -> int:
        found = [link for its, link in links.items() if name in its and link.problem is None]
        for link in found:
            link.sockets.abort()
        return len(found)

    monkeypatch.setattr(Link, "open", noted)
    return cut


async def test_connections_that_break_cost_nothing(rabbit: World, cut: Callable[[str], int]) -> None:
    """It loses its lock, its place in the log, and its publisher; the process lives, and knows what it has done."""
    broker, handled = await rabbit.broker("scales"), list[int]()
    await broker.publish_many(parcels(*range(2000)))
    async with process(rabbit, packing(handled)) as standing:
        for breaking in ("backfill.lock", "backfill (consume)", "packing (publish)", "packing"):
            await until(partial(reached, handled, len(handled) + 100), every=0)
            await until(partial(cut, breaking), every=0)  # those it just lost may not be there again yet
        await until(lambda: standing.problems() == [])
        await broker.publish(weighed(2000))
        await until(lambda: len(handled) >= 2001)
    assert Counter(handled) == Counter(range(2001))


async def test_who_lost_the_lock_to_another_lets_it_go_on(rabbit: World, cut: Callable[[str], int]) -> None:
    broker, handled, gate = await rabbit.broker("scales"), list[int](), asyncio.Event()
    await broker.publish_many(parcels(*range(300)))
    gate.set()
    async with process(rabbit, packing(handled, gate=gate)) as standing:
        await until(lambda: len(handled) >= 50, every=0)
        gate.clear()
        stolen = asyncio.Event()

        async def steal() -> None:
            while not stolen.is_set():
                with suppress(ContractError):
                    async with locked(backfill_lock("packing"), rabbit.settings(), refusal="held"):
                        stolen.set()
                        await until(phase(standing, "waiting"))

        stealing = asyncio.create_task(steal())
        assert cut("backfill.lock") == 1
        await stolen.wait()
        gate.set()  # what it has in hand ends before it waits
        await stealing
        await until(lambda: standing.problems() == [])
    assert Counter(handled) == Counter(range(300))


# -- permissions, and what is missing ----------------------------------------------------------------------------------


@pytest.fixture
async def login(management: Management, vhost_url: str) -> AsyncIterator[Callable[..., Any]]:
    """Makes addresses for services of least privilege."""
    names: list[str] = []

    async def make(*, backfill: bool) -> SecretStr:
        names.append(f"user-{uuid4().hex[:8]}")
        await management.create_user(names[-1], PASSWORD)
        settings = Settings()
        it = service_permissions(
            "packing", settings, patterns=["parcel.weighed"], publishes=["parcel.sent"], backfill=backfill
        )
        await management.permit(names[-1], configure=it.configure, write=it.write, read=it.read)
        parts = urlsplit(vhost_url)
        netloc = f"{names[-1]}:{PASSWORD}@{parts.netloc.rpartition('@')[2]}"
        return SecretStr(parts._replace(netloc=netloc).geturl())

    yield make
    for name in names:
        await management.delete_user(name)


async def test_a_service_of_least_privilege_backfills(rabbit: World, login: Callable[..., Any]) -> None:
    broker, handled = await rabbit.broker("scales"), list[int]()
    await broker.publish_many(parcels(*range(20)))
    async with rabbit.serve(packing(handled), backfill="7d", url=await login(backfill=True)):
        assert sorted(handled) == list(range(20))
        await ended(rabbit)


async def test_who_may_not_read_the_log_is_told_and_nothing_is_declared(
    rabbit: World, login: Callable[..., Any]
) -> None:
    await rabbit.broker("scales")
    with pytest.raises(AccessRefused, match=r"events\.log"):
        async with rabbit.serve(packing([]), backfill="7d", url=await login(backfill=False)):
            pass
    assert await ready(rabbit, "packing") is None
    assert await ready(rabbit, "packing.backfill") is None


async def test_the_log_switched_off_is_said(rabbit: World) -> None:
    with pytest.raises(ContractError, match="switched off"):
        async with rabbit.serve(packing([]), backfill="7d", log=False):
            pass
