"""The harness, the test unchanged, on both transports; on RabbitMQ it disturbs nobody and leaves nothing."""

from __future__ import annotations

from broker import Reject, Retry, Service
from broker.testing import Harness
from broker.tools.management import Management
from broker.tools.server import Server
from tests.conformance.worlds import World
from tests.parcels import ParcelSent, ParcelWeighed, message, weighed


def packing() -> Service:
    """It packs light parcels, fails once for heavy ones, and rejects the heaviest."""
    service = Service("packing", retry=Retry("1h", "24h"))
    seen: set[int] = set()

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> ParcelSent:
        if event.grams > 1000:
            raise Reject("too heavy")
        if event.grams > 100 and event.grams not in seen:
            seen.add(event.grams)
            raise ValueError("no tape")
        return ParcelSent(parcel_id=event.parcel_id)

    return service


async def test_a_test_of_a_service(address: str | None) -> None:
    async with Harness(packing(), url=address) as shop:
        light, heavy, heaviest = weighed(1), weighed(500), weighed(5000)
        for event in (light, heavy, heaviest):
            await shop.publish(event)
        await shop.settled()
        assert shop.published(ParcelSent) == [ParcelSent(parcel_id=light.parcel_id)]
        assert [letter.reason for letter in shop.dead("packing")] == ["Reject: too heavy"]
        await shop.advance(minutes=59)
        assert len(shop.published(ParcelSent)) == 1
        await shop.advance(minutes=1)
        assert shop.published(ParcelSent)[1:] == [ParcelSent(parcel_id=heavy.parcel_id)]


async def test_on_rabbitmq_it_disturbs_nobody_and_leaves_nothing(rabbit: World, server: Server) -> None:
    service = packing()
    async with rabbit.serve(service):
        pass
    assert rabbit.url is not None
    async with Management(rabbit.url, server.management_url) as management:
        before = {queue.name for queue in await management.queues()}
        async with Harness(packing(), url=rabbit.url) as shop:
            await shop.publish(weighed(500))
            await shop.settled()
            assert {queue.name for queue in await management.queues()} > before
        assert {queue.name for queue in await management.queues()} == before
        assert {it.name for it in await management.exchanges() if "test-" in it.name} == set()
    await rabbit.send(message(b"last", exchange="packing", key="packing"))
    untouched = await rabbit.take("packing")
    await untouched.reach(1)
    assert untouched.bodies == [b"last"]
