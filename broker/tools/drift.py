"""What the code declares, against what stands on RabbitMQ: what is missing, what differs, what is left over. Pure.

The one place of these rules: the checks tell them as findings, `broker.tools.map` shows them, `broker.tools.mending`
acts on them. What the map alone says (an event that nobody hears, or nobody publishes) asks nothing of RabbitMQ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from broker.errors import ContractError
from broker.retry import Delay
from broker.service import Service
from broker.tools.snapshot import Finding, Snapshot, some
from broker.topology import (
    SERVICE_NAME,
    Binding,
    Exchange,
    Queue,
    Topology,
    backfill_lock,
    backfill_topology,
    dead_queue,
    handlings_topology,
    is_pattern,
    matches,
    retry_topology,
    service_topology,
    shared_topology,
)

if TYPE_CHECKING:
    from broker.tools.management import Binding as LiveBinding
    from broker.tools.management import Queue as LiveQueue

CHECK = "topology"
LEFT_OVER = "left over"
RETRY = ".retry."


# -- what should be there --------------------------------------------------------------------------------------------


def expected(service: Service, snapshot: Snapshot) -> Topology:
    """What stands there as soon as a service has started."""
    return service_topology(service.name, service.handlers.bindings, snapshot.settings.exchange)


def possible(service: Service) -> Topology:
    """What may stand there, since it is declared when first needed."""
    retries = [retry_topology(service.name, delay) for delay in service.delays]
    found = backfill_topology(service.name)
    for retry in retries:
        found |= retry
    return found


def never_started(snapshot: Snapshot) -> list[Service]:
    """Services of which nothing stands on RabbitMQ."""
    queues, exchanges = snapshot.queues or {}, snapshot.exchanges or {}
    return [
        service
        for service in snapshot.listening
        if not ({service.name, dead_queue(service.name)} & set(queues) or service.name in exchanges)
    ]


def missing(snapshot: Snapshot) -> Topology:
    """What the code declares and RabbitMQ lacks; of bindings all, where nobody knows which there are.

    A service that never started and would backfill is left alone: its first start is told by its queue's absence.
    """
    if snapshot.queues is None or snapshot.exchanges is None:
        return Topology()
    untouched = {service.name for service in never_started(snapshot) if service.backfill is not None}
    wanted = shared_topology(snapshot.settings)
    if snapshot.settings.log and snapshot.settings.handlings_exchange in snapshot.exchanges:
        wanted |= handlings_topology(snapshot.settings)
    for service in snapshot.listening:
        if service.name not in untouched:
            wanted |= expected(service, snapshot)
            there = [queue.name for queue in possible(service).queues if queue.name in snapshot.queues]
            wanted |= Topology(bindings=tuple(Binding(service.name, name, name) for name in there))
    bound = {(it.source, it.destination, it.key) for it in snapshot.bindings or ()}
    return Topology(
        tuple(it for it in wanted.exchanges if it.name not in snapshot.exchanges),
        tuple(it for it in wanted.queues if it.name not in snapshot.queues),
        tuple(it for it in wanted.bindings if (it.exchange, it.queue, it.key) not in bound),
    )


def check_topology(snapshot: Snapshot) -> Iterator[Finding]:
    """What is missing, and what is not as the code declares it."""
    if snapshot.queues is None or snapshot.exchanges is None:
        return
    absent, fresh = missing(snapshot), never_started(snapshot)
    if snapshot.settings.exchange in {it.name for it in absent.exchanges} and fresh == snapshot.listening:
        yield _nothing_yet(snapshot)
        return
    yield from _not_started(snapshot, fresh)
    others = {service.name for service in fresh}
    yield from _missing(snapshot, absent, others)
    yield from _different(snapshot)
    for queue, why in snapshot.ailing.items():
        yield _ailing(snapshot, queue, why)


def _ailing(snapshot: Snapshot, queue: str, answer: str) -> Finding:
    """After a start of RabbitMQ it may be a matter of seconds; with nodes down, of theirs."""
    what = f"{queue} exists and does not work: {answer}."
    delete = snapshot.control("delete_queue", queue)
    if queue == snapshot.settings.event_log:
        why = (
            "Publishers wait for it. After a start of RabbitMQ it takes a moment: look again. One that was made just "
            f"before a crash stays so, and is empty: `{delete}`, then `{snapshot.fix}`."
        )
        return Finding("problem", CHECK, what, why, (snapshot.broker("doctor"),))
    why = (
        "If a node is down, it works when that is back. If none is and it stays so, RabbitMQ lost it in a crash: it is "
        "deleted and declared anew. The event log has what was in it."
    )
    return Finding("problem", CHECK, what, why, ("rabbitmqctl cluster_status", delete, snapshot.fix))


def _nothing_yet(snapshot: Snapshot) -> Finding:
    queue = ", no queue of a service in the code" if snapshot.listening else ""
    what = f"Nothing stands here yet: no exchange {snapshot.settings.exchange!r}{queue}."
    runs = tuple(snapshot.run(service.name) for service in snapshot.listening[:1])
    return Finding("warning", CHECK, what, "It is declared when the first service starts.", runs or (snapshot.fix,))


def _not_started(snapshot: Snapshot, fresh: Iterable[Service]) -> Iterator[Finding]:
    for service in fresh:
        what = f"{service.name} has never started here: it has no queue."
        why = "What is published now does not reach it; the event log keeps it."
        yield Finding("warning", CHECK, what, why, (snapshot.run(service.name),))


WHY_EXCHANGE = "Its retries and dead letters have no way to go."
WHY_QUEUE = "What is published now does not reach it; the event log keeps it."
WHY_DEAD = "What it cannot handle has no place to go, and stays in its queue."
WHY_BOUND = "It does not get these events; the event log keeps them, and `broker replay` brings them."
WHY_EVENTS = "Nobody can publish, and nobody gets anything."


def _missing(snapshot: Snapshot, absent: Topology, fresh: set[str]) -> Iterator[Finding]:
    """One by one; a service that never started, and the event log, have findings of their own."""
    settings = snapshot.settings
    gone = {it.name for it in absent.exchanges}
    for exchange in absent.exchanges:
        if exchange.name not in fresh:
            why = WHY_EVENTS if exchange.name == settings.exchange else WHY_EXCHANGE
            yield Finding("problem", CHECK, f"The exchange {exchange.name!r} is missing.", why, (snapshot.fix,))
    for queue in absent.queues:
        if queue.name.partition(".")[0] not in fresh and queue.name != settings.event_log:
            why = WHY_DEAD if queue.name.endswith(".dead") else WHY_QUEUE
            yield Finding("problem", CHECK, f"The queue {queue.name!r} is missing.", why, (snapshot.fix,))
            gone.add(queue.name)
    if snapshot.bindings is None:
        return
    for binding in absent.bindings:
        if gone & {binding.exchange, binding.queue} or binding.queue in {settings.event_log}:
            continue
        if binding.queue.partition(".")[0] in fresh:
            continue
        what = f"{binding.queue} is not bound to {binding.exchange!r} by {binding.key!r}."
        why = WHY_BOUND if binding.exchange == settings.exchange else WHY_EXCHANGE
        yield Finding("problem", CHECK, what, why, (snapshot.fix,))


def _different(snapshot: Snapshot) -> Iterator[Finding]:
    for service in snapshot.listening:
        declared = expected(service, snapshot) | possible(service)
        for exchange in declared.exchanges:
            yield from _other_exchange(snapshot, exchange)
        for queue in declared.queues:
            yield from _other_queue(snapshot, queue)
    yield from _other_exchange(snapshot, Exchange(snapshot.settings.exchange, "topic"))


WHY_CONFLICT = (
    "Its service ends at its start with exit code 5, a topology conflict. RabbitMQ never changes {} in place: "
    "it is deleted, and declared anew."
)


def _other_exchange(snapshot: Snapshot, exchange: Exchange) -> Iterator[Finding]:
    live = (snapshot.exchanges or {}).get(exchange.name)
    if not snapshot.listed or live is None or (live.type == exchange.kind and live.durable):
        return
    kept = "durable" if live.durable else "not durable"
    what = f"The exchange {exchange.name!r} is of type {live.type} and {kept}, not {exchange.kind} and durable."
    yield Finding("problem", CHECK, what, WHY_CONFLICT.format("an exchange"), ("broker map --live",))


def _other_queue(snapshot: Snapshot, queue: Queue) -> Iterator[Finding]:
    live = (snapshot.queues or {}).get(queue.name)
    if live is None:
        return
    differs = difference(queue.arguments, live) if snapshot.listed else snapshot.conflicts.get(queue.name, "")
    if differs:
        what = f"{queue.name} is another queue than the code declares: {differs}."
        why = WHY_CONFLICT.format("a queue")
        if live.ready or live.unacked:
            why += f" Now it holds {live.ready + live.unacked}: let the code that declared it drain it first."
            yield Finding("problem", CHECK, what, why, (snapshot.broker("status"),))
        else:
            yield Finding("problem", CHECK, what, why, (snapshot.control("delete_queue", queue.name), snapshot.fix))


def difference(declared: Mapping[str, str | int], live: LiveQueue) -> str:
    """In what a queue differs from its declaration, in words; empty: in nothing."""
    found: dict[str, Any] = {**live.arguments, "x-queue-type": live.type}
    said = []
    for name in sorted({*declared, *found}):
        if name not in found:
            said.append(f"no {name} {declared[name]}")
        elif name not in declared:
            said.append(f"{name} {found[name]} besides")
        elif found[name] != declared[name]:
            said.append(f"{name} {found[name]}, not {declared[name]}")
    return "; ".join(said)


# -- what is left over -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Orphan:
    """A service that no code has, by what stands of it: all of it as our topology makes it."""

    name: str
    queues: tuple[LiveQueue, ...]
    exchange: bool

    @property
    def consumed(self) -> bool:
        """Whether a process of it runs."""
        return any(queue.consumers for queue in self.queues)

    @property
    def waiting(self) -> int:
        """Events in its own queue."""
        return sum(it.ready + it.unacked for it in self.queues if it.name == self.name)


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What belongs to no service of the code, or to none any more.

    Attributes:
        bindings: of services' queues to the exchange of all events, which no code declares.
        retries: retry queues whose delay is in no ladder of their service.
        orphans: services that no code has.
        foreign: queues that do not look like ours, or hear another exchange: that is another system's.
    """

    bindings: tuple[LiveBinding, ...] = ()
    retries: tuple[LiveQueue, ...] = ()
    orphans: tuple[Orphan, ...] = ()
    foreign: tuple[LiveQueue, ...] = ()


def leftovers(snapshot: Snapshot) -> Leftovers:
    """Look for them; there are none where the code, or what stands there, is not known: these may be removed."""
    return strays(snapshot) if snapshot.services and snapshot.listed else Leftovers()


def strays(snapshot: Snapshot) -> Leftovers:
    """The same wherever queues are listed. Without any code every service is an orphan: to be shown, never removed."""
    services = {service.name: service for service in snapshot.listening}
    known = {queue.name for service in services.values() for queue in (possible(service).queues)}
    known |= {queue.name for service in services.values() for queue in expected(service, snapshot).queues}
    retries, foreign, orphans = [], [], defaultdict(list)
    there = snapshot.queues or {}
    for queue in there.values():
        if queue.name == snapshot.settings.event_log or queue.name in known or _passing(queue.name, services):
            continue
        owner = maker(queue)
        if owner is None and _is_lock(queue.name, there):
            continue
        if owner is None or (owner not in services and _hears_another(owner, snapshot)):
            foreign.append(queue)
        elif owner not in services:
            orphans[owner].append(queue)
        elif RETRY in queue.name:
            retries.append(queue)
    stale = [binding for service in services.values() for binding in stale_bindings(service, snapshot)]
    exchanges = snapshot.exchanges or {}
    direct = {it.name for it in exchanges.values() if it.type == "direct" and it.durable}
    found = [Orphan(name, tuple(queues), name in direct) for name, queues in sorted(orphans.items())]
    return Leftovers(tuple(stale), tuple(retries), tuple(found), tuple(foreign))


def _hears_another(service: str, snapshot: Snapshot) -> bool:
    """Whether a service is bound to another exchange than that of all events: two systems may share a virtual host."""
    return any(binding.source not in (service, snapshot.settings.exchange) for binding in snapshot.bound(service))


def _passing(name: str, services: Iterable[str]) -> bool:
    """Whether it is a lock, or a mark, of something that runs just now."""
    owner, _, rest = name.partition(".")
    return owner in services and rest.startswith(("backfill", "replay"))


def _is_lock(name: str, queues: Iterable[str]) -> bool:
    """Whether it is the lock of a service whose code is elsewhere: a replay of it, or its backfill, runs just now."""
    owner = name.partition(".")[0]
    return owner in queues and name in (f"{owner}.replay", backfill_lock(owner))


def stale_bindings(service: Service, snapshot: Snapshot) -> list[LiveBinding]:
    """Bindings of a service's queue to the exchange of all events, which its code does not declare."""
    declared = set(service.handlers.bindings)
    return [
        binding
        for binding in snapshot.bound(service.name)
        if binding.source == snapshot.settings.exchange and (binding.key not in declared or binding.arguments)
    ]


def maker(queue: LiveQueue) -> str | None:
    """The service whose queue this is, by its name and its arguments; None: it does not look like ours."""
    name, _, rest = queue.name.partition(".")
    if not SERVICE_NAME.fullmatch(name):
        return None
    made = service_topology(name, (), "") | backfill_topology(name)
    if rest.startswith("retry."):
        try:
            made |= retry_topology(name, Delay.parse(rest.removeprefix("retry.")))
        except ContractError:
            return None
    same = (it for it in made.queues if it.name == queue.name and not difference(it.arguments, queue))
    return name if next(same, None) is not None else None


def check_leftovers(snapshot: Snapshot) -> Iterator[Finding]:
    """What no code declares."""
    found = leftovers(snapshot)
    declared = {service.name: service.handlers.bindings for service in snapshot.listening}
    for binding in found.bindings:
        covered = not is_pattern(binding.key) and any(matches(it, binding.key) for it in declared[binding.destination])
        what = f"{binding.destination} is bound by {binding.key!r}, which its code does not declare."
        if covered:
            why = "It changes nothing: another binding brings the same."
            yield Finding("note", LEFT_OVER, what, why, (snapshot.prune,))
        else:
            why = "No handler takes what comes by it: it is retried, then dead-lettered as Unhandled."
            yield Finding("warning", LEFT_OVER, what, why, (snapshot.prune,))
    for queue in found.retries:
        service, _, delay = queue.name.partition(RETRY)
        waits = f", and it holds {some(queue.ready, 'event')}" if queue.ready else ""
        what = f"{queue.name}: no ladder of {service} has the delay {delay} any more{waits}."
        why = "They come back when their time is up. Then it is empty for good." if waits else "It stays empty."
        yield Finding("note", LEFT_OVER, what, why, (snapshot.prune,))
    for orphan in found.orphans:
        yield _orphan(snapshot, orphan)


def whose(snapshot: Snapshot, orphan: str) -> str:
    """Why a queue is no service's, in words."""
    known = any(service.name == orphan for service in snapshot.services or ())
    return "the code of this service subscribes to nothing" if known else "no code here has this service"


def _orphan(snapshot: Snapshot, it: Orphan) -> Finding:
    if it.consumed:
        what = f"{it.name}: {whose(snapshot, it.name)}, and a process of it runs."
        why = "Its code is elsewhere. Named, it is checked too."
        return Finding("note", LEFT_OVER, what, why, (snapshot.with_module,))
    nobody = f"{it.name}: {whose(snapshot, it.name)}, no process of it runs"
    bound = any(binding.source == snapshot.settings.exchange for binding in snapshot.bound(it.name))
    if not it.waiting:
        why = "Events will pile up in it. " if bound else ""
        why += "If its code is elsewhere, name that instead."
        helps = (snapshot.prune, snapshot.with_module)
        return Finding("warning", LEFT_OVER, f"{nobody}, and its queue is empty.", why, helps)
    why = (
        f"{'More come, until the disk is full. ' if bound else ''}If its code is elsewhere, name it. If it is gone for "
        f"good, delete what waits with `{snapshot.control('purge_queue', it.name)}` (the event log keeps it); then "
        f"`{snapshot.prune}`."
    )
    what = f"{nobody}, and its queue holds {some(it.waiting, 'event')}."
    return Finding("problem", LEFT_OVER, what, why, (snapshot.with_module,))
