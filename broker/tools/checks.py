"""What may be wrong with RabbitMQ, and with what waits in it. Pure: each check tells from a snapshot what it finds."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias
from urllib.parse import urlsplit

from broker.events import Event
from broker.tools.catalogue import differ
from broker.tools.drift import CHECK as TOPOLOGY
from broker.tools.drift import LEFT_OVER, check_leftovers, check_topology, maker
from broker.tools.policies import check_limits, check_policies, size
from broker.tools.rights import CHECK as PERMISSIONS
from broker.tools.rights import check_permissions
from broker.tools.snapshot import Door, Finding, Logged, Severity, Snapshot, some
from broker.tools.status import MANY

OLDEST = (3, 10)
"""The oldest RabbitMQ that this project works on."""
WITH_FLAGS = (3, 8)
"""The first RabbitMQ that has feature flags: a later one does not start where some are off."""
SKEW = 5.0
"""Seconds by which clocks may differ."""
NEEDED_FLAGS = ("quorum_queue", "stream_queue")
OPTIONAL_FLAGS = ("khepri_db",)
"""Stable ones that are a choice, and cannot be taken back."""
EXPIRES_SOON = 14
"""Days before a certificate ends, from which on it is said."""
NEARLY = 0.85
"""The share of a node's memory limit from which on an alarm is near."""


# -- the code --------------------------------------------------------------------------------------------------------


def check_code(snapshot: Snapshot) -> Iterator[Finding]:
    """Whether it can be read, and publishers agree on what an event is."""
    if snapshot.code_error:
        why = "Without the code nobody knows what should stand on RabbitMQ."
        yield Finding("problem", "code", snapshot.code_error, why, (snapshot.with_module,))
    first: dict[tuple[str, int], tuple[str, type[Event]]] = {}
    for service in sorted(snapshot.services or (), key=lambda it: it.name):
        for event in service.publishes:
            contract = event.__contract__
            name, defined = first.setdefault((contract.name, contract.version), (service.name, event))
            if differ(defined, event):
                which = f"{contract.name} version {contract.version}"
                what = f"{which} has other fields from {service.name} than from {name}."
                why = f"Whoever reads it by one class sets aside what lacks a field. Here {name}'s counts."
                yield Finding("warning", "code", what, why, (snapshot.broker("events", contract.name),))


# -- connection ------------------------------------------------------------------------------------------------------


def check_connection(snapshot: Snapshot) -> Iterator[Finding]:
    """AMQP and management, each by itself."""
    check = "connection"
    nobody = bool(snapshot.doors) and not any(door.version for door in snapshot.doors)
    for door in snapshot.doors:
        if not door.version:
            yield from _closed(snapshot, door, "problem" if nobody else "warning")
        elif door.expires is not None and door.expires < EXPIRES_SOON:
            what = f"AMQP: the certificate of {door.address} ends in {max(0, int(door.expires))} days."
            yield Finding("warning", check, what, "Nobody can connect from then on. Renew it.")
    amqp = snapshot.amqp
    if amqp is not None and amqp.trouble:
        commands: dict[str, tuple[str, ...]] = {
            "other": ("rabbitmqctl status",),
            "login": (_control("authenticate_user", amqp.user),),
            "vhost": (
                _control("add_vhost", snapshot.vhost),
                snapshot.control("set_permissions", amqp.user, ".*", ".*", ".*"),
            ),
        }
        why = "Nothing is published or handled under this login."
        yield Finding("problem", check, f"AMQP: {amqp.why}", why, commands.get(amqp.trouble, ()))
    yield from _management(snapshot)
    yield from _two_places(snapshot)


def _two_places(snapshot: Snapshot) -> Iterator[Finding]:
    """Management of another RabbitMQ than the one we publish to is worse than none."""
    clusters = {door.cluster for door in snapshot.doors if door.cluster}
    management = snapshot.management
    if len(clusters) > 1:
        what = f"AMQP: the hosts in BROKER_URL are not one cluster: {', '.join(sorted(clusters))}."
        why = "A process is connected to one or the other, and sees nothing of the rest."
        yield Finding("problem", "connection", what, why, ("rabbitmqctl cluster_status",))
    elif clusters and management is not None and management.cluster and management.cluster not in clusters:
        what = f"AMQP is the cluster {clusters.pop()!r}, management at {management.address} is {management.cluster!r}."
        why = "What is said below, and by `broker status` and `broker map`, is not of the RabbitMQ that services use."
        yield Finding("problem", "connection", what, why, ("rabbitmqctl cluster_status",))


def _closed(snapshot: Snapshot, door: Door, severity: Severity) -> Iterator[Finding]:
    what = f"AMQP: no RabbitMQ answers at {door.address}: {door.why}."
    if door.instead:
        why = f"It does at {door.instead}…: the address in BROKER_URL has to begin so."
        yield Finding(severity, "connection", what, why, (f"export BROKER_URL={shlex.quote(_other_url(snapshot))}",))
        return
    why = "Nothing is published or handled." if severity == "problem" else "The other nodes carry on without it."
    yield Finding(severity, "connection", f"{what} Is BROKER_URL right?", why, ("rabbitmqctl status",))


def _other_url(snapshot: Snapshot) -> str:
    """BROKER_URL as it would do: each address begins as its host answers. For the password stands a word."""
    found = []
    for url, door in zip(snapshot.settings.hosts, snapshot.doors, strict=False):
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        user, colon, _ = login.partition(":")
        host = f"{user}{colon}{'PASSWORD' * len(colon)}{at}{door.address}"  # with its port: each scheme has its own
        found.append(parts._replace(scheme=door.instead.removesuffix("://") or parts.scheme, netloc=host).geturl())
    return ",".join(found)


def _management(snapshot: Snapshot) -> Iterator[Finding]:
    it = snapshot.management
    if it is None or not it.trouble:
        return
    amqp = snapshot.amqp
    why = "Most checks need it. Services and publishers do not."
    helps: tuple[str, ...] = ()
    if it.trouble == "silent" and it.instead:
        what = f"Management: nobody answers at {it.address}, but at {it.instead}."
        helps = (f"export BROKER_MANAGEMENT_URL={it.instead}",)
    elif it.trouble == "silent" and "certificate" in it.why.lower():
        what = f"Management: the certificate of {it.address} is not trusted: {it.why}."
        helps = ("export SSL_CERT_FILE=/path/to/ca.pem",)
    elif it.trouble == "silent":
        what = f"Management: nobody answers at {it.address}: {it.why}."
        why = f"Is the plugin off, or elsewhere (BROKER_MANAGEMENT_URL=http://user:password@host:port)? {why}"
        helps = ("rabbitmq-plugins enable rabbitmq_management",)
    elif it.trouble == "tag":
        what = f"Management: {it.address} refuses the user {it.user!r}: it has no tag."
        why = f"Give it one, or name another user: BROKER_MANAGEMENT_URL=http://user:password@host:port. {why}"
        helps = (_control("set_user_tags", it.user, "monitoring"),)
    elif it.trouble == "login":
        what = f"Management: {it.address} refuses the login of {it.user!r}: {it.why}."
        same = amqp is not None and amqp.user == it.user and not amqp.trouble
        why = "AMQP takes it. " * same + f"BROKER_MANAGEMENT_URL=http://user:password@host:port names another. {why}"
        helps = (_control("authenticate_user", it.user),)
    else:
        what = f"Management: {it.why}"
        helps = ("rabbitmq-diagnostics listeners",)
    yield Finding("problem", "connection", what, why, helps)


def _control(*words: str) -> str:
    """A ``rabbitmqctl`` command for all virtual hosts."""
    return shlex.join(["rabbitmqctl", *words])


# -- RabbitMQ itself -------------------------------------------------------------------------------------------------


def check_versions(snapshot: Snapshot) -> Iterator[Finding]:
    """RabbitMQ's, and those of the packages here."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", snapshot.version or "")[:2])
    if numbers and numbers < OLDEST:
        what = f"RabbitMQ is version {snapshot.version}. {'.'.join(map(str, OLDEST))} or later is needed."
        why = "It loses events in ways that this project relies on not to be. Upgrade it, with all feature flags on."
        helps = (_control("enable_feature_flag", "all"),) if numbers >= WITH_FLAGS else ()
        yield Finding("problem", "versions", what, why, helps)
    for package, needed in snapshot.outdated.items():
        why = "What is promised was tested with that or later."
        yield Finding("problem", "versions", f"{package}: {needed} is needed.", why, (f"pip install '{needed}'",))


def check_flags(snapshot: Snapshot) -> Iterator[Finding]:
    """Queue types may be switched off in a RabbitMQ that was upgraded."""
    check, off = "feature flags", [flag for flag in snapshot.flags or () if flag.state == "disabled"]
    for flag in off:
        if flag.name in NEEDED_FLAGS:
            why = "Services cannot declare their queues, or publishers the event log."
            helps = _control("enable_feature_flag", flag.name)
            yield Finding("problem", check, f"The feature flag {flag.name} is disabled.", why, (helps,))
    others = [it.name for it in off if it.stability == "stable" and it.name not in (*NEEDED_FLAGS, *OPTIONAL_FLAGS)]
    if others:
        what = f"Stable feature flags are disabled: {', '.join(others)}."
        commands = tuple(_control("enable_feature_flag", name) for name in others)
        yield Finding("note", check, what, "A later RabbitMQ may refuse to start without them.", commands)


def check_alarms(snapshot: Snapshot) -> Iterator[Finding]:
    """While one is on, nobody can publish."""
    for node in snapshot.nodes or ():
        helps = ("rabbitmq-diagnostics alarms",)
        if not node.running:
            why = "Queues with their majority on nodes that are down take nothing and hand out nothing."
            yield Finding("problem", "alarms", f"{node.name} is down.", why, ("rabbitmqctl cluster_status",))
        if node.partitions:
            what = f"{node.name} has lost sight of {', '.join(node.partitions)}."
            why = "The cluster is in parts that do not know of each other."
            yield Finding("problem", "alarms", what, why, ("rabbitmqctl cluster_status",))
        if node.mem_alarm or node.disk_free_alarm:
            what = (
                f"{node.name} is low on {' and '.join(['memory'] * node.mem_alarm + ['disk'] * node.disk_free_alarm)}."
            )
            yield Finding("problem", "alarms", what, "Nobody can publish until it is over: publishes wait.", helps)
            continue
        if node.mem_used and node.mem_limit and node.mem_used > NEARLY * node.mem_limit:
            what = f"{node.name} uses {size(node.mem_used)} of memory, of {size(node.mem_limit)}."
            yield Finding("warning", "alarms", what, "At its limit nobody can publish.", helps)
        if node.disk_free and node.disk_free_limit and node.disk_free < 2 * node.disk_free_limit:
            what = f"{node.name} has {size(node.disk_free)} of disk left, and stops at {size(node.disk_free_limit)}."
            yield Finding("warning", "alarms", what, "Nobody can publish then.", ("rabbitmqctl status",))


def check_clock(snapshot: Snapshot) -> Iterator[Finding]:
    """This machine's and RabbitMQ's."""
    if snapshot.skew is not None and abs(snapshot.skew) > SKEW:
        ahead, behind = ("RabbitMQ's", "this machine's") if snapshot.skew > 0 else ("This machine's", "RabbitMQ's")
        what = f"{ahead} clock is {abs(snapshot.skew):.0f} s ahead of {behind}."
        why = "Events bear the time of who publishes them: `--since` begins at the wrong one, ages are wrong."
        yield Finding("warning", "clock", what, why, ("timedatectl set-ntp true",))


# -- the event log ---------------------------------------------------------------------------------------------------


def check_log(snapshot: Snapshot) -> Iterator[Finding]:
    """Whether it is there, and gets everything."""
    settings, check = snapshot.settings, "event log"
    name = settings.event_log
    if not settings.log:
        why = "What is published before its first subscriber is lost; there is nothing to replay, and no story."
        yield Finding("note", check, "The event log is switched off (BROKER_LOG).", why, ("export BROKER_LOG=on",))
        return
    if snapshot.queues is None or settings.exchange not in (snapshot.exchanges or {}):
        return
    log = snapshot.queues.get(name)
    if log is None:
        why = "Publishers that may not declare it fail; what nobody subscribed to is returned to those that publish."
        yield Finding("problem", check, f"The event log {name!r} is missing.", why, (snapshot.fix,))
        return
    if snapshot.listed and log.type != "stream":
        what = f"{name} is a {log.type} queue, not a stream."
        why = "It hands each event to one reader, once; nobody else can read it."
        yield Finding("problem", check, what, why, (snapshot.control("delete_queue", name), snapshot.fix))
        return
    if snapshot.bindings is None:
        return
    keys = {it.key for it in snapshot.bound(name) if it.source == settings.exchange}
    if "#" not in keys:
        only = f" by '#', only by {', '.join(sorted(map(repr, keys)))}" if keys else ""
        what = f"{name} is not bound to {settings.exchange!r}{only}."
        why = "It misses events; those that nobody subscribed to are returned to their publishers as Unroutable."
        yield Finding("problem", check, what, why, (snapshot.fix,))
    handled = settings.handlings_exchange
    records = settings.record_handlings and handled in (snapshot.exchanges or {})
    if records and not any(it.source == handled and it.key == "#" for it in snapshot.bound(name)):
        why = "What became of events is not recorded, and `broker story` cannot tell it."
        yield Finding("warning", check, f"{name} is not bound to {handled!r}.", why, (snapshot.fix,))


def check_schemas(snapshot: Snapshot) -> Iterator[Finding]:
    """Whether the code knows what is in the log."""
    tail, check = snapshot.log, "schema versions"
    if tail is None or snapshot.services is None:
        return
    strange = [it for it in tail.events if it.name not in snapshot.versions]
    for it in tail.events:
        known = snapshot.versions.get(it.name)
        if known is None or it.version is None or it.version in known:
            continue
        has = "version" if len(known) == 1 else "versions"
        what = (
            f"{it.name} version {it.version} is in the log, from {_few(it.sources)}: "
            f"the code knows {has} {', '.join(map(str, sorted(known)))}."
        )
        why = "It is read as the nearest: what was added is ignored; what is missing makes it a dead letter."
        yield Finding("warning", check, what, why, (snapshot.broker("events", it.name),))
    if strange:
        names = _few([it.name for it in strange])
        what = f"The log has events that the code does not know: {names}, from {_few(_sources(strange))}."
        yield Finding("note", check, what, "Their classes are elsewhere.", (snapshot.with_module,))
    if tail.foreign:
        what = f"{tail.foreign} of the latest {tail.looked} messages in the log are no events."
        why = "Somebody publishes something else. Subscribers set it aside as Malformed."
        yield Finding("note", check, what, why, (f"broker log --offset {tail.foreign_at}",))


def _sources(events: Iterable[Logged]) -> list[str]:
    return list(dict.fromkeys(source for it in events for source in it.sources))


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# -- what waits ------------------------------------------------------------------------------------------------------


def check_consumers(snapshot: Snapshot) -> Iterator[Finding]:
    """Queues that nobody consumes, that grow, or whose service is paused."""
    queues = snapshot.queues or {}
    for service in snapshot.listening:
        queue = queues.get(service.name)
        if queue is None:
            continue
        run = snapshot.run(service.name)
        if snapshot.left_off(service.name):
            what = f"{service.name}: its backfill is unfinished, and no process is at it."
            yield Finding("warning", "consumers", what, "What it missed is not handled.", (run,))
        activity = (snapshot.activity or {}).get(service.name)
        if queue.consumers == 0 and queue.ready:
            what = f"{service.name}: nobody consumes its queue, which holds {some(queue.ready, 'event')}."
            yield Finding("problem", "consumers", what, "No process of it runs, or none is connected.", (run,))
        elif queue.consumers == 0:
            what = f"{service.name}: nobody consumes its queue."
            yield Finding("warning", "consumers", what, "No process of it runs, or none is connected.", (run,))
        elif service.name in snapshot.paused:
            what = f"{service.name} is paused {snapshot.paused[service.name]}"
            why = "Its handlers mostly failed. It goes on by itself when the cause is mended."
            yield Finding("warning", "consumers", what, why, (snapshot.broker("status", service.name),))
        elif activity is not None and queue.ready >= MANY and activity.published > activity.acknowledged:
            what = (
                f"{service.name} falls behind: {queue.ready} events wait, {activity.published:.1f} a second come, "
                f"{activity.acknowledged:.1f} are handled."
            )
            yield Finding("warning", "consumers", what, "Another process of it shares the work.", (run,))


def check_dead_letters(snapshot: Snapshot) -> Iterator[Finding]:
    """What could not be handled, of services in the code or not."""
    for name, queue in sorted((snapshot.queues or {}).items()):
        count = queue.ready + queue.unacked
        service = name.removesuffix(".dead")
        known = any(it.name == service for it in snapshot.listening)
        if count and name.endswith(".dead") and (known or maker(queue) == service):
            what = f"{service} has {some(count, 'dead letter')}."
            why = "What it could not handle. Mend the cause, then `broker dead redrive` sends it back."
            yield Finding("warning", "dead letters", what, why, (snapshot.broker("dead", "show", service),))


# -- all of them -----------------------------------------------------------------------------------------------------

Check: TypeAlias = Callable[[Snapshot], Iterator[Finding]]
CHECKS: dict[str, Check] = {
    "code": check_code,
    "connection": check_connection,
    "versions": check_versions,
    "alarms": check_alarms,
    "feature flags": check_flags,
    PERMISSIONS: check_permissions,
    TOPOLOGY: check_topology,
    "event log": check_log,
    "policies": check_policies,
    "limits": check_limits,
    "consumers": check_consumers,
    "dead letters": check_dead_letters,
    "schema versions": check_schemas,
    LEFT_OVER: check_leftovers,
    "clock": check_clock,
}
"""By name. Within a severity, findings stand in this order: what explains others comes first."""
