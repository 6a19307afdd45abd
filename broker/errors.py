"""What can go wrong, as one tree.

::

    BrokerError
    ├── ConnectionFailed     RabbitMQ cannot be reached
    ├── AccessRefused        RabbitMQ refuses the login, the virtual host or a permission
    ├── TopologyConflict     an exchange or queue of that name exists with other arguments
    ├── PublishFailed        an event was not confirmed; ``event_id`` names it
    │   ├── NotConfirmed     no answer: it may or may not be stored
    │   ├── PublishRefused   a nack: one queue refused it, others may hold it
    │   ├── Unroutable       returned: not stored
    │   └── TooLarge         never sent: not stored
    ├── DatabaseUnusable     a database cannot be reached, is not supported, or lacks our tables
    ├── ContractError        the code declares or publishes something contradictory
    │   └── UnknownEvent     no event of that name is declared
    ├── Malformed            a message is not a valid event
    ├── Unhandled            no handler of this process takes the event
    └── Reject               raised by a handler: dead-letter this event at once

Every class carries ``exit_code``, with which a command that fails for it ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar
from uuid import UUID


class BrokerError(Exception):
    """The root of the tree."""

    exit_code: ClassVar[int] = 1


class ConnectionFailed(BrokerError):
    """RabbitMQ could not be reached within ``BROKER_CONNECT_TIMEOUT``. Nothing was sent."""

    exit_code = 3


class AccessRefused(BrokerError):
    """RabbitMQ refused the login, the virtual host, or a permission. Trying again does not help.

    Attributes:
        of_key: it refused a publish with this routing key, and may take others.
    """

    exit_code = 4
    of_key = False


class TopologyConflict(BrokerError):
    """An exchange or queue of that name exists with other arguments. RabbitMQ never changes one in place."""

    exit_code = 5


class PublishFailed(BrokerError):
    """An event was not confirmed. Publishing the same event object again publishes the same event, same id."""

    exit_code = 6
    stored: ClassVar[str] = "unknown"
    """``"no"`` or ``"unknown"``: whether RabbitMQ may hold the event all the same."""

    def __init__(self, message: str, event_id: UUID | None = None) -> None:
        super().__init__(message)
        self.event_id = event_id


class NotConfirmed(PublishFailed):
    """No answer came before the deadline, or the connection broke. Stored: unknown; publish it again."""


class PublishRefused(PublishFailed):
    """RabbitMQ answered with a nack: one queue refused the event, others may hold it. Stored: unknown."""


class Unroutable(PublishFailed):
    """RabbitMQ returned the event: no queue is bound for it, not even the event log. Stored: no."""

    stored = "no"


class TooLarge(PublishFailed):
    """The event exceeds ``BROKER_MAX_MESSAGE_BYTES``. It was not sent. Stored: no."""

    stored = "no"


class DatabaseUnusable(BrokerError):
    """A service's database cannot be used: not reached, not supported, refused, or without our tables or with others.

    Only at start. One that goes away later is waited for, and health says so.
    """

    exit_code = 7


class ContractError(BrokerError):
    """Code contradicts itself or its declarations. Nothing was sent."""

    exit_code = 2


class UnknownEvent(ContractError):
    """No event of that name or key is declared where we looked."""


class Malformed(BrokerError):
    """A message that is not a valid event of its type. It is dead-lettered at once and never retried."""


class Unhandled(BrokerError):
    """No handler of this process takes the event.

    A newer process of the same service may, so it goes down the retry ladder and is dead-lettered only at its end.
    """


class Reject(BrokerError):
    """Raise it in a handler to dead-letter the event at once: ``raise Reject("the card is stolen")``."""


def near_miss(word: str, known: Iterable[str]) -> str:
    """A question naming what was probably meant, ready to end an error message, or nothing."""
    known = list(dict.fromkeys(known))
    close = get_close_matches(word, known, n=3) or [
        name for name in known if get_close_matches(word.casefold(), name.casefold().replace(".", " ").split())
    ]
    return f" Did you mean {' or '.join(repr(match) for match in close[:3])}?" if close else ""
