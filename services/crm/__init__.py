"""CRM: the record of each customer, with their orders and how far each has come; and one follow-up e-mail an order.

Nothing here depends on the order in which events arrive. A customer's details are replaced by a newer revision only.
What is stored of an order's progress is the set of facts about it (placed, packed, dispatched, each with its time),
whether or not the order is known yet; its status is the furthest of them. Only the follow-up needs somebody to write
to: an order of a customer not known yet is an error, so the order comes back by the retry ladder, soon at first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from broker import Context, Retry, Service
from services.contracts import CustomerDetailsChanged, Email, NewOrderPlaced, OrderDispatched, OrderPacked
from services.contracts.storage import Database, open_database
from services.crm import follow_up
from services.crm.store import Base, Customer, Status, claim, keep_customer, keep_order, record, release, sent


class CustomerNotKnownYet(Exception):
    """The event that tells of the customer has not arrived."""


class Settings(BaseSettings):
    """Read from the environment.

    Attributes:
        database: ``CRM_DATABASE``.
        outbox: ``CRM_OUTBOX``, the folder for follow-up e-mails.
        smtp_url: ``CRM_SMTP_URL``, see `follow_up.send`; unset: they are written only.
        sender: ``CRM_SENDER``, whom they come from.
    """

    model_config = SettingsConfigDict(env_prefix="CRM_", hide_input_in_errors=True)

    database: str = "sqlite+aiosqlite:///data/crm.db"
    outbox: Path = Path("data/outbox")
    smtp_url: SecretStr | None = None
    sender: Email = "shop@example.com"

    @field_validator("smtp_url")
    @classmethod
    def _is_smtp(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            parts = urlsplit(url.get_secret_value())
            if parts.scheme not in {"smtp", "smtps"} or not parts.hostname or parts.port == 0:
                raise ValueError("write smtp://host:port or smtps://user:password@host:port")
        return url


@dataclass(frozen=True, slots=True)
class Resources:
    """What the handlers work with."""

    database: Database
    settings: Settings


@asynccontextmanager
async def lifespan(service: Service) -> AsyncIterator[Resources]:
    """The database is open, and the outbox a folder that can be written, while the service runs."""
    settings = Settings()
    await asyncio.to_thread(follow_up.prepare, settings.outbox)
    async with open_database(settings.database, Base.metadata) as database:
        yield Resources(database, settings)


service = Service("crm", lifespan=lifespan, retry=Retry("1s", "5s", "30s", "10m"))


@service.on(CustomerDetailsChanged)
async def keep_details(event: CustomerDetailsChanged, context: Context) -> None:
    """Keep the customer's details."""
    resources: Resources = context.resources
    async with resources.database.write.begin() as session:
        await keep_customer(session, event)


@service.on(NewOrderPlaced)
async def record_and_write(order: NewOrderPlaced, context: Context) -> None:
    """Put the order into the customer's record, and write to the customer.

    Raises:
        CustomerNotKnownYet: there is nobody to write to; nothing is stored.
    """
    resources: Resources = context.resources
    async with resources.database.write.begin() as session:
        customer = await session.get(Customer, order.customer_id)
        if customer is None:
            raise CustomerNotKnownYet(f"Order {order.order_id} is of customer {order.customer_id}, not known yet.")
        await keep_order(session, order)
        await record(session, order.order_id, Status.PLACED, context.time)
    settings = resources.settings
    message = follow_up.compose(order, customer, sender=settings.sender, date=context.time)
    await asyncio.to_thread(follow_up.write, message, follow_up.outbox_path(settings.outbox, order.order_id))
    if settings.smtp_url is not None:
        await send_once(resources.database, order.order_id, message, settings.smtp_url)


async def send_once(database: Database, order_id: UUID, message: EmailMessage, smtp_url: SecretStr) -> None:
    """Send an order's follow-up by SMTP, unless it is sent already.

    Raises:
        FollowUpInHand: another delivery of the same order is sending it, or died doing so.
    """
    if not await claim(database, order_id):
        return
    try:
        await asyncio.to_thread(follow_up.send, message, smtp_url)
    except Exception:
        await release(database, order_id)
        raise
    await sent(database, order_id)


@service.on(OrderPacked, OrderDispatched)
async def record_progress(event: OrderPacked | OrderDispatched, context: Context) -> None:
    """Record how far the order has come."""
    status = Status.PACKED if isinstance(event, OrderPacked) else Status.DISPATCHED
    resources: Resources = context.resources
    async with resources.database.write.begin() as session:
        await record(session, event.order_id, status, context.time)
