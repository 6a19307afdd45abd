"""Publishing and consuming as aio-pika does it, message by message: ``BROKER_DIRECT=off``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.exceptions import DeliveryError, PublishError
from pamqp import commands as amqp

from broker.errors import Malformed, PublishRefused, Unroutable
from broker.rabbitmq import guard
from broker.rabbitmq.answers import SETTLING, at_last, late, message_of, refusal
from broker.rabbitmq.frames import stream_number
from broker.rabbitmq.link import FAILURES, Link, reason, uncancelled
from broker.transport import Message, Receive, Waiter, tell


class PlainPublisher:
    """Publishes on a link's channel."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def publish(self, message: Message, *, mandatory: bool, timeout: float) -> None:
        """As `broker.transport.Transport.publish`."""
        try:
            async with asyncio.timeout(timeout):
                await self._until_answered(message, mandatory=mandatory)
        except TimeoutError:
            raise late(timeout, self._link.problem) from None

    def post(self, message: Message, waiter: Waiter, *, mandatory: bool, timeout: float) -> None:
        """As `broker.transport.Transport.post`."""
        tell(waiter, self.publish(message, mandatory=mandatory, timeout=timeout))

    async def _until_answered(self, message: Message, *, mandatory: bool) -> None:
        """Publish again for as long as no answer came. It is the same event each time, and says so by its id.

        A refusal tells of its own attempt alone: after one without an answer, the event may be stored all the same.
        """
        unanswered = ""
        while True:
            channel = await self._link.channel()
            try:
                return await self._once(channel, message, mandatory=mandatory)
            except Unroutable as returned:
                if asyncio.get_running_loop().time() > self._link.connected_at + SETTLING:
                    raise at_last(returned, unanswered) from None
                await asyncio.sleep(0.1)
            except FAILURES as error:
                if (refused := refusal(error, message)) is not None:
                    raise at_last(refused, unanswered) from None
                unanswered = reason(error)
                if channel.is_closed:
                    self._link.break_off(unanswered, channel)
                await asyncio.sleep(0)
            except asyncio.CancelledError as cancelled:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise  # else aiormq cancelled the wait, not us: its connection went silent
                unanswered = reason(cancelled)

    async def _once(self, channel: AbstractChannel, message: Message, *, mandatory: bool) -> None:
        self._link.sent()
        try:
            answer = await channel.basic_publish(
                message.body,
                exchange=message.exchange,
                routing_key=message.key,
                properties=properties_of(message),
                mandatory=mandatory,
            )
        except PublishError as returned:
            self._link.confirmed()
            raise Unroutable(f"RabbitMQ returned it: {returned.args[0]}, exchange {message.exchange!r}") from None
        except DeliveryError:
            raise PublishRefused("RabbitMQ answered with a nack: a queue could not take it") from None
        if not isinstance(answer, amqp.Basic.Ack):
            raise PublishRefused(f"RabbitMQ answered {answer!r}")
        self._link.confirmed()


@dataclass(slots=True)
class PlainAside:
    """Publishes on a channel whose end concerns nobody else: what is refused there ends that channel alone."""

    channel: AbstractChannel

    async def publish(self, message: Message) -> None:
        """Publish, and wait for the confirm. Raises what ended the channel."""
        with uncancelled():
            await self.channel.basic_publish(
                message.body, exchange=message.exchange, routing_key=message.key, properties=properties_of(message)
            )


@dataclass(slots=True)
class PlainChannel:
    """A channel that consumes."""

    channel: AbstractChannel

    async def consume(self, queue: str, tag: str, receive: Receive, arguments: dict[str, Any] | None) -> None:
        """Have a queue's messages handed to ``receive``."""

        async def on_message(delivered: DeliveredMessage) -> None:
            receive(PlainDelivery(self.channel, delivered))

        await self.channel.basic_consume(queue, on_message, consumer_tag=tag, arguments=arguments)

    async def cancel(self, tag: str) -> None:
        """Take no more for this consumer."""
        await self.channel.basic_cancel(tag)


@dataclass(slots=True, eq=False)
class PlainDelivery:
    """A delivery, tied to the channel it came on. Each is itself alone: it can be a key."""

    _channel: AbstractChannel
    _delivered: DeliveredMessage

    @property
    def number(self) -> int | None:
        raw = guard.undecodable_bytes(self._delivered.header)
        if raw is not None:
            return stream_number(raw)
        number = (self._delivered.header.properties.headers or {}).get("x-stream-offset")
        return number if isinstance(number, int) else None

    @property
    def redelivered(self) -> bool:
        return bool(self._delivered.redelivered)

    @property
    def lost(self) -> bool:
        return self._channel.is_closed

    @property
    def message(self) -> Message:
        why = guard.undecodable(self._delivered.delivery) or guard.undecodable(self._delivered.header)
        if why is not None:
            raise Malformed(why)
        exchange, key = self._delivered.exchange or "", self._delivered.routing_key or ""
        return message_of(exchange, key, self._delivered.body, dict(self._delivered.header.properties))

    @property
    def _tag(self) -> int:
        tag = self._delivered.delivery_tag
        assert tag is not None, "RabbitMQ numbers what it delivers"
        return tag

    async def ack(self) -> None:
        await self._settle(lambda: self._channel.basic_ack(self._tag, wait=False))

    async def reject(self) -> None:
        await self._settle(lambda: self._channel.basic_reject(self._tag, requeue=False, wait=False))

    async def release(self) -> None:
        await self._settle(lambda: self._channel.basic_nack(self._tag, requeue=True, wait=False))

    async def _settle(self, send: Callable[[], Awaitable[None]]) -> None:
        """Send it, or find the connection gone: aiormq's line of ten frames is emptied by nobody then, and a frame
        waits for room in it for ever."""
        while not self.lost:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    with contextlib.suppress(*FAILURES):
                        await send()
                    return


def properties_of(message: Message) -> amqp.Basic.Properties:
    """Persistent, and with a message id of its own for each attempt: confirms are told apart by it.

    Bytes stand in headers that are not UTF-8, from other clients; pamqp writes them as bytearray alone.
    """
    return amqp.Basic.Properties(
        content_type=message.content_type,
        delivery_mode=2,
        message_id=uuid4().hex,
        message_type=message.type,
        correlation_id=message.correlation_id,
        app_id=message.app_id,
        timestamp=message.timestamp,
        headers={
            name: bytearray(value) if isinstance(value, bytes) else value for name, value in message.headers.items()
        }
        or None,
    )
