"""Handlings on RabbitMQ: recorded in the event log and nowhere else; whatever refuses them, the service works on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from pydantic import SecretStr

from broker import Service
from broker.eventlog import Handling, open_log
from broker.settings import Settings
from broker.tools.management import Management
from broker.tools.server import Server
from broker.topology import Binding, Exchange, Queue, Topology, handlings_topology, service_permissions
from tests.conformance.worlds import World
from tests.parcels import ParcelSent, ParcelWeighed, weighed
from tests.waiting import until

PASSWORD = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.handlings.AFTER", 0.05)


@pytest.fixture
async def management(vhost_url: str, server: Server) -> AsyncIterator[Management]:
    async with Management(vhost_url, server.management_url) as client:
        yield client


@pytest.fixture(params=["own frames", "aio-pika"])
async def rabbit(request: pytest.FixtureRequest, vhost_url: str) -> AsyncIterator[World]:
    """A RabbitMQ, spoken to in both ways."""
    async with World(vhost_url, direct=request.param == "own frames") as made:
        yield made


@pytest.fixture
async def login(management: Management, vhost_url: str) -> AsyncIterator[SecretStr]:
    """The address for a service of least privilege, that may record its handlings and declares no exchange for it."""
    name = f"user-{uuid4().hex[:8]}"
    await management.create_user(name, PASSWORD)
    it = service_permissions("packing", Settings(), patterns=["parcel.weighed"], publishes=["parcel.sent"])
    await management.permit(name, configure=it.configure, write=it.write, read=it.read)
    parts = urlsplit(vhost_url)
    yield SecretStr(parts._replace(netloc=f"{name}:{PASSWORD}@{parts.netloc.rpartition('@')[2]}").geturl())
    await management.delete_user(name)


def packing() -> Service:
    service = Service("packing")

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> ParcelSent:
        return ParcelSent(parcel_id=event.parcel_id)

    return service


async def recorded(world: World) -> list[Handling]:
    """What the event log holds of handlings."""
    async with open_log(world.settings()) as log:
        span = await log.span()
        return [it async for entry in log.read(end=span.end) if entry.is_handlings for it in entry.handlings]


async def handled(world: World, count: int) -> list[Handling]:
    """Wait until so many are recorded."""

    async def enough() -> list[Handling] | None:
        found = await recorded(world)
        return found if len(found) >= count else None

    found: list[Handling] = await until(enough, every=0.1)
    assert len(found) == count
    return found


def said(lines: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == what]


async def test_they_are_in_the_event_log_and_nowhere_else(rabbit: World) -> None:
    broker = await rabbit.broker("scales")
    everything = Topology((), (Queue("all"),), (Binding("events", "all", "#"),))
    transport = await rabbit.transport(declare=everything)
    async with rabbit.serve(packing()):
        ids = [await broker.publish(weighed()) for _ in range(3)]
    found = await handled(rabbit, 3)
    assert {it.event_id for it in found} == set(ids)
    assert {(it.service, it.name, it.outcome, it.attempt, it.handler) for it in found} == {
        ("packing", "Parcel Weighed", "handled", 1, "pack")
    }
    assert await transport.count("all") == 6, "three weighed, three sent"


async def test_a_service_of_least_privilege_records_them(
    rabbit: World, login: SecretStr, lines: list[dict[str, Any]]
) -> None:
    broker = await rabbit.broker("scales")
    await rabbit.transport(declare=handlings_topology(rabbit.settings()))
    async with rabbit.serve(packing(), url=login):
        await broker.publish(weighed())
        await handled(rabbit, 1)
    assert said(lines, "handlings not recorded") == []


async def test_without_an_exchange_for_them_a_service_of_least_privilege_works(
    rabbit: World, login: SecretStr, lines: list[dict[str, Any]]
) -> None:
    broker = await rabbit.broker("scales")
    async with rabbit.serve(packing(), url=login) as subscriber:
        for _ in range(3):
            await broker.publish(weighed())
            await until(lambda: said(lines, "handlings not recorded"))
        taken = await rabbit.take("events.log", offset="first")
        await taken.reach(6)
        assert subscriber.problems() == []
    (line,) = said(lines, "handlings not recorded")
    assert "'events.handled' does not exist, and this user may not declare it" in line["error"]
    assert said(lines, "disconnected") == []


async def test_a_service_that_may_not_publish_them_works(
    rabbit: World, login: SecretStr, management: Management, lines: list[dict[str, Any]]
) -> None:
    broker = await rabbit.broker("scales")
    await rabbit.transport(declare=handlings_topology(rabbit.settings()))
    user = urlsplit(login.get_secret_value()).username or ""
    await management.permit(user, configure=r"^packing(\.|$)", write=r"^(packing(\.|$)|events$)")
    async with rabbit.serve(packing(), url=login):
        for _ in range(3):
            await broker.publish(weighed())
            await until(lambda: said(lines, "handlings not recorded"))
        taken = await rabbit.take("events.log", offset="first")
        await taken.reach(6)
    (line,) = said(lines, "handlings not recorded")
    assert "access to exchange 'events.handled'" in line["error"]
    assert said(lines, "disconnected") == [], "only their channel was closed"


async def test_another_kind_of_exchange_by_that_name(rabbit: World, lines: list[dict[str, Any]]) -> None:
    broker = await rabbit.broker("scales")
    await rabbit.transport(declare=Topology((Exchange("events.handled", "direct"),)))
    async with rabbit.serve(packing()):
        await broker.publish(weighed())
        await until(lambda: said(lines, "handlings not recorded"))
        taken = await rabbit.take("events.log", offset="first")
        await taken.reach(2)
    assert said(lines, "disconnected") == []


async def test_an_exchange_that_somebody_deletes_is_declared_anew(
    rabbit: World, management: Management, lines: list[dict[str, Any]]
) -> None:
    broker = await rabbit.broker("scales")
    async with rabbit.serve(packing()):
        await broker.publish(weighed())
        await handled(rabbit, 1)
        await management._send("DELETE", f"/exchanges/{management.vhost}/events.handled")
        await broker.publish(weighed())
        await handled(rabbit, 2)
    assert said(lines, "disconnected") == [], "no publish of anybody else was disturbed"


async def test_one_that_may_not_be_declared_anew_does_not_end_the_service(
    rabbit: World, login: SecretStr, management: Management, lines: list[dict[str, Any]]
) -> None:
    broker = await rabbit.broker("scales")
    await rabbit.transport(declare=handlings_topology(rabbit.settings()))
    async with rabbit.serve(packing(), url=login) as subscriber:
        await broker.publish(weighed())
        await handled(rabbit, 1)
        await management._send("DELETE", f"/exchanges/{management.vhost}/events.handled")
        await broker.publish(weighed())
        await until(lambda: any("does not exist" in it["error"] for it in said(lines, "handlings not recorded")))
        await broker.publish(weighed())
        taken = await rabbit.take("events.log", offset="first")
        await until(lambda: len(taken) == 7)
        assert subscriber.problems() == []
    assert said(lines, "disconnected") == []


async def test_a_connection_that_breaks_loses_none(rabbit: World, management: Management) -> None:
    broker = await rabbit.broker("scales")
    async with rabbit.serve(packing()):
        await broker.publish(weighed())
        await handled(rabbit, 1)

        async def ours() -> list[str]:
            found = await management.connections()
            return [it.name for it in found if "packing (publish)" in str(it.client_properties)]

        for name in await until(ours):
            await management.close_connection(name)
        await broker.publish(weighed())
        found = await handled(rabbit, 2)
        assert len({it.event_id for it in found}) == 2
