"""The event log for people and programs: which of its events are meant, and what they say."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any
from uuid import UUID

from broker.envelope import STRUCTURED, Envelope
from broker.errors import ContractError, Malformed
from broker.eventlog import Entry, EventLog, Handling, open_log
from broker.topology import check_pattern, matches
from broker.transport import HeaderValue, Message, Offset

__all__ = ["Bounds", "EventLog", "Line", "Part", "Wanted", "check_limit", "line", "lines", "open_log", "part"]

PLAIN = re.compile(r"[A-Za-z0-9 ._:-]+")
"""Text that stands in JSON as it is."""
FURTHER = (
    "message_id", "delivery_mode", "content_encoding", "priority", "reply_to", "expiration", "user_id", "cluster_id"
)  # fmt: skip
"""Properties that nothing here goes by; shown where they are."""


@dataclass(frozen=True)
class Wanted:
    """Which events are meant; nothing said: all.

    Attributes:
        patterns: of routing keys: one of them.
        events: business event names or routing keys, in any case: one of them.
        subject, source: exactly that.
        correlation_id: of that story.
        ids: of events.
    """

    patterns: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    subject: str | None = None
    source: str | None = None
    correlation_id: UUID | None = None
    ids: frozenset[UUID] = frozenset()

    def __post_init__(self) -> None:
        """Raises :exc:`ContractError`: what is not a pattern."""
        for pattern in self.patterns:
            check_pattern(pattern)

    def of(self, patterns: Sequence[str]) -> Wanted:
        """Those of them whose keys match one of the patterns."""
        return replace(self, patterns=tuple(patterns))

    @cached_property
    def by_key_alone(self) -> bool:
        """Whether nothing was said but patterns: then what cannot be read is meant, too."""
        return not (
            self.events or self.subject is not None or self.source is not None or self.correlation_id or self.ids
        )

    @cached_property
    def everything(self) -> bool:
        """Whether nothing was said."""
        return self.by_key_alone and not self.patterns

    def line(self, entry: Entry) -> Line | None:
        """What a message of the log says, if it is no handlings, and meant."""
        message = entry.message
        if entry.is_handlings:
            return None
        if self.patterns and not self._matches("" if message is None else message.key):
            return None
        if self.by_key_alone:
            return _event(entry, message)
        if message is None or not self._may_be(entry, message.key):
            return None
        it = _event(entry, message)
        return it if it.envelope is not None and self.has(it.envelope) else None

    def has(self, it: Envelope) -> bool:
        """Whether this event is meant."""
        return (
            (not self.patterns or self._matches(it.key))
            and (not self._named or it.name.casefold() in self._named or it.key.casefold() in self._named)
            and (self.subject is None or it.subject == self.subject)
            and (self.source is None or it.source == self.source)
            and (self.correlation_id is None or it.story.correlation_id == self.correlation_id)
            and (not self.ids or it.id in self.ids)
        )

    def _matches(self, key: str) -> bool:
        return any(matches(pattern, key) for pattern in self.patterns)

    @cached_property
    def _named(self) -> frozenset[str]:
        return frozenset(event.casefold() for event in self.events)

    @cached_property
    def _marks(self) -> list[bytes]:
        """Texts that stand in every event that is meant: looked for before anything is decoded, which takes longer."""
        ids = [self.correlation_id, *(self.ids if len(self.ids) == 1 else ())]
        written = [str(it)[-12:] for it in ids if it is not None and it.version != 5]  # 5: may stand for another text
        texts = [text for text in (self.subject, self.source) if text is not None]
        return [text.encode() for text in (*texts, *written) if PLAIN.fullmatch(text)]

    @cached_property
    def _names(self) -> list[bytes] | None:
        """The names, likewise, one of which stands in every event that is meant; None: no such can be told."""
        return [name.encode() for name in self._named] if all(map(PLAIN.fullmatch, self._named)) else None

    def _may_be(self, entry: Entry, key: str) -> bool:
        if not all(map(entry.may_hold, self._marks)):
            return False
        if not self._names or key.casefold() in self._named:
            return True
        return any(map(entry.may_hold, self._names)) or not entry.is_ascii


@dataclass(frozen=True, slots=True)
class Line:
    """One message of the log: an event, handlings, or what could not be read as either.

    Attributes:
        key: its routing key.
        envelope: the event; None when it is none.
        handlings: what became of events; empty when it does not tell.
        error: why it is neither.
    """

    entry: Entry
    key: str
    envelope: Envelope | None
    handlings: list[Handling] = field(default_factory=list)
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """What a message says, and all that a stream keeps of it, for programs. Handlings say all without a body."""
        return {"offset": self.entry.offset} | self._said() | self._carried()

    def _said(self) -> dict[str, Any]:
        it = self.envelope
        if self.handlings:
            told = [handling.model_dump(mode="json", exclude_none=True) for handling in self.handlings]
            return {"key": self.key, "handlings": told}
        if it is None:
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
        """Properties, headers and body."""
        message = self.entry.message
        if message is None:
            return {}
        properties: dict[str, object] = {
            "exchange": message.exchange,
            "content_type": message.content_type,
            "type": message.type,
            "app_id": message.app_id,
            "correlation_id": message.correlation_id,
            "timestamp": message.timestamp.isoformat() if message.timestamp else None,
        }
        for name in FURTHER:
            if message.properties is not None and (value := message.properties.get(name)) is not None:
                properties[name] = value
        carried = {"properties": properties, "headers": _plain(message.headers)}
        return carried | ({} if self.handlings else _text("body", message.body))


def _plain(headers: Mapping[str, HeaderValue]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in headers.items():
        if name == "x-stream-offset":
            continue
        if isinstance(value, bytes):
            found |= _text(name, value)
        else:
            found[name] = value.isoformat() if isinstance(value, datetime) else value
    return found


def _text(name: str, value: bytes) -> dict[str, str]:
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}


def line(entry: Entry) -> Line:
    """What a message says. Nothing in it is trusted."""
    message = entry.message
    if message is None or not entry.is_handlings:
        return _event(entry, message)
    try:
        return Line(entry, message.key, None, entry.handlings)
    except Malformed as error:
        return Line(entry, message.key, None, error=str(error))


def _event(entry: Entry, message: Message | None) -> Line:
    key = message.key if message is not None else "?"
    try:
        envelope = entry.envelope
        if message is None or not _is_json_throughout(message.content_type, message.body):
            _ = envelope.data
    except Malformed as error:
        return Line(entry, key, None, error=str(error))
    return Line(entry, key, envelope)


def _is_json_throughout(content_type: str | None, body: bytes) -> bool:
    """Whether data of what could be decoded is JSON: it stood within JSON, and not in base64."""
    return (content_type or "").startswith(STRUCTURED) and b"data_base64" not in body and b"\\u" not in body


@dataclass(frozen=True, slots=True)
class Bounds:
    """Which part of the log is asked for: what was stored then, to a second, by RabbitMQ's clock.

    Attributes:
        since, until: then or later; before then.
        offset, end: from this number on; before this number.
    """

    since: datetime | None = None
    until: datetime | None = None
    offset: int | None = None
    end: int | None = None

    def __post_init__(self) -> None:
        """Raises :exc:`ContractError`: they contradict each other."""
        if self.since is not None and self.offset is not None:
            raise ContractError("--since and --offset both say where to begin. Say one of them.")
        if self.since is not None and self.until is not None and self.until <= self.since:
            raise ContractError("--until is not after --since, so nothing is between them. (Is one of them '2h' ago?)")
        if self.offset is not None and self.end is not None and self.end <= self.offset:
            raise ContractError(f"--end {self.end} is not after --offset {self.offset}, so nothing is between them.")


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of the log is there, of what was asked for: numbers, the last one excluded.

    Attributes:
        truncated: the log does not reach back as far as was asked; unasked, that is its beginning.
        reaches: since when it does, as its oldest message says; None if that does not say, or nothing is truncated.
    """

    begin: int
    end: int
    truncated: bool = False
    reaches: datetime | None = None


async def part(log: EventLog, bounds: Bounds) -> Part:
    """Where to begin and to end; no later than the log's end as it is now.

    Raises:
        ContractError: there is no event log.
        ConnectionFailed: RabbitMQ went away.
    """
    span = await log.span()
    begin, truncated, reaches = span.first, span.first > 0, None
    if bounds.offset is not None:
        begin = max(bounds.offset, span.first)
        truncated = bounds.offset < span.first
    elif bounds.since is not None:
        begin = await log.place(bounds.since)
        truncated = truncated and begin <= span.first
    if truncated:
        reaches = await log.time_at(span.first)
        truncated = bounds.since is None or reaches is None or bounds.since < reaches
    end = span.end if bounds.end is None else min(bounds.end, span.end)
    if bounds.until is not None and bounds.until < datetime.now(UTC):
        end = min(end, await log.place(bounds.until))
    return Part(min(begin, span.end), end, truncated, reaches if truncated else None)


async def lines(
    log: EventLog, wanted: Wanted, begin: Offset, end: int | None, *, handlings: bool = False
) -> AsyncGenerator[Line]:
    """What is wanted, in the order of the log.

    Args:
        begin: a number, or ``"next"``: with what comes.
        end: the number before which it ends; None: never.
        handlings: tell what became of it, too.
    """
    shown: set[UUID] = set()
    async with aclosing(log.read(begin, end=end)) as entries:
        async for entry in entries:
            if handlings and entry.is_handlings:
                it = line(entry)
                about = it.handlings if wanted.everything else [one for one in it.handlings if one.event_id in shown]
                if about or (it.error and wanted.everything):
                    yield Line(entry, it.key, None, about, it.error)
            elif (meant := wanted.line(entry)) is not None:
                if handlings and meant.envelope is not None and not wanted.everything:
                    shown.add(meant.envelope.id)
                yield meant


def check_limit(limit: int | None) -> None:
    """Refuse a limit that shows nothing. Raises :exc:`ContractError`."""
    if limit is not None and limit < 1:
        raise ContractError(f"--limit {limit} shows nothing. Write 1 or more.")
