"""Handlers: what a signature says, who takes an event, what is collected."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Annotated, Any, Optional, Union
from uuid import UUID, uuid4

import pytest

from broker import Context, ContractError, Envelope, Event, Malformed, Service, Unhandled
from broker.envelope import CONTENT_TYPE, Story, caused_id, decode, encode
from broker.events import Catalogue, id_of
from broker.handlers import Collector, Handlers, Threads, inspect_handler, is_async, payload_of
from tests.parcels import ParcelLost, ParcelSent, ParcelWeighed, VanBroke, weighed


def envelope(event: Event | None = None, *, key: str | None = None, name: str | None = None) -> Envelope:
    event = event or weighed()
    event_id = id_of(event)
    body, _ = encode(event, event_id=event_id, source="scales", time=Context().time, story=Story(event_id))
    if name is not None:
        body = body.replace(event.__contract__.name.encode(), name.encode())
    return decode(body, key=key or event.__contract__.key, content_type=CONTENT_TYPE, headers={})


# -- signatures ----------------------------------------------------------------------------------------------------


async def plain(event: ParcelWeighed) -> None: ...
async def with_context(event: ParcelWeighed, context: Context) -> None: ...
async def unannotated(event, context): ...  # type: ignore[no-untyped-def]
async def with_default(event: ParcelWeighed, context: Context | None = None) -> None: ...
async def with_setting(event: ParcelWeighed, limit: int = 10) -> None: ...
async def another_name(event: ParcelWeighed, it: Context) -> None: ...
async def union(event: ParcelWeighed | ParcelSent) -> None: ...
async def base(event: Event) -> None: ...
async def anything(event: Any) -> None: ...
async def keyword_default(event: ParcelWeighed, *, limit: int = 10) -> None: ...


@pytest.mark.parametrize(
    ("function", "takes_context"),
    [
        (plain, False),
        (with_context, True),
        (unannotated, True),
        (with_default, True),
        (with_setting, False),
        (another_name, True),
        (union, False),
        (base, False),
        (anything, False),
        (keyword_default, False),
    ],
)
def test_what_a_signature_says(function: Callable[..., Any], takes_context: bool) -> None:
    handler = inspect_handler(function, (ParcelWeighed,), None)
    assert (handler.takes_context, handler.events, handler.pattern) == (takes_context, (ParcelWeighed,), None)
    assert handler.name == function.__name__
    assert handler.bindings == ["parcel.weighed"]


async def nothing() -> None: ...
async def three(event: ParcelWeighed, context: Context, more: int) -> None: ...
async def keyword(event: ParcelWeighed, *, context: Context) -> None: ...
async def wrong_event(event: ParcelSent) -> None: ...
async def too_narrow(event: ParcelSent | ParcelLost) -> None: ...
async def wrong_type(event: str) -> None: ...
async def only_keyword(*, event: ParcelWeighed) -> None: ...


@pytest.mark.parametrize("function", [nothing, three, keyword, only_keyword])
def test_a_signature_that_cannot_be_called_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(ContractError, match=rf"{function.__name__}.*cannot be a handler"):
        inspect_handler(function, (ParcelWeighed,), None)


@pytest.mark.parametrize("function", [wrong_event, too_narrow, wrong_type])
def test_an_argument_of_another_type_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(ContractError, match="subscribes to ParcelWeighed, but its argument is annotated"):
        inspect_handler(function, (ParcelWeighed,), None)


def test_every_event_must_fit_the_argument() -> None:
    inspect_handler(union, (ParcelWeighed, ParcelSent), None)
    with pytest.raises(ContractError, match="subscribes to ParcelLost"):
        inspect_handler(union, (ParcelWeighed, ParcelLost), None)


async def enveloped(event: Envelope) -> None: ...


def test_a_pattern_gives_an_envelope() -> None:
    assert inspect_handler(enveloped, ("parcel.*",), None).bindings == ["parcel.*"]
    with pytest.raises(ContractError, match="subscribes to Envelope"):
        inspect_handler(plain, ("parcel.*",), None)


@pytest.mark.parametrize(
    "subscribed",
    [(), ("a", "b"), ("parcel.*", ParcelWeighed), (ParcelWeighed, "parcel.*"), (Event,), (int,), (None,), (weighed(),)],
)
def test_what_cannot_be_subscribed_to_is_refused(subscribed: tuple[Any, ...]) -> None:
    with pytest.raises(ContractError, match=r"Write @service\.on"):
        inspect_handler(anything, subscribed, None)


def test_a_bad_pattern_is_refused() -> None:
    with pytest.raises(ContractError, match="pattern"):
        inspect_handler(enveloped, ("Parcel.*",), None)


@pytest.mark.parametrize("function", [None, "handle", 7])
def test_a_handler_is_a_function(function: Any) -> None:
    with pytest.raises(ContractError, match="function"):
        inspect_handler(function, (ParcelWeighed,), None)


async def returns_one(event: ParcelWeighed) -> ParcelSent: ...  # type: ignore[empty-body]
async def returns_maybe(event: ParcelWeighed) -> ParcelSent | None: ...
async def returns_optional(event: ParcelWeighed) -> Optional[ParcelSent]: ...  # noqa: UP045
async def returns_list(event: ParcelWeighed) -> list[ParcelSent | ParcelLost]: ...  # type: ignore[empty-body]
async def returns_iterable(event: ParcelWeighed) -> Iterable[Union[ParcelSent, ParcelLost]]: ...  # type: ignore[empty-body]  # noqa: UP007
async def returns_annotated(event: ParcelWeighed) -> Annotated[ParcelSent, "x"]: ...  # type: ignore[empty-body]
def yields(event: ParcelWeighed) -> Iterator[ParcelSent]: ...  # type: ignore[empty-body]
async def yields_async(event: ParcelWeighed) -> AsyncIterator[ParcelSent]:
    yield ParcelSent(parcel_id=event.parcel_id)


async def returns_any_event(event: ParcelWeighed) -> Event: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("function", "returns"),
    [
        (plain, ()),
        (returns_one, (ParcelSent,)),
        (returns_maybe, (ParcelSent,)),
        (returns_optional, (ParcelSent,)),
        (returns_list, (ParcelSent, ParcelLost)),
        (returns_iterable, (ParcelSent, ParcelLost)),
        (returns_annotated, (ParcelSent,)),
        (yields, (ParcelSent,)),
        (yields_async, (ParcelSent,)),
        (returns_any_event, ()),
    ],
)
def test_the_return_type_declares(function: Callable[..., Any], returns: tuple[type[Event], ...]) -> None:
    assert inspect_handler(function, (ParcelWeighed,), None).returns == returns


class Desk:
    """Handlers need not be plain functions."""

    async def handle(self, event: ParcelWeighed, context: Context) -> ParcelSent: ...  # type: ignore[empty-body]

    async def __call__(self, event: ParcelWeighed) -> ParcelSent: ...  # type: ignore[empty-body]


def test_methods_and_objects_may_be_handlers() -> None:
    method = inspect_handler(Desk().handle, (ParcelWeighed,), None)
    assert (method.name, method.takes_context, method.returns) == ("Desk.handle", True, (ParcelSent,))
    called = inspect_handler(Desk(), (ParcelWeighed,), None)
    assert (called.name, called.takes_context, called.returns) == ("Desk", False, (ParcelSent,))
    assert is_async(Desk())
    assert is_async(Desk().handle)
    assert not is_async(lambda event: None)


def test_a_wrapped_function_keeps_its_signature() -> None:
    @functools.wraps(returns_one)
    async def wrapper(*arguments: Any) -> ParcelSent:
        return await returns_one(*arguments)

    assert inspect_handler(wrapper, (ParcelWeighed,), None).returns == (ParcelSent,)
    with pytest.raises(ContractError, match="annotated"):
        inspect_handler(wrapper, (ParcelSent,), None)


def test_names_for_type_checkers_alone_are_left_to_them() -> None:
    async def handle(event: NotImported, context: AlsoNotImported) -> NorThis: ...  # type: ignore[name-defined]  # noqa: F821

    handler = inspect_handler(handle, (ParcelWeighed,), None)
    assert (handler.takes_context, handler.returns) == (True, ())


# -- choosing ------------------------------------------------------------------------------------------------------


def handlers(*subscriptions: tuple[Any, ...]) -> Handlers:
    """Handlers named one, two, three … by what they subscribe to."""
    service = Service("packing")
    for subscribed, name in zip(subscriptions, ("one", "two", "three"), strict=False):

        async def handle(event: Any) -> None: ...

        handle.__qualname__ = name
        service.on(*subscribed)(handle)
    return service.handlers


def chosen(among: Handlers, what: Envelope) -> tuple[str, type[Event] | None]:
    handler, event = among.choose(what)
    return handler.name, event


def test_an_exact_event_wins_over_a_pattern() -> None:
    for among in (handlers(("parcel.*",), (ParcelWeighed,)), handlers((ParcelWeighed,), ("parcel.*",))):
        name, event = chosen(among, envelope())
        assert event is ParcelWeighed
        assert chosen(among, envelope(ParcelSent(parcel_id=uuid4())))[1] is None
        assert name != chosen(among, envelope(ParcelSent(parcel_id=uuid4())))[0]


def test_one_handler_may_take_several_events() -> None:
    among = handlers((ParcelWeighed, ParcelSent), (VanBroke,))
    assert chosen(among, envelope(ParcelSent(parcel_id=uuid4()))) == ("one", ParcelSent)
    assert chosen(among, envelope(VanBroke(van="7"))) == ("two", VanBroke)
    assert among.bindings == ["parcel.sent", "parcel.weighed", "van.broke"]


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        ((ParcelWeighed,), (ParcelWeighed,), "both handle 'Parcel Weighed' version 1"),
        ((ParcelWeighed,), (ParcelSent, ParcelWeighed), "both handle 'Parcel Weighed' version 1"),
        (("parcel.*",), ("parcel.sent",), "overlap"),
        (("parcel.*",), ("#",), "overlap"),
        (("*.sent",), ("parcel.*",), "overlap"),
        (("parcel.sent",), ("parcel.sent",), "overlap"),
        (("parcel.weighed",), (ParcelWeighed,), "both handle the key 'parcel.weighed'"),
        ((ParcelWeighed,), ("parcel.weighed",), "both handle the key 'parcel.weighed'"),
    ],
)
def test_a_second_handler_is_refused(one: tuple[Any, ...], other: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ContractError, match=says) as caught:
        handlers(one, other)
    assert "one" in str(caught.value)
    with pytest.raises(ContractError):
        handlers(other, one)


def test_patterns_apart_may_stand_together() -> None:
    assert handlers(("parcel.*",), ("van.*",), ("*.*.*",)).bindings == ["*.*.*", "parcel.*", "van.*"]


def test_a_key_that_nothing_declares_is_refused_with_the_near_miss() -> None:
    handlers(("parcel.weighed",)).check_keys()
    handlers(("nobody.knows.*",)).check_keys()
    with pytest.raises(ContractError, match=r"Did you mean 'parcel\.weighed'"):
        handlers(("parcel.wieghed",)).check_keys()


def test_what_nobody_takes_is_unhandled() -> None:
    with pytest.raises(Unhandled, match=r"'Van Broke' \(van.broke\)"):
        handlers((ParcelWeighed,), ("parcel.*",)).choose(envelope(VanBroke(van="7")))


def test_a_key_with_another_events_type_is_malformed() -> None:
    with pytest.raises(Malformed, match=r"its key 'parcel\.weighed' is that of 'Parcel Weighed'.*'Parcel Sent'"):
        handlers((ParcelWeighed,), ("parcel.*",)).choose(envelope(name="Parcel Sent"))


def test_the_type_identifies_whatever_the_key() -> None:
    """A retry, or a binding of another key: dispatch is by type."""
    among = handlers((ParcelWeighed,))
    assert chosen(among, envelope(key="parcels.heavy"))[1] is ParcelWeighed


def test_payloads() -> None:
    event = weighed()
    assert payload_of(envelope(event), ParcelWeighed) == event
    assert isinstance(payload_of(envelope(event), None), Envelope)
    with pytest.raises(Malformed, match="does not fit VanBroke"):
        payload_of(envelope(event), VanBroke)


# -- collecting ----------------------------------------------------------------------------------------------------


async def collected(handle: Callable[..., Any], *, context: Context | None = None) -> list[Event]:
    context = context or Context()
    threads = Threads(2, "test")
    await inspect_handler(handle, (ParcelWeighed,), None).run(weighed(), context, threads)
    threads.close()
    return context.published


SENT, LOST = ParcelSent(parcel_id=UUID(int=1)), ParcelLost(parcel_id=UUID(int=2))


async def async_one(event: ParcelWeighed) -> Event:
    return SENT


async def async_many(event: ParcelWeighed) -> list[Event]:
    return [SENT, LOST]


async def async_none(event: ParcelWeighed) -> None:
    return None


async def async_yields(event: ParcelWeighed) -> AsyncIterator[Event]:
    yield SENT
    yield LOST


async def async_generator(event: ParcelWeighed) -> Iterator[Event]:
    return (each for each in (SENT, LOST))


async def async_publishes(event: ParcelWeighed, context: Context) -> Event:
    await context.publish(SENT)
    return LOST


def sync_one(event: ParcelWeighed) -> Event:
    return SENT


def sync_yields(event: ParcelWeighed) -> Iterator[Event]:
    yield SENT
    yield LOST


def sync_publishes(event: ParcelWeighed, context: Context) -> tuple[Event, ...]:
    context.publish(SENT)
    return (LOST,)


def sync_awaitable(event: ParcelWeighed) -> Any:
    return async_one(event)


@pytest.mark.parametrize(
    ("handle", "events"),
    [
        (async_none, []),
        (async_one, [SENT]),
        (async_many, [SENT, LOST]),
        (async_yields, [SENT, LOST]),
        (async_generator, [SENT, LOST]),
        (async_publishes, [SENT, LOST]),
        (sync_one, [SENT]),
        (sync_yields, [SENT, LOST]),
        (sync_publishes, [SENT, LOST]),
        (sync_awaitable, [SENT]),
    ],
)
async def test_returned_yielded_and_published_behave_alike(handle: Callable[..., Any], events: list[Event]) -> None:
    assert await collected(handle) == events


@pytest.mark.parametrize("wrong", [7, "text", {"a": 1}, b"x", True, [SENT, "text"], [[SENT]], ParcelSent, object()])
async def test_returning_anything_else_is_refused(wrong: Any) -> None:
    async def handle(event: Any) -> Any:
        return wrong

    with pytest.raises(ContractError):
        await collected(handle)


async def test_sync_handlers_run_in_a_thread_named_for_the_service() -> None:
    seen: list[str] = []

    def handle(event: Any) -> None:
        seen.append(threading.current_thread().name)

    await collected(handle)
    assert seen[0].startswith("test")


async def test_a_thread_that_runs_on_is_seen() -> None:
    threads, release, began = Threads(1, "test"), threading.Event(), threading.Event()

    def handle() -> None:
        began.set()
        release.wait(10)

    call = asyncio.create_task(threads.call(handle, (), "it"))
    await asyncio.to_thread(began.wait, 10)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert threads.busy
    release.set()
    threads.close()
    await asyncio.to_thread(threads._pool.shutdown)
    assert not threads.busy


# -- contexts ------------------------------------------------------------------------------------------------------


def collector(cause: Envelope, *publishable: type[Event]) -> Collector:
    return Collector(cause, "packing", Catalogue(publishable))


async def test_what_a_handler_publishes_continues_the_story_under_ids_that_stay() -> None:
    cause = envelope()
    first, again = (collector(cause, ParcelSent, ParcelLost) for _ in range(2))
    ids = [await Context(_collector=first).publish(SENT), await Context(_collector=first).publish(LOST)]
    assert ids == [caused_id(cause, "packing", 0), caused_id(cause, "packing", 1)]
    assert [again.add(SENT), again.add(LOST)] == ids
    assert [publication.story for publication in first.publications] == [
        Story(cause.story.correlation_id, cause.id)
    ] * 2


def test_publishing_what_is_not_declared_is_refused() -> None:
    with pytest.raises(ContractError, match=r"'packing' publishes 'Parcel Lost'.*publishes=\[ParcelLost\]"):
        collector(envelope(), ParcelSent).add(LOST)


@pytest.mark.parametrize("wrong", [None, "Parcel Sent", ParcelSent, {"parcel_id": "1"}])
def test_publishing_what_is_no_event_is_refused(wrong: Any) -> None:
    with pytest.raises(ContractError, match="Only an Event"):
        Context().publish(wrong)


def test_publishing_after_the_handler_has_ended_is_refused() -> None:
    late = collector(envelope(), ParcelSent)
    late.closed = True
    with pytest.raises(ContractError, match="has ended"):
        late.add(SENT)


async def test_a_test_makes_a_context_of_its_own() -> None:
    context = Context(attempt=3, resources={"a": 1})
    event = weighed()
    assert await context.publish(event) == id_of(event)
    assert context.published == [event]
    assert context.correlation_id == context.event_id
    assert (context.attempt, context.resources, context.causation_id) == (3, {"a": 1}, None)
    assert context.time.tzinfo is not None
