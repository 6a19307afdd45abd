"""Something that one process at a time may do, held by RabbitMQ: an exclusive queue, which goes with its connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiormq.exceptions import ChannelLockedResource

from broker.errors import ContractError
from broker.logs import logger
from broker.rabbitmq.link import Link
from broker.settings import Settings


@asynccontextmanager
async def locked(name: str, settings: Settings, *, refusal: str) -> AsyncIterator[asyncio.Event]:
    """Hold the lock ``name``, a queue's name, for as long as the context lasts and the connection lives.

    Yields what is set when the connection has gone, and the lock with it. It may be had again by then, or by another.

    Raises:
        ContractError: another connection holds it: ``refusal``.
        ConnectionFailed, AccessRefused: as connecting does.
    """

    async def hold() -> None:
        try:
            async with link.scratch() as channel:
                await channel.queue_declare(name, exclusive=True)
        except ChannelLockedResource:
            raise ContractError(refusal) from None

    gone = asyncio.Event()
    link = Link(settings, name, logger(settings, connection=name), declare=hold, lost=lambda _: gone.set())
    try:
        await link.open()
        gone.clear()  # an attempt before may have failed
        yield gone
    finally:
        await link.close()
