"""When most handlings fail, a service pauses, keeps what it holds, and tries one delivery after the pause."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
import structlog
from structlog.testing import capture_logs

from broker import Broker, Reject, Retry, Service, Settings
from broker.memory import Memory, Server
from broker.pause import KillSwitch
from broker.service import serve
from tests.parcels import ParcelSent
from tests.waiting import until


def settings(**changes: float) -> Settings:
    return Settings.model_validate(
        {"pause_window": 4, "pause_failures": 0.75, "pause_seconds": 0.05, "concurrency": 1, "log": False} | changes
    )


def switch(**changes: float) -> KillSwitch:
    return KillSwitch(settings(**changes), structlog.get_logger(), lambda: None)


def test_it_pauses_when_the_share_of_failures_is_reached_and_not_before() -> None:
    it = switch()
    for error in (ValueError("a"), None, ValueError("b")):
        it.note(error)
    assert it.problem is None
    it.note(ConnectionError("the database is down"))
    assert "3 of the last 4 handlings failed, the last with ConnectionError: the database is down" in str(it.problem)


async def test_it_tells_when_it_pauses_and_when_it_resumes() -> None:
    told: list[str | None] = []
    it = KillSwitch(settings(), structlog.get_logger(), lambda: told.append(it.problem))
    for _ in range(4):
        it.note(ValueError("down"))
    await it.admit()
    it.note(None)
    assert [bool(problem) for problem in told] == [True, False]


def test_a_handled_event_never_begins_a_pause() -> None:
    it = switch()
    for error in (ValueError("a"), ValueError("b"), ValueError("c"), None):
        it.note(error)
    assert it.problem is None


async def test_after_the_pause_one_is_tried_and_all_go_on_when_it_succeeds() -> None:
    it = switch()
    for _ in range(4):
        it.note(ValueError())
    await it.admit()
    it.note(ValueError("still down"))
    assert "the one tried failed, too" in str(it.problem)
    await it.admit()
    it.note(None)
    assert it.problem is None


async def test_one_that_told_nothing_lets_another_try() -> None:
    it = switch()
    for _ in range(4):
        it.note(ValueError())
    await it.admit()
    it.ended()
    await it.admit()
    assert it.problem is not None


@pytest.mark.parametrize("never", [1.01, 2.0])
def test_a_share_above_1_never_pauses(never: float) -> None:
    it = switch(pause_failures=never)
    for _ in range(100):
        it.note(ValueError())
    assert it.problem is None


async def test_a_service_whose_database_is_down_keeps_its_queue_and_resumes() -> None:
    down = True
    handled: list[UUID] = []
    service = Service("mail", retry=Retry("1s", "1h"))

    @service.on(ParcelSent)
    async def write(event: ParcelSent) -> None:
        if down:
            raise ConnectionError("the database is down")
        handled.append(event.parcel_id)

    server, chosen = Server(), settings()
    log = structlog.get_logger()
    with capture_logs() as lines:
        async with (
            serve(service, chosen, log, Memory(server, chosen)),
            Broker(source="depot", settings=chosen, transport=Memory(server, chosen)) as broker,
        ):
            parcels = [ParcelSent(parcel_id=uuid4()) for _ in range(100)]
            await broker.publish_many(parcels)
            await until(lambda: sum(line["event"] == "paused" for line in lines) >= 3)
            down = False
            await until(lambda: any(line["event"] == "resumed" for line in lines))
            await until(lambda: len(handled) + len(server.queues["mail.retry.1s"].ready) == 100)
    assert len(handled) > 80
    assert len(server.queues["mail.dead"].ready) == 0


async def test_rejected_and_malformed_events_are_no_reason_to_pause() -> None:
    service = Service("mail")

    @service.on(ParcelSent)
    async def write(event: ParcelSent) -> None:
        raise Reject("no such street")

    server, chosen = Server(), settings()
    with capture_logs() as lines:
        async with (
            serve(service, chosen, structlog.get_logger(), Memory(server, chosen)),
            Broker(source="depot", settings=chosen, transport=Memory(server, chosen)) as broker,
        ):
            await broker.publish_many(ParcelSent(parcel_id=uuid4()) for _ in range(20))
            await until(lambda: len(server.queues["mail.dead"].ready) == 20)
    assert "paused" not in [line["event"] for line in lines]
