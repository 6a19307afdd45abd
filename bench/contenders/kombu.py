"""kombu, over py-amqp: blocking, one after the other."""

from __future__ import annotations

import time

import kombu

from bench.job import PREFETCH, Job, Seen
from bench.order import KEY, Order


def publish(job: Job) -> None:
    orders, took = [Order(**order) for order in job.orders], []
    with kombu.Connection(job.url, transport_options={"confirm_publish": True}) as connection:
        producer = connection.Producer()
        with job.measured():
            for order in orders:
                began = time.perf_counter()
                producer.publish(
                    order.model_dump_json(), exchange="events", routing_key=KEY, delivery_mode=2,
                    content_type="application/json", content_encoding="utf-8",
                )  # fmt: skip
                took.append(time.perf_counter() - began)
    job.latencies(took)


one_by_one = publish


def consume(job: Job) -> None:
    seen = Seen(job)

    def handle(message: kombu.Message) -> None:
        seen.take(Order.model_validate_json(message.body))
        message.ack()

    with kombu.Connection(job.url) as connection:
        queues = [kombu.Queue(name, no_declare=True) for name in job.queues]
        with connection.Consumer(queues, on_message=handle, prefetch_count=PREFETCH, auto_declare=False):
            while not seen.all.is_set():
                connection.drain_events(timeout=20)
