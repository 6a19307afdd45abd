"""Dead letters: looked at, sent back, discarded; whatever happens meanwhile, none is lost."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from time import monotonic
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import Reject, Service, Settings
from broker.copies import Failure, copy
from broker.envelope import Story, encode
from broker.errors import ConnectionFailed, ContractError
from broker.retry import Delay
from broker.tools.dead import Group, Letter, Mover, Which, find_places, grouped, letters, read_letter
from broker.tools.management import Management
from broker.tools.server import Server
from broker.topology import dead_queue, retry_queue, retry_topology, service_topology
from broker.transport import Death, Message, Transport
from tests.conformance.worlds import World
from tests.parcels import ParcelWeighed, message, weighed
from tests.waiting import until

PACKING = service_topology("packing", ["parcel.*"], "events")
AT = datetime(2026, 7, 1, 12, 30, tzinfo=UTC)


def parcel(event_id: UUID | None = None, grams: int = 1) -> Message:
    """A published event."""
    event = weighed(grams)
    event_id = event_id or uuid4()
    body, _ = encode(event, event_id=event_id, source="scales", time=AT, story=Story(event_id))
    return message(body, key="parcel.weighed", type="Parcel Weighed")


def failed(
    error: Exception, *, queue: str = "packing.dead", at: datetime = AT, event_id: UUID | None = None
) -> Message:
    """A copy that the service sent there."""
    return copy(parcel(event_id), Failure("packing", "pack", error, 1, "parcel.weighed", at), queue)


async def fill(transport: Transport, *messages: Message) -> None:
    await asyncio.gather(*(transport.publish(it, mandatory=True, timeout=10) for it in messages))


async def ids_in(world: World, queue: str) -> list[UUID]:
    """The ids of all events in a queue, which stay there."""
    return [
        letter.envelope.id
        async for letter in letters(world.settings(), queue.partition(".")[0], [queue], Which())
        if letter.envelope is not None
    ]


# -- reading ---------------------------------------------------------------------------------------------------------


class Fake:
    """A delivery of a message that nobody settles."""

    redelivered = lost = False
    number: int | None = None

    def __init__(self, message: Message) -> None:
        self.message = message

    async def ack(self) -> None: ...
    async def reject(self) -> None: ...
    async def release(self) -> None: ...


def letter_of(message: Message) -> Letter:
    return read_letter(Fake(replace(message, exchange="packing", key="packing.dead")), "packing", "packing.dead")


def test_a_letter_tells_event_error_and_time() -> None:
    event_id = uuid4()
    letter = letter_of(failed(ValueError("no tape: none"), event_id=event_id))
    assert (letter.name, letter.key, letter.kind) == ("Parcel Weighed", "parcel.weighed", "ValueError")
    assert (letter.error, letter.at) == ("ValueError: no tape: none", AT)
    document = letter.as_json()
    assert (document["event_id"], document["handler"], document["attempt"]) == (str(event_id), "pack", 1)
    assert document["body"].startswith("{")


@pytest.mark.parametrize(
    ("reason", "body", "error"),
    [
        ("rejected", b"\xff", "Malformed: "),
        ("rejected", b"{}", "Malformed: "),
        ("delivery_limit", parcel().body, "DeliveryLimit: handed out more than 20 times"),
        ("delivery_limit", b"\xff", "DeliveryLimit: "),
    ],
)
def test_what_rabbitmq_moved_by_itself_is_told_apart(reason: str, body: bytes, error: str) -> None:
    letter = letter_of(message(body, headers={"tenant": "a"}))
    assert letter.message is not None
    letter = letter_of(replace(letter.message, death=Death(reason, "parcel.weighed", AT)))
    assert letter.error.startswith(error)
    assert (letter.key, letter.at, letter.headers) == ("parcel.weighed", AT, {"tenant": "a"})
    letter.as_json()


@given(
    error=st.text(),
    failed_at=st.text() | st.sampled_from(["2026-07-01T12:30:00", "2026-07-01"]),
    key=st.text(),
    body=st.binary(),
    content_type=st.none() | st.text(),
)
def test_whatever_the_headers_say_a_letter_can_be_shown(
    error: str, failed_at: str, key: str, body: bytes, content_type: str | None
) -> None:
    headers = {"broker-error": error, "broker-failed-at": failed_at, "broker-key": key, "b": b"\xff"}
    letter = letter_of(message(body, headers=headers, content_type=content_type))  # type: ignore[arg-type]
    Group("packing", "", "").add(letter)
    Which(since=AT, before=AT, error="x").has(letter)
    letter.as_json()


def test_which_letters_are_meant() -> None:
    event_id = uuid4()
    letter = letter_of(failed(ValueError("No Tape"), event_id=event_id))
    minute = timedelta(minutes=1)
    for meant in (
        Which(),
        Which(event="parcel weighed"),
        Which(event="parcel.weighed"),
        Which(error="no tape"),
        Which(error="valueerror"),
        Which(since=AT),
        Which(before=AT + minute),
        Which(ids=frozenset({event_id, uuid4()})),
    ):
        assert meant.has(letter), meant
    for other in (
        Which(event="Parcel"),
        Which(error="KeyError"),
        Which(since=AT + minute),
        Which(before=AT),
        Which(ids=frozenset({uuid4()})),
    ):
        assert not other.has(letter), other


# -- looking ---------------------------------------------------------------------------------------------------------


async def test_looking_sees_each_once_and_changes_nothing(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    sent = [uuid4() for _ in range(1300)]
    await fill(transport, *(failed(ValueError(str(n % 2)), event_id=it) for n, it in enumerate(sent)))
    seen: list[tuple[int, int]] = []
    groups = await grouped(world.settings(), ["packing"], Which(), lambda done, total: seen.append((done, total)))
    assert [(it.service, it.event, it.kind, it.count) for it in groups] == [
        ("packing", "Parcel Weighed", "ValueError", 1300)
    ]
    assert seen[-1] == (1300, 1300)
    assert sorted(await ids_in(world, "packing.dead")) == sorted(sent)

    async def all_back() -> bool:
        return await transport.count("packing.dead") == 1300

    await until(all_back)


# -- sending back ----------------------------------------------------------------------------------------------------


async def test_redriving_reaches_the_failing_service_alone_and_begins_anew(world: World) -> None:
    crm = service_topology("crm", ["parcel.*"], "events")
    transport = await world.transport(declare=PACKING | crm)
    event_id = uuid4()
    await fill(transport, failed(ValueError("no tape"), event_id=event_id), failed(KeyError("x")))
    outcome = await Mover(world.settings(), "packing", Which(error="no tape")).redrive(["packing.dead"])
    assert (outcome.matched, outcome.moved) == (1, 1)
    seen: list[tuple[UUID, str, int]] = []
    service = Service("packing")

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context) -> None:  # type: ignore[no-untyped-def]
        seen.append((context.event_id, context.key, context.attempt))

    async with world.serve(service):
        await until(lambda: seen)
    assert seen == [(event_id, "parcel.weighed", 1)]
    assert await transport.count("crm") == 0
    assert await transport.count("packing.dead") == 1


async def test_what_fails_again_meanwhile_is_not_moved_in_circles(world: World) -> None:
    service = Service("packing")

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> None:
        raise Reject("the card is stolen")

    async with world.serve(service):
        transport = await world.transport()
        await fill(transport, *(failed(ValueError("no tape")) for _ in range(60)))
        outcome = await Mover(world.settings(), "packing").redrive(["packing.dead"])
        assert outcome.moved == 60

        async def dead_again() -> bool:
            return await transport.count("packing.dead") == 60

        await until(dead_again)


async def test_an_interrupted_redrive_loses_nothing(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    sent = [uuid4() for _ in range(400)]
    await fill(transport, *(failed(ValueError("no tape"), event_id=it) for it in sent))
    mover = Mover(world.settings(), "packing")
    redriving = asyncio.create_task(mover.redrive(["packing.dead"]))
    await until(lambda: mover.outcome.moved > 20)
    redriving.cancel()
    await asyncio.gather(redriving, return_exceptions=True)
    assert redriving.cancelled()

    async def everywhere() -> set[UUID]:
        return {*await ids_in(world, "packing"), *await ids_in(world, "packing.dead")}

    assert await everywhere() == set(sent)
    await Mover(world.settings(), "packing").redrive(["packing.dead"])
    assert set(await ids_in(world, "packing")) == set(sent)
    assert await transport.count("packing.dead") == 0


async def test_two_redrives_at_once_move_each_letter_once(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    sent = [uuid4() for _ in range(1000)]
    await fill(transport, *(failed(ValueError("no tape"), event_id=it) for it in sent))
    movers = [Mover(world.settings(), "packing") for _ in range(2)]
    outcomes = await asyncio.gather(*(mover.redrive(["packing.dead"]) for mover in movers))
    assert sum(outcome.moved for outcome in outcomes) == 1000
    assert sorted(await ids_in(world, "packing")) == sorted(sent)
    assert await transport.count("packing.dead") == 0


async def test_a_redrive_whose_connection_breaks_says_so_and_loses_nothing(
    world: World, management: Management
) -> None:
    transport = await world.transport(declare=PACKING)
    sent = [uuid4() for _ in range(300)]
    await fill(transport, *(failed(ValueError("no tape"), event_id=it) for it in sent))
    mover = Mover(world.settings(), "packing", rate=50)

    async def cut() -> bool:
        names = [it.name for it in await management.connections() if "redrive (consume)" in str(it.client_properties)]
        for name in names:
            await management.close_connection(name)
        return bool(names)

    redriving = asyncio.create_task(mover.redrive(["packing.dead"]))
    await until(lambda: mover.outcome.moved > 3)
    await until(cut)
    with pytest.raises(ConnectionFailed, match="Nothing is lost"):
        await redriving
    assert {*await ids_in(world, "packing"), *await ids_in(world, "packing.dead")} == set(sent)


async def test_a_service_that_no_longer_exists_gets_nothing(world: World, management: Management) -> None:
    transport = await world.transport(declare=PACKING)
    await fill(transport, failed(ValueError("no tape")))
    await management.delete_queue("packing")
    with pytest.raises(ContractError, match="has no queue on RabbitMQ any more, so nothing was moved"):
        await Mover(world.settings(), "packing").redrive(["packing.dead"])
    assert await transport.count("packing.dead") == 1


async def test_what_was_rejected_unread_can_be_redriven_too(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    taken = await world.take("packing", by=transport)
    await fill(transport, message(b"\xffnot json"))
    await taken.reach(1)
    await taken[0].reject()
    await taken.cancel()

    async def is_dead() -> bool:
        return await transport.count("packing.dead") == 1

    await until(is_dead)
    await Mover(world.settings(), "packing").redrive(["packing.dead"])
    again = await world.take("packing")
    await again.reach(1)
    back = again[0].message
    assert (back.body, back.headers["broker-key"]) == (b"\xffnot json", "parcel.weighed")
    assert "x-death" not in str(back.headers)


async def test_a_limit_takes_the_oldest_and_a_rate_takes_its_time(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    sent = [uuid4() for _ in range(10)]
    for it in sent:
        await fill(transport, failed(ValueError("no tape"), event_id=it))
    began = monotonic()
    outcome = await Mover(world.settings(), "packing", rate=20, limit=6).redrive(["packing.dead"])
    assert monotonic() - began >= 5 / 20
    assert outcome.moved == 6
    assert sorted(await ids_in(world, "packing")) == sorted(sent[:6])
    assert sorted(await ids_in(world, "packing.dead")) == sorted(sent[6:])


async def test_what_waits_can_be_brought_forward_and_keeps_its_attempts(world: World) -> None:
    delay = Delay.parse("1h")
    transport = await world.transport(declare=PACKING | retry_topology("packing", delay))
    waiting = retry_queue("packing", delay)
    await fill(transport, failed(ValueError("no tape"), queue=waiting), failed(KeyError("x"), queue=waiting))
    outcome = await Mover(world.settings(), "packing", Which(error="no tape")).redrive([waiting])
    assert outcome.moved == 1
    taken = await world.take("packing")
    await taken.reach(1)
    assert taken[0].message.headers["broker-attempt"] == 1
    assert await transport.count(waiting) == 1


async def test_discarding_takes_what_is_meant_and_nothing_else(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    await fill(transport, *(failed(error) for error in (ValueError("1"), KeyError("2"), ValueError("3"))))
    outcome = await Mover(world.settings(), "packing", Which(error="ValueError")).discard(["packing.dead"])
    assert (outcome.matched, outcome.moved) == (2, 2)
    (group,) = await grouped(world.settings(), ["packing"], Which())
    assert (group.kind, group.count) == ("KeyError", 1)


# -- where they are --------------------------------------------------------------------------------------------------


async def test_services_are_found_by_management_else_by_the_code(world: World, server: Server) -> None:
    delay = Delay.parse("1s")
    await world.transport(declare=PACKING | retry_topology("packing", delay))
    told: Settings = world.settings(management_url=server.management_url)
    places = await find_places(told, ["tests.nowhere"])
    assert (places.services, places.waiting("packing"), places.note) == (["packing"], ["packing.retry.1s"], "")

    silent = world.settings(management_url="http://127.0.0.1:1")
    with pytest.raises(ConnectionFailed, match="rabbitmq_management"):
        await find_places(silent, ["tests.nowhere"])
    by_code = await find_places(silent, ["services.packing", "services.crm"])
    assert by_code.services == ["packing"], "what was never started has none"
    assert "Only of services in the code" in by_code.note
    assert dead_queue("packing") in by_code.queues
