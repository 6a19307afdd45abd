"""Handlers: plain functions from an event to events.

What a function declares by its signature is read once, when it subscribes: whether it takes a `Context`, whether it is
async, and which events it returns. Rules:

- One delivery, one handler. An exact event wins over a pattern; anything else that could leave a choice is refused.
- What a handler returns, yields, or gives to ``context.publish`` is collected, and published when it has succeeded.
- A handler written as ``def`` runs in a thread.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from time import monotonic
from types import CoroutineType, MethodType
from typing import TYPE_CHECKING, Any, get_args
from uuid import UUID

from broker.envelope import Envelope, Story, caused_id, read
from broker.errors import ContractError, Malformed, Unhandled, near_miss
from broker.events import Catalogue, Event, declared, id_of, uuid7
from broker.publisher import Publication, check_event
from broker.retry import Retry
from broker.topology import check_pattern, is_pattern, matches, overlap
from broker.transactions import NO_DATABASE

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

Outcome = None | Event | Iterable[Event]
"""What a handler may return."""
Function = Callable[..., Outcome | Awaitable[Outcome] | AsyncIterable[Event]]


class Collector:
    """What one handling publishes, kept until it has succeeded.

    Args:
        cause: the event being handled; None in a context made by a test.
        service: who handles it.
        publishable: what the service declares to publish; None: anything.
    """

    def __init__(self, cause: Envelope | None, service: str, publishable: Catalogue | None) -> None:
        self._cause = cause
        self._service = service
        self._publishable = publishable
        self.publications: list[Publication] = []
        self.closed = False

    def add(self, event: Event) -> UUID:
        """Collect an event, and return the id it will have.

        Raises:
            ContractError: it is no event, the service does not declare it, or its handler has ended.
        """
        check_event(event)
        if self.closed:
            raise ContractError("The handler has ended, so nobody would publish this. Publish before it returns.")
        if self._publishable is not None and event.__class__ not in self._publishable:
            contract = event.__contract__
            raise ContractError(
                f"{self._service!r} publishes {contract.name!r} version {contract.version} without declaring it. "
                f"Write Service({self._service!r}, publishes=[{type(event).__name__}]) or name it as a return type."
            )
        self.publications.append(self._publication(event))
        return self.publications[-1].id

    def _publication(self, event: Event) -> Publication:
        cause = self._cause
        if cause is None:
            return Publication(event, id_of(event), Story(id_of(event)))
        story = Story(cause.story.correlation_id, cause.id, cause.story.traceparent)
        return Publication(event, caused_id(cause, self._service, len(self.publications)), story)


class Published(Awaitable[UUID]):
    """The id of an event that a handler has given to ``context.publish``. Awaiting it waits for nothing."""

    def __init__(self, event_id: UUID) -> None:
        self.id = event_id

    def __await__(self) -> Generator[Any, None, UUID]:
        return self.id
        yield  # makes this a generator, as an awaitable must be


@dataclass(slots=True, kw_only=True)
class Context:
    """What a handler may want to know besides the event, and a way to publish. Tests make one: ``Context()``.

    Attributes:
        event_id: the event's id, the same in every redelivery.
        name: its business event name.
        key: the routing key it was published with.
        time: when it was published, UTC.
        source: who published it.
        attempt: which attempt at handling it this is, from 1 on. A redelivery after a crash is not counted.
        correlation_id: the story it belongs to.
        causation_id: the event that caused it; None for the first of a story.
        resources: what the service's lifespan yielded.
        transaction: an SQLAlchemy ``AsyncSession``. What is done through it is stored if the handler succeeds, together
            with what it publishes, exactly once. Only in a service with a database; committing is not the handler's.
    """

    event_id: UUID = field(default_factory=uuid7)
    name: str = ""
    key: str = ""
    time: datetime = field(default_factory=lambda: datetime.now(UTC))
    source: str = ""
    attempt: int = 1
    correlation_id: UUID | None = None
    causation_id: UUID | None = None
    resources: Any = None
    transaction: AsyncSession = field(default=NO_DATABASE, repr=False)
    _collector: Collector = field(default_factory=lambda: Collector(None, "", None), repr=False)

    def __post_init__(self) -> None:
        self.correlation_id = self.correlation_id or self.event_id

    def publish(self, event: Event) -> Published:
        """Publish an event when the handler has succeeded, caused by the one it handles.

        It is collected at once: ``await`` the result for the event's id, or, in a ``def`` handler, do not.

        Raises:
            ContractError: the service does not declare to publish it, or the handler has ended.
        """
        return Published(self._collector.add(event))

    @property
    def published(self) -> list[Event]:
        """What was given to `publish` so far."""
        return [publication.event for publication in self._collector.publications]


@dataclass(frozen=True, slots=True)
class Handler:
    """A function that subscribed, and what its signature says.

    Attributes:
        events: the events it takes; none if it takes a pattern.
        pattern: the pattern it takes; it then receives an `Envelope`.
        retry: its own ladder, if it has one.
        returns: the events that its return type names.
        runs_async: it runs on the event loop rather than in a thread.
    """

    function: Function
    events: tuple[type[Event], ...]
    pattern: str | None
    retry: Retry | None
    takes_context: bool
    returns: tuple[type[Event], ...]
    runs_async: bool

    @property
    def name(self) -> str:
        """The function's name."""
        name: str = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return name.rpartition("<locals>.")[2]

    @property
    def bindings(self) -> list[str]:
        """The keys and patterns it binds its service's queue by."""
        return [self.pattern] if self.pattern is not None else [event.__contract__.key for event in self.events]

    async def run(self, payload: Event | Envelope, context: Context, threads: Threads) -> None:
        """Call the function, and collect what it publishes. A ``def`` function runs in a thread, alone for its event.

        Raises:
            Exception: whatever it raises.
            ContractError: it returns what is not an event.
        """
        arguments = (payload, context) if self.takes_context else (payload,)
        result: object
        if self.runs_async:
            result = self.function(*arguments)
        else:
            result = await threads.call(self.function, arguments, (context.source, context.event_id))
        if isinstance(result, CoroutineType) or inspect.isawaitable(result):
            result = await result
        if result is None:
            return
        if isinstance(result, AsyncIterable):
            result = [event async for event in result]
        for event in _events(result, self.name):
            context._collector.add(event)


class Threads:
    """Where ``def`` handlers run.

    Args:
        count: how many may run at a time.
        name: begins the threads' names.
    """

    def __init__(self, count: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._calls: dict[Future[object], float] = {}
        self._left: dict[object, Future[object]] = {}

    async def call(self, function: Function, arguments: tuple[Any, ...], about: object) -> object:
        """Call a function in a thread, with the caller's context variables. A generator runs to its end there.

        One that was left running when its time was over cannot be interrupted: the next call about the same thing waits
        until it has ended, so that there are never two.
        """
        while (running := self._left.get(about)) is not None:
            await asyncio.gather(asyncio.wrap_future(running), return_exceptions=True)

        def call() -> object:
            result = function(*arguments)
            return list(result) if inspect.isgenerator(result) else result

        future = self._pool.submit(copy_context().run, call)
        self._calls[future] = monotonic()
        future.add_done_callback(lambda done: self._calls.pop(done, None))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if future.running():
                self._left[about] = future
                future.add_done_callback(lambda _: self._left.pop(about, None))
            raise

    @property
    def busy(self) -> bool:
        """Whether a function still runs, its caller cancelled or not. Threads cannot be interrupted."""
        return self.running_longer_than(0) > 0

    def running_longer_than(self, seconds: float) -> int:
        """How many functions have been running for longer."""
        before = monotonic() - seconds
        return sum(call.running() and began <= before for call, began in self._calls.copy().items())

    def close(self) -> None:
        """Start no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _events(result: object, handler: str) -> Iterable[Event]:
    if result is None:
        return ()
    if isinstance(result, Event):  # before Iterable: a model iterates over its fields
        return (result,)
    if isinstance(result, Iterable) and not isinstance(result, str | bytes | dict):
        return result
    raise ContractError(f"{handler} returned {type(result).__name__}. A handler returns nothing, an event, or events.")


def is_async(function: Function) -> bool:
    """Whether a function runs on the event loop rather than in a thread."""
    called = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    return inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called)


# -- reading a signature -----------------------------------------------------------------------------------------


def inspect_handler(function: Function, subscribed: tuple[type[Event] | str, ...], retry: Retry | None) -> Handler:
    """What a function that subscribes declares.

    Raises:
        ContractError: it takes too many arguments or none, or an event of another type than it subscribes to.
    """
    if not callable(function):
        raise ContractError(f"A handler is a function, not {function!r}.")
    name = getattr(function, "__qualname__", repr(function))
    parameters = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    required = [parameter for parameter in parameters if parameter.default is parameter.empty]
    keyword_only = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    ]
    if not parameters or len(required) > 2 or keyword_only:
        raise ContractError(
            f"{name}{inspect.signature(function)} cannot be a handler. It is called with the event, and with the "
            "context if it takes a second argument: async def handle(event: TheEvent, context: Context)."
        )
    events, pattern = _subscribed(subscribed, name)
    expected: tuple[type, ...] = events if pattern is None else (Envelope,)
    _check_accepts(function, parameters[0], expected, name)
    second = parameters[1] if len(parameters) > 1 else None
    return Handler(
        function=function,
        events=events,
        pattern=pattern,
        retry=retry,
        takes_context=second is not None
        and (len(required) == 2 or second.name == "context" or _resolve(function, second.annotation) is Context),
        returns=tuple(_events_in(_resolve(function, inspect.signature(function).return_annotation))),
        runs_async=is_async(function),
    )


def _subscribed(subscribed: tuple[type[Event] | str, ...], name: str) -> tuple[tuple[type[Event], ...], str | None]:
    if len(subscribed) == 1 and isinstance(subscribed[0], str):
        check_pattern(subscribed[0])
        return (), subscribed[0]
    events = tuple(
        event for event in subscribed if isinstance(event, type) and issubclass(event, Event) and event is not Event
    )
    if not subscribed or len(events) < len(subscribed):
        raise ContractError(
            f"{name} subscribes to {', '.join(map(repr, subscribed)) or 'nothing'}. "
            "Write @service.on(TheEvent, AnotherEvent), or one pattern: @service.on('order.*')."
        )
    return events, None


def _check_accepts(function: Function, parameter: inspect.Parameter, expected: tuple[type, ...], name: str) -> None:
    annotation = _resolve(function, parameter.annotation)
    accepted = [part for part in (annotation, *get_args(annotation)) if isinstance(part, type)]
    if not accepted or not {object, Any, parameter.empty}.isdisjoint(accepted):
        return  # unannotated, Any, or not resolvable here: mypy's business
    for kind in expected:
        if not any(issubclass(kind, part) for part in accepted):
            raise ContractError(
                f"{name} subscribes to {kind.__name__}, but its argument is annotated {parameter.annotation!r}."
            )


def _resolve(function: Function, annotation: Any) -> Any:
    """An annotation as an object, if it can be had: the names may be local to a function, or for type checking only."""
    if not isinstance(annotation, str):
        return annotation
    called = function if inspect.isroutine(function) else getattr(type(function), "__call__", function)  # noqa: B004
    plain = inspect.unwrap(called.__func__ if isinstance(called, MethodType) else called)
    scope = dict(getattr(plain, "__globals__", {}))
    if inspect.isfunction(plain):
        scope |= inspect.getclosurevars(plain).nonlocals
    try:
        return eval(annotation, scope)  # noqa: S307  (the function's own source)
    except Exception:  # whatever evaluating it raises, it cannot be had here
        return inspect.Parameter.empty


def _events_in(annotation: Any) -> Iterable[type[Event]]:
    """The event classes that a type names, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, Event) and annotation is not Event:
        yield annotation
    for part in get_args(annotation):
        yield from _events_in(part)


# -- choosing one ------------------------------------------------------------------------------------------------


class Handlers:
    """The handlers of one service: which takes an event, if any."""

    def __init__(self) -> None:
        self._all: list[Handler] = []
        self._of_event: dict[type[Event], Handler] = {}
        self._catalogue: Catalogue | None = None
        self._choose = lru_cache(maxsize=10_000)(self._find)  # with many patterns, too, an event costs one look
        self._guess = lru_cache(maxsize=10_000)(self._find_guess)

    def __iter__(self) -> Iterator[Handler]:
        return iter(self._all)

    def __bool__(self) -> bool:
        return bool(self._all)

    def add(self, handler: Handler) -> None:
        """Subscribe a handler.

        Raises:
            ContractError: another one takes the same event, or a pattern that overlaps.
        """
        for other in self._all:
            self._check_choice(handler, other)
        self._all.append(handler)
        self._of_event |= dict.fromkeys(handler.events, handler)
        self._choose.cache_clear()
        self._guess.cache_clear()
        self._catalogue = None

    def _check_choice(self, new: Handler, known: Handler) -> None:
        both = {(e.__contract__.name, e.__contract__.version) for e in new.events} & {
            (e.__contract__.name, e.__contract__.version) for e in known.events
        }
        for name, version in both:
            raise ContractError(f"{known.name} and {new.name} both handle {name!r} version {version}. One must go.")
        if new.pattern is not None and known.pattern is not None and overlap(new.pattern, known.pattern):
            raise ContractError(
                f"{known.name} and {new.name} subscribe to {known.pattern!r} and {new.pattern!r}, which overlap: "
                "one event could have two handlers. Narrow one pattern."
            )
        for one, other in ((new, known), (known, new)):
            exact = one.pattern is not None and not is_pattern(one.pattern) and one.pattern
            if exact and exact in other.bindings:
                raise ContractError(f"{known.name} and {new.name} both handle the key {exact!r}. One must go.")

    @property
    def events(self) -> list[type[Event]]:
        """The events handled by class."""
        return list(self._of_event)

    @property
    def bindings(self) -> list[str]:
        """The keys and patterns of the service's queue, each once."""
        return sorted({binding for handler in self._all for binding in handler.bindings})

    def check_keys(self) -> None:
        """Refuse a subscription to an exact key that no imported event has.

        Raises:
            ContractError: with the near miss.
        """
        keys = {event.__contract__.key for event in declared()}
        for handler in self._all:
            if handler.pattern is not None and not is_pattern(handler.pattern) and handler.pattern not in keys:
                raise ContractError(
                    f"{handler.name} subscribes to {handler.pattern!r}, which no event declares."
                    f"{near_miss(handler.pattern, keys)} Import the event's module, or use a pattern with '*' or '#'."
                )

    def guess(self, key: str) -> type[Event] | None:
        """The class with which an event of this key is most likely read; `choose` decides."""
        return self._guess(key)

    def _find_guess(self, key: str) -> type[Event] | None:
        catalogue = self._catalogue = self._catalogue or Catalogue(self.events)
        name = catalogue.of_key(key)
        return catalogue.reader(name, None) if name is not None else None

    def choose(self, envelope: Envelope) -> tuple[Handler, type[Event] | None]:
        """The handler of an event, and the class to read it with (None: it takes the envelope).

        Raises:
            Malformed: its key is that of another event that we handle.
            Unhandled: nobody takes it.
        """
        return self._choose(envelope.name, envelope.version, envelope.key)

    def _find(self, name: str, version: int | None, key: str) -> tuple[Handler, type[Event] | None]:
        catalogue = self._catalogue = self._catalogue or Catalogue(self.events)
        expected = catalogue.of_key(key)
        if expected is not None and expected != name:
            raise Malformed(f"its key {key!r} is that of {expected!r}, but it says it is {name!r}")
        event = catalogue.reader(name, version)
        if event is not None:
            return self._of_event[event], event
        for handler in self._all:
            if handler.pattern is not None and matches(handler.pattern, key):
                return handler, None
        raise Unhandled(f"no handler of this process takes {name!r} ({key})")


def payload_of(envelope: Envelope, event: type[Event] | None) -> Event | Envelope:
    """What a handler receives.

    Raises:
        Malformed: the payload does not fit the class.
    """
    return envelope if event is None else read(envelope, event)
