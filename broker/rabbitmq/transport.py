"""Publishing and consuming over RabbitMQ, as ``broker.transport`` promises."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from uuid import uuid4

from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    PublishError,
)
from pamqp import commands as amqp
from structlog.typing import FilteringBoundLogger

from broker.errors import AccessRefused, Malformed, NotConfirmed, PublishRefused, TooLarge, Unroutable
from broker.logs import logger
from broker.rabbitmq import guard
from broker.rabbitmq.declare import apply, remove
from broker.rabbitmq.link import FAILURES, Link, reason, translate
from broker.settings import Settings
from broker.topology import Topology, shared_topology
from broker.transport import Consumer, HeaderValue, Message, Receive, Taking

YOUNG = 2.0
"""Seconds during which a queue just declared is not trusted: RabbitMQ killed then may bring it back without what it
confirmed."""
SETTLING = 5.0
"""Seconds after a connect during which a returned publish is repeated: bindings may not be up yet."""


class RabbitMQ:
    """A `broker.transport.Transport` over two connections, one to publish and one to consume.

    Args:
        settings: where RabbitMQ is, and how long things may take.
        log: carries the service's name.
        name: names the connections in the management UI.
    """

    def __init__(self, settings: Settings, log: FilteringBoundLogger, name: str) -> None:
        guard.install()
        self._settings = settings
        self._shared = shared_topology(settings)
        self._topology = Topology()
        self._publishing = Link(
            settings, f"{name} (publish)", log.bind(connection="publish"), declare=self._declare_to_publish
        )
        self._consuming = Link(
            settings,
            f"{name} (consume)",
            log.bind(connection="consume"),
            declare=self._declare_to_consume,
            use=self._start_consumers,
        )
        self._consumers: list[RabbitMQConsumer] = []
        self._trusted_at: dict[str, float] = {}
        self._log = log

    async def connect(self) -> None:
        await self._publishing.open()

    async def close(self) -> None:
        await asyncio.gather(self._publishing.close(), self._consuming.close())

    def problems(self) -> list[str]:
        links = [self._publishing] + ([self._consuming] if self._consumers else [])
        return [problem for link in links if (problem := link.problem)]

    # -- topology ------------------------------------------------------------------------------------------------

    async def declare(self, topology: Topology) -> None:
        await self._publishing.channel()
        try:
            await apply(self._publishing, topology)
        except FAILURES as error:
            raise translate(error, self._settings.hosts[0]) from None
        self._topology |= topology
        self._distrust(topology)

    async def _declare_to_publish(self) -> None:
        await apply(self._publishing, self._shared | self._topology)
        self._distrust(self._topology)

    async def _declare_to_consume(self) -> None:
        if any(consumer.started for consumer in self._consumers):  # else it has just been declared
            await apply(self._consuming, self._shared | self._topology)

    async def count(self, queue: str) -> int | None:
        """How many messages are ready in a queue; None if there is no such queue. Raises as `declare` does."""
        await self._publishing.channel()
        try:
            async with self._publishing.scratch() as channel:
                return (await channel.queue_declare(queue, passive=True)).message_count
        except ChannelNotFoundEntity:
            return None
        except FAILURES as error:
            raise translate(error, self._settings.hosts[0]) from None

    def _distrust(self, topology: Topology) -> None:
        trusted_at = asyncio.get_running_loop().time() + YOUNG
        self._trusted_at |= {queue.name: trusted_at for queue in topology.queues}

    # -- publishing ----------------------------------------------------------------------------------------------

    async def publish(self, message: Message, *, mandatory: bool, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._publish_until_answered(message, mandatory=mandatory)
        except TimeoutError:
            problem = self._publishing.problem
            raise NotConfirmed(f"no confirm within {timeout:g} s{f': {problem}' if problem else ''}") from None

    async def _publish_until_answered(self, message: Message, *, mandatory: bool) -> None:
        """Publish again for as long as no answer came. It is the same event each time, and says so by its id."""
        while True:
            channel = await self._publishing.channel()
            try:
                return await self._publish_once(channel, message, mandatory=mandatory)
            except Unroutable:
                if asyncio.get_running_loop().time() > self._publishing.connected_at + SETTLING:
                    raise
                await asyncio.sleep(0.1)
            except FAILURES as error:
                self._raise_if_guilty(error, message)
                if channel.is_closed:
                    self._publishing.break_off(reason(error))
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise  # else aiormq cancelled the wait, not us: its connection went silent

    async def _publish_once(self, channel: AbstractChannel, message: Message, *, mandatory: bool) -> None:
        try:
            answer = await channel.basic_publish(
                message.body,
                exchange=message.exchange,
                routing_key=message.key,
                properties=_properties(message),
                mandatory=mandatory,
            )
        except PublishError as returned:
            raise Unroutable(f"RabbitMQ returned it: {returned.args[0]}, exchange {message.exchange!r}") from None
        except DeliveryError:
            raise PublishRefused("RabbitMQ answered with a nack: a queue could not take it") from None
        if not isinstance(answer, amqp.Basic.Ack):
            raise PublishRefused(f"RabbitMQ answered {answer!r}")

    def _raise_if_guilty(self, error: BaseException, message: Message) -> None:
        """A closed channel fails everybody on it; only the publish that RabbitMQ names did wrong."""
        text = " ".join(str(part) for part in error.args)
        if isinstance(error, ChannelPreconditionFailed) and f"message size {len(message.body)} " in text:
            raise TooLarge(f"{text}. Lower BROKER_MAX_MESSAGE_BYTES to what RabbitMQ takes, and send less.")
        ours = f"'{message.exchange}'" in text and ("topic" not in text or f"'{message.key}'" in text)
        if isinstance(error, ChannelAccessRefused) and ours:
            raise AccessRefused(f"RabbitMQ refused the publish: {text}. Grant write permission for this key.")

    async def until_trusted(self, queue: str) -> None:
        wait = self._trusted_at.get(queue, 0.0) - asyncio.get_running_loop().time()
        if wait > 0:
            await asyncio.sleep(wait)
        self._trusted_at.pop(queue, None)

    # -- consuming -----------------------------------------------------------------------------------------------

    async def consume(
        self, queue: str, receive: Receive, *, prefetch: int, offset: str | None = None, careful: bool = True
    ) -> Consumer:
        consumer = RabbitMQConsumer(self._consuming, queue, receive, Taking(prefetch, offset, careful))
        self._consumers.append(consumer)
        await self._consuming.open()
        if not consumer.started:
            try:
                await consumer.start(await self._consuming.channel())
            except FAILURES as error:
                raise translate(error, self._settings.hosts[0]) from None
        self._log.info("consuming", queue=queue)
        return consumer

    async def _start_consumers(self, channel: AbstractChannel) -> None:
        channel.on_consumer_cancel_callbacks.add(
            lambda frame: self._consuming.break_off("RabbitMQ cancelled the consumer: was its queue deleted?")
        )
        for consumer in self._consumers:
            await consumer.start(channel)


class RabbitMQConsumer:
    """One subscription; on each new channel it starts anew, with one delivery at a time."""

    def __init__(self, link: Link, queue: str, receive: Receive, taking: Taking) -> None:
        self._link = link
        self._queue = queue
        self._receive = receive
        self._taking = taking
        self._channel: AbstractChannel | None = None
        self._tag = ""
        self._careful = False
        self._cancelled = False
        self._widening: asyncio.Task[None] | None = None
        self.started = False

    async def start(self, channel: AbstractChannel) -> None:
        if self._cancelled:
            return
        self._channel = channel
        self._careful = self._taking.careful and self._taking.offset is None and self._taking.prefetch != 1
        await self._consume(channel, 1 if self._careful else self._taking.prefetch)
        self.started = True

    async def _consume(self, channel: AbstractChannel, prefetch: int) -> None:
        self._tag = f"{self._queue}.{uuid4().hex[:8]}"
        await channel.basic_qos(prefetch_count=prefetch)
        await channel.basic_consume(
            self._queue,
            partial(self._on_message, channel),
            consumer_tag=self._tag,
            arguments={"x-stream-offset": self._taking.offset} if self._taking.offset else None,
        )

    async def _on_message(self, channel: AbstractChannel, delivered: DeliveredMessage) -> None:
        if self._careful and not delivered.redelivered and channel is self._channel:
            self._careful = False
            self._widening = asyncio.create_task(self._widen(channel))
        self._receive(RabbitMQDelivery(channel, delivered))

    async def _widen(self, channel: AbstractChannel) -> None:
        """RabbitMQ applies a new prefetch to new consumers only: cancel, and consume with the full one."""
        try:
            if not self._cancelled:
                await channel.basic_cancel(self._tag)
            if not self._cancelled:
                await self._consume(channel, self._taking.prefetch)
        except FAILURES as error:
            if channel is self._channel:
                self._link.break_off(reason(error))

    async def cancel(self) -> None:
        self._cancelled = True
        if self._widening is not None:
            await asyncio.gather(self._widening, return_exceptions=True)
        if self._channel is not None and not self._channel.is_closed:
            with contextlib.suppress(*FAILURES):
                async with asyncio.timeout(2):
                    await self._channel.basic_cancel(self._tag)


@dataclass(slots=True)
class RabbitMQDelivery:
    """A delivery, tied to the channel it came on."""

    _channel: AbstractChannel
    _delivered: DeliveredMessage

    @property
    def redelivered(self) -> bool:
        return bool(self._delivered.redelivered)

    @property
    def lost(self) -> bool:
        return self._channel.is_closed

    @property
    def message(self) -> Message:
        if (why := guard.undecodable(self._delivered.header)) is not None:
            raise Malformed(f"its properties cannot be decoded: {why}")
        properties = self._delivered.header.properties
        return Message(
            exchange=self._delivered.exchange or "",
            key=self._delivered.routing_key or "",
            body=self._delivered.body,
            content_type=properties.content_type,
            type=properties.message_type,
            correlation_id=properties.correlation_id,
            app_id=properties.app_id,
            timestamp=properties.timestamp,
            headers=_scalars(properties.headers or {}),
        )

    @property
    def _tag(self) -> int:
        tag = self._delivered.delivery_tag
        assert tag is not None, "RabbitMQ numbers what it delivers"
        return tag

    async def ack(self) -> None:
        with contextlib.suppress(*FAILURES):
            await self._channel.basic_ack(self._tag, wait=False)

    async def reject(self) -> None:
        with contextlib.suppress(*FAILURES):
            await self._channel.basic_reject(self._tag, requeue=False, wait=False)

    async def release(self) -> None:
        with contextlib.suppress(*FAILURES):
            await self._channel.basic_nack(self._tag, requeue=True, wait=False)


async def delete(topology: Topology, settings: Settings) -> None:
    """Delete what a test declared. Raises as `RabbitMQ.connect` does."""

    async def nothing() -> None:
        pass

    link = Link(settings, "delete", logger(settings), declare=nothing)
    await link.open()
    try:
        await remove(link, topology)
    finally:
        await link.close()


def _properties(message: Message) -> amqp.Basic.Properties:
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


def _scalars(headers: Mapping[str, object]) -> dict[str, HeaderValue]:
    """The headers that can be carried on. Nested ones are RabbitMQ's own traces, or nobody's business."""
    return {
        name: value
        for name, value in headers.items()
        if isinstance(value, str | int | float | bool | bytes | datetime) or value is None
    }
