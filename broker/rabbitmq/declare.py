"""The topology, made so on RabbitMQ.

Each operation that RabbitMQ may refuse by closing the channel runs on a channel of its own.
"""

from __future__ import annotations

import asyncio

from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from broker.errors import AccessRefused
from broker.rabbitmq.link import Link, wedged
from broker.topology import Binding, Exchange, Queue, Topology

WEDGED_LOG = 3.0
"""Seconds after which an event log that exists and does not answer is called so. The next try follows at once."""


async def apply(link: Link, topology: Topology) -> None:
    """Declare what may be declared; check what may not. What it raises, `link.translate` turns into our errors."""
    for exchange in topology.exchanges:
        await _exchange(link, exchange)
    for queue in topology.queues:
        await (_shared_queue(link, queue) if queue.shared else _queue(link, queue))
    shared = {queue.name for queue in topology.queues if queue.shared}
    for binding in topology.bindings:
        await _bind(link, binding, shared=binding.queue in shared)


async def _exchange(link: Link, exchange: Exchange) -> None:
    try:
        async with link.scratch() as channel:
            await channel.exchange_declare(exchange.name, exchange_type=exchange.kind, durable=True)
    except ChannelAccessRefused as refused:
        try:
            async with link.scratch() as channel:
                await channel.exchange_declare(exchange.name, exchange_type=exchange.kind, passive=True)
        except ChannelNotFoundEntity:
            raise AccessRefused(
                f"The exchange {exchange.name!r} does not exist, and this user may not declare it: {refused.args[0]}"
            ) from None


async def _queue(link: Link, queue: Queue) -> None:
    async with link.scratch() as channel:
        await channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))


async def _shared_queue(link: Link, queue: Queue) -> None:
    """Take the event log as it is; create it if it is not there; go on only when it answers.

    After a restart RabbitMQ confirms events before the log is up, and the log then misses them; a passive declaration
    is refused until it is.
    """
    refused, patience = False, asyncio.get_running_loop().time() + WEDGED_LOG
    while True:
        try:
            async with link.scratch() as channel:
                await channel.queue_declare(queue.name, passive=True)
            return
        except ChannelNotFoundEntity:
            if refused:
                raise AccessRefused(
                    f"The event log {queue.name!r} does not exist, and this user may not declare it. "
                    "Start a service that may, or set BROKER_LOG=off everywhere."
                ) from None
        try:
            async with link.scratch() as channel:
                await channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
        except ChannelAccessRefused:
            refused = True
        except (ChannelPreconditionFailed, ChannelNotFoundEntity) as error:
            if asyncio.get_running_loop().time() > patience:
                raise wedged(queue.name, error, log=True) from None
            await asyncio.sleep(0.1)  # it exists, made by another with other sizes, or is not up yet


async def _bind(link: Link, binding: Binding, *, shared: bool) -> None:
    try:
        async with link.scratch() as channel:
            await channel.queue_bind(binding.queue, binding.exchange, binding.key)
    except ChannelAccessRefused:
        if not shared:  # whoever created the log bound it
            raise


async def remove(link: Link, topology: Topology) -> None:
    """Delete what was declared, with whatever is in it."""
    async with link.scratch() as channel:
        for queue in topology.queues:
            await channel.queue_delete(queue.name)
        for exchange in topology.exchanges:
            await channel.exchange_delete(exchange.name)
