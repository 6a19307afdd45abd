"""The database goes away and comes back: deliveries wait, nothing goes down the ladder, and people are told."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event as events
from sqlalchemy import select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from broker import Context, Service
from broker.sql.database import Meaning, make_engine, meaning_of
from broker.sql.inbox import _pause
from tests.acceptance.running import ROOT
from tests.parcels import ParcelSent, ParcelWeighed, weighed
from tests.sql.effects import Market, Process, effects, note, packing, stored
from tests.waiting import until

GUIDE = ROOT / "docs" / "exactly-once.md"

Lines = list[dict[str, Any]]


class Gate:
    """A way to PostgreSQL's socket that can be closed: open connections are cut, new ones refused."""

    def __init__(self, target: str, path: Path) -> None:
        self._target, self._path = target, path
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self._path.unlink(missing_ok=True)
        for writer in list(self._open):
            writer.transport.abort()
        await until(lambda: not self._open)

    def url(self, url: str) -> str:
        """The same database, through the gate."""
        host = {"host": str(self._path.parent)}
        return make_url(url).update_query_dict(host).render_as_string(hide_password=False)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self._target)
        both = {writer, far_writer}
        self._open |= both
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on(reader, far_writer))
                group.create_task(self._pass_on(far_reader, writer))
        finally:
            for each in both:
                each.transport.abort()
            self._open -= both

    @staticmethod
    async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()


@pytest.fixture
async def gate(postgresql_url: str, tmp_path: Path) -> AsyncIterator[Gate]:
    host = make_url(postgresql_url).query["host"]
    made = Gate(f"{host}/.s.PGSQL.5432", tmp_path / ".s.PGSQL.5432")
    await made.open()
    yield made
    await made.close()


def told(lines: Lines) -> list[str]:
    return [line["event"] for line in lines if line["event"].startswith("database ")]


async def handled(market: Market) -> None:
    await until(lambda: market.waiting("packing") == 0)


async def one_outage(market: Market, process: Process, lines: Lines) -> None:
    """With the database away: a delivery waits, health says so, and it is told once."""
    await until(lambda: any("cannot be used" in problem for problem in process.problems()))
    await market.outside.publish(weighed(2))
    for _ in range(5):
        await asyncio.sleep(0.05)  # several tries
    assert market.waiting("packing") >= 1
    assert market.on_the_ladder("packing") == 0
    assert told(lines) == ["database away"]


async def test_postgresql_cannot_be_reached_for_a_while(
    postgresql_url: str, database: AsyncEngine, market: Market, gate: Gate, lines: Lines
) -> None:
    async with market.process(packing(gate.url(postgresql_url))) as process:
        await market.outside.publish(weighed(1))
        await handled(market)
        await gate.close()
        await market.outside.publish(weighed(1))
        await one_outage(market, process, lines)
        await gate.open()
        await handled(market)
        await until(lambda: process.problems() == [])
        await until(lambda: _is(database, (3, 3, 0)))
    assert told(lines) == ["database away", "database back"]
    assert market.on_the_ladder("packing") == 0


@pytest.mark.full
async def test_half_a_minute_without_postgresql_is_waited_for(
    postgresql_url: str, database: AsyncEngine, market: Market, gate: Gate, lines: Lines
) -> None:
    parcels, every = [weighed(number) for number in range(1, 161)], 0.25
    before, meanwhile, after = parcels[:20], parcels[20:140], parcels[140:]
    assert len(meanwhile) * every == 30
    async with market.process(packing(gate.url(postgresql_url))) as process:
        for parcel in before:
            await market.outside.publish(parcel)
            await asyncio.sleep(every)
        await handled(market)

        await gate.close()
        for number, parcel in enumerate(meanwhile, 1):
            await market.outside.publish(parcel)
            await asyncio.sleep(every)
            await until(lambda: any("cannot be used" in problem for problem in process.problems()))
            assert market.waiting("packing") == number
            assert market.on_the_ladder("packing") == 0
        assert told(lines) == ["database away"]

        await gate.open()
        for parcel in after:
            await market.outside.publish(parcel)
            await asyncio.sleep(every)
        await handled(market)
        await until(lambda: process.problems() == [])
        await until(lambda: _is(database, (len(parcels), len(parcels), 0)))
    assert told(lines) == ["database away", "database back"]
    assert market.on_the_ladder("packing") == 0
    async with database.connect() as connection:
        packed = (await connection.execute(select(effects.c.parcel_id))).scalars().all()
    assert sorted(packed) == sorted(parcel.parcel_id for parcel in parcels)


async def test_a_backend_that_is_terminated_while_a_handler_runs_costs_nothing(
    postgresql_url: str, database: AsyncEngine, market: Market
) -> None:
    service, calls, go = Service("packing", database=postgresql_url), [], asyncio.Event()

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> ParcelSent:
        calls.append(event)
        await note(event, context)
        if len(calls) == 1:
            await go.wait()
            await context.transaction.execute(text("SELECT 1"))
        return ParcelSent(parcel_id=event.parcel_id)

    async with market.process(service) as process:
        await market.outside.publish(weighed())
        await until(lambda: calls)
        async with database.begin() as connection:
            await connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        go.set()
        await handled(market)
        await until(lambda: process.problems() == [])
        await until(lambda: _is(database, (1, 1, 0)))
        await market.outside.publish(weighed())
        await until(lambda: _is(database, (2, 2, 0)))
    assert len(calls) == 3
    assert market.on_the_ladder("packing") == 0


async def _is(database: AsyncEngine, wanted: tuple[int, int, int]) -> bool:
    return await stored(database) == wanted


@asynccontextmanager
async def breakable(url: str) -> AsyncIterator[tuple[AsyncEngine, list[sqlite3.Error]]]:
    """An engine whose every statement fails with what is in the list, if anything is."""
    engine, failing = make_engine(make_url(url), 10), list[sqlite3.Error]()

    @events.listens_for(engine.sync_engine, "do_execute")
    def fail(*_: object) -> None:
        if failing:
            raise failing[0]

    @events.listens_for(engine.sync_engine, "connect")
    def fail_directly(connection: Any, _: object) -> None:
        """Our own statements go past SQLAlchemy."""
        driver = connection.driver_connection
        make = driver.execute_fetchall

        def made(*arguments: object) -> object:
            fail()
            return make(*arguments)

        driver.execute_fetchall = made

    yield engine, failing
    await engine.dispose()


def failure(name: str) -> sqlite3.Error:
    error = sqlite3.OperationalError(name)
    error.sqlite_errorcode = getattr(sqlite3, name)
    error.sqlite_errorname = name
    return error


@pytest.mark.parametrize(
    "name", ["SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_READONLY", "SQLITE_IOERR_WRITE"]
)
async def test_sqlite_cannot_be_used_for_a_while(
    sqlite_url: str, database: AsyncEngine, market: Market, lines: Lines, name: str
) -> None:
    async with breakable(sqlite_url) as (engine, failing), market.process(packing(engine)) as process:
        failing.append(failure(name))
        await market.outside.publish(weighed(1))
        await one_outage(market, process, lines)
        assert any(name in problem for problem in process.problems())
        failing.clear()
        await handled(market)
        await until(lambda: process.problems() == [])
        await until(lambda: _is(database, (2, 2, 0)))
    assert told(lines) == ["database away", "database back"]
    assert market.on_the_ladder("packing") == 0


@pytest.mark.parametrize("name", ["SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR"])
async def test_before_a_handler_is_called_nothing_is_its_failure(
    sqlite_url: str, database: AsyncEngine, market: Market, lines: Lines, name: str
) -> None:
    """A table is missing, a login refused: every event would go to the dead letters, one after the other."""
    async with breakable(sqlite_url) as (engine, failing), market.process(packing(engine)) as process:
        failing.append(failure(name))
        await market.outside.publish(weighed(1))
        await one_outage(market, process, lines)
        failing.clear()
        await handled(market)
        await until(lambda: _is(database, (2, 2, 0)))
    assert market.on_the_ladder("packing") == 0


async def test_a_database_that_keeps_silent_is_told(
    postgresql_url: str, database: AsyncEngine, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is frozen, or behind a network that loses everything: nothing fails, nothing comes."""
    monkeypatch.setattr("broker.sql.database.SILENT", 0.2)
    async with market.process(packing(postgresql_url)) as process:
        async with database.begin() as connection:
            await connection.execute(text("LOCK TABLE broker_inbox IN ACCESS EXCLUSIVE MODE"))
            await market.outside.publish(weighed(1))
            await until(lambda: any("no answer from it" in problem for problem in process.problems()))
        await handled(market)
        await until(lambda: process.problems() == [])


async def test_with_the_documented_rights_a_service_works_and_with_fewer_nothing_is_the_handlers_failure(
    postgresql_url: str, database: AsyncEngine, market: Market, postgres: Any
) -> None:
    postgres.psql("CREATE ROLE packer LOGIN" if "packer" not in postgres.psql("SELECT rolname FROM pg_roles") else "")
    async with database.begin() as connection:
        for right in re.findall(r"^(GRANT .*) TO packing;$", GUIDE.read_text(), re.MULTILINE):
            await connection.execute(text(f"{right} TO packer"))
        await connection.execute(text("GRANT ALL ON effects, counters TO packer"))
        await connection.execute(text("GRANT USAGE ON SEQUENCE effects_id_seq TO packer"))
        await connection.execute(text("REVOKE INSERT ON broker_inbox FROM packer"))
    url = make_url(postgresql_url).set(username="packer").render_as_string(hide_password=False)
    async with market.process(packing(url)) as process:
        await market.outside.publish(weighed(1))
        await until(lambda: any("permission denied for table broker_inbox" in it for it in process.problems()))
        async with database.begin() as connection:
            await connection.execute(text("GRANT INSERT ON broker_inbox TO packer"))
        await handled(market)
        await until(lambda: process.problems() == [])
        await until(lambda: _is(database, (1, 1, 0)))
    assert market.on_the_ladder("packing") == 0


async def test_the_data_of_an_event_stand_in_no_error(
    database_url: str, database: AsyncEngine, market: Market, lines: Lines
) -> None:
    service = Service("packing", database=database_url)

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        await context.transaction.execute(text("INSERT INTO nowhere VALUES (:card)"), {"card": "4111-SECRET"})

    async with market.process(service):
        await market.outside.publish(weighed(1))
        await until(lambda: [line for line in lines if "nowhere" in str(line.get("error"))])
    assert "4111-SECRET" not in str(lines)


async def test_a_full_disk_is_waited_for(sqlite_url: str, database: AsyncEngine, market: Market, lines: Lines) -> None:
    engine, most = make_engine(make_url(sqlite_url), 2), [0]

    @events.listens_for(engine.sync_engine, "checkout")
    def limit(connection: Any, *_: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA max_page_count = {most[0] or 2**30}")
        cursor.close()

    service = Service("packing", database=engine)

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        await context.transaction.execute(
            text("INSERT INTO counters (name, value) VALUES (:name, zeroblob(100000))"), {"name": str(event.parcel_id)}
        )

    async with database.connect() as connection:
        most[0] = (await connection.execute(text("PRAGMA page_count"))).scalar_one()
    async with market.process(service) as process:
        await market.outside.publish(weighed(1))
        await one_outage(market, process, lines)
        assert any("full" in problem for problem in process.problems())
        most[0] = 0
        await handled(market)
        await until(lambda: process.problems() == [])
    assert (await stored(database))[1] == 2
    assert market.on_the_ladder("packing") == 0
    await engine.dispose()


async def test_the_database_is_back_although_the_next_handler_fails(
    sqlite_url: str, market: Market, lines: Lines
) -> None:
    async with breakable(sqlite_url) as (engine, failing):
        service = Service("packing", database=engine)

        @service.on(ParcelWeighed)
        async def pack(event: ParcelWeighed, context: Context) -> None:
            raise ValueError("no tape")

        async with market.process(service) as process:
            failing.append(failure("SQLITE_IOERR"))
            await market.outside.publish(weighed())
            await until(lambda: "database away" in told(lines))
            failing.clear()
            await until(lambda: market.on_the_ladder("packing") == 1)
            await until(lambda: process.problems() == [])
    assert told(lines) == ["database away", "database back"]


async def test_a_service_stops_while_its_database_is_away(sqlite_url: str, market: Market, lines: Lines) -> None:
    async with breakable(sqlite_url) as (engine, failing):
        async with market.process(packing(engine), shutdown_timeout=0.1):
            failing.append(failure("SQLITE_IOERR"))
            await market.outside.publish(weighed())
            await until(lambda: "database away" in told(lines))
        assert market.waiting("packing") == 1, "it is given back"
    assert market.on_the_ladder("packing") == 0


async def test_a_user_whose_pool_is_exhausted_waits(sqlite_url: str, database: AsyncEngine, market: Market) -> None:
    engine = create_async_engine(sqlite_url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    service, go = packing(engine), asyncio.Event()

    @service.around
    async def slowly(context: Context, handle: Any) -> None:
        await go.wait()
        await handle()

    async with market.process(service):
        for _ in range(5):
            await market.outside.publish(weighed())
        await asyncio.sleep(0.2)
        go.set()
        await handled(market)
        await until(lambda: _is(database, (5, 5, 0)))
    assert market.on_the_ladder("packing") == 0
    await engine.dispose()


@pytest.mark.parametrize("tries", [1, 20, 1024, 100_000])
def test_pauses_stay_short_however_long_it_is_away(tries: int) -> None:
    assert 0 <= _pause(tries, 0.1, 2) <= 2


@pytest.mark.parametrize(
    ("state", "meaning"),
    [
        ("40001", Meaning.OVERTAKEN),
        ("40P01", Meaning.OVERTAKEN),
        ("55P03", Meaning.OVERTAKEN),
        ("23505", Meaning.COLLIDED),
        ("53100", Meaning.AWAY),  # disk full
        ("53300", Meaning.AWAY),
        ("57P01", Meaning.AWAY),
        ("58030", Meaning.AWAY),
        ("25006", Meaning.AWAY),  # a standby
        ("08006", Meaning.AWAY),
        ("42P01", Meaning.FAILED),
        ("22001", Meaning.FAILED),
    ],
)
def test_what_postgresql_says_means(state: str, meaning: Meaning) -> None:
    class Refusal(Exception):
        sqlstate = state

    assert meaning_of(DBAPIError("INSERT", {}, Refusal())) is meaning
