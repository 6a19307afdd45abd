"""How services open their databases: what they may rely on, and how it fails."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import ClassVar

import pytest
from sqlalchemy import Connection, Engine, event, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from broker import DatabaseUnusable
from broker.sql.inbox import SqlTransactions
from broker.sql.tables import outbox
from broker.testing import Harness
from services import packing
from services.contracts import OrderPacked
from services.contracts.storage import Database, Hundredths, UtcDateTime, open_database, prepared
from tests.services import making
from tests.waiting import counted, until


class Base(DeclarativeBase):
    type_annotation_map: ClassVar = {datetime: UtcDateTime, Decimal: Hundredths}


class Row(Base):
    __tablename__ = "rows"

    id: Mapped[int] = mapped_column(primary_key=True)
    counter: Mapped[int] = mapped_column(default=0)
    at: Mapped[datetime | None]
    amount: Mapped[Decimal | None]


def sqlite(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return sqlite(tmp_path / "a.db")
    create: Callable[[], str] = request.getfixturevalue("postgres_url")
    return create()


async def test_the_folder_is_created_and_what_is_stored_is_there_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "yet.db"
    async with open_database(sqlite(path), Base.metadata) as database, database.write() as session:
        session.add(Row(id=1, counter=7))
    async with open_database(sqlite(path), Base.metadata) as database, database.read() as session:
        row = await session.get_one(Row, 1)
        assert row.counter == 7


async def test_times_come_back_in_utc_and_amounts_exact(url: str) -> None:
    at = datetime(2025, 6, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    async with open_database(url, Base.metadata) as database:
        async with database.write() as session:
            session.add_all([Row(id=1, at=at, amount=Decimal("0.10")), Row(id=2, amount=Decimal("9999999999.99"))])
        async with database.read() as session:
            row = await session.get_one(Row, 1)
            total = await session.scalar(select(func.sum(Row.amount)))
    assert (row.at, row.at and row.at.tzinfo) == (at, UTC)
    assert total == Decimal("10000000000.09")


async def test_two_writers_wait_for_each_other(url: str) -> None:
    """A command and the service's process: what one has read, the other cannot have changed when it writes."""

    async def count(database: Database) -> None:
        async with database.write() as session:
            row = await session.get_one(Row, 1, with_for_update=True)
            await asyncio.sleep(0)
            row.counter += 1

    async with open_database(url, Base.metadata) as one, open_database(url, Base.metadata) as two:
        async with one.write() as session:
            session.add(Row(id=1, counter=0))
        await asyncio.gather(*(count(database) for database in [one, two] * 25))
        async with two.read() as session:
            assert (await session.get_one(Row, 1)).counter == 50


async def test_a_reader_does_not_wait_for_a_writer(url: str) -> None:
    async with (
        open_database(url, Base.metadata) as one,
        open_database(url, Base.metadata) as two,
        one.write() as writing,
    ):
        writing.add(Row(id=1))
        await writing.flush()
        async with asyncio.timeout(30), two.read() as reading:
            assert await reading.get(Row, 1) is None


async def test_many_may_start_at_once_on_an_empty_database(url: str) -> None:
    async def start() -> None:
        async with open_database(url, Base.metadata) as database, database.read() as session:
            assert (await session.scalars(select(outbox))).all() == []
            assert (await session.scalars(select(Row))).all() == []

    starts = [prepared(url, Base.metadata) for _ in range(5)]
    await asyncio.gather(*(start() for _ in range(5)), *starts)


@pytest.mark.parametrize("where", ["a file/shop.db", "/proc/shop.db"])
async def test_a_folder_that_cannot_be_written_is_named_with_the_cause(tmp_path: Path, where: str) -> None:
    (tmp_path / "a file").touch()
    path = tmp_path / where
    with pytest.raises(DatabaseUnusable, match=r"shop\.db cannot be used: .*(unable to open|File exists)") as raised:
        async with open_database(sqlite(path), Base.metadata):
            pass
    assert str(path) in str(raised.value)


async def test_a_table_that_cannot_be_created_is_said(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.executescript("CREATE TABLE other (id); CREATE INDEX rows ON other (id)")
    with pytest.raises(DatabaseUnusable, match=r"a\.db cannot be used: there is already an index named rows"):
        async with open_database(sqlite(tmp_path / "a.db"), Base.metadata):
            pass


class Disk:
    """A disk on which a SQLite file may grow to so many pages."""

    def __init__(self) -> None:
        self.pages = 1_000_000

    def begin(self, connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {self.pages}")


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    event.listen(Engine, "begin", disk.begin)
    yield disk
    event.remove(Engine, "begin", disk.begin)


async def test_a_service_whose_database_cannot_be_used_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PACKING_DATABASE", sqlite(tmp_path / "file" / "packing.db"))
    with pytest.raises(DatabaseUnusable, match=r"file/packing\.db cannot be used"):
        async with Harness(packing.service):
            pass


def create_with_small_pages(path: Path) -> None:
    """A database in which a few orders fill a page."""
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("PRAGMA page_size = 512; VACUUM")


async def test_a_disk_that_is_full_for_a_while_loses_nothing(
    data: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = counted(monkeypatch, SqlTransactions, "_once")
    create_with_small_pages(data / "packing.db")
    orders = [making.placed() for _ in range(30)]
    async with Harness(packing.service) as shop:
        disk.pages = 1  # it may grow no more
        for order in orders:
            await shop.publish(order)
        await until(lambda: len(tries) > len(orders))
        assert len(shop.published(OrderPacked)) < len(orders)
        disk.pages = 1_000_000
        await shop.settled()
        assert len(shop.published(OrderPacked)) == len(orders)
        assert shop.dead("packing") == []
    with closing(sqlite3.connect(data / "packing.db")) as connection:
        assert connection.execute("SELECT count(*) FROM packed_orders").fetchone() == (len(orders),)
