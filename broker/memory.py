"""The transport in memory: what RabbitMQ does with our topology, without RabbitMQ. For tests.

A `Server` plays RabbitMQ: bindings, unacked messages, redelivery, the delivery limit, dead letters, retry queues whose
messages wait on a clock that only tests move, and the event log. Any number of `Memory` transports may share it, as
processes share RabbitMQ.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from broker.errors import ConnectionFailed, TooLarge, TopologyConflict, Unroutable
from broker.settings import Settings
from broker.topology import Exchange, Queue, Topology, matches, shared_topology
from broker.transport import Consumer, Death, Message, Offset, Receive, Taking, Waiter, tell


@dataclass(slots=True)
class Stored:
    """A message in a queue."""

    message: Message
    deliveries: int = 0
    due: float = 0.0


@dataclass(slots=True)
class StoredQueue:
    """A queue with what is in it: ready, handed out, and who takes from it."""

    declaration: Queue
    ready: deque[Stored] = field(default_factory=deque)
    unacked: list[MemoryDelivery] = field(default_factory=list)
    consumers: deque[MemoryConsumer] = field(default_factory=deque)

    @property
    def stream(self) -> bool:
        """Reading from it takes nothing away."""
        return self.declaration.arguments.get("x-queue-type") == "stream"


class Server:
    """RabbitMQ, played. Time, in seconds, stands still until `move_to`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.exchanges: dict[str, Exchange] = {}
        self.queues: dict[str, StoredQueue] = {}
        self.bindings: dict[tuple[str, str, str], None] = {}

    def declare(self, topology: Topology) -> None:
        """As RabbitMQ does: what exists must be the same, unless it is shared."""
        for exchange in topology.exchanges:
            if self.exchanges.setdefault(exchange.name, exchange) != exchange:
                raise TopologyConflict(f"The exchange {exchange.name!r} exists and is of another type.")
        for queue in topology.queues:
            existing = self.queues.setdefault(queue.name, StoredQueue(queue)).declaration
            if existing.arguments != queue.arguments and not queue.shared:
                raise TopologyConflict(f"The queue {queue.name!r} exists with other arguments.")
        for binding in topology.bindings:
            self.bindings[binding.exchange, binding.queue, binding.key] = None

    def route(self, exchange: str, key: str) -> list[StoredQueue]:
        """The queues that get a message, each once."""
        topic = exchange in self.exchanges and self.exchanges[exchange].kind == "topic"
        names = {
            queue: None
            for source, queue, pattern in self.bindings
            if source == exchange and (matches(pattern, key) if topic else pattern == key)
        }
        return [self.queues[name] for name in names if name in self.queues]

    def publish(self, message: Message) -> bool:
        """Store a message in every queue bound for it; False when there is none."""
        queues = self.route(message.exchange, message.key)
        for queue in queues:
            ttl = queue.declaration.arguments.get("x-message-ttl")
            queue.ready.append(Stored(message, due=self.now + int(ttl) / 1000 if ttl is not None else 0.0))
            self.hand_out(queue)
        return bool(queues)

    def hand_out(self, queue: StoredQueue) -> None:
        """Give what is ready to the consumers that have room, in turn."""
        if queue.stream:
            for reader in list(queue.consumers):
                reader.read_on(queue)
            return
        while queue.ready and (consumer := self._with_room(queue)) is not None:
            stored = queue.ready.popleft()
            delivery = MemoryDelivery(self, queue, stored, consumer, redelivered=stored.deliveries > 0)
            stored.deliveries += 1
            queue.unacked.append(delivery)
            consumer.take(delivery)

    def _with_room(self, queue: StoredQueue) -> MemoryConsumer | None:
        for _ in range(len(queue.consumers)):
            consumer = queue.consumers[0]
            queue.consumers.rotate(-1)
            if consumer.has_room:
                return consumer
        return None

    def put_back(self, delivery: MemoryDelivery) -> None:
        """Return a delivery to the front of its queue, or dead-letter it if it was delivered too often."""
        limit = delivery.queue.declaration.arguments.get("x-delivery-limit")
        if limit is not None and delivery.stored.deliveries > int(limit):
            self.dead_letter(delivery.queue, delivery.stored, "delivery_limit")
        else:
            delivery.queue.ready.appendleft(delivery.stored)

    def dead_letter(self, queue: StoredQueue, stored: Stored, reason: str) -> None:
        """Move a message where its queue says, untouched but for exchange and key."""
        arguments = queue.declaration.arguments
        exchange, key = arguments.get("x-dead-letter-exchange"), arguments.get("x-dead-letter-routing-key")
        if exchange is not None:
            death = stored.message.death
            noted = Death(reason, death.key if death else stored.message.key)
            self.publish(replace(stored.message, exchange=str(exchange), key=str(key), death=noted))

    def waiting(self) -> Iterator[float]:
        """When the messages in retry queues are due."""
        for queue in self.queues.values():
            if "x-message-ttl" in queue.declaration.arguments:
                yield from (stored.due for stored in queue.ready)

    def move_to(self, now: float) -> None:
        """Set the clock, and let what is due go back to its service."""
        self.now = max(self.now, now)
        for queue in list(self.queues.values()):
            while queue.ready and 0 < queue.ready[0].due <= self.now:
                self.dead_letter(queue, queue.ready.popleft(), "expired")


class MemoryDelivery:
    """A delivery of a `Server`."""

    number: int | None = None

    def __init__(
        self, server: Server, queue: StoredQueue, stored: Stored, consumer: MemoryConsumer, *, redelivered: bool
    ) -> None:
        self.message = stored.message
        self.redelivered = redelivered
        self.lost = False
        self.queue = queue
        self.stored = stored
        self.consumer = consumer
        self._server = server

    async def ack(self) -> None:
        self._settle()

    async def reject(self) -> None:
        if self._settle() and not self.queue.stream:
            self._server.dead_letter(self.queue, self.stored, "rejected")

    async def release(self) -> None:
        if self._settle() and not self.queue.stream:
            self._server.put_back(self)
            self._server.hand_out(self.queue)

    def _settle(self) -> bool:
        if self.lost or self not in self.queue.unacked:
            return False
        self.queue.unacked.remove(self)
        self.consumer.in_hand -= 1
        asyncio.get_running_loop().call_soon(self._server.hand_out, self.queue)
        return True


class MemoryConsumer:
    """A subscription; it takes one delivery at a time until one comes that is not redelivered."""

    def __init__(self, server: Server, queue: StoredQueue, receive: Receive, taking: Taking) -> None:
        self._server = server
        self._receive = receive
        self._prefetch = taking.prefetch
        self._careful = taking.careful and taking.offset is None
        self._paused = False
        self._position = len(queue.ready) if taking.offset == "next" else 0
        self.queue = queue
        self.in_hand = 0

    @property
    def has_room(self) -> bool:
        """Whether it may get another delivery."""
        return self.in_hand < (1 if self._careful or self._paused else self._prefetch)

    def take(self, delivery: MemoryDelivery) -> None:
        """Hand a delivery over."""
        self.in_hand += 1
        if not delivery.redelivered:
            self._careful = False
        self._receive(delivery)

    def read_on(self, queue: StoredQueue) -> None:
        """Read a stream from where we are."""
        while self._position < len(queue.ready) and self.has_room:
            stored = queue.ready[self._position]
            delivery = MemoryDelivery(self._server, queue, stored, self, redelivered=False)
            delivery.number = self._position
            self._position += 1
            queue.unacked.append(delivery)
            self.take(delivery)

    async def pause(self, why: str) -> None:
        self._paused = True

    async def resume(self) -> None:
        self._careful = self._paused = False
        self._server.hand_out(self.queue)

    async def cancel(self) -> None:
        if self in self.queue.consumers:
            self.queue.consumers.remove(self)


class Memory:
    """A `broker.transport.Transport` to a `Server`, as one process would have it."""

    def __init__(self, server: Server, settings: Settings) -> None:
        self._server = server
        self._settings = settings
        self._connected = False
        self._consumers: list[MemoryConsumer] = []

    async def connect(self) -> None:
        self._server.declare(shared_topology(self._settings))
        self._connected = True

    async def declare(self, topology: Topology) -> None:
        self._server.declare(topology)

    async def publish(self, message: Message, *, mandatory: bool, timeout: float) -> None:
        if not self._connected:
            raise ConnectionFailed("This broker was closed. Open another, or publish before.")
        if len(message.body) > self._settings.max_message_bytes:
            raise TooLarge(f"{len(message.body)} bytes are more than BROKER_MAX_MESSAGE_BYTES")
        if not self._server.publish(message) and mandatory:
            raise Unroutable(f"RabbitMQ returned it: NO_ROUTE, exchange {message.exchange!r}")
        await asyncio.sleep(0)  # others may run, as they may while RabbitMQ confirms

    def post(self, message: Message, waiter: Waiter, *, mandatory: bool, timeout: float) -> None:
        tell(waiter, self.publish(message, mandatory=mandatory, timeout=timeout))

    async def aside(self, message: Message, topology: Topology, *, timeout: float) -> None:
        self._server.declare(topology)
        await self.publish(message, mandatory=False, timeout=timeout)

    async def until_trusted(self, queue: str) -> None:
        """Always."""

    async def consume(
        self, queue: str, receive: Receive, *, prefetch: int, offset: Offset | None = None, careful: bool = True
    ) -> Consumer:
        stored = self._server.queues[queue]
        consumer = MemoryConsumer(self._server, stored, receive, Taking(prefetch, offset, careful))
        self._consumers.append(consumer)
        stored.consumers.append(consumer)
        self._server.hand_out(stored)
        return consumer

    async def count(self, queue: str) -> int | None:
        return len(self._server.queues[queue].ready) if queue in self._server.queues else None

    async def consumers(self, queue: str) -> int | None:
        return len(self._server.queues[queue].consumers) if queue in self._server.queues else None

    def problems(self) -> list[str]:
        return [] if self._connected else ["not connected"]

    async def close(self) -> None:
        """As when a process ends: what it held goes back, and may be handed to another."""
        self._connected = False
        for consumer in self._consumers:
            await consumer.cancel()
        for queue in self._server.queues.values():
            held = [delivery for delivery in queue.unacked if delivery.consumer in self._consumers]
            for delivery in reversed(held):
                delivery.lost = True
                queue.unacked.remove(delivery)
                if not queue.stream:
                    self._server.put_back(delivery)
            self._server.hand_out(queue)
        self._consumers.clear()
