"""A RabbitMQ of a test's own, real or played, and the processes in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic
from typing import Any

from pydantic import SecretStr

from broker import Broker, Service, Settings
from broker.logs import logger
from broker.memory import Memory, Server
from broker.rabbitmq import RabbitMQ
from broker.service import serve
from broker.subscriber import Subscriber
from broker.topology import Topology, dead_queue
from broker.transport import Consumer, Delivery, Message, Transport
from tests.waiting import until


class Taken:
    """Deliveries of one consumer, in order, unsettled until the test settles them."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.consumer: Consumer | None = None

    def __len__(self) -> int:
        return len(self.deliveries)

    def __getitem__(self, at: int) -> Delivery:
        return self.deliveries[at]

    async def reach(self, count: int) -> None:
        """Wait until there are that many; there must not be more."""
        await until(lambda: len(self) >= count)
        assert len(self) == count, self.bodies

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.message.body for delivery in self.deliveries]

    async def cancel(self) -> None:
        assert self.consumer is not None
        await self.consumer.cancel()


class World:
    """Processes come and go in it; all share one RabbitMQ. In memory its clock runs with the real one."""

    def __init__(self, url: str | None, *, direct: bool = True) -> None:
        self.url = url
        self.direct = direct
        self.server = Server()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> World:
        if self.url is None:
            ticking = asyncio.create_task(self._tick())
            self._stack.callback(ticking.cancel)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def _tick(self) -> None:
        began = monotonic()
        while True:
            self.server.move_to(monotonic() - began)
            await asyncio.sleep(0.005)

    @property
    def now(self) -> float:
        """Seconds on the clock by which retry queues give back."""
        return self.server.now if self.url is None else monotonic()

    def settings(self, **changes: Any) -> Settings:
        url = {} if self.url is None else {"url": SecretStr(self.url)}
        return Settings(**(url | {"publish_timeout": 30.0, "direct": self.direct} | changes))

    def unconnected(self, name: str = "test", **settings: Any) -> Transport:
        """A transport that is closed when the test ends."""
        made = self.settings(**settings)
        on_rabbitmq = self.url is not None
        transport = RabbitMQ(made, logger(made, service=name), name) if on_rabbitmq else Memory(self.server, made)
        self._stack.push_async_callback(transport.close)
        return transport

    async def transport(self, name: str = "test", *, declare: Topology | None = None, **settings: Any) -> Transport:
        """A connected transport, as one process has it."""
        transport = self.unconnected(name, **settings)
        await transport.connect()
        if declare is not None:
            await transport.declare(declare)
        return transport

    async def broker(self, source: str = "test", **settings: Any) -> Broker:
        """An open broker."""
        made = self.settings(**settings)
        transport = self.unconnected(source, **settings)
        return await self._stack.enter_async_context(Broker(source=source, settings=made, transport=transport))

    @asynccontextmanager
    async def serve(
        self, service: Service, *, backfill: str | None = None, **settings: Any
    ) -> AsyncIterator[Subscriber]:
        """A process of a service."""
        made = self.settings(**settings)
        transport = self.unconnected(service.name, **settings)
        log = logger(made, service=service.name)
        async with serve(service, made, log, transport, backfill=backfill) as standing:
            assert standing.subscriber is not None
            yield standing.subscriber

    async def take(
        self, queue: str, *, by: Transport | None = None, prefetch: int = 100, offset: str | None = None
    ) -> Taken:
        """Consume a queue, settling nothing."""
        taken = Taken()
        transport = by or await self.transport(f"{queue} taken")
        taken.consumer = await transport.consume(queue, taken.deliveries.append, prefetch=prefetch, offset=offset)
        return taken

    async def events(self) -> Taken:
        """The events in the log, from its beginning on; not what became of them."""
        taken = Taken()

        def receive(delivery: Delivery) -> None:
            if delivery.message.exchange == "events":
                taken.deliveries.append(delivery)

        transport = await self.transport("events taken")
        taken.consumer = await transport.consume("events.log", receive, prefetch=100, offset="first")
        return taken

    async def dead(self, service: str) -> Taken:
        """A service's dead letters as they come. The service must have started once."""
        return await self.take(dead_queue(service))

    async def send(self, message: Message) -> None:
        """Publish a message as it is."""
        transport = await self.transport("sender")
        await transport.publish(message, mandatory=True, timeout=30)
