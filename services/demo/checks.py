"""The differences between what is and what should be, from the services' own commands, their files and RabbitMQ."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import BaseModel, TypeAdapter

from broker.tools.management import Queue
from services.contracts import Line, Money
from services.demo.commands import Commands

STATUSES = ("placed", "packed", "dispatched")
Entity = dict[str, Any]


class Step(BaseModel):
    """One status of an order, and since when."""

    status: str
    at: datetime


class Order(BaseModel):
    """An order as Order and CRM know it."""

    order_id: UUID
    lines: tuple[Line, ...]
    total: Money
    status: str
    history: list[Step]
    email: Path | None = None
    """CRM's follow-up e-mail."""


class Customer(BaseModel):
    """A customer's record in CRM."""

    customer_id: UUID
    name: str
    email: str
    orders: list[Order] = []


class Reported(BaseModel):
    """An order as Reporting knows it."""

    order_id: UUID
    status: str
    total: Money | None
    placed_at: datetime | None
    packed_at: datetime | None
    dispatched_at: datetime | None


class Report(BaseModel):
    """Reporting's sums."""

    placed: int
    packed: int
    dispatched: int
    revenue: dict[str, Decimal]


class Copies(BaseModel):
    """Order's copies of what the three owners own."""

    customers: list[Entity]
    items: list[Entity]
    addresses: list[Entity]


@dataclass(frozen=True)
class Facts:
    """What the services say, each by its own command, and what lies in the outbox."""

    orders: list[Order]
    customers: list[Customer]
    reported: list[Reported]
    report: Report
    copies: Copies
    owned: Copies
    emails: list[Path]

    @property
    def crm_orders(self) -> list[Order]:
        """The orders in all customers' records."""
        return [order for customer in self.customers for order in customer.orders]


@dataclass(frozen=True)
class Verdict:
    """The counts at the end; each counted from what the services hold."""

    placed: int
    packed: int
    dispatched: int
    emails: int
    lost: int
    twice: int

    def __str__(self) -> str:
        return (
            f"{self.placed} placed · {self.packed} packed · {self.dispatched} dispatched · {self.emails} e-mails · "
            f"{self.lost} lost · {self.twice} twice"
        )


async def gather(commands: Commands) -> Facts:
    """Ask all services, side by side; and look into CRM's outbox."""
    orders, crm, reported, report, copies, customers, items, addresses = await asyncio.gather(
        commands.json("order", "list"),
        commands.json("crm", "list"),
        commands.json("reporting", "list"),
        commands.json("reporting", "show"),
        commands.json("order", "copies"),
        commands.json("customer", "list"),
        commands.json("catalog", "list"),
        commands.json("address", "list"),
    )
    return Facts(
        orders=TypeAdapter(list[Order]).validate_python(orders),
        customers=TypeAdapter(list[Customer]).validate_python(crm),
        reported=TypeAdapter(list[Reported]).validate_python(reported),
        report=Report.model_validate(report),
        copies=Copies.model_validate(copies),
        owned=Copies(customers=customers, items=items, addresses=addresses),
        emails=commands.emails(),
    )


def differences(facts: Facts, placed: Iterable[UUID]) -> list[str]:
    """Everything that is not as it should be, in words."""
    expected = set(placed)
    return [
        *_statuses(facts, expected),
        *_amounts(facts),
        *_report(facts, len(expected)),
        *_copies(facts),
        *_emails(facts, expected),
    ]


def unacknowledged(queues: Iterable[Queue]) -> list[str]:
    """Queues that have delivered what nobody has acknowledged."""
    return [f"{queue.unacked} events of queue {queue.name} are in hand" for queue in queues if queue.unacked]


def verdict(facts: Facts, placed: Iterable[UUID]) -> Verdict:
    """Count."""
    reached = Counter(status for order in facts.orders for status in {step.status for step in order.history})
    return Verdict(
        placed=reached["placed"],
        packed=reached["packed"],
        dispatched=reached["dispatched"],
        emails=len(facts.emails),
        lost=len(set(placed) - _everywhere_dispatched(facts)),
        twice=sum(_extra(names) for names in _countable(facts)),
    )


def _everywhere_dispatched(facts: Facts) -> set[UUID]:
    views: tuple[list[Order] | list[Reported], ...] = (facts.orders, facts.crm_orders, facts.reported)
    done = [{order.order_id for order in view if order.status == "dispatched"} for view in views]
    return set.intersection(*done, {order.order_id for order in facts.crm_orders if _sent(order)})


def _sent(order: Order) -> bool:
    return order.email is not None and order.email.is_file()


def _countable(facts: Facts) -> Iterator[list[str]]:
    """Lists in which nothing may stand twice."""
    yield [str(order.order_id) for order in facts.orders]
    yield [str(order.order_id) for order in facts.crm_orders]
    yield [str(order.order_id) for order in facts.reported]
    yield [str(order_of(path)) for path in facts.emails]
    for order in (*facts.orders, *facts.crm_orders):
        yield [step.status for step in order.history]


def _extra(names: list[str]) -> int:
    return len(names) - len(set(names))


def _statuses(facts: Facts, expected: set[UUID]) -> Iterator[str]:
    views: dict[str, list[Order] | list[Reported]] = {
        "Order": facts.orders,
        "CRM": facts.crm_orders,
        "Reporting": facts.reported,
    }
    for name, orders in views.items():
        statuses = {order.order_id: order.status for order in orders}
        for order_id in expected - statuses.keys():
            yield f"{name} does not know order {order_id}"
        for order_id in statuses.keys() - expected:
            yield f"{name} knows an order that was never placed: {order_id}"
        for order_id, status in statuses.items():
            if status != "dispatched":
                yield f"{name} has order {order_id} as {status}, not dispatched"
    for order in (*facts.orders, *facts.crm_orders):
        if tuple(step.status for step in sorted(order.history, key=lambda step: step.at)) != STATUSES:
            yield f"the history of order {order.order_id} is {[step.status for step in order.history]}"


def _amounts(facts: Facts) -> Iterator[str]:
    crm = {order.order_id: order for order in facts.crm_orders}
    reported = {order.order_id: order.total for order in facts.reported}
    for order in facts.orders:
        known = crm.get(order.order_id)
        if known is not None and (known.lines, known.total) != (order.lines, order.total):
            yield f"CRM has other lines or another total for order {order.order_id} than Order"
        if reported.get(order.order_id) != order.total:
            yield f"Reporting has another total for order {order.order_id}: {reported.get(order.order_id)}"
        if sum(line.quantity * line.price.amount for line in order.lines) != order.total.amount:
            yield f"the lines of order {order.order_id} do not add up to its total"


def _report(facts: Facts, count: int) -> Iterator[str]:
    report = facts.report
    if (report.placed, report.packed, report.dispatched) != (count, count, count):
        yield f"Reporting counts {report.placed} placed, {report.packed} packed, {report.dispatched} dispatched"
    sums: dict[str, Decimal] = {}
    for order in facts.orders:
        sums[order.total.currency] = sums.get(order.total.currency, Decimal(0)) + order.total.amount
    if report.revenue != sums:
        yield f"Reporting's revenue is {_amount(report.revenue)}, the orders' sum {_amount(sums)}"


def _amount(sums: dict[str, Decimal]) -> str:
    return ", ".join(f"{amount} {currency}" for currency, amount in sorted(sums.items())) or "nothing"


def _copies(facts: Facts) -> Iterator[str]:
    for kind in ("customers", "items", "addresses"):
        copies, owned = _sorted(getattr(facts.copies, kind)), _sorted(getattr(facts.owned, kind))
        if copies != owned:
            yield f"Order's copies of {kind} differ from their owner's: {len(copies)} copies, {len(owned)} owned"
    crm = {(str(customer.customer_id), customer.name, customer.email) for customer in facts.customers}
    if crm != {(owner["customer_id"], owner["name"], owner["email"]) for owner in facts.owned.customers}:
        yield "CRM's customers differ from their owner's"


def _sorted(entities: list[Entity]) -> list[str]:
    return sorted(json.dumps(entity, sort_keys=True) for entity in entities)


def _emails(facts: Facts, expected: set[UUID]) -> Iterator[str]:
    counts = Counter(order_of(path) for path in facts.emails)
    for order_id in expected | counts.keys():
        if counts[order_id] != 1 or order_id not in expected:
            yield f"{counts[order_id]} e-mails for order {order_id}"
    for path in facts.emails:
        message = read_email(path)
        kinds = {part.get_content_type() for part in message.walk()}
        if not message["To"] or not {"text/plain", "text/html"} <= kinds:
            yield f"{path} is not an e-mail with a recipient, text and HTML"


def order_of(path: Path) -> UUID | str:
    """The order that an e-mail is about: its file is named for it."""
    try:
        return UUID(path.stem)
    except ValueError:
        return path.stem


def read_email(path: Path) -> EmailMessage:
    """An .eml file."""
    with path.open("rb") as file:
        return BytesParser(EmailMessage, policy=policy.default).parse(file)
