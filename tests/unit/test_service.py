"""Services: declarations, and the process around them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import structlog

from broker import ConnectionFailed, Context, ContractError, Envelope, Event, Retry, Service, Settings
from broker.events import declared
from broker.memory import Memory, Server
from broker.retry import DEFAULT
from broker.service import event_loop, run, serve
from tests.parcels import ParcelLost, ParcelSent, ParcelWeighed, VanBroke
from tests.waiting import until

# -- declaring -----------------------------------------------------------------------------------------------------


def test_a_service_is_known_from_its_declarations() -> None:
    service = Service("packing", publishes=[ParcelLost])

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> ParcelSent:
        return ParcelSent(parcel_id=event.parcel_id)

    @service.on("van.*")
    async def watch(envelope: Envelope) -> None: ...

    assert service.publishes == [ParcelLost, ParcelSent]
    assert [handler.function for handler in service.subscribes] == [pack, watch]
    assert service.handlers.bindings == ["parcel.weighed", "van.*"]
    assert service.retry is DEFAULT
    assert repr(service) == "Service('packing')"
    service.check()


async def test_a_handler_is_returned_unchanged() -> None:
    service = Service("packing")

    async def pack(event: ParcelWeighed) -> ParcelSent:
        return ParcelSent(parcel_id=event.parcel_id)

    assert service.on(ParcelWeighed)(pack) is pack
    parcel = uuid4()
    assert await pack(ParcelWeighed(parcel_id=parcel)) == ParcelSent(parcel_id=parcel)


@pytest.mark.parametrize("name", ["", "Packing", "events", "a.b"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ContractError):
        Service(name)


@pytest.mark.parametrize("wrong", [[Event], [int], ["Parcel Sent"], [ParcelSent(parcel_id=uuid4())]])
def test_only_events_are_published(wrong: Any) -> None:
    with pytest.raises(ContractError, match="takes event classes"):
        Service("packing", publishes=wrong)


def test_two_handlers_of_one_event_are_refused_where_the_second_subscribes() -> None:
    service = Service("packing")

    @service.on(ParcelWeighed)
    async def one(event: ParcelWeighed) -> None: ...

    async def two(event: ParcelWeighed) -> None: ...

    with pytest.raises(ContractError, match=r"one and .*two both handle 'Parcel Weighed'"):
        service.on(ParcelWeighed)(two)
    assert len(service.subscribes) == 1


def test_colliding_events_are_found_when_the_service_is_checked() -> None:
    class Clash(Event, name="Parcel Weighed", key="parcel.weighed"):
        """Another event by that name, as a colleague may have defined it."""

        kilograms: float

    service = Service("packing", publishes=[Clash])

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> None: ...

    assert Clash in set(declared())
    with pytest.raises(ContractError, match="different fields"):
        service.check()


async def test_a_subscription_to_nothing_declared_is_found_at_the_start() -> None:
    service = Service("packing")

    @service.on("parcel.wieghed")
    async def pack(envelope: Envelope) -> None: ...

    with pytest.raises(ContractError, match=r"Did you mean 'parcel\.weighed'"):
        async with started(service):
            pass


async def test_a_service_named_as_the_exchange_is_found_at_the_start() -> None:
    with pytest.raises(ContractError, match="exchange"):
        async with started(Service("facts"), Settings(exchange="facts")):
            pass


@pytest.mark.parametrize("wrong", [lambda context, handle: None, lambda: None])
def test_around_takes_async_functions_of_two(wrong: Any) -> None:
    service = Service("packing")
    with pytest.raises(ContractError, match=r"@service\.around"):
        service.around(wrong)

    async def three(context: Context, handle: Callable[[], Awaitable[None]], more: int) -> None: ...

    with pytest.raises(ContractError):
        service.around(three)  # type: ignore[type-var]

    @service.around
    async def fine(context: Context, handle: Callable[[], Awaitable[None]]) -> None:
        await handle()

    assert service.subscription().around == (fine,)


def test_a_ladder_of_its_own() -> None:
    ladder = Retry("1s")
    service = Service("packing", retry=ladder)

    @service.on(ParcelWeighed, retry=Retry("5s"))
    async def pack(event: ParcelWeighed) -> None: ...

    assert service.subscription().retry is ladder
    assert repr(service.subscribes[0].retry) == "Retry('5s')"


# -- serving -------------------------------------------------------------------------------------------------------


def started(service: Service, settings: Settings | None = None, server: Server | None = None) -> Any:
    settings = settings or Settings()
    transport = Memory(server or Server(), settings)
    return serve(service, settings, structlog.get_logger(service=service.name), transport)


async def test_a_service_without_subscriptions_has_no_queue_and_lives() -> None:
    seen: list[str] = []
    service = Service("customer", publishes=[VanBroke], lifespan=lifespan_of(seen))
    server = Server()
    async with started(service, server=server) as standing:
        assert standing.subscriber is None
        assert seen == ["customer began"]
        assert list(server.queues) == ["events.log"]
    assert seen == ["customer began", "customer ended"]


def lifespan_of(seen: list[str]) -> Any:
    @asynccontextmanager
    async def lifespan(service: Service) -> AsyncIterator[str]:
        seen.append(f"{service.name} began")
        yield "resources"
        seen.append(f"{service.name} ended")

    return lifespan


async def test_a_lifespan_may_be_plain_and_may_take_nothing() -> None:
    seen: list[str] = []

    async def lifespan() -> AsyncIterator[None]:
        seen.append("began")
        yield
        seen.append("ended")

    async with started(Service("customer", lifespan=lifespan)):  # type: ignore[arg-type]
        assert seen == ["began"]
    assert seen == ["began", "ended"]


async def test_a_lifespan_that_fails_ends_the_start() -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        raise OSError("disk full")
        yield

    with pytest.raises(OSError, match="disk full"):
        async with started(Service("customer", lifespan=lifespan)):
            pass


async def test_health_is_served_when_asked_for(lines: list[dict[str, Any]]) -> None:
    async with started(Service("customer"), Settings(health_port=0)):
        (line,) = (line for line in lines if line["event"] == "health")
        reader, writer = await asyncio.open_connection("127.0.0.1", line["port"])
        writer.write(b"GET /ready HTTP/1.1\r\n\r\n")
        assert b"200 OK" in await reader.readline()
        writer.close()


async def test_the_started_line(lines: list[dict[str, Any]]) -> None:
    service = Service("packing")

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> None: ...

    async with started(service):
        (line,) = (line for line in lines if line["event"] == "started")
    assert (line["service"], line["subscribes"], line["pid"]) == ("packing", ["parcel.weighed"], os.getpid())


# -- the process ---------------------------------------------------------------------------------------------------


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> Server:
    """Services that run find their RabbitMQ in memory, and no log is configured anew."""
    server = Server()
    monkeypatch.setattr("broker.service.rabbitmq", lambda settings, log, name: Memory(server, settings))
    monkeypatch.setattr("broker.service.logs.configure", lambda settings: None)
    return server


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_runs_until_a_signal_and_ends_well(
    in_memory: Server, lines: list[dict[str, Any]], number: signal.Signals
) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        signalling = asyncio.create_task(signal_when_started())
        yield
        await signalling
        seen.append("ended")

    async def signal_when_started() -> None:
        await until(lambda: any(line["event"] == "started" for line in lines))
        os.kill(os.getpid(), number)

    assert run(Service("customer", lifespan=lifespan), Settings()) == 0
    assert seen == ["ended"]
    assert [line["event"] for line in lines][-2:] == ["stopping", "stopped"]


def test_a_signal_while_it_starts_ends_it(in_memory: Server, lines: list[dict[str, Any]]) -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()
        yield

    assert run(Service("customer", lifespan=lifespan), Settings()) == 0
    assert lines[-1]["event"] == "stopped"


@pytest.mark.parametrize(
    ("error", "code"), [(ContractError("contradiction"), 2), (ConnectionFailed("away"), 3), (OSError("disk full"), 1)]
)
def test_what_ends_it_is_told_and_is_its_exit_code(
    in_memory: Server, lines: list[dict[str, Any]], error: Exception, code: int
) -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        raise error
        yield

    service = Service("customer", lifespan=lifespan)
    with pytest.raises(SystemExit) as ended:
        service.run()
    assert ended.value.code == code
    assert (lines[-1]["event"], lines[-1]["reason"], lines[-1]["error"]) == ("failed", type(error).__name__, str(error))


def test_wrong_settings_end_it_with_their_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BROKER_URL", "amqp://u:hunter2@host:x/")
    monkeypatch.setenv("BROKER_CONCURRENCY", "0")
    assert run(Service("customer")) == 2
    told = capsys.readouterr().err
    assert "BROKER_URL" in told
    assert "BROKER_CONCURRENCY" in told
    assert "hunter2" not in told


def test_a_service_runs_on_uvloop_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SimpleNamespace(new_event_loop=asyncio.new_event_loop)
    monkeypatch.setitem(sys.modules, "uvloop", made)
    assert event_loop() is asyncio.new_event_loop
    monkeypatch.setitem(sys.modules, "uvloop", None)  # as if it were not
    assert event_loop() is None

    loops: list[asyncio.AbstractEventLoop] = []

    def make() -> asyncio.AbstractEventLoop:
        loops.append(asyncio.new_event_loop())
        return loops[-1]

    async def runs(*_: object) -> int:
        return 0 if asyncio.get_running_loop() in loops else 1

    monkeypatch.setitem(sys.modules, "uvloop", SimpleNamespace(new_event_loop=make))
    monkeypatch.setattr("broker.service._run", runs)
    assert run(Service("customer"), Settings()) == 0
