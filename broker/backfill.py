"""What a service missed before it first started, read from the event log before it consumes its queue.

The first start of a service with ``backfill="7d"``:

1. It takes a lock: one process backfills, the others wait.
2. It declares the queue ``SERVICE.backfill``. In it, one message notes how far it is.
3. It looks up the log's end, declares and binds its queue, and a moment later looks up the log's end again. What is
   between these ends, the seam, may be both in the log and in the queue; what comes later is in the queue.
4. It reads the log up to the seam's end. What it subscribes to is handled as what is delivered is: by the same
   handlers, with the same retries and dead letters, through the same inbox.
5. Only now it consumes its queue, and acknowledges unhandled what it has handled already, told by (source, id).
6. When nothing of the seam can be left in the queue, ``SERVICE.backfill`` is deleted.

Rules:

- ``SERVICE.backfill`` exists exactly while a backfill is unfinished: whoever starts next goes on where it says. A
  service that has a queue and no such note has started before, and does not backfill.
- A message of the log is noted as done when it is, and all before it are.
- As with deliveries, an event that kills its process is found alone: what may have been begun before a crash is handled
  one by one, and dead-lettered after `DELIVERY_LIMIT` times.
- Who loses the connection that holds the lock finishes what is in hand, and begins at 1: another may have gone on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from time import monotonic
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from structlog.typing import FilteringBoundLogger

from broker.copies import Failure, copy
from broker.envelope import decode
from broker.errors import AccessRefused, BrokerError, ConnectionFailed, ContractError, Malformed
from broker.eventlog import Entry, EventLog
from broker.publisher import rabbitmq
from broker.retry import DURATION, UNITS
from broker.settings import Settings
from broker.subscriber import Subscriber, Subscription
from broker.topology import (
    DELIVERY_LIMIT,
    Topology,
    backfill_lock,
    backfill_queue,
    backfill_topology,
    dead_queue,
    matches,
)
from broker.transport import Delivery, Message, Offset, Receive, Transport

SETTLING = 2.0
"""Seconds after the queue was bound until all that was routed before is in the log. RabbitMQ takes milliseconds."""
STORING = 1.0
"""Seconds until what is in the log is in the queue, too, if it is to be in both."""
NOTE_EVERY = 1.0
AHEAD = 1000
"""Messages of the log that are read beyond the last note, at most."""
TELL_EVERY = 10.0
LOOK_AGAIN = 1.0
"""Seconds after which the lock, or whether the seam is over, is looked at again."""
PATIENCE = 30.0
"""Seconds for a message that is known to be there."""

Number = Annotated[int, Field(ge=0)]


def begin_of(since: str, now: datetime) -> Offset:
    """Where in the log a backfill begins.

    Args:
        since: so long ago (``"90m"``, ``"12h"``, ``"7d"``), a date and time, or ``"first"`` for all the log holds.

    Raises:
        ContractError: it is none of these.
    """
    match = DURATION.fullmatch(since) if isinstance(since, str) else None
    try:
        if match is not None:
            found = now - timedelta(milliseconds=float(match[1]) * UNITS[match[2]])
        elif since == "first":
            return since
        else:
            found = datetime.fromisoformat(since).astimezone(UTC)
        return found if found.timestamp() > 0 else "first"
    except (ValueError, TypeError, OverflowError):
        raise ContractError(
            f"{since!r} does not say since when to backfill. Write how long ago, '90m', '12h', '7d', or when, "
            "'2026-07-01T12:30', or 'first' for all that the event log holds."
        ) from None


class Note(BaseModel):
    """How far a backfill is. Numbers are places in the log.

    Attributes:
        first: where it began.
        next: all before it is done.
        begun: from here on, nothing was begun.
        tries: how often ``next`` was begun alone.
        seam: the log's end before the queue was bound.
        end: the log's end after it; None: not looked up yet.
        depth: how much was in the queue a moment after that: the copies of what is in the seam are among the first.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    first: Number
    next: Number
    begun: Number
    tries: Number = 0
    seam: Number
    end: Number | None = None
    depth: Number | None = None


def furthest(notes: Iterable[Note]) -> Note | None:
    """Of several notes, each of which is true, the one that knows most."""
    return max(notes, key=lambda it: (it.next, it.end is not None, it.depth is not None, it.tries), default=None)


class Position:
    """How far the reading is: messages are begun in order, and end in any.

    Attributes:
        reached: the number to read next.
    """

    def __init__(self, begin: int) -> None:
        self.reached = begin
        self._in_hand: dict[int, None] = {}

    def __len__(self) -> int:
        """How many are in hand."""
        return len(self._in_hand)

    @property
    def next(self) -> int:
        """The first that is not done."""
        return next(iter(self._in_hand), self.reached)

    def begin(self, number: int) -> None:
        """It is in hand."""
        self._in_hand[number] = None
        self.reached = number + 1

    def end(self, number: int) -> None:
        """It is done with."""
        self._in_hand.pop(number, None)

    def pass_to(self, number: int) -> None:
        """Nothing is to be done about what comes before."""
        self.reached = max(self.reached, number)


class Seam:
    """Stands before a service's queue, and keeps from it what was handled out of the log.

    Only copies that came from the exchange of all events are kept away: a retry of such an event is none of them.

    Args:
        exchange: of all events.
        receive: takes the others.
    """

    def __init__(self, exchange: str, receive: Receive) -> None:
        self._exchange = exchange
        self._receive = receive
        self._handled: set[tuple[str, UUID]] = set()
        self._left = 0
        self._acks: set[asyncio.Task[None]] = set()
        self.ignored = 0

    def add(self, message: Message) -> None:
        """It is in the seam."""
        with suppress(Malformed):
            self._handled.add(_identity(message))

    def begin(self, depth: int) -> None:
        """The queue is consumed from now on; the seam ends with its first ``depth`` messages."""
        self._left = depth
        if not depth:
            self.end()

    @property
    def over(self) -> bool:
        """Whether nothing of it can come any more."""
        return self._left <= 0

    def end(self) -> None:
        """Let everything pass."""
        self._left = 0
        self._handled.clear()

    def receive(self, delivery: Delivery) -> None:
        """Pass a delivery on, or acknowledge it."""
        if self._left > 0 and self._knows(delivery):
            self.ignored += 1
            ack = asyncio.ensure_future(delivery.ack())
            self._acks.add(ack)
            ack.add_done_callback(self._acks.discard)
        else:
            self._receive(delivery)
        if self._left > 0 and not delivery.redelivered:
            self._left -= 1
            if not self._left:
                self.end()

    def _knows(self, delivery: Delivery) -> bool:
        try:
            message = delivery.message
            return message.exchange == self._exchange and _identity(message) in self._handled
        except Malformed:
            return False


def _identity(message: Message) -> tuple[str, UUID]:
    envelope = decode(message.body, key=message.key, content_type=message.content_type, headers=message.headers)
    return envelope.source, envelope.id


class LogDelivery:
    """A message of the log as a `broker.transport.Delivery`."""

    lost = False

    def __init__(self, backfill: Backfill, number: int, message: Message, *, redelivered: bool) -> None:
        self._backfill = backfill
        self.number = number
        self.message = message
        self.redelivered = redelivered
        self.times = 1

    async def ack(self) -> None:
        self._backfill.done(self)

    async def reject(self) -> None:
        try:
            _identity(self.message)
            error: BrokerError = Malformed("its log line `dead` says why")
        except Malformed as malformed:
            error = malformed
        await self._backfill.set_aside(self, error)

    async def release(self) -> None:
        self._backfill.give_back(self)


class Backfill:
    """One process's part in the backfill of a service. It ends by noting how far it is.

    Args:
        subscriber: handles what is read, and what is in the queue.
        subscription: what it subscribes to.
        since: as `begin_of` takes it.
        settings: of the service.
        transport: of the service.
        log: carries the service's name.
        tell: told what the service is going through.

    Raises:
        ContractError: ``since`` is none, or there is no event log.
    """

    def __init__(  # noqa: PLR0913, PLR0917  (its parts, put together by `broker.service.serve`)
        self,
        subscriber: Subscriber,
        subscription: Subscription,
        since: str,
        settings: Settings,
        transport: Transport,
        log: FilteringBoundLogger,
        tell: Callable[[str], None],
    ) -> None:
        if not settings.log:
            raise ContractError(
                f"backfill={since!r} reads the event log, which is switched off (BROKER_LOG). "
                "Switch it on everywhere, or start without a backfill."
            )
        begin_of(since, datetime.now(UTC))
        self._subscriber = subscriber
        self._service = subscription.service
        self._since = since
        self._settings = settings
        self._transport = transport
        self._log = log
        self._tell = tell
        patterns = tuple(subscription.handlers.bindings)
        self._wants = lru_cache(maxsize=10_000)(lambda key: any(matches(pattern, key) for pattern in patterns))
        self._seam = Seam(settings.exchange, subscriber.receive)
        self._held = AsyncExitStack()
        self._note: Note | None = None
        self._position = Position(0)
        self._careful = 0
        self._total = 0
        self._events = self._foreign = 0
        self._changed = asyncio.Event()
        self._note_now = asyncio.Event()
        self._noting = asyncio.Lock()
        self._handling = self._stopping = False
        self._problem = ""
        self._finishing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Backfill:
        return self

    async def __aexit__(self, *error: object) -> None:
        """Note how far it is, if it is not done, and let go."""
        if self._finishing is not None:
            self._finishing.cancel()
            await asyncio.gather(self._finishing, return_exceptions=True)
        elif self._note is not None:
            with suppress(TimeoutError, BrokerError):
                async with asyncio.timeout(self._settings.publish_timeout):
                    await self._write(ahead=0)
            self._log.info("backfill unfinished", done=self._position.next - self._note.first, of=self._total)
        await self._held.aclose()

    async def start(self) -> None:
        """Return when the service consumes its queue, and all that it missed is handled.

        Raises:
            ContractError: RabbitMQ has no event log.
            AccessRefused: this user may not read it, or may not declare what a backfill needs.
            TopologyConflict: as declaring does.
        """
        try:
            missed = await self._read_what_was_missed()
        except BaseException:
            self._stopping = True
            raise
        if missed:
            assert self._note is not None, "read to its end"
            self._seam.begin(self._note.depth or 0)
            self._handle()
            await self._subscriber.consume(self._seam.receive)
            self._finishing = asyncio.create_task(self._finish(), name="backfill")
        else:
            self._note = None  # another process has ended it, if there was one
            why = f"its queue exists already: what it missed, `broker replay {self._service}` brings back"
            self._log.info("not backfilled", reason=why)
            await self._subscriber.declare()
            self._handle()
            await self._subscriber.consume()

    # -- one process at a time ---------------------------------------------------------------------------------------

    async def _read_what_was_missed(self) -> bool:
        """Whether there was something unfinished. Tries again for as long as RabbitMQ or the lock is not to be had."""
        while True:
            try:
                if await self._has_begun_before():
                    return False
                done = await self._try()
            except ConnectionFailed as error:
                self._say(str(error))
                done = None
                await asyncio.sleep(LOOK_AGAIN)
            if done is None:  # what is in hand ends first, and so what we note is all
                await self._held.aclose()
                while len(self._position):
                    await self._change()
                continue
            await self._held.aclose()
            return done

    async def _has_begun_before(self) -> bool:
        """Whether it has a queue, and nothing is unfinished. In this order: the note comes first, and goes last."""
        has_queue = await self._transport.count(self._service) is not None
        return has_queue and await self._transport.count(backfill_queue(self._service)) is None

    async def _try(self) -> bool | None:
        """Hold the lock, and read: True: all is done; False: there is nothing to do; None: the lock was lost."""
        gone = await self._hold_lock()
        if await self._has_begun_before():
            return False
        own = rabbitmq(self._settings, self._log, f"{self._service} backfill")
        self._held.push_async_callback(own.close)
        await own.connect()
        log = EventLog(own, self._settings)
        await self._begin(own, log)
        lost = asyncio.create_task(gone.wait())
        reading = asyncio.create_task(self._read_all(log))
        noting = asyncio.create_task(self._keep_noting())
        try:
            done, _ = await asyncio.wait([lost, reading, noting], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {lost}:
                await task
            return True if reading in done else None
        finally:
            for task in (lost, reading, noting):
                task.cancel()
            await asyncio.gather(lost, reading, noting, return_exceptions=True)

    async def _hold_lock(self) -> asyncio.Event:
        """Wait for the lock. Returns what is set when it is lost."""
        waiting = False
        while True:
            try:
                return await self._held.enter_async_context(self._locked())
            except ContractError:
                if not waiting:
                    self._log.info("waiting", reason="another process backfills this service")
                    self._tell("waiting for the backfill of another process")
                waiting = True
            await asyncio.sleep(LOOK_AGAIN)
            if await self._has_begun_before():  # and needs no lock
                return asyncio.Event()

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[asyncio.Event]:
        from broker.rabbitmq.lock import locked  # those who use aio-pika import it

        refusal = "another process backfills this service"
        async with locked(backfill_lock(self._service), self._settings, refusal=refusal) as gone:
            yield gone

    # -- where to begin ----------------------------------------------------------------------------------------------

    async def _begin(self, own: Transport, log: EventLog) -> None:
        """Know where to begin, have it noted, and declare the queue."""
        has_queue = await self._transport.count(self._service) is not None
        written = await self._read_notes(own)
        span = await log.span()
        notes = [note for note in (_note_of(delivery) for delivery in written) if note is not None]
        note = furthest([*notes, *([self._so_far] if self._so_far else [])])
        resumed = note is not None
        if note is None:
            first = await log.place(begin_of(self._since, datetime.now(UTC)))
            note = Note(first=first, next=first, begun=first, seam=first)
        if note.next > span.end > 0:
            self._log.warning("event log is another", error="it ends before what was read; it is read from its first")
            note = Note(first=span.first, next=span.first, begun=span.first, seam=span.first)
        if note.next < span.first or (not resumed and 0 < span.first == note.next):
            await self._say_how_far_back(log, span.first, note)
            note = note.model_copy(update={"next": span.first})
        if not has_queue:
            note = note.model_copy(update={"seam": span.end, "end": None, "depth": None})
        await own.declare(backfill_topology(self._service))
        self._careful = note.begun if note.begun > note.next else 0
        self._position = Position(note.next)
        self._total = max(span.end, note.end or 0) - note.first
        await self._send(self._message(note))
        self._note = note
        for delivery in written:
            await delivery.ack()
        if not has_queue:
            await own.until_trusted(backfill_queue(self._service))
        await self._subscriber.declare()
        self._handle()
        self._log.info("backfilling", since=self._since, done=note.next - note.first, of=self._total, resumed=resumed)
        self._tell_progress()

    @property
    def _so_far(self) -> Note | None:
        """What this process knows by itself, with nothing in hand."""
        at = self._position.next
        return self._note.model_copy(update={"next": at, "begun": at, "tries": 0}) if self._note is not None else None

    async def _read_notes(self, own: Transport) -> list[Delivery]:
        """What the queue ``SERVICE.backfill`` holds, unsettled; nothing if there is none."""
        queue = backfill_queue(self._service)
        count = await own.count(queue)
        if count is None:
            return []
        written: list[Delivery] = []
        some = asyncio.Event()

        def take(delivery: Delivery) -> None:
            written.append(delivery)
            some.set()

        consumer = await own.consume(queue, take, prefetch=100, careful=False)
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE if count else LOOK_AGAIN):
                await some.wait()
        await consumer.cancel()
        if count and not written:
            raise ConnectionFailed(f"The queue {queue!r} hands out nothing, though it holds a message.")
        return written

    async def _say_how_far_back(self, log: EventLog, first: int, note: Note) -> None:
        """Warn when the log has been truncated, and reaches back less far than it should."""
        at = await _time_at(log, first)
        since = begin_of(self._since, datetime.now(UTC))
        if note.next == first and isinstance(since, datetime) and at is not None and at <= since:
            return
        self._log.warning(
            "event log truncated",
            reaches_back_to=at.isoformat() if at is not None else None,
            since=self._since,
            missing=first - note.next if note.next < first else None,
            error="what is older is gone: the log keeps BROKER_LOG_MAX_AGE and BROKER_LOG_MAX_BYTES of whoever made it",
        )

    def _handle(self) -> None:
        if not self._handling:
            self._handling = True
            self._subscriber.begin()

    # -- reading -----------------------------------------------------------------------------------------------------

    async def _read_all(self, log: EventLog) -> None:
        """Read the log to the seam's end, and return when all of it is done and noted."""
        assert self._note is not None, "begun"
        learning = asyncio.create_task(self._learn_the_end(log))
        began = monotonic()
        try:
            await self._remember_seam(log, self._note)
            await self._read(log, await self._end_of(log) if self._note.end is None else self._note.end)
            await learning
            assert self._note.end is not None, "learned"
            await self._read(log, self._note.end)
            while len(self._position):
                await self._change()
            await self._write()
        finally:
            learning.cancel()
            await asyncio.gather(learning, return_exceptions=True)
        if self._foreign:
            why = "they came through another exchange, or have properties that nobody can decode"
            self._log.warning("foreign messages", skipped=self._foreign, error=why)
        self._log.info("backfilled", events=self._events, took=round(monotonic() - began, 3))

    async def _learn_the_end(self, log: EventLog) -> None:
        """Look up the log's end, and the depth of the queue, a moment after it was bound."""
        assert self._note is not None, "begun"
        while self._note.end is None or self._note.depth is None:
            try:
                if self._note.end is None:
                    await asyncio.sleep(SETTLING)
                    end = await self._end_of(log)
                    self._total = end - self._note.first
                    await self._write(end=end)
                else:
                    await asyncio.sleep(STORING)
                    await self._write(depth=await self._transport.count(self._service) or 0)
            except ConnectionFailed as error:
                self._say(str(error))

    async def _end_of(self, log: EventLog) -> int:
        assert self._note is not None, "begun"
        end = (await log.span()).end
        if end < max(self._note.seam, self._position.reached):
            raise ConnectionFailed("RabbitMQ does not hand out the end of the event log.")
        return end

    async def _remember_seam(self, log: EventLog, note: Note) -> None:
        """What of the seam was done before this round."""
        if note.seam < note.next:
            async with aclosing(log.read(note.seam, end=note.next)) as entries:
                async for entry in entries:
                    if entry.offset is not None and entry.offset >= note.next:
                        break
                    if entry.message is not None and self._is_ours(entry):
                        self._seam.add(entry.message)

    async def _read(self, log: EventLog, end: int) -> None:
        """Read up to before ``end``, for as long as that takes."""
        position = self._position
        while position.reached < end:
            try:
                async with aclosing(log.read(position.reached, end=end)) as entries:
                    async for entry in entries:
                        number = entry.offset if entry.offset is not None else position.reached
                        if number >= end:
                            break
                        if number >= position.reached:  # else it comes again after a reconnect
                            await self._take(number, entry)
            except ConnectionFailed as error:
                self._say(str(error))
            else:
                position.pass_to(end)

    async def _take(self, number: int, entry: Entry) -> None:
        message = entry.message
        if message is not None and self._is_ours(entry):
            assert self._note is not None, "begun"
            if number >= self._note.seam:
                self._seam.add(message)
            await self._hand_out(number, _as_published(message))
            return
        if message is None or message.exchange not in (self._settings.exchange, self._settings.handlings_exchange):
            self._foreign += 1
        self._position.pass_to(number + 1)

    def _is_ours(self, entry: Entry) -> bool:
        message = entry.message
        return message is not None and message.exchange == self._settings.exchange and self._wants(message.key)

    async def _hand_out(self, number: int, message: Message) -> None:
        """Have it handled: at once, if there is room, and if it is noted that it may have been begun."""
        assert self._note is not None, "begun"
        careful = number < self._careful
        delivery = LogDelivery(self, number, message, redelivered=careful)
        self._events += 1
        if careful:
            await self._handle_alone(delivery)
            return
        while len(self._position) >= self._settings.full_prefetch:
            await self._change()
        if number >= self._note.begun - AHEAD // 2:
            self._note_now.set()
        while number >= self._note.begun:
            await self._change()
        self._position.begin(number)
        self._subscriber.receive(delivery)

    async def _handle_alone(self, delivery: LogDelivery) -> None:
        """Handle what may have killed its process with nothing else in hand; or set it aside."""
        assert self._note is not None, "begun"
        while len(self._position):
            await self._change()
        tries = self._note.tries + 1 if self._note.next == delivery.number else 1
        self._position.begin(delivery.number)
        await self._write(tries=tries)
        if tries > DELIVERY_LIMIT:
            error = BrokerError(f"begun {DELIVERY_LIMIT} times, and each time its process ended before it did")
            self._log.error("dead", number=delivery.number, error=str(error))
            await self.set_aside(delivery, error)
        else:
            self._subscriber.receive(delivery)
        while len(self._position):
            await self._change()

    async def _change(self) -> None:
        """Wait until something ended or was noted."""
        self._changed.clear()
        await self._changed.wait()

    # -- what becomes of a delivery ----------------------------------------------------------------------------------

    def done(self, delivery: LogDelivery) -> None:
        """It left by one of its doors."""
        self._position.end(delivery.number)
        self._changed.set()

    async def set_aside(self, delivery: LogDelivery, error: BrokerError) -> None:
        """A copy to the dead letters, confirmed; then it is done."""
        message, queue = delivery.message, dead_queue(self._service)
        failure = Failure(self._service, "", error, 1, message.key, datetime.now(UTC))
        await self._send(copy(message, failure, queue))
        await self._transport.until_trusted(queue)
        self.done(delivery)

    def give_back(self, delivery: LogDelivery) -> None:
        """It was not handled: it comes again, or is not done when this process ends."""
        if self._stopping:
            return
        delivery.times += 1
        if delivery.times <= DELIVERY_LIMIT:
            asyncio.get_running_loop().call_later(LOOK_AGAIN, self._subscriber.receive, delivery)
        else:
            error = BrokerError(f"given back {DELIVERY_LIMIT} times")
            asyncio.get_running_loop().create_task(self.set_aside(delivery, error))

    # -- noting how far it is ----------------------------------------------------------------------------------------

    async def _keep_noting(self) -> None:
        """Note how far it is, every second, and before the reading gets too far ahead."""
        told = monotonic()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(NOTE_EVERY):
                    await self._note_now.wait()
            self._note_now.clear()
            await self._write()
            self._tell_progress()
            if monotonic() - told >= TELL_EVERY:
                told = monotonic()
                assert self._note is not None, "begun"
                self._log.info("backfilling", done=self._position.next - self._note.first, of=self._total)

    async def _write(self, *, ahead: int = AHEAD, tries: int | None = None, **learned: int) -> None:
        """Note how far it is, and what was learned."""
        async with self._noting:
            before = self._note
            assert before is not None, "begun"
            at, reached = self._position.next, self._position.reached
            same = before.tries if before.next == at else 0
            changes = {
                "next": at,
                "begun": self._careful if reached < self._careful else reached + ahead,
                "tries": same if tries is None else tries,
            }
            note = before.model_copy(update=changes | learned)
            if note != before:
                await self._send(self._message(note))
                self._note = note
        self._changed.set()

    def _message(self, note: Note) -> Message:
        return Message(
            exchange=self._service,
            key=backfill_queue(self._service),
            body=note.model_dump_json(exclude_none=True).encode(),
            content_type="application/json",
            type="Backfill",
            app_id=self._service,
            timestamp=datetime.now(UTC),
        )

    async def _send(self, message: Message) -> None:
        """Publish, for as long as it takes: a queue that somebody deleted comes back."""
        while True:
            try:
                await self._transport.publish(message, mandatory=True, timeout=self._settings.publish_timeout)
            except AccessRefused:
                raise
            except BrokerError as error:
                self._say(f"the queue {message.key!r} takes nothing: {error}")
                await asyncio.sleep(LOOK_AGAIN)
            else:
                return

    def _tell_progress(self) -> None:
        assert self._note is not None, "begun"
        self._tell(f"backfilling: {self._position.next - self._note.first:,} of {self._total:,}")

    def _say(self, problem: str) -> None:
        """Once, until it is another one."""
        if problem != self._problem:
            self._log.warning("backfill waits", error=problem)
        self._problem = problem

    # -- the seam ----------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """When nothing of the seam can be left in the queue, delete the note."""
        assert self._note is not None, "begun"
        empty = 0
        while not self._seam.over and empty < 2:
            await asyncio.sleep(LOOK_AGAIN)
            with suppress(ConnectionFailed):
                is_empty = not await self._transport.count(self._service) and not self._subscriber.busy
                empty = empty + 1 if is_empty else 0
        self._seam.end()
        while True:
            try:
                await self._delete_note()
                break
            except (ConnectionFailed, ContractError):  # another process holds the lock, for a moment
                await asyncio.sleep(LOOK_AGAIN)
            except BrokerError as error:
                self._log.error("backfill not ended", error=str(error))
                break

    async def _delete_note(self) -> None:
        from broker.rabbitmq import delete

        async with self._locked():
            await delete(Topology(queues=backfill_topology(self._service).queues), self._settings)
        self._log.info("backfill ended", already_handled=self._seam.ignored)


def _note_of(delivery: Delivery) -> Note | None:
    try:
        return Note.model_validate_json(delivery.message.body)
    except (Malformed, ValidationError, RecursionError):
        return None


def _as_published(message: Message) -> Message:
    """A message of the log without its number."""
    headers = {name: value for name, value in message.headers.items() if name != "x-stream-offset"}
    return Message(
        message.exchange, message.key, message.body, message.content_type, message.type, message.correlation_id,
        message.app_id, message.timestamp, headers,
    )  # fmt: skip


async def _time_at(log: EventLog, number: int) -> datetime | None:
    """When a message of the log was published, as it says itself."""
    async with aclosing(log.read(number, end=number + 1)) as entries:
        async for entry in entries:
            if entry.message is not None and entry.message.timestamp is not None:
                return entry.message.timestamp.astimezone(UTC)
            with suppress(Malformed):
                return entry.envelope.time
            return None
    return None
