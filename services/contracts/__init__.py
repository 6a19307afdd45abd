"""The business events of the shop: all that its services know of each other.

Every event is a complete statement that can be read alone. Events about an entity (customer, item, address) carry its
whole state and its ``revision``, 1 when it came to be and one more with every change, so that who keeps a copy can tell
which of two is newer, whatever order they arrive in. When something happened is the envelope's time.

Amounts of money are decimal, times UTC, ids UUIDs.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from broker import Event

__all__ = [
    "AddressChanged",
    "CatalogItemChanged",
    "CustomerDetailsChanged",
    "Line",
    "Money",
    "NewOrderPlaced",
    "OrderDispatched",
    "OrderPacked",
]

Text = Annotated[
    str,
    # Databases differ about NUL in text: PostgreSQL refuses it.
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00]+$"),
]
Email = Annotated[
    str,
    # What HTML's <input type=email> accepts: no whitespace, no quoting, one "@".
    StringConstraints(
        max_length=254,
        pattern=r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
        r"(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*$",
    ),
]
Country = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]  # ISO 3166-1 alpha-2
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]  # ISO 4217
Revision = Annotated[int, Field(ge=1, le=2**63 - 1)]
Amount = Annotated[
    Decimal,
    Field(ge=0, max_digits=12, decimal_places=2),
    AfterValidator(lambda amount: amount.quantize(Decimal("0.01"))),
]


class Money(BaseModel):
    """An amount, exact to the hundredth, and its currency. On the wire the amount is text: ``"19.90"``."""

    model_config = ConfigDict(frozen=True)

    amount: Amount
    currency: Currency

    def __str__(self) -> str:
        return f"{self.amount} {self.currency}"


class Line(BaseModel):
    """So many of one item, under the name and at the price it had when the order was placed."""

    model_config = ConfigDict(frozen=True)

    item_id: UUID
    name: Text
    quantity: Annotated[int, Field(ge=1, le=1_000_000)]
    price: Money
    """The price of one."""


class CustomerDetailsChanged(
    Event, name="Customer Details Changed", key="customer.details.changed", version=1, subject="customer_id"
):
    """A customer is new, or their details are others now."""

    customer_id: UUID
    revision: Revision
    name: Text
    email: Email


class CatalogItemChanged(Event, name="Catalog Item Changed", key="catalog.item.changed", version=1, subject="item_id"):
    """An item is new in the catalog, or its name or price is another now."""

    item_id: UUID
    revision: Revision
    name: Text
    price: Money


class AddressChanged(Event, name="Address Changed", key="address.changed", version=1, subject="address_id"):
    """A customer's address is new, or another now."""

    address_id: UUID
    revision: Revision
    customer_id: UUID
    street: Text
    city: Text
    postcode: Text
    country: Country


class NewOrderPlaced(Event, name="New Order Placed", key="order.placed", version=1, subject="order_id"):
    """A customer's order is complete: who, where to, what, and what it costs altogether."""

    order_id: UUID
    customer_id: UUID
    address_id: UUID
    lines: Annotated[tuple[Line, ...], Field(min_length=1)]
    total: Money


class OrderPacked(Event, name="Order Packed", key="order.packed", version=1, subject="order_id"):
    """The order lies packed, ready to go."""

    order_id: UUID


class OrderDispatched(Event, name="Order Dispatched", key="order.dispatched", version=1, subject="order_id"):
    """The packed order has left the house."""

    order_id: UUID
