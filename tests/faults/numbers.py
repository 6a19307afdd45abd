"""The events of the fault matrix: numbers, so that sets of them can be compared. A number is one event, with one id."""

from __future__ import annotations

from uuid import NAMESPACE_OID, UUID, uuid5

from broker import Event


class NumberDrawn(Event, name="Number Drawn", key="number.drawn", subject="number"):
    """What the publisher process publishes."""

    number: int
    padding: str = ""


class NumberSeen(Event, name="Number Seen", key="number.seen", subject="number"):
    """What the subscriber process publishes for each number, when told to."""

    number: int


def id_of_number(number: int) -> UUID:
    """The id under which a number is published, however often."""
    return uuid5(NAMESPACE_OID, f"number {number}")
