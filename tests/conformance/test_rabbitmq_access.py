"""Logins, virtual hosts, permissions, conflicts: RabbitMQ alone knows these. Each is a clear error, without secrets."""

from __future__ import annotations

import asyncio
import gc
import traceback
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import pytest
from pydantic import SecretStr

from broker import AccessRefused, Broker, BrokerError, ConnectionFailed, Service, Settings, TopologyConflict
from broker.logs import logger
from broker.service import run, serve
from broker.tools.management import Management
from broker.tools.node import free_ports
from broker.tools.server import Server
from broker.topology import (
    Exchange,
    Permissions,
    Queue,
    Topology,
    publisher_permissions,
    service_permissions,
    service_topology,
)
from tests.conformance.worlds import World
from tests.parcels import ParcelSent, ParcelWeighed, VanBroke, message, weighed
from tests.waiting import until

PASSWORD = "hunter2-hunter2"


@pytest.fixture
async def management(vhost_url: str, server: Server) -> AsyncIterator[Management]:
    async with Management(vhost_url, server.management_url) as client:
        yield client


@pytest.fixture
async def user(management: Management) -> AsyncIterator[str]:
    """A user without any permission, this test's alone."""
    name = f"user-{uuid4().hex[:8]}"
    await management.create_user(name, PASSWORD)
    yield name
    await management.delete_user(name)


def changed(url: str, *, login: str | None = None, vhost: str | None = None) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    was = parts.netloc.rpartition("@")[0]
    return urlunsplit(
        parts._replace(netloc=f"{login or was}@{host}", path=parts.path if vhost is None else f"/{vhost}")
    )


async def permit(management: Management, user: str, it: Permissions) -> None:
    await management.permit(user, configure=it.configure, write=it.write, read=it.read)
    await management.permit_topics(user, "events", write=it.topic_write, read=it.topic_read)


async def refused(url: str, lines: list[dict[str, Any]], **settings: Any) -> BrokerError:
    """How opening a broker fails, and that nothing it says or logs holds the password."""
    with pytest.raises(BrokerError) as caught:
        async with Broker(url, source="test", settings=Settings(**settings)):
            pass
    said = "".join(traceback.format_exception(caught.value)) + repr(lines)
    assert PASSWORD not in said
    return caught.value


# -- login and virtual host ----------------------------------------------------------------------------------------


async def test_a_wrong_password(vhost_url: str, lines: list[dict[str, Any]]) -> None:
    async with asyncio.timeout(30):  # at once: trying again does not help
        error = await refused(changed(vhost_url, login=f"guest:{PASSWORD}"), lines, connect_timeout=60)
    assert isinstance(error, AccessRefused)
    assert "BROKER_URL" in str(error)


async def test_an_unknown_user(vhost_url: str, lines: list[dict[str, Any]]) -> None:
    error = await refused(changed(vhost_url, login=f"nobody:{PASSWORD}"), lines)
    assert isinstance(error, AccessRefused)


async def test_a_wrong_virtual_host(vhost_url: str, lines: list[dict[str, Any]]) -> None:
    async with asyncio.timeout(30):
        error = await refused(changed(vhost_url, vhost="nowhere"), lines, connect_timeout=60)
    assert isinstance(error, AccessRefused)
    assert "nowhere" in str(error)
    assert "virtual host" in str(error)


async def test_a_user_that_may_not_use_the_virtual_host(vhost_url: str, user: str, lines: list[dict[str, Any]]) -> None:
    error = await refused(changed(vhost_url, login=f"{user}:{PASSWORD}"), lines)
    assert isinstance(error, AccessRefused)


async def test_no_rabbitmq_there(lines: list[dict[str, Any]]) -> None:
    (port,) = free_ports(1)
    async with asyncio.timeout(9):  # not the 10 s of the default
        error = await refused(f"amqp://guest:{PASSWORD}@127.0.0.1:{port}/", lines, connect_timeout=0.5)
    assert isinstance(error, ConnectionFailed)
    assert f"127.0.0.1:{port}" in str(error)
    assert "No RabbitMQ answer" in str(error)


async def test_nobody_answers_there(lines: list[dict[str, Any]]) -> None:
    """Something that accepts connections, and is silent."""
    clients: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda reader, writer: clients.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with asyncio.timeout(9):  # not the 10 s of the default
        error = await refused(f"amqp://guest:{PASSWORD}@127.0.0.1:{port}/", lines, connect_timeout=0.5)
    assert isinstance(error, ConnectionFailed)
    for client in clients:
        client.close()
        await client.wait_closed()
    server.close()
    gc.collect()


async def test_the_second_host_is_tried(vhost_url: str) -> None:
    (port,) = free_ports(1)
    several = vhost_url.replace("@", f"@127.0.0.1:{port},")
    async with Broker(several, source="test") as broker:
        await broker.publish(weighed())


def test_a_service_that_cannot_connect_ends_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (port,) = free_ports(1)
    settings = Settings(url=SecretStr(f"amqp://guest:{PASSWORD}@127.0.0.1:{port}/"), connect_timeout=0.3)
    assert run(Service("packing"), settings) == ConnectionFailed.exit_code
    assert PASSWORD not in capsys.readouterr().err


# -- permissions ---------------------------------------------------------------------------------------------------


def packing() -> tuple[Service, list[ParcelWeighed]]:
    service, packed = Service("packing"), []

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> ParcelSent:
        packed.append(event)
        if len(packed) == 1:
            raise ValueError("no tape")
        return ParcelSent(parcel_id=event.parcel_id)

    return service, packed


async def test_a_publisher_needs_no_more_than_its_least_privilege(
    rabbit: World, vhost_url: str, management: Management, user: str
) -> None:
    await rabbit.transport()  # somebody declared the exchange and the log
    await permit(management, user, publisher_permissions(Settings(), ["parcel.weighed"]))
    async with Broker(changed(vhost_url, login=f"{user}:{PASSWORD}"), source="scales") as broker:
        await broker.publish(weighed())
        with pytest.raises(AccessRefused, match="permission"):
            await broker.publish(VanBroke(van="7"))
        await broker.publish(weighed())
    log = await rabbit.take("events.log", offset="first")
    await log.reach(2)


async def test_a_refused_publish_fails_nobody_else(
    rabbit: World, vhost_url: str, management: Management, user: str
) -> None:
    await rabbit.transport()
    await permit(management, user, publisher_permissions(Settings(), ["parcel.weighed"]))
    async with Broker(changed(vhost_url, login=f"{user}:{PASSWORD}"), source="scales") as broker:
        events = [VanBroke(van="7") if n == 10 else weighed() for n in range(20)]
        with pytest.raises(ExceptionGroup) as caught:
            await broker.publish_many(events)
    assert [type(error) for error in caught.value.exceptions] == [AccessRefused]


async def test_a_publisher_before_anybody_declared_the_exchange(
    vhost_url: str, management: Management, user: str, lines: list[dict[str, Any]]
) -> None:
    await permit_all_but_configure(management, user)
    error = await refused(changed(vhost_url, login=f"{user}:{PASSWORD}"), lines)
    assert isinstance(error, AccessRefused)
    assert "'events' does not exist" in str(error)


async def permit_all_but_configure(management: Management, user: str) -> None:
    await management.permit(user, configure="^$", write="^events$", read="^$")


async def test_a_service_needs_no_more_than_its_least_privilege(
    rabbit: World, vhost_url: str, management: Management, user: str
) -> None:
    broker = await rabbit.broker()
    service, packed = packing()
    patterns, publishes = service.handlers.bindings, [event.__contract__.key for event in service.publishes]
    await permit(management, user, service_permissions("packing", Settings(), patterns=patterns, publishes=publishes))
    settings = rabbit.settings(url=SecretStr(changed(vhost_url, login=f"{user}:{PASSWORD}")))
    async with serve(service, settings, logger(settings, service="packing")):
        await broker.publish(weighed())  # fails, goes through a retry queue, and publishes
        await rabbit.send(message(b"not JSON"))
        log = await rabbit.take("events.log", offset="first")
        await log.reach(3)
    dead = await rabbit.dead("packing")
    await dead.reach(1)
    assert len(packed) == 2
    assert {queue.name for queue in await management.queues()} == {
        "events.log",
        "packing",
        "packing.dead",
        "packing.retry.1s",
    }


async def test_a_service_without_permission_for_its_queue_says_what_is_missing(
    rabbit: World, vhost_url: str, management: Management, user: str
) -> None:
    await rabbit.transport()
    await management.permit(user, configure=r"^crm(\.|$)", write="^(crm.*|events)$", read="^(crm.*|events)$")
    settings = rabbit.settings(url=SecretStr(changed(vhost_url, login=f"{user}:{PASSWORD}")))
    with pytest.raises(AccessRefused, match="packing"):
        async with serve(packing()[0], settings, logger(settings)):
            pass


# -- conflicts -----------------------------------------------------------------------------------------------------

OTHERS = {
    "packing": Topology(queues=(Queue("packing", {"x-queue-type": "classic"}),)),
    "packing.dead": Topology(queues=(Queue("packing.dead", {"x-queue-type": "quorum", "x-delivery-limit": 5}),)),
    "the exchange packing": Topology(exchanges=(Exchange("packing", "topic"),)),
}


@pytest.mark.parametrize("what", OTHERS)
async def test_what_a_service_owns_exists_and_is_another(rabbit: World, what: str) -> None:
    await rabbit.transport(declare=OTHERS[what])
    with pytest.raises(TopologyConflict, match=what.rpartition(" ")[2]) as caught:
        async with rabbit.serve(packing()[0]):
            pass
    assert "delete" in str(caught.value)
    assert caught.value.exit_code == 5


# -- what the management UI shows ----------------------------------------------------------------------------------


async def test_a_healthy_shop_shows_2n_plus_1_queues(rabbit: World, management: Management) -> None:
    service, _ = packing()
    crm = Service("crm")

    @crm.on(ParcelSent)
    async def note(event: ParcelSent) -> None: ...

    async with rabbit.serve(service), rabbit.serve(crm):
        names = {queue.name: (queue.type, queue.consumers) for queue in await management.queues()}
        exchanges = {it.name: it.type for it in await management.exchanges() if it.name and "amq." not in it.name}
        bindings = {(it.source, it.key, it.destination) for it in await management.bindings()}
    assert set(names) == {"events.log", "packing", "packing.dead", "crm", "crm.dead"}
    assert names["events.log"][0] == "stream"
    assert {kind for name, (kind, _) in names.items() if name != "events.log"} == {"quorum"}
    assert exchanges == {"events": "topic", "packing": "direct", "crm": "direct"}
    assert bindings == {
        ("events", "#", "events.log"),
        ("events", "parcel.weighed", "packing"),
        ("events", "parcel.sent", "crm"),
        *((service, key, key) for service in ("packing", "crm") for key in (service, f"{service}.dead")),
    }


async def test_get_messages_shows_a_readable_event(rabbit: World, management: Management) -> None:
    await rabbit.transport(declare=service_topology("packing", ["parcel.*"], "events"))
    broker = await rabbit.broker("scales")
    event_id = await broker.publish(weighed(7))
    messages: list[Any] = await until(lambda: management.peek("packing"))
    (shown,) = messages
    assert '"grams":7' in shown.body
    assert '"type":"Parcel Weighed"' in shown.body
    properties = shown.properties
    assert (properties["type"], properties["app_id"], properties["delivery_mode"]) == ("Parcel Weighed", "scales", 2)
    assert properties["content_type"] == "application/cloudevents+json; charset=utf-8"
    assert properties["correlation_id"] == str(event_id)
    assert properties["message_id"] not in (None, "", str(event_id)), "unique for each attempt"
    assert properties["timestamp"] > 1_700_000_000
