"""The hot path: events' frames written and read by ourselves, on connections and channels that aio-pika opened.

aio-pika spends some 120 µs of processor time on each message: objects, futures, a system call for every frame. Here a
message costs a few. Only Basic.Publish, Deliver, Return, Ack, Nack and Reject are ours, with what they carry;
connecting, TLS, declaring, consuming, closing stay aio-pika's. With ``BROKER_DIRECT=off``, see `plain`.

- A publish that is alone is written at once; others of one turn of the event loop share a write. Confirms are settled
  in ranges; nobody waits for anybody.
- Acks of one turn share one write, too; those up to the first delivery still in hand share one frame.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from aiormq.abc import AbstractChannel

from broker.errors import (
    BrokerError,
    ConnectionFailed,
    ContractError,
    Malformed,
    NotConfirmed,
    PublishRefused,
    Unroutable,
)
from broker.rabbitmq import frames
from broker.rabbitmq.answers import SETTLING, at_last, late, message_of, refusal
from broker.rabbitmq.link import Link, reason
from broker.transport import Message, Receive, Waiter

if TYPE_CHECKING:
    from broker.rabbitmq.stream import Sockets

MOST = 2000
"""Publishes under way at a time; the others wait in line."""
MOST_BYTES = 32 * 1024 * 1024
"""Bytes of them: RabbitMQ may not read for a while, and what is written waits in memory."""
WRITE_AT = 65_536
"""Bytes that are written at once; fewer wait for the end of the turn."""
MANY = 500
"""With more publishes under way, confirms are read some at a time: one by one they cost more than publishes."""
AT_A_TIME = 60
"""So many, about: an eighth of what is under way, so nobody waits much longer for it."""
REST = (0.004, 0.03)
"""Seconds between such reads: the least, and the most."""
LOOK_AGAIN = 0.01
"""Seconds from one look for late publishes to the next, at least."""
AGAIN = 0.1
"""Seconds after which a publish that was returned right after a connect is repeated."""


@dataclass(slots=True, eq=False)
class Pending:
    """A publish without an answer yet."""

    waiter: Waiter
    message: Message
    mandatory: bool
    timeout: float
    deadline: float
    unanswered: str = ""
    returned: str = ""


class DirectPublisher:
    """Publishes on one channel at a time; what has no answer when it breaks is published again on the next.

    Args:
        link: whose channel it is; told what is sent and confirmed, asked what is wrong.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._sockets: Sockets | None = None
        self._channel = 0
        self._frame_max = 0
        self._started_at = 0.0
        self._prefix = ""
        self._tag = 0
        self._lowest = 1
        self._waiting: dict[int, Pending] = {}
        self._line: deque[Pending] = deque()
        self._resting: list[Pending] = []
        self._bytes = 0
        self._out: list[bytes] = []
        self._unwritten = 0
        self._alarm: asyncio.TimerHandle | None = None
        self._wakes_at = 0.0
        self._closed = False
        self._rest, self._came = REST[0], 0

    # -- what is asked of it -----------------------------------------------------------------------------------------

    def publish(self, message: Message, *, mandatory: bool, timeout: float) -> asyncio.Future[None]:
        """As `broker.transport.Transport.publish`; a cancelled future is nobody's business any more."""
        future = self._loop.create_future()
        self.post(message, future, mandatory=mandatory, timeout=timeout)
        return future

    def post(self, message: Message, waiter: Waiter, *, mandatory: bool, timeout: float) -> None:
        """As `broker.transport.Transport.post`."""
        if self._closed:
            waiter.set_exception(ConnectionFailed("This broker was closed. Open another, or publish before."))
            return
        deadline = self._loop.time() + timeout
        pending = Pending(waiter, message, mandatory, timeout, deadline)
        if self._alarm is None or deadline < self._wakes_at:
            self._wake_at(deadline)
        if self._line or self._sockets is None or len(self._waiting) >= MOST or self._bytes >= MOST_BYTES:
            self._line.append(pending)
            self._fill()
        else:
            self._send(pending)

    def start(self, sockets: Sockets, channel: int, frame_max: int) -> None:
        """Go on, on a new channel whose confirms are on."""
        self._sockets, self._channel, self._frame_max = sockets, channel, frame_max
        self._prefix = f"{uuid4().hex[:16]}-"  # message ids are unique: this, and the tag
        self._tag, self._lowest = 0, 1
        self._rest, self._came = REST[0], 0
        self._started_at = self._loop.time()
        sockets.attach(channel, self, frame_max)
        self._fill()

    def lost(self, error: BaseException | None) -> None:
        """The channel is gone. The publish that RabbitMQ names did wrong; the others come first on the next channel."""
        if self._sockets is not None:
            self._sockets.detach(self._channel)
        self._sockets = None
        self._out.clear()
        self._unwritten = 0
        self._bytes = 0
        unanswered, self._waiting = list(self._waiting.values()), {}
        for pending in reversed(unanswered):
            guilty = refusal(error, pending.message) if error is not None else None
            if guilty is not None:
                self._fail(pending, at_last(guilty, pending.unanswered))
            elif not pending.waiter.done():
                pending.unanswered = reason(error)
                self._line.appendleft(pending)

    def close(self) -> None:
        """Nothing is published any more; what has no answer fails."""
        self._closed = True
        self.lost(None)
        for pending in (*self._line, *self._resting):
            self._fail(pending, NotConfirmed("the broker was closed before RabbitMQ answered"))
        self._line.clear()
        self._resting.clear()
        if self._alarm is not None:
            self._alarm.cancel()

    # -- sending -----------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Send from the line for as long as there is room."""
        if self._sockets is None:
            return
        while self._line and (not self._waiting or (len(self._waiting) < MOST and self._bytes < MOST_BYTES)):
            pending = self._line.popleft()
            if not pending.waiter.done():
                self._send(pending)

    def _send(self, pending: Pending) -> None:
        message, tag = pending.message, self._tag + 1
        pending.returned = ""
        try:
            properties = properties_of(message, f"{self._prefix}{tag}")
            method = frames.publish(self._channel, message.exchange, message.key, mandatory=pending.mandatory)
            content = frames.content(self._channel, properties, message.body, self._frame_max)
        except ValueError as error:
            self._fail(pending, ContractError(f"RabbitMQ takes no such message: {error}"))
            return
        alone = not self._waiting
        if not alone and not self._out:
            self._loop.call_soon(self._flush)
        self._out += (method, content)
        self._tag = tag  # RabbitMQ counts what is sent, so what could be made
        self._waiting[tag] = pending
        size = len(message.body)
        self._bytes += size
        self._unwritten += size
        if alone or self._unwritten >= WRITE_AT:
            self._flush()

    def _flush(self) -> None:
        if self._out and self._sockets is not None:
            self._sockets.write(b"".join(self._out))
            self._link.sent()
        self._out.clear()
        self._unwritten = 0

    # -- answers, as they come off the wire --------------------------------------------------------------------------

    def confirmed(self, tag: int, multiple: bool) -> None:
        """Basic.Ack."""
        self._link.confirmed()
        settled = self._settle(tag, multiple)
        self._came += len(settled)
        if len(self._waiting) > MANY:
            self._read_some_at_a_time()
        for pending in settled:
            if pending.returned:
                self._came_back(pending)
            elif not pending.waiter.done():
                pending.waiter.set_result(None)

    def _read_some_at_a_time(self) -> None:
        """Rest for as long as RabbitMQ takes to confirm `AT_A_TIME`, going by how many came after the rest before."""
        if self._sockets is not None and self._sockets.rest(self._rest):
            wanted = self._rest * min(AT_A_TIME / max(1, self._came), 2)
            self._rest, self._came = min(max(REST[0], wanted), REST[1]), 0

    def refused(self, tag: int, multiple: bool) -> None:
        """Basic.Nack."""
        for pending in self._settle(tag, multiple):
            self._fail(pending, PublishRefused("RabbitMQ answered with a nack: a queue could not take it"))

    def returned(self, code: int, text: str, exchange: str, key: str, properties: bytes, body: bytes) -> None:  # noqa: PLR0913, PLR0917  (as AMQP has it)
        """Basic.Return: its ack follows."""
        try:
            message_id = str(frames.decode_properties(properties).get("message_id"))
            self._waiting[int(message_id.removeprefix(self._prefix))].returned = text
        except (ValueError, LookupError):
            raise frames.FrameError("a return of what was never published") from None

    def deliver(self, delivered: frames.Delivered) -> None:
        """Nobody consumes on this channel."""

    def _settle(self, tag: int, multiple: bool) -> list[Pending]:
        """Those answered, out of the way of others."""
        if not 0 < tag <= self._tag:
            raise frames.FrameError(f"a confirm of publish {tag}, of {self._tag} that were sent")
        take = self._waiting.pop
        if multiple:
            found = [pending for it in range(self._lowest, tag + 1) if (pending := take(it, None)) is not None]
            self._lowest = max(self._lowest, tag + 1)
        else:
            pending = take(tag, None)
            found = [pending] if pending is not None else []
            if tag == self._lowest:
                self._lowest += 1
        self._bytes -= sum([len(pending.message.body) for pending in found])
        if self._line:
            self._loop.call_soon(self._fill)
        return found

    def _came_back(self, pending: Pending) -> None:
        """Right after a connect bindings may not be up yet: publish it again for a while."""
        if self._loop.time() > self._started_at + SETTLING:
            error = Unroutable(f"RabbitMQ returned it: {pending.returned}, exchange {pending.message.exchange!r}")
            self._fail(pending, at_last(error, pending.unanswered))
            return
        if not self._resting:
            self._loop.call_later(AGAIN, self._rested)
        self._resting.append(pending)

    def _rested(self) -> None:
        self._line.extendleft(reversed(self._resting))
        self._resting.clear()
        self._fill()

    # -- failing -----------------------------------------------------------------------------------------------------

    def _fail(self, pending: Pending, error: BrokerError) -> None:
        if not pending.waiter.done():
            pending.waiter.set_exception(error)

    def _wake_at(self, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm, self._wakes_at = self._loop.call_at(when, self._look_for_late), when

    def _look_for_late(self) -> None:
        """Fail what is past its deadline, and wake again at the next."""
        self._alarm = None
        now = self._loop.time()
        left = [it for it in (*self._waiting.values(), *self._line, *self._resting) if not it.waiter.done()]
        for pending in left:
            if pending.deadline <= now:
                self._fail(pending, late(pending.timeout, self._link.problem))
        self._line = deque(it for it in self._line if not it.waiter.done())
        if later := [it.deadline for it in left if it.deadline > now]:
            self._wake_at(max(min(later), now + LOOK_AGAIN))


def properties_of(message: Message, message_id: str | None) -> bytes:
    """What stands in a content header."""
    return frames.properties(
        content_type=message.content_type,
        headers=message.headers,
        correlation_id=message.correlation_id,
        message_id=message_id,
        timestamp=int(message.timestamp.timestamp()) if message.timestamp is not None else None,
        type=message.type,
        app_id=message.app_id,
    )


# -- publishing aside ------------------------------------------------------------------------------------------------


class DirectAside:
    """Publishes on a channel whose end concerns nobody else: what is refused there ends that channel alone."""

    def __init__(self, channel: AbstractChannel, sockets: Sockets, frame_max: int) -> None:
        self.channel = channel
        self._sockets = sockets
        self._frame_max = frame_max
        self._tag = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}
        sockets.attach(channel.number, self, frame_max)

    async def publish(self, message: Message) -> None:
        """Publish, and wait for the confirm. Raises what ended the channel."""
        self._tag = tag = self._tag + 1
        self._waiting[tag] = confirm = asyncio.get_running_loop().create_future()
        number = self.channel.number
        self._sockets.write(
            frames.publish(number, message.exchange, message.key, mandatory=False)
            + frames.content(number, properties_of(message, None), message.body, self._frame_max)
        )
        closing = self.channel.closing
        try:
            await asyncio.wait((confirm, closing), return_when=asyncio.FIRST_COMPLETED)
            if not confirm.done():
                self._sockets.detach(number)
                await closing
                raise ConnectionError("the channel was closed")
            confirm.result()
        finally:
            self._waiting.pop(tag, None)

    def confirmed(self, tag: int, multiple: bool) -> None:
        """Basic.Ack."""
        for it in [it for it in self._waiting if it == tag or (multiple and it < tag)]:
            self._waiting.pop(it).set_result(None)

    def refused(self, tag: int, multiple: bool) -> None:
        """Basic.Nack."""
        for it in [it for it in self._waiting if it == tag or (multiple and it < tag)]:
            self._waiting.pop(it).set_exception(ConnectionError("RabbitMQ answered with a nack"))

    def returned(self, code: int, text: str, exchange: str, key: str, properties: bytes, body: bytes) -> None:  # noqa: PLR0913, PLR0917  (as AMQP has it)
        """Nothing here is mandatory."""

    def deliver(self, delivered: frames.Delivered) -> None:
        """Nobody consumes on this channel."""


# -- consuming -------------------------------------------------------------------------------------------------------


class DirectChannel:
    """A channel that consumes: hands deliveries to consumers by their tags, and settles them."""

    def __init__(self, channel: AbstractChannel, sockets: Sockets, frame_max: int) -> None:
        self.channel = channel
        self.lost = False
        self._number = channel.number
        self._sockets = sockets
        self._receivers: dict[str, Receive] = {}
        self._in_hand: dict[int, None] = {}
        self._done: list[int] = []
        self._others: list[bytes] = []
        self._flushing = False
        sockets.attach(self._number, self, frame_max)

    async def consume(self, queue: str, tag: str, receive: Receive, arguments: dict[str, Any] | None) -> None:
        """Have a queue's messages handed to ``receive``."""

        async def never(_: object) -> None:
            """What would come to aiormq comes to us."""

        self._receivers[tag] = receive
        await self.channel.basic_consume(queue, never, consumer_tag=tag, arguments=arguments)

    async def cancel(self, tag: str) -> None:
        """Take no more for this consumer."""
        await self.channel.basic_cancel(tag)
        self._receivers.pop(tag, None)

    def lose(self) -> None:
        """The connection is gone: settling does nothing any more."""
        self.lost = True
        self._sockets.detach(self._number)

    # -- as it comes off the wire ------------------------------------------------------------------------------------

    def deliver(self, delivered: frames.Delivered) -> None:
        """Basic.Deliver."""
        self._in_hand[delivered.tag] = None
        receive = self._receivers.get(delivered.consumer_tag)
        if receive is not None:
            receive(DirectDelivery(self, delivered))

    def confirmed(self, tag: int, multiple: bool) -> None:
        """Nobody publishes on this channel."""

    def refused(self, tag: int, multiple: bool) -> None:
        """Nobody publishes on this channel."""

    def returned(self, code: int, text: str, exchange: str, key: str, properties: bytes, body: bytes) -> None:  # noqa: PLR0913, PLR0917  (as AMQP has it)
        """Nobody publishes on this channel."""

    # -- settling ----------------------------------------------------------------------------------------------------

    def ack(self, tag: int) -> None:
        """Acknowledge, with others of this turn."""
        self._in_hand.pop(tag, None)
        self._done.append(tag)
        self._soon()

    def reject(self, tag: int, *, requeue: bool) -> None:
        """Give back, or have it dead-lettered."""
        self._in_hand.pop(tag, None)
        self._others.append(frames.reject(self._number, tag, requeue=requeue))
        self._soon()

    def _soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Write what was settled: those up to the first still in hand in one frame, the others one by one."""
        self._flushing = False
        out, self._others = self._others, []
        done, self._done = self._done, []
        first = next(iter(self._in_hand), None)  # tags come in order
        before = done if first is None else [tag for tag in done if tag < first]
        if first is not None:
            out += [frames.ack(self._number, tag, multiple=False) for tag in done if tag > first]
        if before:
            out.append(frames.ack(self._number, max(before), multiple=True))
        if not self.lost:
            self._sockets.write(b"".join(out))


class DirectDelivery:
    """A delivery, tied to the channel it came on."""

    __slots__ = ("_channel", "_delivered", "_message", "_settled")

    def __init__(self, channel: DirectChannel, delivered: frames.Delivered) -> None:
        self._channel = channel
        self._delivered = delivered
        self._message: Message | None = None
        self._settled = False

    @property
    def number(self) -> int | None:
        return frames.stream_number(self._delivered.properties)

    @property
    def redelivered(self) -> bool:
        return self._delivered.redelivered

    @property
    def lost(self) -> bool:
        return self._channel.lost

    @property
    def message(self) -> Message:
        if self._message is None:
            it = self._delivered
            try:
                if not it.key.isascii():
                    it.key.encode()
                properties = frames.decode_properties(it.properties)
            except UnicodeEncodeError:
                raise Malformed(f"its routing key cannot be decoded: {it.key!a}") from None
            except ValueError as error:
                raise Malformed(str(error)) from None
            self._message = message_of(it.exchange, it.key, it.body, properties)
        return self._message

    async def ack(self) -> None:
        if self._settle():
            self._channel.ack(self._delivered.tag)

    async def reject(self) -> None:
        if self._settle():
            self._channel.reject(self._delivered.tag, requeue=False)

    async def release(self) -> None:
        if self._settle():
            self._channel.reject(self._delivered.tag, requeue=True)

    def _settle(self) -> bool:
        """Whether this is the first time, on a channel that lives."""
        first, self._settled = not self._settled and not self._channel.lost, True
        return first
