"""Order: places orders against its own copies of customers, items and addresses, and stores how far each has come.

Nothing here depends on the order in which events arrive:

- A *copy* is replaced by a newer revision only. Equal or older: nothing changes.
- A *status* is never overwritten. What is stored is the set of facts about an order (placed, packed, dispatched, each
  with the time it happened), and its status is the furthest of them. Adding to a set gives the same set in any order,
  and adding a second time changes nothing; of two times for one fact the earlier stands, in any order, too.
- A fact about an order that is not known here is stored all the same, under the order's id. Should the order become
  known, the two are found together; until then nobody sees it.

Orders are placed by a command, see ``python -m services.order --help``. It stores first and publishes then, under an id
stored with the order: if RabbitMQ does not confirm, the order is kept as not published, and ``publish`` publishes the
very same event later.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

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
from services.contracts.storage import Database, open_database
from services.order import copies
from services.order.store import Base, Status, keep, record


class Settings(BaseSettings):
    """Read from ``ORDER_DATABASE``."""

    model_config = SettingsConfigDict(env_prefix="ORDER_")

    database: str = "sqlite+aiosqlite:///data/order.db"


@dataclass(frozen=True, slots=True)
class Resources:
    """What the handlers work with."""

    database: Database


@asynccontextmanager
async def lifespan(service: Service) -> AsyncIterator[Resources]:
    """The database is open while the service runs."""
    async with open_database(Settings().database, Base.metadata) as database:
        yield Resources(database)


service = Service("order", publishes=[NewOrderPlaced], lifespan=lifespan)


@service.on(CustomerDetailsChanged)
async def copy_customer(event: CustomerDetailsChanged, context: Context) -> None:
    """Keep a copy of the customer."""
    resources: Resources = context.resources
    async with resources.database.write.begin() as session:
        await keep(session, event.customer_id, copies.customer(event))


@service.on(CatalogItemChanged)
async def copy_item(event: CatalogItemChanged, context: Context) -> None:
    """Keep a copy of the item."""
    resources: Resources = context.resources
    async with resources.database.write.begin() as session:
        await keep(session, event.item_id, copies.item(event))


@service.on(AddressChanged)
async def copy_address(event: AddressChanged, context: Context) -> None:
    """Keep a copy of the address."""
    resources: Resources = context.resources
    async with resources.database.write.begin() as session:
        await keep(session, event.address_id, copies.address(event))


@service.on(OrderPacked, OrderDispatched)
async def record_status(event: OrderPacked | OrderDispatched, context: Context) -> None:
    """Record how far the order has come."""
    status = Status.PACKED if isinstance(event, OrderPacked) else Status.DISPATCHED
    resources: Resources = context.resources
    async with resources.database.write.begin() as session:
        await record(session, event.order_id, status, context.time)
