"""Publishing: from an event object to RabbitMQ's confirm.

`Broker` is the Python client. A service publishes what its handlers collected through the same `Broker`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Self
from uuid import UUID

from pydantic import SecretStr
from structlog.typing import FilteringBoundLogger

from broker.envelope import CONTENT_TYPE, Story, encode
from broker.errors import BrokerError, ContractError, PublishFailed, TooLarge
from broker.events import LONGEST, Event, id_of
from broker.logs import logger
from broker.settings import Settings
from broker.transport import Message, Transport

IN_FLIGHT = 500
"""How many events `Broker.publish_many` has under way at a time: enough to keep RabbitMQ busy, in bounded memory."""


@dataclass(frozen=True, slots=True)
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
        url: RabbitMQ's address; None: ``BROKER_URL``.
        source: who publishes: the name of the service or program. It stands in every event.
        settings: all settings; None: the environment's.
        transport: another way to RabbitMQ, as tests use.

    Raises:
        ContractError: ``source`` is empty or too long.
        pydantic.ValidationError: a setting is wrong.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        source: str,
        settings: Settings | None = None,
        transport: Transport | None = None,
    ) -> None:
        if not isinstance(source, str) or not source or len(source.encode()) > LONGEST or not source.isprintable():
            raise ContractError(f"source= is who publishes, 1 to {LONGEST} printable bytes, not {source!r}.")
        settings = settings or Settings()
        if url is not None:
            settings = Settings.model_validate({**settings.model_dump(), "url": SecretStr(url)})
        self.settings = settings
        self.source = source
        self._log = logger(settings, service=source)
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
            ContractError: it is not an event.
            ConnectionFailed: this broker is not open.
        """
        publication = self._publication(event, id, correlation_id)
        await self.send(publication)
        return publication.id

    async def publish_many(
        self, events: Iterable[Event] | AsyncIterable[Event], *, correlation_id: UUID | None = None
    ) -> list[UUID]:
        """Publish many events, up to 500 under way at a time, and return their ids in order once all are stored.

        Events are sent while ``events`` is read: what came before a wrong one, or before the iterable raised, is sent.

        Raises:
            ExceptionGroup: of what `publish` raises, one for each event that failed; the others are stored. Each
                carries ``event_id``.
            ContractError: one of them is not an event; those after it are not sent.
        """
        ids: list[UUID] = []
        failures: list[Exception] = []
        room = asyncio.Semaphore(IN_FLIGHT)

        async def send(publication: Publication) -> None:
            try:
                await self.send(publication)
            except BrokerError as error:
                failures.append(error)
            finally:
                room.release()

        async with asyncio.TaskGroup() as sending:
            try:
                async for event in _each(events):
                    publication = self._publication(event, None, correlation_id)
                    await room.acquire()
                    ids.append(publication.id)
                    sending.create_task(send(publication))
            except Exception as error:  # raised below, after what was sent is confirmed
                stopped: Exception | None = error
            else:
                stopped = None
        if failures:
            raise ExceptionGroup(
                f"{len(failures)} of {len(ids)} events were not confirmed", [*failures, *([stopped] if stopped else [])]
            )
        if stopped is not None:
            raise stopped
        return ids

    def _publication(self, event: Event, event_id: UUID | None, correlation_id: UUID | None) -> Publication:
        check_event(event)
        event_id = event_id or id_of(event)
        return Publication(event, event_id, Story(correlation_id or event_id))

    async def send(self, publication: Publication) -> None:
        """Publish an event whose id and story are decided. Raises as `publish` does."""
        if self._transport is None:
            raise ContractError("This broker is not open. Write: async with Broker(source=...) as broker: ...")
        contract, story = publication.event.__contract__, publication.story
        described = {
            "event_name": contract.name,
            "event_id": str(publication.id),
            "correlation_id": str(story.correlation_id),
        }
        try:
            message = self._message(publication)
            await self._transport.publish(message, mandatory=self.settings.log, timeout=self.settings.publish_timeout)
        except PublishFailed as error:
            self._log.warning("unconfirmed", **described, error=str(error), stored=error.stored)
            raise type(error)(f"{contract.name!r} {publication.id}: {error}", publication.id) from None
        self._log.debug("published", key=contract.key, **described)

    def _message(self, publication: Publication) -> Message:
        event, story = publication.event, publication.story
        contract = event.__contract__
        now = datetime.now(UTC)
        body = encode(event, event_id=publication.id, source=self.source, time=now, story=story)
        if len(body) > self.settings.max_message_bytes:
            raise TooLarge(
                f"{len(body)} bytes are more than BROKER_MAX_MESSAGE_BYTES={self.settings.max_message_bytes}. "
                "Store the bulk elsewhere, and publish where it is."
            )
        return Message(
            exchange=self.settings.exchange,
            key=contract.key,
            body=body,
            content_type=CONTENT_TYPE,
            type=contract.name,
            correlation_id=str(story.correlation_id),
            app_id=self.source,
            timestamp=now,
        )


def rabbitmq(settings: Settings, log: FilteringBoundLogger, name: str) -> Transport:
    """The transport over RabbitMQ. aio-pika is imported by those who use it, so that others start faster."""
    from broker.rabbitmq import RabbitMQ

    return RabbitMQ(settings, log, name)


def check_event(event: object) -> None:
    """Refuse what is not an event.

    Raises:
        ContractError: naming what it is instead.
    """
    if not isinstance(event, Event) or type(event) is Event:
        raise ContractError(f"Only an Event can be published, not {type(event).__name__}: {event!r:.80}")


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
