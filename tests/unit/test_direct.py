"""The hot path on sockets that note what is written and whether they rest: no RabbitMQ, no clock but the loop's."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from broker import Broker, ContractError, NotConfirmed, PublishRefused, Settings
from broker.publisher import IN_FLIGHT
from broker.rabbitmq import direct, frames
from broker.rabbitmq.direct import MANY, MOST, REST, DirectChannel, DirectPublisher
from broker.transport import Delivery, Message
from tests.parcels import weighed
from tests.waiting import counted, until


class Sockets:
    """What `broker.rabbitmq.stream.Sockets` is to a channel."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.rests: list[float] = []
        self.resting = False
        self.sink: Any = None

    def attach(self, channel: int, sink: Any, frame_max: int) -> None:
        self.sink = sink

    def detach(self, channel: int) -> None:
        self.sink = None

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def rest(self, seconds: float) -> bool:
        if not self.resting:
            self.rests.append(seconds)
        before, self.resting = self.resting, True
        return not before

    @property
    def methods(self) -> list[tuple[int, bytes]]:
        """The methods of all frames, with their arguments."""
        found, data, at = [], b"".join(self.written), 0
        while at < len(data):
            size = int.from_bytes(data[at + 3 : at + 7])
            if data[at] == 1:
                found.append((int.from_bytes(data[at + 7 : at + 11]), data[at + 11 : at + 7 + size]))
            at += size + 8
        return found

    @property
    def acks(self) -> list[tuple[int, bool]]:
        """Tag and ``multiple`` of each Basic.Ack."""
        return [(int.from_bytes(it[:8]), bool(it[8])) for method, it in self.methods if method == frames.ACK]


class Link:
    """What `broker.rabbitmq.link.Link` is to a publisher."""

    problem = None

    def sent(self) -> None: ...

    def confirmed(self) -> None: ...


def publisher(*, connected: bool = True) -> tuple[DirectPublisher, Sockets]:
    link: Any = Link()
    it, sockets = DirectPublisher(link), Sockets()
    if connected:
        connect(it, sockets)
    return it, sockets


def connect(it: DirectPublisher, sockets: Sockets) -> None:
    its: Any = sockets
    it.start(its, 1, 131_072)


def message(key: str = "parcel.weighed", body: bytes = b"{}") -> Message:
    return Message("events", key, body, timestamp=datetime.now(UTC))


def publish(it: DirectPublisher, count: int = 1, **more: Any) -> list[asyncio.Future[None]]:
    return [it.publish(message(**more), mandatory=True, timeout=30) for _ in range(count)]


def confirm(it: DirectPublisher, sockets: Sockets, tag: int, *, multiple: bool = False) -> None:
    """As it comes when the sockets have read on."""
    sockets.resting = False
    it.confirmed(tag, multiple)


# -- publishing ------------------------------------------------------------------------------------------------------


async def test_a_publish_that_is_alone_is_written_at_once_and_others_of_a_turn_share_a_write() -> None:
    it, sockets = publisher()
    publish(it)
    assert len(sockets.written) == 1, "nobody waits for the end of the turn"
    publish(it, 20)
    assert len(sockets.written) == 1
    await asyncio.sleep(0)
    assert len(sockets.written) == 2
    assert len(sockets.methods) == 21
    it.close()


async def test_so_many_are_under_way_at_most_and_the_others_follow_as_confirms_come() -> None:
    it, sockets = publisher()
    futures = publish(it, MOST + 10)
    await asyncio.sleep(0)
    assert len(sockets.methods) == MOST
    confirm(it, sockets, 5, multiple=True)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(sockets.methods) == MOST + 5
    assert sum(future.done() for future in futures) == 5
    it.close()


async def test_so_many_bytes_are_under_way_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "MOST_BYTES", 1000)
    it, sockets = publisher()
    publish(it, 5, body=b"x" * 400)
    await asyncio.sleep(0)
    assert len(sockets.methods) == 3, "the one that passes the limit is the last"
    it.close()


async def test_one_that_cannot_be_framed_fails_alone_and_confirms_still_mean_the_others() -> None:
    it, sockets = publisher()
    (first,) = publish(it)
    (bad,) = publish(it, key="k" * 300)
    (last,) = publish(it)
    with pytest.raises(ContractError, match="255 is the most"):
        await bad
    it.refused(2, multiple=False)
    confirm(it, sockets, 1)
    await first
    with pytest.raises(PublishRefused):
        await last
    it.close()


async def test_one_in_line_that_cannot_be_framed_does_not_hold_up_those_behind_it() -> None:
    it, sockets = publisher(connected=False)
    (bad,), (good,) = publish(it, key="k" * 300), publish(it)
    connect(it, sockets)
    with pytest.raises(ContractError):
        await bad
    confirm(it, sockets, 1)
    await good
    it.close()


async def test_what_is_late_is_forgotten_with_its_body_though_there_is_no_connection() -> None:
    it, sockets = publisher(connected=False)
    late = [it.publish(message(), mandatory=True, timeout=0.01) for _ in range(300)]
    patient = publish(it)
    for future in late:
        with pytest.raises(NotConfirmed):
            await future
    assert len(it._line) == 1
    connect(it, sockets)
    confirm(it, sockets, 1)
    await patient[0]
    it.close()


async def test_single_confirms_of_long_ago_are_not_gone_through_again() -> None:
    it, sockets = publisher()
    for tag in range(1, 50):
        publish(it)
        confirm(it, sockets, tag)
    assert it._lowest == 50
    it.close()


# -- reading some confirms at a time ---------------------------------------------------------------------------------


async def test_confirms_are_read_at_once_until_very_much_is_under_way() -> None:
    it, sockets = publisher()
    publish(it, MANY + 1)
    confirm(it, sockets, 1)
    assert sockets.rests == []
    publish(it, 1)
    confirm(it, sockets, 3)
    assert sockets.rests == []
    publish(it, 2)
    confirm(it, sockets, 2)
    assert sockets.rests == [REST[0]]
    it.close()


async def test_the_fewer_confirms_come_the_longer_it_rests_within_bounds_whatever_their_order() -> None:
    it, sockets = publisher()
    publish(it, MOST)
    for tag in (9, 1, 8, 2, 7, 3, 6, 4):
        confirm(it, sockets, tag)
    assert sockets.rests[:3] == [REST[0], 2 * REST[0], 4 * REST[0]], "it doubles at most"
    assert sockets.rests[-1] == REST[1]
    for tag in range(300, 1200, 300):
        confirm(it, sockets, tag, multiple=True)
    confirm(it, sockets, 1201)
    assert sockets.rests[-1] == REST[0]
    connect(it, sockets)
    publish(it, MOST)
    confirm(it, sockets, 1)
    assert sockets.rests[-1] == REST[0], "on a new channel it begins anew"
    it.close()


# -- many at once, by the Python client ------------------------------------------------------------------------------


class Direct:
    """A transport that is a publisher alone."""

    def __init__(self, it: DirectPublisher) -> None:
        self._it = it
        self.post = it.post

    async def connect(self) -> None: ...

    async def close(self) -> None: ...


def client(it: DirectPublisher) -> Broker:
    transport: Any = Direct(it)
    return Broker(source="scales", settings=Settings(), transport=transport)


async def test_what_progress_raises_is_raised_once_all_have_an_answer() -> None:
    it, sockets = publisher()
    told: list[int] = []

    def progress(confirmed: int) -> None:
        told.append(confirmed)
        raise ValueError("no screen")

    async with client(it) as broker:
        publishing = asyncio.gather(broker.publish_many([weighed() for _ in range(10)], progress=progress))
        await until(lambda: len(sockets.methods) == 10)
        confirm(it, sockets, 5, multiple=True)
        await asyncio.sleep(0)
        assert not publishing.done()
        confirm(it, sockets, 10, multiple=True)
        with pytest.raises(ValueError, match="no screen"):
            await publishing
    assert told == [1]
    it.close()


async def test_publish_many_that_is_cancelled_leaves_the_connection_to_others() -> None:
    it, sockets = publisher()
    async with client(it) as broker:
        publishing = asyncio.gather(broker.publish_many([weighed() for _ in range(2 * IN_FLIGHT)]))
        await until(lambda: len(sockets.methods) == IN_FLIGHT)
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        (mine,) = publish(it)
        await asyncio.sleep(0)
        confirm(it, sockets, IN_FLIGHT, multiple=True)
        assert not mine.done()
        confirm(it, sockets, IN_FLIGHT + 1)
        await mine
    it.close()


async def test_a_confirm_that_comes_in_the_turn_of_a_cancellation_disturbs_nobody() -> None:
    it, sockets = publisher()
    async with client(it) as broker:
        publishing = asyncio.create_task(broker.publish_many([weighed()]))
        await until(lambda: sockets.methods)
        publishing.cancel()
        confirm(it, sockets, 1)
        with pytest.raises(asyncio.CancelledError):
            await publishing
        (mine,) = publish(it)
        confirm(it, sockets, 2)
        await mine
    it.close()


# -- consuming -------------------------------------------------------------------------------------------------------


async def test_properties_are_decoded_when_somebody_asks_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = counted(monkeypatch, frames, "decode_properties")
    it = Consuming()
    (delivery,) = await it.deliver(1)
    assert (delivery.number, delivery.redelivered, delivery.lost, decoded) == (None, False, False, [])
    assert delivery.message is delivery.message
    assert len(decoded) == 1
    await delivery.ack()


class Consuming:
    """A channel that consumes, and what it handed out."""

    def __init__(self) -> None:
        class Channel:
            number = 1

            async def basic_consume(self, *_: object, **__: object) -> None: ...

            async def basic_cancel(self, *_: object) -> None: ...

        opened: Any = Channel()
        self.sockets = Sockets()
        its: Any = self.sockets
        self.channel = DirectChannel(opened, its, 131_072)
        self.got: list[Delivery] = []

    async def deliver(self, *tags: int) -> list[Delivery]:
        await self.channel.consume("packing", "consumer", self.got.append, None)
        for tag in tags:
            self.channel.deliver(frames.Delivered("consumer", tag, False, "events", "parcel.weighed", b"\0\0", b"{}"))
        return self.got[-len(tags) :]


async def test_acks_of_a_turn_share_a_write_and_those_before_what_is_in_hand_share_a_frame() -> None:
    it = Consuming()
    one, two, three, four, five = await it.deliver(1, 2, 3, 4, 5)
    for delivery in (two, one, five, three):
        await delivery.ack()
    assert it.sockets.written == []
    await asyncio.sleep(0)
    assert len(it.sockets.written) == 1
    assert it.sockets.acks == [(5, False), (3, True)], "4 is still in hand"
    await four.ack()
    await asyncio.sleep(0)
    assert it.sockets.acks[2:] == [(4, True)]


async def test_one_that_stays_in_hand_for_long_costs_no_memory_for_those_after_it() -> None:
    it = Consuming()
    (stays,) = await it.deliver(1)
    for tag in range(2, 2002):
        (delivery,) = await it.deliver(tag)
        await delivery.ack()
        await asyncio.sleep(0)
    assert all(not multiple for _, multiple in it.sockets.acks)
    held = [len(it.channel.__dict__[name]) for name in ("_in_hand", "_done", "_others")]
    assert held == [1, 0, 0]
    await stays.ack()
    await asyncio.sleep(0)
    assert it.sockets.acks[-1] == (1, True)


async def test_what_nobody_took_is_never_acknowledged_with_others() -> None:
    """It came after its consumer was cancelled, and goes back to its queue with the channel."""
    it = Consuming()
    (one,) = await it.deliver(1)
    await it.channel.cancel("consumer")
    it.channel.deliver(frames.Delivered("consumer", 2, False, "events", "parcel.weighed", b"\0\0", b"{}"))
    (three,) = await it.deliver(3)
    await three.ack()
    await one.ack()
    await asyncio.sleep(0)
    assert it.sockets.acks == [(3, False), (1, True)]


async def test_what_was_given_back_is_not_acknowledged_before_its_own_frame() -> None:
    it = Consuming()
    one, two, three = await it.deliver(1, 2, 3)
    for settled in (three.ack(), two.release(), one.ack()):
        await settled
    await asyncio.sleep(0)
    methods = [method for method, _ in it.sockets.methods]
    assert methods == [frames.REJECT, frames.ACK], "RabbitMQ reads in order"
    assert it.sockets.acks == [(3, True)]
