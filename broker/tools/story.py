"""What came of one event: every event of its story, what each service did with each, and what is still waiting. Pure.

The events are the log's, and so is what services tell of their handlings. Who should have handled an event is what
RabbitMQ's bindings say now, or else the code.

Rules:

- An event stands after its cause, and a handling after its event, whatever the clocks of their hosts say; only then
  time decides. Times that were moved for it are marked.
- Of an event that was published twice under its id, the first counts.
- What has no record is not called lost: a service may not record, or may have subscribed later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias
from uuid import UUID

from broker.envelope import Envelope
from broker.errors import BrokerError, Malformed
from broker.eventlog import Handling
from broker.handlings import Outcome
from broker.retry import Delay
from broker.tools.status import ServiceStatus
from broker.topology import matches

Ending: TypeAlias = Outcome | Literal["waiting", "unrecorded"]
"""How it stands with one event in one service: how its last handling ended, or that there is none."""

FROM_CODE = "the code"
"""What `Subscriptions.origin` is where the management API did not say."""
YOUNG = timedelta(seconds=3)
"""How long it may take until a handling is recorded and stored."""
SKEW = timedelta(milliseconds=100)
"""How much a time may be moved behind its cause without being marked: clocks never agree quite."""


@dataclass(frozen=True, slots=True)
class Subscriptions:
    """Who gets an event.

    Attributes:
        origin: who says so, for people; empty: nobody.
        patterns: what each service's queue is bound by.
        silent: queues of others, bound as well: nothing is recorded of them.
        with_dead: services that have dead letters now; None: nobody knows.
        silence: why the management API did not say, if it did not.
    """

    origin: str = ""
    patterns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()
    with_dead: frozenset[str] | None = None
    silence: str = ""

    def of(self, key: str) -> list[str]:
        """The services, and queues of others, that get an event with this key."""
        return [it for it, patterns in self.patterns.items() if any(matches(pattern, key) for pattern in patterns)]

    def is_final(self, handling: Handling) -> bool:
        """Whether nothing more is to come. Dead letters that are not there any more may have been sent back."""
        if handling.outcome == "dead":
            return self.with_dead is None or handling.service in self.with_dead
        return handling.outcome != "retrying"


@dataclass(slots=True)
class Published:
    """An event as the log has it, and how often."""

    envelope: Envelope
    times: int = 1


@dataclass(slots=True)
class Found:
    """What a reading of the log has found of one story so far.

    Attributes:
        handlings: by event and service, as they were recorded.
        first: when the oldest message of the log was published, if the story may have begun before.
        read_to: when the last message that was read was published.
        ended: why it was read no further.
    """

    correlation_id: UUID
    events: dict[UUID, Published] = field(default_factory=dict)
    handlings: dict[UUID, dict[str, list[Handling]]] = field(default_factory=dict)
    first: datetime | None = None
    read_to: datetime | None = None
    ended: str = ""

    def add(self, envelope: Envelope) -> None:
        """An event."""
        if (known := self.events.get(envelope.id)) is not None:
            known.times += 1
        else:
            self.events[envelope.id] = Published(envelope)

    def add_handling(self, handling: Handling) -> None:
        """A handling. The log may hold one twice."""
        noted = self.handlings.setdefault(handling.event_id, {}).setdefault(handling.service, [])
        if handling not in noted:
            noted.append(handling)

    @property
    def empty(self) -> bool:
        """Nothing at all was found."""
        return not self.events and not self.handlings


@dataclass(frozen=True, slots=True)
class Attempt:
    """One handling, on the story's clock.

    Attributes:
        began: when it began: not before its event, nor before the attempt before it ended.
        after: since its event was published; of a later attempt, since the one before ended.
        moved: its own clock says another time.
    """

    handling: Handling
    began: datetime
    after: timedelta
    moved: bool

    @property
    def ended(self) -> datetime:
        """When it ended."""
        return later(self.began, self.handling.took)


@dataclass(frozen=True, slots=True)
class Delivered:
    """One event in one service.

    Attributes:
        ending: how it stands.
        note: what is still open, in words; empty when nothing is.
        due: when it is handled again, if it waits for that.
    """

    service: str
    attempts: tuple[Attempt, ...]
    ending: Ending
    note: str = ""
    due: datetime | None = None

    @property
    def open(self) -> bool:
        """Something is still to come, as far as is known."""
        return self.ending in ("waiting", "retrying")


@dataclass(frozen=True, slots=True)
class Step:
    """One event of a story, with what became of it.

    Attributes:
        envelope: the event; None when only its handlings are in the log.
        at: when it was published, on the story's clock.
        after: since its cause was published; None for one without a cause in the story.
        moved: its own clock says another time.
        times: how often it was published under its id.
    """

    id: UUID
    name: str
    envelope: Envelope | None
    at: datetime
    after: timedelta | None
    moved: bool
    times: int
    deliveries: tuple[Delivered, ...]

    @property
    def publisher(self) -> str | None:
        """Who published it; None when nobody knows."""
        return self.envelope.source if self.envelope is not None else None

    @property
    def cause(self) -> UUID | None:
        """The id of the event that caused it."""
        return self.envelope.story.causation_id if self.envelope is not None else None

    @property
    def rows(self) -> list[tuple[Delivered, Attempt | None]]:
        """What the services did with it, as it happened; at the end what is still to come, or has no record."""
        attempts = [(delivered, attempt) for delivered in self.deliveries for attempt in delivered.attempts]
        attempts.sort(key=lambda it: it[1].began)
        return [*attempts, *((delivered, None) for delivered in self.deliveries if delivered.note)]

    @property
    def data(self) -> Any:
        """The payload; None when there is none to be read."""
        try:
            return self.envelope.data if self.envelope is not None else None
        except (Malformed, ValueError):
            return None


class Arrow(NamedTuple):
    """Who told whom what: ``order ─ New Order Placed → packing``."""

    publisher: str
    event: str
    subscriber: str

    def __str__(self) -> str:
        return f"{self.publisher} ─ {self.event} → {self.subscriber}"


@dataclass(frozen=True)
class Story:
    """Everything that came of one event, causes first.

    Attributes:
        expected: who says which services should handle an event; empty: nobody.
        notes: what one should know to read it rightly.
    """

    correlation_id: UUID
    steps: tuple[Step, ...]
    expected: str
    read_to: datetime | None
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """Its first event's name."""
        return self.steps[0].name

    @property
    def subject(self) -> str | None:
        """What it is about, as its first event says."""
        envelope = self.steps[0].envelope
        return envelope.subject if envelope is not None else None

    @property
    def begun(self) -> datetime:
        """When its first event was published."""
        return self.steps[0].at

    @cached_property
    def ended(self) -> datetime:
        """When the last thing happened that is known."""
        ends = [attempt.ended for _, delivered in self.deliveries() for attempt in delivered.attempts]
        return max([*ends, *(step.at for step in self.steps)])

    @cached_property
    def lifelines(self) -> tuple[str, ...]:
        """Everybody in it: who published, in order, and then who only subscribed."""
        publishers = [step.publisher or "" for step in self.steps]
        return tuple(dict.fromkeys([*publishers, *(delivered.service for _, delivered in self.deliveries())]))

    def deliveries(self) -> Iterator[tuple[Step, Delivered]]:
        """Each event in each service, in order."""
        return ((step, delivered) for step in self.steps for delivered in step.deliveries)

    def arrows(self) -> list[Arrow]:
        """Who told whom, in order."""
        return [Arrow(step.publisher or "", step.name, it.service) for step, it in self.deliveries()]

    def count(self, *endings: Ending) -> int:
        """How many deliveries stand so."""
        return sum(delivered.ending in endings for _, delivered in self.deliveries())

    @property
    def summary(self) -> str:
        """How it stands, in words: ``3 events within 204 ms: 10 handled.``"""
        counts = {
            "handled": self.count("handled", "duplicate"),
            "dead": self.count("dead"),
            "waiting": self.count("waiting", "retrying"),
            "without a record": self.count("unrecorded"),
        }
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count or what == "handled")
        events = f"{len(self.steps)} event{'' if len(self.steps) == 1 else 's'}"
        return f"{events} within {elapsed(self.ended - self.begun)}: {told}."

    def position(self, event_id: UUID) -> int | None:
        """Where in the story an event stands, from 0."""
        return self._positions.get(event_id)

    @cached_property
    def _positions(self) -> dict[UUID, int]:
        return {step.id: position for position, step in enumerate(self.steps)}

    def as_json(self) -> dict[str, Any]:
        """The story for programs."""
        return {
            "correlation_id": str(self.correlation_id),
            "begun": self.begun.isoformat(),
            "ended": self.ended.isoformat(),
            "settled": not self.count("waiting", "retrying", "unrecorded"),
            "expected_from": self.expected or None,
            "read_to": self.read_to.isoformat() if self.read_to else None,
            "events": [_step_as_json(step) for step in self.steps],
            "notes": list(self.notes),
        }


def _step_as_json(step: Step) -> dict[str, Any]:
    envelope = step.envelope
    about: dict[str, Any] = {}
    if envelope is not None:
        about = {
            "key": envelope.key,
            "source": envelope.source,
            "subject": envelope.subject,
            "version": envelope.version,
            "time": envelope.time.isoformat(),
            "causation_id": str(step.cause) if step.cause else None,
            "data": step.data,
        }
    return {
        "id": str(step.id),
        "name": step.name,
        "in_log": envelope is not None,
        "published": step.times,
        **about,
        "subscribers": [
            {
                "service": delivered.service,
                "outcome": delivered.ending,
                "note": delivered.note or None,
                "due": delivered.due.isoformat() if delivered.due else None,
                "attempts": [
                    attempt.handling.model_dump(mode="json", include=_OF_AN_ATTEMPT, exclude_none=True)
                    for attempt in delivered.attempts
                ],
            }
            for delivered in step.deliveries
        ],
    }


_OF_AN_ATTEMPT = {"outcome", "attempt", "started", "took", "handler", "error", "delay"}


def later(at: datetime, seconds: float) -> datetime:
    """A moment, and so much later; Python's last, if that is beyond it: somebody's clock says so."""
    try:
        return at + timedelta(seconds=seconds)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


# -- in words --------------------------------------------------------------------------------------------------------


def elapsed(time: timedelta) -> str:
    """A duration for people: ``12 ms``, ``1.03 s``, ``2 min 5 s``, ``3 h 5 min``, ``2 d 4 h``."""
    seconds = max(0.0, time.total_seconds())
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.995:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def how_it_ended(attempt: Attempt, *, brief: bool = False) -> str:
    """One attempt, without its error: ``handled in 3 ms``, ``attempt 2: failed after 3 ms, again in 30s``."""
    it = attempt.handling
    took = elapsed(timedelta(seconds=it.took))
    after, during = ("", "") if brief else (f" after {took}", f" in {took}")
    words = {
        "handled": f"handled{during}",
        "duplicate": "duplicate, no second effect",
        "retrying": f"failed{after}, again in {it.delay}",
        "dead": f"dead letter{after}",
    }[it.outcome]
    return f"attempt {it.attempt}: {words}" if it.attempt > 1 else words


def what_is_open(delivered: Delivered, *, brief: bool = False) -> str:
    """What is still to come, or has no record."""
    if delivered.ending == "unrecorded":
        return "no record" if brief else f"no record: {delivered.note}"
    if delivered.due is None:
        return f"waiting: {delivered.note}"
    due = f"{delivered.due.astimezone(UTC):%H:%M:%S} UTC"
    return f"waiting until {due}" if brief else f"waiting: {delivered.note}, due {due}"


# -- from what was found to a story ----------------------------------------------------------------------------------


def tell(found: Found, expected: Subscriptions, standing: Mapping[str, ServiceStatus] | None, now: datetime) -> Story:
    """The story of what was found, which is not nothing.

    Args:
        standing: how the services stand now; None: nobody knows.
    """
    clock = _Clock(found)
    steps = []
    for event_id in clock.order:
        published = found.events.get(event_id)
        at, cause = clock.at(event_id), clock.cause(event_id)
        steps.append(
            Step(
                id=event_id,
                name=clock.name(event_id),
                envelope=published.envelope if published else None,
                at=at,
                after=at - clock.at(cause) if cause is not None else None,
                moved=at - clock.said(event_id) > SKEW,
                times=published.times if published else 0,
                deliveries=_deliveries(event_id, found, clock, expected, _Standing(standing, now)),
            )
        )
    return Story(
        correlation_id=found.correlation_id,
        steps=tuple(steps),
        expected=expected.origin,
        read_to=found.read_to,
        notes=tuple(_notes(found, steps, expected)),
    )


class _Clock:
    """When everything happened, so that nothing stands before its cause.

    Attributes:
        order: the events, causes first.
    """

    def __init__(self, found: Found) -> None:
        self._found = found
        self._at: dict[UUID, datetime] = {}
        self._depth: dict[UUID, int] = {}
        ids = [*found.events, *(it for it in found.handlings if it not in found.events)]
        for event_id in ids:
            self._place(event_id)
        position = {event_id: position for position, event_id in enumerate(ids)}
        self.order = sorted(ids, key=lambda it: (self._at[it], self._depth[it], position[it]))

    def at(self, event_id: UUID) -> datetime:
        """When an event was published."""
        return self._at[event_id]

    def said(self, event_id: UUID) -> datetime:
        """When it says it was; of one that is not in the log, when its handling began."""
        if (published := self._found.events.get(event_id)) is not None:
            return published.envelope.time
        return min(it.started for noted in self._found.handlings[event_id].values() for it in noted)

    def name(self, event_id: UUID) -> str:
        """Its business event name."""
        if (published := self._found.events.get(event_id)) is not None:
            return published.envelope.name
        return next(it.name for noted in self._found.handlings[event_id].values() for it in noted)

    def cause(self, event_id: UUID) -> UUID | None:
        """The event of this story that caused it. What claims to be caused by its own effect has none."""
        cause = self._claimed(event_id)
        return cause if cause is not None and self._depth[cause] < self._depth[event_id] else None

    def attempts(self, event_id: UUID, service: str) -> tuple[Attempt, ...]:
        """What a service did with an event, in order."""
        noted = self._found.handlings.get(event_id, {}).get(service, [])
        numbers = [it.attempt for it in noted]
        different = len(set(numbers)) == len(numbers)  # else it was sent back, or came twice
        attempts: list[Attempt] = []
        before = self._at[event_id]
        for it in sorted(noted, key=lambda it: (it.attempt if different else 0, it.started)):
            began = max(it.started, before)
            attempts.append(Attempt(it, began, began - before, moved=began - it.started > SKEW))
            before = attempts[-1].ended
        return tuple(attempts)

    def _claimed(self, event_id: UUID) -> UUID | None:
        published = self._found.events.get(event_id)
        cause = published.envelope.story.causation_id if published is not None else None
        return cause if cause in self._found.events or cause in self._found.handlings else None

    def _place(self, event_id: UUID) -> None:
        """Place an event, its causes first: in a line, since a story may be longer than Python is deep."""
        if event_id in self._at:
            return
        line = {event_id: self._claimed(event_id)}
        while (cause := line[event_id]) is not None and cause not in self._at and cause not in line:
            line[cause], event_id = self._claimed(cause), cause
        for event_id, cause in reversed(line.items()):
            if cause is None or cause not in self._at:
                self._at[event_id], self._depth[event_id] = self.said(event_id), 0
            else:
                self._at[event_id] = max(self.said(event_id), self._handled_at(cause, event_id))
                self._depth[event_id] = self._depth[cause] + 1

    def _handled_at(self, cause: UUID, event_id: UUID) -> datetime:
        """The earliest an effect can have been published: when the handling that published it began."""
        source = self._found.events[event_id].envelope.source
        well = [it for it in self.attempts(cause, source) if it.handling.outcome == "handled"]
        return well[0].began if well else self._at[cause]


@dataclass(frozen=True, slots=True)
class _Standing:
    """How the services stand, if somebody knows, and when that was."""

    services: Mapping[str, ServiceStatus] | None
    now: datetime


def _deliveries(
    event_id: UUID, found: Found, clock: _Clock, expected: Subscriptions, standing: _Standing
) -> tuple[Delivered, ...]:
    published = found.events.get(event_id)
    bound = expected.of(published.envelope.key) if published is not None else []
    services = dict.fromkeys([*found.handlings.get(event_id, {}), *bound])
    delivered = [
        _delivered(service, clock.attempts(event_id, service), clock.at(event_id), expected, standing)
        for service in services
    ]
    never = datetime.max.replace(tzinfo=UTC)
    return tuple(sorted(delivered, key=lambda it: (it.attempts[0].began if it.attempts else never, it.service)))


def _delivered(
    service: str, attempts: tuple[Attempt, ...], published: datetime, expected: Subscriptions, standing: _Standing
) -> Delivered:
    if not attempts:
        ending, note = _without_record(service, published, expected, standing)
        return Delivered(service, attempts, ending, note)
    last = attempts[-1]
    if last.handling.outcome != "retrying":
        return Delivered(service, attempts, last.handling.outcome)
    try:
        due = later(last.ended, Delay.parse(last.handling.delay or "").seconds)
    except BrokerError:
        return Delivered(service, attempts, "retrying", "in its retry queue")
    return Delivered(service, attempts, "retrying", _until(due, service, standing), due)


def _until(due: datetime, service: str, standing: _Standing) -> str:
    if due > standing.now:
        return "in its retry queue"
    status = standing.services.get(service) if standing.services is not None else None
    if status is not None and not status.waiting and not status.ready and not status.unacked:
        return "left its retry queue, and nothing is recorded since"
    return "due again, and nothing is recorded since"


def _without_record(
    service: str, published: datetime, expected: Subscriptions, standing: _Standing
) -> tuple[Ending, str]:
    """Why there may be no record of an event in a service that should have got it."""
    if service in expected.silent:
        return "unrecorded", "a queue of no service of ours: its handlings are not recorded"
    status = standing.services.get(service) if standing.services is not None else None
    if status is None:
        return "waiting", "not handled, or not recorded"
    if not status.ready and not status.unacked:
        if standing.now - published < YOUNG:
            return "waiting", "not recorded yet"
        return "unrecorded", "its queue is empty: not recorded, or subscribed later"
    stand = [f"{count} {how}" for count, how in ((status.ready, "in its queue"), (status.unacked, "in hand")) if count]
    if status.paused:
        stand.append(f"paused {status.paused}")
    elif status.stopped:
        stand.append("no consumer")
    return "waiting", ", ".join(stand)


def _notes(found: Found, steps: Iterable[Step], expected: Subscriptions) -> Iterator[str]:
    """What one should know to read a story rightly."""
    steps = list(steps)
    ids = {step.id for step in steps}
    headless = [step for step in steps if step.envelope is None or (step.cause is not None and step.cause not in ids)]
    if headless:
        since = f", which reaches back to {found.first:%Y-%m-%d %H:%M:%S} UTC only" if found.first else ""
        yield f"Its beginning is not in the event log{since}."
    if any(step.moved or any(a.moved for d in step.deliveries for a in d.attempts) for step in steps):
        yield "The clocks of its hosts differ: times marked ~ were moved behind their cause."
    if expected.origin == FROM_CODE:
        yield f"Who should have handled it is what the code here says: the management API did not. {expected.silence}"
    if not expected.origin:
        yield (
            "Who else has subscribed is not known: neither the management API nor the code could be asked. "
            f"{expected.silence}"
        )
    if found.ended:
        yield found.ended
