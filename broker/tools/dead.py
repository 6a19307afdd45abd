"""What a service set aside, and the way back: its dead letters, and what waits for a retry.

Rules:

- A message leaves its queue only after its copy is confirmed, or when somebody discards it. So a redrive can be
  interrupted anywhere, and two may run at once.
- Only what was there at the beginning is looked at: what fails again meanwhile is not moved in circles.
- What is looked at is held, and returns to its place at the end. However many there are, few are in memory.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from broker.copies import OWN, brought_forward, redriven
from broker.envelope import Envelope, decode
from broker.errors import BrokerError, ConnectionFailed, ContractError, Malformed, Unroutable, near_miss
from broker.logs import logger
from broker.publisher import rabbitmq
from broker.settings import Settings
from broker.tools.discover import find_services
from broker.topology import DELIVERY_LIMIT, SERVICE_NAME, dead_queue, retry_queue
from broker.transport import Delivery, Message, Transport

WINDOW = 500
"""Messages of a queue in memory at a time."""
UNDER_WAY = 100
"""Copies that wait for their confirm at a time."""
PATIENCE = 30.0
"""Seconds without a message, from a queue that has some, after which something is wrong."""

Progress = Callable[[int, int], None]
"""Told how many messages were looked at so far, and of how many."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter, or what waits for a retry, as people want to see it.

    Attributes:
        service: who failed.
        queue: where it is.
        message: as it lies there; None when its properties cannot be decoded.
        envelope: the event; None when it cannot be read.
        error: why, as ``TypeName: text``.
        at: when it was set aside, if anybody noted it.
    """

    service: str
    queue: str
    message: Message | None
    envelope: Envelope | None
    error: str
    at: datetime | None

    @property
    def name(self) -> str:
        """Its business event name; without an envelope what its properties say, or nothing."""
        if self.envelope is not None:
            return self.envelope.name
        return (self.message.type if self.message else None) or ""

    @property
    def key(self) -> str:
        """The routing key it was first published with."""
        return str(redriven(self.message, self.service).headers["broker-key"]) if self.message else ""

    @property
    def kind(self) -> str:
        """The type of its error."""
        return self.error.partition(":")[0]

    def noted(self, what: str) -> Any:
        """What the service noted in the header ``broker-<what>``; None if nothing."""
        return self.message.headers.get(OWN + what) if self.message else None

    @property
    def headers(self) -> dict[str, Any]:
        """Its headers, but for those that we or RabbitMQ added."""
        headers = self.message.headers if self.message else {}
        return {name: value for name, value in headers.items() if not name.startswith((OWN, "x-"))}

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        envelope, body = self.envelope, self.message.body if self.message else b""
        try:
            text: dict[str, Any] = {"body": body.decode()}
        except UnicodeDecodeError:
            text = {"body_base64": base64.b64encode(body).decode()}
        return {
            "service": self.service,
            "queue": self.queue,
            "event": self.name or None,
            "event_id": str(envelope.id) if envelope else None,
            "key": self.key or None,
            "error": self.error,
            "at": self.at.isoformat() if self.at else None,
            "attempt": self.noted("attempt"),
            "handler": self.noted("handler"),
            "traceback": self.noted("traceback"),
            "headers": {name: value if _is_json(value) else str(value) for name, value in self.headers.items()},
            "content_type": self.message.content_type if self.message else None,
            **text,
        }


def read_letter(delivery: Delivery, service: str, queue: str) -> Letter:
    """What a delivery from one of these queues says. Nothing in it is trusted."""
    try:
        message = delivery.message
    except Malformed as error:
        return Letter(service, queue, None, None, f"Malformed: {error}", None)
    envelope: Envelope | None = None
    unreadable = "rejected"
    try:
        key = str(redriven(message, service).headers["broker-key"])
        envelope = decode(message.body, key=key, content_type=message.content_type, headers=message.headers)
    except Malformed as error:
        unreadable = f"Malformed: {error}"
    noted, death = message.headers.get("broker-error"), message.death
    if death is not None and death.reason == "delivery_limit":
        error_text = f"DeliveryLimit: handed out more than {DELIVERY_LIMIT} times, and its process ended each time"
    elif isinstance(noted, str) and death is None:
        error_text = noted
    else:
        error_text = unreadable
    return Letter(service, queue, message, envelope, error_text, _failed_at(message))


def _failed_at(message: Message) -> datetime | None:
    try:
        at = datetime.fromisoformat(str(message.headers.get("broker-failed-at")))
    except ValueError:
        return message.death.at if message.death else None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _is_json(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


@dataclass(frozen=True, slots=True)
class Which:
    """Which letters are meant; nothing said: all.

    Attributes:
        event: a business event name, or a routing key.
        error: a part of the error, in any case.
        since: set aside then or later.
        before: set aside earlier.
        ids: of events.
    """

    event: str | None = None
    error: str | None = None
    since: datetime | None = None
    before: datetime | None = None
    ids: frozenset[UUID] = frozenset()

    def has(self, letter: Letter) -> bool:
        """Whether this letter is meant."""
        if self.event is not None and self.event.casefold() not in (letter.name.casefold(), letter.key.casefold()):
            return False
        if self.error is not None and self.error.casefold() not in letter.error.casefold():
            return False
        if (self.since or self.before) and letter.at is None:
            return False
        if self.since is not None and letter.at is not None and letter.at < self.since:
            return False
        if self.before is not None and letter.at is not None and letter.at >= self.before:
            return False
        return not self.ids or (letter.envelope is not None and letter.envelope.id in self.ids)


@dataclass(slots=True)
class Group:
    """Letters of one service with one event and one type of error."""

    service: str
    event: str
    kind: str
    count: int = 0
    oldest: datetime | None = None
    newest: datetime | None = None
    example: str = ""

    def add(self, letter: Letter) -> None:
        """Count one more."""
        self.count += 1
        if letter.at is not None:
            self.oldest = min(self.oldest or letter.at, letter.at)
            self.newest = max(self.newest or letter.at, letter.at)
        self.example = letter.error

    def as_json(self) -> dict[str, Any]:
        """The group for programs."""
        return {
            "service": self.service,
            "event": self.event or None,
            "error": self.kind,
            "count": self.count,
            "oldest": self.oldest.isoformat() if self.oldest else None,
            "newest": self.newest.isoformat() if self.newest else None,
            "example": self.example,
        }


@dataclass(slots=True)
class Outcome:
    """What became of a pass over letters.

    Attributes:
        matched: letters that were meant.
        moved: those redriven or discarded.
        unmovable: those whose properties cannot be decoded: no copy could be faithful.
    """

    matched: int = 0
    moved: int = 0
    unmovable: int = 0


# -- which queues there are ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Places:
    """The services that have dead letters on RabbitMQ, and the queues in which what failed waits.

    Attributes:
        queues: the names of all queues that may exist.
        note: what people should know about where the names come from.
    """

    queues: frozenset[str]
    note: str = ""

    @property
    def services(self) -> list[str]:
        """Those that have a place for dead letters."""
        names = (queue.removesuffix(".dead") for queue in self.queues if queue.endswith(".dead"))
        return sorted(name for name in names if SERVICE_NAME.fullmatch(name))

    def waiting(self, service: str) -> list[str]:
        """The retry queues of a service."""
        return sorted(queue for queue in self.queues if queue.startswith(f"{service}.retry."))


async def find_places(settings: Settings, modules: Iterable[str]) -> Places:
    """The queues there are: as RabbitMQ's management API says, else as the code declares.

    Raises:
        ConnectionFailed, AccessRefused, ContractError: neither is to be had; the message is management's.
    """
    from broker.tools.management import Management  # httpx takes a while to import

    try:
        async with Management.of(settings) as management:
            return Places(frozenset([queue.name for queue in await management.queues()]))
    except ContractError:  # its address is none
        raise
    except BrokerError as unavailable:
        try:
            services = find_services(modules)
        except BrokerError:
            raise unavailable from None
        listening = [service for service in services if service.handlers]
        names = [dead_queue(service.name) for service in listening]
        names += [retry_queue(service.name, delay) for service in listening for delay in service.delays]
        async with connected(settings, "dead letters") as transport:
            found = [name for name in names if await transport.count(name) is not None]
        if not found:
            raise unavailable from None
        return Places(frozenset(found), f"Only of services in the code: {unavailable}")


@asynccontextmanager
async def connected(settings: Settings, name: str) -> AsyncIterator[Transport]:
    """A connection for one pass; whatever was held returns to its place when it closes."""
    transport = rabbitmq(settings, logger(settings), name, looks=True)
    try:
        await transport.connect()
        yield transport
    finally:
        await transport.close()


# -- passes over them ------------------------------------------------------------------------------------------------


async def browse(transport: Transport, queue: str, progress: Progress | None = None) -> AsyncGenerator[Delivery]:
    """Each message that is in a queue now, once, from its head. What the caller does not settle stays held.

    RabbitMQ limits what each *consumer* holds, so a new one goes on where the one before is full.

    Raises:
        ContractError: there is no such queue.
        ConnectionFailed: the connection broke, or the queue hands out nothing.
    """
    total = await transport.count(queue)
    if total is None:
        raise ContractError(f"RabbitMQ has no queue {queue!r}.")
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    consumer = None
    try:
        for number in range(total):
            if number % WINDOW == 0:
                if consumer is not None:
                    await consumer.cancel()
                consumer = await transport.consume(queue, arrived.put_nowait, prefetch=WINDOW, careful=False)
            delivery = await _next(transport, queue, arrived)
            if delivery is None:
                break
            yield delivery
            if progress is not None:
                progress(number + 1, total)
    finally:
        if consumer is not None:
            await consumer.cancel()


async def _next(transport: Transport, queue: str, arrived: asyncio.Queue[Delivery]) -> Delivery | None:
    """The next message; None when somebody else has taken the rest."""
    delivery: Delivery | None = None
    for _ in range(int(PATIENCE)):
        try:
            async with asyncio.timeout(1):
                delivery = await arrived.get()
            break
        except TimeoutError:
            if not transport.problems() and not await transport.count(queue):
                return None
    if delivery is None or delivery.lost:
        why = "; ".join(transport.problems()) or f"RabbitMQ hands out nothing of {queue!r}, though it is not empty"
        raise ConnectionFailed(f"The pass over {queue!r} ended early: {why}. Nothing is lost: run it again.")
    return delivery


async def letters(
    settings: Settings, service: str, queues: Iterable[str], which: Which, progress: Progress | None = None
) -> AsyncGenerator[Letter]:
    """The letters meant, looked at and left where they are. Raises as `browse` does."""
    for queue in queues:
        async with (
            connected(settings, "dead letters") as transport,
            aclosing(browse(transport, queue, progress)) as deliveries,
        ):
            async for delivery in deliveries:
                letter = read_letter(delivery, service, queue)
                if which.has(letter):
                    yield letter


async def grouped(
    settings: Settings, services: Iterable[str], which: Which, progress: Progress | None = None
) -> list[Group]:
    """The dead letters of services, by service, event and type of error; the most frequent first."""
    groups: dict[tuple[str, str, str], Group] = {}
    for service in services:
        async for letter in letters(settings, service, [dead_queue(service)], which, progress):
            group = Group(service, letter.name, letter.kind)
            groups.setdefault((group.service, group.event, group.kind), group).add(letter)
    return sorted(groups.values(), key=lambda group: (group.service, -group.count, group.event, group.kind))


@dataclass(slots=True)
class Mover:
    """Moves letters out of a service's queues: back to the service, or away for good.

    Attributes:
        rate: letters a second, at most; None: as fast as RabbitMQ confirms.
        limit: letters in all; None: all.
    """

    settings: Settings
    service: str
    which: Which = field(default_factory=Which)
    rate: float | None = None
    limit: int | None = None
    progress: Progress | None = None
    outcome: Outcome = field(default_factory=Outcome)

    async def redrive(self, queues: Iterable[str]) -> Outcome:
        """Send them to the failing service, and to it alone: a copy, its confirm, then the original goes.

        Dead letters begin their ladder anew; what waits for a retry keeps its attempts. Safe to interrupt.

        Raises:
            ContractError: the service has no queue any more. Nothing was moved.
            PublishFailed, ConnectionFailed: what was moved until then is moved; the rest is where it was.
        """
        async with connected(self.settings, "redrive") as transport:
            if await transport.count(self.service) is None:
                raise ContractError(
                    f"The service {self.service!r} has no queue on RabbitMQ any more, so nothing was moved. "
                    "Start the service once, which declares it; or `broker dead export` and `discard`."
                )
            for queue in queues:
                await self._pass(transport, queue, self._send_back)
        return self.outcome

    async def discard(self, queues: Iterable[str]) -> Outcome:
        """Delete them for good. Raises as `browse` does."""
        async with connected(self.settings, "discard") as transport:
            for queue in queues:
                await self._pass(transport, queue, self._throw_away)
        return self.outcome

    async def _pass(
        self, transport: Transport, queue: str, move: Callable[[Transport, Delivery, Letter], Awaitable[None]]
    ) -> None:
        """Move what is meant, `UNDER_WAY` at a time. After a failure no other is begun; those begun end."""
        room = asyncio.Semaphore(UNDER_WAY)
        failed: list[BaseException] = []

        async def moving(delivery: Delivery, letter: Letter) -> None:
            try:
                await move(transport, delivery, letter)
            except BrokerError as error:
                failed.append(error)
            finally:
                room.release()

        async with asyncio.TaskGroup() as under_way, aclosing(self._meant(transport, queue)) as meant:
            try:
                async for delivery, letter in meant:
                    await room.acquire()
                    if failed:
                        break
                    under_way.create_task(moving(delivery, letter))
            except BrokerError as error:
                failed.append(error)
        if failed:
            raise failed[0]

    async def _meant(self, transport: Transport, queue: str) -> AsyncGenerator[tuple[Delivery, Letter]]:
        """What is meant, no faster than the rate and no more than the limit."""
        clock = asyncio.get_running_loop().time
        due = clock()
        async with aclosing(browse(transport, queue, self.progress)) as deliveries:
            async for delivery in deliveries:
                letter = read_letter(delivery, self.service, queue)
                if not self.which.has(letter):
                    continue
                if self.limit is not None and self.outcome.matched >= self.limit:
                    return
                self.outcome.matched += 1
                if self.rate is not None:
                    await asyncio.sleep(due - clock())
                    due = max(due, clock()) + 1 / self.rate
                yield delivery, letter

    async def _send_back(self, transport: Transport, delivery: Delivery, letter: Letter) -> None:
        if letter.message is None:
            self.outcome.unmovable += 1
            return
        dead = letter.queue == dead_queue(self.service)
        copy = (redriven if dead else brought_forward)(letter.message, self.service)
        try:
            await transport.publish(copy, mandatory=True, timeout=self.settings.publish_timeout)
        except Unroutable:
            raise ContractError(
                f"The queue of {self.service!r} went away meanwhile. What was not redriven is where it was."
            ) from None
        await delivery.ack()
        self.outcome.moved += 1

    async def _throw_away(self, transport: Transport, delivery: Delivery, letter: Letter) -> None:
        await delivery.ack()
        self.outcome.moved += 1


def check_service(service: str, places: Places) -> None:
    """Refuse a service that has no dead letters, with the near miss.

    Raises:
        ContractError: naming those that have.
    """
    if service not in places.services:
        known = ", ".join(places.services) or "none"
        raise ContractError(
            f"RabbitMQ has no dead letters of a service {service!r}.{near_miss(service, places.services)} "
            f"Services that have some, or a place for them: {known}."
        )
