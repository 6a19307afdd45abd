"""What `broker doctor` may change: it declares what the code declares and is missing, and removes what is left over.

No queue is deleted that holds anything or is consumed. It is looked at before, and again when RabbitMQ has had the time
to report what is unacknowledged; then it is cut off from everything that could bring something, and looked at a last
time in the moment before it is deleted. If it stays after all, it is bound again at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from broker.errors import AccessRefused, BrokerError, TopologyConflict
from broker.tools.drift import Orphan, leftovers, missing
from broker.tools.snapshot import Snapshot, some
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
    queues, exchanges, kept = [], [], []
    for retry in found.retries:
        why = busy(retry)
        kept.append(f"{retry.name}: {why}") if why else queues.append(retry.name)
    for orphan in found.orphans:
        going, staying = _sorted_out(orphan)
        queues += going
        kept += staying
        exchanges += [orphan.name] if orphan.exchange and not staying else []
    return Plan(found.bindings, tuple(queues), tuple(exchanges), tuple(kept))


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
    return f"it holds {some(count, 'message')}" if count else ""


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

    async with probing(snapshot.settings, "doctor --prune") as probe, Management.of(snapshot.settings) as management:
        pruning = _Pruning(probe, management, tell)
        for it in todo.bindings:
            await probe.unbind(it.destination, it.source, it.key, it.arguments)
            pruning.removed(f"unbound {it.destination!r} from {it.source!r}, key {it.key!r}")
        if todo.queues:
            await asyncio.sleep(REPORTED)
        for name in todo.queues:
            await pruning.delete(name)
        there = {queue.name for queue in await management.queues()}
        for name in todo.exchanges:
            if not any(queue == name or queue.startswith(f"{name}.") for queue in there):
                await pruning.delete_exchange(name)
    return pruning.done


class _Pruning:
    """Removes one thing after the other."""

    def __init__(self, probe: Probe, management: Management, tell: Tell) -> None:
        self._probe = probe
        self._management = management
        self._tell = tell
        self._staying = Staying()
        self.done = Pruned(kept=self._staying.reasons)

    def removed(self, said: str) -> None:
        """Note what was done."""
        self.done.removed.append(said)
        self._tell(said)

    async def delete(self, name: str) -> None:
        """Delete a queue, if it is still idle."""
        counted = {queue.name: queue for queue in await self._management.queues()}
        if name not in counted:
            return  # somebody else was faster
        why = busy(counted[name]) or self._staying.hindrance(name)
        if not why:
            async with self._cut_off(name) as cut:
                why = _busy_now(await self._probe.delete_idle(name))
                if not why:
                    cut.clear()
        if why:
            self._staying.add(name, why)
            self._tell(f"kept {name!r}: {why}")
        else:
            self.removed(f"deleted the queue {name!r}")

    async def delete_exchange(self, name: str) -> None:
        """Delete an exchange, if nothing is bound to it."""
        if await self._probe.delete_unused(name):
            self.removed(f"deleted the exchange {name!r}")

    @asynccontextmanager
    async def _cut_off(self, queue: str) -> AsyncIterator[list[Binding]]:
        """Take all bindings from a queue; in the end those that are still noted are bound again."""
        bindings = [
            it for it in await self._management.bindings() if it.destination_type == "queue" and it.destination == queue
        ]
        cut: list[Binding] = []
        try:
            for it in bindings:
                cut.append(it)
                await self._probe.unbind(queue, it.source, it.key, it.arguments)
            yield cut
        finally:
            for it in cut:
                try:
                    await self._probe.bind(queue, it.source, it.key, it.arguments)
                except BrokerError as error:
                    self._tell(f"not bound again, do it by hand: {queue!r} to {it.source!r} by {it.key!r}: {error}")


def _busy_now(depth: Depth | None) -> str:
    """Why it was not deleted."""
    if depth is None or depth == (0, 0):
        return ""
    return "it has a consumer" if depth.consumers else f"it holds {some(depth.ready, 'message')}"
