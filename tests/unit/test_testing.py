"""The harness: what it tells, what it waits for, and what it says when a test fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from broker import Context, ContractError, Reject, Retry, Service, Settings
from broker.events import id_of
from broker.testing import DeadLetter, Harness, NotSettled
from tests.parcels import ParcelLost, ParcelSent, ParcelWeighed, weighed


def packing(retry: Retry | None = None, *, failures: int = 0, error: Exception | None = None) -> Service:
    """A service that packs what was weighed, after so many failures."""
    service, left = Service("packing", retry=retry), failures

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> ParcelSent:
        nonlocal left
        if left > 0:
            left -= 1
            raise error or ValueError("no tape")
        return ParcelSent(parcel_id=event.parcel_id)

    return service


def crm() -> Service:
    service = Service("crm")

    @service.on(ParcelSent)
    async def note(event: ParcelSent) -> ParcelLost:
        return ParcelLost(parcel_id=event.parcel_id)

    return service


async def test_settled_waits_for_the_whole_story() -> None:
    event = weighed()
    async with Harness(packing(), crm()) as shop:
        assert await shop.publish(event) == id_of(event)
        await shop.settled()
        assert shop.published(ParcelWeighed) == [event]
        assert shop.published(ParcelSent) == [ParcelSent(parcel_id=event.parcel_id)]
        assert shop.published(ParcelLost) == [ParcelLost(parcel_id=event.parcel_id)]
        assert shop.dead("packing") == shop.dead("crm") == []


async def test_the_ladder_waits_for_the_tests_clock() -> None:
    async with Harness(packing(Retry("1s", "1h"), failures=2)) as shop:
        await shop.publish(weighed())
        await shop.settled()
        assert shop.published(ParcelSent) == []
        await shop.advance(seconds=1)
        assert shop.published(ParcelSent) == []
        await shop.advance(minutes=59)
        assert shop.published(ParcelSent) == [], "the second delay begins when the second attempt has failed"
        await shop.advance(minutes=1)
        assert len(shop.published(ParcelSent)) == 1


async def test_all_steps_due_meanwhile_are_taken() -> None:
    async with Harness(packing(Retry("1s", "30s", "10m"), failures=3)) as shop:
        await shop.publish(weighed())
        await shop.advance(hours=1)
        assert len(shop.published(ParcelSent)) == 1
        assert shop.dead("packing") == []


async def test_dead_letters_say_which_event_and_why() -> None:
    event = weighed()
    async with Harness(packing(Retry("1s"), failures=9)) as shop:
        await shop.publish(event)
        await shop.advance(hours=1)
        assert shop.dead("packing") == [DeadLetter("Parcel Weighed", id_of(event), "ValueError: no tape", 2)]


async def test_a_rejected_event_is_dead_at_once() -> None:
    async with Harness(packing(failures=1, error=Reject("stolen"))) as shop:
        await shop.publish(weighed())
        await shop.settled()
        (letter,) = shop.dead("packing")
        assert (letter.reason, letter.attempt) == ("Reject: stolen", 1)


async def test_a_service_that_is_not_here_is_named() -> None:
    async with Harness(packing()) as shop:
        with pytest.raises(ContractError, match="Did you mean 'packing'"):
            shop.dead("packign")


def test_two_services_of_one_name_are_refused() -> None:
    with pytest.raises(ContractError, match="one name"):
        Harness(packing(), packing())


async def test_a_service_that_contradicts_itself_is_refused() -> None:
    service = Service("packing")

    @service.on("parcel.wieghed")
    async def pack(envelope: Any) -> None: ...

    with pytest.raises(ContractError, match="Did you mean"):
        async with Harness(service):
            pass


async def test_lifespans_run() -> None:
    told: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[str]:
        told.append("opened")
        yield "tape"
        told.append("closed")

    service = Service("packing", lifespan=lifespan)

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        told.append(context.resources)

    async with Harness(service) as shop:
        await shop.publish(weighed())
        await shop.settled()
    assert told == ["opened", "tape", "closed"]


async def test_what_does_not_settle_is_named_with_its_story() -> None:
    service, release = Service("packing"), asyncio.Event()

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> None:
        await release.wait()

    async with Harness(service) as shop:
        event_id = await shop.publish(weighed())
        with pytest.raises(NotSettled) as caught:
            await shop.settled(timeout=0.05)
        release.set()
        await shop.settled()
    assert f"packing is still handling Parcel Weighed {event_id}" in str(caught.value)
    assert "published" in str(caught.value)


async def test_a_failed_assertion_is_told_what_happened_instead() -> None:
    async def a_test() -> None:
        async with Harness(packing(Retry("1s"), failures=9), crm()) as shop:
            await shop.publish(weighed())
            await shop.advance(hours=1)
            assert shop.published(ParcelSent)

    with pytest.raises(AssertionError) as caught:
        await a_test()
    (story,) = caught.value.__notes__
    told = [" ".join(line.split()) for line in story.splitlines()]
    assert told[0] == "What happened:"
    assert told[1].startswith("test published Parcel Weighed parcel.weighed")
    assert "packing retrying Parcel Weighed in 1s: ValueError: no tape" in told
    assert "packing dead Parcel Weighed ValueError: no tape" in told
    assert not any("handled" in line for line in told)


async def test_the_story_of_success() -> None:
    async with Harness(packing(), crm()) as shop:
        await shop.publish(weighed())
        await shop.settled()
        told = [line.split()[:2] for line in shop.story.splitlines()[1:]]
    assert told[0] == ["test", "published"]
    assert told.count(["packing", "handled"]) == 1
    assert told.count(["crm", "handled"]) == 1
    assert told.index(["packing", "published"]) < told.index(["packing", "handled"])


async def test_an_event_published_twice_is_handled_twice() -> None:
    event = weighed()
    async with Harness(packing()) as shop:
        await shop.publish(event)
        await shop.publish(event)
        await shop.settled()
        assert len(shop.published(ParcelSent)) == 2


async def test_ids_and_stories_may_be_said() -> None:
    event_id, story = uuid4(), uuid4()
    async with Harness(packing()) as shop:
        assert await shop.publish(weighed(), id=event_id, correlation_id=story) == event_id
        await shop.settled()
        assert str(event_id) in shop.story


async def test_settings_are_taken() -> None:
    running = most = 0
    service = Service("packing")

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1

    async with Harness(service, settings=Settings(concurrency=2)) as shop:
        for _ in range(10):
            await shop.publish(weighed())
        await shop.settled()
    assert most == 2


async def test_a_harness_of_nothing_settles() -> None:
    async with Harness() as shop:
        await shop.publish(weighed())
        await shop.settled()
        await shop.advance(days=1)
        assert len(shop.published(ParcelWeighed)) == 1
