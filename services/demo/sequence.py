"""Who told whom. An arrow leads from a publisher, with an event, to a subscriber that handled it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from broker import Service
from services.demo.lines import LogLine


class Arrow(NamedTuple):
    """``order ─New Order Placed→ packing``."""

    publisher: str
    event: str
    subscriber: str

    def __str__(self) -> str:
        return f"{self.publisher} ─ {self.event} → {self.subscriber}"


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

LIFELINES = ("order", "packing", "dispatch", "crm", "reporting")
MARGIN, WIDTH = 9, 11
"""Characters before the first lifeline's column, and of each column."""


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


def observed(lines: Iterable[LogLine], story: UUID) -> list[LogLine]:
    """What was handled in one story (the events of one correlation id), in the order in which the handling began."""
    return sorted(
        (line for line in lines if line.event == "handled" and line.correlation_id == story),
        key=lambda line: line.began,
    )


def arrow(line: LogLine) -> Arrow:
    """The arrow that a ``handled`` line tells of."""
    return Arrow(line.source, line.event_name, line.service)


def differences(handled: Iterable[LogLine], expected: frozenset[Arrow] = ORDER_STORY) -> list[str]:
    """What is missing, not expected, or there more than once."""
    counted = Counter(map(arrow, handled))
    return [
        *(f"missing: {each}" for each in sorted(expected - counted.keys())),
        *(f"not expected: {each}" for each in sorted(counted.keys() - expected)),
        *(f"{times} times: {each}" for each, times in sorted(counted.items()) if times > 1),
    ]


def draw(handled: Iterable[LogLine], begin: datetime) -> list[str]:
    """The sequence as a picture: a line of text for each arrow, with the seconds since ``begin`` when it arrived."""
    empty = " " * MARGIN + "".join("│".center(WIDTH) for _ in LIFELINES).rstrip()
    lines = [" " * MARGIN + "".join(name.center(WIDTH) for name in LIFELINES).rstrip()]
    before = ""
    for line in handled:
        if line.event_name != before:
            lines.append(empty)
        before = line.event_name
        seconds = max(0.0, (line.began - begin).total_seconds())
        lines.append(f"{seconds:6.3f} s {_row(line.source, line.service)} {line.event_name}")
    return [*lines, empty]


def _row(publisher: str, subscriber: str) -> str:
    row = list("".join("│".center(WIDTH) for _ in LIFELINES))
    start, end = _column(publisher), _column(subscriber)
    low, high = min(start, end), max(start, end)
    for place in range(low + 1, high):
        row[place] = "┼" if row[place] == "│" else "─"
    row[start] = "├" if start < end else "┤"
    row[end - 1 if start < end else end + 1] = "▶" if start < end else "◀"
    return "".join(row)


def _column(service: str) -> int:
    return LIFELINES.index(service) * WIDTH + WIDTH // 2
