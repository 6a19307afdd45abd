"""RabbitMQ over one connection that declares nothing by itself: for tools that look at it, and that repair it.

What a user may do is tried, on what does not exist or is taken back, so that nothing changes: RabbitMQ checks
permissions before anything else. That tells of every way in which permissions can be kept, of LDAP's and tokens', too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed
from pamqp.commands import Basic

from broker.errors import AccessRefused, BrokerError
from broker.logs import logger
from broker.rabbitmq.declare import apply
from broker.rabbitmq.link import FAILURES, Link, reason, translate
from broker.settings import Settings
from broker.topology import Queue, Topology

T = TypeVar("T")
PATIENCE = 5.0
"""Seconds that one answer may take."""


class Depth(NamedTuple):
    """How many messages a queue has ready, and who consumes it, at this moment."""

    ready: int
    consumers: int


class Probe:
    """One connection. Every method raises `ConnectionFailed` when it breaks, `AccessRefused` when refused."""

    def __init__(self, link: Link, settings: Settings) -> None:
        self._link = link
        self._settings = settings

    # -- looking -----------------------------------------------------------------------------------------------------

    async def depth(self, queue: str) -> Depth | None:
        """How full a queue is; None: there is no such queue."""

        async def ask(channel: AbstractChannel) -> Depth:
            told = await channel.queue_declare(queue, passive=True)
            return Depth(told.message_count or 0, told.consumer_count or 0)

        return await self._ask(ask, ChannelNotFoundEntity)

    async def has_exchange(self, name: str) -> bool:
        """Whether there is such an exchange."""

        async def ask(channel: AbstractChannel) -> bool:
            await channel.exchange_declare(name, passive=True)
            return True

        return bool(await self._ask(ask, ChannelNotFoundEntity))

    async def conflict(self, queue: Queue) -> str:
        """In what a queue that exists differs from its declaration, as RabbitMQ says it; empty: in nothing."""
        try:
            async with asyncio.timeout(PATIENCE), self._scratch() as channel:
                await channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
        except ChannelPreconditionFailed as error:
            return reason(error)
        except FAILURES as error:
            raise self._translated(error) from None
        return ""

    async def ailment(self, queue: str) -> str:
        """Why an empty queue that nobody consumes does not work; empty: it does."""
        try:
            async with asyncio.timeout(PATIENCE), self._scratch() as channel:
                got = await channel.basic_get(queue)
                if isinstance(got.delivery, Basic.GetOk) and got.delivery.delivery_tag is not None:
                    await channel.basic_nack(got.delivery.delivery_tag, requeue=True)
        except (ChannelAccessRefused, ChannelNotFoundEntity):
            return ""  # that is another finding
        except FAILURES as error:
            return reason(error)
        return ""

    async def may_configure(self, name: str) -> bool:
        """Whether this user may declare a queue or exchange of this name: tried with an argument that none has."""
        impossible: dict[str, Any] = {"x-expires": -1}
        return await self._may(lambda channel: channel.queue_declare(name, durable=True, arguments=impossible))

    async def may_bind(self, queue: str, exchange: str, key: str) -> bool:
        """Whether this user may bind a queue, which does not exist, to an exchange by a key."""
        return await self._may(lambda channel: channel.queue_bind(queue, exchange, key))

    async def may_publish(self, exchange: str, key: str) -> bool:
        """Whether this user may publish to an exchange with a key: tried in a transaction that is rolled back."""

        async def publish(channel: AbstractChannel) -> None:
            await channel.tx_select()
            await channel.basic_publish(b"", exchange=exchange, routing_key=key)
            await channel.tx_rollback()

        return await self._may(publish)

    # -- changing ----------------------------------------------------------------------------------------------------

    async def declare(self, topology: Topology) -> None:
        """Make it so. Raises `TopologyConflict`, too."""
        try:
            async with asyncio.timeout(PATIENCE):
                await apply(self._link, topology)
        except FAILURES as error:
            raise self._translated(error) from None

    async def bind(self, queue: str, exchange: str, key: str, arguments: Mapping[str, Any]) -> None:
        """Bind a queue."""
        await self._ask(lambda channel: channel.queue_bind(queue, exchange, key, arguments=dict(arguments)))

    async def unbind(self, queue: str, exchange: str, key: str, arguments: Mapping[str, Any]) -> None:
        """Take a binding away. What it has brought stays."""
        await self._ask(lambda channel: channel.queue_unbind(queue, exchange, key, arguments=dict(arguments)))

    async def delete_idle(self, queue: str) -> Depth | None:
        """Delete a queue that has nothing ready and no consumer, looking in the moment before; how it was then.

        (A quorum queue cannot be deleted on condition: RabbitMQ closes the connection.)
        """

        async def delete(channel: AbstractChannel) -> Depth:
            told = await channel.queue_declare(queue, passive=True)
            depth = Depth(told.message_count or 0, told.consumer_count or 0)
            if depth == (0, 0):
                await channel.queue_delete(queue)
            return depth

        return await self._ask(delete, ChannelNotFoundEntity)

    async def delete_unused(self, exchange: str) -> bool:
        """Delete an exchange that nothing is bound to; False: something is."""

        async def delete(channel: AbstractChannel) -> bool:
            await channel.exchange_delete(exchange, if_unused=True)
            return True

        return bool(await self._ask(delete, ChannelPreconditionFailed))

    # -- how it asks -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _scratch(self) -> AsyncIterator[AbstractChannel]:
        """A channel for one question, on a connection that stands."""
        await self._link.channel()
        async with self._link.scratch() as channel:
            yield channel

    async def _ask(self, work: Callable[[AbstractChannel], Awaitable[T]], *refusals: type[Exception]) -> T | None:
        """What RabbitMQ answers, on a channel of its own; None: a refusal that is an answer, too."""
        try:
            async with asyncio.timeout(PATIENCE), self._scratch() as channel:
                return await work(channel)
        except refusals:
            return None
        except FAILURES as error:
            raise self._translated(error) from None

    async def _may(self, work: Callable[[AbstractChannel], Awaitable[Any]]) -> bool:
        """Whether RabbitMQ refuses it for no want of permission: other refusals come behind that one."""
        try:
            await self._ask(work, ChannelPreconditionFailed, ChannelNotFoundEntity)
        except AccessRefused:
            return False
        return True

    def _translated(self, error: BaseException) -> BrokerError:
        return translate(error, self._settings.hosts[0])


@asynccontextmanager
async def probing(settings: Settings, name: str) -> AsyncIterator[Probe]:
    """A connection under a name that the management UI shows.

    Raises:
        ConnectionFailed, AccessRefused: as connecting does.
    """

    async def nothing() -> None:
        pass

    link = Link(settings, name, logger(settings, connection=name), declare=nothing)
    await link.open()
    try:
        yield Probe(link, settings)
    finally:
        await link.close()
