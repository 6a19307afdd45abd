"""The Python client, on a transport that answers as the test says."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr, ValidationError

from broker import (
    AccessRefused,
    Broker,
    BrokerError,
    ConnectionFailed,
    ContractError,
    Event,
    NotConfirmed,
    PublishRefused,
    Settings,
    TooLarge,
    Unroutable,
)
from broker.events import id_of
from broker.memory import Memory, Server
from broker.publisher import AT_A_TIME, IN_FLIGHT, IN_FLIGHT_BYTES
from broker.transport import Message, Waiter
from tests.parcels import ParcelSent, VanBroke, weighed
from tests.waiting import until


class Scripted(Memory):
    """A transport that fails as it is told, and remembers what it was given."""

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(Server(), settings or Settings())
        self.sent: list[Message] = []
        self.mandatory: list[bool] = []
        self.fail: dict[str, Exception] = {}
        self.under_way = self.most_under_way = 0
        self.refuses: Exception | None = None
        self.closed = False

    async def connect(self) -> None:
        if self.refuses is not None:
            raise self.refuses
        await super().connect()

    async def publish(self, message: Message, *, mandatory: bool, timeout: float) -> None:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await super().publish(message, mandatory=mandatory, timeout=timeout)
        self.under_way -= 1
        if (error := self.fail.get(json.loads(message.body)["data"].get("van"))) is not None:
            raise error
        self.sent.append(message)
        self.mandatory.append(mandatory)

    async def close(self) -> None:
        self.closed = True
        await super().close()

    @property
    def vans(self) -> list[str]:
        return [json.loads(message.body)["data"]["van"] for message in self.sent]


@pytest.fixture
def transport() -> Scripted:
    return Scripted()


@pytest.fixture
async def broker(transport: Scripted) -> AsyncIterator[Broker]:
    async with Broker(source="garage", transport=transport) as opened:
        yield opened


# -- one -----------------------------------------------------------------------------------------------------------


async def test_what_is_sent(broker: Broker, transport: Scripted) -> None:
    event = weighed()
    event_id = await broker.publish(event)
    (message,) = transport.sent
    assert (message.exchange, message.key, message.type, message.app_id) == (
        "events",
        "parcel.weighed",
        "Parcel Weighed",
        "garage",
    )
    assert message.content_type == "application/cloudevents+json; charset=utf-8"
    assert message.correlation_id == str(event_id)
    body = json.loads(message.body)
    assert (body["id"], body["source"], body["correlationid"]) == (str(event_id), "garage", str(event_id))
    assert "causationid" not in body
    assert message.timestamp is not None
    assert message.timestamp.isoformat().startswith(body["time"].removesuffix("Z")[:19])
    assert transport.mandatory == [True]


async def test_an_event_object_is_one_event(broker: Broker) -> None:
    event = weighed()
    assert await broker.publish(event) == await broker.publish(event) == id_of(event)
    assert await broker.publish(weighed()) != id_of(event)


async def test_id_and_story_may_be_said(broker: Broker, transport: Scripted) -> None:
    event, event_id, story = weighed(), uuid4(), uuid4()
    assert await broker.publish(event, id=event_id, correlation_id=story) == event_id
    body = json.loads(transport.sent[0].body)
    assert (body["id"], body["correlationid"]) == (str(event_id), str(story))
    assert await broker.publish(event) != event_id


async def test_without_the_log_nobody_need_listen() -> None:
    settings = Settings(log=False)
    transport = Scripted(settings)
    async with Broker(source="garage", settings=settings, transport=transport) as broker:
        await broker.publish(weighed())
    assert transport.mandatory == [False]


@pytest.mark.parametrize("wrong", [None, "event", 7, ParcelSent, {"parcel_id": "x"}])
async def test_what_is_no_event_is_refused(broker: Broker, transport: Scripted, wrong: Any) -> None:
    with pytest.raises(ContractError, match="Only an Event"):
        await broker.publish(wrong)
    assert transport.sent == []


@pytest.mark.parametrize("error", [NotConfirmed, PublishRefused, Unroutable, TooLarge])
async def test_a_failure_names_the_event_and_the_next_works(
    broker: Broker, transport: Scripted, lines: list[dict[str, Any]], error: type[NotConfirmed]
) -> None:
    transport.fail = {"7": error("why")}
    event = VanBroke(van="7")
    with pytest.raises(error, match=r"'Van Broke'.*why") as caught:
        await broker.publish(event)
    assert caught.value.event_id == id_of(event)
    assert str(id_of(event)) in str(caught.value)
    (line,) = (line for line in lines if line["event"] == "unconfirmed")
    assert (line["event_id"], line["stored"], line["service"]) == (str(id_of(event)), error.stored, "garage")
    transport.fail = {}
    assert await broker.publish(event) == caught.value.event_id


async def test_a_refused_permission_comes_through(broker: Broker, transport: Scripted) -> None:
    transport.fail = {"7": AccessRefused("no")}
    with pytest.raises(AccessRefused):
        await broker.publish(VanBroke(van="7"))


async def test_what_is_too_large_is_never_sent() -> None:
    settings = Settings(max_message_bytes=2000)
    transport = Scripted(settings)
    async with Broker(source="garage", settings=settings, transport=transport) as broker:
        with pytest.raises(TooLarge, match="BROKER_MAX_MESSAGE_BYTES=2000") as caught:
            await broker.publish(event := VanBroke(van="x" * 2000))
        assert caught.value.event_id == id_of(event)
        assert transport.sent == []
        await broker.publish(VanBroke(van="x"))
    assert len(transport.sent) == 1


async def test_the_published_line(broker: Broker, lines: list[dict[str, Any]]) -> None:
    event = weighed()
    await broker.publish(event)
    (line,) = (line for line in lines if line["event"] == "published")
    assert line == {
        "event": "published",
        "log_level": "debug",
        "service": "garage",
        "event_name": "Parcel Weighed",
        "event_id": str(id_of(event)),
        "correlation_id": str(id_of(event)),
        "key": "parcel.weighed",
    }


# -- opening and closing -------------------------------------------------------------------------------------------


async def test_a_broker_that_is_not_open_says_how_to_open_it() -> None:
    with pytest.raises(BrokerError, match="async with Broker"):
        await Broker(source="garage").publish(weighed())


async def test_after_it_was_closed_it_does_not_publish(transport: Scripted) -> None:
    async with Broker(source="garage", transport=transport) as broker:
        pass
    assert transport.closed
    with pytest.raises(ConnectionFailed, match="closed"):
        await broker.publish(weighed())


async def test_what_fails_to_open_is_closed(transport: Scripted) -> None:
    transport.refuses = AccessRefused("no")
    with pytest.raises(AccessRefused):
        async with Broker(source="garage", transport=transport):
            pass
    assert transport.closed


@pytest.mark.parametrize("source", ["", "a\nb", "ä" * 101, None, 7, "\0"])
def test_a_bad_source_is_refused(source: Any) -> None:
    with pytest.raises(ContractError, match="source"):
        Broker(source=source)


def test_an_address_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_URL", "amqp://there/")
    monkeypatch.setenv("BROKER_CONCURRENCY", "3")
    assert Broker(source="garage").settings.server == "there, virtual host '/'"
    here = Broker("amqp://u:secret@here/", source="garage", settings=Settings(exchange="facts")).settings
    assert (here.server, here.exchange, here.concurrency) == ("here, virtual host '/'", "facts", 3)
    with pytest.raises(ValidationError) as caught:
        Broker("http://u:secret@here/", source="garage")
    assert "secret" not in str(caught.value)


def test_no_secret_in_what_a_broker_shows() -> None:
    settings = Settings(url=SecretStr("amqp://u:hunter2@here/"))
    assert "hunter2" not in repr(Broker(source="garage", settings=settings).settings)


# -- many ----------------------------------------------------------------------------------------------------------


def vans(*names: str) -> list[Event]:
    return [VanBroke(van=name) for name in names]


async def test_ids_come_in_the_order_of_the_events(broker: Broker, transport: Scripted) -> None:
    events = vans(*map(str, range(50)))
    assert await broker.publish_many(events) == [id_of(event) for event in events]
    assert transport.vans == [str(n) for n in range(50)]
    assert await broker.publish_many([]) == []


async def test_many_share_a_story_if_told(broker: Broker, transport: Scripted) -> None:
    story = uuid4()
    await broker.publish_many(vans("1", "2"), correlation_id=story)
    assert {json.loads(message.body)["correlationid"] for message in transport.sent} == {str(story)}


async def test_generators_and_async_iterables(broker: Broker, transport: Scripted) -> None:
    async def coming() -> AsyncIterator[Event]:
        for event in vans("3", "4"):
            await asyncio.sleep(0)
            yield event

    await broker.publish_many(event for event in vans("1", "2"))
    await broker.publish_many(coming())
    assert transport.vans == ["1", "2", "3", "4"]


class Held(Scripted):
    """Answers when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.waiters: deque[Waiter] = deque()

    def post(self, message: Message, waiter: Waiter, *, mandatory: bool, timeout: float) -> None:
        self.waiters.append(waiter)

    async def answer(self, count: int) -> None:
        for _ in range(count):
            self.waiters.popleft().set_result(None)
        for _ in range(20):
            await asyncio.sleep(0)


@asynccontextmanager
async def publishing(events: Iterable[Event], **more: Any) -> AsyncIterator[tuple[Held, asyncio.Task[list[UUID]]]]:
    """Publish as many as go without an answer."""
    held = Held()
    async with Broker(source="garage", transport=held) as broker:
        task = asyncio.create_task(broker.publish_many(events, **more))
        await asyncio.sleep(0)
        await held.answer(0)
        yield held, task
        await held.answer(len(held.waiters))
        await task


async def test_so_many_are_under_way_at_a_time_and_no_more_is_read() -> None:
    read = 0

    def events() -> Iterator[Event]:
        nonlocal read
        for event in vans(*map(str, range(5 * IN_FLIGHT))):
            read += 1
            yield event

    async with publishing(events()) as (held, task):
        assert read == len(held.waiters) == IN_FLIGHT
        await held.answer(AT_A_TIME - 1)
        assert read == IN_FLIGHT, "it begins a hundred at a time"
        await held.answer(1)
        assert (read, len(held.waiters)) == (IN_FLIGHT + AT_A_TIME, IN_FLIGHT)
        for _ in range(100):
            await held.answer(37)
            assert len(held.waiters) <= IN_FLIGHT
        while held.waiters:
            await held.answer(len(held.waiters))
        assert len(await task) == read == 5 * IN_FLIGHT


async def test_so_many_bytes_are_under_way_at_a_time() -> None:
    mib = 1024 * 1024
    async with publishing(VanBroke(van="x" * mib) for _ in range(100)) as (held, task):
        assert len(held.waiters) == IN_FLIGHT_BYTES // mib
        await held.answer(4)
        assert len(held.waiters) == IN_FLIGHT_BYTES // mib
        while held.waiters:
            await held.answer(len(held.waiters))
        assert len(await task) == 100


async def test_progress_is_told_after_each() -> None:
    told: list[int] = []
    async with publishing(vans(*"abcde"), progress=told.append) as (held, _):
        await held.answer(2)
        assert told == [1, 2]
    assert told == [1, 2, 3, 4, 5]


async def test_what_fails_is_told_and_the_others_are_stored(broker: Broker, transport: Scripted) -> None:
    transport.fail = {"2": NotConfirmed("late"), "4": Unroutable("nowhere")}
    events = vans("1", "2", "3", "4", "5")
    with pytest.raises(ExceptionGroup, match="2 of 5") as caught:
        await broker.publish_many(events)
    failed = caught.value.exceptions
    assert {type(error) for error in failed} == {NotConfirmed, Unroutable}
    assert {error.event_id for error in failed if isinstance(error, NotConfirmed | Unroutable)} == {
        id_of(events[1]),
        id_of(events[3]),
    }
    assert {str(error) for error in failed} == {
        f"'Van Broke' {id_of(events[1])}: late",
        f"'Van Broke' {id_of(events[3])}: nowhere",
    }
    assert transport.vans == ["1", "3", "5"]
    transport.fail = {}
    await broker.publish_many(vans("6"))


async def test_a_wrong_one_among_thousands_stops_those_after_it(broker: Broker, transport: Scripted) -> None:
    names = [str(n) for n in range(3 * IN_FLIGHT)]
    wrong: Any = [*vans(*names), "not an event", *vans("after")]
    with pytest.raises(ContractError, match="Only an Event"):
        await broker.publish_many(wrong)
    assert transport.vans == names, "those before it are stored"


async def test_what_never_can_be_sent_is_named_and_the_others_are_stored() -> None:
    settings = Settings(max_message_bytes=2000)
    transport = Scripted(settings)
    transport.fail = {"2": AccessRefused("no")}
    async with Broker(source="garage", settings=settings, transport=transport) as broker:
        events = vans("1", "x" * 2000, "2", "3")
        with pytest.raises(ExceptionGroup, match="2 of 4") as caught:
            await broker.publish_many(events)
    large, refused = sorted(caught.value.exceptions, key=lambda it: isinstance(it, AccessRefused))
    assert isinstance(large, TooLarge)
    assert str(id_of(events[1])) in str(large)
    assert isinstance(refused, AccessRefused)
    assert refused.__notes__ == [f"'Van Broke' {id_of(events[2])}"]
    assert transport.vans == ["1", "3"]


async def test_a_wrong_one_and_a_failure_are_both_told(broker: Broker, transport: Scripted) -> None:
    transport.fail = {"1": NotConfirmed("late")}
    wrong: Any = [*vans("1", "2"), "not an event"]
    with pytest.raises(ExceptionGroup) as caught:
        await broker.publish_many(wrong)
    assert [type(error) for error in caught.value.exceptions] == [NotConfirmed, ContractError]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_iterable_that_raises_half_way(broker: Broker, transport: Scripted, asynchronous: bool) -> None:
    names = [str(n) for n in range(IN_FLIGHT + 7)]

    def events() -> Iterator[Event]:
        yield from vans(*names)
        raise KeyError("rows")

    async def coming() -> AsyncIterator[Event]:
        for event in events():
            yield event

    with pytest.raises(KeyError, match="rows"):
        await broker.publish_many(coming() if asynchronous else events())
    assert transport.vans == names, "what came before is stored"


async def test_one_event_is_not_many(broker: Broker, transport: Scripted) -> None:
    one: Any = weighed()
    with pytest.raises(ContractError, match="use publish for one"):
        await broker.publish_many(one)
    assert transport.sent == []


async def test_a_closed_broker_fails_each(transport: Scripted) -> None:
    async with Broker(source="garage", transport=transport) as broker:
        pass
    with pytest.raises(ExceptionGroup, match="2 of 2"):
        await broker.publish_many(vans("1", "2"))


async def test_cancelling_stops_it(broker: Broker, transport: Scripted) -> None:
    async def endless() -> AsyncIterator[Event]:
        while True:
            await asyncio.sleep(0)
            yield VanBroke(van="1")

    publishing = asyncio.create_task(broker.publish_many(endless()))
    await until(lambda: transport.sent)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    assert isinstance(await broker.publish(weighed()), UUID)
