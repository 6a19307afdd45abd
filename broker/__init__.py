"""Connect microservices by business events over RabbitMQ.

Publish::

    async with Broker(source="shop") as broker:
        await broker.publish(NewOrderPlaced(order_id=uuid4()))

Subscribe::

    service = Service("packing")

    @service.on(NewOrderPlaced)
    async def pack(order: NewOrderPlaced) -> OrderPacked:
        return OrderPacked(order_id=order.order_id)

    service.run()
"""

from broker.envelope import Envelope
from broker.errors import (
    AccessRefused,
    BrokerError,
    ConnectionFailed,
    ContractError,
    DatabaseUnusable,
    Malformed,
    NotConfirmed,
    PublishFailed,
    PublishRefused,
    Reject,
    TooLarge,
    TopologyConflict,
    Unhandled,
    UnknownEvent,
    Unroutable,
)
from broker.events import Event
from broker.handlers import Context
from broker.publisher import Broker
from broker.retry import Retry
from broker.service import Service
from broker.settings import Settings

__all__ = [
    "AccessRefused",
    "Broker",
    "BrokerError",
    "ConnectionFailed",
    "Context",
    "ContractError",
    "DatabaseUnusable",
    "Envelope",
    "Event",
    "Malformed",
    "NotConfirmed",
    "PublishFailed",
    "PublishRefused",
    "Reject",
    "Retry",
    "Service",
    "Settings",
    "TooLarge",
    "TopologyConflict",
    "Unhandled",
    "UnknownEvent",
    "Unroutable",
]
