"""The event log, read: every event for as long as RabbitMQ keeps it, and what became of it in each service.

A stream hands its messages to any reader, from any place on, and keeps them. Numbers below are stream offsets: each
message has one, they only grow, here and there one is missing, and the oldest go when the log is truncated. A time is a
place, too: what was stored then, to a second, and later, by RabbitMQ's clock, whatever the messages say of themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import accumulate
from math import inf
from time import monotonic
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from broker.envelope import STRUCTURED, Envelope, decode
from broker.errors import ConnectionFailed, ContractError, Malformed
from broker.handlings import Outcome
from broker.logs import logger
from broker.publisher import rabbitmq
from broker.settings import Settings
from broker.transport import Delivery, Message, Offset, Transport

IN_HAND = 2000
"""Messages in memory at a time."""
PATIENCE = 30.0
"""Seconds without a message, where there are some, after which something is wrong."""
EMPTY = 1.0
"""Seconds without a first message, after which there is none, of a RabbitMQ that otherwise answers in milliseconds."""
SLOW = 20
"""How much longer a first message may take than another answer took just before."""
CHUNK = 60_000
"""Messages handed out at once, at most: more than a chunk of a stream has."""


class Handling(BaseModel):
    """What became of one event in one service, once.

    Attributes:
        attempt: from 1 on.
        took: seconds.
        handler: the function's name; None if there was none.
        error: why it did not succeed.
        delay: after which it is handled again.
    """

    model_config = ConfigDict(frozen=True)

    service: str
    event_id: UUID
    correlation_id: UUID
    name: str
    outcome: Outcome
    attempt: int
    started: datetime
    took: float
    handler: str | None = None
    error: str | None = None
    delay: str | None = None


def _times(differences: list[int]) -> list[int]:
    """Microseconds since 1970, of what is told as differences."""
    times = list(accumulate(differences))
    if times and not 0 <= min(times) <= max(times) <= 221_845_392_000_000_000:
        raise ValueError("a time before 1970 or after 9000")  # people add times up, and Python ends in 9999
    return times


Times = Annotated[list[int], AfterValidator(_times)]
Took = Annotated[int, Field(ge=0, le=10**15)]
"""Microseconds: 30 years at most."""


class _Alike(BaseModel):
    """Handlings that ended in the same way, as `broker.handlings` writes them."""

    model_config = ConfigDict(extra="ignore")

    name: str
    outcome: Outcome
    attempt: Annotated[int, Field(ge=1)]
    handler: str | None = None
    error: str | None = None
    delay: str | None = None
    events: list[UUID]
    stories: list[UUID | None]
    began: Times
    took: list[Took]


class _Handlings(BaseModel):
    """One message of them."""

    model_config = ConfigDict(extra="ignore")

    service: str
    handlings: list[_Alike]

    def each(self) -> Iterator[Handling]:
        """One by one."""
        for alike in self.handlings:
            common = alike.model_dump(exclude={"events", "stories", "began", "took"})
            for event_id, story, began, took in zip(alike.events, alike.stories, alike.began, alike.took, strict=True):
                yield Handling(
                    service=self.service,
                    event_id=event_id,
                    correlation_id=story or event_id,
                    started=datetime.fromtimestamp(0, UTC) + timedelta(microseconds=began),
                    took=took / 1e6,
                    **common,
                )


class Entry:
    """One message of the log. Nothing in it is trusted, and nothing of it is decoded before it is asked for."""

    def __init__(self, delivery: Delivery, handled_exchange: str) -> None:
        self._delivery = delivery
        self._handled_exchange = handled_exchange
        self._message: Message | None = None

    @property
    def message(self) -> Message | None:
        """As it lies there; None when its properties cannot be decoded."""
        if self._message is None:
            try:
                self._message = self._delivery.message
            except Malformed:
                return None
        return self._message

    @property
    def offset(self) -> int | None:
        """Its number in the log."""
        return self._delivery.number

    def may_hold(self, text: bytes) -> bool:
        """Whether a text may stand in it, in small letters or capitals: looked for before anything is decoded. A
        structured event has it in its body, a binary one among its headers."""
        message = self.message
        if message is None or text in message.body or text.lower() in message.body.lower() or b"\\u" in message.body:
            return True  # what is escaped may be anything
        if (message.content_type or "").startswith(STRUCTURED) or not message.headers:
            return False
        wanted = text.decode().lower()
        values = message.headers.values()
        return any(isinstance(it, bytes) or (isinstance(it, str) and wanted in it.lower()) for it in values)

    @property
    def is_ascii(self) -> bool:
        """Whether small letters are told from capitals as in English: elsewhere, ß is the small letter of SS."""
        message = self.message
        return message is not None and message.body.isascii() and not any(
            isinstance(it, str) and not it.isascii() for it in message.headers.values()
        )  # fmt: skip

    @property
    def is_handlings(self) -> bool:
        """Whether it tells of handlings; else it is an event, or foreign."""
        message = self.message
        return message is not None and message.exchange == self._handled_exchange

    @cached_property
    def envelope(self) -> Envelope:
        """The event.

        Raises:
            Malformed: it is none, or cannot be read.
        """
        message = self._delivery.message
        return decode(message.body, key=message.key, content_type=message.content_type, headers=message.headers)

    @cached_property
    def time(self) -> datetime | None:
        """When it was published, as it says itself; None if it does not."""
        now = datetime.now(UTC)
        try:
            if not self.is_handlings and self.envelope.time < now:  # else it says nothing, or its clock is ahead
                return self.envelope.time
        except Malformed:
            pass
        return self.message.timestamp if self.message is not None else None

    @cached_property
    def handlings(self) -> list[Handling]:
        """The handlings it tells of.

        Raises:
            Malformed: it cannot be read.
        """
        try:
            return list(_Handlings.model_validate_json(self._delivery.message.body).each())
        except (ValueError, RecursionError) as error:  # pydantic's, or columns of different lengths
            raise Malformed(f"no handlings: {type(error).__name__}") from None


@dataclass(frozen=True, slots=True)
class Span:
    """What the log holds at a moment: from ``first`` on, up to before ``end``."""

    first: int
    end: int


class EventLog:
    """The log, over one connection."""

    def __init__(self, transport: Transport, settings: Settings) -> None:
        self._transport = transport
        self._handled_exchange = settings.handlings_exchange
        self._log = logger(settings)
        self.name = settings.event_log

    async def span(self) -> Span:
        """What it holds now.

        Raises:
            ContractError: there is no event log.
            ConnectionFailed: RabbitMQ went away.
        """
        asked = monotonic()
        count = await self._transport.count(self.name)  # of some seconds ago, and of more than messages
        took = monotonic() - asked
        if count is None:
            raise ContractError(
                f"RabbitMQ has no event log {self.name!r}. A service or `Broker` that may declares it when it starts, "
                "unless BROKER_LOG=off. Are BROKER_EXCHANGE and the virtual host right?"
            )
        last = await self._glance("last", prefetch=CHUNK, patience=PATIENCE if count else EMPTY + SLOW * took)
        if count and not last:
            raise ConnectionFailed(f"The event log {self.name!r} hands out nothing, though it holds {count} messages.")
        first = await self._glance("first", patience=PATIENCE) if last else []
        return Span(first[0], last[-1] + 1) if first else Span(0, 0)

    async def place(self, begin: Offset) -> int:
        """The number of the first message from a place on; the log's end, if there is none yet. Raises as `span` does.

        A time is rounded down to a second.
        """
        span = await self.span()
        if isinstance(begin, int):
            return min(max(begin, span.first), span.end)
        if begin == "next" or not span.end:
            return span.end
        if isinstance(begin, str) or begin.timestamp() < 1:
            return span.first
        asked = monotonic()
        await self._glance("last", patience=PATIENCE)
        found = await self._glance(begin, patience=EMPTY + SLOW * (monotonic() - asked))
        return found[0] if found else span.end

    async def time_at(self, number: int) -> datetime | None:
        """When the message with a number was published, as it says itself; None if it does not, or is not there."""
        async with aclosing(self.read(number, end=number + 1)) as entries:
            async for entry in entries:
                return entry.time
        return None

    async def _glance(self, begin: Offset, *, patience: float, prefetch: int = 1) -> list[int]:
        """The numbers of what is handed out at once from a place on: the rest of a chunk comes before the goodbye."""
        arrived: list[Delivery] = []
        some = asyncio.Event()

        def take(delivery: Delivery) -> None:
            arrived.append(delivery)
            some.set()

        consumer = await self._transport.consume(self.name, take, prefetch=prefetch, offset=begin, careful=False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await some.wait()
        await consumer.cancel()
        for delivery in arrived:
            await delivery.ack()
        return [delivery.number for delivery in arrived if delivery.number is not None]

    async def read(
        self, begin: Offset = "first", *, end: int | None = None, in_hand: int = IN_HAND
    ) -> AsyncGenerator[Entry]:
        """Its messages from a place on, up to before ``end``; without one for ever, as they come.

        After a reconnect it goes on where it was.

        Args:
            begin: a time is rounded down to a second.
            end: a number, no later than the log's end.
            in_hand: messages in memory at a time: few for one who reads slowly.

        Raises:
            ConnectionFailed: the log hands out nothing, though there should be something.
        """
        if begin == "next" or (end is not None and not isinstance(begin, int)):
            begin = await self.place(begin)  # so that a reconnect before the first message misses nothing
        stop = inf if end is None else end
        if isinstance(begin, int) and begin >= stop:
            return
        arrived: deque[Delivery] = deque()
        waiting: asyncio.Future[None] | None = None

        def take(delivery: Delivery) -> None:
            arrived.append(delivery)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

        consumer = await self._transport.consume(self.name, take, prefetch=in_hand, offset=begin, careful=False)
        if end is None:
            self._log.info("consuming", queue=self.name)
        try:
            while True:
                if not arrived:
                    waiting = asyncio.get_running_loop().create_future()
                    await self._wait(waiting, patience=None if end is None else PATIENCE)
                near = (arrived[-1].number or 0) >= stop - 1  # else the end is not among these
                for _ in range(len(arrived)):
                    delivery = arrived.popleft()
                    await delivery.ack()
                    number = (delivery.number or 0) if near else -1
                    if number < stop:
                        yield Entry(delivery, self._handled_exchange)
                    if number >= stop - 1:
                        return
        finally:
            await consumer.cancel()
            for delivery in arrived:
                await delivery.ack()

    async def _wait(self, waiting: asyncio.Future[None], patience: float | None) -> None:
        try:
            async with asyncio.timeout(patience):
                await waiting
        except TimeoutError:
            why = "; ".join(self._transport.problems()) or "RabbitMQ hands out nothing of it"
            raise ConnectionFailed(f"Reading the event log {self.name!r} ended early: {why}. Run it again.") from None


@asynccontextmanager
async def open_log(settings: Settings, name: str = "log", *, declare: bool = False) -> AsyncIterator[EventLog]:
    """The event log.

    Args:
        name: names the connection in the management UI.
        declare: declare it, if nobody has: for one who watches before anything happens.

    Raises:
        ContractError: it is switched off.
        ConnectionFailed, AccessRefused, TopologyConflict: as connecting does.
    """
    if not settings.log:
        raise ContractError("The event log is switched off (BROKER_LOG). Switch it on everywhere.")
    transport = rabbitmq(settings, logger(settings), name, looks=not declare)
    try:
        await transport.connect()
        yield EventLog(transport, settings)
    finally:
        await transport.close()


def time_of(event_id: UUID) -> datetime | None:
    """When a time-ordered id (UUIDv7) was made; None for another one."""
    if event_id.version != 7:
        return None
    try:
        return datetime.fromtimestamp((event_id.int >> 80) / 1000, UTC)
    except ValueError:  # after the year 9999
        return None
