"""What a service tells the event log of its handlings; and that nothing about it disturbs the service."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any
from uuid import UUID, uuid4

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from broker import Reject, Retry, Service, Settings
from broker.errors import AccessRefused, BrokerError, ConnectionFailed, Malformed, TooLarge, TopologyConflict
from broker.eventlog import Handling
from broker.handlings import KEPT, MOST, Alike, Noted, Recorder, body, written
from broker.memory import Memory, Server
from broker.topology import Binding, Exchange, Queue, Topology, handlings_topology
from broker.transport import Message
from tests.conformance.worlds import World
from tests.logged import entry
from tests.parcels import ParcelSent, ParcelWeighed, weighed
from tests.waiting import counted, until

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
NOON_US = (NOON - EPOCH) // timedelta(microseconds=1)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.handlings.AFTER", 0.02)
    monkeypatch.setattr("broker.handlings.CLOSING", 0.2)


class Wire(Memory):
    """A way to RabbitMQ on which every message of handlings is written down, or fails with the next of `failures`."""

    def __init__(self) -> None:
        super().__init__(Server(), Settings())
        self.told: list[Message] = []
        self.failures: list[BaseException | None] = []
        self.silent = False

    async def aside(self, message: Message, topology: Topology, *, timeout: float) -> None:
        if self.silent:
            await asyncio.sleep(timeout)
            raise ConnectionFailed("no answer")
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        self.told.append(message)

    @property
    def handlings(self) -> list[Handling]:
        return read(*self.told)


def recorder(wire: Wire, **settings: Any) -> Recorder:
    made = Recorder("packing", Settings(**settings), wire, structlog.get_logger())
    made.start()
    return made


WELL: Alike = ("Parcel Weighed", "handled", 1, "pack", None, None)


def handled(event_id: UUID, *, at: int = NOON_US, what: Alike = WELL) -> Noted:
    return str(event_id), str(event_id), at, 500_000, *what


def read(*messages: Message) -> list[Handling]:
    """As the event log has them."""
    return [it for message in messages for it in entry(message).handlings]


def in_a_message(*handlings: Noted, **changed: str) -> list[Handling]:
    """As they are read from one, with some text changed on the way."""
    told = body("packing", [written([*chain(*handlings)])]).decode()
    for old, new in changed.items():
        told = told.replace(old, new)
    return read(Message("events.handled", "packing", told.encode()))


def note(it: Recorder, count: int = 1) -> list[UUID]:
    """Note so many handlings; returns the events' ids."""
    events = [uuid4() for _ in range(count)]
    for event_id in events:
        it.note(handled(event_id))
    return events


def ids(wire: Wire) -> list[UUID]:
    return [it.event_id for it in wire.handlings]


# -- what is told ----------------------------------------------------------------------------------------------------


async def test_a_handling_reads_as_documented() -> None:
    wire = Wire()
    it = recorder(wire)
    event_id, caused = uuid4(), uuid4()
    what: Alike = ("Parcel Weighed", "retrying", 2, "pack", "ValueError: no tape", "30s")
    it.note(handled(event_id, at=NOON_US + 123_456, what=what))
    it.note((str(caused), str(event_id), NOON_US, 500_000, *what))
    await it.close()
    (message,) = wire.told
    assert (message.exchange, message.key, message.content_type, message.type) == (
        "events.handled",
        "packing",
        "application/json",
        "Handlings",
    )
    assert json.loads(message.body) == {
        "service": "packing",
        "handlings": [
            {
                "name": "Parcel Weighed",
                "outcome": "retrying",
                "attempt": 2,
                "handler": "pack",
                "error": "ValueError: no tape",
                "delay": "30s",
                "events": [str(event_id), str(caused)],
                "stories": [None, str(event_id)],
                "began": [NOON_US + 123_456, -123_456],
                "took": [500_000, 500_000],
            }
        ],
    }
    assert [(told.event_id, told.correlation_id, told.started) for told in wire.handlings] == [
        (event_id, event_id, NOON + timedelta(microseconds=123_456)),
        (caused, event_id, NOON),
    ]


async def test_each_handling_tells_its_own_whatever_the_one_before_it_was() -> None:
    wire = Wire()
    it = recorder(wire)
    failed: Alike = ("Parcel Sent", "dead", 4, None, "Unhandled: nobody", None)
    for what in (WELL, failed, WELL, WELL):
        it.note(handled(uuid4(), what=what))
    await it.close()
    assert [(it.name, it.outcome) for it in wire.handlings] == [what[:2] for what in (WELL, failed, WELL, WELL)]
    (message,) = wire.told
    assert message.body.count(b"Parcel Weighed") == 2, "what those after each other have in common is written once"


async def test_error_and_delay_stand_only_where_there_is_one() -> None:
    wire = Wire()
    it = recorder(wire)
    note(it)
    await it.close()
    (message,) = wire.told
    assert json.loads(message.body)["handlings"][0].keys().isdisjoint({"error", "delay"})


@given(name=st.text(), error=st.text(), handler=st.text())
def test_whatever_stands_in_a_handling_can_be_read_again(name: str, error: str, handler: str) -> None:
    name, handler = (text.encode("utf-8", "replace").decode() for text in (name, handler))  # as they come off the wire
    (told,) = in_a_message(handled(uuid4(), what=(name, "dead", 4, handler, error, None)))
    assert (told.name, told.handler, told.outcome, told.attempt) == (name, handler, "dead", 4)
    assert len(told.error or "") <= 500


@given(st.lists(st.integers(min_value=0, max_value=NOON_US * 4), min_size=1, max_size=20))
def test_times_come_back_to_a_microsecond(times: list[int]) -> None:
    told = in_a_message(*((str(uuid4()), str(uuid4()), time, 12_300, *WELL) for time in times))
    assert [it.started for it in told] == [EPOCH + timedelta(microseconds=time) for time in times]
    assert {it.took for it in told} == {0.0123}


@pytest.mark.parametrize("later", [-NOON_US - 1, 9 * 10**17, 10**30])
def test_a_time_that_is_none_because_of_the_one_before_is_refused(later: int) -> None:
    with pytest.raises(Malformed):
        in_a_message(handled(uuid4()), handled(uuid4(), at=NOON_US + later))


@pytest.mark.parametrize("wrong", ['"soon"', "1e300", "-1", "253402300799999999", str(10**18), str(10**30), "null"])
@pytest.mark.parametrize("which", [str(NOON_US), "500000"], ids=["started", "took"])
def test_times_that_are_none_are_refused(which: str, wrong: str) -> None:
    with pytest.raises(Malformed):
        in_a_message(handled(uuid4()), **{which: wrong})


@pytest.mark.parametrize("column", ["[500000]", f"[{NOON_US}]", "[null]"], ids=["took", "began", "stories"])
def test_a_column_that_is_shorter_than_others_is_refused(column: str) -> None:
    with pytest.raises(Malformed):
        in_a_message(handled(uuid4()), **{column: "[]"})


def test_half_a_character_in_an_error_is_no_reason_to_fail() -> None:
    (told,) = in_a_message(handled(uuid4(), what=("A", "dead", 1, None, "what\udcff", None)))
    assert told.error == "what?"


async def test_each_way_to_end_is_told() -> None:
    """As a service goes through them, in memory, read from the log."""
    service = Service("sorting", retry=Retry("1ms"))

    @service.on(ParcelWeighed)
    async def sort(event: ParcelWeighed) -> ParcelSent:
        if event.grams == 2:
            raise Reject("too light")
        if event.grams == 3:
            raise ValueError("no tape")
        return ParcelSent(parcel_id=event.parcel_id)

    async with World(None) as world:
        broker = await world.broker("scales")
        everything = await world.transport(declare=Topology((), (Queue("all"),), (Binding("events", "all", "#"),)))
        async with world.serve(service):
            well, light, unlucky = [await broker.publish(weighed(grams)) for grams in (1, 2, 3)]
            await until(lambda: len(world.server.queues["sorting.dead"].ready) == 2)
        log = [stored.message for stored in world.server.queues["events.log"].ready]
        told = read(*(m for m in log if m.exchange == "events.handled"))
        assert await everything.count("all") == 4, "three weighed, one sent: a subscriber of # sees no handlings"

    def of(event_id: UUID) -> list[tuple[Any, ...]]:
        return [(it.outcome, it.attempt, it.error) for it in told if it.event_id == event_id]

    assert of(well) == [("handled", 1, None)]
    assert of(light) == [("dead", 1, "Reject: too light")]
    assert of(unlucky) == [("retrying", 1, "ValueError: no tape"), ("dead", 2, "ValueError: no tape")]
    assert {it.handler for it in told} == {"sort"}


async def test_an_event_that_a_handler_publishes_is_not_older_than_its_handling() -> None:
    service = Service("sorting")

    @service.on(ParcelWeighed)
    async def sort(event: ParcelWeighed) -> ParcelSent:
        return ParcelSent(parcel_id=event.parcel_id)

    async with World(None) as world:
        broker = await world.broker("scales")
        async with world.serve(service):
            await broker.publish(weighed())
            await until(lambda: len(world.server.queues["events.log"].ready) >= 3)
        log = [stored.message for stored in world.server.queues["events.log"].ready]
    (sent,) = [json.loads(m.body) for m in log if m.type == "Parcel Sent"]
    (told,) = read(*(m for m in log if m.type == "Handlings"))
    assert told.started <= datetime.fromisoformat(sent["time"])


# -- when it is told -------------------------------------------------------------------------------------------------


async def test_many_are_told_at_once_and_few_after_a_moment() -> None:
    wire = Wire()
    it = recorder(wire)
    noted = note(it, MOST + 3)
    assert wire.told == []
    await until(lambda: len(wire.told) == 2)
    assert [len(read(message)) for message in wire.told] == [MOST, 3]
    assert ids(wire) == noted, "in order"
    await it.close()


async def test_the_rest_is_told_when_the_service_ends() -> None:
    wire = Wire()
    it = recorder(wire)
    noted = note(it, 2 * MOST + 1)
    await it.close()
    assert ids(wire) == noted
    note(it)
    await it.close()
    assert len(ids(wire)) == 2 * MOST + 1, "after that, nothing"


@pytest.mark.parametrize("off", [{"record_handlings": False}, {"log": False}], ids=["not recorded", "no log"])
async def test_switched_off_nothing_is_kept_or_told(off: dict[str, bool]) -> None:
    wire = Wire()
    it = recorder(wire, **off)
    note(it, 2 * MOST)
    await it.close()
    assert wire.told == []


async def test_switched_off_there_is_no_exchange_for_them() -> None:
    service = Service("sorting")
    service.on(ParcelWeighed)(lambda event: None)
    async with World(None) as world:
        broker = await world.broker("scales")
        async with world.serve(service, record_handlings=False):
            await broker.publish(weighed())
            await until(lambda: not world.server.queues["sorting"].unacked)
        assert "events.handled" not in world.server.exchanges


def test_only_the_log_is_bound_to_their_exchange() -> None:
    declared = handlings_topology(Settings(exchange="shop"))
    assert declared.exchanges == (Exchange("shop.handled", "topic"),)
    assert declared.bindings == (Binding("shop.handled", "shop.log", "#"),)


# -- when it cannot be told ------------------------------------------------------------------------------------------


def reasons(lines: list[dict[str, Any]]) -> list[str]:
    """Why handlings are not recorded, as logged."""
    return [str(it.get("error", it.get("count"))) for it in lines if it["event"] == "handlings not recorded"]


@pytest.mark.parametrize(
    "refusal", [AccessRefused("no"), TopologyConflict("another kind")], ids=lambda it: type(it).__name__
)
async def test_who_may_not_says_so_once_and_collects_no_more(refusal: BrokerError, lines: list[dict[str, Any]]) -> None:
    wire = Wire()
    wire.failures = [refusal]
    it = recorder(wire)
    note(it, 3)
    await until(lambda: reasons(lines))
    note(it, 2 * MOST)
    await it.close()
    assert wire.told == []
    (said,) = reasons(lines)
    assert said.startswith(str(refusal))
    assert "BROKER_RECORD_HANDLINGS=off" in said


async def test_while_rabbitmq_is_away_they_wait(lines: list[dict[str, Any]]) -> None:
    wire = Wire()
    wire.failures = [ConnectionFailed("away"), ConnectionFailed("away"), ConnectionFailed("away")]
    it = recorder(wire)
    noted = note(it, 3)
    await until(lambda: wire.told)
    assert ids(wire) == noted
    assert reasons(lines) == ["away"], "said once"
    await it.close()


async def test_a_failure_of_any_kind_is_survived(lines: list[dict[str, Any]]) -> None:
    wire = Wire()
    wire.failures = [RuntimeError("a bug of ours")]
    it = recorder(wire)
    noted = note(it, 3)
    await until(lambda: wire.told)
    assert ids(wire) == noted
    assert reasons(lines) == ["a bug of ours"]
    await it.close()


async def test_no_more_than_so_many_wait_and_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire()
    wire.silent = True
    under_way = counted(monkeypatch, wire, "aside")
    it = recorder(wire, publish_timeout=0.05)
    noted = note(it, KEPT // 2)
    await until(lambda: under_way, every=0.001)
    noted += note(it, KEPT + 3)
    await until(lambda: it._failing)
    wire.silent = False
    await until(lambda: len(ids(wire)) >= KEPT + 3)
    assert ids(wire) == noted[-KEPT - 3 :]
    await it.close()


async def test_what_rabbitmq_will_never_take_is_let_go(lines: list[dict[str, Any]]) -> None:
    wire = Wire()
    wire.failures = [TooLarge("16 MiB")]
    it = recorder(wire)
    note(it)
    await until(lambda: reasons(lines) == ["16 MiB"])
    after = note(it)
    await until(lambda: wire.told)
    assert ids(wire) == after
    await it.close()


async def test_a_service_that_ends_while_rabbitmq_is_away_does_not_wait_long(lines: list[dict[str, Any]]) -> None:
    wire = Wire()
    wire.silent = True
    it = recorder(wire, publish_timeout=600)
    note(it, 5 * MOST)
    async with asyncio.timeout(30):
        await it.close()
    assert reasons(lines)[-1] == str(5 * MOST), "it says how many are lost"
