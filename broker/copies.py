"""A message sent again within its service: to a retry queue, or to the dead letters, with what happened in its headers.

=====================  ==========================================================
``broker-key``         the routing key it was first published with
``broker-attempt``     how often it has been handled so far
``broker-service``     who failed
``broker-handler``     which function
``broker-error``       the exception, as ``TypeName: text``
``broker-traceback``   where it was raised; none for `Reject` and the like, whose text says it all
``broker-failed-at``   when, ISO 8601, UTC
``broker-again``       it is to be handled even if the inbox knows it: a replay with ``--force``
=====================  ==========================================================

They are believed only on a delivery that came through the service's own exchange: anybody may send headers, but only
the service may write there. RabbitMQ's own traces (``x-death`` …) are not carried on: with them, 3.10 takes a second
retry for a cycle and drops it, and 4.x believes a delivery count that a publisher sends.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from broker.errors import BrokerError
from broker.transport import HeaderValue, Message

MOST = 16 * 1024
"""Bytes of headers on a copy. RabbitMQ closes the connection when they exceed a frame (128 KiB)."""
ERROR_MOST = 2000
"""Bytes of an exception's text."""
TRACEBACK_MOST = 4000
"""Bytes of a traceback, the last ones, which say where."""
OURS_MOST = ERROR_MOST + TRACEBACK_MOST + 2000
"""Bytes of our own headers, at most."""

LARGEST_FLOAT = 3.4e38
"""AMQP clients send floating-point headers with 32 bits; none must be larger."""

OWN = "broker-"
AGAIN = "broker-again"
TRACES = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count", "x-stream-offset")


@dataclass(frozen=True, slots=True)
class Failure:
    """What the headers of a copy tell."""

    service: str
    handler: str
    error: Exception
    attempt: int
    key: str
    at: datetime

    @property
    def reason(self) -> str:
        """The exception as text."""
        return _bytes(f"{type(self.error).__name__}: {self.error}")[:ERROR_MOST].decode(errors="ignore")

    @property
    def traceback(self) -> str:
        """Where it was raised; empty for our own errors."""
        if isinstance(self.error, BrokerError):
            return ""
        return _bytes("".join(traceback.format_exception(self.error)))[-TRACEBACK_MOST:].decode(errors="ignore")

    @property
    def headers(self) -> dict[str, HeaderValue]:
        """The failure as headers."""
        traced: dict[str, HeaderValue] = {"broker-traceback": self.traceback} if self.traceback else {}
        return traced | {
            "broker-key": self.key,
            "broker-attempt": self.attempt,
            "broker-service": self.service,
            "broker-handler": self.handler,
            "broker-error": self.reason,
            "broker-failed-at": self.at.isoformat(),
        }


def copy(message: Message, failure: Failure, queue: str) -> Message:
    """The same message for another queue of the failing service, through its own exchange."""
    headers = failure.headers | _kept(message, failure.service) | carried(message.headers, MOST - OURS_MOST)
    return replace(message, exchange=failure.service, key=queue, headers=headers, death=None)


def redriven(message: Message, service: str) -> Message:
    """A dead letter for its service's queue once more, as if it had never been handled."""
    key, _ = history(message, service)
    begins: dict[str, HeaderValue] = {"broker-key": key, "broker-attempt": 0}
    headers = begins | _kept(message, service) | carried(message.headers, MOST - OURS_MOST)
    return replace(message, exchange=service, key=service, headers=headers, death=None)


def replayed(message: Message, service: str, *, again: bool) -> Message:
    """An event of the log for one service's queue, as if just published; ``again``: whatever its inbox says."""
    headers: dict[str, HeaderValue] = {"broker-key": message.key, "broker-attempt": 0}
    if again:
        headers[AGAIN] = True
    headers |= carried(message.headers, MOST - OURS_MOST)
    it = message
    return Message(
        service, service, it.body, it.content_type, it.type, it.correlation_id, it.app_id, it.timestamp, headers
    )  # fmt: skip


def brought_forward(message: Message, service: str) -> Message:
    """What waits for a retry, for its service's queue now: its next attempt, earlier."""
    headers = {name: value for name, value in message.headers.items() if not name.startswith(TRACES)}
    return replace(message, exchange=service, key=service, headers=headers, death=None)


def carried(headers: Mapping[str, HeaderValue], room: int) -> dict[str, HeaderValue]:
    """The headers that a copy keeps: not ours, not RabbitMQ's traces, and no more than there is room for."""
    kept: dict[str, HeaderValue] = {}
    for name, value in headers.items():
        if name.startswith((OWN, *TRACES)) or (
            isinstance(value, float) and not abs(value) <= LARGEST_FLOAT  # not a number, too
        ):
            continue
        room -= len(name.encode()) + (len(str(value).encode("utf-8", "replace")) if value is not None else 0) + 16
        if room < 0:
            break
        kept[name] = value
    return kept


def history(message: Message, service: str) -> tuple[str, int]:
    """The key a delivery was first published with, and which attempt at it this is, from 1 on."""
    if message.exchange != service:
        return message.key, 1
    key, attempt = message.headers.get("broker-key"), message.headers.get("broker-attempt")
    return (
        key if isinstance(key, str) else message.death.key if message.death else message.key,
        attempt + 1 if isinstance(attempt, int) and 0 <= attempt < 1_000_000 else 1,
    )


def is_again(message: Message, service: str) -> bool:
    """Whether a delivery is to be handled even if the inbox knows it."""
    return message.exchange == service and message.headers.get(AGAIN) is True


def _kept(message: Message, service: str) -> dict[str, HeaderValue]:
    return {AGAIN: True} if is_again(message, service) else {}


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")
