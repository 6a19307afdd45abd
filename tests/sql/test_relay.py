"""The relay: from the outbox to RabbitMQ, in order, by one at a time, and never lost."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from broker import Context, Event, NotConfirmed, Service
from broker.errors import AccessRefused
from broker.memory import Memory
from broker.sql import Outgoing, report
from broker.sql import outbox as taking
from broker.sql import relay as relays
from broker.sql.outbox import Taken
from broker.sql.relay import Relay
from broker.sql.tables import outbox
from broker.transport import Message
from tests.parcels import ParcelSent, ParcelWeighed, VanBroke, weighed
from tests.sql.effects import Market, Process, count, counters
from tests.waiting import counted, until

Lines = list[dict[str, Any]]


class LetterWritten(Event, name="Letter Written", key="letter.written", subject="reader"):
    """One of many to a reader."""

    reader: str
    number: int
    text: str = ""


class Wire:
    """What was published in memory, by whom; and what goes wrong on the way."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.sent: list[tuple[Memory, Message]] = []
        self.failing: dict[str, Exception] = {}
        self.held: dict[str, asyncio.Event] = {}
        self.holding: list[Message] = []
        publish = Memory.publish

        async def publishing(transport: Memory, message: Message, *, mandatory: bool, timeout: float) -> None:
            for word, error in self.failing.items():
                if word.encode() in message.body:
                    raise error
            for word, go in self.held.items():
                if word.encode() in message.body:
                    self.holding.append(message)
                    await go.wait()
            self.sent.append((transport, message))
            await publish(transport, message, mandatory=mandatory, timeout=timeout)

        patch.setattr(Memory, "publish", publishing)

    def letters(self, by: Process | None = None) -> dict[str, list[int]]:
        """The numbers each reader got, in order."""
        found: dict[str, list[int]] = defaultdict(list)
        for transport, message in self.sent:
            if message.key == "letter.written" and (by is None or by.transport is transport):
                data = json.loads(message.body)["data"]
                found[data["reader"]].append(data["number"])
        return found


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    return Wire(monkeypatch)


async def add(database: AsyncEngine, events: Iterable[Event]) -> None:
    """A web application's transaction."""
    async with AsyncSession(database) as session, session.begin():
        session.add_all(Outgoing(event, source="web") for event in events)


def relay(url: Any, name: str = "relay") -> Service:
    return Service(name, database=url)


async def empty(database: AsyncEngine) -> bool:
    return await count(database, outbox) == 0


async def test_events_are_published_as_they_were_added(
    database_url: str, database: AsyncEngine, market: Market, wire: Wire
) -> None:
    event, story = weighed(7), uuid4()
    async with AsyncSession(database) as session, session.begin():
        session.add(Outgoing(event, source="web", correlation_id=story))
    async with market.process(relay(database_url)):
        await until(lambda: empty(database))
    ((_, sent),) = wire.sent
    body = json.loads(sent.body)
    assert (sent.key, sent.type, sent.app_id, sent.correlation_id) == (
        "parcel.weighed",
        "Parcel Weighed",
        "web",
        str(story),
    )
    assert (body["source"], body["subject"], body["correlationid"]) == ("web", str(event.parcel_id), str(story))
    assert ParcelWeighed.model_validate(body["data"]) == event
    assert sent.timestamp is not None
    assert sent.timestamp.tzinfo is not None


async def test_two_relays_on_postgresql_share_the_work_and_keep_each_subjects_order(
    postgresql_url: str, database: AsyncEngine, market: Market, wire: Wire
) -> None:
    readers, each = 40, 50
    for start in range(0, each, 10):
        await add(
            database,
            (LetterWritten(reader=f"r{n}", number=k) for k in range(start, start + 10) for n in range(readers)),
        )
    one, other = market.process(relay(postgresql_url, "one")), market.process(relay(postgresql_url, "other"))
    async with one as first, other as second:
        await until(lambda: empty(database))
    letters = wire.letters()
    assert len(letters) == readers
    assert all(numbers == list(range(each)) for numbers in letters.values())
    assert wire.letters(by=first)
    assert wire.letters(by=second)


async def test_of_two_relays_on_sqlite_one_works_and_the_other_takes_over(
    sqlite_url: str, database: AsyncEngine, market: Market, wire: Wire
) -> None:
    async with market.process(relay(sqlite_url, "other")) as second:
        async with market.process(relay(sqlite_url, "one")) as first:
            for number in range(3):
                await add(database, [LetterWritten(reader="a", number=number)])
                await until(lambda: empty(database))
            workers = {transport for transport, _ in wire.sent}
            assert len(workers) == 1
            assert workers <= {first.transport, second.transport}
        await add(database, [LetterWritten(reader="a", number=3)])
        await until(lambda: empty(database))
    assert wire.letters()["a"] == [0, 1, 2, 3]


async def test_of_two_services_with_one_engine_one_relays(
    sqlite_url: str, database: AsyncEngine, market: Market, wire: Wire
) -> None:
    one, other = market.process(relay(database, "one")), market.process(relay(database, "other"))
    async with one, other:
        await add(database, (LetterWritten(reader="a", number=number) for number in range(50)))
        await until(lambda: empty(database))
    assert wire.letters()["a"] == list(range(50))


HOLDER = """
import asyncio, sys
from broker.sql.database import open_store
from broker.sql.outbox import SqliteOutbox

async def main():
    async with open_store(sys.argv[1], timeout=5) as store:
        outbox = SqliteOutbox(store)
        async with outbox.take([]):
            assert outbox._lock is not None
            print("holding", flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_when_the_process_that_relays_on_sqlite_is_killed_another_takes_over(
    sqlite_url: str, database: AsyncEngine, market: Market, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = counted(monkeypatch, Relay, "_round")
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, sqlite_url, stdout=asyncio.subprocess.PIPE
    )
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"holding\n"
    async with market.process(relay(sqlite_url)) as process:
        await add(database, [LetterWritten(reader="a", number=0)])
        looked.clear()
        await until(lambda: len(looked) > 3)
        assert wire.sent == []
        assert process.problems() == []
        holder.send_signal(signal.SIGKILL)
        await holder.communicate()
        await until(lambda: empty(database))
    assert wire.letters() == {"a": [0]}


async def test_a_subjects_later_events_wait_for_an_earlier_one_and_others_go_on(
    database_url: str, database: AsyncEngine, market: Market, wire: Wire, lines: Lines
) -> None:
    wire.failing["stuck"] = NotConfirmed("no answer")
    await add(database, [LetterWritten(reader="a", number=0, text="stuck"), LetterWritten(reader="a", number=1)])
    await add(database, (LetterWritten(reader="b", number=number) for number in range(5)))
    async with market.process(relay(database_url)) as process:
        await until(lambda: len(wire.letters()["b"]) == 5)
        await until(lambda: any("cannot be published: no answer" in problem for problem in process.problems()))
        assert "a" not in wire.letters()
        await add(database, [LetterWritten(reader="a", number=2), LetterWritten(reader="b", number=5)])
        await until(lambda: len(wire.letters()["b"]) == 6)
        wire.failing.clear()
        await until(lambda: empty(database))
        await until(lambda: process.problems() == [])
    assert wire.letters() == {"a": [0, 1, 2], "b": [0, 1, 2, 3, 4, 5]}
    assert [line["event"] for line in lines if line["event"].startswith("relay ")] == ["relay waits", "relay goes on"]


async def test_events_of_one_subject_from_two_processes_are_published_in_the_order_of_their_commits(
    database_url: str, database: AsyncEngine, market: Market, wire: Wire
) -> None:
    """Each handler counts on from what it finds, and tells the number: any disorder would show."""
    async with database.begin() as connection:
        await connection.execute(counters.insert().values(name="letters", value=0))

    def letters() -> Service:
        service = Service("letters", database=database_url)

        @service.on(ParcelWeighed)
        async def write(event: ParcelWeighed, context: Context) -> LetterWritten:
            step = update(counters).where(counters.c.name == "letters").values(value=counters.c.value + 1)
            number = (await context.transaction.execute(step.returning(counters.c.value))).scalar_one()
            await asyncio.sleep(0)
            return LetterWritten(reader="a", number=number)

        return service

    async with market.process(letters(), concurrency=4) as one, market.process(letters(), concurrency=4) as other:
        for number in range(60):
            await market.outside.publish(weighed(number))
        await until(lambda: len(wire.letters()["a"]) == 60, timeout=60)
        assert one.problems() == other.problems() == []
    assert wire.letters()["a"] == list(range(1, 61))


async def test_many_stuck_events_of_one_subject_do_not_starve_another(
    database_url: str, database: AsyncEngine, market: Market, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a relay takes at a time."""
    wire.failing["stuck"] = NotConfirmed("no answer")
    await add(database, (LetterWritten(reader="a", number=number, text="stuck") for number in range(1100)))
    await add(database, (LetterWritten(reader=reader, number=0) for reader in "bcdefgh"))
    async with market.process(relay(database_url)):
        await until(lambda: len(wire.letters()) == 7)


async def test_a_row_of_somebody_elses_that_amqp_has_no_room_for_is_set_aside(
    database_url: str, database: AsyncEngine, market: Market, wire: Wire
) -> None:
    async with database.begin() as connection:
        letter = Outgoing(LetterWritten(reader="a", number=0), source="web")
        row = {it.name: getattr(letter, it.name) for it in outbox.c if it.name != "id"}
        await connection.execute(outbox.insert().values(row | {"key": "k" * 256}))
    await add(database, [LetterWritten(reader="b", number=0)])
    async with market.process(relay(database_url)):
        found = await until(lambda: _set_aside(database_url))
        await until(lambda: wire.letters()["b"] == [0])
    assert found.shown[0].reason == "ContractError: its key has 256 bytes; 255 is the most"


def refused() -> AccessRefused:
    error = AccessRefused("may not write to it")
    error.of_key = True
    return error


@pytest.mark.parametrize("error", [refused(), None], ids=["refused", "too large"])
async def test_what_can_never_be_published_is_set_aside_and_blocks_nobody(
    database_url: str, database: AsyncEngine, wire: Wire, lines: Lines, error: Exception | None
) -> None:
    bad = LetterWritten(reader="a", number=0, text="wrong" if error else "x" * 3000)
    if error is not None:
        wire.failing["wrong"] = error  # a word that stands in no id
    await add(database, [bad, LetterWritten(reader="a", number=1), LetterWritten(reader="b", number=0)])
    async with Market() as market, market.process(relay(database_url), max_message_bytes=1024) as process:
        await until(lambda: len(wire.letters()["a"]) == 1 and wire.letters()["b"])
        found = await until(lambda: _set_aside(database_url))
        assert (found.waiting, found.set_aside, found.version) == (0, 1, 1)
        (shown,) = found.shown
        reason = "AccessRefused: may not write to it" if error else "TooLarge: "
        assert (shown.name, shown.source) == ("Letter Written", "web")
        assert shown.reason.startswith(reason)
        assert process.problems() == []
    (line,) = [line for line in lines if line["event"] == "set aside"]
    assert line["log_level"] == "error"
    wire.failing.clear()
    assert await report.try_again(database_url, timeout=5) == 1
    async with Market() as market, market.process(relay(database_url)):
        await until(lambda: empty(database))
    assert wire.letters()["a"] == [1, 0]


async def test_a_right_to_the_exchange_that_is_missing_is_waited_for(
    database_url: str, database: AsyncEngine, market: Market, wire: Wire
) -> None:
    """It concerns all events, and is granted in a moment: each subject keeps its order."""
    wire.failing["Letter"] = AccessRefused("write access to exchange 'events' refused")
    await add(database, [LetterWritten(reader="a", number=number) for number in range(3)])
    async with market.process(relay(database_url)) as process:
        await until(lambda: any("write access to exchange" in problem for problem in process.problems()))
        wire.failing.clear()
        await until(lambda: empty(database))
        await until(lambda: process.problems() == [])
    assert wire.letters()["a"] == [0, 1, 2]
    assert await _set_aside(database_url) is None


@pytest.mark.parametrize("wrong", ["a folder", "somebody else's"])
async def test_a_lock_that_cannot_be_taken_is_named(
    sqlite_url: str, market: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    if wrong == "a folder":
        (tmp_path / "service.db-relay").mkdir()
    else:
        monkeypatch.setattr("os.access", lambda *_: False)  # whoever runs the tests may write everything
    async with market.process(relay(sqlite_url)) as process:
        await until(lambda: any("service.db-relay, cannot be taken" in problem for problem in process.problems()))


async def _set_aside(url: str) -> report.Report | None:
    found = await report.look(url, timeout=5)
    return found if found.set_aside else None


async def test_a_relay_takes_no_more_than_so_many_bytes_and_rows_at_a_time(
    database_url: str, database: AsyncEngine, market: Market, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[tuple[int, int]] = []
    conclude = Taken.conclude

    async def concluding(self: Taken, *arguments: Any) -> None:
        batches.append((len(self.rows), sum(row.size for row in self.rows)))
        await conclude(self, *arguments)

    monkeypatch.setattr(Taken, "conclude", concluding)
    large = taking.BYTES_AT_ONCE // 3
    await add(database, (LetterWritten(reader="a", number=number, text="x" * large) for number in range(5)))
    await add(database, [LetterWritten(reader="a", number=5, text="x" * (taking.BYTES_AT_ONCE + 1))])
    await add(database, (LetterWritten(reader="a", number=number) for number in range(6, 1200)))
    async with market.process(relay(database_url)):
        await until(lambda: empty(database))
    assert wire.letters()["a"] == list(range(1200))
    assert all(rows <= taking.AT_ONCE for rows, _ in batches)
    assert all(size <= taking.BYTES_AT_ONCE or rows == 1 for rows, size in batches)
    assert len(batches) >= 4


async def test_nothing_is_lost_while_rabbitmq_confirms_nothing(
    database_url: str, database: AsyncEngine, market: Market, wire: Wire
) -> None:
    wire.failing['"specversion"'] = NotConfirmed("no answer within 10 s")
    await add(database, [weighed(), VanBroke(van="7")])
    async with market.process(relay(database_url)) as process:
        await until(lambda: any("no answer within 10 s" in problem for problem in process.problems()))
        assert not await empty(database)
        wire.failing.clear()
        await until(lambda: empty(database))
        await until(lambda: process.problems() == [])
    assert len(wire.sent) == 2


async def test_a_service_may_leave_the_relay_to_another(
    database_url: str, database: AsyncEngine, market: Market, wire: Wire
) -> None:
    await add(database, [weighed()])
    async with market.process(relay(database_url), relay=False):
        pass
    assert wire.sent == []
    assert not await empty(database)
    async with market.process(relay(database_url)):
        pass
    assert await empty(database), "one that has a relay publishes what is left before it ends"


async def test_postgresql_wakes_the_relay_long_before_it_would_look(
    postgresql_url: str, database: AsyncEngine, market: Market, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.sql.relay.POLL", {"postgresql": 600.0})
    async with market.process(relay(postgresql_url)):
        for number in range(3):
            await add(database, [LetterWritten(reader="a", number=number)])
            await until(lambda: empty(database))


async def test_what_is_added_while_its_subject_is_being_published_is_not_left_until_the_relay_would_look(
    postgresql_url: str, database: AsyncEngine, market: Market, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.sql.relay.POLL", {"postgresql": 600.0})
    wire.held["first"] = asyncio.Event()
    rounds = counted(monkeypatch, Relay, "_round")
    async with market.process(relay(postgresql_url)):
        await add(database, [LetterWritten(reader="a", number=1, text="first")])
        await until(lambda: wire.holding)
        before = len(rounds)
        await add(database, [LetterWritten(reader="a", number=2)])
        await until(lambda: len(rounds) > before)  # the other hand is woken, and finds the subject taken
        wire.held["first"].set()
        await until(lambda: empty(database))
    assert wire.letters() == {"a": [1, 2]}


async def test_on_sqlite_whoever_commits_in_the_process_wakes_the_relay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wire: Wire, market: Market
) -> None:
    monkeypatch.setattr("broker.sql.relay.POLL", {"sqlite": 60.0})
    url = f"sqlite+aiosqlite:///{tmp_path / 'woken.db'}"
    database, plain = create_async_engine(url), create_engine(f"sqlite:///{tmp_path / 'woken.db'}")

    def in_a_thread() -> None:
        with Session(plain) as session, session.begin():
            session.add(Outgoing(weighed(2), source="web"))

    service = Service("packing", database=url)

    @service.on(VanBroke)
    async def replace(event: VanBroke, context: Context) -> ParcelSent:
        context.transaction.add(Outgoing(weighed(4), source="web"))
        return ParcelSent(parcel_id=uuid4())

    async with market.process(service):
        async with AsyncSession(database) as session, session.begin():
            session.add(Outgoing(weighed(1), source="web"))
        await until(lambda: len(wire.sent) == 1)
        await asyncio.to_thread(in_a_thread)
        await until(lambda: len(wire.sent) == 2)
        async with AsyncSession(database) as session:
            session.add(Outgoing(weighed(3), source="web"))
            await session.flush()
            await session.rollback()
        async with AsyncSession(database) as session, session.begin():
            session.add(Outgoing(VanBroke(van="green"), source="web"))
        await until(lambda: len(wire.sent) == 5)
    plain.dispose()
    await database.dispose()


async def test_listening_takes_no_connection_of_the_pool(
    postgresql_url: str, database: AsyncEngine, market: Market, wire: Wire
) -> None:
    engine = create_async_engine(postgresql_url, pool_size=1, max_overflow=0, pool_timeout=5)
    async with market.process(relay(engine)):
        await add(database, [weighed()])
        await until(lambda: empty(database))
    await engine.dispose()


async def test_a_relay_that_is_not_woken_says_so_once_and_finds_what_waits(
    postgresql_url: str, database: AsyncEngine, market: Market, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0

    async def listen(self: taking.PostgresOutbox, wake: object) -> None:
        nonlocal tried
        tried += 1
        raise RuntimeError("no such channel")

    monkeypatch.setattr(taking.PostgresOutbox, "listen", listen)
    monkeypatch.setattr(relays, "LISTEN_AGAIN", 0.01)
    async with market.process(relay(postgresql_url)):
        await until(lambda: tried > 3)
        await add(database, [weighed()])
        await until(lambda: empty(database))
    told = [line for line in lines if line["event"] == "relay is not woken"]
    assert [line["error"] for line in told] == ["no such channel"]


async def test_events_of_one_transaction_keep_their_order(
    database_url: str, database: AsyncEngine, market: Market, wire: Wire
) -> None:
    parcel = uuid4()
    async with AsyncSession(database) as session, session.begin():
        session.add(Outgoing(ParcelWeighed(parcel_id=parcel), source="web"))
        session.add(Outgoing(ParcelSent(parcel_id=parcel), source="web"))
    async with AsyncSession(database) as session:
        keys = (await session.scalars(select(outbox.c.key).order_by(outbox.c.id))).all()
    assert list(keys) == ["parcel.weighed", "parcel.sent"]
    async with market.process(relay(database_url)):
        await until(lambda: empty(database))
    assert [message.key for _, message in wire.sent] == ["parcel.weighed", "parcel.sent"]


def test_the_lock_stands_beside_the_file(sqlite_url: str, tmp_path: Path) -> None:
    """People see what it is for."""
    from sqlalchemy.engine import make_url

    from broker.sql.database import name_of

    assert f"{name_of(make_url(sqlite_url))}-relay" == str(tmp_path / "service.db-relay")
    link = tmp_path / "current.db"
    link.symlink_to(tmp_path / "service.db")
    assert name_of(make_url(f"sqlite+aiosqlite:///{link}")) == str(tmp_path / "service.db"), "two names, one lock"
