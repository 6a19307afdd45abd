"""Where a backfill begins, and how far it is. Numbers are places in the event log."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker.errors import ContractError, Malformed
from broker.retry import moment
from broker.topology import backfill_queue
from broker.transport import Delivery, Message, Offset

Number = Annotated[int, Field(ge=0)]


def begin_of(since: str, now: datetime) -> Offset:
    """Where in the log a backfill begins.

    Args:
        since: so long ago (``"90m"``, ``"12h"``, ``"7d"``), a date and time, or ``"first"`` for all the log holds.

    Raises:
        ContractError: it is none of these.
    """
    if since == "first":
        return since
    try:
        found = moment(since, now)
    except ValueError:
        raise ContractError(
            f"{since!r} does not say since when to backfill. Write how long ago, '90m', '12h', '7d', or when, "
            "'2026-07-01T12:30', or 'first' for all that the event log holds."
        ) from None
    return found if found.timestamp() > 0 else "first"


class Note(BaseModel):
    """How far a backfill is: the message in ``SERVICE.backfill``.

    Attributes:
        first: where it began.
        next: all before it is done.
        begun: from here on, nothing was begun.
        tries: how often ``next`` was begun alone.
        seam: the log's end before the queue was bound.
        end: the log's end after it; None: not looked up yet.
        depth: how much was in the queue a moment after that: the copies of what is in the seam are among the first.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    first: Number
    next: Number
    begun: Number
    tries: Number = 0
    seam: Number
    end: Number | None = None
    depth: Number | None = None

    @classmethod
    def at(cls, place: int, *, seam: int) -> Note:
        """Of a backfill that begins."""
        return cls(first=place, next=place, begun=place, seam=seam)

    @classmethod
    def of(cls, delivery: Delivery) -> Note | None:
        """What a message notes, if it is a note."""
        try:
            return cls.model_validate_json(delivery.message.body)
        except (Malformed, ValidationError, RecursionError):
            return None

    def but(self, **changes: int | None) -> Note:
        """The same with changes."""
        return self.model_copy(update=changes)

    def message(self, service: str) -> Message:
        """It, as a message to ``SERVICE.backfill``."""
        return Message(
            exchange=service,
            key=backfill_queue(service),
            body=self.model_dump_json(exclude_none=True).encode(),
            content_type="application/json",
            type="Backfill",
            app_id=service,
            timestamp=datetime.now(UTC),
        )


def furthest(notes: Iterable[Note]) -> Note | None:
    """Of several notes, each of which is true, the one that knows most."""
    return max(notes, key=lambda it: (it.next, it.end is not None, it.depth is not None, it.tries), default=None)
