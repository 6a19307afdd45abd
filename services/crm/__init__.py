"""CRM: the record of each customer, with their orders and how far each has come; and one follow-up e-mail an order.

Nothing here depends on the order in which events arrive. A customer's details are replaced by a newer revision only.
What is stored of an order's progress is the set of facts about it (placed, packed, dispatched, each with its time),
whether or not the order is known yet; its status is the furthest of them. Only the follow-up needs somebody to write
to: an order of a customer not known yet is an error, so the order comes back by the retry ladder, soon at first.

A transaction can be rolled back, an e-mail cannot. So a handler sends none: it stores the e-mail, together with the
order, and `services.crm.sender` sends it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from broker import Context, Retry, Service
from services.contracts import CustomerDetailsChanged, Email, NewOrderPlaced, OrderDispatched, OrderPacked
from services.contracts.storage import open_database, prepared
from services.crm.follow_up import compose
from services.crm.sender import Sender
from services.crm.store import Base, Customer, Fact, FollowUp, Order, Status, keep_customer


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


@asynccontextmanager
async def lifespan() -> AsyncIterator[Settings]:
    """Follow-up e-mails are sent while the service runs."""
    settings = Settings()
    async with (
        open_database(settings.database, Base.metadata) as database,
        Sender(database, settings.outbox, settings.smtp_url).running(),
    ):
        yield settings


service = Service(
    "crm",
    database=lambda: prepared(Settings().database, Base.metadata),
    lifespan=lifespan,
    retry=Retry("1s", "5s", "30s", "10m"),
)


@service.on(CustomerDetailsChanged)
async def keep_details(event: CustomerDetailsChanged, context: Context) -> None:
    """Keep the customer's details."""
    await keep_customer(context.transaction, event)


@service.on(NewOrderPlaced)
async def record_and_write(order: NewOrderPlaced, context: Context) -> None:
    """Put the order into the customer's record, and write to the customer.

    Raises:
        CustomerNotKnownYet: there is nobody to write to.
    """
    settings: Settings = context.resources
    customer = await context.transaction.get(Customer, order.customer_id)
    if customer is None:
        raise CustomerNotKnownYet(f"Order {order.order_id} is of customer {order.customer_id}, not known yet.")
    message = compose(order, customer, sender=settings.sender, date=context.time)
    context.transaction.add_all(
        [
            Order(order_id=order.order_id, customer_id=order.customer_id, placed=order.model_dump(mode="json")),
            Fact(order_id=order.order_id, status=Status.PLACED, at=context.time),
            FollowUp(order_id=order.order_id, message=message.as_bytes(), due_at=context.time),
        ]
    )


@service.on(OrderPacked, OrderDispatched)
async def record_progress(event: OrderPacked | OrderDispatched, context: Context) -> None:
    """Record how far the order has come."""
    status = Status.PACKED if isinstance(event, OrderPacked) else Status.DISPATCHED
    context.transaction.add(Fact(order_id=event.order_id, status=status, at=context.time))
