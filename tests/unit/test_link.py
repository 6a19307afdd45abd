"""Links: what RabbitMQ's refusals mean, and an end that always comes. How links live is for the conformance tests."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
import structlog
from aiormq.exceptions import (
    AMQPConnectionError,
    ChannelAccessRefused,
    ChannelPreconditionFailed,
    ConnectionNotAllowed,
    ProbableAuthenticationError,
)

from broker import AccessRefused, BrokerError, ConnectionFailed, Settings, TopologyConflict
from broker.rabbitmq.link import Link, translate

URL = "amqp://user:hunter2@host:5672/shop"


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (ProbableAuthenticationError("ACCESS_REFUSED - Login was refused"), AccessRefused),
        (ConnectionNotAllowed(530, "NOT_ALLOWED - vhost shop not found"), AccessRefused),
        (ChannelAccessRefused("ACCESS_REFUSED - access to queue 'crm'"), AccessRefused),
        (ChannelPreconditionFailed("PRECONDITION_FAILED - inequivalent arg"), TopologyConflict),
        (AMQPConnectionError(111, "Connect call failed"), ConnectionFailed),
        (OSError(111, "Connection refused"), ConnectionFailed),
        (TimeoutError(), ConnectionFailed),
    ],
)
def test_failures_in_our_terms_without_the_password(error: Exception, meaning: type[BrokerError]) -> None:
    translated = translate(error, URL)
    assert type(translated) is meaning
    assert "host:5672" in str(translated)
    assert "hunter2" not in str(translated)


async def test_it_closes_though_a_library_swallows_the_cancellation() -> None:
    async def nothing() -> None: ...

    async def stubborn() -> None:
        """As aiormq, when it is cancelled while it closes a connection."""
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    log: Any = structlog.get_logger()
    link = Link(Settings(), "test", log, declare=nothing)
    link._supervisor = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await link.close()
