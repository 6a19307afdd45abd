"""A service: what it declares, and the process that runs it.

``Service`` holds declarations only: nothing connects before it runs, so who publishes and who subscribes is known from
the code alone. `serve` puts the parts together: broker, transport, subscriber, health.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar, overload

from pydantic import ValidationError
from structlog.typing import FilteringBoundLogger

from broker import logs
from broker.envelope import Envelope
from broker.errors import BrokerError, ContractError, DatabaseUnusable
from broker.events import Catalogue, Event
from broker.handlers import Context, Function, Handler, Handlers, Outcome, inspect_handler, is_async
from broker.health import serve_health
from broker.publisher import Broker, rabbitmq
from broker.retry import DEFAULT, Delay, Retry
from broker.settings import Settings
from broker.subscriber import Around, Subscriber, Subscription
from broker.topology import backfill_queue, check_service_name
from broker.transactions import Database, Transactions
from broker.transport import Transport

if TYPE_CHECKING:
    from broker.backfill import Backfill

T = TypeVar("T")
A = TypeVar("A", bound=Event)
B = TypeVar("B", bound=Event)
C = TypeVar("C", bound=Event)
D = TypeVar("D", bound=Event)
R = TypeVar("R", bound=Outcome | Coroutine[Any, Any, Outcome] | AsyncIterator[Event])
F = TypeVar("F", bound=Around)

Lifespan = Callable[..., AbstractAsyncContextManager[Any]]
"""An async context manager function. It may take the service; what it yields is ``context.resources``."""


class Subscribe(Protocol[T]):
    """Takes a handler of what was subscribed to, and gives it back unchanged."""

    @overload
    def __call__(self, handler: Callable[[T], R], /) -> Callable[[T], R]: ...
    @overload
    def __call__(self, handler: Callable[[T, Context], R], /) -> Callable[[T, Context], R]: ...


class Service:
    """A microservice: its name, what it publishes, and which handlers take which events.

    ::

        service = Service("packing", publishes=[OrderPacked])

        @service.on(NewOrderPlaced)
        async def pack(order: NewOrderPlaced) -> OrderPacked:
            return OrderPacked(order_id=order.order_id)

    Args:
        name: lower case letters, digits and ``-``. It is the name of its queue, and the source of its events.
        publishes: the events it publishes. What its handlers' return types name counts as declared.
        database: a URL (SQLite or PostgreSQL), an ``AsyncEngine``, or a function (``async`` or not) that returns either
            when the service starts. Each delivery is then one transaction, and its effects happen exactly once: see
            `broker.sql`.
        lifespan: an async context manager function around the service's life, as in Starlette; what it yields is
            ``context.resources``.
        retry: the ladder of its handlers; unsaid: ``Retry("1s", "30s", "10m")``.
        backfill: since when its first start reads the event log for what it missed, before it consumes its queue: so
            long ago (``"7d"``), a date and time, or ``"first"``. See `broker.backfill`.

    Raises:
        ContractError: a bad name, ``publishes`` holds what is not an event, or ``backfill`` is none.
    """

    def __init__(  # noqa: PLR0913  (what a service declares)
        self,
        name: str,
        *,
        publishes: Iterable[type[Event]] = (),
        database: Database | None = None,
        lifespan: Lifespan | None = None,
        retry: Retry | None = None,
        backfill: str | None = None,
    ) -> None:
        check_service_name(name)
        if backfill is not None:
            check_backfill(backfill)
        self.name = name
        self.database = database
        self.lifespan = lifespan
        self.retry = retry or DEFAULT
        self.backfill = backfill
        self.handlers = Handlers()
        self._publishes = tuple(publishes)
        self._around: list[Around] = []
        for event in self._publishes:
            if not (isinstance(event, type) and issubclass(event, Event) and event is not Event):
                raise ContractError(f"Service({name!r}, publishes=[…]) takes event classes, not {event!r}.")

    def __repr__(self) -> str:
        return f"Service({self.name!r})"

    @overload
    def on(self, pattern: str, /, *, retry: Retry | None = None) -> Subscribe[Envelope]: ...
    @overload
    def on(self, event: type[A], /, *, retry: Retry | None = None) -> Subscribe[A]: ...
    @overload
    def on(self, a: type[A], b: type[B], /, *, retry: Retry | None = None) -> Subscribe[A | B]: ...
    @overload
    def on(self, a: type[A], b: type[B], c: type[C], /, *, retry: Retry | None = None) -> Subscribe[A | B | C]: ...
    @overload
    def on(
        self, a: type[A], b: type[B], c: type[C], d: type[D], /, *, retry: Retry | None = None
    ) -> Subscribe[A | B | C | D]: ...
    def on(self, *events: type[Event] | str, retry: Retry | None = None) -> Any:
        """Subscribe a handler to events, or to a pattern of routing keys (``"order.*"``).

        The handler is called with the event (for a pattern: with an `Envelope`), and with a `Context` if it takes a
        second argument. It is returned unchanged. It may be ``async def``, or ``def``, which runs in a thread. What it
        returns or yields is published, caused by the event. Raising `Reject` dead-letters at once, any other exception
        retries.

        Args:
            events: event classes, or one pattern.
            retry: a ladder of its own.

        Raises:
            ContractError: its signature does not fit, or another handler takes the same event.
        """

        def subscribe(function: Function) -> Function:
            self.handlers.add(inspect_handler(function, events, retry))
            return function

        return subscribe

    def around(self, function: F) -> F:
        """Wrap every handling in a function: ``async def timing(context, handle): ...; await handle()``.

        Of several, the first is the outermost. What it raises counts as the handler's failure; if it does not await
        ``handle()``, the event counts as handled.

        Raises:
            ContractError: it is not ``async def`` with two arguments.
        """
        if not is_async(function) or len(inspect.signature(function).parameters) != 2:
            raise ContractError("Write: @service.around  async def timing(context, handle): ...; await handle()")
        self._around.append(function)
        return function

    @property
    def publishes(self) -> list[type[Event]]:
        """Every event it declares to publish, by ``publishes=`` or by a handler's return type."""
        returned = [event for handler in self.handlers for event in handler.returns]
        return list(dict.fromkeys((*self._publishes, *returned)))

    @property
    def subscribes(self) -> list[Handler]:
        """Its handlers, in the order they subscribed."""
        return list(self.handlers)

    @property
    def delays(self) -> list[Delay]:
        """Every delay of its ladders, shortest first: each has a retry queue when first needed."""
        return sorted({delay for ladder in self._ladders for delay in ladder.delays})

    @property
    def longest(self) -> timedelta:
        """How long an event can be on the longest of its ladders."""
        return max(ladder.longest for ladder in self._ladders)

    @property
    def _ladders(self) -> list[Retry]:
        return [self.retry, *(handler.retry for handler in self.handlers if handler.retry is not None)]

    def check(self) -> None:
        """Look for contradictions among the events it uses. Done when it starts or is inspected.

        Raises:
            ContractError: two events share a name or key, or a subscription to an exact key that nothing declares.
        """
        Catalogue([*self.handlers.events, *self.publishes])
        self.handlers.check_keys()

    def subscription(self) -> Subscription:
        """What the subscriber needs to know. Raises as `check` does."""
        self.check()
        return Subscription(self.name, self.handlers, Catalogue(self.publishes), self.retry, tuple(self._around))

    def run(self) -> NoReturn:
        """Run this process until SIGTERM or SIGINT, and exit: 0 when it ended well, else the error's exit code."""
        sys.exit(run(self))


@asynccontextmanager
async def serve(  # noqa: PLR0913  (its parts, and how it begins)
    service: Service,
    settings: Settings,
    log: FilteringBoundLogger,
    transport: Transport | None = None,
    *,
    standing: Standing | None = None,
    backfill: str | None = None,
) -> AsyncIterator[Standing]:
    """A service at work for as long as the context lasts; yields how it stands.

    Args:
        transport: another way to RabbitMQ, as tests use.
        standing: what to yield, for those who want to know how it stands while it starts, too.
        backfill: since when a first start backfills; None: it does not, whatever the service declares.

    Raises:
        ContractError: from `Service.check`; or there is no event log to backfill from.
        ConnectionFailed, AccessRefused, TopologyConflict: from connecting and declaring.
        DatabaseUnusable: from opening its database.
    """
    subscription = service.subscription()
    check_service_name(service.name, settings.exchange)
    standing = standing or Standing(transport or rabbitmq(settings, log, service.name))
    transport = standing.transport
    async with AsyncExitStack() as stack:
        if settings.health_port is not None:  # first, and so it answers while starting and while stopping, too
            health = serve_health(settings.health_host, settings.health_port, standing.problems)
            log.info("health", port=await stack.enter_async_context(health))
        broker = await stack.enter_async_context(Broker(source=service.name, settings=settings, transport=transport))
        if service.database is not None:
            opened = transactions(service.database, service, broker, log)
            standing.transactions = await stack.enter_async_context(opened)
        resources = await stack.enter_async_context(_lifespan(service))
        if subscription.handlers:
            standing.subscriber = Subscriber(subscription, broker, transport, resources, standing.transactions, log)
            missed = None
            if backfill is not None:
                missed = await stack.enter_async_context(_backfill(standing, subscription, backfill, settings, log))
            elif await transport.count(backfill_queue(service.name)) is not None:
                log.warning("not backfilled", error="its backfill is unfinished; with --backfill it goes on")
            stack.push_async_callback(standing.subscriber.drain)
            await (missed or standing.subscriber).start()
        elif backfill is not None:
            log.info("not backfilled", reason="it subscribes to nothing")
        standing.phase = ""
        log.info("started", subscribes=subscription.handlers.bindings, pid=os.getpid())
        try:
            yield standing
        finally:
            standing.phase = "stopping"


@dataclass(slots=True)
class Standing:
    """How a service stands, for its health: what it is going through, and what is wrong."""

    transport: Transport
    subscriber: Subscriber | None = None
    transactions: Transactions | None = None
    phase: str = "starting"

    def problems(self) -> list[str]:
        """Why it does not do its work right now, in words; empty when it does."""
        return [
            *([self.phase] if self.phase else []),
            *self.transport.problems(),
            *(self.subscriber.problems() if self.subscriber is not None else []),
            *(self.transactions.problems() if self.transactions is not None else []),
        ]


def check_backfill(since: str) -> None:
    """Refuse what does not say since when to backfill.

    Raises:
        ContractError: with what does.
    """
    from broker.backfill import begin_of  # for those who ask for one

    begin_of(since, datetime.now(UTC))


def _backfill(
    standing: Standing, subscription: Subscription, since: str, settings: Settings, log: FilteringBoundLogger
) -> Backfill:
    """What a service missed before its first start."""
    from broker.backfill import Backfill  # for those who ask for one

    def tell(phase: str) -> None:
        standing.phase = phase

    assert standing.subscriber is not None, "it subscribes"
    return Backfill(standing.subscriber, subscription, since, settings, standing.transport, log, tell)


def transactions(
    database: Database, service: Service, broker: Broker, log: FilteringBoundLogger
) -> AbstractAsyncContextManager[Transactions]:
    """A service's database. `broker.sql`, and SQLAlchemy with it, is imported by those who have one."""
    try:
        from broker.sql import open_transactions
    except ImportError as error:
        raise DatabaseUnusable(
            f"A service with a database needs {error.name or error}: "
            "pip install 'business-events[sqlite]' or 'business-events[postgresql]'."
        ) from None
    return open_transactions(database, service.name, broker, log, longest=service.longest)


@asynccontextmanager
async def _lifespan(service: Service) -> AsyncIterator[Any]:
    if service.lifespan is None:
        yield None
        return
    lifespan: Any = service.lifespan
    if inspect.isasyncgenfunction(lifespan):
        lifespan = asynccontextmanager(lifespan)
    takes_service = bool(inspect.signature(service.lifespan).parameters)
    async with lifespan(service) if takes_service else lifespan() as resources:
        yield resources


def run(service: Service, settings: Settings | None = None, *, backfill: str | None = None) -> int:
    """Run a service in this process until it is told to stop; returns the exit code.

    Args:
        settings: None: the environment's.
        backfill: since when a first start backfills; None: as the service declares.
    """
    try:
        settings = settings or Settings()
    except ValidationError as error:
        print(settings_problem(error), file=sys.stderr)  # noqa: T201  (there is no log without settings)
        return ContractError.exit_code
    logs.configure(settings)
    with asyncio.Runner(loop_factory=event_loop()) as runner:
        log = logs.logger(settings, service=service.name)
        return runner.run(_run(service, settings, log, backfill or service.backfill))


def event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the event loop: uvloop if it is installed, for a tenth or two less processor time."""
    try:
        import uvloop
    except ImportError:
        return None
    made_by: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return made_by


async def _run(service: Service, settings: Settings, log: FilteringBoundLogger, backfill: str | None) -> int:
    """Serve until a signal. One that comes while starting ends the start."""
    stop, started = asyncio.Event(), asyncio.Event()
    living = asyncio.current_task()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():  # the second: end at once; what is in hand comes again
            log.warning("killed", signal=number.name)
            _exit_at_once(128 + number)
        log.info("stopping", signal=number.name)
        stop.set()
        if not started.is_set() and living is not None:
            living.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    standing = Standing(rabbitmq(settings, log, service.name))
    try:
        async with serve(service, settings, log, standing=standing, backfill=backfill):
            started.set()
            await stop.wait()
    except BrokerError as error:
        log.error("failed", reason=type(error).__name__, error=str(error))  # noqa: TRY400  (the message says it all)
        return error.exit_code
    except ValidationError as error:  # most likely the service's own settings
        log.error("failed", reason=f"{error.title} do not validate", error=problems_of(error))  # noqa: TRY400
        return ContractError.exit_code
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    except Exception as error:
        log.exception("failed", reason=type(error).__name__, error=str(error))
        return BrokerError.exit_code
    log.info("stopped")
    if standing.subscriber is not None and standing.subscriber.stuck:
        _exit_at_once(0)  # a `def` handler that outlived its deadline would keep the interpreter waiting
    return 0


def _exit_at_once(code: int) -> NoReturn:
    sys.stderr.flush()
    os._exit(code)


def settings_problem(error: ValidationError) -> str:
    """What is wrong in the environment, one line for each setting, without its value."""
    return f"Wrong settings:\n  {problems_of(error, prefix='BROKER_', between=chr(10) + '  ')}"


def problems_of(error: ValidationError, *, prefix: str = "", between: str = "; ") -> str:
    """What does not validate, each thing by its name, without its value."""
    return between.join(
        (f"{prefix}{problem['loc'][0]}: ".upper() if problem["loc"] else "")
        + problem["msg"].removeprefix("Value error, ")
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    )
