"""The transport over RabbitMQ. Nothing outside this package imports aio-pika.

- `link`: a connection that comes back by itself, and what its failures mean.
- `declare`: the topology, made so.
- `transport`: publishing and consuming over two links, one each, so that a blocked publisher never starves a consumer.
- `lock`: what one process at a time may do.
"""

from broker.rabbitmq.lock import locked
from broker.rabbitmq.transport import RabbitMQ, delete

__all__ = ["RabbitMQ", "delete", "locked"]
