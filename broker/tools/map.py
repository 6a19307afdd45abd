"""What is connected to what: services, events, bindings and queues, from the code, from RabbitMQ, or both laid over
each other, with what does not fit.

RabbitMQ knows queues and bindings, not who publishes: publishers, and the names of events, come from the code alone.
What of queues and bindings does not fit is found by the rules of `broker.tools.drift`, as `broker doctor` finds it; who
consumes, and which events nobody hears or publishes, is looked at here. Pure, but for `look`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from broker.service import Service
from broker.settings import Settings
from broker.tools.catalogue import Entry, read_catalogue
from broker.tools.drift import missing, never_started, stale_bindings, strays, whose
from broker.tools.page import for_mermaid
from broker.tools.snapshot import Snapshot
from broker.topology import dead_queue, is_pattern, matches

if TYPE_CHECKING:
    from broker.tools.management import Activity, Binding, Exchange, Management, Queue

Where: TypeAlias = Literal["both", "code", "live"]
"""Who knows of it: the code and RabbitMQ, or one of them alone. With one side only looked at, that side."""
NO_KEY = "(no key)"
"""What a binding is called whose key is empty."""
LIVE_ALONE = "RabbitMQ knows queues and bindings. Who publishes, and the names of events, stand in the code alone."


@dataclass(frozen=True, slots=True)
class QueueState:
    """A service's queue on RabbitMQ: how many events wait, are in hand, are dead; who consumes; events a second."""

    ready: int = 0
    unacked: int = 0
    dead: int = 0
    consumers: int = 0
    rate_in: float = 0.0
    rate_out: float = 0.0

    @property
    def told(self) -> list[str]:
        """What is worth telling on a map: ``12 waiting``, ``3 dead``, ``no consumer`` or ``4/s``."""
        waiting = self.ready + self.unacked
        told = [f"{count} {how}" for count, how in ((waiting, "waiting"), (self.dead, "dead")) if count]
        return [*told, f"{self.rate_out:.0f}/s" if self.consumers else "no consumer"]


@dataclass(frozen=True, slots=True)
class ServiceNode:
    """A service. ``queue`` is None when RabbitMQ has none of it, or was not asked."""

    name: str
    where: Where
    publishes: tuple[str, ...] = ()
    queue: QueueState | None = None


@dataclass(frozen=True, slots=True)
class EventNode:
    """An event that the code declares, or a binding that no event of the code has, under the binding itself."""

    name: str
    key: str
    where: Where
    versions: tuple[int, ...] = ()
    description: str = ""


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A service gets an event, through a binding."""

    event: str
    service: str
    binding: str
    where: Where
    handler: str = ""


@dataclass(frozen=True, slots=True)
class Drift:
    """What does not fit: what it is about, what it means, and what helps."""

    kind: str
    about: str
    text: str
    help: str


@dataclass(frozen=True, slots=True)
class Map:
    """All of it.

    Attributes:
        code: whether the code was looked at.
        live: whether RabbitMQ was.
        note: what people should know, such as why RabbitMQ was not.
    """

    services: tuple[ServiceNode, ...]
    events: tuple[EventNode, ...]
    subscribed: tuple[Subscribed, ...]
    drift: tuple[Drift, ...]
    code: bool
    live: bool
    note: str = ""

    @property
    def published(self) -> list[tuple[str, str]]:
        """Who publishes what: service, event."""
        return [(service.name, event) for service in self.services for event in service.publishes]

    @property
    def listening(self) -> set[str]:
        """The services that get something."""
        return {link.service for link in self.subscribed}

    @property
    def bad(self) -> set[str]:
        """What is red: services and events that do not fit, queues with dead letters, bindings that no event has."""
        dead = {it.name for it in self.services if it.queue is not None and it.queue.dead}
        undeclared = {it.name for it in self.events if self.code and not it.versions}
        return {each.about for each in self.drift} | dead | undeclared

    def alone(self, link: Subscribed) -> Where | None:
        """Which side alone knows of a subscription, if both were looked at; None: nobody is alone."""
        return link.where if self.code and self.live and link.where != "both" else None

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Live:
    """What RabbitMQ says.

    Attributes:
        exchange: of all events.
        log: the event log's name.
    """

    exchange: str
    log: str
    queues: Sequence[Queue] = ()
    bindings: Sequence[Binding] = ()
    activity: Mapping[str, Activity] = field(default_factory=dict)
    exchanges: Sequence[Exchange] = ()


async def look(management: Management, exchange: str, log: str) -> Live:
    """Ask RabbitMQ. Raises as `Management` does."""
    queues, bindings = await management.queues(), await management.bindings()
    return Live(exchange, log, queues, bindings, await management.activity(), await management.exchanges())


def draw(
    services: Sequence[Service] | None, live: Live | None, note: str = "", *, looked_in: Sequence[str] = ()
) -> Map:
    """The map: of the code (``services``), of RabbitMQ, or of both.

    Args:
        looked_in: where the code was looked for, if not where ``BROKER_MODULES`` says: what helps repeats it.

    Raises:
        ContractError: the code contradicts itself.
    """
    return _Drawing(services, live, looked_in).map(note or (LIVE_ALONE if services is None else ""))


class _Drawing:
    """One map in the making."""

    def __init__(self, services: Sequence[Service] | None, live: Live | None, looked_in: Sequence[str]) -> None:
        self.code = services is not None
        self.live = live
        self.services = {service.name: service for service in services or ()}
        self.entries: dict[str, list[Entry]] = defaultdict(list)
        for entry in read_catalogue(self.services.values()) if self.code else ():
            self.entries[entry.event.__contract__.name].append(entry)
        self.keys = {name: entries[0].event.__contract__.key for name, entries in self.entries.items()}
        self.queues = {queue.name: queue for queue in live.queues} if live is not None else {}
        self.bound: dict[str, set[str]] = defaultdict(set)
        for binding in live.bindings if live is not None else ():
            if binding.source == live.exchange and binding.destination_type == "queue":  # type: ignore[union-attr]
                self.bound[binding.destination].add(binding.key)
        if live is not None:
            self.bound.pop(live.log, None)
            self.snapshot = Snapshot(
                settings=Settings.model_construct(exchange=live.exchange),
                services=services,
                looked_in=looked_in,
                listed=True,
                queues=self.queues,
                exchanges={exchange.name: exchange for exchange in live.exchanges},
                bindings=live.bindings,
            )
        self.drift: list[Drift] = []

    def map(self, note: str) -> Map:
        """All of it."""
        subscribed = sorted(self._subscribed(), key=lambda it: (it.event, it.service, it.binding))
        services = tuple(self._service(name) for name in self._names())
        sides: dict[str, set[Where]] = defaultdict(set)
        for it in subscribed:
            sides[it.event].add(it.where)
        events = tuple(self._event(name, sides[name]) for name in self._order(subscribed))
        self._look_for_drift(services, events, subscribed)
        return Map(services, events, tuple(subscribed), tuple(self.drift), self.code, self.live is not None, note)

    def _where(self, *, code: bool, live: bool) -> Where:
        return "both" if code and live else "code" if code else "live"

    def _names(self) -> list[str]:
        """The services: those of the code, and queues that are bound to the exchange or have dead letters."""
        listening = {name.removesuffix(".dead") for name in self.queues if name.endswith(".dead")}
        return sorted({*self.services, *self.bound, *(listening & set(self.queues))})

    def _service(self, name: str) -> ServiceNode:
        service = self.services.get(name)
        published = {event.__contract__.name for event in service.publishes} if service is not None else set()
        queue = self.queues.get(name)
        where = self._where(code=service is not None, live=queue is not None)
        return ServiceNode(name, where, tuple(sorted(published)), self._state(name) if queue is not None else None)

    def _state(self, name: str) -> QueueState:
        assert self.live is not None
        queue, activity = self.queues[name], self.live.activity.get(name)
        dead = self.queues.get(dead_queue(name))
        return QueueState(
            queue.ready,
            queue.unacked,
            dead.ready + dead.unacked if dead is not None else 0,
            activity.consumers if activity is not None else queue.consumers or 0,
            activity.published if activity is not None else 0.0,
            activity.acknowledged if activity is not None else 0.0,
        )

    def _subscribed(self) -> Iterator[Subscribed]:
        """Each event that each service gets, and how: as the code says, then what RabbitMQ has beyond it."""
        handlers = {
            (name, it.service, it.binding): it.handler
            for name, entries in self.entries.items()
            for entry in entries
            for it in entry.subscribers
        }
        matched = {(service, binding) for _, service, binding in handlers}
        for (event, service, binding), handler in handlers.items():
            yield Subscribed(event, service, binding, self._where_bound(service, binding), handler)
        for name, declaring in self.services.items():
            for binding in declaring.handlers.bindings:
                if (name, binding) not in matched:
                    yield Subscribed(binding, name, binding, self._where_bound(name, binding))
        for name, keys in self.bound.items():
            declared = self.services[name].handlers.bindings if name in self.services else ()
            for binding in keys.difference(declared):
                events = [event for event, key in self.keys.items() if matches(binding, key)]
                for event in events or [binding or NO_KEY]:
                    yield Subscribed(event, name, binding, "live")

    def _where_bound(self, service: str, binding: str) -> Where:
        return self._where(code=True, live=binding in self.bound.get(service, ()))

    def _order(self, subscribed: Iterable[Subscribed]) -> list[str]:
        """The events: those of one publisher beside each other."""
        publisher = {event: name for name in reversed(self._names()) for event in self._published(name)}
        names = {*self.entries, *(it.event for it in subscribed)}
        return sorted(names, key=lambda name: (publisher.get(name, "~"), name))

    def _published(self, name: str) -> set[str]:
        service = self.services.get(name)
        return {event.__contract__.name for event in service.publishes} if service is not None else set()

    def _event(self, name: str, sides: set[Where]) -> EventNode:
        """An event.

        Args:
            sides: who knows of its subscriptions.
        """
        entries = self.entries.get(name)
        live = bool(sides - {"code"})
        if not entries:
            return EventNode(name, name, self._where(code=bool(sides - {"live"}), live=live))
        versions = tuple(sorted(entry.event.__contract__.version for entry in entries))
        return EventNode(name, self.keys[name], self._where(code=True, live=live), versions, entries[-1].title)

    # -- what does not fit -------------------------------------------------------------------------------------------

    def _look_for_drift(
        self, services: Sequence[ServiceNode], events: Sequence[EventNode], subscribed: Sequence[Subscribed]
    ) -> None:
        if self.live is not None:
            self._look_at_queues(services)
        if self.live is not None and self.code:
            self._look_at_bindings()
        if self.code:
            self._look_at_events(events, subscribed)

    def _look_at_queues(self, services: Sequence[ServiceNode]) -> None:
        for it in services:
            if it.queue is not None and not it.queue.consumers:
                waiting = f", and {it.queue.ready} events wait" if it.queue.ready else ""
                self._add("no consumer", it.name, f"Nobody consumes the queue{waiting}.", "broker run MODULE")
        found = strays(self.snapshot)
        for orphan in found.orphans if self.code else ():
            runs = orphan.name in self.queues and self._state(orphan.name).consumers
            piles = ", and events pile up in its queue" if self.bound.get(orphan.name) and not runs else ""
            text = f"{whose(self.snapshot, orphan.name).capitalize()}{piles}."
            prune = "" if runs else f"{self.snapshot.prune}, or "
            self._add("no service", orphan.name, text, f"{prune}name its code, too: --from MODULE")
        for queue in found.foreign:
            gets = ", which gets our events" if self.bound.get(queue.name) else ""
            self._add("foreign queue", queue.name, f"A queue of no service{gets}.", "Whoever made it knows.")

    def _look_at_bindings(self) -> None:
        fresh = {service.name for service in never_started(self.snapshot)}
        absent = missing(self.snapshot)
        gone = {it.name for it in absent.queues}
        unbound: dict[str, list[str]] = defaultdict(list)
        for binding in absent.bindings:
            if binding.exchange == self.snapshot.settings.exchange:
                unbound[binding.queue].append(binding.key)
        for service in self.snapshot.listening:
            name = service.name
            if name in fresh:
                text = "It has no queue yet: it has never started here, and misses what is published now."
                self._add("not started", name, text, "broker run MODULE")
                continue
            if name in gone:
                text = "Its queue is gone: it misses what is published now."
                self._add("missing queue", name, text, f"{self.snapshot.fix}, or start the service again")
                continue
            for stale in stale_bindings(service, self.snapshot):
                text = f"Its queue is bound by {stale.key!r}, and no code declares that."
                self._add("stale binding", name, text, self.snapshot.prune)
            for key in sorted(unbound[name]):
                text = f"The code subscribes to {key!r}, and its queue is not bound by it."
                self._add("missing binding", name, text, f"{self.snapshot.fix}, or start the service again")

    def _look_at_events(self, events: Sequence[EventNode], subscribed: Sequence[Subscribed]) -> None:
        heard = {it.event for it in subscribed}
        published = {event for name in self.services for event in self._published(name)}
        for event in events:
            if event.name in published and event.name not in heard:
                text = "Nobody subscribes to it."
                self._add("unheard", event.name, text, "@service.on(…), or leave it: the event log keeps it")
        coming: dict[tuple[str, str], bool] = defaultdict(bool)
        for it in subscribed:
            if it.where != "live":
                coming[it.service, it.binding] |= it.event in published
        for service, binding in [at for at, comes in coming.items() if not comes]:
            what = "any such event" if is_pattern(binding) else "it"
            text = f"It subscribes to {binding!r}, and no code publishes {what}."
            self._add("unpublished", service, text, "Service(…, publishes=[…]), or --from MODULE of who does")

    def _add(self, kind: str, about: str, text: str, helps: str) -> None:
        self.drift.append(Drift(kind, about, text, helps))


# -- Mermaid ---------------------------------------------------------------------------------------------------------

RED = "#cf222e"
"""What does not fit; legible on light and on dark."""


def mermaid(it: Map) -> str:
    """The map as a Mermaid flowchart. What does not fit is red, what is in the code alone dashed, too."""
    services = {service.name: f"s{n}" for n, service in enumerate(it.services)}
    events = {event.name: f"e{n}" for n, event in enumerate(it.events)}
    bad, listening = it.bad, it.listening
    others = sorted(bad - services.keys() - events.keys())
    lines = ["flowchart LR"]
    for service in it.services:
        told = _standing(service, waited_for=it.live and service.name in listening)
        label = "<br/>".join(for_mermaid(line) for line in (service.name, told) if line)
        lines.append(f'    {services[service.name]}["{label}"]')
    lines += [f'    {at}(["{for_mermaid(name)}"])' for name, at in events.items()]
    lines += [f'    q{n}["{for_mermaid(name)}"]' for n, name in enumerate(others)]
    lines += [f"    {services[name]} --> {events[event]}" for name, event in it.published]
    for link in it.subscribed:
        arrow = "-.->" if it.alone(link) == "code" else "-->"
        label = f'|"{for_mermaid(link.binding)}"|' if is_pattern(link.binding) else ""
        lines.append(f"    {events[link.event]} {arrow}{label} {services[link.service]}")
    nodes = [at for named in (services, events) for name, at in named.items() if name in bad]
    nodes += [f"q{n}" for n, _ in enumerate(others)]
    alone = [str(n) for n, link in enumerate(it.subscribed, len(it.published)) if it.alone(link)]
    lines += [f"    classDef bad stroke:{RED},color:{RED}", f"    class {','.join(nodes)} bad"] if nodes else []
    lines += [f"    linkStyle {','.join(alone)} stroke:{RED}"] if alone else []
    return "\n".join(lines) + "\n"


def _standing(service: ServiceNode, *, waited_for: bool) -> str:
    """How a service's queue stands; empty: it has none, and needs none, or RabbitMQ was not asked."""
    if service.queue is None:
        return "no queue yet" if waited_for else ""
    return ", ".join(service.queue.told)
