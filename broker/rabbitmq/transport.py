"""Publishing and consuming over RabbitMQ, as ``broker.transport`` promises."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from uuid import uuid4

from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelNotFoundEntity, ConnectionInternalError
from pamqp import commands as amqp
from structlog.typing import FilteringBoundLogger

from broker.logs import logger
from broker.rabbitmq import guard
from broker.rabbitmq.answers import refusal
from broker.rabbitmq.declare import apply, remove
from broker.rabbitmq.direct import DirectAside, DirectChannel, DirectPublisher
from broker.rabbitmq.link import FAILURES, SILENCE, Link, reason, translate, uncancelled, wedged
from broker.rabbitmq.plain import PlainAside, PlainChannel, PlainPublisher
from broker.settings import Settings
from broker.topology import Topology, shared_topology
from broker.transport import Consumer, Delivery, Message, Offset, Receive, Taking, Waiter

YOUNG = 2.0
"""Seconds during which a queue just declared is not trusted: RabbitMQ killed then may bring it back without what it
confirmed."""
LONGEST_TAG = 255
"""Bytes of a consumer's tag."""
WEDGED = 3.0
"""Seconds in which a queue that answered a declaration answers a consumer, too, if it is well."""


class RabbitMQ:
    """A `broker.transport.Transport` over two connections, one to publish and one to consume.

    Args:
        settings: where RabbitMQ is, and how long things may take.
        log: carries the service's name.
        name: names the connections in the management UI.
        looks: it declares nothing of what all share.
    """

    def __init__(self, settings: Settings, log: FilteringBoundLogger, name: str, *, looks: bool = False) -> None:
        guard.install()
        self._settings = settings
        self._shared = Topology() if looks else shared_topology(settings)
        self._topology = Topology()
        self._publishing = Link(
            settings,
            f"{name} (publish)",
            log.bind(connection="publish"),
            declare=self._declare_to_publish,
            use=self._start_publishing,
            lost=self._stop_publishing,
        )
        self._consuming = Link(
            settings,
            f"{name} (consume)",
            log.bind(connection="consume"),
            declare=self._declare_to_consume,
            use=self._start_consumers,
            lost=self._stop_consuming,
        )
        self._publisher: DirectPublisher | PlainPublisher = (
            DirectPublisher(self._publishing) if settings.direct else PlainPublisher(self._publishing)
        )
        self._beside: DirectAside | PlainAside | None = None
        self._channel: DirectChannel | None = None
        self._consumers: list[RabbitMQConsumer] = []
        self._trusted_at: dict[str, float] = {}
        self._log = log

    async def connect(self) -> None:
        await self._publishing.open()

    async def close(self) -> None:
        await asyncio.gather(self._publishing.close(), self._consuming.close())
        if isinstance(self._publisher, DirectPublisher):
            self._publisher.close()

    def problems(self) -> list[str]:
        links = [self._publishing] + ([self._consuming] if self._consumers else [])
        return [problem for link in links if (problem := link.problem)]

    # -- topology ------------------------------------------------------------------------------------------------

    async def declare(self, topology: Topology) -> None:
        await self._publishing.channel()
        try:
            async with asyncio.timeout(SILENCE):
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
        found = await self._look_at(queue)
        return found.message_count if found is not None else None

    async def consumers(self, queue: str) -> int | None:
        found = await self._look_at(queue)
        return found.consumer_count if found is not None else None

    async def _look_at(self, queue: str) -> amqp.Queue.DeclareOk | None:
        await self._publishing.channel()
        try:
            async with self._publishing.scratch() as channel:
                return await channel.queue_declare(queue, passive=True)
        except ChannelNotFoundEntity:
            return None
        except FAILURES as error:
            raise translate(error, self._settings.hosts[0]) from None

    def _distrust(self, topology: Topology) -> None:
        trusted_at = asyncio.get_running_loop().time() + YOUNG
        self._trusted_at |= {queue.name: trusted_at for queue in topology.queues}

    # -- publishing ----------------------------------------------------------------------------------------------

    def publish(self, message: Message, *, mandatory: bool, timeout: float) -> Awaitable[None]:
        return self._publisher.publish(message, mandatory=mandatory, timeout=timeout)

    def post(self, message: Message, waiter: Waiter, *, mandatory: bool, timeout: float) -> None:
        self._publisher.post(message, waiter, mandatory=mandatory, timeout=timeout)

    async def aside(self, message: Message, topology: Topology, *, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._publishing.channel()
                if self._beside is None or self._beside.channel.is_closed:
                    await apply(self._publishing, topology)
                    self._beside = self._aside_on(await self._publishing.another_channel())
                await self._beside.publish(message)
        except FAILURES as error:
            raise refusal(error, message) or translate(error, self._settings.hosts[0]) from None

    def _aside_on(self, channel: AbstractChannel) -> DirectAside | PlainAside:
        if not self._settings.direct:
            return PlainAside(channel)
        return DirectAside(channel, self._publishing.sockets, self._publishing.frame_max)

    async def _start_publishing(self, channel: AbstractChannel) -> None:
        if isinstance(self._publisher, DirectPublisher):
            self._publisher.start(self._publishing.sockets, channel.number, self._publishing.frame_max)

    def _stop_publishing(self, error: BaseException | None) -> None:
        if isinstance(self._publisher, DirectPublisher):
            self._publisher.lost(error)

    async def until_trusted(self, queue: str) -> None:
        wait = self._trusted_at.get(queue, 0.0) - asyncio.get_running_loop().time()
        if wait > 0:
            await asyncio.sleep(wait)
        self._trusted_at.pop(queue, None)

    # -- consuming -----------------------------------------------------------------------------------------------

    async def consume(
        self, queue: str, receive: Receive, *, prefetch: int, offset: Offset | None = None, careful: bool = True
    ) -> Consumer:
        consumer = RabbitMQConsumer(self._consuming, queue, receive, Taking(prefetch, offset, careful))
        self._consumers.append(consumer)
        await self._consuming.open()
        channel = await self._consuming.channel()
        if not consumer.started:  # else it was, when the connection came back
            try:
                await consumer.start(self._consumed(channel))
            except FAILURES as error:
                raise translate(error, self._settings.hosts[0]) from None
        if offset is None:  # a stream is looked into again and again
            self._log.info("consuming", queue=queue)
        return consumer

    async def _start_consumers(self, channel: AbstractChannel) -> None:
        channel.on_consumer_cancel_callbacks.add(
            lambda frame: self._consuming.break_off("RabbitMQ cancelled the consumer: was its queue deleted?")
        )
        for consumer in self._consumers:
            await consumer.start(self._consumed(channel))

    def _consumed(self, channel: AbstractChannel) -> DirectChannel | PlainChannel:
        """The channel, as the consumers on it use it."""
        if not self._settings.direct:
            return PlainChannel(channel)
        if self._channel is None or self._channel.channel is not channel:
            self._channel = DirectChannel(channel, self._consuming.sockets, self._consuming.frame_max)
        return self._channel

    def _stop_consuming(self, error: BaseException | None) -> None:
        if self._channel is not None:
            self._channel.lose()


class RabbitMQConsumer:
    """One subscription; on each new channel it starts anew, with one delivery at a time."""

    def __init__(self, link: Link, queue: str, receive: Receive, taking: Taking) -> None:
        self._link = link
        self._queue = queue
        self._receive = receive
        self._taking = taking
        self._channel: DirectChannel | PlainChannel | None = None
        self._tag = ""
        self._careful = False
        self._cancelled = False
        self._paused = ""
        self._begun = (0, "")
        self._turning = asyncio.Lock()
        self._widening: asyncio.Task[None] | None = None
        self._latest: Delivery | None = None
        self.started = False

    async def start(self, channel: DirectChannel | PlainChannel) -> None:
        if self._cancelled:
            return
        self._channel = channel
        self._careful = self._taking.careful and self._taking.offset is None and self._taking.prefetch != 1
        try:
            async with asyncio.timeout(WEDGED):
                await self._consume(channel)
        except (ConnectionInternalError, TimeoutError) as error:
            raise wedged(self._queue, error, log=self._offset is not None) from None
        self.started = True

    async def _consume(self, channel: DirectChannel | PlainChannel) -> None:
        """The tag is what the management UI shows of a consumer."""
        prefetch, note = self._begun = self._wanted
        tag = f"{self._queue}.{uuid4().hex[:8]} {note}".strip()
        self._tag = tag.encode()[:LONGEST_TAG].decode(errors="ignore")
        offset = self._offset
        arguments = None if offset is None else {"x-stream-offset": offset}
        with uncancelled():
            await channel.channel.basic_qos(prefetch_count=prefetch)
            await channel.consume(self._queue, self._tag, self._take, arguments)

    @property
    def _offset(self) -> Offset | None:
        """Where in a stream to begin: behind the last that was delivered."""
        latest = self._latest.number if self._latest is not None else None
        return self._taking.offset if latest is None else latest + 1

    @property
    def _wanted(self) -> tuple[int, str]:
        """How many to take at a time, and what to show."""
        return 1 if self._careful or self._paused else self._taking.prefetch, self._paused

    def _take(self, delivery: Delivery) -> None:
        if self._careful and not delivery.redelivered and not delivery.lost:
            self._careful = False
            self._widening = asyncio.create_task(self._consume_anew())
        if self._taking.offset is not None:
            self._latest = delivery
        self._receive(delivery)

    async def _consume_anew(self) -> None:
        """RabbitMQ applies a new prefetch to new consumers only: end the one before, then begin another.

        Not both at once: a quorum queue takes back what it was handing to the one that ends, and that would come after
        what the other has got meanwhile.
        """
        async with self._turning:
            channel = self._channel
            if channel is None or channel.channel.is_closed or self._wanted == self._begun:
                return  # `start` comes, or somebody was here before
            try:
                if not self._cancelled:
                    async with asyncio.timeout(SILENCE):
                        with uncancelled():
                            await channel.cancel(self._tag)
                        await self._consume(channel)
            except Exception as error:  # aiormq raises a bare one when the channel closes under a request
                if channel is self._channel and not self._cancelled:
                    self._link.break_off(reason(error))

    async def pause(self, why: str) -> None:
        self._paused = " ".join(why.split())
        await self._consume_anew()

    async def resume(self) -> None:
        self._careful, self._paused = False, ""
        await self._consume_anew()

    async def cancel(self) -> None:
        self._cancelled = True
        async with self._turning:
            if self._channel is not None and not self._channel.channel.is_closed:
                # aiormq raises a bare Exception when the channel closes under a request
                with contextlib.suppress(Exception), uncancelled():
                    async with asyncio.timeout(2):
                        await self._channel.cancel(self._tag)


async def delete(topology: Topology, settings: Settings) -> None:
    """Delete what is not needed any more: by a backfill, or by a test. Raises as `RabbitMQ.connect` does."""

    async def nothing() -> None:
        pass

    link = Link(settings, "delete", logger(settings), declare=nothing)
    try:
        await link.open()
        await remove(link, topology)
    finally:
        await link.close()
