"""Subscribing: from a delivery to its handler, and back to RabbitMQ.

The way of one delivery, each step a method below: `receive` puts it in line, a worker takes it (`_work`), `_handle`
reads and handles it, `_conclude` publishes what the handler collected or sends a copy away, and only then acknowledges
it.

Rules:

- An event leaves by one door: handled, in a retry queue, or in the dead letters. Copy, confirm, then acknowledge.
- What cannot be read at all is rejected: RabbitMQ moves it to the dead letters untouched.
- When RabbitMQ does not confirm, the delivery is kept and concluded again and again: giving it back would count
  against it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context as ContextVars
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from logging import DEBUG
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Any

from structlog.contextvars import bind_contextvars, unbind_contextvars
from structlog.typing import FilteringBoundLogger
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from broker.copies import Failure, copy, history, is_again
from broker.envelope import Envelope, decode, decode_as
from broker.errors import (
    AccessRefused,
    BrokerError,
    ContractError,
    Malformed,
    NotConfirmed,
    PublishRefused,
    Reject,
    TooLarge,
    Unhandled,
    Unroutable,
)
from broker.events import Catalogue, Event, text_of
from broker.handlers import Collector, Context, Handler, Handlers, Threads, payload_of
from broker.handlings import Outcome, Recorder
from broker.pause import KillSwitch
from broker.publisher import Broker, Publication
from broker.retry import Acknowledge, DeadLetter, Decision, Retry, RetryAfter, decide
from broker.topology import dead_queue, retry_queue, retry_topology, service_topology
from broker.transactions import ENDED, NO_DATABASE, Transactions
from broker.transport import Consumer, Delivery, Message, Receive, Transport

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

Around = Callable[[Context, Callable[[], Awaitable[None]]], Awaitable[None]]
"""A function wrapped around every handling: it gets the context, and what it must await to handle."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a service declares about its handling.

    Attributes:
        service: its name, and its queue's.
        handlers: who takes which event.
        publishable: the events it may publish.
        retry: its ladder, where a handler has none of its own.
        around: wraps every handling; the first is the outermost.
    """

    service: str
    handlers: Handlers
    publishable: Catalogue
    retry: Retry
    around: tuple[Around, ...] = ()


@dataclass(slots=True)
class Handled:
    """How a handling ended.

    Attributes:
        ids: the event's and its story's.
        began: in microseconds since 1970.
        took: in microseconds.
    """

    envelope: Envelope
    handler: Handler | None
    attempt: int
    error: Exception | None
    publications: Sequence[Publication]
    ids: tuple[str, str]
    began: int
    took: int
    duplicate: bool = False


MENTIONED = ("event_name", "event_id", "correlation_id")
"""What log lines tell of the event that is handled, by way of structlog's context variables."""


@dataclass(slots=True, eq=False)
class Worker:
    """One of those who handle, one delivery after the other.

    Attributes:
        task: it runs.
        mentioned: the context variables by which log lines tell what is handled.
        ids: of the event and its story, as they stand in log lines.
        before: all context variables, as the handler found them.
        delivery: what it has in hand.
        since: when the handler was called; None when it is not in one.
        late: the handler was cancelled, since its time was over.
    """

    task: asyncio.Task[None] = field(init=False)
    delivery: Delivery | None = None
    since: float | None = None
    late: bool = False
    mentioned: list[ContextVar[Any]] = field(default_factory=list)
    ids: tuple[str, str] = ("", "")
    before: ContextVars | None = None

    def begin(self, service: str) -> None:
        """In its task, before anything else."""
        bind_contextvars(service=service)
        self.mentioned = [token.var for token in bind_contextvars(**dict.fromkeys(MENTIONED)).values()]
        self.forget()

    def mention(self, envelope: Envelope) -> None:
        """From now on, log lines are about this event."""
        name, event_id, correlation_id = self.mentioned
        name.set(envelope.name)
        text = text_of(envelope.id)
        event_id.set(text)
        story = text if envelope.story.correlation_id == envelope.id else text_of(envelope.story.correlation_id)
        correlation_id.set(story)
        self.ids = text, story
        self.before = copy_context()

    def forget(self) -> None:
        """From now on, log lines are about no event."""
        unbind_contextvars(*MENTIONED)
        self.before = None

    @property
    def changed(self) -> bool:
        """Whether a handler set context variables that the next one would find."""
        return self.before is not None and self.before != copy_context()


class Subscriber:
    """Consumes one service's queue.

    Args:
        subscription: what was declared.
        broker: publishes what handlers collected.
        transport: consumes, and carries copies.
        resources: what the service's lifespan yielded.
        transactions: its database, if it has one.
        log: carries the service's name.
    """

    def __init__(  # noqa: PLR0913, PLR0917  (its parts, put together by `broker.service.serve`)
        self,
        subscription: Subscription,
        broker: Broker,
        transport: Transport,
        resources: Any,
        transactions: Transactions | None,
        log: FilteringBoundLogger,
    ) -> None:
        self._it = subscription
        self._service = subscription.service
        self._broker = broker
        self._transport = transport
        self._resources = resources
        self._transactions = transactions
        self._log = log.bind()  # structlog's proxy would bind anew for each line
        self._settings = broker.settings
        self._line: deque[Delivery] = deque()
        self._recorder = Recorder(self._service, self._settings, transport, log)
        self._threads = Threads(self._settings.concurrency, self._service)
        self._workers: set[Worker] = set()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._draining = False
        self._alarm: asyncio.TimerHandle | None = None
        self._consumer: Consumer | None = None
        self._switch = KillSwitch(self._settings, log, self._pause_or_resume)
        self._showing: asyncio.Task[None] | None = None
        self._unconcluded: dict[Delivery, str] = {}
        self._retry_queues: set[str] = set()
        self._newer: set[tuple[str, int]] = set()

    # -- starting and stopping -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Declare what the service owns, and consume. Raises as `Transport.declare` does."""
        await self.declare()
        self.begin()
        await self.consume()

    async def declare(self) -> None:
        """Declare what the service owns. Raises as `Transport.declare` does."""
        patterns = self._it.handlers.bindings
        await self._transport.declare(service_topology(self._service, patterns, self._settings.exchange))

    def begin(self) -> None:
        """From now on, handle what is received."""
        self._recorder.start()
        self._fresh = copy_context()
        for _ in range(self._settings.concurrency):
            self._hire()
        self._watch()

    async def consume(self, receive: Receive | None = None) -> None:
        """Consume the queue. What passes on to `receive` may stand before it. Raises as `Transport.declare` does."""
        self._consumer = await self._transport.consume(
            self._service, receive or self.receive, prefetch=self._settings.full_prefetch
        )

    async def drain(self) -> None:
        """Take no more, give back what has not begun, finish the rest within ``BROKER_SHUTDOWN_TIMEOUT``."""
        if self._consumer is not None:
            await self._consumer.cancel()
        self._draining = True
        while self._line:
            await self._line.popleft().release()
        for worker in self._workers:
            if worker.delivery is None:
                worker.task.cancel()
        running = [worker.task for worker in self._workers if worker.delivery is not None]
        if running:
            self._log.info("draining", running=len(running), timeout=self._settings.shutdown_timeout)
            _, late = await asyncio.wait(running, timeout=self._settings.shutdown_timeout)
            for task in late:
                task.cancel()
            if late:
                self._log.warning("given back", deliveries=len(late))
        await asyncio.gather(*(worker.task for worker in self._workers), return_exceptions=True)
        await self._recorder.close()
        if self._alarm is not None:
            self._alarm.cancel()
        self._threads.close()

    @property
    def busy(self) -> int:
        """Deliveries in line or in hand."""
        return len(self._line) + sum(worker.delivery is not None for worker in self._workers)

    def problems(self) -> list[str]:
        """Why it does not do its work right now, in words; empty when it does."""
        limit = self._settings.handler_timeout
        stuck = self._threads.running_longer_than(limit)
        return [
            *([self._switch.problem] if self._switch.problem else []),
            *sorted(set(self._unconcluded.values())),
            *([f"{stuck} `def` handlers run for longer than BROKER_HANDLER_TIMEOUT={limit:g} s"] if stuck else []),
        ]

    @property
    def stuck(self) -> bool:
        """Whether a ``def`` handler still runs, after `drain` too: threads cannot be interrupted."""
        return self._threads.busy

    def _pause_or_resume(self) -> None:
        """Tell the consumer, which shows it in the management UI and to ``broker status``."""

        async def show(before: asyncio.Task[None] | None, consumer: Consumer) -> None:
            if before is not None:
                await asyncio.wait([before])
            why = self._switch.problem
            await (consumer.pause(why) if why else consumer.resume())

        if self._consumer is not None:
            self._showing = asyncio.create_task(show(self._showing, self._consumer))

    def receive(self, delivery: Delivery) -> None:
        """Put a delivery in line for the next free worker."""
        self._line.append(delivery)
        while self._idle:
            waiting = self._idle.popleft()
            if not waiting.done():
                waiting.set_result(None)
                break

    # -- workers -------------------------------------------------------------------------------------------------

    def _hire(self) -> None:
        """One more worker, with fresh context variables."""
        worker = Worker()
        worker.task = asyncio.create_task(self._work(worker), context=self._fresh.copy())
        self._workers.add(worker)

    async def _work(self, worker: Worker) -> None:
        """Take one delivery after the other. Context variables that a handler sets end with it, and so do we then."""
        worker.begin(self._service)
        try:
            while not self._draining and not worker.changed:
                while not self._line:
                    waiting = asyncio.get_running_loop().create_future()
                    self._idle.append(waiting)
                    await waiting
                await self._take(self._line.popleft(), worker)
        finally:
            self._workers.discard(worker)
        if not self._draining:
            self._hire()

    async def _take(self, delivery: Delivery, worker: Worker) -> None:
        try:
            if self._switch.paused:
                await self._switch.admit()
            worker.delivery = delivery
            if not delivery.lost:
                await self._handle(delivery, worker)
        except asyncio.CancelledError:
            await delivery.release()
            raise
        except Exception as error:
            # ours, not the handler's: the delivery is kept, and comes again with the next connection
            self._log.exception("unexpected", error=str(error))
            await delivery.release()
        finally:
            worker.delivery = None
            self._switch.ended()

    def _watch(self) -> None:
        """Cancel the handlings that are beyond their time, and look again when the next may be."""
        loop, limit = asyncio.get_running_loop(), self._settings.handler_timeout
        now = loop.time()
        handling = [worker for worker in self._workers if worker.since is not None and not worker.late]
        for worker in handling:
            if worker.since is not None and worker.since + limit <= now:
                worker.late = True
                worker.task.cancel()
        since = min((worker.since or now for worker in handling if not worker.late), default=now)
        self._alarm = loop.call_at(since + limit, self._watch)

    # -- one delivery --------------------------------------------------------------------------------------------

    async def _handle(self, delivery: Delivery, worker: Worker) -> None:
        try:
            message = delivery.message
            key, attempt = history(message, self._service)
            envelope, payload = self._read(message, key)
        except Malformed as error:
            worker.forget()
            self._log.error("dead", error=f"Malformed: {error}", raw=True)
            await delivery.reject()
            return
        worker.mention(envelope)
        handled = await self._run(envelope, payload, attempt, worker, again=is_again(message, self._service))
        if handled.error is None and not handled.publications:
            self._report(handled, None, Acknowledge())
            await delivery.ack()
        else:
            await self._until_concluded(delivery, message, handled)

    def _read(self, message: Message, key: str) -> tuple[Envelope, Event | None]:
        """The envelope, and the payload if one pass was enough for both."""
        event = self._it.handlers.guess(key)
        if event is not None:
            both = decode_as(event, message.body, key=key, content_type=message.content_type)
            if both is not None:
                return both
        return decode(message.body, key=key, content_type=message.content_type, headers=message.headers), None

    async def _run(
        self, envelope: Envelope, payload: Event | None, attempt: int, worker: Worker, *, again: bool
    ) -> Handled:
        """Find the handler, read the payload for it, and call it; with a database, in one transaction."""
        handler: Handler | None = None
        error: Exception | None = None
        publications: Sequence[Publication] = ()
        duplicate = False
        began, started = time_ns() // 1000, perf_counter_ns()
        try:
            handler, event = self._it.handlers.choose(envelope)
            self._notice_newer(envelope, event.__contract__.version if event else None)
            given = payload if payload is not None and type(payload) is event else payload_of(envelope, event)
            once = partial(self._once, handler, given, envelope, attempt, worker)
            if self._transactions is None:
                publications = await once(NO_DATABASE)
            else:
                duplicate = not await self._transactions.run(envelope, once, again=again)
        except Exception as raised:
            error = raised
        if not duplicate and not isinstance(error, Reject | Malformed | Unhandled):  # these say nothing of how we are
            self._switch.note(error)
        took = (perf_counter_ns() - started) // 1000
        return Handled(envelope, handler, attempt, error, publications, worker.ids, began, took, duplicate)

    async def _once(  # noqa: PLR0913, PLR0917  (what one call of a handler consists of)
        self,
        handler: Handler,
        given: Event | Envelope,
        envelope: Envelope,
        attempt: int,
        worker: Worker,
        transaction: AsyncSession,
    ) -> Sequence[Publication]:
        """Call the handler, within its time limit; returns what it publishes."""
        collector = Collector(envelope, self._service, self._it.publishable)
        context = self._context(envelope, attempt, collector, transaction)
        worker.since = asyncio.get_running_loop().time()
        try:
            await self._call(handler, given, context)
        except asyncio.CancelledError as cancelled:
            raise self._cancelled(worker, cancelled) from None
        finally:
            worker.since = None
            if worker.late:
                worker.late = False
                worker.task.uncancel()
            collector.closed = True
            if transaction is not NO_DATABASE:
                context.transaction = ENDED
        return collector.publications

    def _cancelled(self, worker: Worker, cancelled: asyncio.CancelledError) -> Exception:
        """What a cancellation means: its time is over, or it cancelled itself; when we are to end, we do."""
        if worker.late:
            return TimeoutError(f"not handled within BROKER_HANDLER_TIMEOUT={self._settings.handler_timeout:g} s")
        if worker.task.cancelling():
            raise cancelled
        return RuntimeError(f"the handler cancelled itself: {cancelled}")

    def _context(self, envelope: Envelope, attempt: int, collector: Collector, transaction: AsyncSession) -> Context:
        return Context(
            event_id=envelope.id,
            name=envelope.name,
            key=envelope.key,
            time=envelope.time,
            source=envelope.source,
            attempt=attempt,
            correlation_id=envelope.story.correlation_id,
            causation_id=envelope.story.causation_id,
            resources=self._resources,
            transaction=transaction,
            _collector=collector,
        )

    async def _call(self, handler: Handler, payload: Event | Envelope, context: Context) -> None:
        """Call the handler through the functions around it."""

        if not self._it.around:
            return await handler.run(payload, context, self._threads)

        async def handle() -> None:
            await handler.run(payload, context, self._threads)

        call: Callable[[], Awaitable[None]] = handle
        for around in reversed(self._it.around):
            call = _wrapped(around, context, call)
        await call()
        return None

    def _notice_newer(self, envelope: Envelope, known: int | None) -> None:
        version = envelope.version
        if known is None or version is None or version <= known or (envelope.name, version) in self._newer:
            return
        self._newer.add((envelope.name, version))
        self._log.info("newer version", event_name=envelope.name, version=version, handled_as=known)

    # -- how it ends ---------------------------------------------------------------------------------------------

    async def _until_concluded(self, delivery: Delivery, message: Message, handled: Handled) -> None:
        """Conclude, again and again while RabbitMQ does not confirm, until it does or the delivery is lost."""

        def hopeless(state: RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            self._log.warning("not concluded", attempt=state.attempt_number, error=str(error))
            self._unconcluded[delivery] = f"what was handled cannot be concluded: {error}"
            return delivery.lost

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(BrokerError),
            stop=hopeless,
            wait=wait_random_exponential(multiplier=0.2, max=5),
            retry_error_callback=lambda _: None,
        )
        try:
            await retrying(self._conclude, delivery, message, handled)
        finally:
            self._unconcluded.pop(delivery, None)

    async def _conclude(self, delivery: Delivery, message: Message, handled: Handled) -> None:
        error = handled.error
        if error is None:
            try:
                await self._publish(handled.publications)
            except (TooLarge, AccessRefused, ContractError) as refused:  # the handler's failure, not RabbitMQ's
                error = refused
        decision = decide(error, handled.attempt, self._ladder(handled.handler))
        queue = self._copy_goes_to(decision)
        if error is not None and queue is not None:
            await self._copy(copy(message, self._failure(handled, error), queue), decision)
        self._report(handled, error, decision)
        if queue is not None:
            await self._transport.until_trusted(queue)
        await delivery.ack()

    async def _publish(self, publications: Sequence[Publication]) -> None:
        if len(publications) == 1:
            await self._broker.send(publications[0])
        elif publications:
            results = await asyncio.gather(*map(self._broker.send, publications), return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result

    def _ladder(self, handler: Handler | None) -> Retry:
        return handler.retry if handler is not None and handler.retry is not None else self._it.retry

    def _failure(self, handled: Handled, error: Exception) -> Failure:
        return Failure(
            service=self._service,
            handler=handled.handler.name if handled.handler else "",
            error=error,
            attempt=handled.attempt,
            key=handled.envelope.key,
            at=datetime.now(UTC),
        )

    def _copy_goes_to(self, decision: Decision) -> str | None:
        match decision:
            case RetryAfter(delay):
                return retry_queue(self._service, delay)
            case DeadLetter():
                return dead_queue(self._service)
        return None

    async def _copy(self, message: Message, decision: Decision) -> None:
        """Send a copy away, and await its confirm. A retry queue is declared when first needed."""
        if isinstance(decision, RetryAfter) and message.key not in self._retry_queues:
            await self._transport.declare(retry_topology(self._service, decision.delay))
            self._retry_queues.add(message.key)
        try:
            await self._transport.publish(message, mandatory=True, timeout=self._settings.publish_timeout)
        except Unroutable:  # somebody deleted it
            self._retry_queues.discard(message.key)
            raise
        except (NotConfirmed, PublishRefused) as error:
            raise type(error)(
                f"the queue {message.key!r} takes no copy: {error}. If RabbitMQ is well otherwise, that queue did not "
                "survive a crash: delete it, and it is declared anew"
            ) from None

    def _report(self, handled: Handled, error: Exception | None, decision: Decision) -> None:
        """Record how a handling ended, and log it: what went well for `DEBUG` alone."""
        envelope, attempt = handled.envelope, handled.attempt
        handler = handled.handler.name if handled.handler else None
        outcome: Outcome = "duplicate" if handled.duplicate else "handled"
        delay = why = None
        if error is not None:
            why = f"{type(error).__name__}: {error}"
            outcome = "dead"
            if isinstance(decision, RetryAfter):
                outcome, delay = "retrying", str(decision.delay)
        event_id, story = handled.ids
        self._recorder.note(
            (event_id, story, handled.began, handled.took, envelope.name, outcome, attempt, handler, why, delay)
        )
        if error is None and not self._log.is_enabled_for(DEBUG):
            return
        what = {
            "event_name": envelope.name,
            "event_id": handled.ids[0],
            "correlation_id": handled.ids[1],
            "source": envelope.source,
            "attempt": attempt,
            "handler": handler,
            "took": handled.took / 1e6,
        }
        if envelope.story.causation_id is not None:
            what["causation_id"] = str(envelope.story.causation_id)
        if error is None:
            self._log.debug(outcome, **what)
            return
        trace = error if attempt == 1 and not isinstance(error, BrokerError) else None
        tell = self._log.error if outcome == "dead" else self._log.warning
        again = {"delay": delay} if delay is not None else {}
        tell(outcome, **what, **again, error=why, exc_info=trace)


def _wrapped(around: Around, context: Context, handle: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    async def wrapped() -> None:
        await around(context, handle)

    return wrapped
