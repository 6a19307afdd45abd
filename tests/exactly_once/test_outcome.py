"""The check at the end of the exactly-once run finds whatever is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest

from services.contracts import Line, Money
from services.demo.checks import Copies, Customer, Facts, Order, Report, Reported, Step
from tests.exactly_once.outcome import Outcome, Told, report

ORDER, CUSTOMER = UUID(int=1), UUID(int=2)
PLACED, PACKED, DISPATCHED, CHANGED = (("order", UUID(int=number)) for number in range(10, 14))
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def facts(folder: Path) -> Facts:
    """One customer with one order, and all is well."""
    email = folder / f"{ORDER}.eml"
    email.write_text(
        "To: ada@example.com\nContent-Type: multipart/alternative; boundary=b\n\n"
        "--b\nContent-Type: text/plain\n\nx\n--b\nContent-Type: text/html\n\nx\n--b--\n"
    )
    times = [BEGIN + timedelta(seconds=number) for number in range(3)]
    price = Money(amount=Decimal("19.99"), currency="EUR")
    order = Order(
        order_id=ORDER,
        lines=(Line(item_id=UUID(int=3), name="Lamp", quantity=1, price=price),),
        total=price,
        status="dispatched",
        history=[
            Step(status=status, at=at) for status, at in zip(("placed", "packed", "dispatched"), times, strict=True)
        ],
        email=email,
    )
    owner = {"customer_id": str(CUSTOMER), "revision": 1, "name": "Ada", "email": "ada@example.com"}
    owned = Copies(customers=[owner], items=[], addresses=[])
    return Facts(
        orders=[order],
        customers=[Customer(customer_id=CUSTOMER, name="Ada", email="ada@example.com", orders=[order])],
        reported=[
            Reported(
                order_id=ORDER,
                status="dispatched",
                total=price,
                placed_at=times[0],
                packed_at=times[1],
                dispatched_at=times[2],
            )
        ],
        report=Report(placed=1, packed=1, dispatched=1, revenue={"EUR": Decimal("19.99")}),
        copies=owned,
        owned=owned,
        emails=[email],
    )


@pytest.fixture
def sound(tmp_path: Path) -> Outcome:
    """A run in which nothing went wrong."""
    return Outcome(
        database="SQLite",
        minutes=1,
        ordered=1,
        placed=(ORDER,),
        in_doubt=0,
        facts=facts(tmp_path),
        packed=(ORDER,),
        dispatched=(ORDER,),
        events={
            PLACED: Told("order.placed", str(ORDER), None),
            PACKED: Told("order.packed", str(ORDER), None),
            DISPATCHED: Told("order.dispatched", str(ORDER), None),
            CHANGED: Told("customer.details.changed", str(CUSTOMER), 1),
        },
        messages=6,
        by_hand=frozenset({PLACED}),
        subscriptions={"packing": ["order.placed"]},
        inboxes={"packing": [PLACED]},
        outboxes={"order": (0, 0)},
        dead={"packing": 0},
        waiting={},
        sent=Counter({ORDER: 1}),
        in_doubt_emails=frozenset(),
        kills=Counter({"packing": 2, "RabbitMQ": 1}),
        duplicates=Counter({PLACED: 1, PACKED: 2}),
    )


def test_a_sound_run_is_found_sound_and_reported(sound: Outcome) -> None:
    assert sound.wrong == []
    text = report(7, "4.0.5", [sound, replace(sound, database="PostgreSQL 18")])
    assert "RabbitMQ 4.0.5, seed 7." in text
    assert "| published again by a relay that could not know | 1 | 1 |" in text
    assert "| of these, of events not delivered by hand | 2 | 2 |" in text
    assert "| **lost** | **0** | **0** |" in text
    assert "| revenue by Reporting | 19.99 EUR | 19.99 EUR |" in text
    assert "Killed: RabbitMQ 1 and 1; packing 2 and 2." in text


WRONGS: dict[str, Callable[[Outcome], Outcome]] = {
    "1 orders were placed, not 2": lambda it: replace(it, ordered=2),
    "1 said to be placed, and not stored": lambda it: replace(it, placed=(ORDER, UUID(int=99))),
    "1 orders are stored, 0 were answered, 0 were in doubt": lambda it: replace(it, placed=()),
    "1 not packed": lambda it: replace(it, packed=()),
    "1 dispatched, and never placed": lambda it: replace(it, dispatched=(ORDER, UUID(int=99))),
    "1 packed twice": lambda it: replace(it, packed=(ORDER, ORDER)),
    "1 never published": lambda it: replace(it, events={k: v for k, v in it.events.items() if k != PACKED}),
    "1 told by several events": lambda it: replace(
        it, events={**it.events, ("order", UUID(int=99)): Told("order.packed", str(ORDER), None)}
    ),
    "1 published, and nothing like it happened": lambda it: replace(
        it, events={**it.events, ("order", UUID(int=99)): Told("order.packed", str(UUID(int=98)), None)}
    ),
    "1 not in the inbox of packing": lambda it: replace(it, inboxes={"packing": []}),
    "1 in the inbox of packing, and never published": lambda it: replace(
        it, inboxes={"packing": [PLACED, ("order", UUID(int=99))]}
    ),
    "1 twice in the inbox of packing": lambda it: replace(it, inboxes={"packing": [PLACED, PLACED]}),
    "in the outbox of order: 1 wait, 2 set aside": lambda it: replace(it, outboxes={"order": (1, 2)}),
    "3 dead letters of packing": lambda it: replace(it, dead={"packing": 3}),
    "4 wait: packing.retry.1s": lambda it: replace(it, waiting={"packing.retry.1s": 4}),
    "1 e-mails sent twice": lambda it: replace(it, sent=Counter({ORDER: 2})),
    "1 e-mails not sent, and in no doubt": lambda it: replace(it, sent=Counter()),
    "1 e-mails sent, and no such order": lambda it: replace(it, sent=Counter({ORDER: 1, CUSTOMER: 1})),
    "crm ended by itself with 1": lambda it: replace(it, ended=["crm ended by itself with 1: …"]),
    "Reporting's revenue is 0.01 EUR": lambda it: replace(
        it, facts=replace(it.facts, report=it.facts.report.model_copy(update={"revenue": {"EUR": Decimal("0.01")}}))
    ),
    "0 e-mails for order": lambda it: replace(it, facts=replace(it.facts, emails=[])),
}


def test_an_email_in_doubt_may_be_sent_or_not(sound: Outcome) -> None:
    assert replace(sound, sent=Counter(), in_doubt_emails=frozenset({ORDER})).wrong == []
    assert replace(sound, in_doubt_emails=frozenset({ORDER})).wrong == []


@pytest.mark.parametrize("words", WRONGS)
def test_whatever_is_wrong_is_named(sound: Outcome, words: str) -> None:
    wrong = WRONGS[words](sound).wrong
    assert any(words in each for each in wrong), wrong
