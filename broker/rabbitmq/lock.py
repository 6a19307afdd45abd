"""Something that one process at a time may do, held by RabbitMQ: an exclusive queue, which goes with its connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiormq.exceptions import ChannelLockedResource

from broker.errors import ContractError
from broker.logs import logger
from broker.rabbitmq.link import Link
from broker.settings import Settings


@asynccontextmanager
async def locked(name: str, settings: Settings, *, refusal: str) -> AsyncIterator[None]:
    """Hold the lock ``name``, a queue's name, for as long as the context lasts and the connection lives.

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

    link = Link(settings, name, logger(settings), declare=hold)
    await link.open()
    try:
        yield
    finally:
        await link.close()
