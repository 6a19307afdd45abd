"""Events as they happen, read from the event log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from broker.envelope import Envelope, decode
from broker.errors import ContractError, Malformed
from broker.logs import logger
from broker.publisher import rabbitmq
from broker.settings import Settings
from broker.topology import check_pattern, matches
from broker.transport import Delivery

IN_HAND = 500


@dataclass(frozen=True, slots=True)
class Line:
    """One message of the log: an event, or what could not be read as one."""

    key: str
    envelope: Envelope | None
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """The line for programs."""
        envelope = self.envelope
        if envelope is None:
            return {"key": self.key, "error": self.error}
        return {
            "time": envelope.time.isoformat(),
            "name": envelope.name,
            "key": envelope.key,
            "id": str(envelope.id),
            "source": envelope.source,
            "subject": envelope.subject,
            "version": envelope.version,
            "correlation_id": str(envelope.story.correlation_id),
            "causation_id": str(envelope.story.causation_id) if envelope.story.causation_id else None,
            "data": envelope.data,
        }


def line(delivery: Delivery) -> Line:
    """What a message says."""
    key = "?"
    try:
        message = delivery.message
        key = message.key
        envelope = decode(message.body, key=message.key, content_type=message.content_type, headers=message.headers)
        _ = envelope.data
    except (Malformed, ValueError) as error:
        return Line(key, None, str(error))
    return Line(key, envelope)


@asynccontextmanager
async def follow(settings: Settings, patterns: Sequence[str]) -> AsyncIterator[AsyncIterator[Line]]:
    """The events published from now on whose keys match one of the patterns (none: all).

    Raises:
        ContractError: what is not a pattern, or the event log is switched off.
        ConnectionFailed, AccessRefused, TopologyConflict: as connecting does.
    """
    for pattern in patterns:
        check_pattern(pattern)
    if not settings.log:
        raise ContractError("The event log is switched off (BROKER_LOG), and tail reads it. Switch it on everywhere.")
    transport = rabbitmq(settings, logger(settings), "tail")
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()

    async def lines() -> AsyncIterator[Line]:
        while True:
            delivery = await arrived.get()
            await delivery.ack()
            it = line(delivery)
            if not patterns or any(matches(pattern, it.key) for pattern in patterns):
                yield it

    try:
        await transport.connect()
        await transport.consume(settings.event_log, arrived.put_nowait, prefetch=IN_HAND, offset="next")
        yield lines()
    finally:
        await transport.close()
