"""One process's part in the backfill of a service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from time import monotonic
from typing import Self

from structlog.typing import FilteringBoundLogger

from broker.backfill.note import Note, begin_of, furthest
from broker.backfill.reading import AGAIN, Reading, Surroundings
from broker.backfill.seam import Seam
from broker.errors import BrokerError, ConnectionFailed, ContractError
from broker.eventlog import EventLog
from broker.publisher import rabbitmq
from broker.settings import Settings
from broker.subscriber import Subscriber, Subscription
from broker.topology import Topology, backfill_lock, backfill_queue, backfill_topology, matches
from broker.transport import Delivery, Transport

PATIENCE = 30.0
"""Seconds for a message that is known to be there."""
LOOKED_AT = 5.0
"""Seconds for one that somebody may be looking at just now, or that a killed process held."""
ANOTHER = "another process backfills this service"


class Backfill:
    """Brings a service up to its queue. It ends by noting how far it is.

    Args:
        subscriber: handles what is read, and what is in the queue.
        subscription: what it subscribes to.
        since: as `begin_of` takes it.
        settings: of the service.
        transport: of the service.
        log: carries the service's name.
        tell: told what the service is going through.

    Raises:
        ContractError: ``since`` is none, or the event log is switched off.
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
        begin_of(since, datetime.now(UTC))
        if not settings.log:
            raise ContractError(
                f"A backfill ({since!r}) reads the event log, which is switched off (BROKER_LOG). "
                "Switch it on everywhere, or start without."
            )
        patterns = tuple(subscription.handlers.bindings)
        self._it = Surroundings(
            subscription.service,
            settings,
            transport,
            lru_cache(maxsize=10_000)(lambda key: any(matches(pattern, key) for pattern in patterns)),
            subscriber.receive,
            log,
            tell,
            Seam(settings.exchange, subscriber.receive),
        )
        self._subscriber = subscriber
        self._since = since
        self._queue = backfill_queue(subscription.service)
        self._held = AsyncExitStack()
        self._gone = asyncio.Event()
        self._reading: Reading | None = None
        self._events, self._took = 0, 0.0
        self._handling = False
        self._finishing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        """Note how far it is, if it is not done, and let go."""
        if self._finishing is not None:
            self._finishing.cancel()
            await asyncio.gather(self._finishing, return_exceptions=True)
        elif self._reading is not None and not self._gone.is_set():
            with suppress(TimeoutError, BrokerError):
                async with asyncio.timeout(self._it.settings.publish_timeout):
                    await self._reading.write(last=True)
            done, total = self._reading.progress
            self._it.log.info("backfill unfinished", done=done, of=total)
        await self._held.aclose()

    async def start(self) -> None:
        """Return when the service consumes its queue, and all that it missed is handled.

        Raises:
            ContractError: RabbitMQ has no event log.
            AccessRefused: this user may not read it, or may not declare what a backfill needs.
            TopologyConflict: as declaring does.
        """
        try:
            done = await self._until_done()
        except BaseException:
            if self._reading is not None:
                self._reading.stopping = True
            raise
        await self._let_go()
        if done is None:
            why = f"its queue exists already: what it missed, `broker replay {self._it.service}` brings back"
            self._it.log.info("not backfilled", reason=why)
            await self._subscriber.declare()
            self._handle()
            await self._subscriber.consume()
        else:
            self._it.seam.begin(done.depth or 0)
            self._handle()
            await self._subscriber.consume(self._it.seam.receive)
            self._finishing = asyncio.create_task(self._finish(), name="backfill")

    def _handle(self) -> None:
        if not self._handling:
            self._handling = True
            self._subscriber.begin()

    # -- one process at a time ---------------------------------------------------------------------------------------

    async def _until_done(self) -> Note | None:
        """Read what was missed; None: nothing is unfinished, or another process has ended it.

        Goes on after whatever RabbitMQ does. What is in hand ends before it begins anew, and so is known to be done.
        """
        while True:
            try:
                if await self._has_begun_before() or not await self._hold_lock():
                    return None
                self._reading = await self._begin()
                done = await self._read(self._reading)
            except ConnectionFailed as error:
                self._it.say(error)
                await asyncio.sleep(AGAIN)
                done = False
            await self._let_go()
            if self._reading is not None:
                await self._reading.until_idle()
                if done:
                    return self._reading.note

    async def _has_begun_before(self) -> bool:
        """Whether it has a queue, and nothing is unfinished. In this order: the note comes first, and goes last."""
        count = self._it.transport.count
        return await count(self._it.service) is not None and await count(self._queue) is None

    async def _hold_lock(self) -> bool:
        """Wait for the lock; False: another process, which had it, has ended the backfill."""
        waiting = False
        while True:
            try:
                self._gone = await self._held.enter_async_context(self._locked())
                return not await self._has_begun_before()
            except ContractError:
                if not waiting:
                    self._it.log.info("waiting", reason=ANOTHER)
                    self._it.tell("waiting for the backfill of another process")
                waiting = True
            await asyncio.sleep(AGAIN)
            if await self._has_begun_before():
                return False

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[asyncio.Event]:
        from broker.rabbitmq.lock import locked  # those who use aio-pika import it

        async with locked(backfill_lock(self._it.service), self._it.settings, refusal=ANOTHER) as gone:
            yield gone

    async def _let_go(self) -> None:
        self._gone.set()
        await self._held.aclose()

    async def _read(self, reading: Reading) -> bool:
        """Read to the end; False: the lock was lost before."""
        began = monotonic()
        lost = asyncio.create_task(self._gone.wait())
        work = asyncio.create_task(reading.read())
        noting = asyncio.create_task(reading.keep_noting())
        tasks = (lost, work, noting)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task  # raises what it raised
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._events += reading.events
            self._took += monotonic() - began
        if work not in done:
            return False
        if reading.foreign:
            why = "they came through another exchange, or have properties that cannot be decoded"
            self._it.log.warning("foreign messages", skipped=reading.foreign, error=why)
        self._it.log.info("backfilled", events=self._events, took=round(self._took, 3))
        return True

    # -- where to begin ----------------------------------------------------------------------------------------------

    async def _begin(self) -> Reading:
        """Know where to begin, have it noted, and declare the queue."""
        it, count = self._it, self._it.transport.count
        own = rabbitmq(it.settings, it.log, f"{it.service} backfill")
        self._held.push_async_callback(own.close)
        await own.connect()
        log = EventLog(own, it.settings)
        span = await log.span()
        has_queue = await count(it.service) is not None
        written = await self._read_notes(own)
        found = [note for note in map(Note.of, written) if note is not None]
        note = furthest(found if self._reading is None else [*found, self._reading.so_far])
        resumed = note is not None
        if note is None:
            first = await log.place(begin_of(self._since, datetime.now(UTC)))
            note = Note.at(first, seam=first)  # without a note, all may be in the queue
        if max(note.next, note.seam, note.end or 0) > span.end > 0:
            it.log.warning("event log is another", error="it ends before what was read; it is read from its first")
            note = Note.at(span.first, seam=span.first)
        if note.next < span.first or (not resumed and note.next == span.first > 0):
            await self._say_how_far_back(log, span.first, note)
            note = note.but(next=max(note.next, span.first), begun=max(note.begun, span.first))
        if not has_queue:
            note = note.but(seam=span.end, end=None, depth=None)
        await own.declare(backfill_topology(it.service))
        await it.send(note.message(it.service))
        for delivery in written:
            await delivery.ack()
        if not has_queue:
            await own.until_trusted(self._queue)
        await self._subscriber.declare()
        self._handle()
        reading = Reading(it, log, note, span.end)
        done, total = reading.progress
        it.log.info("backfilling", since=self._since, done=done, of=total, resumed=resumed)
        it.tell(f"backfilling: {done:,} of {total:,}")
        return reading

    async def _read_notes(self, own: Transport) -> list[Delivery]:
        """What ``SERVICE.backfill`` holds, unsettled: one message, or two after a crash, or none."""
        count = await own.count(self._queue)
        if count is None:
            return []
        written: list[Delivery] = []
        some = asyncio.Event()

        def take(delivery: Delivery) -> None:
            written.append(delivery)
            some.set()

        consumer = await own.consume(self._queue, take, prefetch=100, careful=False)
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE if count else LOOKED_AT):
                await some.wait()
        await consumer.cancel()
        if count and not written:
            raise ConnectionFailed(f"The queue {self._queue!r} hands out nothing, though it holds a message.")
        return written

    async def _say_how_far_back(self, log: EventLog, first: int, note: Note) -> None:
        """Warn when the log was truncated, and reaches back less far than it should."""
        at = await log.time_at(first)
        since = begin_of(self._since, datetime.now(UTC))
        if note.next == first and isinstance(since, datetime) and at is not None and at <= since:
            return
        self._it.log.warning(
            "event log truncated",
            reaches_back_to=at.isoformat() if at is not None else None,
            since=self._since,
            error="what is older is gone: it keeps BROKER_LOG_MAX_AGE and BROKER_LOG_MAX_BYTES of whoever created it",
        )

    # -- the seam ----------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """When nothing of the seam can be left in the queue, delete the note."""
        it, empty = self._it, 0
        while not it.seam.over and empty < 2:  # twice: some may have been on their way
            await asyncio.sleep(AGAIN)
            with suppress(ConnectionFailed):
                is_empty = not self._subscriber.busy and await it.transport.count(it.service) == 0
                empty = empty + 1 if is_empty else 0
        it.seam.end()
        while True:
            try:
                await self._delete_note()
                break
            except (ConnectionFailed, ContractError):  # another process holds the lock, for a moment
                await asyncio.sleep(AGAIN)
            except BrokerError as error:
                it.log.error("backfill not ended", error=str(error))  # noqa: TRY400  (the message says it all)
                break

    async def _delete_note(self) -> None:
        """With the lock, so that nobody else goes on from it just now."""
        from broker.rabbitmq import delete  # those who use aio-pika import it

        async with self._locked():
            await delete(Topology(queues=backfill_topology(self._it.service).queues), self._it.settings)
        self._it.log.info("backfill ended", already_handled=self._it.seam.ignored)
