"""rabbitkit; it publishes many with its own bulk call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from rabbitkit import AsyncBroker, BulkPublishOptions, ConnectionConfig, MessageEnvelope, RabbitConfig, TopologyMode

from bench.job import AT_ONCE, PREFETCH, Job, Seen
from bench.order import KEY, Order


def envelope(order: Order) -> MessageEnvelope:
    return MessageEnvelope(
        exchange="events", routing_key=KEY, body=order.model_dump_json().encode(), content_type="application/json"
    )


@asynccontextmanager
async def started(job: Job) -> AsyncIterator[AsyncBroker]:
    broker = AsyncBroker(RabbitConfig(connection=ConnectionConfig.from_url(job.url)))
    await broker.start()
    yield broker
    await broker.stop()


async def publish(job: Job) -> None:
    async with started(job) as broker:
        orders = [Order(**order) for order in job.orders]
        with job.measured():
            for at in range(0, len(orders), AT_ONCE):
                some = [envelope(order) for order in orders[at : at + AT_ONCE]]
                (await broker.publish_many(some, BulkPublishOptions(max_in_flight=AT_ONCE))).raise_for_status()


async def one_by_one(job: Job) -> None:
    async with started(job) as broker:

        async def publish(order: Order) -> None:
            (await broker.publish(envelope(order))).raise_for_status()

        await job.one_by_one(publish, [Order(**order) for order in job.orders])


async def paced(job: Job) -> None:
    async with started(job) as broker:

        async def publish(order: dict[str, Any]) -> None:
            (await broker.publish(envelope(Order(**order)))).raise_for_status()

        await job.paced(publish)


async def consume(job: Job) -> None:
    seen = Seen(job)
    config = RabbitConfig(connection=ConnectionConfig.from_url(job.url), topology_mode=TopologyMode.PASSIVE_ONLY)
    broker = AsyncBroker(config)

    async def handle(body: bytes) -> None:
        seen.take(Order.model_validate_json(body))

    for queue in job.queues:
        broker.subscriber(queue, prefetch_count=PREFETCH)(handle)
    await broker.start()
    await seen.all.wait()
    await asyncio.sleep(0.1)  # the last acks
    await broker.stop()
