"""How every service stands, read from RabbitMQ's management API: for three in the morning, on one screen.

Counts are at most 5 s old, rates an average over the last seconds. Looking changes nothing: only dead letters and the
heads of retry queues are looked into, which may be looked at without end; a service's own queue is only counted.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from broker.backfill.note import Note
from broker.errors import BrokerError, ContractError, near_miss
from broker.retry import Delay
from broker.tools.discover import locate_services
from broker.topology import SERVICE_NAME, backfill_lock, backfill_queue, dead_queue

if TYPE_CHECKING:
    from broker.tools.management import Activity, Management, Message, Queue, Sample

LOOKED_AT = 100
"""Dead letters looked at for the most frequent error, the oldest ones."""
HISTORY = timedelta(hours=1)
"""How far back RabbitMQ remembers how much was published to a queue."""
MANY = 1000
"""Ready events from which on a queue that grows wants another process."""
PAUSED = re.compile(r" paused (until .+)")


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in one retry queue, and when its first is due."""

    delay: Delay
    count: int
    due: datetime | None


@dataclass(frozen=True, slots=True)
class Backfilling:
    """An unfinished backfill: how much of the event log is done, of how much, and whether a process is at it."""

    done: int
    of: int | None
    running: bool

    def __str__(self) -> str:
        return f"{self.done:,} of {self.of:,}" if self.of is not None else f"{self.done:,}"


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """How one service stands.

    Attributes:
        ready: events in its queue, waiting to be taken.
        unacked: events its processes have in hand.
        waiting: what failed and waits for its next attempt, by delay.
        dead: dead letters.
        consumers: its processes that consume.
        rate_in: events a second that came.
        rate_out: events a second that left.
        oldest: for how long the oldest ready event has waited, to a minute; None if nothing is ready or nobody knows.
        error: the most frequent error among the oldest dead letters, else among what waits.
        error_count: how often that was.
        paused: until when and why, if a process of it is.
        backfill: if it is unfinished.
    """

    service: str
    ready: int = 0
    unacked: int = 0
    waiting: tuple[Waiting, ...] = ()
    dead: int = 0
    consumers: int = 0
    rate_in: float = 0.0
    rate_out: float = 0.0
    oldest: timedelta | None = None
    error: str | None = None
    error_count: int = 0
    paused: str | None = None
    backfill: Backfilling | None = None

    @property
    def stopped(self) -> bool:
        """Nobody consumes its queue, and nobody is about to."""
        return self.consumers == 0 and not (self.backfill and self.backfill.running)

    @property
    def left_off(self) -> bool:
        """Its backfill is unfinished, and no process is at it."""
        return self.backfill is not None and not self.backfill.running

    @property
    def falling_behind(self) -> bool:
        """Events come faster than they go, and many are ready."""
        return self.ready >= MANY and self.rate_in > self.rate_out

    def as_json(self) -> dict[str, Any]:
        """The status for programs."""
        return {
            "service": self.service,
            "ready": self.ready,
            "unacked": self.unacked,
            "waiting": [
                {"delay": str(it.delay), "count": it.count, "due": it.due.isoformat() if it.due else None}
                for it in self.waiting
            ],
            "dead": self.dead,
            "consumers": self.consumers,
            "rate_in": self.rate_in,
            "rate_out": self.rate_out,
            "oldest_seconds": self.oldest.total_seconds() if self.oldest is not None else None,
            "error": self.error,
            "error_count": self.error_count,
            "paused": self.paused,
            "backfill": asdict(self.backfill) if self.backfill is not None else None,
        }


@dataclass(frozen=True, slots=True)
class Status:
    """How everything stands.

    Attributes:
        alarms: of RabbitMQ's nodes: while there is one, nobody can publish.
        modules: where the code of a service is, as far as it was found.
    """

    version: str
    services: tuple[ServiceStatus, ...]
    alarms: tuple[str, ...] = ()
    modules: Mapping[str, str] = field(default_factory=dict)

    @property
    def next_command(self) -> str:
        """What to type next, for the worst that there is."""
        worse: list[tuple[Callable[[ServiceStatus], int], Callable[[str], str]]] = [
            (lambda it: it.stopped * (it.ready + 1), self._run),
            (lambda it: it.left_off, self._run),
            (lambda it: bool(it.paused) * (it.ready + 1), "broker status {} --watch".format),
            (lambda it: it.dead, "broker dead show {}".format),
            (lambda it: it.falling_behind * it.ready, self._run),
            (lambda it: sum(waiting.count for waiting in it.waiting), "broker dead show {} --waiting".format),
        ]
        for how_bad, command in worse:
            worst = max(self.services, key=how_bad, default=None)
            if worst is not None and how_bad(worst):
                return command(worst.service)
        return "broker tail" if self.services else "broker run MODULE"

    def _run(self, service: str) -> str:
        left_off = any(it.service == service and it.left_off for it in self.services)
        return f"broker run {self.modules.get(service, f'MODULE:{service}')}{' --backfill 7d' if left_off else ''}"

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "rabbitmq": self.version,
            "alarms": list(self.alarms),
            "services": [it.as_json() for it in self.services],
            "next": self.next_command,
        }


async def read_status(management: Management, service: str | None = None, modules: Iterable[str] = ()) -> Status:
    """How the services stand, or one of them.

    Raises:
        ContractError: there is no service of that name on RabbitMQ.
        ConnectionFailed, AccessRefused, ManagementFailed: the management API is not to be had.
    """
    queues = {queue.name: queue for queue in await management.queues()}
    names = [name for name in sorted(queues) if SERVICE_NAME.fullmatch(name) and dead_queue(name) in queues]
    if service is not None:
        if service not in names:
            known = ", ".join(names) or "none"
            raise ContractError(
                f"No service {service!r} has a queue on RabbitMQ.{near_miss(service, names)} Those that have: {known}."
            )
        names = [service]
    snapshot = Snapshot(queues, await management.consumer_tags(), await management.activity())
    services = await asyncio.gather(*(_service(management, name, snapshot) for name in names))
    return Status(await management.version(), tuple(services), await _alarms(management), where_services_are(modules))


def where_services_are(modules: Iterable[str]) -> dict[str, str]:
    """The module of each service, as ``broker run`` takes it; empty when the code is not here."""
    try:
        return locate_services(modules)
    except BrokerError:
        return {}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What RabbitMQ says of all queues at once."""

    queues: Mapping[str, Queue]
    tags: Mapping[str, list[str]]
    activity: Mapping[str, Activity]


async def _alarms(management: Management) -> tuple[str, ...]:
    try:
        return tuple(await management.alarms())
    except BrokerError:  # it takes the tag 'monitoring'
        return ()


async def _service(management: Management, name: str, snapshot: Snapshot) -> ServiceStatus:
    own, dead = snapshot.queues[name], snapshot.queues[dead_queue(name)]
    retry_queues = [it for it in snapshot.queues.values() if it.name.startswith(f"{name}.retry.") and it.ready]
    published = await management.published(name, HISTORY) if own.ready else []
    heads = {queue.name: await management.peek(queue.name, 10, most=0) for queue in retry_queues}
    errors = Counter(_errors(await management.peek(dead.name, LOOKED_AT, most=0)) if dead.ready else ())
    if not errors:
        errors = Counter(_errors([message for head in heads.values() for message in head]))
    error, count = errors.most_common(1)[0] if errors else (None, 0)
    tags = snapshot.tags.get(name, [])
    activity = snapshot.activity.get(name)
    return ServiceStatus(
        service=name,
        ready=own.ready,
        unacked=own.unacked,
        waiting=tuple(sorted((_waiting(queue, heads[queue.name]) for queue in retry_queues), key=lambda it: it.delay)),
        dead=dead.ready + dead.unacked,
        consumers=max(len(tags), activity.consumers if activity else 0),  # each lags in its own way
        rate_in=activity.published if activity else 0.0,
        rate_out=activity.acknowledged if activity else 0.0,
        oldest=oldest(published, own.ready, datetime.now(UTC)),
        error=error,
        error_count=count,
        paused=next((match[1] for tag in tags if (match := PAUSED.search(tag))), None),
        backfill=await _backfill(management, name, snapshot),
    )


async def _backfill(management: Management, name: str, snapshot: Snapshot) -> Backfilling | None:
    queue = backfill_queue(name)
    if queue not in snapshot.queues:
        return None
    running = backfill_lock(name) in snapshot.queues
    for message in await management.peek(queue, 1):
        with suppress(ValidationError):
            note = Note.model_validate_json(message.body)
            return Backfilling(note.next - note.first, note.end - note.first if note.end is not None else None, running)
    return Backfilling(0, None, running)


def _waiting(queue: Queue, head: Iterable[Message]) -> Waiting:
    delay = Delay(int(queue.arguments.get("x-message-ttl", 0)))
    due: datetime | None = None
    for message in head:
        try:
            failed_at = datetime.fromisoformat(str(message.headers.get("broker-failed-at")))
        except ValueError:
            continue
        due = failed_at + timedelta(seconds=delay.seconds)
        break
    return Waiting(delay, queue.ready, due)


def _errors(messages: Iterable[Message]) -> list[str]:
    """The error of each, as far as the headers tell."""
    found = []
    for message in messages:
        deaths = message.headers.get("x-death") or [{}]
        by_rabbitmq = {"rejected": "Malformed", "delivery_limit": "DeliveryLimit"}.get(deaths[0].get("reason", ""))
        found.append(by_rabbitmq or str(message.headers.get("broker-error", "unknown")))
    return found


def oldest(published: Sequence[Sample], ready: int, now: datetime) -> timedelta | None:
    """For how long the oldest of so many ready events has waited, told by when how many had been published.

    The oldest is the one before which all but ``ready`` of them had come. It is younger than the last sample before it.
    """
    if not ready or not published:
        return None
    before = max(it.count for it in published) - ready
    since = max((it.at for it in published if it.count <= before), default=min(it.at for it in published))
    return max(now - since, timedelta(0))
