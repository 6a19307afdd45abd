"""What a service may rely on, from the event to its handler and back, on both transports."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import JsonValue

from broker import Broker, Context, ContractError, Envelope, Event, Reject, Retry, Service
from broker.envelope import CONTENT_TYPE, decode
from broker.events import id_of
from broker.publisher import Publication
from broker.subscriber import Subscriber
from broker.transport import Delivery, Message
from tests.conformance.worlds import World
from tests.parcels import ParcelLost, ParcelSent, ParcelWeighed, VanBroke, message, weighed
from tests.waiting import until

QUICK = Retry("20ms", "40ms")


def envelope_of(sent: Message) -> Envelope:
    return decode(sent.body, key=sent.key, content_type=sent.content_type, headers=sent.headers)


class Seen:
    """A service that remembers each call of its handler, and does there what the test says."""

    def __init__(self, service: Service, *events: Any, behave: Callable[[Any, Context], Any] | None = None) -> None:
        self.events: list[Any] = []
        self.contexts: list[Context] = []
        self.service = service

        async def handle(event: Any, context: Context) -> None:
            self.events.append(event)
            self.contexts.append(context)
            if behave is not None:
                result = behave(event, context)
                if asyncio.iscoroutine(result):
                    await result

        service.on(*events)(handle)

    @property
    def attempts(self) -> list[int]:
        return [context.attempt for context in self.contexts]


def raising(error: BaseException, times: int = 10**6) -> Callable[[Any, Context], None]:
    """A handling that fails so many times, each time anew."""
    left = times

    def behave(event: Any, context: Context) -> None:
        nonlocal left
        if left > 0:
            left -= 1
            raise error

    return behave


# -- handling ------------------------------------------------------------------------------------------------------


async def test_an_event_reaches_its_handler_with_all_that_is_known_of_it(world: World) -> None:
    packing = Seen(Service("packing"), ParcelWeighed)
    broker = await world.broker("scales")
    story = uuid4()
    async with world.serve(packing.service):
        event = weighed(7)
        before = datetime.now(UTC)
        event_id = await broker.publish(event, correlation_id=story)
        await until(lambda: packing.events)
    assert packing.events == [event]
    (context,) = packing.contexts
    assert (context.event_id, context.name, context.key, context.source) == (
        event_id,
        "Parcel Weighed",
        "parcel.weighed",
        "scales",
    )
    assert (context.attempt, context.correlation_id, context.causation_id) == (1, story, None)
    assert before <= context.time <= datetime.now(UTC)


async def test_each_subscriber_gets_its_own(world: World) -> None:
    packing, crm = Seen(Service("packing"), ParcelWeighed), Seen(Service("crm"), "parcel.*")
    broker = await world.broker()
    async with world.serve(packing.service), world.serve(crm.service):
        await broker.publish(VanBroke(van="7"))
        await broker.publish(ParcelSent(parcel_id=uuid4()))
        await broker.publish(weighed())
        await until(lambda: len(crm.events) == 2 and packing.events)
    assert [envelope.name for envelope in crm.events] == ["Parcel Sent", "Parcel Weighed"]
    assert len(packing.events) == 1


async def test_what_was_published_while_nobody_ran_is_handled_later(world: World) -> None:
    packing = Seen(Service("packing"), ParcelWeighed)
    async with world.serve(packing.service):
        pass
    broker = await world.broker()
    await broker.publish_many([weighed(n) for n in range(20)])
    async with world.serve(packing.service):
        await until(lambda: len(packing.events) == 20)
    assert packing.attempts == [1] * 20


async def test_an_exact_event_wins_over_a_pattern(world: World) -> None:
    service = Service("packing")
    exact, pattern = Seen(service, ParcelWeighed), Seen(service, "parcel.*")
    broker = await world.broker()
    async with world.serve(service):
        await broker.publish(weighed())
        await broker.publish(ParcelSent(parcel_id=uuid4()))
        await until(lambda: exact.events and pattern.events)
    assert [type(event) for event in exact.events] == [ParcelWeighed]
    assert [envelope.name for envelope in pattern.events] == ["Parcel Sent"]


async def test_one_subscribers_failure_is_nobody_elses(world: World) -> None:
    crm = Seen(Service("crm", retry=QUICK), ParcelWeighed, behave=raising(ValueError("down")))
    packing = Seen(Service("packing"), ParcelWeighed)
    broker = await world.broker()
    async with world.serve(crm.service), world.serve(packing.service):
        await broker.publish_many([weighed() for _ in range(5)])
        dead = await world.dead("crm")
        await dead.reach(5)
        await until(lambda: len(packing.events) == 5)
    assert packing.attempts == [1] * 5


# -- failing -------------------------------------------------------------------------------------------------------


async def test_a_failure_is_retried_until_it_succeeds(world: World, lines: list[dict[str, Any]]) -> None:
    packing = Seen(Service("packing", retry=QUICK), ParcelWeighed, behave=raising(ValueError("no tape"), 2))
    broker = await world.broker("scales")
    async with world.serve(packing.service):
        event = weighed(7)
        event_id = await broker.publish(event)
        await until(lambda: len(packing.events) == 3)
        await until(lambda: any(line["event"] == "handled" for line in lines))
    assert packing.events == [event] * 3
    assert packing.attempts == [1, 2, 3]
    assert {context.event_id for context in packing.contexts} == {event_id}
    assert {context.key for context in packing.contexts} == {"parcel.weighed"}
    assert {context.source for context in packing.contexts} == {"scales"}
    assert [line["delay"] for line in lines if line["event"] == "retrying"] == ["20ms", "40ms"]


async def test_at_the_ladders_end_it_is_dead_with_its_story(world: World) -> None:
    service = Service("packing", retry=QUICK)

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> None:
        raise ValueError("no tape")

    broker = await world.broker("scales")
    async with world.serve(service):
        event_id = await broker.publish(weighed(7))
        dead = await world.dead("packing")
        await dead.reach(1)
        reading = await world.events()
        await reading.reach(1)
    letter, original = dead[0].message, reading[0].message
    assert letter.body == original.body
    assert (letter.content_type, letter.type, letter.app_id) == (CONTENT_TYPE, "Parcel Weighed", "scales")
    assert letter.correlation_id == str(event_id)
    told = {name: value for name, value in letter.headers.items() if name.startswith("broker-")}
    assert datetime.fromisoformat(str(told.pop("broker-failed-at"))).tzinfo is not None
    assert str(told.pop("broker-handler")).endswith("pack")
    assert str(told.pop("broker-traceback")).rstrip().endswith("ValueError: no tape")
    assert told == {
        "broker-key": "parcel.weighed",
        "broker-attempt": 3,
        "broker-service": "packing",
        "broker-error": "ValueError: no tape",
    }


@pytest.mark.parametrize(
    ("error", "reason"),
    [(Reject("the card is stolen"), "Reject: the card is stolen"), (KeyError("tape"), "KeyError: 'tape'")],
)
async def test_what_is_rejected_or_never_retried_is_dead_at_once(world: World, error: Exception, reason: str) -> None:
    ladder = Retry("1h", never=[KeyError])
    packing = Seen(Service("packing", retry=ladder), ParcelWeighed, behave=raising(error))
    broker = await world.broker()
    async with world.serve(packing.service):
        await broker.publish(weighed())
        dead = await world.dead("packing")
        await dead.reach(1)
    assert packing.attempts == [1]
    assert (dead[0].message.headers["broker-attempt"], dead[0].message.headers["broker-error"]) == (1, reason)


async def test_a_handler_may_have_a_ladder_of_its_own(world: World) -> None:
    service = Service("packing", retry=Retry("1h"))
    attempts: list[int] = []

    @service.on(ParcelWeighed, retry=Retry("20ms"))
    async def pack(event: ParcelWeighed, context: Context) -> None:
        attempts.append(context.attempt)
        raise ValueError("no tape")

    broker = await world.broker()
    async with world.serve(service):
        await broker.publish(weighed())
        dead = await world.dead("packing")
        await dead.reach(1)
    assert attempts == [1, 2]


async def test_a_handler_that_cancels_itself_has_failed(world: World) -> None:
    packing = Seen(Service("packing", retry=QUICK), ParcelWeighed, behave=raising(asyncio.CancelledError(), 1))
    broker = await world.broker()
    async with world.serve(packing.service):
        await broker.publish(weighed())
        await until(lambda: packing.attempts == [1, 2])


async def test_a_failing_handler_publishes_nothing(world: World) -> None:
    service = Service("packing", publishes=[ParcelSent], retry=QUICK)
    sent = Seen(Service("crm"), ParcelSent)
    attempts: list[int] = []

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        attempts.append(context.attempt)
        await context.publish(ParcelSent(parcel_id=event.parcel_id))
        if context.attempt == 1:
            raise ValueError("no tape")

    broker = await world.broker()
    async with world.serve(service), world.serve(sent.service):
        await broker.publish(weighed())
        await until(lambda: sent.events)
    assert attempts == [1, 2]
    assert len(sent.events) == 1


# -- bad input -----------------------------------------------------------------------------------------------------

UNREADABLE = {
    "not JSON": message(b"\x00\xff\xfe not json"),
    "empty": message(b""),
    "JSON, but no CloudEvent": message(b'{"grams": 1}'),
    "no content type": message(b"<parcel/>", content_type=None),
    "XML": message(b"<parcel/>", content_type="application/xml"),
    "an impossible time": message(
        b'{"specversion":"1.0","id":"1","source":"s","type":"Parcel Weighed","time":"0001-01-01T00:00:00+14:00"}'
    ),
}


@pytest.mark.parametrize("what", UNREADABLE)
async def test_what_cannot_be_read_is_dead_at_once_untouched_and_alone(
    world: World, what: str, lines: list[dict[str, Any]]
) -> None:
    packing = Seen(Service("packing", retry=Retry("1h")), ParcelWeighed)
    broker = await world.broker()
    async with world.serve(packing.service):
        await broker.publish(weighed(1))
        await world.send(UNREADABLE[what])
        await broker.publish(weighed(2))
        dead = await world.dead("packing")
        await dead.reach(1)
        await until(lambda: len(packing.events) == 2)
    letter = dead[0].message
    assert (letter.body, letter.content_type) == (UNREADABLE[what].body, UNREADABLE[what].content_type)
    assert not any(name.startswith("broker-") for name in letter.headers)
    assert packing.attempts == [1, 1]
    (line,) = (line for line in lines if line["event"] == "dead")
    assert line["error"].startswith("Malformed: ")


def structured(**attributes: Any) -> bytes:
    event: dict[str, Any] = {"specversion": "1.0", "id": str(uuid4()), "source": "s", "type": "Parcel Weighed"}
    return json.dumps(event | attributes).encode()


MISFITS = {
    "a field of a wrong type": structured(data={"parcel_id": "x"}),
    "a missing field": structured(data={}),
    "no data": structured(),
    "data of another kind": structured(data=[1]),
    "another event's type for its key": structured(type="Parcel Sent", data={"parcel_id": str(uuid4())}),
}


@pytest.mark.parametrize("what", MISFITS)
async def test_what_does_not_fit_is_dead_at_once_with_the_reason(world: World, what: str) -> None:
    service = Service("packing", retry=Retry("1h"))
    packing = Seen(service, ParcelWeighed)
    other = Seen(service, ParcelSent)
    async with world.serve(service):
        await world.send(message(MISFITS[what]))
        dead = await world.dead("packing")
        await dead.reach(1)
    letter = dead[0].message
    assert letter.body == MISFITS[what]
    assert str(letter.headers["broker-error"]).startswith("Malformed: ")
    assert letter.headers["broker-attempt"] == 1
    assert packing.events == other.events == []


async def test_headers_from_outside_are_not_believed(world: World) -> None:
    packing = Seen(Service("packing", retry=QUICK), ParcelWeighed)
    lies: dict[str, Any] = {"broker-attempt": 99, "broker-key": "van.broke", "x-delivery-count": 19}
    async with world.serve(packing.service):
        await world.send(message(structured(data={"parcel_id": str(uuid4())}), headers=lies))
        await until(lambda: packing.events)
    assert packing.attempts == [1]
    assert packing.contexts[0].key == "parcel.weighed"


HEADERS: dict[str, dict[str, Any]] = {
    "bytes": {"raw": b"\xff\xfe"},
    "some": {"tenant": "a", "none": None, "half": 0.5},
    "many": {f"header-{number}": "x" * 500 for number in range(100)},
}


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
async def test_headers_of_others_never_hinder_a_retry(world: World, headers: dict[str, Any]) -> None:
    packing = Seen(Service("packing", retry=QUICK), ParcelWeighed, behave=raising(ValueError("x" * 100_000)))
    async with world.serve(packing.service):
        await world.send(message(structured(data={"parcel_id": str(uuid4())}), headers=headers))
        dead = await world.dead("packing")
        await dead.reach(1)
    assert packing.attempts == [1, 2, 3]
    assert dead[0].message.headers.get("tenant") == headers.get("tenant")


# -- old and new ---------------------------------------------------------------------------------------------------


async def test_what_this_process_does_not_know_waits_for_a_newer_one(world: World) -> None:
    ladder = Retry("100ms", "300ms", "500ms")
    old, new = Service("packing", retry=ladder), Service("packing", retry=ladder)
    weighings, newer = Seen(old, ParcelWeighed), Seen(new, ParcelWeighed)
    sendings, sent = Seen(new, ParcelSent), list[ParcelSent]()
    broker = await world.broker()
    async with world.serve(new):
        async with world.serve(old):
            await broker.publish_many([weighed(n) for n in range(30)])

            async def the_old_process_had_one() -> bool:
                sent.append(ParcelSent(parcel_id=UUID(int=len(sent))))
                await broker.publish(sent[-1])
                return max(sendings.attempts, default=0) > 1

            await until(the_old_process_had_one)
        await until(lambda: len(sendings.events) == len(sent))
        await until(lambda: len(weighings.events) + len(newer.events) == 30)
    assert sorted(event.parcel_id.int for event in sendings.events) == list(range(len(sent)))
    await world.send(message(b"last", exchange="packing", key="packing.dead"))
    dead = await world.dead("packing")
    await dead.reach(1)


async def test_what_nobody_ever_takes_is_dead_as_unhandled(world: World) -> None:
    new, old = Service("packing", retry=QUICK), Service("packing", retry=QUICK)
    Seen(new, ParcelWeighed, ParcelSent)
    Seen(old, ParcelWeighed)
    async with world.serve(new):
        pass  # it bound the queue
    broker = await world.broker()
    async with world.serve(old):
        await broker.publish(ParcelSent(parcel_id=uuid4()))
        dead = await world.dead("packing")
        await dead.reach(1)
    headers = dead[0].message.headers
    assert str(headers["broker-error"]).startswith("Unhandled: ")
    assert "Parcel Sent" in str(headers["broker-error"])
    assert (headers["broker-attempt"], headers["broker-key"]) == (3, "parcel.sent")


class Measured(Event, name="Parcel Measured", key="parcel.measured", version=1):
    length: int


class MeasuredToday(Event, name="Parcel Measured", key="parcel.measured", version=2):
    millimetres: int


async def test_two_versions_stand_side_by_side(world: World) -> None:
    service = Service("packing")
    first, second = Seen(service, Measured), Seen(service, MeasuredToday)
    broker = await world.broker()
    async with world.serve(service):
        await broker.publish(Measured(length=1))
        await broker.publish(MeasuredToday(millimetres=2))
        await until(lambda: first.events and second.events)
    assert first.events == [Measured(length=1)]
    assert second.events == [MeasuredToday(millimetres=2)]


async def test_a_higher_version_that_fits_is_handled_and_said_once(world: World, lines: list[dict[str, Any]]) -> None:
    packing = Seen(Service("packing", retry=Retry("1h")), Measured)
    fits = {"type": "Parcel Measured", "dataschema": "urn:event:parcel.measured:3"}
    async with world.serve(packing.service):
        for _ in range(2):
            await world.send(message(structured(data={"length": 1, "width": 2}, **fits), key="parcel.measured"))
        await world.send(message(structured(data={"width": 2}, **fits), key="parcel.measured"))
        await until(lambda: len(packing.events) == 2)
        dead = await world.dead("packing")
        await dead.reach(1)
    assert packing.events == [Measured(length=1)] * 2
    (line,) = (line for line in lines if line["event"] == "newer version")
    assert (line["version"], line["handled_as"]) == (3, 1)


@pytest.mark.parametrize("prefix", ["cloudEvents:", "cloudEvents_", "ce-"])
async def test_events_in_binary_mode_are_accepted_and_retried(world: World, prefix: str) -> None:
    packing = Seen(Service("packing", retry=QUICK), ParcelWeighed, behave=raising(ValueError("no tape"), 1))
    parcel, event_id = uuid4(), uuid4()
    attributes = {"specversion": "1.0", "id": str(event_id), "source": "scale-7", "type": "Parcel Weighed"}
    binary = message(
        json.dumps({"parcel_id": str(parcel)}).encode(),
        content_type="application/json",
        headers={prefix + name: value for name, value in attributes.items()},
    )
    async with world.serve(packing.service):
        await world.send(binary)
        await until(lambda: len(packing.events) == 2)
    assert packing.events == [ParcelWeighed(parcel_id=parcel)] * 2
    assert packing.attempts == [1, 2]
    assert {(context.event_id, context.source) for context in packing.contexts} == {(event_id, "scale-7")}


# -- what handlers publish -----------------------------------------------------------------------------------------


def returning(service: Service) -> None:
    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> list[ParcelSent | ParcelLost]:
        return [ParcelSent(parcel_id=event.parcel_id), ParcelLost(parcel_id=event.parcel_id)]


def yielding(service: Service) -> None:
    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> AsyncIterator[ParcelSent | ParcelLost]:
        yield ParcelSent(parcel_id=event.parcel_id)
        yield ParcelLost(parcel_id=event.parcel_id)


def yielding_in_a_thread(service: Service) -> None:
    @service.on(ParcelWeighed)
    def pack(event: ParcelWeighed) -> Iterator[ParcelSent | ParcelLost]:
        yield ParcelSent(parcel_id=event.parcel_id)
        yield ParcelLost(parcel_id=event.parcel_id)


def publishing(service: Service) -> None:
    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        await context.publish(ParcelSent(parcel_id=event.parcel_id))
        await context.publish(ParcelLost(parcel_id=event.parcel_id))


def publishing_and_returning(service: Service) -> None:
    @service.on(ParcelWeighed)
    def pack(event: ParcelWeighed, context: Context) -> ParcelLost:
        context.publish(ParcelSent(parcel_id=event.parcel_id))
        return ParcelLost(parcel_id=event.parcel_id)


async def test_all_ways_to_publish_give_the_same_events_under_the_same_ids(world: World) -> None:
    """The event is handled five times, by one handler after the other: nothing new is published after the first."""
    log = await world.events()
    broker = await world.broker("scales")
    event = weighed()
    await broker.publish(event)
    expected = 1
    for subscribe in (returning, yielding, yielding_in_a_thread, publishing, publishing_and_returning):
        service = Service("packing", publishes=[ParcelSent, ParcelLost])
        subscribe(service)
        async with world.serve(service, record_handlings=False):
            await broker.publish(event)
            expected += 3
            await log.reach(expected)
    published = [envelope_of(delivery.message) for delivery in log.deliveries]
    caused = [it for it in published if it.name != "Parcel Weighed"]
    assert len({it.id for it in caused}) == 2
    assert all(it.id.version == 5 for it in caused)
    assert {(it.source, it.story.correlation_id, it.story.causation_id) for it in caused} == {
        ("packing", id_of(event), id_of(event))
    }


async def test_a_story_goes_on_from_service_to_service(world: World) -> None:
    packing, dispatch = Service("packing"), Service("dispatch")

    @packing.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> ParcelSent:
        return ParcelSent(parcel_id=event.parcel_id)

    @dispatch.on(ParcelSent)
    async def send(event: ParcelSent) -> ParcelLost:
        return ParcelLost(parcel_id=event.parcel_id)

    log = await world.events()
    broker = await world.broker("scales")
    async with world.serve(packing, record_handlings=False), world.serve(dispatch, record_handlings=False):
        story = await broker.publish(weighed())
        await log.reach(3)
    first, second, third = (envelope_of(delivery.message) for delivery in log.deliveries)
    assert [it.story.correlation_id for it in (first, second, third)] == [story] * 3
    assert [it.story.causation_id for it in (first, second, third)] == [None, first.id, second.id]
    assert [it.source for it in (first, second, third)] == ["scales", "packing", "dispatch"]


async def test_no_task_is_made_for_a_delivery(rabbit: World) -> None:
    made: list[str] = []

    def noting(loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> asyncio.Task[Any]:
        made.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **more)

    seen = Seen(Service("packing"), ParcelWeighed)
    broker = await rabbit.broker()
    async with rabbit.serve(seen.service):
        await broker.publish(weighed())
        await until(lambda: seen.events)
        asyncio.get_running_loop().set_task_factory(noting)
        await broker.publish_many(weighed() for _ in range(1000))
        await until(lambda: len(seen.events) == 1001)
        asyncio.get_running_loop().set_task_factory(None)
    assert len(made) < 50, made


class Noting:
    """A delivery that says when it is acknowledged, and which it is."""

    def __init__(self, delivery: Delivery, order: list[str]) -> None:
        self._delivery = delivery
        self._order = order

    def __getattr__(self, name: str) -> Any:
        return getattr(self._delivery, name)

    async def ack(self) -> None:
        grams = json.loads(self._delivery.message.body)["data"]["grams"]
        self._order.append(f"{grams} acknowledged")
        await self._delivery.ack()


async def test_what_a_handler_publishes_is_stored_before_its_delivery_is_done_with(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, order, answer = Service("packing"), list[str](), asyncio.Event()

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> ParcelSent | None:
        return ParcelSent(parcel_id=event.parcel_id) if event.grams == 1 else None

    begin, receive = Broker.begin, Subscriber.receive

    async def noting(broker: Broker, publication: Publication) -> None:
        await begin(broker, publication)
        if isinstance(publication.event, ParcelSent):
            order.append("published")
            await answer.wait()
            order.append("confirmed")

    def handed(subscriber: Subscriber, delivery: Delivery) -> None:
        noted: Any = Noting(delivery, order)
        receive(subscriber, noted)

    monkeypatch.setattr(Broker, "begin", noting)
    monkeypatch.setattr(Subscriber, "receive", handed)
    broker = await world.broker()
    async with world.serve(service):
        await broker.publish(weighed(1))
        await until(lambda: order == ["published"])
        await broker.publish(weighed(2))  # one that came later is done with meanwhile
        await until(lambda: "2 acknowledged" in order)
        answer.set()
        await until(lambda: "1 acknowledged" in order)
    assert order == ["published", "2 acknowledged", "confirmed", "1 acknowledged"]


async def test_publishing_what_is_not_declared_fails_the_handler(world: World) -> None:
    packing = Seen(
        Service("packing", publishes=[ParcelSent], retry=QUICK),
        ParcelWeighed,
        behave=lambda event, context: context.publish(ParcelLost(parcel_id=uuid4())) and None,
    )
    broker = await world.broker()
    async with world.serve(packing.service):
        await broker.publish(weighed())
        dead = await world.dead("packing")
        await dead.reach(1)
    assert "publishes 'Parcel Lost' version 1 without declaring it" in str(dead[0].message.headers["broker-error"])


async def test_what_is_too_large_fails_the_handler(world: World) -> None:
    service = Service("packing", publishes=[VanBroke], retry=QUICK)

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> VanBroke:
        return VanBroke(van="x" * 5000)

    broker = await world.broker()
    async with world.serve(service, max_message_bytes=4000):
        await broker.publish(weighed())
        dead = await world.dead("packing")
        await dead.reach(1)
    assert "TooLarge" in str(dead[0].message.headers["broker-error"])


class ParcelDescribed(Event, name="Parcel Described", key="parcel.described"):
    words: JsonValue


async def test_what_cannot_be_written_as_json_fails_the_handler(world: World) -> None:
    service = Service("packing", publishes=[ParcelDescribed], retry=QUICK)

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> ParcelDescribed:
        return ParcelDescribed(words="\ud800")

    broker = await world.broker()
    async with world.serve(service):
        await broker.publish(weighed())
        dead = await world.dead("packing")
        await dead.reach(1)
        with pytest.raises(ContractError, match="cannot be written as JSON"):
            await broker.publish(ParcelDescribed(words=["\udfff"]))
    assert "cannot be written as JSON" in str(dead[0].message.headers["broker-error"])


# -- running -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_so_many_handlers_run_at_a_time_and_no_more(world: World, concurrency: int) -> None:
    running = most = done = 0
    go_on, service = asyncio.Event(), Service("packing")

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await go_on.wait()
        running -= 1
        done += 1

    broker = await world.broker()
    async with world.serve(service, concurrency=concurrency) as subscriber:
        await broker.publish_many([weighed() for _ in range(12)])
        await until(lambda: running == concurrency < subscriber.busy)  # others are in line
        go_on.set()
        await until(lambda: done == 12)
    assert most == concurrency


async def test_one_at_a_time_is_in_order(world: World) -> None:
    packing = Seen(Service("packing"), ParcelWeighed)
    broker = await world.broker()
    async with world.serve(packing.service, concurrency=1):
        for n in range(30):
            await broker.publish(weighed(n))
        await until(lambda: len(packing.events) == 30)
    assert [event.grams for event in packing.events] == list(range(30))


async def test_plain_functions_run_in_threads_beside_each_other(world: World) -> None:
    together = threading.Barrier(3)
    names: list[str] = []
    service = Service("packing")

    @service.on(ParcelWeighed)
    def pack(event: ParcelWeighed) -> None:
        together.wait(10)
        names.append(threading.current_thread().name)

    broker = await world.broker()
    async with world.serve(service, concurrency=3):
        await broker.publish_many([weighed() for _ in range(3)])
        await until(lambda: len(names) == 3)
    assert len(set(names)) == 3


NOTE: ContextVar[str] = ContextVar("NOTE", default="clean")


async def test_each_delivery_has_fresh_context_variables(world: World) -> None:
    service, found = Service("packing"), []

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> None:
        found.append(NOTE.get())
        NOTE.set("dirty")

    @service.on(ParcelSent)
    def send(event: ParcelSent) -> None:
        found.append(NOTE.get())
        NOTE.set("dirty")

    broker = await world.broker()
    async with world.serve(service, concurrency=1):
        for event in (weighed(), weighed(), ParcelSent(parcel_id=uuid4()), ParcelSent(parcel_id=uuid4())):
            await broker.publish(event)
        await until(lambda: len(found) == 4)
    assert found == ["clean"] * 4


async def test_functions_around_wrap_every_handling(world: World) -> None:
    service, told = Service("packing", retry=QUICK), []

    @service.around
    async def outer(context: Context, handle: Callable[[], Awaitable[None]]) -> None:
        told.append(f"outer {context.attempt}")
        NOTE.set("from outer")
        try:
            await handle()
        finally:
            told.append("outer done")

    @service.around
    async def inner(context: Context, handle: Callable[[], Awaitable[None]]) -> None:
        told.append("inner")
        await handle()
        told.append("inner done")

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        told.append(f"pack {NOTE.get()}")
        if context.attempt == 1:
            raise ValueError("no tape")

    broker = await world.broker()
    async with world.serve(service):
        await broker.publish(weighed())
        await until(lambda: told.count("outer done") == 2)
    failed, succeeded = told[:4], told[4:]
    assert failed == ["outer 1", "inner", "pack from outer", "outer done"]
    assert succeeded == ["outer 2", "inner", "pack from outer", "inner done", "outer done"]


async def test_what_around_raises_is_a_failure_and_what_it_skips_is_handled(world: World) -> None:
    service, packed = Service("packing", retry=Retry("1h")), Seen(Service("unused"), ParcelWeighed)
    packing = Seen(service, ParcelWeighed)

    @service.around
    async def picky(context: Context, handle: Callable[[], Awaitable[None]]) -> None:
        if context.source == "bad":
            raise Reject("bad source")
        if context.source != "skipped":
            await handle()

    async with world.serve(service):
        for source in ("bad", "skipped", "good"):
            await (await world.broker(source)).publish(weighed())
        dead = await world.dead("packing")
        await dead.reach(1)
        await until(lambda: packing.events)
    assert [context.source for context in packing.contexts] == ["good"]
    assert packed.events == []
    assert dead[0].message.app_id == "bad"


async def test_resources_of_the_lifespan_reach_every_handler_until_the_last(world: World) -> None:
    told: list[str] = []

    @asynccontextmanager
    async def lifespan(service: Service) -> AsyncIterator[dict[str, str]]:
        told.append(f"{service.name} opened")
        yield {"tape": "brown"}
        told.append("closed")

    async def slowly(event: Any, context: Context) -> None:
        began.set()
        await release.wait()
        told.append(context.resources["tape"])

    began, release = asyncio.Event(), asyncio.Event()
    packing = Seen(Service("packing", lifespan=lifespan), ParcelWeighed, behave=slowly)
    broker = await world.broker()
    async with world.serve(packing.service):
        await broker.publish(weighed())
        await began.wait()
        asyncio.get_running_loop().call_soon(release.set)
    assert told == ["packing opened", "brown", "closed"]


async def test_two_processes_share_one_queue(world: World) -> None:
    one, two = Seen(Service("packing"), ParcelWeighed), Seen(Service("packing"), ParcelWeighed)
    broker = await world.broker()
    async with world.serve(one.service), world.serve(two.service):
        await broker.publish_many([weighed(n) for n in range(60)])
        await until(lambda: len(one.events) + len(two.events) >= 60)
    grams = [event.grams for event in one.events + two.events]
    assert sorted(grams) == list(range(60))
    assert one.events
    assert two.events


# -- stopping ------------------------------------------------------------------------------------------------------


async def test_a_process_that_stops_gives_back_what_has_not_begun_and_finishes_the_rest(world: World) -> None:
    began, release, stop = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slowly(event: Any, context: Context) -> None:
        began.set()
        await release.wait()

    stopping, following = (Seen(Service("packing"), ParcelWeighed, behave=it) for it in (slowly, None))
    broker = await world.broker()

    async def process() -> None:
        async with world.serve(stopping.service, concurrency=1, prefetch=10) as subscriber:
            await broker.publish_many([weighed(n) for n in range(4)])
            await until(lambda: began.is_set() and subscriber.busy == 4)
            stop.set()

    running = asyncio.create_task(process())
    await stop.wait()
    async with world.serve(following.service):
        await until(lambda: len(following.events) == 3)
        assert not running.done(), "it still has one in hand"
        release.set()
        await running
    assert len(stopping.events) == 1
    assert following.attempts == [1] * 3, "given back, not failed"
    assert {event.grams for event in stopping.events + following.events} == set(range(4))


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_what_does_not_end_in_time_is_given_back(world: World, kind: str) -> None:
    began, release = threading.Event(), threading.Event()
    service = Service("packing")
    if kind == "async":

        @service.on(ParcelWeighed)
        async def forever(event: ParcelWeighed) -> None:
            began.set()
            await asyncio.Event().wait()
    else:

        @service.on(ParcelWeighed)
        def for_long(event: ParcelWeighed) -> None:
            began.set()
            release.wait(20)

    broker = await world.broker()
    async with world.serve(service, shutdown_timeout=0.1) as subscriber:
        await broker.publish(weighed())
        await until(began.is_set)
    assert subscriber.stuck == (kind == "thread")
    following = Seen(Service("packing"), ParcelWeighed)
    async with world.serve(following.service):
        await until(lambda: following.events)
    assert following.attempts == [1]
    release.set()
    await until(lambda: not subscriber.stuck)


# -- log lines -----------------------------------------------------------------------------------------------------


async def test_the_handled_line(world: World, lines: list[dict[str, Any]]) -> None:
    packing = Seen(Service("packing"), ParcelWeighed)
    broker = await world.broker("scales")
    async with world.serve(packing.service):
        event_id = await broker.publish(weighed())
        await until(lambda: any(line["event"] == "handled" for line in lines))
    (line,) = (line for line in lines if line["event"] == "handled")
    assert 0 <= line.pop("took") < 10
    assert line.pop("handler").endswith("handle")
    assert line == {
        "event": "handled",
        "log_level": "debug",
        "service": "packing",
        "event_name": "Parcel Weighed",
        "event_id": str(event_id),
        "correlation_id": str(event_id),
        "source": "scales",
        "attempt": 1,
    }


async def test_lines_within_a_handler_tell_which_event(world: World, lines: list[dict[str, Any]]) -> None:
    import structlog

    packing = Seen(
        Service("packing"), ParcelWeighed, behave=lambda event, context: structlog.get_logger().info("taping")
    )
    broker = await world.broker()
    async with world.serve(packing.service):
        event_id = await broker.publish(weighed())
        await until(lambda: any(line["event"] == "taping" for line in lines))
    (line,) = (line for line in lines if line["event"] == "taping")
    assert (line["event_id"], line["event_name"], line["service"]) == (str(event_id), "Parcel Weighed", "packing")


async def test_the_lines_of_a_failure(world: World, lines: list[dict[str, Any]]) -> None:
    packing = Seen(Service("packing", retry=Retry("20ms")), ParcelWeighed, behave=raising(ValueError("no tape")))
    broker = await world.broker()
    async with world.serve(packing.service):
        await broker.publish(weighed())
        await until(lambda: any(line["event"] == "dead" for line in lines))
    retrying, dead = (line for line in lines if line["event"] in ("retrying", "dead"))
    assert (retrying["log_level"], retrying["attempt"], retrying["delay"], retrying["error"]) == (
        "warning",
        1,
        "20ms",
        "ValueError: no tape",
    )
    assert (dead["log_level"], dead["attempt"], dead["error"]) == ("error", 2, "ValueError: no tape")
    assert "handled" not in {line["event"] for line in lines}
