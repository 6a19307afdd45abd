"""The events that are both in the event log and in a service's queue: published just when the queue was bound."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from uuid import UUID

from broker.envelope import decode
from broker.errors import Malformed
from broker.transport import Delivery, Message, Receive


class Seam:
    """Stands before a service's queue, and keeps away what was handled out of the log.

    Only copies that came through the exchange of all events are kept away: a retry of such an event is none of them.

    Args:
        exchange: of all events.
        receive: takes the others.

    Attributes:
        ignored: how many were kept away.
    """

    def __init__(self, exchange: str, receive: Receive) -> None:
        self._exchange = exchange
        self._receive = receive
        self._handled: set[tuple[str, UUID]] = set()
        self._left = 0
        self._acks: set[asyncio.Task[None]] = set()
        self.ignored = 0

    def add(self, message: Message) -> None:
        """It is in the seam."""
        with suppress(Malformed):  # that is a dead letter, and may be another
            self._handled.add(identity(message))

    def begin(self, depth: int) -> None:
        """The queue is consumed from now on. The seam ends with the first ``depth`` messages."""
        self._left = depth
        if not depth:
            self.end()

    @property
    def over(self) -> bool:
        """Whether nothing of it can come any more."""
        return self._left == 0

    def end(self) -> None:
        """Let everything pass."""
        self._left = 0
        self._handled.clear()

    def receive(self, delivery: Delivery) -> None:
        """Pass a delivery on, or acknowledge it."""
        if not self._left:
            self._receive(delivery)
            return
        if self._knows(delivery):
            self.ignored += 1
            ack = asyncio.ensure_future(delivery.ack())
            self._acks.add(ack)
            ack.add_done_callback(self._acks.discard)
        else:
            self._receive(delivery)
        if not delivery.redelivered:  # else it was counted, by this process or one before
            self._left -= 1
            if not self._left:
                self.end()

    def _knows(self, delivery: Delivery) -> bool:
        try:
            message = delivery.message
            return message.exchange == self._exchange and identity(message) in self._handled
        except Malformed:
            return False


def identity(message: Message) -> tuple[str, UUID]:
    """What tells an event from all others: its source and its id.

    Raises:
        Malformed: it is none.
    """
    envelope = decode(message.body, key=message.key, content_type=message.content_type, headers=message.headers)
    return envelope.source, envelope.id
