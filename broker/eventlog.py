"""The event log, read: every event for as long as RabbitMQ keeps it, and what became of it in each service.

A stream hands its messages to any reader, from any place on, and keeps them. Numbers below are stream offsets: each
message has one, they only grow, and the oldest go when the log is truncated.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from broker.envelope import Envelope, decode
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
"""Seconds without a first message, after which there is none: it takes milliseconds."""
CHUNK = 60_000
"""Messages handed out at once, at most: more than a chunk of a stream has."""
LOOK_EVERY = 500
"""Messages after which the place in the log is looked up: it stands in a header, and reading that costs."""


class Handling(BaseModel):
    """What became of one event in one service, once.

    Attributes:
        attempt: from 1 on.
        took: seconds.
        handler: the function's name; None if there was none.
        error: why it did not succeed.
        delay: after which it is handled again.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    service: str = ""
    event_id: UUID
    correlation_id: UUID
    name: str
    outcome: Outcome
    attempt: Annotated[int, Field(ge=1)]
    started: AwareDatetime
    took: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    handler: str | None = None
    error: str | None = None
    delay: str | None = None


class _Handlings(BaseModel):
    """One message of them."""

    model_config = ConfigDict(extra="ignore")

    service: str
    handlings: list[Handling]


class Entry:
    """One message of the log. Nothing in it is trusted, and nothing of it is decoded before it is asked for."""

    def __init__(self, delivery: Delivery, handled_exchange: str) -> None:
        self._delivery = delivery
        self._handled_exchange = handled_exchange

    @cached_property
    def message(self) -> Message | None:
        """As it lies there; None when its properties cannot be decoded."""
        try:
            return self._delivery.message
        except Malformed:
            return None

    @cached_property
    def offset(self) -> int | None:
        """Its number in the log."""
        number = self.message.headers.get("x-stream-offset") if self.message is not None else None
        return number if isinstance(number, int) else None

    @property
    def is_handlings(self) -> bool:
        """Whether it tells of handlings; else it is an event, or foreign."""
        return self.message is not None and self.message.exchange == self._handled_exchange

    @cached_property
    def envelope(self) -> Envelope:
        """The event.

        Raises:
            Malformed: it is none, or cannot be read.
        """
        message = self._delivery.message
        return decode(message.body, key=message.key, content_type=message.content_type, headers=message.headers)

    @cached_property
    def handlings(self) -> list[Handling]:
        """The handlings it tells of.

        Raises:
            Malformed: it cannot be read.
        """
        try:
            found = _Handlings.model_validate_json(self._delivery.message.body)
        except (ValidationError, RecursionError) as error:
            raise Malformed(f"no handlings: {type(error).__name__}") from None
        return [it.model_copy(update={"service": found.service}) for it in found.handlings]


@dataclass(frozen=True, slots=True)
class Span:
    """What the log holds at a moment: from ``first`` on, up to before ``end``."""

    first: int
    end: int


class EventLog:
    """The log, over one connection."""

    def __init__(self, transport: Transport, settings: Settings) -> None:
        self._transport = transport
        self._settings = settings
        self.name = settings.event_log

    async def span(self) -> Span:
        """What it holds now.

        Raises:
            ContractError: there is no event log.
            ConnectionFailed: RabbitMQ went away.
        """
        count = await self._transport.count(self.name)  # it lags by some seconds
        if count is None:
            raise ContractError(
                f"RabbitMQ has no event log {self.name!r}. A service or `Broker` that may declares it when it starts, "
                "unless BROKER_LOG=off."
            )
        last = await self._glance("last", prefetch=CHUNK, patience=PATIENCE if count else EMPTY)
        if count and not last:
            raise ConnectionFailed(f"The event log {self.name!r} hands out nothing, though it holds {count} messages.")
        first = await self._glance("first", patience=PATIENCE) if last else []
        return Span(first[0], last[-1] + 1) if first else Span(0, 0)

    async def place(self, begin: Offset) -> int:
        """The number of the first message from a place on; the log's end, if there is none yet. Raises as `span` does.

        A time is rounded down, as `read` says.
        """
        span = await self.span()
        if isinstance(begin, int):
            return min(max(begin, span.first), span.end)
        found = await self._glance(begin) if span.end else []
        return found[0] if found else span.end

    async def _glance(self, begin: Offset, *, prefetch: int = 1, patience: float = EMPTY) -> list[int]:
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
        return [Entry(delivery, self._settings.handlings_exchange).offset or 0 for delivery in arrived]

    async def read(self, begin: Offset = "first", *, end: int | None = None) -> AsyncGenerator[Entry]:
        """Its messages from a place on, up to before ``end``; without one for ever, as they come.

        A time is rounded down: RabbitMQ begins some messages before. After a reconnect it goes on where it was.

        Raises:
            ConnectionFailed: the log hands out nothing, though there should be something.
        """
        arrived: deque[Delivery] = deque()
        waiting: asyncio.Future[None] | None = None

        def take(delivery: Delivery) -> None:
            arrived.append(delivery)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

        if end is not None and isinstance(begin, int) and begin >= end:
            return
        consumer = await self._transport.consume(self.name, take, prefetch=IN_HAND, offset=begin, careful=False)
        seen, entry = 0, None
        try:
            while True:
                if not arrived:
                    if end is not None and entry is not None and (entry.offset or 0) >= end - 1:
                        return
                    waiting = asyncio.get_running_loop().create_future()
                    await self._wait(waiting, patience=None if end is None else PATIENCE)
                    continue
                delivery = arrived.popleft()
                entry = Entry(delivery, self._settings.handlings_exchange)
                await delivery.ack()
                seen += 1
                if isinstance(begin, int) and seen <= IN_HAND and (entry.offset or begin) < begin:
                    continue  # a chunk begins before
                if end is not None and seen % LOOK_EVERY == 0 and (entry.offset or 0) >= end:
                    return
                yield entry
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
async def open_log(settings: Settings, name: str = "log") -> AsyncIterator[EventLog]:
    """The event log.

    Args:
        name: names the connection in the management UI.

    Raises:
        ContractError: it is switched off.
        ConnectionFailed, AccessRefused, TopologyConflict: as connecting does.
    """
    if not settings.log:
        raise ContractError("The event log is switched off (BROKER_LOG). Switch it on everywhere.")
    transport = rabbitmq(settings, logger(settings), name)
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
