"""What RabbitMQ's answers mean, and what a delivery's properties say: the same on both ways of speaking to it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed

from broker.errors import AccessRefused, BrokerError, NotConfirmed, TooLarge
from broker.transport import Death, HeaderValue, Message

SETTLING = 5.0
"""Seconds after a connect during which a returned publish is repeated: bindings may not be up yet."""


def refusal(error: BaseException, message: Message) -> TooLarge | AccessRefused | None:
    """A closed channel fails everybody on it; only the publish that RabbitMQ names did wrong."""
    text = " ".join(str(part) for part in error.args)
    if isinstance(error, ChannelPreconditionFailed) and f"message size {len(message.body)} " in text:
        return TooLarge(f"{text}. Lower BROKER_MAX_MESSAGE_BYTES to what RabbitMQ takes, and send less.")
    ours = f"'{message.exchange}'" in text and ("topic" not in text or f"'{message.key}'" in text)
    if isinstance(error, ChannelAccessRefused) and ours:
        what = "for this key" if "topic" in text else "on the exchange"
        refused = AccessRefused(f"RabbitMQ refused the publish: {text}. Grant write permission {what}.")
        refused.of_key = "topic" in text
        return refused
    return None


def at_last(refusal: BrokerError, unanswered: str) -> BrokerError:
    """What a refusal means after attempts without an answer: one of them may have been stored. A size never is."""
    if unanswered and not isinstance(refusal, TooLarge):
        return NotConfirmed(f"no answer ({unanswered}), and then: {refusal}")
    return refusal


def late(timeout: float, problem: str | None) -> NotConfirmed:
    """The deadline is past."""
    return NotConfirmed(f"no confirm within {timeout:g} s{f': {problem}' if problem else ''}")


def message_of(exchange: str, key: str, body: bytes, properties: Mapping[str, Any]) -> Message:
    """A delivery as a message. The properties go by pamqp's names."""
    its = properties.get
    headers = its("headers")
    message = Message(
        exchange, key, body, its("content_type"), its("message_type"), its("correlation_id"), its("app_id"),
        its("timestamp"), properties=properties,
    )  # fmt: skip
    if headers:
        message.headers, message.death = _scalars(headers), _death(headers)
    return message


def _death(headers: Mapping[str, Any]) -> Death | None:
    """What RabbitMQ noted, the latest first. Anybody may send such a header, so nothing is taken for granted."""
    deaths = headers.get("x-death")
    if not deaths:
        return None
    try:
        reason, key, at = deaths[0]["reason"], deaths[-1]["routing-keys"][0], deaths[0].get("time")
    except (LookupError, TypeError, AttributeError):
        return None
    if not (isinstance(reason, str) and isinstance(key, str)):
        return None
    return Death(reason, key, at if isinstance(at, datetime) else None)


def _scalars(headers: Mapping[str, object]) -> dict[str, HeaderValue]:
    """The headers that can be carried on. Nested ones are RabbitMQ's own traces, or nobody's business."""
    return {
        name: bytes(value) if isinstance(value, bytearray) else value
        for name, value in headers.items()
        if isinstance(value, str | int | float | bool | bytes | bytearray | datetime) or value is None
    }
