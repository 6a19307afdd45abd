"""Looks at everything that `broker doctor` knows how to check: the code, AMQP, the management API, the event log.

Looking changes nothing. What cannot be looked at is noted with the reason, and the rest is looked at all the same.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, defaultdict
from collections.abc import Awaitable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from broker.errors import AccessRefused, BrokerError, ConnectionFailed, ContractError, Malformed
from broker.eventlog import EventLog
from broker.logs import logger
from broker.publisher import rabbitmq
from broker.settings import Settings
from broker.tools.catalogue import read_catalogue
from broker.tools.checks import CHECKS
from broker.tools.discover import find_services, locate_services
from broker.tools.doors import elsewhere, ring
from broker.tools.drift import expected, maker, possible
from broker.tools.rights import STRANGER, Right, Tried, from_management, needed, too_much
from broker.tools.snapshot import SEVERITIES, Access, Finding, Logged, LogTail, Severity, Snapshot
from broker.tools.status import PAUSED
from broker.topology import Topology, shared_topology

if TYPE_CHECKING:
    from broker.rabbitmq.probe import Depth, Probe
    from broker.tools.management import Connection, Management

T = TypeVar("T")
DISTRIBUTION = "business-events"
LOOKED_AT = 10_000
"""Messages of the event log that are looked at, the latest."""
MOST_AILING = 3
"""Queues that do not answer, each after seconds, until no more are asked."""
NEEDS_MANAGEMENT = (
    "alarms", "feature flags", "clock", "policies", "limits", "bindings", "left over", "growing queues",
)  # fmt: skip
NEEDS_AMQP = ("permissions", "schema versions")


@dataclass(frozen=True, slots=True)
class Report:
    """What was found.

    Attributes:
        findings: the worst first.
        unknown: what could not be checked, and why.
    """

    snapshot: Snapshot
    findings: tuple[Finding, ...]

    def count(self, severity: Severity) -> int:
        """How many findings are that bad."""
        return sum(it.severity == severity for it in self.findings)

    @property
    def unknown(self) -> dict[str, list[str]]:
        """What could not be checked, by the reason."""
        found: dict[str, list[str]] = {}
        for check, why in self.snapshot.unknown.items():
            found.setdefault(why, []).append(check)
        return found

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "rabbitmq": self.snapshot.version,
            "server": self.snapshot.settings.server,
            "services": [service.name for service in self.snapshot.services or ()],
            **{f"{severity}s": self.count(severity) for severity in SEVERITIES},
            "findings": [finding.as_json() for finding in self.findings],
            "not_checked": [{"checks": checks, "why": why} for why, checks in self.unknown.items()],
        }


def diagnose(snapshot: Snapshot) -> Report:
    """Everything that is not as it should be."""
    found = [finding for check in CHECKS.values() for finding in check(snapshot)]
    return Report(snapshot, tuple(sorted(found, key=lambda it: SEVERITIES.index(it.severity))))


async def examine(settings: Settings, modules: Iterable[str], *, log: int = LOOKED_AT) -> Snapshot:
    """Look at everything.

    Args:
        modules: where the code is.
        log: how many of the latest messages of the event log to look at.
    """
    it = read_code(Snapshot(settings=settings, outdated=outdated()), list(modules))
    doors = await asyncio.gather(*(ring(host) for host in settings.hosts))
    told = next((door.version for door in doors if door.version), None)
    it = await ask_management(replace(it, doors=doors, version=told))
    if told is None:
        return replace(it, unknown={**it.unknown, **dict.fromkeys(NEEDS_AMQP, "it takes AMQP")})
    return await read_log(await ask_amqp(it), log)


# -- the code --------------------------------------------------------------------------------------------------------


def read_code(it: Snapshot, modules: list[str]) -> Snapshot:
    """What the code declares."""
    try:
        services = find_services(modules)
        entries = read_catalogue(services)
    except ContractError as error:
        return replace(it, services=None, code_error=str(error))
    if not services:
        return replace(it, services=None, code_error=f"No service is to be found in {', '.join(modules)}.")
    versions: dict[str, set[int]] = defaultdict(set)
    for entry in entries:
        versions[entry.event.__contract__.name].add(entry.event.__contract__.version)
    known = {name: frozenset(numbers) for name, numbers in versions.items()}
    named = () if tuple(modules) == it.settings.modules else tuple(modules)
    return replace(it, services=services, looked_in=named, modules=locate_services(modules), versions=known)


def outdated() -> dict[str, str]:
    """Packages that are older than this one requires, and what it requires."""
    found = {}
    try:
        for requirement in requires(DISTRIBUTION) or ():
            plain = re.fullmatch(r"([A-Za-z0-9._-]+)>=([0-9.]+)", requirement.replace(" ", ""))
            if plain is not None and _numbers(version(plain[1])) < _numbers(plain[2]):
                found[plain[1]] = plain[0]
    except PackageNotFoundError:  # run from a folder, not installed
        pass
    return found


def _numbers(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)]


# -- management ------------------------------------------------------------------------------------------------------


async def ask_management(it: Snapshot) -> Snapshot:
    """All that the management API tells, as far as this user may ask."""
    from broker.tools.management import Management  # httpx takes a while to import

    async with Management.of(it.settings) as management:
        access = await _enter(management, it.settings)
        if access.trouble:
            unknown = dict.fromkeys(NEEDS_MANAGEMENT, "it takes the management API")
            return replace(it, management=access, unknown={**it.unknown, **unknown})
        it = replace(it, management=access)
        return await _ask_all(management, it)


async def _enter(management: Management, settings: Settings) -> Access:
    at, user = management.address, management.user
    try:
        await management.whoami()
        return Access(at, user, cluster=await management.cluster())
    except ConnectionFailed as error:
        cause = error.__cause__
        why = str(cause) or type(cause).__name__
        return Access(at, user, "silent", why, await elsewhere(at, urlsplit(settings.hosts[0]).hostname or ""))
    except AccessRefused as error:
        told = re.search(r"\(status \d+, ([^)]*)\)", str(error))
        no_tag = "management user" in str(error)
        return Access(at, user, "tag" if no_tag else "login", told[1] if told else "refused")
    except BrokerError as error:
        return Access(at, user, "other", str(error))


async def _ask_all(management: Management, it: Snapshot) -> Snapshot:
    unknown = dict(it.unknown)

    async def known(check: str, asked: Awaitable[T], tag: str = "") -> T | None:
        """What is told; None, and the reason noted, when it is not."""
        try:
            return await asked
        except AccessRefused as error:
            unknown[check] = f"the user {management.user!r} has not the tag {tag!r}" if tag else str(error)
        except BrokerError as error:
            absent = "status 404" in str(error)
            unknown[check] = f"management knows no virtual host {it.vhost!r}" if absent else str(error)
        return None

    queues = await known("topology", management.queues())
    exchanges = await known("topology", management.exchanges())
    bindings = await known("topology", management.bindings())
    may = await known("permissions", management.permissions(), "administrator")
    topics = await known("permissions", management.topic_permissions(), "administrator")
    tags = await known("consumers", management.consumer_tags()) or {}
    paused = {name: why for name, all_ in tags.items() for tag in all_ if (why := _paused(tag))}
    connections = await known("permissions", management.connections()) or []
    rights = from_management(it.vhost, may, topics) if may is not None and topics is not None else {}
    listed = queues is not None and exchanges is not None and bindings is not None
    return replace(
        it,
        version=it.version or await known("versions", management.version()),
        flags=await known("feature flags", management.feature_flags(), "administrator"),
        nodes=await known("alarms", management.nodes(), "monitoring"),
        skew=await known("clock", skew(management)),
        policies=await known("policies", management.policies(), "policymaker"),
        activity=await known("growing queues", management.activity()),
        queues={queue.name: queue for queue in queues or ()} if listed else None,
        exchanges={exchange.name: exchange for exchange in exchanges or ()} if listed else None,
        bindings=bindings if listed else None,
        listed=listed,
        paused=paused,
        rights=rights,
        users=users_of(connections, {service.name for service in it.services or ()}),
        unknown=unknown,
    )


def _paused(tag: str) -> str:
    found = PAUSED.search(tag)
    return found[1] if found else ""


def users_of(connections: Iterable[Connection], services: set[str]) -> dict[str, frozenset[str]]:
    """As whom services are connected, by the names that they give their connections."""
    found: dict[str, set[str]] = defaultdict(set)
    for it in connections:
        name = str(it.client_properties.get("connection_name", "")).partition(" (")[0]
        if name in services:
            found[name].add(it.user)
    return {name: frozenset(users) for name, users in found.items()}


async def skew(management: Management) -> float | None:
    """Seconds by which RabbitMQ's clock is ahead of ours, to about one."""
    before = datetime.now(UTC)
    told = await management.clock()
    after = datetime.now(UTC)
    return None if told is None else (told - (before + (after - before) / 2)).total_seconds() + 0.5


# -- AMQP ------------------------------------------------------------------------------------------------------------


async def ask_amqp(it: Snapshot) -> Snapshot:
    """What takes a connection: how full our queues are this moment, whether they work, what the user may do."""
    from broker.rabbitmq.probe import probing  # those who use aio-pika import it

    user = unquote(urlsplit(it.settings.hosts[0]).username or "guest")
    try:
        async with probing(it.settings, "doctor") as probe:
            it = replace(it, amqp=Access(it.settings.server, user))
            it = await look_at_topology(probe, it)
            if user not in it.rights and it.services is not None:
                tried = await try_rights(probe, it)
                unknown = {check: why for check, why in it.unknown.items() if check != "permissions"}
                it = replace(it, rights={**it.rights, user: tried}, unknown=unknown)
            return replace(it, ailing=await look_for_ailing(probe, it))
    except BrokerError as error:
        if it.amqp is not None:  # it broke meanwhile
            return replace(it, unknown={**it.unknown, **dict.fromkeys(NEEDS_AMQP, str(error))})
        access = replace(_refused(error), address=it.settings.server, user=user, why=str(error))
        return replace(it, amqp=access, unknown={**it.unknown, **dict.fromkeys(NEEDS_AMQP, "it takes AMQP")})


def _refused(error: BrokerError) -> Access:
    if not isinstance(error, AccessRefused):
        return Access(trouble="other")
    return Access(trouble="vhost" if "virtual host, or" in str(error) else "login")


def ours(it: Snapshot) -> Topology:
    """All that the code may have on RabbitMQ."""
    found = shared_topology(it.settings)
    for service in it.listening:
        found |= expected(service, it) | possible(service)
    return found


async def look_at_topology(probe: Probe, it: Snapshot) -> Snapshot:
    """How full our queues are and who consumes them, exactly; and which there are, if management did not list them."""
    from broker.tools.management import Exchange, Queue  # httpx takes a while to import

    declared = ours(it)
    names = {queue.name for queue in declared.queues}
    if it.listed and it.queues is not None:
        names = {name for name, queue in it.queues.items() if name in names or maker(queue) is not None}
    depths, ailing = await _depths(probe, sorted(names))
    if it.listed and it.queues is not None:
        queues = dict(it.queues)
        activity = it.activity or {}
        for name, queue in it.queues.items():
            depth = depths.get(name)
            if depth is not None:
                queues[name] = queue.model_copy(update={"ready": depth.ready, "consumers": depth.consumers})
            elif name in activity:
                queues[name] = queue.model_copy(update={"consumers": activity[name].consumers})
        lost = [name for name, depth in depths.items() if depth is None]
        return replace(
            it, queues=queues, ailing=dict.fromkeys(lost, "RabbitMQ lists it, and does not find it") | ailing
        )
    found = {n: Queue(name=n, ready=d.ready, consumers=d.consumers) for n, d in depths.items() if d is not None}
    exchanges = {
        exchange.name: Exchange(name=exchange.name, type=exchange.kind, durable=True)
        for exchange in declared.exchanges
        if await probe.has_exchange(exchange.name)
    }
    conflicts, unknown = {}, dict(it.unknown)
    try:
        for wanted in declared.queues:
            if wanted.name in found and not wanted.shared and (differs := await probe.conflict(wanted)):
                conflicts[wanted.name] = differs
    except AccessRefused:
        unknown["arguments of queues"] = "this user may not declare them"
    return replace(it, queues=found, exchanges=exchanges, conflicts=conflicts, ailing=ailing, unknown=unknown)


async def _depths(probe: Probe, names: Iterable[str]) -> tuple[dict[str, Depth | None], dict[str, str]]:
    """How full queues are, and which do not say."""
    depths: dict[str, Depth | None] = {}
    ailing: dict[str, str] = {}
    for name in names:
        try:
            depths[name] = await probe.depth(name)
        except ConnectionFailed as error:
            ailing[name] = str(error)
            if len(ailing) == MOST_AILING:
                raise
    return depths, ailing


async def try_rights(probe: Probe, it: Snapshot) -> Tried:
    """What the user of our connection may do of all that services need, and whether more."""
    answers: dict[Right, bool] = {}
    own = STRANGER
    for service in it.services or ():
        for right in needed(service, it.settings):
            may = await _try(probe, right, f"{service.name}.doctor", it.settings)
            if may is not None:
                answers[right] = may
            if right.kind == "configure" and not may:
                break  # it is not this service's user
            own = f"{service.name}.doctor" if right.kind == "configure" else own
    for right in too_much(it.settings.exchange):
        may = await _try(probe, right, STRANGER if right.kind == "read" else own, it.settings)
        answers[right] = bool(may)
    return Tried(answers)


async def _try(probe: Probe, right: Right, queue: str, settings: Settings) -> bool | None:
    """Whether it may, tried on a queue that does not exist; None: another right tells, or none can be tried."""
    if right.kind == "configure":
        return await probe.may_configure(right.name)
    if right.kind == "publish":
        return await probe.may_publish(right.name, right.key)
    if right.kind == "subscribe":
        return await probe.may_bind(queue, right.name, right.key)
    if right.name in (settings.exchange, settings.event_log):
        return None
    if right.kind == "write":
        return await probe.may_publish(right.name, right.service)
    return await probe.may_bind(queue, right.name, "doctor")


async def look_for_ailing(probe: Probe, it: Snapshot) -> dict[str, str]:
    """Our queues that answer and do not work, among the empty ones that nobody consumes: the others show it."""
    ailing = dict(it.ailing)
    for name in [queue.name for service in it.listening for queue in expected(service, it).queues]:
        queue = (it.queues or {}).get(name)
        if queue is None or queue.ready or queue.unacked or queue.consumers or name in (*ailing, *it.conflicts):
            continue
        may_ail = queue.type == "quorum" or not it.listed
        if may_ail and len(ailing) < MOST_AILING and (why := await probe.ailment(name)):
            ailing[name] = why
    return ailing


# -- the event log ---------------------------------------------------------------------------------------------------


async def read_log(it: Snapshot, most: int) -> Snapshot:
    """Which events, in which versions, are among the latest messages."""
    settings = it.settings
    log = (it.queues or {}).get(settings.event_log)
    if not settings.log or not most or log is None or (it.listed and log.type != "stream"):
        return it
    if settings.exchange not in (it.exchanges or {}) or it.amqp is None or it.amqp.trouble:
        return it
    transport = rabbitmq(settings, logger(settings), "doctor", looks=True)
    try:
        await transport.connect()
        return replace(it, log=await _tail(EventLog(transport, settings), most))
    except BrokerError as error:
        return replace(it, unknown={**it.unknown, "schema versions": str(error)})
    finally:
        await transport.close()


async def _tail(log: EventLog, most: int) -> LogTail:
    span = await log.span()
    looked, foreign, foreign_at = 0, 0, 0
    counts: Counter[tuple[str, int | None]] = Counter()
    sources: dict[tuple[str, int | None], set[str]] = defaultdict(set)
    async with aclosing(log.read(max(span.first, span.end - most), end=span.end)) as entries:
        async for entry in entries:
            looked += 1
            if entry.is_handlings:
                continue
            try:
                envelope = entry.envelope
            except Malformed:
                foreign_at = foreign_at if foreign else entry.offset or 0
                foreign += 1
                continue
            which = (envelope.name, envelope.version)
            counts[which] += 1
            sources[which].add(envelope.source)
    events = [Logged(*which, count, tuple(sorted(sources[which]))) for which, count in counts.most_common()]
    return LogTail(looked, foreign, tuple(events), foreign_at)
