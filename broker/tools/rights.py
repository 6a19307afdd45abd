"""What users may do, against what the services of the code need. Pure.

A right is one thing to be done. Whether a user has it is told by the regular expressions of its permissions, or by
having tried (`broker.rabbitmq.probe`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from broker.service import Service
from broker.settings import Settings
from broker.tools.snapshot import Finding, Snapshot
from broker.topology import Permissions, dead_queue, publisher_permissions, service_permissions

if TYPE_CHECKING:
    from broker.tools.management import Permission, TopicPermission

Kind: TypeAlias = Literal["configure", "write", "read", "publish", "subscribe"]

STRANGER = "somebody.else"
"""A name that no service owns: whoever may use it may use everything."""
CHECK = "permissions"


@dataclass(frozen=True, slots=True)
class Right:
    """Something to be done.

    Attributes:
        kind: ``publish`` and ``subscribe`` are write and read on a topic exchange, with a key or pattern.
        name: of the exchange or queue.
        service: who wants to.
        optional: it does its work without.
    """

    kind: Kind
    name: str
    key: str = ""
    service: str = ""
    optional: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        said = {"configure": "declare", "write": "write to", "read": "read", "publish": "publish"}
        return f"{said.get(self.kind, 'subscribe to')} {self.key or self.name!r}"


class Rights(Protocol):
    """What a user may do."""

    def allows(self, right: Right) -> bool | None:
        """Whether it may; None: nobody knows."""


@dataclass(frozen=True, slots=True)
class Expressions:
    """As the management API tells them. ``topics``: write and read, by exchange; without, every key is allowed."""

    user: str
    vhost: str
    configure: str
    write: str
    read: str
    topics: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def allows(self, right: Right) -> bool | None:
        if right.kind in {"publish", "subscribe"}:
            write, read = self.topics.get(right.name, (".*", ".*"))
            expression = write if right.kind == "publish" else read
            for variable, value in (("{username}", self.user), ("{vhost}", self.vhost)):
                expression = expression.replace(variable, value)
            return _matches(expression, right.key)
        return _matches(getattr(self, right.kind), right.name)


def _matches(expression: str, name: str) -> bool | None:
    """As RabbitMQ does: anywhere in the name, and an empty expression matches nothing."""
    try:
        return bool(expression) and re.search(expression, name) is not None
    except re.error:  # Erlang takes more than Python
        return None


@dataclass(frozen=True, slots=True)
class Tried:
    """As it turned out when tried."""

    answers: Mapping[Right, bool]

    def allows(self, right: Right) -> bool | None:
        return self.answers.get(right)


def from_management(
    vhost: str, permissions: Iterable[Permission], topics: Iterable[TopicPermission]
) -> dict[str, Rights]:
    """The rights of all users."""
    limits: dict[str, dict[str, tuple[str, str]]] = {}
    for it in topics:
        limits.setdefault(it.user, {})[it.exchange] = (it.write, it.read)
    return {
        it.user: Expressions(it.user, vhost, it.configure, it.write, it.read, limits.get(it.user, {}))
        for it in permissions
    }


def needed(service: Service, settings: Settings) -> list[Right]:
    """What a service does with its user. `permissions_of` grants it, and not much more."""
    name, exchange = service.name, settings.exchange
    rights: list[Right] = []
    if service.handlers:
        own = (name, dead_queue(name))
        rights += [Right("configure", it, service=name) for it in own]
        rights += [Right("write", name, service=name), Right("read", name, service=name)]
        rights.append(Right("read", exchange, service=name))
        rights += [Right("subscribe", exchange, pattern, name) for pattern in service.handlers.bindings]
        if settings.log and settings.record_handlings:
            rights.append(Right("write", settings.handlings_exchange, service=name, optional=True))
        if settings.log and service.backfill is not None:
            rights.append(Right("read", settings.event_log, service=name))
    keys = sorted({event.__contract__.key for event in service.publishes})
    if keys:
        rights.append(Right("write", exchange, service=name))
        rights += [Right("publish", exchange, key, name) for key in keys]
    return rights


def too_much(exchange: str) -> list[Right]:
    """What nobody needs who is no administrator."""
    whole: list[Right] = [Right("configure", STRANGER), Right("write", STRANGER), Right("read", STRANGER)]
    return [*whole, Right("publish", exchange, STRANGER), Right("subscribe", exchange, STRANGER)]


def permissions_of(service: Service, settings: Settings) -> Permissions:
    """Least privilege of a service's user."""
    keys = {event.__contract__.key for event in service.publishes}
    if not service.handlers:
        return publisher_permissions(settings, keys)
    backfill = service.backfill is not None
    return service_permissions(
        service.name, settings, patterns=service.handlers.bindings, publishes=keys, backfill=backfill
    )


def reader_permissions(settings: Settings) -> Permissions:
    """Least privilege of whoever reads the event log: `broker tail`, `log` and `story`. Declares nothing."""
    read = f"^{re.escape(settings.event_log)}$"
    return Permissions(configure="^$", write="^$", read=read, topic_write="^$", topic_read="^$")


def replay_permissions(service: str, settings: Settings) -> Permissions:
    """Least privilege of whoever replays to a service: its lock, its exchange, and the event log."""
    own = re.escape(service)
    return replace(reader_permissions(settings), configure=rf"^{own}\.replay$", write=f"^{own}$")


def grants(snapshot: Snapshot, service: Service, user: str) -> tuple[str, ...]:
    """The commands that give a user what a service needs, and no more."""
    may = permissions_of(service, snapshot.settings)
    exchange = snapshot.settings.exchange
    return (
        snapshot.control("set_permissions", user, may.configure, may.write, may.read),
        snapshot.control("set_topic_permissions", user, exchange, may.topic_write, may.topic_read),
    )


def check_permissions(snapshot: Snapshot) -> Iterator[Finding]:
    """Who may too little, and who too much."""
    used = dict(_users(snapshot))
    for service in snapshot.services or ():
        for user in sorted(used.get(service.name, ())):
            yield from _too_little(snapshot, service, user)
    for user in sorted({user for users in used.values() for user in users}):
        yield from _too_much(snapshot, user, [name for name, users in used.items() if user in users])
    own, rights = _own(snapshot)
    if rights is not None and snapshot.listening and not any(_could_be(it, rights) for it in snapshot.listening):
        what = f"The user {own!r} can run none of the services in the code: it may declare the queue of none."
        yield Finding("note", CHECK, what, "That is as it should be for somebody who only looks.")


def _own(snapshot: Snapshot) -> tuple[str, Rights | None]:
    """The user of our own connection."""
    user = snapshot.amqp.user if snapshot.amqp is not None else ""
    return user, snapshot.rights.get(user)


def _could_be(service: Service, rights: Rights) -> bool:
    """Whether the user is made for this service, among others perhaps."""
    return bool(rights.allows(Right("configure", service.name, service=service.name)))


def _users(snapshot: Snapshot) -> Iterator[tuple[str, frozenset[str]]]:
    """As whom each service works, as its connections say; and our own user, if it is made for the service.

    A user that may do everything is taken for a service's only where nobody else is.
    """
    own, rights = _own(snapshot)
    for service in snapshot.services or ():
        users = snapshot.users.get(service.name, frozenset())
        if rights is not None and service.handlers and _could_be(service, rights):
            everywhere = rights.allows(Right("configure", STRANGER))
            users = users if users and everywhere else users | {own}
        if users:
            yield service.name, users


def _too_little(snapshot: Snapshot, service: Service, user: str) -> Iterator[Finding]:
    rights = snapshot.rights.get(user)
    if rights is None:
        return
    missing = [right for right in needed(service, snapshot.settings) if rights.allows(right) is False]
    must = [right for right in missing if not right.optional]
    if must:
        what = f"{service.name}: its user {user!r} may not {_listed(must)}."
        why = "The service ends at its start with exit code 4, or what it publishes is refused."
        yield Finding("problem", CHECK, what, why, grants(snapshot, service, user))
    elif missing:
        what = f"{service.name}: its user {user!r} may not {_listed(missing)}."
        why = "It does its work; `broker story` does not know what became of events in it."
        yield Finding("warning", CHECK, what, why, grants(snapshot, service, user))


def _listed(rights: Iterable[Right]) -> str:
    said = [str(right) for right in rights]
    return ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")


def _too_much(snapshot: Snapshot, user: str, services: list[str]) -> Iterator[Finding]:
    rights = snapshot.rights.get(user)
    if rights is None:
        return
    settings = snapshot.settings
    beyond = [right for right in too_much(settings.exchange) if rights.allows(right)]
    if not beyond:
        return
    every = len(beyond) == len(too_much(settings.exchange))
    kinds = " and ".join(dict.fromkeys(_kind(right) for right in beyond))
    what = f"The user {user!r} may {'do everything' if every else kinds}: more than {_names(services)} needs."
    first = next(service for service in snapshot.services or () if service.name == services[0])
    create = () if user == first.name else (shlex.join(["rabbitmqctl", "add_user", first.name]),)
    why = (
        "A mistake in one service, or its password in the wrong hands, reaches every queue. A user for each needs "
        f"little (docs/topology.md lists it). For {first.name}:"
    )
    yield Finding("note", CHECK, what, why, (*create, *grants(snapshot, first, first.name)))


def _kind(right: Right) -> str:
    said = {"configure": "declare anything", "write": "write anywhere", "read": "read anything"}
    return said.get(right.kind, "publish any event" if right.kind == "publish" else "subscribe to any event")


def _names(services: list[str]) -> str:
    return services[0] if len(services) == 1 else f"any of {len(services)} services"
