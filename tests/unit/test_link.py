"""Links: what RabbitMQ's refusals mean, and an end that always comes. How links live is for the conformance tests."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any
from unittest.mock import Mock

import pytest
import structlog
from aiormq.abc import AbstractChannel
from aiormq.exceptions import (
    AMQPConnectionError,
    ChannelAccessRefused,
    ChannelPreconditionFailed,
    ConnectionNotAllowed,
    ProbableAuthenticationError,
)
from pydantic import SecretStr

from broker import (
    AccessRefused,
    BrokerError,
    ConnectionFailed,
    NotConfirmed,
    Settings,
    TooLarge,
    TopologyConflict,
    Unroutable,
)
from broker.rabbitmq.answers import at_last
from broker.rabbitmq.link import Link, translate, wedged
from broker.rabbitmq.plain import PlainDelivery
from tests.waiting import counted, until

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
    async with asyncio.timeout(30):
        await link.close()


async def test_the_end_of_an_earlier_channel_does_not_break_the_present_one() -> None:
    async def nothing() -> None: ...

    log: Any = structlog.get_logger()
    link = Link(Settings(), "test", log, declare=nothing)
    earlier, present = Mock(AbstractChannel), Mock(AbstractChannel)
    link._channel = asyncio.get_running_loop().create_future()
    link._used = present
    link._channel.set_result(present)
    link.break_off("told late", earlier)
    assert link.problem is None
    link.break_off("gone", present)
    assert "gone" in str(link.problem)
    link._broken.clear()  # as when it connects again
    link.break_off("told late", present)
    assert not link._broken.is_set()


async def test_the_host_that_was_lost_is_tried_last(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing() -> None: ...

    tried: list[str] = []
    alive = {"one", "two", "three"}
    connected = asyncio.Event()

    async def connect_to(link: Link, url: str) -> None:
        tried.append(url.partition("@")[2].partition(":")[0])
        if tried[-1] not in alive:
            raise ConnectionFailed("it is down")
        link._broken.clear()
        connected.set()

    monkeypatch.setattr(Link, "_connect_to", connect_to)
    log: Any = structlog.get_logger()
    settings = Settings(url=SecretStr("amqp://guest:guest@one:5672,two:5672,three:5672/"))
    link = Link(settings, "test", log, declare=nothing)
    await link.open()
    for lost in ("one", "three"):
        alive.discard(lost)
        connected.clear()
        link.break_off("silent")
        await connected.wait()
    await link.close()
    assert tried == ["one", "two", "three", "one", "two"]


def test_deliveries_can_be_keys() -> None:
    """What could not be concluded is kept by its delivery."""
    one, other = (PlainDelivery(Mock(AbstractChannel), Mock()) for _ in range(2))
    assert len({one, other, one}) == 2


def test_what_a_queue_holds_is_in_the_log_and_what_the_log_holds_is_nowhere_else() -> None:
    assert str(wedged("packing", TimeoutError())).endswith("What was in it is in the event log.")
    said = str(wedged("events.log", TimeoutError(), log=True))
    assert said.startswith(
        "The event log 'events.log' exists but does not work: no answer in time. A busy RabbitMQ comes"
    )
    assert said.endswith("What is in it would be gone.")


@pytest.mark.parametrize("refusal", [AccessRefused("no permission"), Unroutable("returned")])
def test_a_refusal_after_an_attempt_without_an_answer_proves_nothing(refusal: BrokerError) -> None:
    """The first attempt may have been stored, whatever became of the second."""
    assert at_last(refusal, "") is refusal
    unknown = at_last(refusal, "connection closed")
    assert isinstance(unknown, NotConfirmed)
    assert "connection closed" in str(unknown)
    assert str(refusal) in str(unknown)


def test_what_is_too_large_never_was_stored() -> None:
    refusal = TooLarge("130 MiB")
    assert at_last(refusal, "connection closed") is refusal


async def test_a_connection_that_confirms_nothing_is_given_up_and_sooner_than_one_that_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nothing() -> None: ...

    connected = asyncio.Event()

    async def connect_to(link: Link, url: str) -> None:
        link._broken.clear()
        link._waiting_since, link._patience = None, link._first_patience
        connected.set()

    async def not_given_up() -> bool:
        """For as many looks as it takes."""
        connected.clear()
        looked.clear()
        await until(lambda: len(looked) > 2)
        return not connected.is_set()

    looked = counted(monkeypatch, Link, "_notice_unconfirmed")
    monkeypatch.setattr(Link, "_connect_to", connect_to)
    monkeypatch.setattr("broker.rabbitmq.link.UNCONFIRMED", (0.2, 60.0, 60.0))
    log: Any = structlog.get_logger()
    link = Link(Settings(), "test", log, declare=nothing)
    await link.open()
    assert await not_given_up(), "nothing was published"
    link.sent()
    await until(connected.is_set)
    link.sent()
    link.confirmed()
    link.sent()
    assert await not_given_up(), "it confirms, slowly"
    await link.close()


@pytest.mark.parametrize(
    "failure",
    [StopAsyncIteration(), asyncio.CancelledError(), ConnectionResetError(104, "reset"), LookupError("unheard of")],
    ids=lambda failure: type(failure).__name__,
)
async def test_whatever_a_reconnect_ends_with_it_tries_again(failure: BaseException) -> None:
    """A peer that accepts and hangs up at once, a proxy before a RabbitMQ that is down: aiormq raises the first."""

    async def nothing() -> None: ...

    outcomes: list[BaseException | AbstractChannel] = [Mock(AbstractChannel), failure, failure, Mock(AbstractChannel)]

    class Scripted(Link):
        async def _set_up(self, url: str) -> AbstractChannel:
            outcome = outcomes.pop(0)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

    link = Scripted(Settings(), "test", structlog.get_logger(), declare=nothing)
    await link.open()
    first = await link.channel()
    link.break_off("the peer went away", first)
    async with asyncio.timeout(30):
        assert await link.channel() is not first
    assert outcomes == []
    await link.close()
