"""Test your own services, in memory or, unchanged, on RabbitMQ.

::

    async with Harness(packing.service, crm.service) as shop:
        await shop.publish(placed)
        await shop.settled()
        assert shop.published(OrderPacked) == [OrderPacked(order_id=placed.order_id)]
        assert shop.dead("crm") == []

An assertion that fails inside the ``async with`` block is told what happened instead: the story of every event,
published, handled, retried and dead-lettered, is attached to it.

The harness stands between the services and their transport, and writes down what passes. On RabbitMQ its exchanges and
queues have names of their own, so that it disturbs nobody, and are deleted at the end.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from types import TracebackType
from typing import Self, TypeVar
from uuid import UUID, uuid4

from pydantic import SecretStr

from broker.copies import brought_forward, history
from broker.envelope import Envelope, decode
from broker.errors import ContractError, Malformed, near_miss
from broker.events import Event
from broker.logs import logger
from broker.memory import Memory, Server
from broker.publisher import Broker
from broker.retry import Delay
from broker.service import Service, serve
from broker.settings import Settings
from broker.topology import Exchange, Queue, Topology, dead_queue, matches
from broker.transactions import Transactions
from broker.transport import Consumer, Delivery, Message, Offset, Receive, Transport, Waiter, tell

E = TypeVar("E", bound=Event)

LOOK_AGAIN = 0.01
"""Seconds after which outboxes are looked at again: a database tells nobody."""


class NotSettled(AssertionError):
    """Something is still ready or running after the deadline; the message names it and tells the story."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that a service has set aside.

    Attributes:
        name: its business event name; empty if it could not be read.
        event_id: its id; None if it could not be read.
        reason: the exception, as ``TypeName: text``.
        attempt: how often it was handled.
    """

    name: str
    event_id: UUID | None
    reason: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Passage:
    """A message on its way to a service, told from others: its event and how often it failed before."""

    service: str
    event_id: UUID | None
    attempt: int
    name: str = field(compare=False)

    def __str__(self) -> str:
        return f"{self.name or 'an unreadable message'} {self.event_id or ''}".strip()


@dataclass(frozen=True, slots=True)
class Waiting:
    """A passage that failed and waits for its next attempt, due on the harness's clock."""

    due: float
    passage: Passage
    queue: str


class Journal:
    """What passed between the services and their transport."""

    def __init__(self, bindings: dict[str, list[str]], exchange: str) -> None:
        self.bindings = bindings
        self.exchange = exchange
        self.now = 0.0
        self.published: list[Envelope] = []
        self.dead: dict[str, list[DeadLetter]] = {service: [] for service in bindings}
        self.expected: Counter[Passage] = Counter()
        self.in_hand: Counter[Passage] = Counter()
        self.waiting: list[Waiting] = []
        self.lines: list[str] = []
        self.changed = asyncio.Event()

    def passage(self, service: str, message: Message) -> Passage:
        """Which passage a delivery to a service is."""
        envelope, (_, attempt) = read(message), history(message, service)
        if envelope is None:
            return Passage(service, None, attempt, "")
        return Passage(service, envelope.id, attempt, envelope.name)

    def sent(self, sender: str, message: Message) -> None:
        """An event was published, or a service sent itself a copy."""
        envelope = read(message)
        if message.exchange == self.exchange:
            if envelope is not None:
                self.published.append(envelope)
                self.say(sender, "published", envelope.name, f"{message.key} {envelope.id}")
            for service, patterns in self.bindings.items():
                if any(matches(pattern, message.key) for pattern in patterns):
                    self.expected[self.passage(service, message)] += 1
        else:
            self._copied(sender, message, envelope)
        self.changed.set()

    def _copied(self, service: str, message: Message, envelope: Envelope | None) -> None:
        attempt, reason = history(message, service)[1] - 1, str(message.headers.get("broker-error", ""))
        name, event_id = (envelope.name, envelope.id) if envelope else ("", None)
        if message.key == dead_queue(service):
            self.dead[service].append(DeadLetter(name, event_id, reason, attempt))
            self.say(service, "dead", name, reason)
        else:
            delay = Delay.parse(message.key.rpartition(".")[2])
            passage = Passage(service, event_id, attempt + 1, name)
            self.waiting.append(Waiting(self.now + delay.seconds, passage, message.key))
            self.say(service, "retrying", name, f"in {delay}: {reason}")

    def received(self, passage: Passage, *, redelivered: bool) -> None:
        """A service got a delivery."""
        if not redelivered and self.expected[passage] > 0:
            self.expected[passage] -= 1
        self.waiting = [waiting for waiting in self.waiting if waiting.passage != passage]
        self.in_hand[passage] += 1
        self.changed.set()

    def settled(self, passage: Passage, how: str) -> None:
        """A service settled a delivery."""
        self.in_hand[passage] -= 1
        if how == "handled" and not self._copied_away(passage):
            self.say(passage.service, how, passage.name, f"attempt {passage.attempt}")
        if how == "rejected":
            reason = "Malformed: it could not be read"
            self.dead[passage.service].append(DeadLetter(passage.name, passage.event_id, reason, passage.attempt))
            self.say(passage.service, "dead", passage.name or "?", reason)
        self.changed.set()

    def _copied_away(self, passage: Passage) -> bool:
        again = replace(passage, attempt=passage.attempt + 1)
        return any(waiting.passage == again for waiting in self.waiting) or any(
            (letter.event_id, letter.attempt) == (passage.event_id, passage.attempt)
            for letter in self.dead[passage.service]
        )

    @property
    def stuck(self) -> list[str]:
        """What is not settled yet, in words."""
        return [
            *(f"{passage.service} has not received {passage}" for passage in +self.expected),
            *(f"{passage.service} is still handling {passage}" for passage in +self.in_hand),
        ]

    def say(self, who: str, what: str, name: str, detail: str) -> None:
        """Add a line to the story."""
        self.lines.append(f"{who:<12} {what:<10} {name:<26} {detail}".rstrip())

    @property
    def story(self) -> str:
        """What happened, line by line."""
        return "What happened:\n  " + ("\n  ".join(self.lines) or "nothing was published")


def read(message: Message) -> Envelope | None:
    """The envelope of a message, if it has one."""
    try:
        return decode(message.body, key=message.key, content_type=message.content_type, headers=message.headers)
    except Malformed:
        return None


@dataclass(slots=True)
class Recorded:
    """A transport that writes down what passes, and may give everything names of its own."""

    _inner: Transport
    _journal: Journal
    _who: str
    _prefix: str = ""
    topology: Topology = field(default_factory=Topology)

    async def connect(self) -> None:
        await self._inner.connect()

    async def declare(self, topology: Topology) -> None:
        named = renamed(topology, self._prefix)
        self.topology |= named
        await self._inner.declare(named)

    async def publish(self, message: Message, *, mandatory: bool, timeout: float) -> None:
        outgoing = replace(message, exchange=self._prefix + message.exchange)
        self._journal.sent(self._who, message)
        await self._inner.publish(outgoing, mandatory=mandatory, timeout=timeout)

    def post(self, message: Message, waiter: Waiter, *, mandatory: bool, timeout: float) -> None:
        tell(waiter, self.publish(message, mandatory=mandatory, timeout=timeout))

    async def aside(self, message: Message, topology: Topology, *, timeout: float) -> None:
        outgoing = replace(message, exchange=self._prefix + message.exchange)
        await self._inner.aside(outgoing, renamed(topology, self._prefix), timeout=timeout)

    async def until_trusted(self, queue: str) -> None:
        """A test's RabbitMQ is not killed in the middle."""

    async def consume(
        self, queue: str, receive: Receive, *, prefetch: int, offset: Offset | None = None, careful: bool = True
    ) -> Consumer:
        def received(delivery: Delivery) -> None:
            recorded = RecordedDelivery(delivery, self._journal, self._who, self._prefix)
            self._journal.received(recorded.passage, redelivered=delivery.redelivered)
            receive(recorded)

        return await self._inner.consume(
            self._prefix + queue, received, prefetch=prefetch, offset=offset, careful=careful
        )

    async def take(self, queue: str, receive: Receive) -> Consumer:
        """Consume without writing it down."""
        return await self._inner.consume(self._prefix + queue, receive, prefetch=100, careful=False)

    async def forward(self, message: Message) -> None:
        """Publish without writing it down."""
        await self._inner.publish(replace(message, exchange=self._prefix + message.exchange), mandatory=True, timeout=5)

    async def count(self, queue: str) -> int | None:
        return await self._inner.count(self._prefix + queue)

    async def consumers(self, queue: str) -> int | None:
        return await self._inner.consumers(self._prefix + queue)

    def problems(self) -> list[str]:
        return self._inner.problems()

    async def close(self) -> None:
        await self._inner.close()


class RecordedDelivery:
    """A delivery that writes down how it is settled."""

    def __init__(self, inner: Delivery, journal: Journal, service: str, prefix: str) -> None:
        self._inner = inner
        self._journal = journal
        self._prefix = prefix
        try:
            self.passage = journal.passage(service, self.message)
        except Malformed:
            self.passage = Passage(service, None, 1, "")

    @property
    def message(self) -> Message:
        message = self._inner.message
        return replace(message, exchange=message.exchange.removeprefix(self._prefix))

    @property
    def number(self) -> int | None:
        return self._inner.number

    @property
    def redelivered(self) -> bool:
        return self._inner.redelivered

    @property
    def lost(self) -> bool:
        return self._inner.lost

    async def ack(self) -> None:
        await self._inner.ack()
        self._journal.settled(self.passage, "handled")

    async def reject(self) -> None:
        await self._inner.reject()
        self._journal.settled(self.passage, "rejected")

    async def release(self) -> None:
        await self._inner.release()
        self._journal.settled(self.passage, "released")


def renamed(topology: Topology, prefix: str) -> Topology:
    """The same topology under other names. Keys stay."""

    def queue(it: Queue) -> Queue:
        arguments = dict(it.arguments)
        if "x-dead-letter-exchange" in arguments:
            arguments["x-dead-letter-exchange"] = f"{prefix}{arguments['x-dead-letter-exchange']}"
        return replace(it, name=prefix + it.name, arguments=arguments)

    return Topology(
        exchanges=tuple(replace(exchange, name=prefix + exchange.name) for exchange in topology.exchanges),
        queues=tuple(map(queue, topology.queues)),
        bindings=tuple(
            replace(binding, exchange=prefix + binding.exchange, queue=prefix + binding.queue)
            for binding in topology.bindings
        ),
    )


class Harness:
    """Services at work in a test.

    Args:
        services: the services under test. Each runs with its lifespan.
        url: a RabbitMQ to run them on; None: in memory.
        settings: settings of all of them; None: the environment's.

    Raises:
        ContractError: a service contradicts itself, or two have one name.
    """

    def __init__(self, *services: Service, url: str | None = None, settings: Settings | None = None) -> None:
        names = [service.name for service in services]
        if len(set(names)) < len(names):
            raise ContractError(f"Two services of this harness have one name: {', '.join(sorted(names))}.")
        self._services = services
        self._url = url
        self._prefix = f"test-{uuid4().hex[:8]}." if url else ""
        settings = settings or Settings()
        changes = {"log": False, "pause_failures": 2.0} | ({"url": SecretStr(url)} if url else {})
        self._settings = Settings.model_validate(settings.model_dump() | changes)
        self._server = Server()
        self._stack = AsyncExitStack()
        self._transports: dict[str, Recorded] = {}
        self._databases: dict[str, Transactions] = {}

    async def __aenter__(self) -> Self:
        bindings = {service.name: service.handlers.bindings for service in self._services}
        self._journal = Journal(bindings, self._settings.exchange)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._cleaned_up())
            for service in self._services:
                log = logger(self._settings, service=service.name)
                transport = self._transport(service.name)
                standing = await stack.enter_async_context(serve(service, self._settings, log, transport))
                if standing.transactions is not None:
                    self._databases[service.name] = standing.transactions
            outside = Broker(source="test", settings=self._settings, transport=self._transport("test"))
            self._broker = await stack.enter_async_context(outside)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, NotSettled):
            error.add_note(self._journal.story)
        await self._stack.__aexit__(kind, error, trace)

    def _transport(self, name: str) -> Recorded:
        inner = Memory(self._server, self._settings) if self._url is None else self._rabbitmq(name)
        self._transports[name] = Recorded(inner, self._journal, name, self._prefix)
        return self._transports[name]

    def _rabbitmq(self, name: str) -> Transport:
        from broker.rabbitmq import RabbitMQ

        own = Settings.model_validate(
            self._settings.model_dump() | {"exchange": self._prefix + self._settings.exchange}
        )
        return RabbitMQ(own, logger(self._settings, service=name), name)

    @asynccontextmanager
    async def _cleaned_up(self) -> AsyncIterator[None]:
        """Delete on RabbitMQ what the run declared there."""
        try:
            yield
        finally:
            if self._url is not None:
                from broker.rabbitmq import delete

                topology = Topology((Exchange(self._prefix + self._settings.exchange, "topic"),))
                for transport in self._transports.values():
                    topology |= transport.topology
                await delete(topology, self._settings)

    async def publish(self, event: Event, *, id: UUID | None = None, correlation_id: UUID | None = None) -> UUID:  # noqa: A002
        """Publish an event as somebody outside the services would. Raises as `Broker.publish` does."""
        return await self._broker.publish(event, id=id, correlation_id=correlation_id)

    async def settled(self, timeout: float = 10.0) -> None:
        """Return when nothing is ready and nothing is running. What waits for a retry is settled: see `advance`.

        Raises:
            NotSettled: it is not so after ``timeout`` seconds; names what is stuck.
        """
        journal = self._journal
        stuck: list[str] = []
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while stuck := journal.stuck or await self._on_its_way():
                    journal.changed.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(None if journal.stuck else LOOK_AGAIN):
                            await journal.changed.wait()
                return
        raise NotSettled(f"Not settled after {timeout:g} s: {'; '.join(stuck)}.\n{journal.story}")

    async def _on_its_way(self) -> list[str]:
        """What waits in outboxes, in words. What has left one while they were looked at is on its way, too."""
        self._journal.changed.clear()
        found = {name: await database.unpublished() for name, database in self._databases.items()}
        waiting = [f"{name} has {count} events in its outbox" for name, count in found.items() if count]
        return waiting or (["something has just been published"] if self._journal.changed.is_set() else [])

    async def advance(self, **duration: float) -> None:
        """Move the retry ladder's clock: ``await shop.advance(minutes=1)``. Everything due meanwhile is handled.

        Args:
            duration: as `datetime.timedelta` takes it.

        Raises:
            NotSettled: what became due does not come to an end.
        """
        await self.settled()
        journal = self._journal
        end = journal.now + timedelta(**duration).total_seconds()
        while due := min((w for w in journal.waiting if w.due <= end), key=lambda w: w.due, default=None):
            journal.now = max(journal.now, due.due)
            journal.waiting.remove(due)
            journal.expected[due.passage] += 1
            async with asyncio.timeout(10):
                await self._bring_forward(due)
            await self.settled()
        journal.now = end
        self._server.move_to(end)

    async def _bring_forward(self, due: Waiting) -> None:
        if self._url is None:
            self._server.move_to(due.due)
            return
        service = due.passage.service
        transport = self._transports[service]
        found: asyncio.Queue[Delivery] = asyncio.Queue()
        others: list[Delivery] = []
        consumer = await transport.take(due.queue, found.put_nowait)
        while self._journal.expected[due.passage] > 0:  # RabbitMQ may have brought it back by itself meanwhile
            try:
                delivery = await asyncio.wait_for(found.get(), 0.1)
            except TimeoutError:
                continue
            message = brought_forward(delivery.message, service)
            if self._journal.passage(service, message) == due.passage:
                await transport.forward(message)
                await delivery.ack()
                break
            others.append(delivery)
        await consumer.cancel()
        while not found.empty():
            others.append(found.get_nowait())
        for delivery in others:
            await delivery.release()

    def published(self, event: type[E]) -> list[E]:
        """Every event of this type that was published, by the test too, in order."""
        return [
            envelope.decode(event) for envelope in self._journal.published if envelope.name == event.__contract__.name
        ]

    def dead(self, service: str) -> list[DeadLetter]:
        """What a service has dead-lettered, in order.

        Raises:
            ContractError: no service of this name is under test.
        """
        if service not in self._journal.dead:
            known = self._journal.dead
            raise ContractError(f"No service {service!r} is in this harness.{near_miss(service, known)}")
        return list(self._journal.dead[service])

    @property
    def story(self) -> str:
        """What happened so far, line by line, for people."""
        return self._journal.story


__all__ = ["DeadLetter", "Harness", "NotSettled"]
