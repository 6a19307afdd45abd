"""What stands on RabbitMQ, as a pure function of what was declared.

For each service that listens, here ``packing``::

    events (topic) ──order.placed──▶ packing ──handler──▶ done
                                        │ rejected, or delivered too often      packing.dead
                                        ├──────────▶ packing (direct) ──packing.dead──▶
                                        │ failed: a copy          │ packing.retry.30s
                                        └──────────▶ packing (direct) ──▶ waits ──packing──▶ packing

Rules:

- A service owns what matches ``^packing(\\.|$)``, so that one regular expression is its whole permission.
- Its direct exchange carries its retries, redrives and dead letters, to it alone; the default exchange is not needed.
- Arguments hold only what never changes: a changed one is a conflict at start. So limits are constants, a delay is in
  the queue's name, and the event log is taken as it is found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from broker.errors import ContractError
from broker.retry import Delay
from broker.settings import Settings

DELIVERY_LIMIT = 20
"""How often RabbitMQ delivers an event whose process dies each time, before it dead-letters it."""
LOOKED_AT_LIMIT = 1_000_000_000
"""Dead letters, and what waits for a retry, may be looked at as often as anybody likes. Without a limit RabbitMQ 4
drops them after 20 looks."""
LOG_SEGMENT_BYTES = 50_000_000
"""Streams are truncated by whole segments; the default of 500 MB would keep a small log forever."""

SERVICE_NAME = re.compile(r"[a-z][a-z0-9-]*")
PATTERN = re.compile(r"(?:[a-z0-9_-]+|\*|#)(?:\.(?:[a-z0-9_-]+|\*|#))*")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    kind: Literal["topic", "direct"]


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue, or a stream.

    Attributes:
        shared: it belongs to no service; whoever may declare it does, and it is taken as it is found.
    """

    name: str
    arguments: Mapping[str, str | int] = field(default_factory=dict)
    shared: bool = False

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True, slots=True)
class Binding:
    """What an exchange hands to a queue."""

    exchange: str
    queue: str
    key: str


@dataclass(frozen=True, slots=True)
class Topology:
    """A set of declarations. Declaring it twice changes nothing."""

    exchanges: tuple[Exchange, ...] = ()
    queues: tuple[Queue, ...] = ()
    bindings: tuple[Binding, ...] = ()

    def __or__(self, other: Topology) -> Topology:
        return Topology(
            tuple(dict.fromkeys(self.exchanges + other.exchanges)),
            tuple(dict.fromkeys(self.queues + other.queues)),
            tuple(dict.fromkeys(self.bindings + other.bindings)),
        )


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a RabbitMQ user needs, as regular expressions; ``topic_*`` limit keys on the exchange of all events."""

    configure: str
    write: str
    read: str
    topic_write: str
    topic_read: str


def shared_topology(settings: Settings) -> Topology:
    """The exchange of all events and, if switched on, the log that keeps them."""
    exchange = Exchange(settings.exchange, "topic")
    if not settings.log:
        return Topology((exchange,))
    return _logged(exchange, settings)


def handlings_topology(settings: Settings) -> Topology:
    """The exchange through which services tell the event log, and nobody else, what became of events."""
    return _logged(Exchange(settings.handlings_exchange, "topic"), settings)


def _logged(exchange: Exchange, settings: Settings) -> Topology:
    """An exchange, with the event log that keeps what is published to it."""
    log = Queue(
        settings.event_log,
        {
            "x-queue-type": "stream",
            "x-max-age": settings.log_max_age,
            "x-max-length-bytes": settings.log_max_bytes,
            "x-stream-max-segment-size-bytes": LOG_SEGMENT_BYTES,
        },
        shared=True,
    )
    return Topology((exchange,), (log,), (Binding(exchange.name, log.name, "#"),))


def service_topology(service: str, patterns: Iterable[str], exchange: str) -> Topology:
    """A service's queue, its bindings, its direct exchange and its dead letters."""
    arguments: dict[str, str | int] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": service,
        "x-dead-letter-routing-key": dead_queue(service),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    dead = Queue(dead_queue(service), {"x-queue-type": "quorum", "x-delivery-limit": LOOKED_AT_LIMIT})
    return Topology(
        exchanges=(Exchange(service, "direct"),),
        queues=(dead, Queue(service, arguments)),
        bindings=(
            Binding(service, dead.name, dead.name),
            Binding(service, service, service),
            *(Binding(exchange, service, pattern) for pattern in sorted(set(patterns))),
        ),
    )


def retry_topology(service: str, delay: Delay) -> Topology:
    """The queue in which a service's failed events wait for a delay, declared when first needed."""
    name = retry_queue(service, delay)
    arguments: dict[str, str | int] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": LOOKED_AT_LIMIT,
        "x-message-ttl": delay.milliseconds,
        "x-dead-letter-exchange": service,
        "x-dead-letter-routing-key": service,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    return Topology(queues=(Queue(name, arguments),), bindings=(Binding(service, name, name),))


def backfill_topology(service: str) -> Topology:
    """The queue that exists while a service's backfill is unfinished. It keeps its latest message: how far it is."""
    arguments: dict[str, str | int] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": LOOKED_AT_LIMIT,
        "x-max-length": 1,
    }
    name = backfill_queue(service)
    return Topology((Exchange(service, "direct"),), (Queue(name, arguments),), (Binding(service, name, name),))


def backfill_queue(service: str) -> str:
    """Where a service's unfinished backfill notes how far it is, and the key that leads there on its own exchange."""
    return f"{service}.backfill"


def backfill_lock(service: str) -> str:
    """The exclusive queue of the process that backfills a service."""
    return f"{service}.backfill.lock"


def dead_queue(service: str) -> str:
    """Where a service's dead letters are, and the key that leads there on its own exchange."""
    return f"{service}.dead"


def retry_queue(service: str, delay: Delay) -> str:
    """Where a service's failed events wait, and the key that leads there on its own exchange."""
    return f"{service}.retry.{delay}"


def publisher_permissions(settings: Settings, keys: Iterable[str]) -> Permissions:
    """Least privilege of a client that only publishes: it declares nothing."""
    return Permissions(
        configure="^$",
        write=f"^{re.escape(settings.exchange)}$",
        read="^$",
        topic_write=_any_of(keys),
        topic_read="^$",
    )


def service_permissions(
    service: str, settings: Settings, *, patterns: Iterable[str], publishes: Iterable[str], backfill: bool = False
) -> Permissions:
    """Least privilege of a service: all of its own, reading the exchange by its patterns, writing it by its keys; to
    backfill, reading the event log."""
    own, exchange = re.escape(service), re.escape(settings.exchange)
    handled = r"(\.handled)?" if settings.log and settings.record_handlings else ""
    log = r"(\.log)?" if backfill else ""
    return Permissions(
        configure=rf"^{own}(\.|$)",
        write=rf"^({own}(\.|$)|{exchange}{handled}$)",
        read=rf"^({own}(\.|$)|{exchange}{log}$)",
        topic_write=_any_of(publishes),
        topic_read=_any_of(patterns),
    )


def operator_permissions(service: str) -> Permissions:
    """Least privilege of whoever looks at a service's dead letters and sends them back. Declares nothing."""
    own = re.escape(service)
    return Permissions(configure="^$", write=f"^{own}$", read=rf"^{own}(\.|$)", topic_write="^$", topic_read="^$")


def _any_of(keys: Iterable[str]) -> str:
    """Topic permissions are unanchored, and compare the literal binding key."""
    return f"^({'|'.join(re.escape(key) for key in sorted(set(keys)))})$"


def check_service_name(name: str, exchange: str = "events") -> None:
    """Refuse what cannot be a service's name, since it is the name of its queue and exchange.

    Raises:
        ContractError: with the reason.
    """
    if not isinstance(name, str) or not SERVICE_NAME.fullmatch(name) or len(name) > 100:
        raise ContractError(
            f"{name!r} is not a service name: a letter, then letters, digits and '-', all lower case, up to 100."
        )
    if name in ("events", exchange):
        raise ContractError(f"A service cannot be named {name!r}: that is the exchange of all events.")


def check_pattern(pattern: str) -> None:
    """Refuse what is not a topic pattern.

    Raises:
        ContractError: with the reason.
    """
    if not PATTERN.fullmatch(pattern) or len(pattern) > 200:
        raise ContractError(
            f"{pattern!r} is not a pattern: words of a-z, 0-9, '_' and '-' joined by dots, "
            "where '*' stands for one word and '#' for any number."
        )


def is_pattern(text: str) -> bool:
    """Whether it stands for more than one key."""
    return "*" in text or "#" in text


@lru_cache(maxsize=4096)
def matches(pattern: str, key: str) -> bool:
    """Whether RabbitMQ's topic exchange hands an event with this key to a queue bound by this pattern."""
    return _match(tuple(pattern.split(".")), tuple(key.split(".")))


def _match(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Words against a pattern, keeping the set of places in the pattern where one may stand: no backtracking."""
    places = _skip(pattern, {0})
    for word in words:
        stay = {at for at in places if at < len(pattern) and pattern[at] == "#"}
        step = {at + 1 for at in places if at < len(pattern) and pattern[at] in ("*", word)}
        places = _skip(pattern, stay | step)
    return len(pattern) in places


def _skip(pattern: Sequence[str], places: set[int]) -> set[int]:
    """``#`` stands for no word, too."""
    found = set(places)
    for at in range(len(pattern)):
        if at in found and pattern[at] == "#":
            found.add(at + 1)
    return found


def overlap(one: str, other: str) -> bool:
    """Whether some key matches both patterns."""
    first, second = one.split("."), other.split(".")
    seen: set[tuple[int, int]] = set()
    pending = [(0, 0)]
    while pending:
        here = pending.pop()
        if here in seen:
            continue
        seen.add(here)
        at, to = here
        if at == len(first) and to == len(second):
            return True
        pending.extend(_steps(first[at : at + 1], second[to : to + 1], at, to))
    return False


def _steps(a: Sequence[str], b: Sequence[str], at: int, to: int) -> list[tuple[int, int]]:
    """Where two patterns can go from two places, given what stands there (nothing, at their ends)."""
    steps: list[tuple[int, int]] = []
    if a == ["#"]:
        steps += [(at + 1, to)] + ([(at, to + 1)] if b else [])
    if b == ["#"]:
        steps += [(at, to + 1)] + ([(at + 1, to)] if a else [])
    if a and b and "#" not in (*a, *b) and (a == b or "*" in (*a, *b)):
        steps.append((at + 1, to + 1))
    return steps
