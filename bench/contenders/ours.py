"""This package."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any
from uuid import UUID

from bench.job import Job, Seen, Share, Turns
from bench.order import KEY, Line, fields
from broker import Broker, Context, Event, Service, Settings
from broker.logs import logger
from broker.rabbitmq import RabbitMQ
from broker.service import serve
from broker.topology import service_topology


class NewOrderPlaced(Event, name="New Order Placed", key=KEY, subject="order_id"):
    """As `bench.order.Order`."""

    order_id: UUID
    customer: str
    email: str
    lines: list[Line]
    total: Decimal
    sent: int = 0


def settings(job: Job) -> Settings:
    return Settings.model_validate({"url": job.url, "log": False, "logging_level": "info"} | job.settings)


def open_broker(job: Job) -> Broker:
    return Broker(source="bench", settings=settings(job))


async def publish(job: Job) -> None:
    async with open_broker(job) as broker:
        await job.at_once(broker.publish, [NewOrderPlaced(**order) for order in job.orders])


async def publish_many(job: Job) -> None:
    async with open_broker(job) as broker:
        events = [NewOrderPlaced(**order) for order in job.orders]
        with job.measured():
            await broker.publish_many(events)


async def one_by_one(job: Job) -> None:
    async with open_broker(job) as broker:
        await job.one_by_one(broker.publish, [NewOrderPlaced(**order) for order in job.orders])


async def paced(job: Job) -> None:
    async with open_broker(job) as broker:

        async def publish(order: dict[str, Any]) -> None:
            await broker.publish(NewOrderPlaced(**order))

        await job.paced(publish)


async def consume(job: Job) -> None:
    seen = Seen(job)
    async with AsyncExitStack() as stack:
        for queue in job.queues:
            await stack.enter_async_context(serve(service(queue, seen), settings(job), logger(settings(job))))
        await seen.all.wait()


async def consume_share(job: Job) -> None:
    """One of several processes of a service: takes what it is given."""
    share = Share(job)
    async with serve(service(job.queues[0], share), settings(job), logger(settings(job))):
        await share.complete()


async def consume_patterns(job: Job) -> None:
    """One service with many patterns, of which the last takes the events."""
    seen, it = Seen(job), Service(job.queues[0])

    async def handle(envelope: Any) -> None:
        seen.take(envelope.decode(NewOrderPlaced))

    for n in range(job.options["patterns"] - 1):
        it.on(f"other{n}.*")(handle)
    it.on("order.*")(handle)
    async with serve(it, settings(job), logger(settings(job))):
        await seen.all.wait()


async def backfill(job: Job) -> None:
    """A service that starts for the first time, and handles all that the event log has, and what comes meanwhile."""
    seen, handled = Seen(job), list[UUID]()
    it = Service(job.queues[0])

    @it.on(NewOrderPlaced)
    async def handle(order: NewOrderPlaced, context: Context) -> None:
        handled.append(context.event_id)
        seen.take(order)

    async with serve(it, settings(job), logger(settings(job)), backfill="1h"):
        job.result["backfilled"] = time.monotonic()
        await seen.all.wait()
        await asyncio.sleep(1)  # nothing more comes
    assert len(handled) == len(set(handled)) == job.count


async def idle(job: Job) -> None:
    """A service that has nothing to do."""
    async with serve(service("bench", Seen(job)), settings(job), logger(settings(job))):
        await asyncio.sleep(1)


def service(name: str, seen: Seen | Share | Turns) -> Service:
    it = Service(name)

    @it.on(NewOrderPlaced)
    async def handle(order: NewOrderPlaced) -> None:
        seen.take(order)

    return it


async def declare(job: Job) -> None:
    """The queues of all measurements, as our services have them."""
    transport = RabbitMQ(settings(job), logger(settings(job)), "bench")
    await transport.connect()
    for queue in job.queues:
        bindings = job.options.get("bindings", 1)
        keys = [KEY, *(f"other{n}.placed" for n in range(bindings - 1))]
        await transport.declare(service_topology(queue, keys, "events"))
    await transport.close()


def message(job: Job) -> None:
    """An event as `Broker` publishes it, for the limit."""
    its = open_broker(job)
    made = its.message(its._publication(NewOrderPlaced(**fields(0, job.padding)), None, None))
    job.result = {"body": made.body.decode(), "content_type": made.content_type, "type": made.type}
    job.result |= {"app_id": made.app_id, "correlation_id": made.correlation_id}
