"""Publishing: from an event object to RabbitMQ's confirm.

`Broker` is the Python client. A service publishes what its handlers collected through the same `Broker`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from logging import DEBUG
from types import TracebackType
from typing import Self
from uuid import UUID

from structlog.typing import FilteringBoundLogger

from broker.envelope import CONTENT_TYPE, Story, encode
from broker.errors import ContractError, PublishFailed, TooLarge
from broker.events import LONGEST, Event, id_of
from broker.logs import logger
from broker.settings import Settings
from broker.transport import Message, Transport, Waiter

IN_FLIGHT = 1000
"""How many events `Broker.publish_many` has under way at a time: enough to keep RabbitMQ busy, in bounded memory."""
IN_FLIGHT_BYTES = 32 * 1024 * 1024
"""Bytes of them, but for one that is larger by itself."""
AT_A_TIME = 100
"""How many it begins before it lets others run, and how much room it waits for: so many, or a tenth of the bytes."""


@dataclass(slots=True)
class Publication:
    """An event about to be published, with its id and its place in a story."""

    event: Event
    id: UUID
    story: Story


class Broker:
    """The Python client: publishes business events, each confirmed by RabbitMQ.

    ::

        async with Broker(source="shop") as broker:
            event_id = await broker.publish(NewOrderPlaced(...))

    Args:
        url: RabbitMQ's address, or those of a cluster's nodes; None: ``BROKER_URL``.
        source: who publishes: the name of the service or program. It stands in every event.
        settings: all settings; None: the environment's.
        transport: another way to RabbitMQ, as tests use.

    Raises:
        ContractError: ``source`` is empty or too long.
        pydantic.ValidationError: a setting is wrong.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        source: str,
        settings: Settings | None = None,
        transport: Transport | None = None,
    ) -> None:
        check_source(source)
        settings = settings or Settings()
        if url is not None:
            settings = Settings.model_validate({**settings.model_dump(), "url": url})
        self.settings = settings
        self.source = source
        self._log = logger(settings, service=source)
        self._tells = False
        self._given = transport
        self._transport = transport

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            ConnectionFailed: nobody answered within ``BROKER_CONNECT_TIMEOUT``.
            AccessRefused: login, virtual host or a permission was refused.
            TopologyConflict: the exchange exists and is another one.
        """
        if self._transport is None:
            self._transport = rabbitmq(self.settings, self._log, self.source)
        self._log = self._log.bind()  # structlog's proxy would bind anew for each line
        self._tells = self._log.is_enabled_for(DEBUG)
        try:
            await self._transport.connect()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        transport, self._transport = self._transport, self._given
        if transport is not None:
            await transport.close()

    async def publish(self, event: Event, *, id: UUID | None = None, correlation_id: UUID | None = None) -> UUID:  # noqa: A002
        """Publish one event, and return its id once RabbitMQ has stored it for every subscriber and in the log.

        Args:
            event: what happened.
            id: its id. Unsaid: the event object's own, the same each time it is published.
            correlation_id: the story it belongs to. Unsaid: it begins one, under its own id.

        Raises:
            NotConfirmed: no answer within ``BROKER_PUBLISH_TIMEOUT``; it may be stored. Publish it again.
            PublishRefused: a queue refused it; others may have stored it.
            Unroutable: no queue is bound for it; it is not stored.
            TooLarge: it was not sent.
            AccessRefused: this user may not publish it; it is not stored.
            ContractError: it is not an event, or cannot be written as JSON.
            ConnectionFailed: this broker is not open.
        """
        publication = self._publication(event, id, correlation_id)
        await self.send(publication)
        return publication.id

    async def publish_many(
        self,
        events: Iterable[Event] | AsyncIterable[Event],
        *,
        correlation_id: UUID | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[UUID]:
        """Publish many events, and return their ids in order once all are stored.

        Up to 1000 are under way at a time, and up to 32 MiB of them.

        Events are sent while ``events`` is read: what came before a wrong one, or before the iterable raised, is sent.
        When it is cancelled, what is under way may be stored.

        Args:
            events: read as there is room for more, so they need not fit into memory.
            correlation_id: the story that all of them belong to. Unsaid: each begins one.
            progress: told how many are confirmed so far, after each. What it raises is raised here, once all have an
                answer; it is not called again.

        Raises:
            ExceptionGroup: of what `publish` raises, one for each event that failed; the others are stored. Each
                names its event; those that are a `PublishFailed` carry ``event_id``, too.
            ContractError: one of them is not an event; those after it are not sent.
        """
        batch = Batch(self, progress)
        stopped: Exception | None = None
        try:
            try:
                async for event in _each(events):
                    publication = self._publication(event, None, correlation_id)
                    if batch.add(publication):
                        await batch.room()
            except Exception as error:  # raised below, after what was sent is confirmed
                stopped = error
            await batch.end()
        except BaseException:
            batch.abandoned = True
            raise
        stopped = stopped or batch.raised
        if batch.failures:
            raise ExceptionGroup(
                f"{len(batch.failures)} of {len(batch.ids)} events were not confirmed",
                [*batch.failures, *([stopped] if stopped else [])],
            )
        if stopped is not None:
            raise stopped
        return batch.ids

    def _publication(self, event: Event, event_id: UUID | None, correlation_id: UUID | None) -> Publication:
        check_event(event)
        event_id = event_id or id_of(event)
        return Publication(event, event_id, Story(correlation_id or event_id))

    async def send(self, publication: Publication) -> None:
        """Publish an event whose id and story are decided. Raises as `publish` does."""
        try:
            await self.begin(publication)
        except PublishFailed as error:
            raise self.unconfirmed(publication, error) from None
        self.confirmed(publication)

    def begin(self, publication: Publication) -> Awaitable[None]:
        """Hand an event to the transport. What is awaited ends as `broker.transport.Transport.publish` says."""
        message, transport = self.message(publication), self._open
        return transport.publish(message, mandatory=self.settings.log, timeout=self.settings.publish_timeout)

    def forward(self, message: Message, waiter: Waiter) -> None:
        """Hand over an event that was made to be sent; tells a waiter as `broker.transport.Transport.post` does."""
        self._open.post(message, waiter, mandatory=self.settings.log, timeout=self.settings.publish_timeout)

    @property
    def _open(self) -> Transport:
        if self._transport is None:
            raise ContractError("This broker is not open. Write: async with Broker(source=...) as broker: ...")
        return self._transport

    def confirmed(self, publication: Publication) -> None:
        """Log that an event was published."""
        if self._tells:
            self._log.debug("published", key=publication.event.__contract__.key, **_described(publication))

    def unconfirmed(self, publication: Publication, error: PublishFailed) -> PublishFailed:
        """Log that an event was not confirmed; the error to raise, which names it."""
        self._log.warning("unconfirmed", **_described(publication), error=str(error), stored=error.stored)
        name = publication.event.__contract__.name
        return type(error)(f"{name!r} {publication.id}: {error}", publication.id)

    def message(self, publication: Publication) -> Message:
        """An event as it is sent.

        Raises:
            TooLarge, ContractError: it never will be.
        """
        event, story = publication.event, publication.story
        contract = event.__contract__
        now = datetime.now(UTC)
        try:
            body, correlation = encode(event, event_id=publication.id, source=self.source, time=now, story=story)
        except ValueError as error:  # pydantic's: half a character in a JsonValue, say
            raise ContractError(f"{contract.name!r} {publication.id} cannot be written as JSON: {error}") from None
        if len(body) > self.settings.max_message_bytes:
            raise TooLarge(
                f"{len(body)} bytes are more than BROKER_MAX_MESSAGE_BYTES={self.settings.max_message_bytes}. "
                "Store the bulk elsewhere, and publish where it is."
            )
        return Message(
            self.settings.exchange, contract.key, body, CONTENT_TYPE, contract.name, correlation, self.source, now
        )


class Batch:
    """The events of one `Broker.publish_many`: those under way, and what became of the others.

    Attributes:
        ids: of all that were begun, in order.
        failures: of those that were not confirmed.
        raised: what ``progress`` raised.
        abandoned: nobody waits for those under way any more; they may be stored.
    """

    def __init__(self, broker: Broker, progress: Callable[[int], None] | None) -> None:
        self._broker = broker
        self._progress = progress
        self._under_way = 0
        self._bytes = 0
        self._waiting: asyncio.Future[None] | None = None
        self._enough = self._few_bytes = 0
        self._confirmed = 0
        self.ids: list[UUID] = []
        self.failures: list[Exception] = []
        self.raised: Exception | None = None
        self.abandoned = False

    def add(self, publication: Publication) -> bool:
        """Begin to publish one more. Returns whether it is time to wait for `room`."""
        self.ids.append(publication.id)
        self._under_way += 1
        underway = UnderWay(self, publication)
        try:
            message = self._broker.message(publication)
            underway.size = len(message.body)
            self._bytes += underway.size
            self._broker.forward(message, underway)
        except PublishFailed as error:
            underway.set_exception(error)
        except BaseException:
            self._under_way -= 1
            self._bytes -= underway.size
            raise
        return self._full or len(self.ids) % AT_A_TIME == 0

    @property
    def _full(self) -> bool:
        return self._under_way >= IN_FLIGHT or self._bytes >= IN_FLIGHT_BYTES

    def ended(self, publication: Publication, size: int, error: Exception | None) -> None:
        """One has its answer."""
        self._under_way -= 1
        self._bytes -= size
        if self._under_way <= self._enough and self._bytes <= self._few_bytes and self._waiting is not None:
            if not self._waiting.done():  # else it was cancelled
                self._waiting.set_result(None)
            self._waiting = None
        if error is None:
            self._confirmed += 1
            try:
                self._broker.confirmed(publication)
                if self._progress is not None:
                    self._progress(self._confirmed)
            except Exception as raised:  # theirs; the answers to the others are at hand
                self.raised, self._progress = raised, None
        elif isinstance(error, PublishFailed):
            self.failures.append(self._broker.unconfirmed(publication, error))
        else:
            error.add_note(f"{publication.event.__contract__.name!r} {publication.id}")
            self.failures.append(error)

    async def room(self) -> None:
        """Let others run; return when there is room for more."""
        if self._full:
            await self._until(IN_FLIGHT - AT_A_TIME, IN_FLIGHT_BYTES * 9 // 10)
        else:
            await asyncio.sleep(0)

    async def end(self) -> None:
        """Return when all have an answer."""
        await self._until(0, 0)

    async def _until(self, enough: int, few_bytes: int) -> None:
        if self._under_way > enough or self._bytes > few_bytes:
            self._enough, self._few_bytes = enough, few_bytes
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting


class UnderWay:
    """One event of a batch: told how its publish ended, as a `broker.transport.Waiter`.

    Attributes:
        size: bytes of its body, once that is made.
    """

    __slots__ = ("_batch", "_over", "_publication", "size")

    def __init__(self, batch: Batch, publication: Publication) -> None:
        self._batch = batch
        self._publication = publication
        self._over = False
        self.size = 0

    def done(self) -> bool:
        return self._over or self._batch.abandoned

    def set_result(self, result: None, /) -> None:
        self._over = True
        self._batch.ended(self._publication, self.size, None)

    def set_exception(self, error: Exception, /) -> None:
        self._over = True
        self._batch.ended(self._publication, self.size, error)


def _described(publication: Publication) -> dict[str, str]:
    return {
        "event_name": publication.event.__contract__.name,
        "event_id": str(publication.id),
        "correlation_id": str(publication.story.correlation_id),
    }


def rabbitmq(settings: Settings, log: FilteringBoundLogger, name: str, *, looks: bool = False) -> Transport:
    """The transport over RabbitMQ. aio-pika is imported by those who use it, so that others start faster.

    Args:
        looks: it declares nothing of what all share: for those who look at what there is.
    """
    from broker.rabbitmq import RabbitMQ

    return RabbitMQ(settings, log, name, looks=looks)


def check_event(event: object) -> None:
    """Refuse what is not an event.

    Raises:
        ContractError: naming what it is instead.
    """
    if not isinstance(event, Event) or type(event) is Event:
        raise ContractError(f"Only an Event can be published, not {type(event).__name__}: {event!r:.80}")


def check_source(source: object) -> None:
    """Refuse what cannot be a source.

    Raises:
        ContractError: with what it must be.
    """
    if not isinstance(source, str) or not source or len(source.encode()) > LONGEST or not source.isprintable():
        raise ContractError(f"source= is who publishes, 1 to {LONGEST} printable bytes, not {source!r}.")


async def _each(events: Iterable[Event] | AsyncIterable[Event]) -> AsyncIterable[Event]:
    check_is_not_one(events)
    if isinstance(events, AsyncIterable):
        async for event in events:
            yield event
    else:
        for event in events:
            yield event


def check_is_not_one(events: object) -> None:
    """One event is iterable, too (pydantic models are): refuse it before its fields are published."""
    if isinstance(events, Event):
        raise ContractError("publish_many takes several events; use publish for one.")
