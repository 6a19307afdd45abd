"""A RabbitMQ, a publisher process and subscriber processes, a fault, and the books balanced at the end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, TypeAlias

import aiormq
import httpx
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp import commands as amqp
from pydantic import BaseModel, SecretStr

from broker import Broker, Malformed, Settings
from broker.logs import logger
from broker.rabbitmq import RabbitMQ
from broker.rabbitmq.link import FAILURES
from broker.tools.container import ContainerNode
from broker.tools.management import Management
from broker.tools.node import Node
from broker.topology import dead_queue, service_topology
from broker.transport import Delivery
from tests.acceptance.running import ROOT, Process, environment
from tests.faults.counting import NAME
from tests.faults.kept import Kept
from tests.faults.ledger import Books
from tests.faults.numbers import NumberDrawn, NumberSeen, id_of_number
from tests.faults.told import VARIABLE, Handling, Publishing, read
from tests.waiting import until

AnyNode: TypeAlias = Node | ContainerNode

IN_FLIGHT = 1000
"""Events published and not handled when a fault begins, at least."""
SOURCES = ("drawing", NAME, "test")
"""Who publishes numbers: the publisher, the subscriber, and tests themselves."""
PREFETCH = 100
"""Deliveries that a subscriber holds, at most."""
SETTLING = 60.0
"""Seconds after the last publish within which everything is handled or dead."""


class World:
    """One row of the matrix.

    Args:
        node: the RabbitMQ, which the row may stop, kill, freeze.
        url: a virtual host of its own there.
        management: of that virtual host.
        folder: for the records.
        direct: whether what it runs has own frames.
    """

    def __init__(self, node: AnyNode, url: str, management: Management, folder: Path, *, direct: bool = True) -> None:
        self.node = node
        self.url = url
        self.management = management
        self.folder = folder
        self.direct = direct
        self.publisher: Kept | None = None
        self.subscribers: list[Kept] = []
        self.foreign: list[DeliveredMessage] = []
        """Dead letters that are none of the numbers."""
        self.removed = 0
        """Messages that the test, as an operator, deleted; RabbitMQ counted them."""
        self.result: dict[str, Any] = {}
        self._output = itertools.count()
        self._began: float | None = None
        self._ended: float | None = None
        self._moments = False

    # -- processes -----------------------------------------------------------------------------------------------

    def _process(self, module: str, told: BaseModel, url: str | None, settings: dict[str, str] | None) -> Process:
        told_to = {"BROKER_LOGGING_LEVEL": "info", VARIABLE: told.model_dump_json()} | (settings or {})
        told_to["BROKER_DIRECT"] = "on" if self.direct else "off"
        words = (sys.executable, "-m", f"tests.faults.{module}", str(self.folder))
        output = self.folder / f"output-{next(self._output)}"
        return Process(words, ROOT, environment(url or self.url, **told_to), output)

    def publish(
        self, told: Publishing | None = None, *, url: str | None = None, settings: dict[str, str] | None = None
    ) -> Kept:
        """Start the publisher process."""
        told = told or Publishing()
        self.publisher = Kept(lambda: self._process("publishing", told, url, settings))
        return self.publisher

    def subscribe(
        self, told: Handling | None = None, *, url: str | None = None, settings: dict[str, str] | None = None
    ) -> Kept:
        """Start a subscriber process, one more of the same service."""
        told = told or Handling()
        self.subscribers.append(Kept(lambda: self._process("counting", told, url, settings)))
        return self.subscribers[-1]

    async def reasons(self, port: int) -> list[str]:
        """Why a process is not ready, by its health."""
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{port}/ready")
        return list(answer.json()["reasons"])

    @property
    def subscriber(self) -> Kept:
        """The first subscriber process."""
        return self.subscribers[0]

    async def begin(
        self,
        publishing: Publishing | None = None,
        handling: Handling | None = None,
        *,
        publisher_url: str | None = None,
        subscriber_url: str | None = None,
        works: bool = True,
        settings: dict[str, str] | None = None,
    ) -> None:
        """Declare the queue, publish a backlog into it, and start a subscriber on it; from then on both work.

        Args:
            publishing: how the publisher behaves.
            handling: how the subscriber behaves.
            publisher_url: where it connects; None: directly.
            subscriber_url: the same.
            works: wait until the subscriber handles.
            settings: of both.
        """
        publishing = publishing or Publishing()
        await self.declare()
        self.publish(publishing, url=publisher_url, settings=settings)
        await until(lambda: len(self.numbers("confirmed")) >= publishing.backlog * 0.8, 60)
        self.subscribe(handling, url=subscriber_url, settings=settings)
        if works:
            await until(lambda: len(read(self.folder / "handled")) >= 20, 60)

    async def declare(self) -> None:
        """Declare what the service owns, as its first start does."""
        async with self.transport() as transport:
            await transport.declare(service_topology(NAME, ["number.drawn"], "events"))

    # -- what the processes recorded -----------------------------------------------------------------------------

    def numbers(self, record: str) -> list[int]:
        """The numbers in a record, in order."""
        return [int(words[0]) for words in read(self.folder / record)]

    def times(self, record: str) -> list[float]:
        """When its lines were written."""
        return [float(words[-1]) for words in read(self.folder / record)]

    def in_flight(self, at: float) -> int:
        """Events published, or about to be, and not handled, at that time."""

        def until_then(record: str) -> set[str]:
            return {words[0] for words in read(self.folder / record) if float(words[-1]) <= at}

        return len(until_then("attempted") - until_then("handled"))

    async def confirmed(self, more: int = 100) -> None:
        """Wait until so many more are confirmed."""
        goal = len(read(self.folder / "confirmed")) + more
        await until(lambda: len(read(self.folder / "confirmed")) >= goal, 90, every=0.05)

    async def handled(self, more: int = 100) -> None:
        """Wait until so many more are handled."""
        goal = len(read(self.folder / "handled")) + more
        await until(lambda: len(read(self.folder / "handled")) >= goal, 90, every=0.05)

    async def failed(self, more: int) -> None:
        """Wait until so many more publishes have failed."""
        goal = len(read(self.folder / "failed")) + more
        await until(lambda: len(read(self.folder / "failed")) >= goal, 90, every=0.05)

    async def blocked(self) -> None:
        """Wait until the subscriber's event loop has stood still, and runs again."""
        await until(lambda: len(read(self.folder / "blocked")) == 2, 90)

    async def dead(self, count: int, timeout: float = 150.0) -> None:
        """Wait until there are so many dead letters."""

        async def enough() -> bool:
            return sum((await self.counts()).get(dead_queue(NAME), (0, 0))) >= count

        await until(enough, timeout, every=0.3)

    def failures(self) -> set[str]:
        """The classes of the errors that publishes raised."""
        return {words[1] for words in read(self.folder / "failed")}

    async def at_point(self, count: int = 1) -> None:
        """Wait until a process has come to its point, so often."""
        await until(lambda: len(read(self.folder / "point")) >= count, 90)

    def go_on(self) -> None:
        """Let those who wait at a point go on."""
        (self.folder / "go on").touch()

    # -- the fault -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def fault(self, *, moments: bool = False) -> Iterator[None]:
        """The time during which something is wrong.

        Args:
            moments: it consists of faults that are over at once.
        """
        self._begin_fault(monotonic())
        yield
        self._ended = monotonic()
        self._moments = moments

    async def hit(self, times: int) -> None:
        """Wait until a process has been killed at its point so often: that is the fault."""
        await self.at_point(times)
        at = self.times("point")
        self._begin_fault(at[0])
        self._ended = at[-1]

    def _begin_fault(self, at: float) -> None:
        """At least 1,000 events are in flight when it begins."""
        self._began = at
        self.result["in_flight"] = self.in_flight(at)
        assert self.result["in_flight"] >= IN_FLIGHT, f"only {self.result['in_flight']} in flight"

    async def recovered(self, more: int = 100) -> None:
        """Wait until events are confirmed and handled again."""
        await asyncio.gather(self.confirmed(more), self.handled(more))

    def recovery(self) -> float | None:
        """Seconds from the fault's end until confirms and handlings had both come again.

        After faults that are over at once: the longest time without one of them.
        """
        if self._began is None or self._ended is None:
            return None
        ended = self._began if self._moments else self._ended
        return max(
            (
                after - max(before, ended)
                for record in ("confirmed", "handled")
                for before, after in itertools.pairwise(self._times_from(record, self._began))
                if before <= self._ended + 2 and after > ended
            ),
            default=0.0,
        )

    def _times_from(self, record: str, began: float) -> list[float]:
        return [began, *sorted(time for time in self.times(record) if time >= began)]

    # -- as an operator ------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def transport(self) -> AsyncIterator[RabbitMQ]:
        """A connected transport of the test's own."""
        settings = Settings(url=SecretStr(self.url), direct=self.direct, publish_timeout=30, connect_timeout=60)
        transport = RabbitMQ(settings, logger(settings), "test")
        try:
            await transport.connect()
            yield transport
        finally:
            await transport.close()

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[AbstractChannel]:
        """A plain AMQP channel, without confirms."""
        connection = await aiormq.connect(self.url)
        try:
            yield await connection.channel(publisher_confirms=False)
        finally:
            await connection.close()

    @contextlib.asynccontextmanager
    async def removing(self, *, closes: bool = False) -> AsyncIterator[AbstractChannel]:
        """A channel on which an operator removes what is in use.

        What the subscriber held, and what was confirmed meanwhile for the log alone, counts as removed, too.

        Args:
            closes: this connection does not survive it.
        """
        confirmed = len(self.numbers("confirmed"))
        try:
            async with self.channel() as channel:
                yield channel
        except FAILURES:
            if not closes:
                raise
        self.removed += len(self.numbers("confirmed")) - confirmed + PREFETCH

    async def control(self, *arguments: str) -> None:
        """Run ``rabbitmqctl``."""
        await asyncio.to_thread(self.node.control, *arguments)

    async def do(self, verb: str) -> None:
        """Stop, kill, start, pause or resume the node."""
        await asyncio.to_thread(getattr(self.node, verb))

    async def close_connections(self, purpose: str) -> int:
        """Close the connections of that name, as in the management UI; returns how many."""

        async def ours() -> list[str]:
            found = await self.management.connections()
            return [it.name for it in found if purpose in it.client_properties.get("connection_name", "")]

        names = await until(ours)
        for name in names:
            await self.management.close_connection(name)
        return len(names)

    async def gone(self, purpose: str) -> None:
        """Wait until RabbitMQ has given up every connection of that name."""

        async def there() -> bool:
            found = await self.management.connections()
            return any(purpose in it.client_properties.get("connection_name", "") for it in found)

        async def none_left() -> bool:
            return not await there()

        await until(there, every=0.2)  # it is listed a moment after it was made
        await until(none_left, 90, every=0.5)

    async def old_queues(self) -> None:
        """Wait until no queue is young: for 2.5 s none has come.

        RabbitMQ, killed within a second, may bring a queue that young back without what it confirmed.
        """
        seen, since = await self.counts(), monotonic()

        async def none_came() -> bool:
            nonlocal seen, since
            now = await self.counts()
            if now.keys() != seen.keys():
                seen, since = now, monotonic()
            return monotonic() - since > 2.5

        await until(none_came, 60, every=0.2)

    async def counts(self) -> dict[str, tuple[int, int]]:
        """Of each queue, how many messages are ready and unacknowledged."""
        queues = await self.management.queues()
        return {queue.name: (queue.ready, queue.unacked) for queue in queues if queue.type != "stream"}

    # -- the end -------------------------------------------------------------------------------------------------

    async def finish(self, *, waits: bool = False, logged: bool = True, within: float = SETTLING) -> Books:
        """Let the publisher end, wait until all is settled, end the subscribers, and balance the books.

        Args:
            waits: events may stay in retry queues.
            logged: the event log has been there all the time.
            within: seconds after the last publish.
        """
        if self.publisher is not None:
            (self.folder / "stop").touch()
            await self.publisher.ended()
        with contextlib.suppress(AssertionError):  # what has not settled by now shows in the books
            await until(lambda: self._settled(waits=waits), within, every=0.3)
        for subscriber in self.subscribers:
            await subscriber.stop()
        books = await self.books(logged=logged)
        self._conclude(books, logged=logged)
        books.check()
        after = self.missing_after_the_fault(books)
        assert not after, f"lost, and published after the operator was done: {sorted(after)[:20]}"
        return books

    def missing_after_the_fault(self, books: Books) -> set[int]:
        """What an operator removed was published before the fault's end. Nothing that came later may be missing."""
        ended = self._ended or 0.0
        return {int(words[0]) for words in read(self.folder / "attempted") if float(words[-1]) > ended} & books.missing

    async def _settled(self, *, waits: bool) -> bool:
        counts = await self.counts()
        dead = sum(counts.pop(dead_queue(NAME), (0, 0)))
        retrying = sum(sum(count) for name, count in counts.items() if name.startswith(f"{NAME}.retry."))
        unfinished = len(set(self.numbers("confirmed")) - set(self.numbers("handled"))) - dead - self.removed
        if waits:
            return sum(counts.get(NAME, (0, 0))) == 0 and unfinished <= retrying
        return sum(counts.get(NAME, (0, 0))) == 0 and retrying == 0 and unfinished <= 0

    async def books(self, *, logged: bool = True) -> Books:
        """What was recorded, and what RabbitMQ holds. Takes what it reads."""
        waiting: set[int] = set()
        dead: set[int] = set()
        for queue in await self.management.queues():
            if queue.type != "stream" and queue.name.startswith(NAME):
                found = dead if queue.name == dead_queue(NAME) else waiting
                found |= await self._take(queue.name)
        confirmed = frozenset(self.numbers("confirmed"))
        seen = await self._log()
        return Books(
            attempted=frozenset(self.numbers("attempted")),
            confirmed=confirmed,
            refused=frozenset(int(words[0]) for words in read(self.folder / "failed") if words[2] == "no"),
            handled=Counter(self.numbers("handled")),
            waiting=frozenset(waiting),
            dead=frozenset(dead),
            logged=frozenset(seen) if logged else frozenset(seen) | confirmed,
            removed=self.removed,
        )

    async def _take(self, queue: str) -> set[int]:
        """Take all messages of a queue; they must be as many as RabbitMQ counted."""
        numbers: set[int] = set()
        async with self.channel() as channel:
            counted = (await channel.queue_declare(queue, passive=True)).message_count or 0
            for taken in range(counted + 1):
                message = await channel.basic_get(queue, no_ack=True)
                if not isinstance(message.delivery, amqp.Basic.GetOk):
                    assert taken == counted, f"{queue} counts {counted} and holds {taken}"
                    return numbers
                number = _number(message.body)
                if number is None:
                    self.foreign.append(message)
                else:
                    numbers.add(number)
        raise AssertionError(f"{queue} counts {counted} and holds more")

    async def _log(self) -> set[int]:
        """The numbers in the event log, read up to an event published last of all."""
        last = NumberSeen(number=-1)
        async with Broker(self.url, source="test") as broker:
            await broker.publish(last)
        numbers: set[int] = set()
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        async with self.transport() as transport, asyncio.timeout(60):
            await transport.consume("events.log", arrived.put_nowait, prefetch=1000, offset="first")
            while True:
                delivery = await arrived.get()
                await delivery.ack()
                try:
                    message = delivery.message
                except Malformed:
                    continue
                number = _number(message.body)
                if number == -1:
                    return numbers
                if number is not None and message.key == "number.drawn":
                    numbers.add(number)

    def _conclude(self, books: Books, *, logged: bool) -> None:
        failed = Counter(words[1] for words in read(self.folder / "failed"))
        self.result |= {
            "confirmed": len(books.confirmed),
            "handled": len(books.handled),
            "waiting": len(books.waiting),
            "dead": len(books.dead) + len(self.foreign),
            "failed": dict(failed),
            "cancelled": len(self.numbers("cancelled")),
            "twice": books.twice,
            "lost": books.lost,
            "removed": len(books.missing) - books.lost,
            "falsely_confirmed": len(books.falsely_confirmed) if logged else None,
            "recovery": self.recovery(),
            "restarts": sum(len(kept.codes) for kept in self._kept),
        }

    async def close(self) -> None:
        """End every process."""
        for kept in self._kept:
            await kept.close()

    @property
    def _kept(self) -> list[Kept]:
        return [*self.subscribers, *([self.publisher] if self.publisher is not None else [])]


def _number(body: str | bytes) -> int | None:
    """The number in the body of an event of ours; its id must be that number's."""
    try:
        event = json.loads(body)
        number = event["data"]["number"]
        ours = event["source"] in SOURCES
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not ours or not isinstance(number, int):
        return None
    if event["type"] == NumberDrawn.__contract__.name:
        assert event["id"] == str(id_of_number(number)), f"number {number} under another's id"
    return number
