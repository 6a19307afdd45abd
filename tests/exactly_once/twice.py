"""Every tenth event is delivered twice: the run reads them all, and publishes that one's very same bytes again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from random import Random
from uuid import UUID

from pydantic import SecretStr

from broker import BrokerError, Settings
from broker.envelope import Envelope, decode
from broker.logs import logger
from broker.rabbitmq import RabbitMQ
from broker.topology import service_topology
from broker.transport import Delivery, Message
from tests.exactly_once.plan import delay

SPY = "spy"
"""The run's own queue, bound to everything."""
EVERY = 10
LAST = "run.ended"
"""The key of what is published last of all, so that a reader of the log knows where to stop."""


@asynccontextmanager
async def transport(url: str) -> AsyncIterator[RabbitMQ]:
    """A connected transport of the run's own."""
    settings = Settings(url=SecretStr(url), publish_timeout=60, connect_timeout=60, logging_level="error")
    opened = RabbitMQ(settings, logger(settings), SPY)
    try:
        await opened.connect()
        yield opened
    finally:
        await opened.close()


class Twice:
    """Reads every event, and delivers each tenth again.

    Args:
        opened: publishes and consumes.
        random: decides how long after its first delivery.

    Attributes:
        seen: the events met, by source and id.
        again: those that were published again.
    """

    def __init__(self, opened: RabbitMQ, random: Random) -> None:
        self._transport = opened
        self._random = random
        self._under_way: set[asyncio.Task[None]] = set()
        self.seen: set[tuple[str, UUID]] = set()
        self.again: set[tuple[str, UUID]] = set()

    async def start(self) -> None:
        """Declare the queue, and begin."""
        await self._transport.declare(service_topology(SPY, ["#"], "events"))
        await self._transport.consume(SPY, self._receive, prefetch=200)

    @property
    def pending(self) -> int:
        """How many have not been acknowledged."""
        return len(self._under_way)

    def _receive(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._handle(delivery))
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.result()  # an error of the run's own ends in its event loop's hands, and is shown

    async def _handle(self, delivery: Delivery) -> None:
        message = delivery.message
        if message.key != LAST:
            envelope = read(message)
            event = (envelope.source, envelope.id)
            new = event not in self.seen
            self.seen.add(event)
            if new and len(self.seen) % EVERY == 0:
                await asyncio.sleep(delay(self._random))
                await self._publish(message)
                self.again.add(event)
        await delivery.ack()

    async def _publish(self, message: Message) -> None:
        while True:
            try:
                await self._transport.publish(message, mandatory=True, timeout=60)
            except BrokerError:
                continue  # it may be stored: then it is delivered three times
            return


def read(message: Message) -> Envelope:
    """What an event's message says."""
    return decode(message.body, key=message.key, content_type=message.content_type, headers=message.headers)


class Log:
    """What the event log holds.

    Attributes:
        events: each event once, by its source and id.
        messages: how many messages they are.
    """

    def __init__(self) -> None:
        self.events: dict[tuple[str, UUID], Envelope] = {}
        self.messages = 0

    def of(self, *keys: str) -> Iterator[tuple[tuple[str, UUID], Envelope]]:
        """The events under these keys."""
        return ((event, envelope) for event, envelope in self.events.items() if envelope.key in keys)

    @property
    def subjects(self) -> Counter[tuple[str, str]]:
        """How many different events there are of each key and subject."""
        return Counter((envelope.key, envelope.subject or "") for envelope in self.events.values())


async def read_log(opened: RabbitMQ) -> Log:
    """Read the event log from its beginning to its end."""
    await opened.publish(Message(exchange="events", key=LAST, body=b""), mandatory=True, timeout=60)
    log, arrived = Log(), asyncio.Queue[Delivery]()
    await opened.consume("events.log", arrived.put_nowait, prefetch=1000, offset="first")
    async with asyncio.timeout(120):
        while True:
            delivery = await arrived.get()
            await delivery.ack()
            if delivery.message.key == LAST:
                return log
            if delivery.message.exchange != "events":  # what became of them
                continue
            envelope = read(delivery.message)
            log.messages += 1
            log.events.setdefault((envelope.source, envelope.id), envelope)
