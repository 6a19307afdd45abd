"""The event log for people and programs: which of its events are meant, and what they say."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from broker.envelope import Envelope
from broker.errors import ContractError, Malformed
from broker.eventlog import Entry, EventLog, Span, open_log
from broker.topology import check_pattern, matches
from broker.transport import Offset

__all__ = ["EventLog", "Line", "Part", "Wanted", "check_limit", "line", "lines", "open_log", "part"]

SKEW = timedelta(minutes=5)
"""By how much the clocks of those who publish may differ from RabbitMQ's: so much further is looked."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events are meant; nothing said: all.

    Attributes:
        patterns: of routing keys: one of them.
        events: business event names or routing keys, in any case: one of them.
        subject, source: exactly that.
        correlation_id: of that story.
        ids: of events.
        since, until: published then or later; before.
    """

    patterns: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    subject: str | None = None
    source: str | None = None
    correlation_id: UUID | None = None
    ids: frozenset[UUID] = frozenset()
    since: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        """Raises :exc:`ContractError`: what is not a pattern."""
        for pattern in self.patterns:
            check_pattern(pattern)

    @property
    def everything(self) -> bool:
        """Whether nothing was said but when: then what cannot be read is meant, too."""
        return not (self.events or self.subject or self.source or self.correlation_id or self.ids)

    def has(self, it: Envelope) -> bool:
        """Whether this event is meant."""
        named = {event.casefold() for event in self.events}
        return (
            (not self.patterns or any(matches(pattern, it.key) for pattern in self.patterns))
            and (not named or it.name.casefold() in named or it.key.casefold() in named)
            and (self.subject is None or it.subject == self.subject)
            and (self.source is None or it.source == self.source)
            and (self.correlation_id is None or it.story.correlation_id == self.correlation_id)
            and (not self.ids or it.id in self.ids)
            and self.when(it.time)
        )

    def when(self, time: datetime | None) -> bool:
        """Whether what was published then is meant; what does not say when, is."""
        if time is None:
            return True
        return (self.since is None or time >= self.since) and (self.until is None or time < self.until)


@dataclass(frozen=True, slots=True)
class Line:
    """One message of the log: an event, handlings, or what could not be read as either.

    Attributes:
        offset: its number in the log.
        key: its routing key.
        envelope: the event; None when it is none.
        error: why it is none; empty for handlings.
    """

    entry: Entry
    offset: int | None
    key: str
    envelope: Envelope | None
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """All that a stream keeps of a message, for programs."""
        return {"offset": self.offset} | self._said() | self._carried()

    def _said(self) -> dict[str, Any]:
        it = self.envelope
        if it is None:
            if self.entry.is_handlings and not self.error:
                told = [handling.model_dump(mode="json", exclude_none=True) for handling in self.entry.handlings]
                return {"key": self.key, "handlings": told}
            return {"key": self.key, "error": self.error}
        return {
            "time": it.time.isoformat(),
            "name": it.name,
            "key": it.key,
            "id": str(it.id),
            "source": it.source,
            "subject": it.subject,
            "version": it.version,
            "correlation_id": str(it.story.correlation_id),
            "causation_id": str(it.story.causation_id) if it.story.causation_id else None,
            "data": it.data,
        }

    def _carried(self) -> dict[str, Any]:
        """Properties and scalar headers; and the body, where no event was read from it."""
        message = self.entry.message
        if message is None:
            return {}
        properties = {
            "exchange": message.exchange,
            "content_type": message.content_type,
            "type": message.type,
            "app_id": message.app_id,
            "correlation_id": message.correlation_id,
            "timestamp": message.timestamp.isoformat() if message.timestamp else None,
        }
        headers = {
            name: value if isinstance(value, str | int | float | bool) or value is None else str(value)
            for name, value in message.headers.items()
            if name != "x-stream-offset"
        }
        return {"properties": properties, "headers": headers} | (_body(message.body) if self.error else {})


def _body(body: bytes) -> dict[str, str]:
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


def line(entry: Entry) -> Line:
    """What a message says. Nothing in it is trusted."""
    message = entry.message
    key = message.key if message is not None else "?"
    try:
        if entry.is_handlings:
            _ = entry.handlings
            return Line(entry, entry.offset, key, None)
        envelope = entry.envelope
        _ = envelope.data
    except (Malformed, ValueError) as error:
        return Line(entry, entry.offset, key, None, str(error))
    return Line(entry, entry.offset, key, envelope)


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of the log is read: numbers, the last excluded; ``end`` None: for ever.

    Attributes:
        truncated: the log does not reach back as far as was asked: since when it does.
    """

    begin: Offset
    end: int | None
    truncated: datetime | None = None


async def part(log: EventLog, wanted: Wanted, offset: int | None = None, *, follow: bool = False) -> Part:
    """Where to begin and to end, for what is wanted.

    Args:
        offset: a number to begin at, rather than a time.
        follow: go on for ever.

    Raises:
        ContractError: there is no event log.
    """
    span = await log.span()
    begin, truncated = span.first, None
    if offset is not None:
        begin = max(offset, span.first)
    elif wanted.since is not None:
        begin = await log.place(wanted.since - SKEW)
    if span.first and span.end and (wanted.since is not None or offset is not None) and begin <= span.first:
        truncated = await _reaches_since(log, span, wanted, offset)
    end = None if follow else span.end
    if end is not None and wanted.until is not None and wanted.until + SKEW < datetime.now(UTC):
        end = min(end, await log.place(wanted.until + SKEW))
    return Part(begin, end, truncated)


async def _reaches_since(log: EventLog, span: Span, wanted: Wanted, offset: int | None) -> datetime | None:
    since = await log.time_at(span.first)
    missing = offset < span.first if offset is not None else since is not None and wanted.since is not None and wanted.since < since  # fmt: skip  # noqa: E501
    return since if missing else None


async def lines(log: EventLog, which: Part, wanted: Wanted, *, handlings: bool = False) -> AsyncGenerator[Line]:
    """What is wanted, in the order of the log.

    Args:
        handlings: tell of them, too.
    """
    if which.end is not None and not which.end:
        return
    async with aclosing(log.read(which.begin, end=which.end)) as entries:
        async for entry in entries:
            it = line(entry)
            if it.envelope is not None:
                meant = wanted.has(it.envelope)
            elif entry.is_handlings and not it.error:
                meant = handlings and wanted.when(entry.time)
            else:
                meant = wanted.everything and wanted.when(entry.time) and _any(wanted.patterns, it.key)
            if meant:
                yield it


def _any(patterns: Iterable[str], key: str) -> bool:
    patterns = tuple(patterns)
    return not patterns or any(matches(pattern, key) for pattern in patterns)


def check_limit(limit: int | None) -> None:
    """Refuse a limit that shows nothing. Raises :exc:`ContractError`."""
    if limit is not None and limit < 1:
        raise ContractError(f"--limit {limit} shows nothing. Write 1 or more.")
