"""How services open their databases: what they may rely on, and how it fails."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import ClassVar

import pytest
from sqlalchemy import Connection, Engine, event, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from broker.testing import Harness
from services import packing
from services.contracts import OrderPacked
from services.contracts.storage import Database, DatabaseUnusable, Hundredths, UtcDateTime, open_database
from tests.services import making


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


async def test_the_folder_is_created_and_what_is_stored_is_there_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "yet.db"
    async with open_database(sqlite(path), Base.metadata) as database, database.write.begin() as session:
        session.add(Row(id=1, counter=7))
    async with open_database(sqlite(path), Base.metadata) as database, database.read() as session:
        row = await session.get_one(Row, 1)
        assert row.counter == 7


async def test_times_come_back_in_utc_and_amounts_exact(tmp_path: Path) -> None:
    at = datetime(2025, 6, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    async with open_database(sqlite(tmp_path / "a.db"), Base.metadata) as database:
        async with database.write.begin() as session:
            session.add_all([Row(id=1, at=at, amount=Decimal("0.10")), Row(id=2, amount=Decimal("9999999999.99"))])
        async with database.read() as session:
            row = await session.get_one(Row, 1)
            total = await session.scalar(select(func.sum(Row.amount)))
    assert (row.at, row.at and row.at.tzinfo) == (at, UTC)
    assert total == Decimal("10000000000.09")


async def test_two_writers_of_one_file_wait_for_each_other(tmp_path: Path) -> None:
    """A command and the service's process: what one has read, the other cannot have changed when it writes."""

    async def count(database: Database) -> None:
        async with database.write.begin() as session:
            row = await session.get_one(Row, 1)
            await asyncio.sleep(0)
            row.counter += 1

    url = sqlite(tmp_path / "a.db")
    async with open_database(url, Base.metadata) as one, open_database(url, Base.metadata) as two:
        async with one.write.begin() as session:
            session.add(Row(id=1, counter=0))
        await asyncio.gather(*(count(database) for database in [one, two] * 25))
        async with two.read() as session:
            assert (await session.get_one(Row, 1)).counter == 50


async def test_a_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    url = sqlite(tmp_path / "a.db")
    async with (
        open_database(url, Base.metadata) as one,
        open_database(url, Base.metadata) as two,
        one.write.begin() as writing,
    ):
        writing.add(Row(id=1))
        await writing.flush()
        async with asyncio.timeout(5), two.read() as reading:
            assert await reading.get(Row, 1) is None


async def test_many_may_start_at_once_on_a_file_that_is_not_there(tmp_path: Path) -> None:
    async def start() -> None:
        async with open_database(sqlite(tmp_path / "a.db"), Base.metadata):
            await asyncio.sleep(0)

    await asyncio.gather(*(start() for _ in range(10)))


@pytest.mark.parametrize("where", ["a file/shop.db", "/proc/shop.db"])
async def test_a_folder_that_cannot_be_written_is_named_with_the_cause(tmp_path: Path, where: str) -> None:
    (tmp_path / "a file").touch()
    path = tmp_path / where
    with pytest.raises(DatabaseUnusable, match=r"shop\.db cannot be used: .*(unable to open|File exists)") as raised:
        async with open_database(sqlite(path), Base.metadata):
            pass
    assert str(path) in str(raised.value)
    assert raised.value.exit_code == 1


async def test_a_read_only_database_is_found_at_start(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with open_database(sqlite(path), Base.metadata):
        pass
    with pytest.raises(DatabaseUnusable, match="readonly"):
        async with open_database(f"sqlite+aiosqlite:///file:{path}?mode=ro&uri=true", Base.metadata):
            pass


async def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("dear diary, " * 100)
    with pytest.raises(DatabaseUnusable, match="not a database"):
        async with open_database(sqlite(tmp_path / "a.db"), Base.metadata):
            pass
    assert (tmp_path / "a.db").read_text().startswith("dear diary")


@pytest.mark.parametrize("url", ["", "nonsense", "nosuch://host/db", "sqlite:///not-async.db"])
async def test_a_url_that_is_none_is_an_error_of_ours(url: str) -> None:
    with pytest.raises(DatabaseUnusable):
        async with open_database(url, Base.metadata):
            pass


async def test_a_password_is_not_in_the_message() -> None:
    with pytest.raises(DatabaseUnusable) as raised:
        async with open_database("postgresql+nosuch://shop:geheim@localhost/shop", Base.metadata):
            pass
    assert "geheim" not in str(raised.value)


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


async def test_a_full_disk_is_found_at_start(tmp_path: Path, disk: Disk) -> None:
    disk.pages = 1
    with pytest.raises(DatabaseUnusable, match=r"a\.db cannot be used: .*full"):
        async with open_database(sqlite(tmp_path / "a.db"), Base.metadata):
            pass


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


async def test_a_disk_that_is_full_for_a_while_loses_nothing(data: Path, disk: Disk) -> None:
    create_with_small_pages(data / "packing.db")
    orders = [making.placed() for _ in range(30)]
    async with Harness(packing.service) as shop:
        disk.pages = 1  # it may grow no more
        for order in orders:
            await shop.publish(order)
        await shop.settled()
        packed = len(shop.published(OrderPacked))
        assert 0 < packed < len(orders)
        disk.pages = 1_000_000
        await shop.advance(minutes=1)
        assert len(shop.published(OrderPacked)) == len(orders)
        assert shop.dead("packing") == []
    with closing(sqlite3.connect(data / "packing.db")) as connection:
        assert connection.execute("SELECT count(*) FROM packed_orders").fetchone() == (len(orders),)
