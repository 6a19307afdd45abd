"""A story, found in the event log.

Where to begin: a story's id says when it was made, unless it is of another kind or that clock was wrong, so: a moment
before; then minutes before; then the log's beginning. Where to end: when every event has been handled, or set aside, by
everybody who should, and a little of the log is read beyond, for what an outbox published late; else at the log's end.

Rules:

- Nothing is decoded that cannot be meant: an id's bytes are looked for first.
- How late it is in the log is the middle one of some hundred clocks: one host's may be wrong.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from statistics import median_low
from typing import TYPE_CHECKING
from uuid import UUID

from pydantic import ValidationError

from broker.envelope import STRUCTURED, Envelope
from broker.errors import BrokerError, ContractError, Malformed, near_miss
from broker.eventlog import Entry, EventLog, Handling, Span, open_log, time_of
from broker.settings import Settings
from broker.tools.discover import find_services
from broker.tools.status import ServiceStatus, read_status
from broker.tools.story import FROM_CODE, Found, Story, Subscriptions, tell
from broker.topology import dead_queue
from broker.transport import Message

if TYPE_CHECKING:
    from broker.tools.management import Management

Progress = Callable[[int, int], None]
"""Told how many of how many messages have been read."""

BEFORE = timedelta(seconds=2)
"""How long before the time in its id a story is looked for at first: RabbitMQ finds a time to a second."""
CLOCKS = timedelta(minutes=5)
"""How much the clocks of two hosts may differ until the whole log is read for it."""
SOON = timedelta(seconds=5)
"""How much of the log after that time is read for the story's first event before it is looked for earlier."""
BEYOND = timedelta(seconds=10), 20_000
"""How much of the log is read beyond a story that seems complete: so long, or so many messages."""
LOOK_EVERY = 500
"""Messages after which it is looked how late it is, and whether to read on."""
NEAR = 500
"""Messages looked through for what somebody may have meant."""
PATIENCE = 3.0
"""Seconds for the management API."""
STORIES_MOST = 1000
"""Stories that a search finds, at most."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to look for in events: a subject, or how a correlation id ends, and what it looks like in the bytes.

    Attributes:
        words: for people.
        holds: the bytes that a message that is meant contains; None: that cannot be told from them.
    """

    words: str
    holds: bytes | None
    meant: Callable[[Envelope], bool]

    @classmethod
    def subject(cls, subject: str) -> Wanted:
        """Events about something: an order's id, say."""
        plain = re.fullmatch(r"[\w. -]+", subject, re.ASCII)  # nobody writes it otherwise in JSON
        return cls(f"the subject {subject!r}", subject.encode() if plain else None, lambda it: it.subject == subject)

    @classmethod
    def ending(cls, ending: str) -> Wanted:
        """Events whose correlation id ends so, as `broker tail` shows it."""
        end = ending.lower()
        words = f"a correlation id that ends with {end!r}"
        return cls(words, end.encode(), lambda it: str(it.story.correlation_id).endswith(end))


@dataclass(slots=True)
class Heading:
    """A story that a search has found, by the first of its events that are meant."""

    correlation_id: UUID
    name: str
    at: datetime
    events: int = 0

    def as_json(self) -> dict[str, object]:
        """The heading for programs."""
        return {
            "correlation_id": str(self.correlation_id),
            "name": self.name,
            "time": self.at.isoformat(),
            "events": self.events,
        }


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the log to look for a story's first event.

    Attributes:
        begin: None: at the log's beginning.
        until: how late in the log to look elsewhere; None: read to the end.
        thorough: decode every message: an id that is no UUID on the wire stands in none as we write it.
    """

    begin: datetime | None
    until: datetime | None = None
    thorough: bool = False


def places(correlation_id: UUID, since: datetime | None) -> Iterator[Place]:
    """Where to look, one after the other."""
    at, epoch = time_of(correlation_id), datetime.fromtimestamp(0, UTC)
    if since is None and at is not None and at > epoch + 2 * CLOCKS:
        yield Place(at - BEFORE, at + SOON)
        yield Place(at - CLOCKS, at + CLOCKS)
    yield Place(since)
    if correlation_id.version == 5:
        yield Place(since, thorough=True)


# -- one message -----------------------------------------------------------------------------------------------------


def contains(message: Message, some: bytes | None) -> bool:
    """Whether a message may hold these bytes, in small letters or capitals: in its body, or, of a binary event, among
    its headers."""
    if some is None or some in message.body or some in message.body.lower():
        return True
    if (message.content_type or "").startswith(STRUCTURED) or not message.headers:
        return False
    text = some.decode().lower()
    return any(isinstance(value, str) and text in value.lower() for value in message.headers.values())


@dataclass(slots=True)
class Gathering:
    """What is found of a story while the log is read.

    Attributes:
        holds: the bytes that every message of it contains; None: that cannot be told.
        pending: the events that a service has not done with, as far as is known.
        belongs_to: the story of the event whose id it is, if it turns out to be no story's.
    """

    found: Found
    expected: Subscriptions
    holds: bytes | None
    pending: set[tuple[UUID, str]] = field(default_factory=set)
    belongs_to: UUID | None = None
    _settled: set[tuple[UUID, str]] = field(default_factory=set)

    def take(self, entry: Entry) -> None:
        """Look at one message of the log."""
        if entry.message is None or not contains(entry.message, self.holds):
            return
        try:
            if entry.is_handlings:
                for handling in entry.handlings:
                    self._handling(handling)
            else:
                self._event(entry.envelope)
        except Malformed:
            return

    def _event(self, envelope: Envelope) -> None:
        story = self.found.correlation_id
        if envelope.story.correlation_id != story:
            if envelope.id == story:
                self.belongs_to = envelope.story.correlation_id
            return
        self.found.add(envelope)
        due = {(envelope.id, it) for it in self.expected.of(envelope.key) if it not in self.expected.silent}
        self.pending |= due - self._settled

    def _handling(self, handling: Handling) -> None:
        story = self.found.correlation_id
        if handling.correlation_id != story:
            if handling.event_id == story:
                self.belongs_to = handling.correlation_id
            return
        self.found.add_handling(handling)
        which = handling.event_id, handling.service
        if self.expected.is_final(handling):
            self._settled.add(which)
            self.pending.discard(which)
        else:
            self._settled.discard(which)
            self.pending.add(which)

    @property
    def begun(self) -> bool:
        """Its first event is found, or it is another's story."""
        return self.found.correlation_id in self.found.events or self.belongs_to is not None

    @property
    def complete(self) -> bool:
        """Every event was handled, or set aside, by everybody who should. Not known when nobody says who should."""
        return self.begun and not self.pending and bool(self.expected.origin)


# -- reading ---------------------------------------------------------------------------------------------------------


class Reader:
    """Reads stories from the event log.

    Args:
        modules: where the code is, for who has subscribed, if the management API does not say.
        told: of progress.
    """

    def __init__(self, settings: Settings, modules: list[str], told: Progress = lambda done, total: None) -> None:
        self._settings = settings
        self._modules = modules
        self._told = told
        self._expected = Subscriptions()
        self._gathering: Gathering | None = None
        self._headings: dict[UUID, Heading] = {}
        self._late: datetime | None = None

    async def story(
        self, correlation_id: UUID, *, since: datetime | None = None, within: timedelta | None = None
    ) -> Story:
        """One story, by its id, or by the id of any event in it.

        Args:
            since: where in the log to begin; None: the id says so.
            within: read so much of the log after the story's beginning, no less and no more.

        Raises:
            ContractError: nothing of it is in the log; says what is near. Or there is no log.
            ConnectionFailed, AccessRefused, TopologyConflict: as connecting does.
        """
        self._expected = await self._subscriptions()
        async with open_log(self._settings, "story") as log:
            span = await log.span()
            gathering = await self._gather(log, span, correlation_id, since, within)
            if gathering.belongs_to is not None and gathering.found.empty:
                correlation_id = gathering.belongs_to
                gathering = await self._gather(log, span, correlation_id, since, within)
            found = gathering.found
            if found.empty:
                raise ContractError(await self._not_found(log, span, correlation_id, since))
            if correlation_id not in found.events:
                found.first = await log.time_at(span.first)
        return await self._told_of(found)

    def so_far(self, why: str) -> Story | None:
        """What has been found up to now, for one who will not wait; None: nothing."""
        if self._gathering is None or self._gathering.found.empty:
            return None
        found = self._gathering.found
        found.read_to, found.ended = self._late, why
        return tell(found, self._expected, None, datetime.now(UTC))

    async def about(self, wanted: Wanted, since: datetime | None = None) -> list[Heading]:
        """The stories with an event that is meant, oldest first, at most `STORIES_MOST`.

        Raises:
            ContractError: there is none, or no log.
            ConnectionFailed, AccessRefused, TopologyConflict: as connecting does.
        """
        headings = self._headings = {}
        async with open_log(self._settings, "story") as log:
            span = await log.span()
            part = span if since is None else Span(await log.place(since), span.end)
            async for entry in self._entries(log, part):
                envelope = meant(entry, wanted)
                if envelope is None:
                    continue
                story = envelope.story.correlation_id
                if story not in headings and len(headings) == STORIES_MOST:
                    continue
                heading = headings.setdefault(story, Heading(story, envelope.name, envelope.time))
                heading.events += 1
            if not headings:
                reach = await self._reach(log, span)
                after = f" since {since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if since else ""
                raise ContractError(f"No event with {wanted.words} is in the event log{after}; it holds {reach}.")
        return self.headings

    @property
    def headings(self) -> list[Heading]:
        """The stories that the search has found up to now, oldest first."""
        return sorted(self._headings.values(), key=lambda it: it.at)

    async def _gather(
        self, log: EventLog, span: Span, correlation_id: UUID, since: datetime | None, within: timedelta | None
    ) -> Gathering:
        """Look from one place on, and if its first event is not there, from the next."""
        read: tuple[int, bool] | None = None
        for place in places(correlation_id, since):
            begin = span.first if place.begin is None else await log.place(place.begin)
            if read == (begin, place.thorough):
                continue
            read = begin, place.thorough
            holds = None if place.thorough else str(correlation_id).encode()
            self._gathering = gathering = Gathering(Found(correlation_id), self._expected, holds)
            until = None if begin == span.first else place.until  # there is no earlier
            await self._read(log, Span(begin, span.end), Stop(until, gathering, within), gathering)
            if gathering.begun:
                break
        return gathering

    async def _read(self, log: EventLog, span: Span, stop: Stop, gathering: Gathering) -> None:
        """Read on for as long as there is reason to."""
        found = gathering.found
        async with aclosing(self._entries(log, span)) as entries:
            count = 0
            async for entry in entries:
                count += 1
                gathering.take(entry)
                if count % LOOK_EVERY == 0 and self._late is not None and stop.reached(count, self._late):
                    break
        found.read_to, found.ended = self._late, stop.why

    async def _entries(self, log: EventLog, span: Span) -> AsyncGenerator[Entry]:
        """A part of the log; notes how late it is in it."""
        clocks: list[datetime] = []
        self._late = None
        count = 0
        async with aclosing(log.read(span.first, end=span.end)) as entries:
            async for entry in entries:
                count += 1
                if entry.message is not None and entry.message.timestamp is not None:
                    clocks.append(entry.message.timestamp)
                if count % LOOK_EVERY == 0 and clocks:
                    self._late = median_low(clocks)
                    clocks.clear()
                    self._told((entry.offset or span.first) - span.first, span.end - span.first)
                yield entry
        if clocks:  # all of it was read; a clock that is ahead says nothing
            now = datetime.now(UTC)
            self._late = max((clock for clock in clocks if clock <= now), default=now)

    # -- who should have handled it ----------------------------------------------------------------------------------

    async def _subscriptions(self) -> Subscriptions:
        """As RabbitMQ's bindings are now; if it does not say, as the code declares; else nobody knows."""
        from broker.tools.management import Management  # httpx takes a while to import

        try:
            async with asyncio.timeout(PATIENCE), Management.of(self._settings) as management:
                return await bound(management, self._settings)
        except ContractError:  # its address is none
            raise
        except TimeoutError:
            silence = f"It gave no answer within {PATIENCE:g} s."
        except ValidationError:
            silence = "Its answer could not be read."
        except BrokerError as error:
            silence = str(error)
        try:
            services = find_services(self._modules)
        except BrokerError as error:
            return Subscriptions(silence=f"{silence} {error}")
        patterns = {it.name: tuple(it.handlers.bindings) for it in services if it.subscribes}
        return Subscriptions(FROM_CODE, patterns, silence=silence)

    async def _told_of(self, found: Found) -> Story:
        """The story; if something is open, with how the services stand."""
        story = tell(found, self._expected, None, datetime.now(UTC))
        if not any(delivered.open for _, delivered in story.deliveries()):
            return story
        from broker.tools.management import Management

        standing: dict[str, ServiceStatus] | None = None
        try:
            async with asyncio.timeout(PATIENCE), Management.of(self._settings) as management:
                standing = {it.service: it for it in (await read_status(management)).services}
        except (BrokerError, ValidationError, TimeoutError):
            pass
        return tell(found, self._expected, standing, datetime.now(UTC))

    # -- what somebody may have meant --------------------------------------------------------------------------------

    async def _not_found(self, log: EventLog, span: Span, wanted: UUID, since: datetime | None) -> str:
        """That nothing of a story is there, what is near it, and what it may have been."""
        if since is not None:
            after = f"{since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
            return f"Nothing of the story {wanted} is in the event log since {after}. Leave out --since."
        reach = await self._reach(log, span)
        at = time_of(wanted)
        said = f" Its id is of {at:%Y-%m-%d %H:%M:%S} UTC." if at is not None else ""
        near = await self._near(log, span, at)
        told = [f"{it.name} {it.correlation_id} ({it.at:%H:%M:%S})" for it in near[:3]]
        around = f" Around that time: {'; '.join(told)}." if told and at is not None else ""
        hint = near_miss(str(wanted), [str(it.correlation_id) for it in near])
        return f"Nothing of the story {wanted} is in the event log, which holds {reach}.{said}{hint or around}"

    async def _near(self, log: EventLog, span: Span, at: datetime | None) -> list[Heading]:
        """Stories whose events are next to a time, the nearest first; without one, the log's last."""
        found: dict[UUID, Heading] = {}
        begin = max(span.first, span.end - NEAR)
        if at is not None and at.year > 1970:
            begin = min(begin, await log.place(at - BEFORE))
        async for entry in self._entries(log, Span(begin, min(span.end, begin + NEAR))):
            envelope = meant(entry, EVERYTHING)
            if envelope is not None:
                story = envelope.story.correlation_id
                found.setdefault(story, Heading(story, envelope.name, envelope.time))
        return sorted(found.values(), key=lambda it: abs(it.at - (at or it.at)))

    async def _reach(self, log: EventLog, span: Span) -> str:
        """How much the log holds, for people."""
        first = await log.time_at(span.first) if span.first < span.end else None
        since = f", the oldest of {first:%Y-%m-%d %H:%M:%S} UTC" if first is not None else ""
        return f"{span.end - span.first:,} messages{since}"


EVERYTHING = Wanted("everything", None, lambda envelope: True)


class Stop:
    """When to stop reading.

    Args:
        until: how late in the log to give up, if the story's first event has not turned up.
        within: how much to read after it; None: until it is complete.

    Attributes:
        why: it was ended before everything was told; empty: it was not.
    """

    def __init__(self, until: datetime | None, gathering: Gathering, within: timedelta | None) -> None:
        self._until = until
        self._gathering = gathering
        self._within = within
        self._complete: tuple[datetime, int] | None = None
        self.why = ""

    def reached(self, count: int, late: datetime) -> bool:
        """Whether to stop, so many messages on, so late in the log."""
        gathering = self._gathering
        if gathering.belongs_to is not None:
            return True
        if not gathering.begun:
            return self._until is not None and late > self._until
        if self._within is not None:
            begun = gathering.found.events[gathering.found.correlation_id].envelope.time
            if late - begun > self._within and not gathering.complete:
                self.why = f"The log was read up to {late:%Y-%m-%d %H:%M:%S} UTC only, as --within says."
            return late - begun > self._within
        if not gathering.complete:
            self._complete = None
            return False
        since, at = self._complete = self._complete or (late, count)
        duration, messages = BEYOND
        return late - since > duration or count - at > messages


def meant(entry: Entry, wanted: Wanted) -> Envelope | None:
    """The event in a message, if it is one that is wanted."""
    if entry.message is None or entry.is_handlings or not contains(entry.message, wanted.holds):
        return None
    try:
        return entry.envelope if wanted.meant(entry.envelope) else None
    except Malformed:
        return None


async def bound(management: Management, settings: Settings) -> Subscriptions:
    """Who gets an event, as RabbitMQ's bindings are now. Raises as `Management` does."""
    queues, bindings = await asyncio.gather(management.queues(), management.bindings())
    counts = {queue.name: queue.ready + queue.unacked for queue in queues}
    patterns: dict[str, list[str]] = {}
    for binding in bindings:
        own = binding.source == settings.exchange and binding.destination_type == "queue"
        if own and binding.destination != settings.event_log:
            patterns.setdefault(binding.destination, []).append(binding.key)
    return Subscriptions(
        origin="RabbitMQ's bindings",
        patterns=patterns,
        silent=frozenset(name for name in patterns if dead_queue(name) not in counts),
        with_dead=frozenset(name for name in patterns if counts.get(dead_queue(name))),
    )
