"""aio-pika itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika

from bench.job import PREFETCH, Job, Seen
from bench.order import KEY, Order


@asynccontextmanager
async def publisher(job: Job) -> AsyncIterator[Any]:
    connection = await aio_pika.connect_robust(job.url)
    async with connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange("events", ensure=False)

        async def publish(order: Order) -> None:
            message = aio_pika.Message(
                order.model_dump_json().encode(), content_type="application/json", delivery_mode=2
            )
            await exchange.publish(message, KEY, mandatory=False)

        yield publish


async def publish(job: Job) -> None:
    async with publisher(job) as publish:
        await job.at_once(publish, [Order(**order) for order in job.orders])


async def one_by_one(job: Job) -> None:
    async with publisher(job) as publish:
        await job.one_by_one(publish, [Order(**order) for order in job.orders])


async def paced(job: Job) -> None:
    async with publisher(job) as publish:
        await job.paced(lambda order: publish(Order(**order)))


async def consume(job: Job) -> None:
    seen = Seen(job)

    async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        async with message.process():
            seen.take(Order.model_validate_json(message.body))

    connection = await aio_pika.connect_robust(job.url)
    async with connection:
        for name in job.queues:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=PREFETCH)
            queue = await channel.get_queue(name, ensure=False)
            await queue.consume(handle)
        await seen.all.wait()
        await asyncio.sleep(0.1)  # the last acks
