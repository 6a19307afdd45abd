"""A backfill, without RabbitMQ: where it begins, how far it is, what the seam keeps away, and what a crash leaves."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import ContractError, NotConfirmed, Service, Settings
from broker.backfill import begin_of
from broker.backfill.note import Note, furthest
from broker.backfill.pace import LEAST, MOST, Pace
from broker.backfill.reading import AHEAD, Position, Reading, Surroundings
from broker.backfill.seam import Seam, identity
from broker.envelope import Story, encode
from broker.eventlog import Entry, EventLog, Span
from broker.logs import logger
from broker.memory import Memory, Server
from broker.service import serve
from broker.testing import Harness
from broker.topology import DELIVERY_LIMIT, backfill_queue, backfill_topology, dead_queue, service_permissions
from broker.transport import Delivery, Message, Transport
from tests.parcels import ParcelWeighed, message, weighed
from tests.waiting import counted, until

NOW = datetime(2026, 7, 2, 12, tzinfo=UTC)


# -- how fast ------------------------------------------------------------------------------------------------------


class Computer:
    """Its time, and the processor time that a process on it took."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.used = 5.0

    def compute(self, seconds: float) -> None:
        self.time += seconds
        self.used += seconds

    def wait(self, seconds: float) -> None:
        self.time += seconds


@given(
    share=st.floats(0.2, 0.99),
    steps=st.lists(st.tuples(st.floats(0, 0.004), st.floats(0, 0.01)), min_size=20, max_size=100),
)
def test_a_backfill_takes_no_more_than_its_share_of_a_processor(share: float, steps: list[tuple[float, float]]) -> None:
    it = Computer()
    pace = Pace(share, used=lambda: it.used, now=lambda: it.time)
    began = it.time, it.used
    for computed, waited in steps:
        it.compute(computed)
        it.wait(waited)
        it.wait(pace.rest())
        assert it.used - began[1] <= share * (it.time - began[0] + LEAST) + 1e-6


def test_a_wait_is_not_made_up_for_by_a_hurry() -> None:
    it = Computer()
    pace = Pace(0.5, used=lambda: it.used, now=lambda: it.time)
    it.wait(60)
    assert pace.rest() == 0
    it.compute(0.01)
    assert pace.rest() == pytest.approx(0.01)


def test_what_else_computes_in_its_process_holds_it_up_for_so_long_and_no_longer() -> None:
    it = Computer()
    pace = Pace(0.5, used=lambda: it.used, now=lambda: it.time)
    for _ in range(100):
        it.compute(0.001)
        rest = pace.rest()
        assert rest <= MOST
        it.compute(rest)  # somebody else does


def test_with_the_whole_of_a_processor_it_never_rests() -> None:
    it = Computer()
    pace = Pace(1, used=lambda: it.used, now=lambda: it.time)
    it.used += 60  # threads compute, too
    assert pace.rest() == 0


# -- since when ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "begin"),
    [
        ("90m", NOW - timedelta(minutes=90)),
        ("7d", NOW - timedelta(days=7)),
        ("365d", NOW - timedelta(days=365)),  # further back than any delay
        ("2026-07-01T12:30:00+00:00", datetime(2026, 7, 1, 12, 30, tzinfo=UTC)),
        ("2026-07-01T14:30:00+02:00", datetime(2026, 7, 1, 12, 30, tzinfo=UTC)),
        ("first", "first"),
        ("36500d", "first"),  # before what RabbitMQ can be told
    ],
)
def test_since_when(since: str, begin: datetime | str) -> None:
    assert begin_of(since, NOW) == begin


@pytest.mark.parametrize("since", ["", "7", "d", "last week", "-7d", "7 d", "2026-13-01", "99999999999d", None, 7])
def test_what_says_nothing_is_refused(since: Any) -> None:
    with pytest.raises(ContractError, match="Write how long ago, '90m', '12h', '7d'"):
        begin_of(since, NOW)


@given(st.text(max_size=30) | st.from_regex(r"[0-9]{1,14}(ms|s|m|h|d)", fullmatch=True))
def test_every_text_has_an_answer(since: str) -> None:
    try:
        begin = begin_of(since, NOW)
    except ContractError:
        return
    assert begin == "first" or isinstance(begin, datetime)


def test_a_service_declares_it() -> None:
    assert Service("packing", backfill="7d").backfill == "7d"
    assert Service("packing").backfill is None
    with pytest.raises(ContractError, match="does not say since when"):
        Service("packing", backfill="a week")


# -- what it needs ---------------------------------------------------------------------------------------------------


def test_what_it_declares_is_the_services_own() -> None:
    it = service_permissions("packing", Settings(), patterns=["a"], publishes=[], backfill=True)
    (queue,) = backfill_topology("packing").queues
    assert queue.name == backfill_queue("packing") == "packing.backfill"
    assert queue.arguments["x-max-length"] == 1
    assert "packing.backfill".startswith("packing.")
    assert it.configure == r"^packing(\.|$)"
    assert it.read == r"^(packing(\.|$)|events(\.log)?$)"


def packing(**arguments: Any) -> Service:
    service = Service("packing", **arguments)

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> None: ...

    return service


async def test_without_an_event_log_it_does_not_start() -> None:
    settings = Settings(log=False)
    transport = Memory(Server(), settings)
    with pytest.raises(ContractError, match=r"reads the event log, which is switched off \(BROKER_LOG\)"):
        async with serve(packing(), settings, logger(settings), transport, backfill="7d"):
            pass


async def test_a_service_that_subscribes_to_nothing_has_missed_nothing(lines: list[dict[str, Any]]) -> None:
    settings = Settings()
    async with serve(Service("packing"), settings, logger(settings), Memory(Server(), settings), backfill="7d"):
        pass
    assert [line["reason"] for line in lines if line["event"] == "not backfilled"] == ["it subscribes to nothing"]


async def test_who_starts_without_going_on_with_a_backfill_is_warned(lines: list[dict[str, Any]]) -> None:
    settings = Settings()
    memory = Memory(Server(), settings)
    await memory.connect()
    await memory.declare(backfill_topology("packing"))
    async with serve(packing(), settings, logger(settings), memory):
        pass
    (line,) = [line for line in lines if line["event"] == "not backfilled"]
    assert (line["log_level"], line["error"]) == ("warning", "its backfill is unfinished; with --backfill it goes on")


async def test_the_harness_has_no_past() -> None:
    async with Harness(packing(backfill="first")) as shop:
        await shop.publish(weighed())
        await shop.settled()


# -- the note ----------------------------------------------------------------------------------------------------------


def noted(body: bytes) -> Note | None:
    return Note.of(cast("Delivery", Delivered(message(body))))


def test_a_note_is_read_as_it_was_written() -> None:
    note = Note(first=1, next=2, begun=3, tries=4, seam=5, end=6, depth=7)
    assert noted(note.message("packing").body) == note
    begun = Note.at(5, seam=9)
    assert noted(begun.message("packing").body) == begun
    assert (begun.message("packing").exchange, begun.message("packing").key) == ("packing", "packing.backfill")


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\xff", b'{"first": -1, "next": 2, "begun": 3, "seam": 5}'])
def test_what_is_no_note_is_none(body: bytes) -> None:
    assert noted(body) is None


def test_of_several_notes_the_furthest_is_believed() -> None:
    near, far = Note.at(5, seam=9), Note.at(5, seam=9).but(next=6)
    assert furthest([near, far, near]) == far
    assert furthest([far, far.but(end=9)]) == far.but(end=9)
    assert furthest([]) is None


# -- how far it is -----------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), max_size=60), st.randoms(use_true_random=False))
def test_a_number_is_done_when_all_before_it_are(wanted: list[bool], chance: random.Random) -> None:
    position, in_hand, ended = Position(100), [], set(range(100))
    for number, is_wanted in enumerate(wanted, 100):
        if is_wanted:
            position.begin(number)
            in_hand.append(number)
        else:
            position.pass_to(number + 1)
            ended.add(number)
        while in_hand and chance.random() < 0.4:
            done = in_hand.pop(chance.randrange(len(in_hand)))
            position.end(done)
            ended.add(done)
        assert position.reached == number + 1
        assert len(position) == len(in_hand)
        assert position.next == min(in_hand, default=number + 1)
        assert set(range(position.next)) <= ended


# -- the seam ----------------------------------------------------------------------------------------------------------


class Delivered:
    """A delivery, and how it was settled."""

    lost = False

    def __init__(self, message: Message, *, redelivered: bool = False, number: int | None = None) -> None:
        self.message = message
        self.redelivered = redelivered
        self.number = number
        self.settled = ""

    async def ack(self) -> None:
        self.settled = "acknowledged"

    async def reject(self) -> None:
        self.settled = "rejected"

    async def release(self) -> None:
        self.settled = "released"


def event(number: int, exchange: str = "events", source: str = "scales") -> Message:
    """One of a series: its id says which."""
    at = UUID(int=number + 1)
    parcel = ParcelWeighed(parcel_id=at, grams=number)
    body, _ = encode(parcel, event_id=at, source=source, time=NOW, story=Story(at))
    return message(body, exchange=exchange)


async def test_what_was_handled_out_of_the_log_is_kept_away() -> None:
    passed: list[Any] = []
    seam = Seam("events", passed.append)
    for number in (1, 2, 3):
        seam.add(event(number))
    seam.begin(7)
    copies = [Delivered(event(number)) for number in (2, 1, 2)]
    others = [
        Delivered(event(4)),
        Delivered(event(1, exchange="packing")),  # its retry
        Delivered(event(1, source="mint")),  # another event, of whom chose the same id
        Delivered(message(b"rubbish")),
    ]
    for delivery in (*copies, *others):
        assert not seam.over
        seam.receive(cast("Delivery", delivery))
    await asyncio.sleep(0)
    assert [it.settled for it in copies] == ["acknowledged"] * 3
    assert passed == others
    assert (seam.ignored, seam.over) == (3, True)
    seam.receive(cast("Delivery", again := Delivered(event(1))))
    assert passed[-1] is again, "published once more, after the seam"


async def test_what_is_delivered_again_does_not_bring_the_end_nearer() -> None:
    passed: list[Any] = []
    seam = Seam("events", passed.append)
    seam.add(event(1))
    seam.begin(1)
    for _ in range(5):
        seam.receive(cast("Delivery", Delivered(event(1), redelivered=True)))
        seam.receive(cast("Delivery", Delivered(event(2), redelivered=True)))
    assert (seam.ignored, len(passed), seam.over) == (5, 5, False)
    seam.receive(cast("Delivery", Delivered(event(1))))
    assert (seam.ignored, seam.over) == (6, True)


def test_an_empty_queue_has_no_seam() -> None:
    seam = Seam("events", lambda _: None)
    seam.add(event(1))
    seam.begin(0)
    assert seam.over


@given(
    total=st.integers(1, 40),
    bound=st.integers(0, 40),
    end=st.integers(0, 40),
    chance=st.randoms(use_true_random=False),
)
def test_log_and_queue_together_hand_out_each_event_once(
    total: int, bound: int, end: int, chance: random.Random
) -> None:
    """Published one after the other, and stored in the queue in another order than in the log, within the seam."""
    bound = min(bound, total)
    end = min(max(bound, end), total)
    before = chance.randrange(bound + 1)  # the log's end as it was looked up before
    overtaken = chance.randrange(total - end + 1)
    head, rest = list(range(bound, end + overtaken)), range(end + overtaken, total)
    chance.shuffle(head)
    passed: list[int] = []
    seam = Seam("events", lambda it: passed.append(identity(it.message)[1].int - 1))
    for number in range(before, end):
        seam.add(event(number))

    async def consume() -> None:
        seam.begin(len(head))
        for number in (*head, *rest):
            seam.receive(cast("Delivery", Delivered(event(number))))

    asyncio.run(consume())
    assert Counter(range(end)) + Counter(passed) == Counter(range(total))


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass
class FakeLog:
    """A log of so many messages; some are none of ours."""

    messages: list[Message | None]
    name: str = "events.log"

    async def span(self) -> Span:
        return Span(0, place(len(self.messages)))

    async def read(self, begin: int, *, end: int) -> AsyncGenerator[Entry]:
        for index, it in enumerate(self.messages):
            number = place(index)
            if not begin <= number < end:
                continue
            delivered = Undecodable(number) if it is None else Delivered(_numbered(it, number), number=number)
            yield Entry(cast("Delivery", delivered), "events.handled")
            if number % 7 == 0:
                await asyncio.sleep(0)


def place(index: int) -> int:
    """The number of a message in the log: some are missing, since RabbitMQ needs them itself."""
    return index + index // 10


@dataclass
class Undecodable:
    number: int

    @property
    def message(self) -> Message:
        from broker import Malformed

        raise Malformed("its properties cannot be decoded")


def _numbered(it: Message, number: int) -> Message:
    return Message(it.exchange, it.key, it.body, it.content_type, headers={**it.headers, "x-stream-offset": number})


@dataclass
class World:
    """A service that is killed and started again. What was published is kept."""

    messages: list[Message | None]
    chance: random.Random
    notes: list[Note] = field(default_factory=list)
    dead: list[Message] = field(default_factory=list)
    handled: Counter[int] = field(default_factory=Counter)
    poison: int | None = None
    refusing: float = 0.0
    concurrency: int = 10
    starts: int = 0
    latest: int = -1

    def __post_init__(self) -> None:
        self.note = Note.at(0, seam=place(len(self.messages) // 2))

    async def publish(self, it: Message, *, mandatory: bool, timeout: float) -> None:
        await asyncio.sleep(0)
        if self.chance.random() < self.refusing:
            raise NotConfirmed("no confirm")
        if it.key == "packing.backfill":
            note = Note.of(cast("Delivery", Delivered(it)))
            assert note is not None
            assert note.next >= self.note.next, "it never goes back"
            assert note.begun > self.latest, "a crash now would not be told that it may have begun"
            self.note = note
        else:
            self.dead.append(it)

    async def until_trusted(self, queue: str) -> None: ...

    async def count(self, queue: str) -> int | None:
        return 3

    async def run(self, steps: int | None = None) -> bool:
        """One process, killed after so many handlings; True: it ended by itself."""
        self.starts += 1
        self.latest = -1
        line: asyncio.Queue[Any] = asyncio.Queue()
        left = steps
        killed = asyncio.get_running_loop().create_future()

        def receive(delivery: Delivery) -> None:
            number = delivery.number
            assert number is not None
            assert number < self.note.begun, "a crash now would not be told that it may have begun"
            self.latest = number
            assert number >= self.note.next
            line.put_nowait(delivery)

        async def work() -> None:
            nonlocal left
            while True:
                delivery = await line.get()
                for _ in range(self.chance.randrange(3)):
                    await asyncio.sleep(0)
                if killed.done():
                    return
                if delivery.number == self.poison:
                    killed.set_result(None)
                    return
                self.handled[delivery.number] += 1
                if left is not None:
                    left -= 1
                    if left <= 0:
                        killed.set_result(None)
                        return
                await delivery.ack()

        settings = Settings(concurrency=self.concurrency)
        it = Surroundings(
            "packing",
            settings,
            cast("Transport", self),
            lambda key: key == "parcel.weighed",
            receive,
            logger(settings),
            lambda _: None,
            Seam("events", receive),
        )
        reading = Reading(it, cast("EventLog", FakeLog(self.messages)), self.note, place(len(self.messages)))
        self.reading = reading
        tasks = [asyncio.ensure_future(work()) for _ in range(self.concurrency)]
        tasks.append(asyncio.ensure_future(reading.keep_noting()))
        whole = asyncio.ensure_future(reading.read())
        await asyncio.wait([whole, killed], return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, whole):
            task.cancel()
        ended, *_ = await asyncio.gather(whole, *tasks, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError | type(None)), ended
        return ended is None


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"SETTLING": 0.0, "STORING": 0.0, "NOTE_EVERY": 0.001, "AGAIN": 0.001}.items():
        monkeypatch.setattr(f"broker.backfill.reading.{name}", seconds)


def some(count: int, chance: random.Random) -> list[Message | None]:
    """Events that are wanted, events that are not, handlings, foreign messages."""
    others: list[Callable[[int], Message | None]] = [
        lambda number: message(event(number).body, key="van.broke"),
        lambda number: message(b'{"handlings": []}', exchange="events.handled", key="packing"),
        lambda number: message(b"hello", exchange="", key="events.log"),
        lambda number: None,
    ]
    return [event(it) if chance.random() < 0.6 else chance.choice(others)(it) for it in range(count)]


def wanted(messages: list[Message | None]) -> set[int]:
    """The numbers of those that are subscribed to."""
    return {
        place(index)
        for index, it in enumerate(messages)
        if it is not None and (it.exchange, it.key) == ("events", "parcel.weighed")
    }


@pytest.fixture(params=range(5))
def chance(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.param)


async def test_everything_that_is_subscribed_to_is_handled_once(chance: random.Random) -> None:
    world = World(some(3 * AHEAD, chance), chance)
    assert await world.run()
    assert world.handled == Counter(wanted(world.messages))
    assert (world.note.next, world.note.end, world.note.depth) == (place(3 * AHEAD), place(3 * AHEAD), 3)
    assert world.reading.events == len(world.handled)
    foreign = [it for it in world.messages if it is None or it.exchange == ""]
    assert world.reading.foreign == len(foreign)
    assert world.dead == []


async def test_whenever_it_is_killed_nothing_is_missed(chance: random.Random) -> None:
    world = World(some(2 * AHEAD, chance), chance)
    while not await world.run(chance.randrange(1, AHEAD)):
        assert world.note.next <= min(wanted(world.messages) - set(world.handled), default=place(2 * AHEAD))
    assert set(world.handled) == wanted(world.messages)
    assert world.dead == []
    assert max(world.handled.values()) <= world.starts


async def test_an_event_that_kills_its_process_is_set_aside_alone(chance: random.Random) -> None:
    world = World(some(AHEAD // 2, chance), chance)
    world.poison = chance.choice(sorted(wanted(world.messages)))
    while not await world.run():
        assert world.starts < 2 * DELIVERY_LIMIT
    assert world.starts == DELIVERY_LIMIT + 2, "once among others, and so often alone"
    assert set(world.handled) == wanted(world.messages) - {world.poison}
    (letter,) = world.dead
    assert (letter.exchange, letter.key) == ("packing", dead_queue("packing"))
    assert place(identity(letter)[1].int - 1) == world.poison
    assert letter.headers["broker-key"] == "parcel.weighed"
    assert "each time its process ended" in str(letter.headers["broker-error"])
    assert "x-stream-offset" not in letter.headers


@pytest.mark.parametrize("begun", range(2, 40))
async def test_wherever_it_was_killed_it_goes_on(begun: int) -> None:
    """Numbers that the log leaves out included."""
    world = World([event(number) for number in range(50)], random.Random(begun))
    world.note = world.note.but(next=1, begun=begun)
    async with asyncio.timeout(60):
        assert await world.run()
    assert set(world.handled) == wanted(world.messages) - {0}


async def test_while_rabbitmq_confirms_nothing_it_does_not_run_ahead(chance: random.Random) -> None:
    world = World(some(AHEAD, chance), chance)
    world.refusing = 0.5
    assert await world.run()  # `receive` asserts it
    assert world.handled == Counter(wanted(world.messages))


async def test_one_at_a_time_keeps_the_order(chance: random.Random) -> None:
    world = World(some(300, chance), chance, concurrency=1)
    order: list[int] = []

    class Noting(Counter[int]):
        def __setitem__(self, number: int, times: int) -> None:
            order.append(number)
            super().__setitem__(number, times)

    world.handled = Noting()
    assert await world.run()
    assert order == sorted(wanted(world.messages))


async def test_a_backfill_that_ended_in_the_seam_knows_the_seam() -> None:
    chance = random.Random(1)
    world = World([event(number) for number in range(100)], chance)
    assert await world.run()
    assert world.note.seam == place(50)
    assert await world.run(), "with nothing left to handle"
    assert sum(world.handled.values()) == 100
    assert len(world.reading._it.seam._handled) == 50


# -- how a delivery ends -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def reading(
    it: Message, note: Note | None = None, *, refusing: float = 0.0
) -> AsyncIterator[tuple[World, Reading, list[Any], asyncio.Future[None]]]:
    """A log of one event, read; what is received is the test's to settle."""
    world, settings = World([it], random.Random(0), refusing=refusing), Settings()
    received: list[Any] = []
    surroundings = Surroundings(
        "packing",
        settings,
        cast("Transport", world),
        lambda key: True,
        received.append,
        logger(settings),
        lambda _: None,
        Seam("events", received.append),
    )
    world.note = note or world.note
    made = Reading(surroundings, cast("EventLog", FakeLog(world.messages)), world.note, 1)
    whole, noting = asyncio.ensure_future(made.read()), asyncio.ensure_future(made.keep_noting())
    yield world, made, received, whole
    for task in (whole, noting):
        task.cancel()
    await asyncio.wait([whole, noting])


@pytest.mark.parametrize("body", [b"rubbish", b'{"specversion": "1.0"}'])
async def test_what_is_rejected_is_copied_to_the_dead_letters_with_the_reason(body: bytes) -> None:
    bad = message(body, headers={"tenant": "a"}, type="Parcel Weighed", app_id="scales")
    async with reading(bad) as (world, _, received, whole):
        await until(lambda: received)
        await received[0].reject()
        await whole
    (letter,) = world.dead
    assert (letter.exchange, letter.key, letter.body) == ("packing", "packing.dead", body)
    assert letter.headers["tenant"] == "a"
    assert letter.headers["broker-key"] == "parcel.weighed"
    assert str(letter.headers["broker-error"]).startswith("Malformed: ")


async def test_what_is_given_back_comes_again_and_is_set_aside_in_the_end() -> None:
    async with reading(event(0)) as (world, _, received, whole):
        for _ in range(DELIVERY_LIMIT):
            await until(lambda: received, every=0.001)
            await received.pop().release()
        await whole
    assert "given back" in str(world.dead[0].headers["broker-error"])


async def test_what_is_given_back_when_it_stops_is_not_done() -> None:
    async with reading(event(0)) as (world, made, received, whole):
        await until(lambda: received)
        made.stopping = True
        whole.cancel()
        await received[0].release()
        await made.write(last=True)
        assert (world.note.next, world.note.begun) == (0, 1)
        await asyncio.sleep(0.01)  # the loop keeps the order of its timers, and AGAIN is shorter
        assert len(received) == 1


async def test_cut_off_before_it_could_begin_it_has_nothing_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = counted(monkeypatch, World, "publish")
    async with reading(event(0), Note.at(0, seam=0).but(begun=1), refusing=1.0) as (_, made, received, whole):
        await until(lambda: made.events == 1 and len(refused) > 3, every=0.001)
        whole.cancel()
        await asyncio.wait_for(made.until_idle(), 30)
        assert received == []
        assert made.so_far.next == 0
