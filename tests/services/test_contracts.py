"""The business events of the shop, as its services know them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from broker import Event
from services import contracts
from services.contracts import CustomerDetailsChanged, Line, Money, NewOrderPlaced, OrderPacked
from tests.services import making

AMOUNTS = st.decimals(min_value=0, max_value=Decimal("9999999999.99"), places=2)


@pytest.mark.parametrize(
    ("event", "name", "key", "subject"),
    [
        (contracts.CustomerDetailsChanged, "Customer Details Changed", "customer.details.changed", "customer_id"),
        (contracts.CatalogItemChanged, "Catalog Item Changed", "catalog.item.changed", "item_id"),
        (contracts.AddressChanged, "Address Changed", "address.changed", "address_id"),
        (contracts.NewOrderPlaced, "New Order Placed", "order.placed", "order_id"),
        (contracts.OrderPacked, "Order Packed", "order.packed", "order_id"),
        (contracts.OrderDispatched, "Order Dispatched", "order.dispatched", "order_id"),
    ],
)
def test_every_event_says_its_name_and_key(event: type[Event], name: str, key: str, subject: str) -> None:
    contract = event.__contract__
    assert (contract.name, contract.key, contract.version, contract.subject) == (name, key, 1, subject)


@given(amount=AMOUNTS)
def test_money_is_exact_on_the_wire(amount: Decimal) -> None:
    money = Money(amount=amount, currency="EUR")
    assert Money.model_validate_json(money.model_dump_json()) == money
    assert money.model_dump(mode="json")["amount"] == f"{amount:.2f}"


@pytest.mark.parametrize("amount", ["0.001", "-0.01", "NaN", "Infinity", "10000000000.00", "ten"])
def test_an_amount_that_is_no_money_is_refused(amount: str) -> None:
    with pytest.raises(ValidationError):
        Money.model_validate({"amount": amount, "currency": "EUR"})


@pytest.mark.parametrize("currency", ["", "eur", "EURO", "E€R", "EUR\n"])
def test_a_currency_has_three_letters(currency: str) -> None:
    with pytest.raises(ValidationError):
        Money(amount=Decimal(1), currency=currency)


@pytest.mark.parametrize(
    "email",
    ["", "ada", "@example.com", "ada@", "a@b@c", "ada@example.com\nBcc: eve@example.com", "a da@b.c", "a@b.c,d@e.f"],
)
def test_an_email_address_is_one_address(email: str) -> None:
    with pytest.raises(ValidationError):
        making.customer(email=email)


@pytest.mark.parametrize("name", ["", "   ", "A\x00da", "x" * 201])
def test_a_name_says_something(name: str) -> None:
    with pytest.raises(ValidationError):
        making.customer(name=name)


@pytest.mark.parametrize("revision", [0, -1, 2**63])
def test_a_revision_counts_from_one(revision: int) -> None:
    with pytest.raises(ValidationError):
        making.customer(revision=revision)


def test_an_order_has_lines_and_a_line_has_a_quantity() -> None:
    order = making.placed()
    with pytest.raises(ValidationError):
        NewOrderPlaced.model_validate(order.model_dump() | {"lines": []})
    with pytest.raises(ValidationError):
        Line(item_id=uuid4(), name="Lamp", quantity=0, price=order.total)


def test_an_event_can_not_be_changed() -> None:
    event = OrderPacked(order_id=uuid4())
    with pytest.raises(ValidationError):
        event.order_id = uuid4()  # type: ignore[misc]


def test_a_reader_ignores_what_a_newer_publisher_adds() -> None:
    newer: dict[str, Any] = making.placed().model_dump(mode="json")
    newer["voucher"] = "SUMMER"
    newer["total"]["tax"] = "3.80"
    newer["lines"][0]["colour"] = "red"
    assert NewOrderPlaced.model_validate(newer).total.amount == Decimal("39.80")


def test_constructing_refuses_what_is_not_of_the_event() -> None:
    with pytest.raises(ValidationError):
        CustomerDetailsChanged(**making.customer().model_dump(), phone="1")
