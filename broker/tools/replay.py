"""Events of the log, once more, for one service: to its own exchange, and to no other service.

Rules:

- Each event keeps its id, so that an inbox ignores what was handled already; a service without one handles it again.
- Only what the service subscribes to is replayed, up to the log's end at the beginning.
- All before `Outcome.next` is confirmed. So a replay can be interrupted anywhere, and gone on with from there.
- One replay of a service at a time: a queue that goes with its connection, ``SERVICE.replay``, is the lock.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from broker.copies import replayed
from broker.errors import ContractError, near_miss
from broker.logs import logger
from broker.publisher import rabbitmq
from broker.settings import Settings
from broker.tools.discover import find_services
from broker.tools.log import EventLog, Part, Wanted, lines
from broker.topology import check_service_name, matches
from broker.transport import Message, Transport

UNDER_WAY = 1000
"""Copies that wait for their confirm at a time."""

Progress = Callable[["Outcome"], None]
"""Told how far it is, from time to time."""


@dataclass(slots=True)
class Outcome:
    """How far a replay is.

    Attributes:
        begin, end: the numbers of the log that are read.
        next: all before this number is confirmed.
        events: how many of each event are confirmed, or, of a dry run, meant.
        unreadable: messages of the log that are no events, or cannot be copied.
    """

    begin: int
    end: int
    next: int = 0
    events: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0

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


@dataclass(slots=True)
class Replay:
    """One replay.

    Attributes:
        patterns: what the service subscribes to.
        wanted: which of those events.
        again: have them handled even if the inbox knows them.
        rate: events a second, at most.
    """

    settings: Settings
    service: str
    patterns: tuple[str, ...]
    wanted: Wanted
    again: bool = False
    rate: float | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and not self.rate > 0:
            raise ContractError(f"--rate {self.rate:g} would never end. Write how many events a second, more than 0.")

    def begun(self, which: Part) -> Outcome:
        """Nothing of a part of the log is replayed yet."""
        begin = which.begin if isinstance(which.begin, int) else 0
        return Outcome(begin, which.end or 0, begin)

    async def count(self, log: EventLog, which: Part) -> Outcome:
        """How many there would be."""
        outcome = self.begun(which)
        async with aclosing(lines(log, which, self.wanted)) as found:
            async for it in found:
                if it.envelope is None:
                    outcome.unreadable += 1
                elif self._subscribed(it.key):
                    outcome.events[it.envelope.name] += 1
        return outcome

    async def run(self, log: EventLog, which: Part, outcome: Outcome) -> None:
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
            if await transport.count(self.service) is None:
                raise ContractError(
                    f"The service {self.service!r} has no queue on RabbitMQ, so nothing was replayed. Start it once, "
                    "which declares it; or start it with --backfill, which reads what it missed."
                )
            sending = _Sending(self, transport, outcome)
            try:
                await self._send(log, which, sending, gone)
            finally:
                await sending.settled()
            sending.check()
            outcome.next = outcome.end

    async def _send(self, log: EventLog, which: Part, sending: _Sending, gone: asyncio.Event) -> None:
        clock = asyncio.get_running_loop().time
        due = clock()
        async with aclosing(lines(log, which, self.wanted)) as found:
            async for it in found:
                if it.envelope is None or it.entry.message is None or it.offset is None:
                    sending.outcome.unreadable += 1
                    continue
                if not self._subscribed(it.key):
                    continue
                if gone.is_set():
                    raise ContractError("The lock of this replay was lost with its connection: go on from where it is.")
                if self.rate is not None:
                    await asyncio.sleep(due - clock())
                    due = max(due, clock()) + 1 / self.rate
                await sending.room()
                sending.check()
                sending.add(it.offset, it.envelope.name, replayed(it.entry.message, self.service, again=self.again))

    def _subscribed(self, key: str) -> bool:
        return any(matches(pattern, key) for pattern in self.patterns)


class _Sending:
    """The copies under way, and how far all before them is confirmed."""

    def __init__(self, replay: Replay, transport: Transport, outcome: Outcome) -> None:
        self._transport = transport
        self._timeout = replay.settings.publish_timeout
        self._progress = replay.progress
        self._under_way: dict[int, None] = {}
        self._reached = outcome.next
        self._failed: Exception | None = None
        self._fewer = asyncio.Event()
        self.outcome = outcome

    def add(self, number: int, name: str, message: Message) -> None:
        """Publish one more."""
        self._under_way[number] = None
        self._reached = number + 1
        self._transport.post(message, _Waiter(self, number, name), mandatory=True, timeout=self._timeout)

    def ended(self, number: int, name: str, error: Exception | None) -> None:
        """One has its answer. After a failure, what is before it alone counts."""
        if error is not None:
            self._failed = self._failed or error
        else:
            self.outcome.events[name] += 1
            del self._under_way[number]
            self.outcome.next = next(iter(self._under_way), self._reached)
            if self._progress is not None and self.outcome.count % 100 == 0:
                self._progress(self.outcome)
        self._fewer.set()

    def check(self) -> None:
        """Raises what the first that failed did."""
        if self._failed is not None:
            raise self._failed

    async def room(self) -> None:
        """Return when another may be added."""
        while len(self._under_way) >= UNDER_WAY and self._failed is None:
            self._fewer.clear()
            await self._fewer.wait()

    async def settled(self) -> None:
        """Return when all have their answer, or one has failed."""
        while self._under_way and self._failed is None:
            self._fewer.clear()
            await self._fewer.wait()


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
    transport = rabbitmq(settings, logger(settings), "replay")
    try:
        await transport.connect()
        yield transport
    finally:
        await transport.close()
