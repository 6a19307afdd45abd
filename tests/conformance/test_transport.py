"""The delivery contract of `broker.transport`, rule by rule, on both transports."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import pytest

from broker import BrokerError, TopologyConflict, Unroutable
from broker.retry import Delay
from broker.topology import (
    Exchange,
    Queue,
    Topology,
    dead_queue,
    retry_queue,
    retry_topology,
    service_topology,
    shared_topology,
)
from broker.transport import Message, Transport
from tests.conformance.worlds import Taken, World
from tests.parcels import message
from tests.waiting import until

PACKING = service_topology("packing", ["parcel.*"], "events")


async def publish(transport: Transport, *bodies: bytes, key: str = "parcel.weighed") -> None:
    for body in bodies:
        await transport.publish(message(body, key=key), mandatory=True, timeout=30)


async def nothing_left(world: World, queue: str) -> None:
    """A message sent last is the only one there: nothing waits before it."""
    await world.send(message(b"last", exchange="packing", key=queue))
    left = await world.take(queue)
    await left.reach(1)
    assert left.bodies == [b"last"]
    await left[0].ack()
    await left.cancel()


# -- publishing ----------------------------------------------------------------------------------------------------


async def test_what_is_published_is_in_every_bound_queue(world: World) -> None:
    crm = service_topology("crm", ["#"], "events")
    transport = await world.transport(declare=PACKING | crm)
    await publish(transport, b"1")
    await transport.close()
    for queue in ("packing", "crm"):
        taken = await world.take(queue)
        await taken.reach(1)
        assert taken.bodies == [b"1"]


@pytest.mark.parametrize(
    ("pattern", "key", "routed"),
    [
        ("parcel.weighed", "parcel.weighed", True),
        ("parcel.weighed", "parcel.sent", False),
        ("parcel.*", "parcel.sent", True),
        ("parcel.*", "parcel", False),
        ("parcel.*", "parcel.sent.again", False),
        ("parcel.#", "parcel", True),
        ("parcel.#", "parcel.sent.again", True),
        ("*.sent", "parcel.sent", True),
        ("#.sent.#", "sent", True),
        ("#.sent.#", "a.sent.b.c", True),
        ("#.sent.#", "a.b", False),
        ("*.#.*", "one", False),
        ("*.#.*", "one.two", True),
        ("#", "anything.at.all", True),
    ],
)
async def test_topic_routing(world: World, pattern: str, key: str, routed: bool) -> None:
    transport = await world.transport(declare=service_topology("packing", [pattern], "events"), log=False)
    try:
        await transport.publish(message(key=key), mandatory=True, timeout=30)
    except Unroutable:
        assert not routed
    else:
        assert routed


async def test_two_bindings_that_match_give_one_message(world: World) -> None:
    declared = service_topology("packing", ["parcel.*", "#", "*.weighed"], "events")
    transport = await world.transport(declare=declared)
    await publish(transport, b"1", b"2")
    taken = await world.take("packing")
    await taken.reach(2)
    assert taken.bodies == [b"1", b"2"]


async def test_a_services_own_exchange_is_direct(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    for key in ("packing", "packing.dead"):
        await transport.publish(message(key.encode(), exchange="packing", key=key), mandatory=True, timeout=30)
    for key in ("parcel.weighed", "packing.dead.x", "#"):
        with pytest.raises(Unroutable):
            await transport.publish(message(exchange="packing", key=key), mandatory=True, timeout=30)
    assert (await taken_of(world, "packing", 1)).bodies == [b"packing"]
    assert (await taken_of(world, "packing.dead", 1)).bodies == [b"packing.dead"]


async def taken_of(world: World, queue: str, count: int) -> Taken:
    taken = await world.take(queue)
    await taken.reach(count)
    return taken


async def test_unroutable_is_said_and_the_next_publish_works(world: World) -> None:
    transport = await world.transport(declare=PACKING, log=False)
    with pytest.raises(Unroutable, match="events"):
        await transport.publish(message(key="van.broke"), mandatory=True, timeout=30)
    await publish(transport, b"next")
    await transport.publish(message(key="van.broke"), mandatory=False, timeout=30)
    await publish(transport, b"and the next")
    taken = await taken_of(world, "packing", 2)
    assert taken.bodies == [b"next", b"and the next"]


async def test_an_unroutable_publish_leaves_its_neighbours_alone(world: World) -> None:
    transport = await world.transport(declare=PACKING, log=False)
    keys = ["parcel.sent", "van.broke"] * 20
    publishes = [transport.publish(message(key=key), mandatory=True, timeout=30) for key in keys]
    results = await asyncio.gather(*publishes, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), Unroutable] * 20
    assert len(await taken_of(world, "packing", 20)) == 20


async def test_a_message_arrives_as_it_was_published(world: World) -> None:
    at = datetime(2026, 7, 1, 12, 30, tzinfo=UTC)
    sent = Message(
        exchange="events",
        key="parcel.weighed",
        body=bytes(range(256)),
        content_type="application/cloudevents+json; charset=utf-8",
        type="Parcel Weighed ⚖",
        correlation_id="story",
        app_id="scales",
        timestamp=at,
        headers={"text": "ä", "number": -(2**40), "yes": True, "none": None, "at": at, "half": 0.5, "empty": ""},
    )
    transport = await world.transport(declare=PACKING)
    await transport.publish(sent, mandatory=True, timeout=30)
    taken = await taken_of(world, "packing", 1)
    assert taken[0].message == sent
    assert not taken[0].redelivered


async def test_a_closed_transport_does_not_publish(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    await transport.close()
    with pytest.raises(BrokerError, match="closed"):
        await publish(transport, b"1")


async def test_all_is_well_while_connected(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    await world.take("packing", by=transport)
    assert transport.problems() == []


# -- settling ------------------------------------------------------------------------------------------------------


async def test_what_was_acknowledged_is_gone(world: World) -> None:
    consuming = await world.transport(declare=PACKING)
    await publish(consuming, b"1", b"2")
    taken = await world.take("packing", by=consuming)
    await taken.reach(2)
    for delivery in taken.deliveries:
        await delivery.ack()
    await taken.cancel()
    await nothing_left(world, "packing")
    await nothing_left(world, "packing.dead")


async def test_what_was_released_comes_again(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    await publish(transport, b"1")
    taken = await world.take("packing", by=transport)
    await taken.reach(1)
    await taken[0].release()
    await taken.reach(2)
    assert taken.bodies == [b"1", b"1"]
    assert [delivery.redelivered for delivery in taken.deliveries] == [False, True]
    await taken[1].ack()
    await nothing_left(world, "packing.dead")


async def test_what_was_rejected_is_dead_and_untouched(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    sent = replace(
        message(b"\x00\xffnot json", headers={"tenant": "a", "broker-attempt": 7}),
        type="Parcel Weighed",
        correlation_id="story",
        app_id="scales",
        timestamp=datetime(2026, 7, 1, tzinfo=UTC),
    )
    await transport.publish(sent, mandatory=True, timeout=30)
    taken = await world.take("packing", by=transport)
    await taken.reach(1)
    await taken[0].reject()
    dead = await taken_of(world, "packing.dead", 1)
    found = dead[0].message
    headers = {name: value for name, value in found.headers.items() if not name.startswith("x-")}
    moved = replace(sent, exchange="packing", key="packing.dead")
    assert replace(found, headers=headers, death=None) == moved
    await dead[0].ack()
    await taken.cancel()
    await nothing_left(world, "packing")


async def test_what_is_not_settled_comes_again_when_its_process_is_gone(world: World) -> None:
    first = await world.transport(declare=PACKING)
    await publish(first, b"1", b"2", b"3")
    held = await world.take("packing", by=first)
    await held.reach(3)
    await held[1].ack()
    assert not held[0].lost
    await first.close()
    assert held[0].lost
    again = await world.take("packing")
    await again.reach(1)
    await again[0].ack()
    await again.reach(2)
    assert sorted(again.bodies) == [b"1", b"3"]  # in whatever order
    assert all(delivery.redelivered for delivery in again.deliveries)


async def test_settling_what_is_lost_does_nothing(world: World) -> None:
    first = await world.transport(declare=PACKING)
    await publish(first, b"1", b"2", b"3")
    held = await world.take("packing", by=first)
    await held.reach(3)
    await first.close()
    await held[0].ack()
    await held[1].reject()
    await held[2].release()
    again = await world.take("packing")
    for count in (1, 2, 3):
        await again.reach(count)
        await again[count - 1].ack()
    assert sorted(again.bodies) == [b"1", b"2", b"3"]
    await again.cancel()
    await nothing_left(world, "packing")
    await nothing_left(world, "packing.dead")


async def test_settling_twice_does_nothing_more(world: World) -> None:
    transport = await world.transport(declare=PACKING, log=False)
    await publish(transport, b"1")
    taken = await world.take("packing", by=transport)
    await taken.reach(1)
    await taken[0].ack()
    await taken.cancel()
    await nothing_left(world, "packing")


async def test_a_cancelled_consumer_keeps_what_it_has_in_hand(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    await publish(transport, b"1", b"2")
    taken = await world.take("packing", by=transport)
    await taken.reach(2)
    await taken.cancel()
    await publish(transport, b"3")
    other = await taken_of(world, "packing", 1)
    assert other.bodies == [b"3"]
    assert taken.bodies == [b"1", b"2"]
    assert not taken[0].lost
    await taken[0].ack()
    await taken[1].reject()
    await other[0].ack()
    await other.cancel()
    dead = await taken_of(world, "packing.dead", 1)
    assert dead.bodies == [b"2"]
    await nothing_left(world, "packing")


async def test_the_same_consumer_may_be_cancelled_twice(world: World) -> None:
    taken = await world.take("packing", by=await world.transport(declare=PACKING))
    await taken.cancel()
    await taken.cancel()


# -- consuming -----------------------------------------------------------------------------------------------------


async def test_a_queue_hands_out_in_order_and_each_to_one(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    one, two = await world.take("packing"), await world.take("packing")
    bodies = [b"%d" % n for n in range(30)]
    await publish(transport, *bodies)
    await until(lambda: len(one) + len(two) == 30)
    assert sorted(one.bodies + two.bodies) == sorted(bodies)
    for taken in (one, two):
        assert len(taken) > 0, "both get their share"
        assert list(map(int, taken.bodies)) == sorted(map(int, taken.bodies))


async def test_a_consumer_has_no_more_in_hand_than_its_prefetch(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    await publish(transport, *(b"%d" % n for n in range(12)))
    taken = await world.take("packing", by=transport, prefetch=3)
    await until(lambda: len(taken) in (3, 4))  # 4: the first one came before there was a prefetch of 3
    for settled in range(1, 13):
        await taken[settled - 1].ack()
        await taken.reach(min(settled + 3, 12))
    assert taken.bodies == [b"%d" % n for n in range(12)]


async def test_a_paused_consumer_holds_one_more_at_most_until_it_resumes(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    taken = await world.take("packing", by=transport)
    await publish(transport, b"0")
    await taken.reach(1)
    assert taken.consumer is not None
    await taken.consumer.pause("the database\nis down")
    await publish(transport, *(b"%d" % n for n in range(1, 10)))
    await until(lambda: len(taken) in (1, 2))  # the first is still in hand, and may count
    await publish(transport, b"passing by", key="parcel.x")
    assert len(taken) <= 2
    await taken.consumer.resume()
    await taken.reach(11)
    assert await transport.count("packing") == 0


async def test_after_a_crash_one_at_a_time_until_a_fresh_one(world: World) -> None:
    first = await world.transport(declare=PACKING)
    await publish(first, b"1", b"2", b"3")
    held = await world.take("packing", by=first)
    await held.reach(3)
    await first.close()

    second = await world.transport()
    await publish(second, b"4", b"5", b"6")
    again = await world.take("packing", by=second)
    for count in (1, 2, 3):
        await again.reach(count)
        await publish(second, b"passing by", key="parcel.x")  # a round trip, in which more could come
        assert len(again) == count, "alone"
        assert again[count - 1].redelivered
        await again[count - 1].ack()
    await again.reach(9)
    assert sorted(again.bodies[:3]) == [b"1", b"2", b"3"]
    assert again.bodies[3:] == [b"4", b"5", b"6", *[b"passing by"] * 3]
    assert [delivery.redelivered for delivery in again.deliveries] == [True] * 3 + [False] * 6


async def test_a_message_that_kills_its_process_is_found_alone(world: World) -> None:
    """Its neighbours, in the prefetch when it killed first, are handed out once more, and not dead-lettered."""
    limited = Topology(
        PACKING.exchanges,
        tuple(
            Queue(queue.name, {**queue.arguments, "x-delivery-limit": 3}) if queue.name == "packing" else queue
            for queue in PACKING.queues
        ),
        PACKING.bindings,
    )
    transport = await world.transport(declare=limited)
    await publish(transport, b"poison", *[b"good"] * 5)
    dead = await world.dead("packing")
    process = await world.transport("process")
    taken = await world.take("packing", by=process)
    await taken.reach(6)
    await process.close()
    handled = 0
    for _ in range(3):
        process = await world.transport("process")
        taken = await world.take("packing", by=process)
        for count in range(1, 7):
            await taken.reach(count)
            if taken.bodies[-1] == b"poison":
                break
            await taken[-1].ack()
            handled += 1
        await process.close()
    await dead.reach(1)
    assert dead.bodies == [b"poison"]
    survivors = await world.take("packing")
    while handled < 5:
        await until(lambda: len(survivors) > 0)
        await survivors.deliveries.pop().ack()
        handled += 1
    await survivors.cancel()
    await nothing_left(world, "packing")


async def test_after_twenty_deliveries_too_many_it_is_dead(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    await publish(transport, b"poison")
    dead = await world.dead("packing")
    taken = await world.take("packing", by=transport)
    while True:
        before = len(taken)
        if before:
            await taken[-1].release()
        await until(partial(lambda before: len(taken) > before or len(dead) > 0, before))
        if len(dead) > 0:
            break
    assert dead.bodies == [b"poison"]
    assert 20 <= len(taken) <= 21  # RabbitMQ may count one more that it takes back from a consumer being replaced


async def test_what_waits_for_a_retry_may_be_looked_at_without_end(world: World) -> None:
    delay = Delay.parse("1h")
    transport = await world.transport(declare=PACKING | retry_topology("packing", delay))
    waiting = retry_queue("packing", delay)
    await transport.publish(message(b"1", exchange="packing", key=waiting), mandatory=True, timeout=30)
    looked = await world.take(waiting, by=transport)
    for count in range(1, 41):
        await looked.reach(count)
        await looked[count - 1].release()
    await looked.reach(41)


async def test_a_dead_letter_that_was_rejected_remembers_its_key(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    taken = await world.take("packing", by=transport)
    await publish(transport, b"1")
    await taken.reach(1)
    await taken[0].reject()
    dead = await world.dead("packing")
    await dead.reach(1)
    death = dead[0].message.death
    assert death is not None
    assert (death.reason, death.key) == ("rejected", "parcel.weighed")


async def test_counting_what_is_ready(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    assert await transport.count("packing") == 0
    assert await transport.count("nobody") is None
    await publish(transport, b"1", b"2")
    assert await transport.count("packing") == 2
    taken = await world.take("packing", by=transport)
    await taken.reach(2)
    assert await transport.count("packing") == 0


async def test_dead_letters_may_be_looked_at_without_end(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    await transport.publish(message(b"1", exchange="packing", key="packing.dead"), mandatory=True, timeout=30)
    looked = await world.take("packing.dead", by=transport)
    for count in range(1, 41):
        await looked.reach(count)
        await looked[count - 1].release()
    await looked.reach(41)


# -- retry queues --------------------------------------------------------------------------------------------------


async def test_a_retry_queue_gives_back_after_its_delay(world: World) -> None:
    delay = Delay.parse("300ms")
    transport = await world.transport(declare=PACKING | retry_topology("packing", delay))
    taken = await world.take("packing", by=transport)
    copy = message(b"1", exchange="packing", key=retry_queue("packing", delay), headers={"broker-attempt": 1})
    began = world.now
    await transport.publish(copy, mandatory=True, timeout=30)
    await taken.reach(1)
    assert world.now - began >= delay.seconds
    back = taken[0].message
    assert (back.exchange, back.key, back.body) == ("packing", "packing", b"1")
    assert back.headers["broker-attempt"] == 1
    assert not taken[0].redelivered, "what returns counts as fresh"


async def test_delays_do_not_hold_each_other_up(world: World) -> None:
    short, long = Delay.parse("100ms"), Delay.parse("1h")
    declared = PACKING | retry_topology("packing", short) | retry_topology("packing", long)
    transport = await world.transport(declare=declared)
    taken = await world.take("packing", by=transport)
    for delay, body in ((long, b"long"), (short, b"short")):
        copy = message(body, exchange="packing", key=retry_queue("packing", delay))
        await transport.publish(copy, mandatory=True, timeout=30)
    await taken.reach(1)
    assert taken.bodies == [b"short"]


async def test_until_trusted_returns(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    async with asyncio.timeout(30):
        await transport.until_trusted(dead_queue("packing"))
        await transport.until_trusted("never declared")


# -- declaring -----------------------------------------------------------------------------------------------------


async def test_declaring_again_changes_nothing(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    await publish(transport, b"1")
    await transport.declare(PACKING)
    await world.transport(declare=PACKING | shared_topology(world.settings()))
    assert (await taken_of(world, "packing", 1)).bodies == [b"1"]


CONFLICTS = {
    "a queue": Topology(queues=(Queue("packing", {"x-queue-type": "quorum", "x-delivery-limit": 7}),)),
    "an exchange": Topology(exchanges=(Exchange("packing", "topic"),)),
    "the exchange of all events": Topology(exchanges=(Exchange("events", "direct"),)),
}


@pytest.mark.parametrize("what", CONFLICTS)
async def test_what_exists_with_other_arguments_is_a_conflict(world: World, what: str) -> None:
    transport = await world.transport(declare=PACKING)
    with pytest.raises(TopologyConflict, match="events" if "all" in what else "packing"):
        await transport.declare(CONFLICTS[what])
    await publish(transport, b"1")  # and nothing else is disturbed
    assert (await taken_of(world, "packing", 1)).bodies == [b"1"]


async def test_an_exchange_of_another_type_is_a_conflict_at_connect(world: World) -> None:
    await world.transport(declare=Topology(exchanges=(Exchange("facts", "direct"),)))
    with pytest.raises(TopologyConflict, match="facts"):
        await world.transport(exchange="facts")


async def test_the_log_is_taken_as_it_is_found(world: World) -> None:
    await world.transport()
    other = await world.transport(log_max_age="1h", log_max_bytes=200_000_000)
    await publish(other, b"1", key="van.broke")


# -- the event log -------------------------------------------------------------------------------------------------


async def test_the_log_keeps_everything_for_everybody(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    bodies = [b"%d" % n for n in range(5)]
    await publish(transport, *bodies[:3], key="van.broke")
    await publish(transport, *bodies[3:])
    for _ in range(2):
        reading = await world.take("events.log", offset="first")
        await reading.reach(5)
        assert reading.bodies == bodies
        assert [delivery.message.key for delivery in reading.deliveries] == ["van.broke"] * 3 + ["parcel.weighed"] * 2
        for delivery in reading.deliveries:
            await delivery.ack()


async def test_the_log_can_be_followed(world: World) -> None:
    transport = await world.transport()
    await publish(transport, b"before")
    following = await world.take("events.log", offset="next", prefetch=2)
    for count in range(1, 8):
        await publish(transport, b"%d" % count)
        await following.reach(count)
        await following[count - 1].ack()
    assert following.bodies == [b"%d" % n for n in range(1, 8)]


async def test_copies_of_a_service_are_not_in_the_log(world: World) -> None:
    transport = await world.transport(declare=PACKING)
    await transport.publish(message(b"copy", exchange="packing", key="packing.dead"), mandatory=True, timeout=30)
    await publish(transport, b"event")
    reading = await world.take("events.log", offset="first")
    await until(lambda: len(reading) >= 1)
    assert reading.bodies == [b"event"]
