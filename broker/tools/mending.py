"""What `broker doctor` may change: it declares what the code declares and is missing, and removes what is left over.

No queue is deleted that holds anything or is consumed. It is looked at before, cut off from everything that could bring
something, looked at again when RabbitMQ has had the time to report what is unacknowledged, and a last time in the
moment before it is deleted. Whatever stays is bound again.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from broker.errors import AccessRefused, BrokerError, TopologyConflict
from broker.tools.drift import Orphan, leftovers, missing
from broker.tools.snapshot import Snapshot
from broker.topology import Topology, dead_queue

if TYPE_CHECKING:
    from broker.rabbitmq.probe import Depth, Probe
    from broker.tools.management import Binding, Management, Queue

REPORTED = 6.0
"""Seconds in which RabbitMQ reports what is unacknowledged: it does so every five."""

Tell = Callable[[str], None]
"""Told each thing that is done, or could not be."""


# -- what is missing -------------------------------------------------------------------------------------------------


async def fix(snapshot: Snapshot, tell: Tell) -> list[str]:
    """Declare what the code declares and is missing; returns what was declared.

    Raises:
        ConnectionFailed: RabbitMQ went away meanwhile. What was declared stays.
    """
    from broker.rabbitmq.probe import probing  # those who use aio-pika import it

    absent, done = missing(snapshot), []
    parts = [(Topology(exchanges=(it,)), f"declared the exchange {it.name!r}") for it in absent.exchanges]
    parts += [(Topology(queues=(it,)), f"declared the queue {it.name!r}") for it in absent.queues]
    parts += [
        (Topology(bindings=(it,)), f"bound {it.queue!r} to {it.exchange!r} by {it.key!r}") for it in absent.bindings
    ]
    if not parts or snapshot.amqp is None or snapshot.amqp.trouble:
        return []
    async with probing(snapshot.settings, "doctor --fix") as probe:
        for part, said in parts:
            try:
                await probe.declare(part)
            except (AccessRefused, TopologyConflict) as error:
                tell(f"not {said}: {error}")
            else:
                done.append(said)
                tell(said)
    return done


# -- what is left over -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be removed.

    Attributes:
        bindings: of services that live on.
        queues: with nothing in them and nobody at them, in the order in which they may go.
        exchanges: of services that are gone, to go when none of their queues is left.
        kept: what would belong to it, and why it stays.
    """

    bindings: tuple[Binding, ...] = ()
    queues: tuple[str, ...] = ()
    exchanges: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    @property
    def steps(self) -> list[str]:
        """Each thing, in words."""
        return [
            *(f"unbind {it.destination!r} from {it.source!r}, key {it.key!r}" for it in self.bindings),
            *(f"delete the queue {name!r}, which is empty" for name in self.queues),
            *(f"delete the exchange {name!r}" for name in self.exchanges),
        ]


def plan(snapshot: Snapshot) -> Plan:
    """What may be removed, as far as it is known now. Without the code, or RabbitMQ's list of queues, nothing."""
    found = leftovers(snapshot)
    queues, kept = [], []
    for retry in found.retries:
        why = busy(retry)
        kept.append(f"{retry.name}: {why}") if why else queues.append(retry.name)
    for orphan in found.orphans:
        going, staying = _sorted_out(orphan)
        queues += going
        kept += staying
    exchanges = tuple(orphan.name for orphan in found.orphans if orphan.exchange)
    return Plan(found.bindings, tuple(queues), exchanges, tuple(kept))


def _sorted_out(orphan: Orphan) -> tuple[list[str], list[str]]:
    """Its queues that may go, and why the others stay."""
    going, staying = [], Staying()
    for queue in sorted(orphan.queues, key=lambda it: last(it.name, orphan.name)):
        why = busy(queue) or staying.hindrance(queue.name)
        if why:
            staying.add(queue.name, why)
        else:
            going.append(queue.name)
    return going, staying.reasons


def last(queue: str, service: str) -> int:
    """The order in which a service's queues may go: none before those that give back to it."""
    return (service, dead_queue(service)).index(queue) + 1 if queue in (service, dead_queue(service)) else 0


@dataclass(slots=True)
class Staying:
    """Queues that stay, and what must stay with them: where a queue gives back what it holds."""

    names: set[str] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)

    def add(self, queue: str, why: str) -> None:
        """It stays."""
        self.names.add(queue)
        self.reasons.append(f"{queue}: {why}")

    def hindrance(self, queue: str) -> str:
        """Why a queue has to stay for another's sake; empty: it has not."""
        service, _, rest = queue.partition(".")
        if rest == "dead" and service in self.names:
            return f"{service!r} stays, whose dead letters it takes"
        givers = sorted(name for name in self.names if name.startswith(f"{service}.retry."))
        return f"{givers[0]!r} stays, which gives back to it" if givers and not rest else ""


def busy(queue: Queue) -> str:
    """Why it may not be deleted; empty: it may."""
    if queue.consumers:
        return "it has a consumer"
    count = queue.ready + queue.unacked
    return f"it holds {count} message{'s' * (count > 1)}" if count else ""


@dataclass(slots=True)
class Pruned:
    """What came of it: what was removed, and what stayed after all."""

    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


async def prune(snapshot: Snapshot, todo: Plan, tell: Tell) -> Pruned:
    """Remove what is planned, unless something has come to it meanwhile.

    Raises:
        ConnectionFailed, AccessRefused, ManagementFailed: as looking and removing does. What was removed is gone; what
            was cut off is bound again.
    """
    from broker.rabbitmq.probe import probing  # those who use aio-pika import it
    from broker.tools.management import Management  # httpx takes a while to import

    done = Pruned()
    async with probing(snapshot.settings, "doctor --prune") as probe, Management.of(snapshot.settings) as management:
        for it in todo.bindings:
            await probe.unbind(it.destination, it.source, it.key, it.arguments)
            _removed(done, f"unbound {it.destination!r} from {it.source!r}, key {it.key!r}", tell)
        if todo.queues:
            async with _cut_off(probe, await management.bindings(), todo.queues, tell) as cut:
                await asyncio.sleep(REPORTED)
                await _delete(probe, management, todo.queues, done, cut, tell)
        there = {queue.name for queue in await management.queues()}
        for name in todo.exchanges:
            if not any(queue == name or queue.startswith(f"{name}.") for queue in there):
                gone = await probe.delete_unused(name)
                _removed(done, f"deleted the exchange {name!r}", tell) if gone else None
    return done


def _removed(done: Pruned, said: str, tell: Tell) -> None:
    done.removed.append(said)
    tell(said)


@asynccontextmanager
async def _cut_off(
    probe: Probe, bindings: Iterable[Binding], queues: Iterable[str], tell: Tell
) -> AsyncIterator[dict[str, list[Binding]]]:
    """Take all bindings from queues; in the end those that are still noted are bound again."""
    cut: dict[str, list[Binding]] = defaultdict(list)
    try:
        for it in bindings:
            if it.destination_type == "queue" and it.destination in queues:
                cut[it.destination].append(it)
                await probe.unbind(it.destination, it.source, it.key, it.arguments)
        yield cut
    finally:
        for it in [binding for kept in cut.values() for binding in kept]:
            try:
                await probe.bind(it.destination, it.source, it.key, it.arguments)
            except BrokerError as error:
                tell(f"not bound again, do it by hand: {it.destination!r} to {it.source!r} by {it.key!r}: {error}")


async def _delete(  # noqa: PLR0913, PLR0917  (what it does it with, and what it tells)
    probe: Probe,
    management: Management,
    queues: Iterable[str],
    done: Pruned,
    cut: dict[str, list[Binding]],
    tell: Tell,
) -> None:
    counted: Mapping[str, Queue] = {queue.name: queue for queue in await management.queues()}
    staying = Staying()
    for name in queues:
        queue = counted.get(name)
        if queue is None:  # somebody else was faster
            cut.pop(name, None)
            continue
        why = busy(queue) or staying.hindrance(name)
        if not why:
            why = _busy_now(await probe.delete_idle(name))
        if why:
            staying.add(name, why)
            tell(f"kept {name!r}: {why}")
            continue
        cut.pop(name, None)
        _removed(done, f"deleted the queue {name!r}", tell)
    done.kept += staying.reasons


def _busy_now(depth: Depth | None) -> str:
    """Why it was not deleted."""
    if depth is None or depth == (0, 0):
        return ""
    return "it has a consumer" if depth.consumers else f"it holds {depth.ready} messages"
