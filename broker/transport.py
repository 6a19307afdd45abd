"""What the rest of the package asks of RabbitMQ, and what it may rely on: two small protocols.

There are two implementations, ``broker.rabbitmq`` and ``broker.memory``; one conformance suite runs on both.

The delivery contract:

1. `Transport.publish` returned ⇒ the message is stored in every queue bound for it. It never returns early, never
   hangs past its deadline, and after a failure the next one works.
2. A queue hands each message to one consumer, in order, and keeps it until it is settled. What is not settled when
   the consumer goes comes back, marked ``redelivered``.
3. A message leaves a queue by one door: `Delivery.ack` (gone), `Delivery.reject` (to the dead letters, untouched),
   or its time is up (from a retry queue back to its service). `Delivery.release` puts it back.
4. After each start and each reconnect, a consumer gets one delivery at a time until one comes that is not
   redelivered: a message that kills its process is found alone, and its neighbours do not pay for it.
5. Settling a delivery whose connection is gone does nothing: RabbitMQ delivers it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Protocol

from broker.errors import NotConfirmed
from broker.topology import Topology

HeaderValue = str | int | float | bool | bytes | datetime | None


@dataclass(frozen=True, slots=True)
class Death:
    """What RabbitMQ noted of a message that it moved by itself.

    Attributes:
        reason: why, the last time: ``rejected``, ``delivery_limit`` or ``expired``.
        key: the routing key it was first published with.
        at: when, the last time.
    """

    reason: str
    key: str
    at: datetime | None = None


NONE: Mapping[str, HeaderValue] = MappingProxyType({})
"""No headers."""


@dataclass(slots=True)
class Message:
    """A message as it is published. All of them are persistent. Nobody changes one.

    Attributes:
        exchange: where it is published; on a delivery, where it was.
        key: its routing key.
        body: the bytes.
        type: the business event name, for people who look at queues. The envelope decides.
        headers: scalars only; a transport sends no others.
        death: on a delivery that RabbitMQ moved by itself. It is never published.
        properties: on a delivery, all of them as they came, by pamqp's names, for people who look. Never published.
    """

    exchange: str
    key: str
    body: bytes
    content_type: str | None = None
    type: str | None = None
    correlation_id: str | None = None
    app_id: str | None = None
    timestamp: datetime | None = None
    headers: Mapping[str, HeaderValue] = field(default_factory=lambda: NONE)
    death: Death | None = None
    properties: Mapping[str, object] | None = field(default=None, compare=False, repr=False)


class Delivery(Protocol):
    """A message that a queue handed out, to be settled once, by one of its three methods."""

    @property
    def message(self) -> Message:
        """What was published.

        Raises:
            Malformed: its properties cannot be decoded. It can still be settled.
        """

    @property
    def number(self) -> int | None:
        """Its place in a stream; None: it came out of a queue."""

    @property
    def redelivered(self) -> bool:
        """It was handed out before, and not settled."""

    @property
    def lost(self) -> bool:
        """Its connection is gone: it will come again, and settling it does nothing."""

    async def ack(self) -> None:
        """It is done with."""

    async def reject(self) -> None:
        """Move it to the dead letters as it is, properties and all."""

    async def release(self) -> None:
        """Give it back; it comes again, here or to another process."""


Receive = Callable[[Delivery], None]
"""Takes a delivery. Must not block and must not raise."""

Offset = str | int | datetime
"""Where in a stream to begin: ``"first"``, ``"next"``, a message's number, or a time: with what came then, to a second,
and later."""


@dataclass(frozen=True, slots=True)
class Taking:
    """How a consumer takes: see `Transport.consume`."""

    prefetch: int
    offset: Offset | None = None
    careful: bool = True


class Consumer(Protocol):
    """A subscription to one queue."""

    async def pause(self, why: str) -> None:
        """Hold one delivery more at most, and show ``why`` to people who look at the queue's consumers."""

    async def resume(self) -> None:
        """Take as many as before again."""

    async def cancel(self) -> None:
        """Take no more deliveries. Those in hand stay ours to settle."""


class Waiter(Protocol):
    """Who is told how a publish ended, once. An ``asyncio.Future`` is one."""

    def done(self) -> bool:
        """It was told, or does not want to know any more."""

    def set_result(self, result: None, /) -> None:
        """Stored in every queue bound for it."""

    def set_exception(self, error: Exception, /) -> None:
        """Not confirmed, for what `Transport.publish` raises."""


class Transport(Protocol):
    """A way to RabbitMQ, or to what behaves like it."""

    async def connect(self) -> None:
        """Be ready to publish, with the exchange of all events and the event log in place.

        Raises:
            ConnectionFailed: nobody answered within ``BROKER_CONNECT_TIMEOUT``.
            AccessRefused: login, virtual host or a permission was refused.
            TopologyConflict: the exchange exists and is another one.
        """

    async def declare(self, topology: Topology) -> None:
        """Make it so, now and after each reconnect.

        Raises:
            ConnectionFailed, AccessRefused, TopologyConflict: as for `connect`.
        """

    def publish(self, message: Message, *, mandatory: bool, timeout: float) -> Awaitable[None]:
        """Publish; what is awaited returns once it is stored in every queue bound for it.

        Args:
            message: what to publish.
            mandatory: fail if no queue is bound for it.
            timeout: the deadline in seconds, waiting for a reconnect included.

        Raises:
            NotConfirmed: no answer within the deadline. It may be stored.
            PublishRefused: a queue refused it. Others may have stored it.
            Unroutable: no queue is bound for it. It is not stored.
            TooLarge: RabbitMQ takes none of this size. It is not stored.
            AccessRefused: this user may not publish it. It is not stored.
        """

    def post(self, message: Message, waiter: Waiter, *, mandatory: bool, timeout: float) -> None:
        """The same, telling a waiter instead of being awaited: for many at a time, it costs less."""

    async def aside(self, message: Message, topology: Topology, *, timeout: float) -> None:
        """Publish what nobody relies on, apart from everything else: whatever becomes of it disturbs no other publish.

        Args:
            message: what to publish. It need not be routed anywhere.
            topology: what it needs; declared before the first, and when one was refused.
            timeout: the deadline in seconds.

        Raises:
            ConnectionFailed: no confirm within the deadline. It may be stored.
            TooLarge: RabbitMQ takes none of this size.
            AccessRefused, TopologyConflict: this user may not publish it.
        """

    async def until_trusted(self, queue: str) -> None:
        """Return once a confirm of this queue can be relied on: a moment after it was first declared.

        The original of a copy into a queue is acknowledged only then.
        """

    async def consume(
        self, queue: str, receive: Receive, *, prefetch: int, offset: Offset | None = None, careful: bool = True
    ) -> Consumer:
        """Have a queue's messages handed to ``receive``, again after each reconnect.

        Args:
            queue: its name.
            receive: called for each delivery.
            prefetch: how many may be in hand at a time.
            offset: for a stream, where to begin. After a reconnect it goes on behind the last that was delivered.
            careful: take one at a time until one comes that is not redelivered.
        """

    async def count(self, queue: str) -> int | None:
        """How many messages are ready in a queue; None if there is no such queue. Raises as `declare` does."""

    async def consumers(self, queue: str) -> int | None:
        """How many consume a queue; None if there is no such queue. Raises as `declare` does."""

    def problems(self) -> list[str]:
        """What is wrong right now, in words; empty when all is well."""

    async def close(self) -> None:
        """Let go of everything. What is not settled comes again."""


def tell(waiter: Waiter, publishing: Awaitable[None]) -> None:
    """Have a waiter told how a publish ended: `Transport.post`, of a transport that has `Transport.publish`."""

    def ended(future: asyncio.Future[None]) -> None:
        error = NotConfirmed("interrupted") if future.cancelled() else future.exception()
        if waiter.done():
            return
        if error is None:
            waiter.set_result(None)
        elif isinstance(error, Exception):
            waiter.set_exception(error)

    asyncio.ensure_future(publishing).add_done_callback(ended)
