"""FastStream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue

from bench.job import PREFETCH, Job, Seen
from bench.order import KEY, Order

EVENTS = RabbitExchange("events", type=ExchangeType.TOPIC, durable=True, declare=False)


@asynccontextmanager
async def publisher(job: Job) -> AsyncIterator[Any]:
    async with RabbitBroker(job.url) as broker:

        async def publish(order: Order) -> None:
            await broker.publish(order, exchange=EVENTS, routing_key=KEY, persist=True)

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


def consumer(job: Job, seen: Seen) -> RabbitBroker:
    broker = RabbitBroker(job.url, default_channel=Channel(prefetch_count=PREFETCH))

    async def handle(order: Order) -> None:
        seen.take(order)

    for queue in job.queues:
        broker.subscriber(RabbitQueue(queue, durable=True, declare=False), no_reply=True)(handle)
    return broker


async def consume(job: Job) -> None:
    seen = Seen(job)
    async with consumer(job, seen) as broker:
        await broker.start()
        await seen.all.wait()
        await asyncio.sleep(0.1)  # the last acks


async def idle(job: Job) -> None:
    """A service that has nothing to do."""
    async with consumer(job, Seen(job)) as broker:
        await broker.start()
        await asyncio.sleep(1)
