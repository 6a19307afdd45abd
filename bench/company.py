"""A company: 200 services; each publishes five of 1,000 events, and hears five. For the map."""

from __future__ import annotations

from typing import Any

from broker import Event, Service

EVENTS: list[type[Event]] = [
    type(
        f"Event{n}",
        (Event,),
        {"__annotations__": {"id": str}, "__module__": __name__},
        name=f"Event Number {n}",
        key=f"event.number{n}",
    )
    for n in range(1000)
]


def _service(number: int) -> Service:
    service = Service(f"service-{number}", publishes=EVENTS[5 * number : 5 * number + 5])
    for heard in (EVENTS[(37 * number + 211 * step) % 1000] for step in range(5)):

        def handle(event: Any) -> None: ...

        handle.__annotations__["event"] = heard
        service.on(heard)(handle)
    return service


SERVICES = [_service(number) for number in range(200)]
globals().update({f"service{number}": service for number, service in enumerate(SERVICES)})
