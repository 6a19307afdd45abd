"""Order: places orders against its own copies of customers, items and addresses, and stores how far each has come.

Nothing here depends on the order in which events arrive:

- A *copy* is replaced by a newer revision only. Equal or older: nothing changes.
- A *status* is never overwritten. What is stored is the set of facts about an order (placed, packed, dispatched, each
  with the time it happened), and its status is the furthest of them. Adding to a set gives the same set in any order.
- A fact about an order that is not known here is stored all the same, under the order's id. Should the order become
  known, the two are found together; until then nobody sees it.

Orders are placed by a command, see ``python -m services.order --help``. It stores the order and its New Order Placed in
one transaction, and needs no RabbitMQ; the process that this service runs publishes the event.
"""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict

from broker import Context, Service
from services.contracts import (
    AddressChanged,
    CatalogItemChanged,
    CustomerDetailsChanged,
    NewOrderPlaced,
    OrderDispatched,
    OrderPacked,
)
from services.contracts.storage import prepared
from services.order import copies
from services.order.store import Base, Fact, Status, keep


class Settings(BaseSettings):
    """Read from ``ORDER_DATABASE``."""

    model_config = SettingsConfigDict(env_prefix="ORDER_")

    database: str = "sqlite+aiosqlite:///data/order.db"


service = Service("order", publishes=[NewOrderPlaced], database=lambda: prepared(Settings().database, Base.metadata))


@service.on(CustomerDetailsChanged)
async def copy_customer(event: CustomerDetailsChanged, context: Context) -> None:
    """Keep a copy of the customer."""
    await keep(context.transaction, event.customer_id, copies.customer(event))


@service.on(CatalogItemChanged)
async def copy_item(event: CatalogItemChanged, context: Context) -> None:
    """Keep a copy of the item."""
    await keep(context.transaction, event.item_id, copies.item(event))


@service.on(AddressChanged)
async def copy_address(event: AddressChanged, context: Context) -> None:
    """Keep a copy of the address."""
    await keep(context.transaction, event.address_id, copies.address(event))


@service.on(OrderPacked, OrderDispatched)
async def record_status(event: OrderPacked | OrderDispatched, context: Context) -> None:
    """Record how far the order has come."""
    status = Status.PACKED if isinstance(event, OrderPacked) else Status.DISPATCHED
    context.transaction.add(Fact(order_id=event.order_id, status=status, at=context.time))
