"""Stories made up for tests: what a reading of the event log would have found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from broker.envelope import Envelope, Story
from broker.eventlog import Handling
from broker.tools.status import ServiceStatus
from broker.tools.story import Found, Subscriptions, tell
from broker.tools.story import Story as Told

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
FIRST = UUID(int=int(NOON.timestamp() * 1000) << 80 | 7 << 76 | 2 << 62 | 1)
"""The id of every story's first event, made at noon."""


def event_id(name: str) -> UUID:
    """The id of the event that a test calls so."""
    return FIRST if name == "first" else uuid5(FIRST, name)


class Tale:
    """A story as it is found, bit by bit. Times are seconds after noon."""

    def __init__(self, **patterns: Sequence[str]) -> None:
        self.found = Found(FIRST)
        self.expected = Subscriptions("RabbitMQ's bindings", patterns) if patterns else Subscriptions()

    def event(
        self,
        it: str = "first",
        *,
        at: float = 0.0,
        cause: str | None = None,
        name: str = "New Order Placed",
        source: str = "order",
        key: str = "order.placed",
        subject: str | None = "1042",
        data: bytes = b'{"data":{"order_id":"1042"}}',
    ) -> Tale:
        """An event in the log."""
        caused_by = event_id(cause) if cause is not None else None
        story = Story(FIRST, caused_by)
        time = NOON + timedelta(seconds=at)
        self.found.add(Envelope(name, key, event_id(it), time, source, subject, 1, story, data, True))
        return self

    def handling(
        self,
        service: str,
        it: str = "first",
        *,
        at: float = 0.0,
        took: float = 0.01,
        outcome: Any = "handled",
        attempt: int = 1,
        name: str = "New Order Placed",
        handler: str = "handle",
        error: str | None = None,
        delay: str | None = None,
    ) -> Tale:
        """What a service recorded."""
        self.found.add_handling(
            Handling(
                service=service,
                event_id=event_id(it),
                correlation_id=FIRST,
                name=name,
                outcome=outcome,
                attempt=attempt,
                started=NOON + timedelta(seconds=at),
                took=took,
                handler=handler,
                error=error,
                delay=delay,
            )
        )
        return self

    def told(self, standing: Mapping[str, ServiceStatus] | None = None, *, at: float = 3600) -> Told:
        """The story, told so many seconds after noon."""
        return tell(self.found, self.expected, standing, NOON + timedelta(seconds=at))


def order() -> Tale:
    """An order of the shop, as it should go."""
    tale = Tale(
        order=["order.packed", "order.dispatched"],
        packing=["order.placed"],
        dispatch=["order.packed"],
        crm=["order.*"],
        reporting=["order.*"],
    )
    tale.event()
    for position, service in enumerate(("packing", "crm", "reporting")):
        tale.handling(service, at=0.01 + position / 1000)
    packed, dispatched = "Order Packed", "Order Dispatched"
    tale.event("packed", at=0.02, cause="first", source="packing", key="order.packed", name=packed)
    for position, service in enumerate(("order", "crm", "reporting", "dispatch")):
        tale.handling(service, "packed", at=0.03 + position / 1000, name=packed)
    tale.event("dispatched", at=0.04, cause="packed", source="dispatch", key="order.dispatched", name=dispatched)
    for position, service in enumerate(("order", "crm", "reporting")):
        tale.handling(service, "dispatched", at=0.05 + position / 1000, name=dispatched)
    return tale


def troubled() -> Tale:
    """An order that meets everything: retries, a dead letter, a duplicate, a service that waits, one without record."""
    tale = Tale(
        packing=["order.placed"], crm=["order.#"], reporting=["order.#"], audit=["#"], dispatch=["order.packed"]
    )
    error = "CartonMissing: no carton is large enough for a grand piano"
    tale.event()
    tale.handling("packing", at=0.01, outcome="retrying", error=error, delay="1s")
    tale.handling("packing", at=1.03, outcome="retrying", error=error, delay="30s", attempt=2)
    tale.handling("packing", at=31.2, attempt=3)
    tale.handling("crm", at=0.02, outcome="dead", error="Reject: the card is stolen")
    tale.handling("reporting", at=0.02)
    tale.handling("reporting", at=0.5, outcome="duplicate")
    packed = "Order Packed"
    tale.event("packed", at=31.21, cause="first", source="packing", key="order.packed", name=packed)
    tale.handling("crm", "packed", at=31.3, outcome="retrying", error="SMTPError: try later", delay="10m", name=packed)
    tale.handling("reporting", "packed", at=31.3, name=packed)
    return tale


def standing() -> dict[str, ServiceStatus]:
    """How the services of a troubled order stand."""
    return {
        "packing": ServiceStatus("packing", consumers=1),
        "crm": ServiceStatus("crm", consumers=1, dead=1),
        "reporting": ServiceStatus("reporting", consumers=1),
        "dispatch": ServiceStatus("dispatch", ready=3),
        "audit": ServiceStatus("audit", consumers=1),
    }
