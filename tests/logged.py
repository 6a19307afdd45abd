"""Messages as they lie in the event log, made by hand."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any
from uuid import UUID

from broker.errors import Malformed
from broker.eventlog import Entry
from broker.transport import Message


class Lying:
    """A message as it lies in the log; None: its properties cannot be decoded."""

    number = 7
    redelivered = lost = False

    def __init__(self, message: Message | None) -> None:
        self._message = message

    @property
    def message(self) -> Message:
        if self._message is None:
            raise Malformed("its properties cannot be decoded")
        return self._message

    async def ack(self) -> None:
        """Nothing here is settled."""

    reject = release = ack


def entry(it: Message | None) -> Entry:
    """A message of the log."""
    return Entry(Lying(it), "events.handled")


def handling(event_id: UUID, story: UUID, started: datetime, took: float = 0.1, **changes: Any) -> dict[str, Any]:
    """One handling, as a service writes it."""
    began, lasted = round(started.timestamp() * 1e6), round(took * 1e6)
    columns = {"events": [str(event_id)], "stories": [str(story)], "began": [began], "took": [lasted]}
    return {"name": "Parcel Weighed", "outcome": "handled", "attempt": 1, "handler": "pack"} | changes | columns


def handlings(*told: dict[str, Any], service: str = "packing") -> Message:
    """What a service tells of its handlings, in one message."""
    body = json.dumps({"service": service, "handlings": told}).encode()
    return Message("events.handled", service, body, "application/json")
