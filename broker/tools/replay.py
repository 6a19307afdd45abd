"""Events of the log, once more, for one service: to its own exchange, and to no other service.

Rules:

- Each event keeps its id, so that an inbox ignores what was handled already; a service without one handles it again.
- Only what the service subscribes to is replayed, up to the log's end at the beginning.
- To a service with an inbox nothing is replayed that is older than its inbox remembers, unless it is forced.
- All before `Outcome.next` is confirmed. So a replay can be interrupted anywhere, and gone on with from there.
- One replay of a service at a time: a queue that goes with its connection, ``SERVICE.replay``, is the lock.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from broker.copies import replayed
from broker.errors import ConnectionFailed, ContractError, near_miss
from broker.eventlog import IN_HAND, Entry
from broker.logs import logger
from broker.publisher import rabbitmq
from broker.service import Service
from broker.settings import Settings
from broker.tools.discover import find_services
from broker.tools.log import EventLog, Line, Part, Wanted
from broker.topology import check_service_name
from broker.transport import Message, Transport

UNDER_WAY = 1000
"""Copies that wait for their confirm at a time."""

TELL_EVERY = 500
"""Messages of the log after which progress is told."""

SEEN_MOST = 10_000
"""Events whose names are remembered for a near miss."""

Progress = Callable[["Outcome"], None]
"""Told how far it is, from time to time."""


@dataclass(slots=True)
class Outcome:
    """How far a replay is.

    Attributes:
        begin, end: the numbers of the log that are read.
        next: all before this number is confirmed.
        events: how many of each event are confirmed, or, of a dry run, meant.
        unreadable: messages that came to the service, too, and are no events.
        seen: the names of all events that came by, meant or not, by routing key.
    """

    begin: int
    end: int
    next: int = field(init=False)
    events: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    seen: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Nothing is replayed yet."""
        self.next = self.begin

    @property
    def count(self) -> int:
        """How many events."""
        return self.events.total()


async def patterns_of(settings: Settings, service: str, modules: Iterable[str]) -> list[str]:
    """What a service subscribes to: as the code says, else as RabbitMQ's bindings do.

    Raises:
        ContractError: nobody has ever seen it; the near miss is named.
        ConnectionFailed, AccessRefused: the code has no such service, and RabbitMQ cannot be asked.
    """
    check_service_name(service, settings.exchange)
    try:
        found, why = {it.name: it for it in find_services(modules)}, ""
    except ContractError as error:
        found, why = {}, f" ({error})"
    if service in found:
        if not found[service].handlers.bindings:
            raise ContractError(f"The service {service!r} subscribes to nothing, so there is nothing to replay to it.")
        return found[service].handlers.bindings
    from broker.tools.management import Management  # httpx takes a while to import

    async with Management.of(settings) as management:
        bound = [it for it in await management.bindings() if it.source == settings.exchange]
    keys = sorted({it.key for it in bound if it.destination == service})
    if not keys:
        known = found.keys() | {it.destination for it in bound} - {settings.event_log}
        raise ContractError(
            f"Nobody knows a service {service!r}: neither the code{why} nor a binding on RabbitMQ."
            f"{near_miss(service, known)} Name its code: --from MODULE."
        )
    return keys


def service_named(name: str, modules: Iterable[str]) -> Service | None:
    """A service as the code declares it; None: the code does not know it."""
    try:
        return next((it for it in find_services(modules) if it.name == name), None)
    except ContractError:
        return None


def remembered(settings: Settings, service: Service) -> timedelta:
    """How long a service's inbox remembers what was handled. What is older it would handle once more.

    Raises:
        ContractError: ``BROKER_INBOX_MAX_AGE`` is too short.
    """
    from broker.sql import inbox_age  # SQLAlchemy is installed where a service has a database

    return timedelta(seconds=inbox_age(settings, service.longest))


async def within_memory(part: Part, log: EventLog, age: timedelta) -> Part:
    """What an inbox that forgets after ``age`` can tell apart: no more than that is replayed."""
    begin = await log.place(datetime.now(UTC) - age)
    return replace(part, begin=max(part.begin, min(begin, part.end)))


@dataclass(slots=True)
class Replay:
    """One replay.

    Attributes:
        wanted: which events; by its patterns, those that the service subscribes to.
        again: have them handled even if the inbox knows them.
        rate: events a second, at most.
        progress: is told.
        waiting: nothing consumed the service's queue when it began.
    """

    settings: Settings
    service: str
    wanted: Wanted
    again: bool = False
    rate: float | None = None
    progress: Progress = lambda outcome: None
    waiting: bool = False

    def __post_init__(self) -> None:
        """Raises :exc:`ContractError`: no rate."""
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ContractError(f"--rate {self.rate:g}: so many events a second, so more than 0. Without it: no limit.")

    async def count(self, log: EventLog, outcome: Outcome) -> None:
        """How many there would be."""
        looked_at = 0
        async with aclosing(log.read(outcome.begin, end=outcome.end)) as entries:
            async for entry in entries:
                it = self._meant(entry, outcome)
                if it is not None and it.envelope is None:
                    outcome.unreadable += 1
                elif it is not None and it.envelope is not None:
                    outcome.events[it.envelope.name] += 1
                looked_at += 1
                if looked_at % TELL_EVERY == 0:
                    outcome.next = (entry.offset or 0) + 1
                    self.progress(outcome)

    def _meant(self, entry: Entry, outcome: Outcome) -> Line | None:
        """What a message says, if it came to the service, too, and is meant."""
        message = entry.message
        if message is not None and message.exchange != self.settings.exchange:
            return None
        if message is not None and message.key not in outcome.seen and len(outcome.seen) < SEEN_MOST:
            outcome.seen[message.key] = message.type or message.key
        return self.wanted.line(entry)

    async def run(self, log: EventLog, outcome: Outcome) -> None:
        """Publish them to the service's queue; ``outcome`` tells how far, however it ends.

        Raises:
            ContractError: the service has no queue, or another replay of it is under way.
            PublishFailed, ConnectionFailed: what is before ``outcome.next`` is confirmed.
        """
        from broker.rabbitmq import locked

        refusal = f"Another replay of {self.service!r} is under way. Wait for its end, or interrupt it."
        async with (
            locked(f"{self.service}.replay", self.settings, refusal=refusal) as gone,
            _connected(self.settings) as transport,
        ):
            consumers = await transport.consumers(self.service)
            if consumers is None:
                raise ContractError(
                    f"The service {self.service!r} has no queue on RabbitMQ, so nothing was replayed. Start it once, "
                    "which declares it; or start it with --backfill, which reads what it missed."
                )
            self.waiting = not consumers
            sending = _Sending(self, transport, outcome)
            try:
                await self._send(log, sending, gone)
            finally:
                await sending.settled()
            sending.check()
            outcome.next = outcome.end

    async def _send(self, log: EventLog, sending: _Sending, gone: asyncio.Event) -> None:
        clock = asyncio.get_running_loop().time
        due, outcome = clock(), sending.outcome
        # what waits in memory counts as taken and not acknowledged, which RabbitMQ bears for half an hour
        in_hand = IN_HAND if self.rate is None else min(IN_HAND, 1 + int(60 * self.rate))
        async with aclosing(log.read(outcome.begin, end=outcome.end, in_hand=in_hand)) as entries:
            async for entry in entries:
                number = entry.offset or 0
                it = self._meant(entry, outcome)
                if gone.is_set():
                    raise ConnectionFailed(f"The connection that held {self.service}.replay, the lock, was lost.")
                if it is not None and (it.envelope is None or entry.message is None):
                    outcome.unreadable += 1
                elif it is not None and it.envelope is not None and entry.message is not None:
                    if self.rate is not None:
                        await asyncio.sleep(due - clock())
                        due = max(due, clock() - 1) + 1 / self.rate
                    await sending.room()
                    sending.check()
                    sending.add(number, it.envelope.name, replayed(entry.message, self.service, again=self.again))
                sending.reached(number + 1)


class _Sending:
    """The copies under way, and how far all before them is confirmed."""

    def __init__(self, replay: Replay, transport: Transport, outcome: Outcome) -> None:
        self._transport = transport
        self._timeout = replay.settings.publish_timeout
        self._progress = replay.progress
        self._under_way: dict[int, None] = {}
        self._next = outcome.next
        self._looked_at = 0
        self._failed: Exception | None = None
        self._changed: asyncio.Future[None] | None = None
        self.outcome = outcome

    def add(self, number: int, name: str, message: Message) -> None:
        """Publish one more."""
        self._under_way[number] = None
        self._transport.post(message, _Waiter(self, number, name), mandatory=True, timeout=self._timeout)

    def reached(self, number: int) -> None:
        """All before this number was looked at."""
        self._next = number
        self._looked_at += 1
        if self._looked_at % TELL_EVERY == 0:
            self._tell()

    def ended(self, number: int, name: str, error: Exception | None) -> None:
        """One has its answer. What failed stays among those under way: all before the first of them is confirmed."""
        if error is None:
            self.outcome.events[name] += 1
            del self._under_way[number]
        elif self._failed is None:
            self._failed = error
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def check(self) -> None:
        """Raises what the first that failed did."""
        if self._failed is not None:
            raise self._failed

    async def room(self) -> None:
        """Return when another may be added."""
        await self._fewer_than(UNDER_WAY)

    async def settled(self) -> None:
        """Return when all have their answer, or one has failed."""
        try:
            await self._fewer_than(1)
        finally:
            self._tell()

    async def _fewer_than(self, count: int) -> None:
        while len(self._under_way) >= count and self._failed is None:
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed

    def _tell(self) -> None:
        self.outcome.next = next(iter(self._under_way), self._next)
        self._progress(self.outcome)


class _Waiter:
    """Told how one copy ended, as a `broker.transport.Waiter`."""

    __slots__ = ("_name", "_number", "_over", "_sending")

    def __init__(self, sending: _Sending, number: int, name: str) -> None:
        self._sending, self._number, self._name = sending, number, name
        self._over = False

    def done(self) -> bool:
        return self._over

    def set_result(self, result: None, /) -> None:
        self._over = True
        self._sending.ended(self._number, self._name, None)

    def set_exception(self, error: Exception, /) -> None:
        self._over = True
        self._sending.ended(self._number, self._name, error)


@asynccontextmanager
async def _connected(settings: Settings) -> AsyncIterator[Transport]:
    transport = rabbitmq(settings, logger(settings), "replay", looks=True)
    try:
        await transport.connect()
        yield transport
    finally:
        await transport.close()
