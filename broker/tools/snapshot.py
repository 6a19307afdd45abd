"""What `broker doctor` has seen, and what it says about it: plain data, so that every check is a pure function.

None means "not known": the reading says why, and a check that needs it says nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import unquote, urlsplit

from broker.service import Service
from broker.settings import Settings
from broker.topology import backfill_lock, backfill_queue

if TYPE_CHECKING:
    from broker.tools.management import Activity, Binding, Exchange, FeatureFlag, Node, Policy, Queue
    from broker.tools.rights import Rights

Severity: TypeAlias = Literal["problem", "warning", "note"]
"""A problem: events are lost, refused or stuck, or will be. A warning: somebody should look. A note: good to know."""
SEVERITIES: tuple[Severity, ...] = ("problem", "warning", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        check: what found it.
        what: what it is, beginning with what it is about.
        why: why it matters.
        commands: what helps, to be typed one after the other.
    """

    severity: Severity
    check: str
    what: str
    why: str
    commands: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The finding for programs."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Door:
    """What answers at an address before any login.

    Attributes:
        address: host and port.
        version: RabbitMQ's, if one answers.
        why: why none does.
        instead: the beginning of an address that would: ``amqps://``.
        expires: days until its certificate ends, if it has one.
        cluster: the name of RabbitMQ's cluster.
    """

    address: str
    version: str | None = None
    why: str = ""
    instead: str = ""
    expires: float | None = None
    cluster: str = ""


@dataclass(frozen=True, slots=True)
class Access:
    """How a login went.

    Attributes:
        trouble: empty: it went well. ``silent``: nobody answers. ``login``: refused. ``vhost``: no such virtual host,
            or not for this user. ``tag``: the user has no tag for management. ``other``: ``why`` says.
        why: what was answered.
        instead: an address where somebody does answer.
        cluster: the name of RabbitMQ's cluster.
    """

    address: str = ""
    user: str = ""
    trouble: Literal["", "silent", "login", "vhost", "tag", "other"] = ""
    why: str = ""
    instead: str = ""
    cluster: str = ""


@dataclass(frozen=True, slots=True)
class Logged:
    """Events of one name and version in the log.

    Attributes:
        version: None: its publisher does not say.
        sources: who published them.
    """

    name: str
    version: int | None
    count: int
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogTail:
    """The latest messages of the event log: how many were looked at, how many are no events, what the others are, and
    where the first is that is none."""

    looked: int
    foreign: int = 0
    events: tuple[Logged, ...] = ()
    foreign_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All of it, at one moment.

    Attributes:
        services: of the code; None: it cannot be read, for ``code_error``.
        looked_in: where the code was looked for; empty: where ``BROKER_MODULES`` says.
        modules: where each service is, as ``broker run`` takes it.
        versions: of each event that the code knows, by name.
        doors: RabbitMQ's hosts; empty: they were not looked at.
        amqp, management: how the logins went; None: not tried.
        listed: whether queues, exchanges and bindings are all that there are. Else they are those of the code's that
            were found over AMQP, and nobody knows their arguments.
        conflicts: in what queues differ from the code, as RabbitMQ says it; where they are not listed.
        ailing: queues that answer and do not work, and why.
        paused: services, and until when and why.
        rights: of users, by name.
        users: as whom services are connected.
        skew: seconds by which RabbitMQ's clock is ahead of ours.
        outdated: packages that are older than they must be, and what is needed.
        unknown: what could not be looked at, and why.
    """

    settings: Settings
    services: Sequence[Service] | None = ()
    code_error: str = ""
    looked_in: Sequence[str] = ()
    modules: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, frozenset[int]] = field(default_factory=dict)
    doors: Sequence[Door] = ()
    amqp: Access | None = None
    management: Access | None = None
    version: str | None = None
    flags: Sequence[FeatureFlag] | None = None
    nodes: Sequence[Node] | None = None
    skew: float | None = None
    policies: Sequence[Policy] | None = None
    listed: bool = False
    queues: Mapping[str, Queue] | None = None
    exchanges: Mapping[str, Exchange] | None = None
    bindings: Sequence[Binding] | None = None
    conflicts: Mapping[str, str] = field(default_factory=dict)
    ailing: Mapping[str, str] = field(default_factory=dict)
    activity: Mapping[str, Activity] | None = None
    paused: Mapping[str, str] = field(default_factory=dict)
    rights: Mapping[str, Rights] = field(default_factory=dict)
    users: Mapping[str, frozenset[str]] = field(default_factory=dict)
    log: LogTail | None = None
    outdated: Mapping[str, str] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)

    @property
    def listening(self) -> list[Service]:
        """The services of the code that have a queue."""
        return [service for service in self.services or () if service.handlers]

    @property
    def vhost(self) -> str:
        """The virtual host."""
        return vhost_of(self.settings)

    def control(self, command: str, *words: str) -> str:
        """A ``rabbitmqctl`` command for this virtual host."""
        where = () if self.vhost == "/" else ("-p", self.vhost)
        return shlex.join(["rabbitmqctl", command, *where, *words])

    def run(self, service: str) -> str:
        """The command that runs a service."""
        backfill = ["--backfill", "7d"] if self.left_off(service) else []
        return shlex.join(["broker", "run", self.modules.get(service, f"MODULE:{service}"), *backfill])

    def left_off(self, service: str) -> bool:
        """Whether its backfill is unfinished, and no process is at it."""
        queues = self.queues or {}
        return backfill_queue(service) in queues and backfill_lock(service) not in queues

    def broker(self, command: str, *words: str) -> str:
        """A command of ours that looks for the code where this one did."""
        named = [word for name in self.looked_in for word in ("--from", name)]
        return shlex.join(["broker", command, *words, *named])

    @property
    def fix(self) -> str:
        """The command that declares what is missing."""
        return self.broker("doctor", "--fix")

    @property
    def prune(self) -> str:
        """The command that removes what is left over."""
        return self.broker("doctor", "--prune")

    @property
    def with_module(self) -> str:
        """The command that looks at code elsewhere, too. `--from` replaces ``BROKER_MODULES``, so all are named."""
        named = self.looked_in or (self.settings.modules if self.services else ())
        return shlex.join(["broker", "doctor", *(word for name in (*named, "MODULE") for word in ("--from", name))])

    def bound(self, queue: str) -> Iterator[Binding]:
        """What brings something to a queue; nothing, if that is not known."""
        for binding in self.bindings or ():
            if binding.destination_type == "queue" and binding.destination == queue:
                yield binding


def some(count: int, what: str) -> str:
    """So many of it, for people: ``1 event``, ``2 events``."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def vhost_of(settings: Settings) -> str:
    """The virtual host that the settings name."""
    return unquote(urlsplit(settings.hosts[0]).path[1:]) or "/"
