"""A consumer of RabbitMQ's, and how it begins anew: to take more at a time, or less."""

from __future__ import annotations

from typing import Any

from broker.rabbitmq.transport import RabbitMQConsumer
from broker.transport import Delivery, Receive, Taking
from tests.logged import Lying
from tests.waiting import until


class Channel:
    """One that notes who consumes on it, with which prefetch."""

    is_closed = False

    def __init__(self) -> None:
        self.consumers: dict[str, tuple[int, Receive]] = {}
        self.most = 0
        self._prefetch = 0

    @property
    def channel(self) -> Channel:
        return self

    @property
    def prefetches(self) -> list[int]:
        return [prefetch for prefetch, _ in self.consumers.values()]

    async def basic_qos(self, *, prefetch_count: int) -> None:
        self._prefetch = prefetch_count

    async def consume(self, queue: str, tag: str, receive: Receive, arguments: dict[str, Any] | None) -> None:
        self.consumers[tag] = self._prefetch, receive
        self.most = max(self.most, len(self.consumers))

    async def cancel(self, tag: str) -> None:
        del self.consumers[tag]


async def test_never_do_two_consume_for_one_so_that_the_queue_stays_in_order() -> None:
    """RabbitMQ takes back what it was handing to one that ends; the other would get it after what came later."""
    channel, received = Channel(), list[Delivery]()
    consumer = RabbitMQConsumer(None, "packing", received.append, Taking(prefetch=10))  # type: ignore[arg-type]
    await consumer.start(channel)  # type: ignore[arg-type]
    assert channel.prefetches == [1], "until it is known that RabbitMQ does not give back what kills"
    ((_, receive),) = channel.consumers.values()
    receive(Lying(None))
    await until(lambda: channel.prefetches == [10])
    await consumer.pause("too many failed")
    assert channel.prefetches == [1]
    await consumer.resume()
    assert channel.prefetches == [10]
    await consumer.cancel()
    assert channel.prefetches == []
    assert channel.most == 1
    assert len(received) == 1
