"""Policies that change what we declare, and what has no limit. Pure, as all checks."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from broker.settings import AGES
from broker.tools.drift import leftovers, possible
from broker.tools.snapshot import Finding, Severity, Snapshot
from broker.topology import DELIVERY_LIMIT, LOG_SEGMENT_BYTES, LOOKED_AT_LIMIT, dead_queue

if TYPE_CHECKING:
    from broker.tools.management import Policy, Queue

# -- policies --------------------------------------------------------------------------------------------------------

Role: TypeAlias = Literal["queue", "dead letters", "retry queue", "event log", "exchange"]


@dataclass(frozen=True, slots=True)
class Target:
    """Something that a policy may change."""

    name: str
    role: Role
    own: dict[str, Any]
    """What its arguments say, by the names that policies use."""


Effect: TypeAlias = tuple[Severity, str]
EFFECTS: dict[tuple[str, Role], Effect] = {
    ("message-ttl", "queue"): ("problem", "What waits longer is dead-lettered before any handler has seen it."),
    ("message-ttl", "dead letters"): ("problem", "Dead letters that are older are deleted."),
    ("message-ttl", "retry queue"): ("warning", "Retries come sooner than the ladder says."),
    ("max-length", "queue"): ("problem", "When it is full, publishing is refused, to everybody."),
    ("max-length", "dead letters"): ("problem", "When there are more, the oldest are deleted."),
    ("max-length", "retry queue"): (
        "problem",
        "When it is full, what fails cannot wait there, and blocks its service.",
    ),
    ("max-length-bytes", "event log"): ("warning", "It keeps less than it was created for."),
    ("max-age", "event log"): ("warning", "It keeps less than it was created for."),
    ("expires", "queue"): ("problem", "RabbitMQ deletes it, with all that waits, when its service is down for longer."),
    ("expires", "dead letters"): ("problem", "RabbitMQ deletes it with all its dead letters."),
    ("expires", "retry queue"): ("problem", "RabbitMQ deletes it, with what waits for a retry."),
    ("delivery-limit", "queue"): ("warning", "An event in hand at so many crashes or restarts is dead-lettered."),
    ("delivery-limit", "dead letters"): ("problem", "A dead letter that was looked at so often is deleted."),
    ("delivery-limit", "retry queue"): ("problem", "What was looked at so often is not retried."),
    ("dead-letter-exchange", "dead letters"): ("warning", "Dead letters may leave for another place."),
    ("alternate-exchange", "exchange"): ("warning", "An event that no queue gets counts as stored, and is not."),
}
"""What a policy changes that we rely on. Of numbers the lower one counts, its or the argument; else the argument."""
EFFECTS |= {("max-length-bytes", role): effect for (key, role), effect in EFFECTS.items() if key == "max-length"}


def check_policies(snapshot: Snapshot) -> Iterator[Finding]:
    """Those that change what we declare."""
    found: dict[tuple[str, bool, str, Role], list[str]] = defaultdict(list)
    values: dict[tuple[str, bool, str, Role], Any] = {}
    for target in _targets(snapshot):
        for policy in effective(snapshot.policies or (), target):
            for key, value in policy.definition.items():
                if (key, target.role) in EFFECTS and _counts(key, value, target.own.get(key)):
                    which = (policy.name, policy.operator, key, target.role)
                    found[which].append(target.name)
                    values[which] = value
    for which, names in found.items():
        name, operator, key, role = which
        severity, why = EFFECTS[key, role]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        what = f"The {'operator ' * operator}policy {name!r} sets {key} {values[which]} on {names[0]}{more}."
        clear = snapshot.control("clear_operator_policy" if operator else "clear_policy", name)
        yield Finding(severity, "policies", what, why, (clear,))


def _targets(snapshot: Snapshot) -> Iterator[Target]:
    """What the code declares, or will when it needs it."""
    for service in snapshot.listening:
        yield Target(service.name, "queue", {"delivery-limit": DELIVERY_LIMIT, "dead-letter-exchange": service.name})
        yield Target(dead_queue(service.name), "dead letters", {"delivery-limit": LOOKED_AT_LIMIT})
        for queue in possible(service).queues:
            own = {name.removeprefix("x-"): value for name, value in queue.arguments.items()}
            if "message-ttl" in own:
                yield Target(queue.name, "retry queue", own)
    settings = snapshot.settings
    yield Target(settings.exchange, "exchange", {})
    log = (snapshot.queues or {}).get(settings.event_log)
    if log is not None:
        yield Target(log.name, "event log", {name.removeprefix("x-"): it for name, it in log.arguments.items()})


APPLIES = {"exchange": {"all", "exchanges"}, "event log": {"all", "queues", "streams"}}


def effective(policies: Iterable[Policy], target: Target) -> Iterator[Policy]:
    """The policy that RabbitMQ applies, and the operator's: of each the first by priority."""
    applies = APPLIES.get(target.role, {"all", "queues", "quorum_queues"})
    for operator in (False, True):
        matching = [it for it in policies if it.operator is operator and it.apply_to in applies and _is_for(it, target)]
        if matching:
            yield max(matching, key=lambda it: it.priority)


def _is_for(policy: Policy, target: Target) -> bool:
    try:
        return re.search(policy.pattern, target.name) is not None
    except re.error:  # Erlang takes more than Python
        return False


def _counts(key: str, value: Any, own: Any) -> bool:
    """Whether a policy's value changes something."""
    if key == "max-age":
        return own is not None and 0 < seconds(str(value)) < seconds(str(own))
    if own is None:
        return True
    if isinstance(value, int) and isinstance(own, int):
        return value < own
    return False


def seconds(age: str) -> float:
    """A duration as RabbitMQ writes it, ``7D``; 0 if it is none."""
    number, unit = age[:-1], age[-1:]
    return int(number) * AGES[unit] if unit in AGES and number.isdecimal() else 0.0


# -- limits ----------------------------------------------------------------------------------------------------------


def check_limits(snapshot: Snapshot) -> Iterator[Finding]:
    """Of the event log, and of queues that others have bound to our events."""
    if not snapshot.listed:
        return
    yield from _log_limits(snapshot)
    settings = snapshot.settings
    ours = {settings.exchange, settings.handlings_exchange}
    for queue in leftovers(snapshot).foreign:
        if any(binding.source in ours for binding in snapshot.bound(queue.name)):
            yield from _foreign_limits(snapshot, queue)


def _log_limits(snapshot: Snapshot) -> Iterator[Finding]:
    settings = snapshot.settings
    log = (snapshot.queues or {}).get(settings.event_log)
    if not settings.log or log is None or log.type != "stream":
        return
    target = Target(log.name, "event log", {})
    set_ = {key for policy in effective(snapshot.policies or (), target) for key in policy.definition}
    set_ |= {name.removeprefix("x-") for name in log.arguments}
    cap = log.arguments.get("x-max-length-bytes")
    words = ("set_policy", "--apply-to", "queues", log.name, f"^{re.escape(log.name)}$")
    if "max-length-bytes" not in set_ and snapshot.policies is not None:
        definition = f'{{"max-age":"{settings.log_max_age}","max-length-bytes":{settings.log_max_bytes}}}'
        why = "It grows until the disk is full, and then nobody can publish."
        yield Finding(
            "warning", "limits", f"{log.name} has no cap on its size.", why, (snapshot.control(*words, definition),)
        )
    free = [node.disk_free - (node.disk_free_limit or 0) for node in snapshot.nodes or () if node.disk_free]
    if isinstance(cap, int) and free and cap > min(free):
        what = f"{log.name} may grow to {size(cap)}, and a disk has {size(min(free))} left."
        why = "Before the log reaches its cap, nobody can publish for want of disk."
        smaller = f'{{"max-length-bytes":{max(100_000_000, min(free) // 2)}}}'
        yield Finding("warning", "limits", what, why, (snapshot.control(*words, smaller),))
    segment = log.arguments.get("x-stream-max-segment-size-bytes", 10 * LOG_SEGMENT_BYTES)
    if isinstance(cap, int) and isinstance(segment, int) and segment > cap:
        what = f"{log.name} has segments of {size(segment)} and a cap of {size(cap)}."
        yield Finding("note", "limits", what, "Only whole segments are deleted: it grows beyond its cap.")


def _foreign_limits(snapshot: Snapshot, queue: Queue) -> Iterator[Finding]:
    arguments = queue.arguments
    if "x-max-length" in arguments or "x-max-length-bytes" in arguments:
        if str(arguments.get("x-overflow", "")).startswith("reject-publish"):
            what = f"{queue.name}, which no service owns, refuses events when it is full."
            why = "One full queue refuses every publish of its events, to everybody."
            yield Finding("problem", "limits", what, why, ("broker map --live",))
        return
    lacks = [
        *(["delivery limit"] if queue.type == "quorum" and "x-delivery-limit" not in arguments else []),
        *(["dead-letter exchange"] if queue.type != "stream" and "x-dead-letter-exchange" not in arguments else []),
    ]
    if lacks:
        what = f"{queue.name}, which no service owns, gets our events, and has no {' and no '.join(lacks)}."
        why = "An event that it cannot handle comes again for ever (RabbitMQ 3), or is deleted (RabbitMQ 4)."
        yield Finding("warning", "limits", what, why, ("broker map --live",))


def size(count: int) -> str:
    """Bytes, for people."""
    for unit, of in (("GB", 10**9), ("MB", 10**6)):
        if count >= of:
            return f"{count / of:.1f} {unit}"
    return f"{count} bytes"
