"""Connections and channels end, stall and crawl, on the publisher's side and on the subscriber's."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import pytest

from tests.faults.proxy import Proxy
from tests.faults.told import Handling, Publishing
from tests.faults.world import World
from tests.waiting import until

SIDES = ("publisher", "subscriber")
PATIENT = {"BROKER_PUBLISH_TIMEOUT": "60"}


@asynccontextmanager
async def through_a_proxy(
    world: World, side: str, publishing: Publishing | None = None, *, settings: dict[str, str] | None = None
) -> AsyncIterator[Proxy]:
    """Both at work, one of them through a proxy."""
    async with Proxy(world.url) as proxy:
        await world.begin(
            publishing,
            Handling(publishes=True, fails_once_every=20),
            publisher_url=proxy.url if side == "publisher" else None,
            subscriber_url=proxy.url if side == "subscriber" else None,
            settings=settings,
        )
        yield proxy
        await world.finish()


@pytest.mark.full
@pytest.mark.parametrize("name", ["drawing (publish)", "counting (consume)", "counting (publish)"])
@pytest.mark.row("connection closed by the server: {name}", "closed in the management API, three times under load")
async def test_connection_closed(world: World, name: str) -> None:
    await world.begin(handling=Handling(publishes=True, fails_once_every=20))
    with world.fault(moments=True):
        for _ in range(3):
            await world.close_connections(name)
            await world.recovered(20)
    await world.recovered()
    await world.finish()
    assert world.failures() == set()


@pytest.mark.full
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.row("channel closed by 406: {side}", "an unknown delivery tag acknowledged on each channel, three times")
async def test_channel_closed(world: World, side: str) -> None:
    await world.begin(handling=Handling(publishes=True, fails_once_every=20))
    kept = world.publisher if side == "publisher" else world.subscriber
    assert kept is not None
    with world.fault(moments=True):
        for time in range(1, 4):
            kept.process.signal(signal.SIGUSR1)
            await kept.process.logged("disconnected", time)
            await world.recovered(20)
    await world.recovered()
    await world.finish()
    assert "PRECONDITION_FAILED - unknown delivery tag" in kept.err
    assert world.failures() == set()


@pytest.mark.parametrize("side", [pytest.param("publisher", marks=pytest.mark.full), "subscriber"])
@pytest.mark.row("TCP connection reset: {side}", "RST on all its connections, five times under load")
async def test_tcp_reset(world: World, side: str) -> None:
    async with through_a_proxy(world, side) as proxy:
        with world.fault(moments=True):
            for _ in range(5):
                proxy.reset()
                await world.recovered(20)
        await world.recovered()
    assert world.failures() == set()


@pytest.mark.full
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.row(
    "TCP connection stalled both ways: {side}", "black hole without a FIN until it is noticed, at most 25 s"
)
async def test_black_hole(world: World, side: str) -> None:
    async with through_a_proxy(world, side, Publishing(rate=60), settings=PATIENT) as proxy:
        kept = world.publisher if side == "publisher" else world.subscriber
        assert kept is not None
        with world.fault():
            began = monotonic()
            proxy.stall()
            await kept.process.logged("disconnected")
            world.result["noticed"] = monotonic() - began
            proxy.resume()
        await world.recovered()
    assert world.result["noticed"] < 25


@pytest.mark.full
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("way", ["to", "from"])
@pytest.mark.row("TCP connection stalled one way: {side}", "what goes {way} RabbitMQ stalls for 8 s, deadline 3 s")
async def test_stalled_one_way(world: World, side: str, way: str) -> None:
    async with through_a_proxy(world, side, settings={"BROKER_PUBLISH_TIMEOUT": "3"}) as proxy:
        with world.fault():
            began = monotonic()
            proxy.stall(up=way == "to", down=way == "from")
            if side == "publisher":
                await world.failed(100)
            await until(lambda: monotonic() - began > 8)
            proxy.resume()
        await world.recovered()
    assert world.failures() <= {"NotConfirmed"}


@pytest.mark.full
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.row("TCP connection slow: {side}", "30 kB/s each way, 50 ms later, while 100 events pass")
async def test_slow(world: World, side: str) -> None:
    async with through_a_proxy(world, side, Publishing(rate=60), settings={"BROKER_PUBLISH_TIMEOUT": "120"}) as proxy:
        with world.fault():
            proxy.slow(rate=30_000, latency=0.05)
            await world.recovered(100)
            proxy.resume()
        await world.recovered()
    assert world.failures() == set()


@pytest.mark.full
@pytest.mark.row("heartbeats missed", "RabbitMQ frozen (SIGSTOP) until both sides give it up, at most 25 s")
async def test_heartbeats_missed(world: World) -> None:
    await world.begin(Publishing(rate=60), settings=PATIENT)
    assert world.publisher is not None
    with world.fault():
        began = monotonic()
        await world.do("pause")
        try:
            await asyncio.gather(
                world.publisher.process.logged("disconnected"), world.subscriber.process.logged("disconnected", 2)
            )
            world.result["noticed"] = monotonic() - began
        finally:
            await world.do("resume")
    await world.recovered()
    await world.finish()
    assert world.result["noticed"] < 25


@pytest.mark.full
@pytest.mark.row("RabbitMQ frozen for less than that", "SIGSTOP for 8 s, deadline of a publish 3 s")
async def test_frozen_for_a_while(world: World) -> None:
    await world.begin(handling=Handling(publishes=True), settings={"BROKER_PUBLISH_TIMEOUT": "3"})
    with world.fault():
        began = monotonic()
        await world.do("pause")
        try:
            await world.failed(200)
            await until(lambda: monotonic() - began > 8)
        finally:
            await world.do("resume")
    await world.recovered()
    await world.finish()
    assert world.failures() == {"NotConfirmed"}


ALARMS = {
    "memory": (("set_vm_memory_high_watermark", "0.0000001"), ("set_vm_memory_high_watermark", "0.6")),
    "disk": (("set_disk_free_limit", "1000000GB"), ("set_disk_free_limit", "10MB")),
}


@pytest.mark.full
@pytest.mark.parametrize("alarm", ALARMS)
@pytest.mark.row("{alarm} alarm", "raised by rabbitmqctl until 500 publishes have failed, deadline 3 s")
async def test_alarm(world: World, alarm: str) -> None:
    on, off = ALARMS[alarm]
    await world.begin(Publishing(backlog=3000, rate=250), settings={"BROKER_PUBLISH_TIMEOUT": "3"})
    assert world.publisher is not None
    with world.fault():
        await world.control(*on)
        try:
            await world.publisher.process.logged("blocked")
            await world.failed(500)
        finally:
            await world.control(*off)
    await world.recovered()
    await world.finish()
    assert world.failures() == {"NotConfirmed"}
    assert "RabbitMQ blocks drawing (publish): it is low on memory or disk" in world.publisher.err


@pytest.mark.full
@pytest.mark.row("password changed, connections cut", "a wrong password at the reconnect, later the right one again")
async def test_password_changed(world: World) -> None:
    await world.management.create_user("faulty", "first")
    try:
        await world.management.permit("faulty")
        url = world.url.replace("guest:guest@", "faulty:first@")
        await world.begin(publisher_url=url, subscriber_url=url, settings=PATIENT)
        assert world.publisher is not None
        with world.fault():
            await world.management.create_user("faulty", "second")
            for name in ("drawing", "counting"):
                await world.close_connections(name)
            for kept in (world.publisher, world.subscriber):
                refused = await kept.process.logged("connecting")
                assert "refused the login" in refused["error"]
            await world.management.create_user("faulty", "first")
        await world.recovered()
        await world.finish()
        assert world.subscriber.codes == []
        assert "first" not in world.publisher.err + world.subscriber.err
    finally:
        await world.management.delete_user("faulty")


@pytest.mark.full
@pytest.mark.row(
    "permission revoked, confirms lost", "200 confirms lost to a reset, and no permission after the reconnect"
)
async def test_permission_revoked(world: World) -> None:
    """What was stored and not confirmed must not be reported as refused."""
    await world.management.create_user("faulty", "faulty")
    try:
        await world.management.permit("faulty")
        async with Proxy(world.url.replace("guest:guest@", "faulty:faulty@")) as proxy:
            await world.begin(publisher_url=proxy.url, settings=PATIENT)
            with world.fault():
                proxy.stall(up=False)
                await until(lambda: len(world.numbers("attempted")) - len(world.numbers("confirmed")) > 200)
                await world.management.permit("faulty", write=r"^events\.log$")
                proxy.reset()
                proxy.resume()
                await world.failed(300)
                await world.management.permit("faulty")
            await world.recovered()
            await world.finish()
    finally:
        await world.management.delete_user("faulty")
    assert world.failures() == {"AccessRefused", "NotConfirmed"}
