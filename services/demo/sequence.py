"""Who told whom. An arrow leads from a publisher, with an event, to a subscriber that handled it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from broker import Service
from broker.tools.story import Arrow, Story

ORDER_STORY = frozenset(
    Arrow(publisher, event, subscriber)
    for publisher, event, subscribers in (
        ("order", "New Order Placed", ("packing", "crm", "reporting")),
        ("packing", "Order Packed", ("order", "crm", "reporting", "dispatch")),
        ("dispatch", "Order Dispatched", ("order", "crm", "reporting")),
    )
    for subscriber in subscribers
)
"""What placing one order must lead to: these ten arrows, no more and no less."""


def declared(services: Iterable[Service]) -> frozenset[Arrow]:
    """Every arrow that the services' declarations allow."""
    every = list(services)
    publishers = [(service.name, event.__contract__.name) for service in every for event in service.publishes]
    return frozenset(
        Arrow(publisher, name, service.name)
        for publisher, name in publishers
        for service in every
        for handler in service.subscribes
        for event in handler.events
        if event.__contract__.name == name
    )


def handled(story: Story) -> list[Arrow]:
    """The arrows of what was handled in a story, one for each time it was, in order."""
    return [
        Arrow(step.publisher or "nobody", step.name, delivered.service)
        for step in story.steps
        for delivered, attempt in step.rows
        if attempt is not None and attempt.handling.outcome == "handled"
    ]


def differences(arrows: Iterable[Arrow], expected: frozenset[Arrow] = ORDER_STORY) -> list[str]:
    """What is missing, not expected, or there more than once."""
    counted = Counter(arrows)
    return [
        *(f"missing: {each}" for each in sorted(expected - counted.keys())),
        *(f"not expected: {each}" for each in sorted(counted.keys() - expected)),
        *(f"{times} times: {each}" for each, times in sorted(counted.items()) if times > 1),
    ]
