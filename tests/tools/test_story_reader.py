"""Finding a story in the event log: where to begin, what to look at, when to stop; whatever else is in the log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4, uuid5

import pytest

from broker.cli.story import read
from broker.envelope import NAMESPACE
from broker.errors import ContractError
from broker.tools.management import Management
from broker.tools.story import Found, Story, Subscriptions
from broker.tools.story_reader import BEYOND, Gathering, Heading, Place, Reader, Stop, Wanted, contains, places
from broker.topology import handlings_topology, service_topology
from broker.transport import Message
from tests.conformance.worlds import World
from tests.logged import entry, handling, handlings
from tests.parcels import ParcelSent, ParcelWeighed, message, weighed
from tests.stories import FIRST, NOON
from tests.waiting import until

EVENT = {"specversion": "1.0", "source": "scales", "type": "Parcel Weighed", "data": {}}


def cloud_event(event_id: UUID | str = FIRST, **attributes: Any) -> bytes:
    return json.dumps(EVENT | {"id": str(event_id)} | attributes).encode()


def about(event_id: UUID, story: UUID = FIRST, **changes: Any) -> dict[str, Any]:
    return handling(event_id, story, NOON, **changes)


def gathering(story: UUID = FIRST, expected: Subscriptions | None = None) -> Gathering:
    return Gathering(Found(story), expected or Subscriptions("RabbitMQ's bindings", {}), str(story).encode())


# -- where to begin --------------------------------------------------------------------------------------------------


def test_a_story_is_looked_for_when_its_id_was_made_then_earlier_then_everywhere() -> None:
    at = datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert list(places(FIRST, None)) == [
        Place(at - timedelta(seconds=2), at + timedelta(seconds=5)),
        Place(at - timedelta(minutes=5), at + timedelta(minutes=5)),
        Place(None),
    ]


@pytest.mark.parametrize(
    "story",
    [UUID("f47ac10b-58cc-4372-a567-0e02b2c3d479"), UUID(int=0), UUID("00000000-0000-7000-8000-000000000000")],
    ids=str,
)
def test_an_id_that_tells_no_time_is_looked_for_everywhere(story: UUID) -> None:
    assert list(places(story, None)) == [Place(None)]


def test_an_id_that_stands_for_another_is_looked_for_in_every_event_at_last() -> None:
    assert list(places(uuid5(NAMESPACE, "x"), None)) == [Place(None), Place(None, thorough=True)]


def test_since_says_where_to_begin() -> None:
    assert list(places(FIRST, NOON)) == [Place(NOON)]


# -- what to look at -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("it", "holds"),
    [
        (message(b"... 0042 ..."), True),
        (message(b"... 42 ..."), False),
        (message(b"{}", content_type="application/json", headers={"ce-correlationid": "0042"}), True),
        (message(b"{}", content_type="application/json", headers={"ce-correlationid": "42", "n": 42}), False),
        (message(b"{}", headers={"ce-correlationid": "0042"}), False),
        (message(b"{}", content_type=None, headers={}), False),
    ],
)
def test_what_cannot_be_meant_is_not_decoded(it: Message, holds: bool) -> None:
    assert contains(it, b"0042") is holds


def test_an_id_in_capitals_is_the_same_id() -> None:
    it = gathering()
    it.take(entry(message(cloud_event(str(FIRST).upper()))))
    assert it.begun


def test_what_only_mentions_an_id_is_not_of_its_story() -> None:
    it = gathering()
    it.take(entry(message(cloud_event(uuid4(), data={"see": str(FIRST)}))))
    it.take(entry(message(str(FIRST).encode())))
    it.take(entry(handlings(about(uuid4(), uuid4(), error=str(FIRST)))))
    it.take(entry(handlings(about(FIRST, outcome="exploded"))))
    assert it.found.empty
    assert it.belongs_to is None


def test_the_id_of_an_event_leads_to_its_story() -> None:
    story, caused = uuid4(), uuid5(NAMESPACE, "x")
    for told in (message(cloud_event(caused, correlationid=str(story))), handlings(about(caused, story))):
        it = gathering(caused)
        it.take(entry(told))
        assert it.belongs_to == story


def test_it_is_complete_when_everybody_is_done_with_every_event() -> None:
    expected = Subscriptions(
        "RabbitMQ's bindings",
        {"packing": ["parcel.weighed"], "crm": ["parcel.#"], "audit": ["#"]},
        silent=frozenset({"audit"}),
        with_dead=frozenset({"crm"}),
    )
    it = gathering(expected=expected)

    def after(told: Message) -> bool:
        it.take(entry(told))
        return it.complete

    sent = uuid4()
    assert not it.complete
    assert not after(message(cloud_event()))
    assert not after(handlings(about(FIRST, outcome="retrying", delay="1s")))
    assert not after(handlings(about(FIRST, attempt=2)))
    assert after(handlings(about(FIRST, outcome="dead"), service="crm"))
    assert not after(message(cloud_event(sent, correlationid=str(FIRST)), key="parcel.sent"))
    assert after(handlings(about(sent), service="crm"))
    assert not after(handlings(about(FIRST, outcome="retrying", delay="1s")))
    assert not after(handlings(about(FIRST, outcome="dead"))), (
        "its dead letter is not there any more: sent back, perhaps"
    )


def test_a_handling_may_lie_before_its_event() -> None:
    it = gathering(expected=Subscriptions("RabbitMQ's bindings", {"packing": ["#"]}))
    it.take(entry(handlings(about(FIRST))))
    assert not it.complete
    it.take(entry(message(cloud_event())))
    assert it.complete


def test_nothing_is_complete_while_nobody_says_who_has_subscribed() -> None:
    it = gathering(expected=Subscriptions())
    it.take(entry(message(cloud_event())))
    assert not it.complete


# -- when to stop ----------------------------------------------------------------------------------------------------

LATE = timedelta(minutes=1)


def stop(it: Gathering, within: timedelta | None = None) -> Stop:
    return Stop(NOON + timedelta(seconds=5), it, within)


def found(**patterns: list[str]) -> Gathering:
    """The first event was found, by so many expected."""
    it = gathering(expected=Subscriptions("RabbitMQ's bindings", patterns))
    it.take(entry(message(cloud_event(time=NOON.isoformat()))))
    return it


def test_a_story_that_does_not_turn_up_is_looked_for_elsewhere() -> None:
    it = stop(gathering())
    assert not it.reached(500, NOON + timedelta(seconds=4))
    assert it.reached(1000, NOON + timedelta(seconds=6))


def test_a_story_that_is_not_complete_is_read_to_the_end() -> None:
    it = stop(found(packing=["#"]))
    assert not it.reached(1_000_000, NOON + timedelta(days=7))


def test_of_a_complete_one_a_little_more_is_read() -> None:
    duration, messages = BEYOND
    by_time, by_count = stop(found()), stop(found())
    for it in (by_time, by_count):
        assert not it.reached(500, NOON)
        assert not it.reached(1000, NOON + duration)
    assert by_time.reached(1500, NOON + duration + timedelta(seconds=1))
    assert by_count.reached(501 + messages, NOON)
    assert by_time.why == ""


def test_within_may_be_longer_than_time_goes_on() -> None:
    assert not stop(found(), within=timedelta.max).reached(1_000_000, NOON + timedelta(days=7))


def test_within_reads_so_much_no_less_and_no_more() -> None:
    complete, waiting = stop(found(), within=LATE), stop(found(packing=["#"]), within=LATE)
    for it in (complete, waiting):
        assert not it.reached(1_000_000, NOON + LATE)
        assert it.reached(1_000_500, NOON + LATE + timedelta(seconds=1))
    assert complete.why == ""
    assert waiting.why == "The log was read up to 2026-07-01 12:01:01 UTC only, as --within says."


# -- on RabbitMQ -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def world(vhost_url: str) -> AsyncIterator[World]:
    async with World(vhost_url) as world:
        yield world


@pytest.fixture
def reader(world: World, management: Management) -> Reader:
    settings = world.settings(management_url=f"http://guest:guest@{management.address.removeprefix('http://')}")
    return Reader(settings, ["services"])


async def test_a_story_among_others(world: World, reader: Reader, management: Management) -> None:
    topology = service_topology("packing", ["parcel.weighed"], "events") | handlings_topology(world.settings())
    transport = await world.transport(declare=topology)
    broker = await world.broker("scales")
    await broker.publish_many(weighed() for _ in range(1500))
    story = await broker.publish(weighed(7))
    await broker.publish(ParcelSent(parcel_id=uuid4()), correlation_id=story)
    await transport.publish(handlings(about(story, story)), mandatory=False, timeout=30)
    await broker.publish_many(weighed() for _ in range(1500))
    told = await reader.story(story)
    assert [(step.name, [it.service for it in step.deliveries]) for step in told.steps] == [
        ("Parcel Weighed", ["packing"]),
        ("Parcel Sent", []),
    ]
    assert told.steps[0].data["grams"] == 7
    assert told.expected == "RabbitMQ's bindings"


async def test_a_log_of_foreign_and_hostile_messages(world: World, reader: Reader) -> None:
    broker = await world.broker("scales")
    transport = await world.transport(declare=handlings_topology(world.settings()))
    for it in (
        message(b""),
        message(b"\xff" * 100, content_type=None),
        message(cloud_event(source="")),
        Message("events.handled", "x", b"[]", "application/json"),
        message(b"{}", headers={"ce-id": "x", "ce-type": "A", "ce-source": "b", "ce-specversion": "2"}),
    ):
        await transport.publish(it, mandatory=False, timeout=30)
    story = await broker.publish(weighed())
    assert [step.id for step in (await reader.story(story)).steps] == [story]


async def test_a_story_that_begins_with_an_id_of_another_kind(world: World, reader: Reader) -> None:
    """Elsewhere ids are no UUIDs: they are represented by one, which stands nowhere on the wire."""
    await world.transport()
    await world.send(message(cloud_event("order 42", subject="42")))
    headers: dict[str, Any] = {
        "ce-id": "43",
        "ce-type": "A",
        "ce-source": "web",
        "ce-specversion": "1.0",
        "ce-subject": "43",
    }
    await world.send(message(b"{}", content_type="application/json", headers=headers))
    for subject, source, event_id in (("42", "scales", "order 42"), ("43", "web", "43")):
        (heading,) = await reader.about(Wanted.subject(subject))
        assert heading.correlation_id == uuid5(NAMESPACE, f"{source}\n{event_id}")
        told = await reader.story(heading.correlation_id)
        assert [step.id for step in told.steps] == [heading.correlation_id]


async def test_an_event_that_was_published_long_after_its_id_was_made(world: World, reader: Reader) -> None:
    """From an outbox; or a clock was wrong."""
    broker = await world.broker("scales")
    for days in (-3, 3):
        at = int((datetime.now(UTC) + timedelta(days=days)).timestamp() * 1000)
        story = UUID(int=(at << 80) | (7 << 76) | (2 << 62) | uuid4().int >> 68)
        await broker.publish(weighed(), id=story)
        assert [step.id for step in (await reader.story(story)).steps] == [story]


async def test_the_end_of_an_id_and_a_subject_find_the_story(world: World, reader: Reader) -> None:
    broker = await world.broker("scales")
    parcel = uuid4()
    story = await broker.publish(ParcelWeighed(parcel_id=parcel))
    await broker.publish(ParcelSent(parcel_id=parcel), correlation_id=story)
    other = await broker.publish(ParcelSent(parcel_id=parcel))
    await broker.publish(weighed())
    first, second = await reader.about(Wanted.subject(str(parcel)))
    assert (first.correlation_id, first.name, first.events) == (story, "Parcel Weighed", 2)
    assert (second.correlation_id, second.events) == (other, 1)
    (found,) = await reader.about(Wanted.ending(str(story)[-8:].upper()))
    assert found.correlation_id == story


async def test_what_a_search_finds_is_told_from_its_beginning(world: World, reader: Reader) -> None:
    broker = await world.broker("scales")
    parcel = uuid4()
    story = await broker.publish(ParcelWeighed(parcel_id=parcel))
    await asyncio.sleep(1.1 - datetime.now(UTC).microsecond / 1e6)  # into the next second
    since = datetime.now(UTC)
    sent = await broker.publish(ParcelSent(parcel_id=parcel), correlation_id=story)
    told, interrupted = await asyncio.to_thread(read, reader, Wanted.subject(str(parcel)), since, None)
    assert isinstance(told, Story)
    assert not interrupted
    assert [step.id for step in told.steps] == [story, sent]
    assert not any("beginning" in note for note in told.notes)
    told, _ = await asyncio.to_thread(read, reader, story, since, None)
    assert isinstance(told, Story)
    assert [step.id for step in told.steps if step.publisher] == [sent], "with its id, since says where to begin"


async def test_what_a_search_has_found_when_somebody_will_not_wait(world: World) -> None:
    broker = await world.broker("scales")
    parcel = uuid4()
    story = await broker.publish(ParcelWeighed(parcel_id=parcel))
    await broker.publish_many(weighed() for _ in range(3000))
    searching: asyncio.Task[list[Heading]] | None = None

    def told(done: int, total: int) -> None:
        if searching is not None:
            searching.cancel()

    reader = Reader(world.settings(), [], told)
    assert reader.headings == []
    searching = asyncio.create_task(reader.about(Wanted.subject(str(parcel))))
    await asyncio.wait([searching])
    assert searching.cancelled()
    assert [it.correlation_id for it in reader.headings] == [story]


async def test_a_search_since_a_time_finds_what_came_then(world: World, reader: Reader) -> None:
    broker = await world.broker("scales")
    parcel = uuid4()
    await broker.publish(ParcelWeighed(parcel_id=parcel))
    then = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)
    await until(lambda: datetime.now(UTC) >= then)
    later = await broker.publish(ParcelWeighed(parcel_id=parcel))
    found = await reader.about(Wanted.subject(str(parcel)), since=then)
    assert [it.correlation_id for it in found] == [later]


async def test_what_is_not_there_is_said_with_what_is_near(world: World, reader: Reader) -> None:
    broker = await world.broker("scales")
    story = await broker.publish(weighed())
    mistyped = UUID(int=story.int ^ 0xF0)
    with pytest.raises(ContractError) as caught:
        await reader.story(mistyped)
    assert f"Did you mean '{story}'?" in str(caught.value)
    with pytest.raises(ContractError, match="holds 1 messages, the oldest of") as caught:
        await reader.story(uuid4())
    assert "Around that time" not in str(caught.value), "an id that says no time"
    with pytest.raises(ContractError) as caught:
        await reader.story(UUID(int=story.int ^ 0xFFF_0FFF_FFFF_FFFF_FFFF))  # of the same moment
    assert f"Around that time: Parcel Weighed {story} (" in str(caught.value)
    with pytest.raises(ContractError, match="No event with the subject '1042' is in the event log"):
        await reader.about(Wanted.subject("1042"))
    with pytest.raises(ContractError, match="ends with 'abcd'"):
        await reader.about(Wanted.ending("abcd"))


async def test_an_empty_log_and_no_log(world: World, reader: Reader, management: Management) -> None:
    with pytest.raises(
        ContractError, match=r"no event log 'events.log'.* Are BROKER_EXCHANGE and the virtual host right"
    ):
        await reader.story(uuid4())
    assert await management.queues() == [], "who looks declares nothing"
    await world.broker("scales")
    with pytest.raises(ContractError, match="0 messages"):
        await reader.story(uuid4())
    await management.delete_queue("events.log")
    off = Reader(world.settings(log=False), [])
    with pytest.raises(ContractError, match="switched off"):
        await off.story(uuid4())


async def test_without_the_management_api_the_code_says_who_has_subscribed(world: World) -> None:
    settings = world.settings(management_url="http://guest:guest@127.0.0.1:1")
    broker = await world.broker("order")
    story = await broker.publish(weighed())
    transport = await world.transport()
    placed = cloud_event(uuid4(), type="New Order Placed", correlationid=str(story))
    await transport.publish(message(placed, key="order.placed"), mandatory=False, timeout=30)
    told = await Reader(settings, ["services"]).story(story)
    assert told.expected == "the code"
    assert sorted(it.service for it in told.steps[1].deliveries) == ["crm", "packing", "reporting"]
    told = await Reader(settings, ["no.such.module"]).story(story)
    assert told.expected == ""
    assert any("not known" in note for note in told.notes)


async def test_what_was_found_so_far_when_somebody_will_not_wait(world: World) -> None:
    settings = world.settings(management_url="http://guest:guest@127.0.0.1:1")
    broker = await world.broker("scales")
    story = await broker.publish(weighed())
    await broker.publish_many(weighed() for _ in range(3000))
    seen: list[tuple[int, int]] = []
    reading: asyncio.Task[Story] | None = None

    def told(done: int, total: int) -> None:
        seen.append((done, total))
        if reading is not None:
            reading.cancel()

    reader = Reader(settings, [], told)
    assert reader.so_far("interrupted") is None
    reading = asyncio.create_task(reader.story(story))
    await asyncio.wait([reading])
    assert reading.cancelled()
    so_far = reader.so_far("Interrupted.")
    assert so_far is not None
    assert [step.id for step in so_far.steps] == [story]
    assert "Interrupted." in so_far.notes
    assert seen[0][0] < seen[0][1] == 3001


async def test_how_the_services_stand_is_asked_for_what_is_open(world: World, reader: Reader) -> None:
    await world.transport(declare=service_topology("packing", ["parcel.weighed"], "events"))
    broker = await world.broker("scales")
    story = await broker.publish(weighed())

    async def note() -> str | None:
        (packing,) = (await reader.story(story)).steps[0].deliveries
        return packing.note if "queue" in packing.note else None

    assert await until(note, every=0.5) == "1 in its queue, no consumer"
