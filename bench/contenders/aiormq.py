"""aiormq itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiormq
from aiormq.abc import DeliveredMessage

from bench.job import PREFETCH, Job, Seen
from bench.order import KEY, Order


@asynccontextmanager
async def publisher(job: Job) -> AsyncIterator[Any]:
    connection = await aiormq.connect(job.url)
    channel = await connection.channel()
    properties = aiormq.spec.Basic.Properties(content_type="application/json", delivery_mode=2)

    async def publish(order: Order) -> None:
        body = order.model_dump_json().encode()
        await channel.basic_publish(body, exchange="events", routing_key=KEY, properties=properties)

    yield publish
    await connection.close()


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

    async def handle(message: DeliveredMessage) -> None:
        seen.take(Order.model_validate_json(message.body))
        await message.channel.basic_ack(message.delivery_tag or 0)

    connection = await aiormq.connect(job.url)
    for queue in job.queues:
        channel = await connection.channel()
        await channel.basic_qos(prefetch_count=PREFETCH)
        await channel.basic_consume(queue, handle)
    await seen.all.wait()
    await asyncio.sleep(0.1)  # the last acks
    await connection.close()
