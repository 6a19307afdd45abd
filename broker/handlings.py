"""What became of each event in a service, told to the event log: what `broker story` reads.

A service collects its handlings, and publishes them up to `MOST` or a second at a time, as JSON, to the topic exchange
``<exchange>.handled``, to which nothing but the event log is bound: no subscriber of ``#`` sees them. ::

    {"service": "packing", "handlings": [{"event_id": …, "correlation_id": …, "name": "New Order Placed",
     "outcome": "handled", "attempt": 1, "started": "2026-07-01T12:00:00.123456Z", "took": 0.0123, "handler": "pack"}]}

They are for people who ask what happened, not a promise: a process that is killed takes its last second of them along,
and nothing waits for them. Without the right to write to that exchange a service says so once, and does its work.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from time import time
from typing import Any, Literal, TypeAlias

from pydantic_core import to_json
from structlog.typing import FilteringBoundLogger

from broker.envelope import Envelope
from broker.errors import AccessRefused, BrokerError, NotConfirmed, TopologyConflict
from broker.settings import Settings
from broker.topology import handlings_topology
from broker.transport import Message, Transport

MOST = 500
"""Handlings in one message."""
AFTER = 1.0
"""Seconds after which what was collected is published, however little it is."""
KEPT = 10_000
"""Handlings that wait for RabbitMQ to take them; beyond, the oldest are forgotten."""
ERROR_MOST = 500
"""Characters of an error's text; the dead letter has the whole."""
TYPE = "Handlings"

Outcome: TypeAlias = Literal["handled", "duplicate", "retrying", "dead"]


class Recorder:
    """Collects what became of each event, and publishes it from time to time.

    Args:
        service: whose handlings they are.
        transport: publishes them.
    """

    def __init__(self, service: str, settings: Settings, transport: Transport, log: FilteringBoundLogger) -> None:
        self._service = service
        self._settings = settings
        self._transport = transport
        self._log = log
        self._on = False
        self._collected: deque[Mapping[str, Any]] = deque(maxlen=KEPT)
        self._alarm: asyncio.TimerHandle | None = None
        self._under_way: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Have the exchange in place, if handlings are recorded and this user may. Raises `ConnectionFailed`."""
        if not (self._settings.log and self._settings.record_handlings):
            return
        try:
            await self._transport.declare(handlings_topology(self._settings))
            self._on = True
        except (AccessRefused, TopologyConflict) as error:
            self._stop(error)

    def note(  # noqa: PLR0913, PLR0917  (what a handling consists of)
        self,
        envelope: Envelope,
        outcome: Outcome,
        attempt: int,
        took: float,
        handler: str | None,
        error: str | None = None,
        delay: str | None = None,
    ) -> None:
        """Note one handling that has just ended. ``took`` is in seconds."""
        if not self._on:
            return
        collected = self._collected
        handling = {
            "event_id": envelope.id,
            "correlation_id": envelope.story.correlation_id,
            "name": envelope.name,
            "outcome": outcome,
            "attempt": attempt,
            "started": time() - took,
            "took": took,
            "handler": handler,
        }
        if error is not None:
            handling["error"] = error[:ERROR_MOST]
        if delay is not None:
            handling["delay"] = delay
        collected.append(handling)
        if len(collected) == 1 and self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(AFTER, self._on_time)
        elif len(collected) >= MOST and self._under_way is None:
            self._publish()

    async def close(self) -> None:
        """Publish what is left, and wait for it no longer than a publish may take."""
        while self._on and (self._collected or self._under_way is not None):
            if self._under_way is None:
                self._publish()
            else:
                await asyncio.wait([self._under_way])
        self._on = False
        if self._alarm is not None:
            self._alarm.cancel()

    def _on_time(self) -> None:
        self._alarm = None
        if self._under_way is None and self._collected:
            self._publish()

    def _publish(self) -> None:
        some = [self._collected.popleft() for _ in range(min(MOST, len(self._collected)))]
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        message = Message(
            exchange=self._settings.handlings_exchange,
            key=self._service,
            body=body(self._service, some),
            content_type="application/json",
            type=TYPE,
            app_id=self._service,
            timestamp=datetime.now(UTC),
        )
        self._under_way = asyncio.ensure_future(
            self._transport.publish(message, mandatory=False, timeout=self._settings.publish_timeout)
        )
        self._under_way.add_done_callback(self._published)

    def _published(self, ended: asyncio.Future[None]) -> None:
        self._under_way = None
        error = NotConfirmed("interrupted") if ended.cancelled() else ended.exception()
        if isinstance(error, AccessRefused):
            self._stop(error)
            return
        if error is not None:
            self._log.warning("handlings not recorded", error=str(error))
        if len(self._collected) >= MOST:
            self._publish()
        elif self._collected:
            self._alarm = asyncio.get_running_loop().call_later(AFTER, self._on_time)

    def _stop(self, error: BrokerError) -> None:
        """Record no more: this user may not, and will not be allowed to while it runs."""
        self._on = False
        self._collected.clear()
        self._log.warning(
            "handlings not recorded",
            error=f"{error} Without them `broker story` shows no subscribers. Grant the permissions of "
            "docs/topology.md, or set BROKER_RECORD_HANDLINGS=off.",
        )


def body(service: str, handlings: list[Mapping[str, Any]]) -> bytes:
    """Handlings as they stand in the event log."""
    told = [{**it, "started": datetime.fromtimestamp(it["started"], UTC)} for it in handlings]
    return to_json({"service": service, "handlings": told}, inf_nan_mode="null")
