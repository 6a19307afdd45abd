"""What came of it: the facts of all services, databases, the event log and RabbitMQ, laid side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from uuid import UUID

from services.contracts import (
    AddressChanged,
    CatalogItemChanged,
    CustomerDetailsChanged,
    NewOrderPlaced,
    OrderDispatched,
    OrderPacked,
)
from services.demo.checks import Facts, differences, verdict
from tests.exactly_once.plan import POSTGRESQL, RABBITMQ

STORY = tuple(event.__contract__.key for event in (NewOrderPlaced, OrderPacked, OrderDispatched))
OWNED = {
    CustomerDetailsChanged.__contract__.key: ("customers", "customer_id"),
    CatalogItemChanged.__contract__.key: ("items", "item_id"),
    AddressChanged.__contract__.key: ("addresses", "address_id"),
}
Id = tuple[str, UUID]
"""An event: its source and id."""
SHOWN = 10


@dataclass(frozen=True)
class Told:
    """One event, as the event log has it."""

    key: str
    subject: str
    revision: int | None


@dataclass(frozen=True)
class Outcome:
    """A run that has ended, on one kind of database.

    Attributes:
        database: what it ran on.
        minutes: how long it took.
        ordered: how many orders there were to be.
        placed: the orders that the command said it has placed.
        in_doubt: how many it was given and did not answer for, because it was killed.
        facts: what the services' own commands say.
        packed, dispatched: the orders that Packing and Dispatch have done.
        events: in the log, each once.
        messages: in the log, the same event as often as it was published.
        by_hand: the events that the run delivered a second time.
        subscriptions: the keys each service subscribed to.
        inboxes: what each inbox holds.
        outboxes: of each outbox, what waits and what was set aside.
        dead: how many dead letters each service has.
        waiting: what has not settled, and how much of it.
        sent: how often the SMTP server accepted each order's e-mail.
        in_doubt_emails: the orders whose e-mails CRM does not know to be sent, for whoever sent them was killed.
        kills: how often each was killed.
        ended: how processes ended that nobody killed, in words, if it is not that a server was away.
        restarts: how often a process ended because RabbitMQ or its database was away when it started.
        duplicates: how often services say that they were given an event which they had handled.
    """

    database: str
    minutes: float
    ordered: int
    placed: tuple[UUID, ...]
    in_doubt: int
    facts: Facts
    packed: tuple[UUID, ...]
    dispatched: tuple[UUID, ...]
    events: Mapping[Id, Told]
    messages: int
    by_hand: frozenset[Id]
    subscriptions: Mapping[str, list[str]]
    inboxes: Mapping[str, list[Id]]
    outboxes: Mapping[str, tuple[int, int]]
    dead: Mapping[str, int]
    waiting: Mapping[str, int]
    sent: Counter[UUID]
    in_doubt_emails: frozenset[UUID]
    kills: Counter[str]
    ended: list[str] = field(default_factory=list)
    restarts: int = 0
    duplicates: Counter[Id] = field(default_factory=Counter)

    @cached_property
    def wrong(self) -> list[str]:
        """What is not as it should be, in words."""
        orders = [order.order_id for order in self.facts.orders]
        return [
            *differences(self.facts, orders),
            *self._orders(orders),
            *self._events(orders),
            *self._inboxes(),
            *self._left(),
            *self._emails(orders),
            *self.ended,
        ]

    def _orders(self, orders: list[UUID]) -> Iterator[str]:
        if len(orders) != self.ordered:
            yield f"{len(orders)} orders were placed, not {self.ordered}"
        yield from _named("said to be placed, and not stored", set(self.placed) - set(orders))
        if len(orders) > len(set(self.placed)) + self.in_doubt:
            yield f"{len(orders)} orders are stored, {len(self.placed)} were answered, {self.in_doubt} were in doubt"
        for what, done in (("packed", self.packed), ("dispatched", self.dispatched)):
            yield from _named(f"not {what}", set(orders) - set(done))
            yield from _named(f"{what}, and never placed", set(done) - set(orders))
            yield from _named(f"{what} twice", (order for order, count in Counter(done).items() if count > 1))

    def _events(self, orders: list[UUID]) -> Iterator[str]:
        """Each fact was told by one event: published as often as you like, always the same one."""
        told = Counter((it.key, it.subject, it.revision) for it in self.events.values())
        due: set[tuple[str, str, int | None]] = {(key, str(order), None) for key in STORY for order in orders}
        for key, (kind, id_field) in OWNED.items():
            for entity in getattr(self.facts.owned, kind):
                due |= {(key, str(entity[id_field]), number + 1) for number in range(entity["revision"])}
        yield from _named("never published", due - told.keys())
        yield from _named("published, and nothing like it happened", told.keys() - due)
        yield from _named("told by several events", (fact for fact, count in told.items() if count > 1))

    def _inboxes(self) -> Iterator[str]:
        for name, keys in self.subscriptions.items():
            due = {event for event, it in self.events.items() if it.key in keys}
            entries = Counter(self.inboxes[name])
            yield from _named(f"not in the inbox of {name}", due - entries.keys())
            yield from _named(f"in the inbox of {name}, and never published", entries.keys() - due)
            yield from _named(f"twice in the inbox of {name}", (it for it, count in entries.items() if count > 1))

    def _left(self) -> Iterator[str]:
        for name, (waits, aside) in self.outboxes.items():
            if waits or aside:
                yield f"in the outbox of {name}: {waits} wait, {aside} set aside"
        yield from (f"{count} dead letters of {name}" for name, count in self.dead.items() if count)
        yield from (f"{count} wait: {name}" for name, count in self.waiting.items())

    def _emails(self, orders: list[UUID]) -> Iterator[str]:
        """No SMTP server can be asked whether it has an e-mail: it is sent at most once, and doubts are told."""
        yield from _named("e-mails sent twice", (order for order in self.sent if self.sent[order] > 1))
        yield from _named("e-mails not sent, and in no doubt", set(orders) - self.sent.keys() - self.in_doubt_emails)
        yield from _named("e-mails sent, and no such order", self.sent.keys() - set(orders))

    @property
    def revenue(self) -> str:
        """What Reporting says the orders bring in."""
        return _money(self.facts.report.revenue)

    @property
    def due(self) -> str:
        """What the orders' own totals come to."""
        sums: dict[str, Decimal] = {}
        for order in self.facts.orders:
            sums[order.total.currency] = sums.get(order.total.currency, Decimal(0)) + order.total.amount
        return _money(sums)

    def rows(self) -> list[tuple[str, str]]:
        """The report's lines: what, and how much."""
        counts = verdict(self.facts, [order.order_id for order in self.facts.orders])
        facts, once = self.facts, Counter(self.sent.values())
        return [
            ("orders placed", f"{len(facts.orders):,}"),
            ("processes killed (-9)", f"{self.kills.total():,}"),
            (f"of these, {RABBITMQ}", f"{self.kills[RABBITMQ]}"),
            (f"of these, {POSTGRESQL}", f"{self.kills[POSTGRESQL]}" if self.kills[POSTGRESQL] else "–"),
            ("events", f"{len(self.events):,}"),
            ("delivered again by hand", f"{len(self.by_hand):,}"),
            (
                "published again by a relay that could not know",
                f"{self.messages - len(self.events) - len(self.by_hand):,}",
            ),
            ("duplicates that an inbox caught", f"{self.duplicates.total():,}"),
            ("of these, of events not delivered by hand", f"{self._by_kills:,}"),
            (
                "counted by Order, CRM, Reporting",
                f"{len(facts.orders):,}, {len(facts.crm_orders):,}, {facts.report.placed:,}",
            ),
            ("packed, dispatched", f"{len(self.packed):,}, {len(self.dispatched):,}"),
            ("status histories complete and in order", f"{_complete(facts):,} of {2 * len(facts.orders):,}"),
            ("e-mails written", f"{len(facts.emails):,}"),
            ("sent by SMTP once, twice", f"{once[1]:,}, {len(self.sent) - once[1]}"),
            ("in doubt for CRM: sent, not sent", f"{self._in_doubt_and_sent}, {self._in_doubt_and_not_sent}"),
            ("revenue by Reporting", self.revenue),
            ("sum of the orders", self.due),
            ("inbox entries", f"{sum(map(len, self.inboxes.values())):,}"),
            ("left in outboxes, set aside", "{}, {}".format(*map(sum, zip(*self.outboxes.values(), strict=True)))),
            ("dead letters, left in queues", f"{sum(self.dead.values())}, {sum(self.waiting.values())}"),
            ("**lost**", f"**{counts.lost}**"),
            ("**twice**", f"**{counts.twice}**"),
            ("anything else not as it should be", f"{len(self.wrong)}"),
            ("minutes", f"{self.minutes:.0f}"),
        ]

    @property
    def _in_doubt_and_sent(self) -> int:
        return len(self.in_doubt_emails & self.sent.keys())

    @property
    def _in_doubt_and_not_sent(self) -> int:
        return len(self.in_doubt_emails - self.sent.keys())

    @property
    def _by_kills(self) -> int:
        """The duplicates that somebody's death caused, and not the run's own hand."""
        return sum(count for event, count in self.duplicates.items() if event not in self.by_hand)


def _money(sums: Mapping[str, Decimal]) -> str:
    return ", ".join(f"{amount:,} {currency}" for currency, amount in sorted(sums.items()))


def _complete(facts: Facts) -> int:
    """The histories of Order and CRM that are as they should be."""
    wanted = ["placed", "packed", "dispatched"]
    return sum(
        [step.status for step in sorted(order.history, key=lambda step: step.at)] == wanted
        for order in (*facts.orders, *facts.crm_orders)
    )


def _named(what: str, things: Iterable[object]) -> Iterator[str]:
    some = sorted(map(str, things))
    if some:
        yield f"{len(some)} {what}: {'; '.join(some[:SHOWN])}{' …' if len(some) > SHOWN else ''}"


def report(seed: int, version: str, outcomes: list[Outcome]) -> str:
    """The report, as Markdown."""
    rows = [dict(outcome.rows()) for outcome in outcomes]
    killed = sorted({name for outcome in outcomes for name in outcome.kills})
    lines = [
        f"RabbitMQ {version}, seed {seed}.",
        "",
        f"| | {' | '.join(outcome.database for outcome in outcomes)} |",
        f"|---|{'---|' * len(outcomes)}",
        *(f"| {label} | {' | '.join(row[label] for row in rows)} |" for label in rows[0]),
        "",
        "Killed: "
        + "; ".join(
            f"{name} {' and '.join(str(outcome.kills[name]) for outcome in outcomes if outcome.kills[name])}"
            for name in killed
        )
        + ".",
    ]
    return "\n".join(lines)
