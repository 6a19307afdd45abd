"""pika's SelectConnection, pipelined by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pika
from pika.channel import Channel
from pika.spec import Basic, BasicProperties

from bench.job import PREFETCH, Job, Seen
from bench.order import KEY, Order, fields

WINDOW = 1000
PROPERTIES = BasicProperties(content_type="application/json", delivery_mode=2)


def run(job: Job, ready: Callable[[Any, Channel], None]) -> None:
    """Connect, open a channel, and call ``ready`` with both; ends when somebody closes the connection."""

    def opened(connection: Any) -> None:
        connection.channel(on_open_callback=lambda channel: ready(connection, channel))

    connection = pika.SelectConnection(
        pika.URLParameters(job.url),
        on_open_callback=opened,
        on_close_callback=lambda connection, _: connection.ioloop.stop(),
    )
    connection.ioloop.start()


def send(channel: Channel, order: Order) -> None:
    channel.basic_publish("events", KEY, order.model_dump_json().encode(), PROPERTIES)


def pipelined(job: Job, window: int) -> None:
    orders = [Order(**order) for order in job.orders]
    sent, answered, times = 0, 0, [0.0] * (len(orders) + 1)
    began = (0.0, 0.0)

    def ready(connection: Any, channel: Channel) -> None:
        nonlocal began

        def fill() -> None:
            nonlocal sent
            while sent < len(orders) and sent - answered < window:
                times[sent + 1] = time.perf_counter()
                send(channel, orders[sent])
                sent += 1

        def confirmed(frame: Any) -> None:
            nonlocal answered
            assert isinstance(frame.method, Basic.Ack)
            answered = frame.method.delivery_tag
            times[answered] = time.perf_counter() - times[answered]
            if answered < len(orders):
                fill()
                return
            job.took(time.perf_counter() - began[0], time.process_time() - began[1], len(orders))
            connection.close()

        channel.confirm_delivery(confirmed)
        began = (time.perf_counter(), time.process_time())
        fill()

    run(job, ready)
    if window == 1:
        job.latencies(times[1:])


def publish(job: Job) -> None:
    pipelined(job, WINDOW)


def one_by_one(job: Job) -> None:
    pipelined(job, 1)


def paced(job: Job) -> None:
    def ready(connection: Any, channel: Channel) -> None:
        began, sent, answered = time.perf_counter(), 0, 0

        def tick() -> None:
            nonlocal sent
            while sent < job.count and time.perf_counter() >= began + sent / job.rate:
                send(channel, Order(**fields(sent), sent=time.monotonic_ns()))
                sent += 1
            if sent < job.count:
                connection.ioloop.call_later(max(0.0, began + sent / job.rate - time.perf_counter()), tick)

        def confirmed(frame: Any) -> None:
            nonlocal answered
            answered = frame.method.delivery_tag
            if answered == job.count:
                job.result |= {"events": job.count}
                connection.close()

        channel.confirm_delivery(confirmed)
        tick()

    run(job, ready)


def consume(job: Job) -> None:
    seen = Seen(job)

    def ready(connection: Any, channel: Channel) -> None:
        def handle(channel: Channel, method: Basic.Deliver, _: BasicProperties, body: bytes) -> None:
            seen.take(Order.model_validate_json(body))
            channel.basic_ack(method.delivery_tag)
            if seen.all.is_set():
                connection.close()

        channel.basic_qos(prefetch_count=PREFETCH)
        for queue in job.queues:
            channel.basic_consume(queue, handle)

    run(job, ready)
