"""A service's own database: opened, checked, and what its failures mean.

What a failure means decides what becomes of a delivery (`Meaning`): another writer was faster, so it is handled again
at once; the database is away or full, so it waits; anything else is the handler's.

SQLite has one writer at a time, and a transaction that has read before another writer's commit can no longer write. So
a transaction sees the database as of its first statement and takes the write lock with its first write; all of this
process's commits go through one lock, which is fair and never times out.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import unquote, urlsplit
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import AsyncAdaptedQueuePool, Connection, Engine, Insert, Select, StaticPool, Table, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random, wait_random_exponential

from broker.errors import ContractError, DatabaseUnusable
from broker.sql import tables
from broker.transactions import Database

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
EXTRAS = {"sqlite+aiosqlite": "sqlite", "postgresql+asyncpg": "postgresql"}
BUSY_TIMEOUT = 30.0
"""Seconds to wait for another process that writes the same SQLite file."""
SPARE = 5
"""Connections beyond those of the handlers: the relay's, the one that listens, that of pruning, one for look-ups."""


SILENT = 10.0
"""Seconds without an answer to what takes milliseconds, after which the database is said to be silent."""
SECRETS = ("password", "passfile", "sslpassword", "sslkey")
"""Parameters of a URL that nobody is shown."""


class Meaning(Enum):
    """What a failure of the database says about the transaction that met it."""

    OVERTAKEN = "another writer was faster: the same again, now"
    COLLIDED = "a row of that key is there already, perhaps another writer's of this moment: the same again, once"
    AWAY = "the database is not there or takes nothing: the same again, later"
    FAILED = "the statement was wrong"


REFUSED_STATES = "42"
"""PostgreSQL: a permission is missing, or a table."""
OVERTAKEN_STATES = {"40001", "40P01", "55P03"}
"""PostgreSQL: serialization failure, deadlock, lock not available."""
AWAY_STATES = ("08", "53", "57P", "58", "25006")
"""PostgreSQL: connection, resources (disk full, too many connections), shutting down, I/O, read-only."""
COLLIDED_STATE, COLLIDED_CODES = "23505", {sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_UNIQUE}
"""A key that must be unique."""
OVERTAKEN_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
AWAY_CODES = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PROTOCOL,
}


def meaning_of(error: BaseException) -> Meaning:
    """What a failure of our own statements means."""
    if isinstance(error, OSError | PoolTimeout) and not isinstance(error, DBAPIError):
        return Meaning.AWAY  # asyncpg, connecting
    original: Any = error.orig if isinstance(error, DBAPIError) else error
    if (code := getattr(original, "sqlite_errorcode", None)) is not None:
        return _meaning_of_code(code)
    state = state_of(error)
    if state in OVERTAKEN_STATES:
        return Meaning.OVERTAKEN
    if state == COLLIDED_STATE:
        return Meaning.COLLIDED
    away = state.startswith(AWAY_STATES) or (isinstance(error, DBAPIError) and error.connection_invalidated)
    return Meaning.AWAY if away else Meaning.FAILED


def state_of(error: BaseException) -> str:
    """PostgreSQL's code of a failure; empty if it has none."""
    original: Any = error.orig if isinstance(error, DBAPIError) else error
    return getattr(original, "sqlstate", None) or getattr(getattr(original, "__cause__", None), "sqlstate", None) or ""


def _meaning_of_code(code: int) -> Meaning:
    """Of SQLite's, whose last byte is what went wrong, and the rest tells more: SQLITE_BUSY_SNAPSHOT, say."""
    if code in COLLIDED_CODES:
        return Meaning.COLLIDED
    known = {Meaning.OVERTAKEN: OVERTAKEN_CODES, Meaning.AWAY: AWAY_CODES}
    return next((meaning for meaning, codes in known.items() if code & 0xFF in codes), Meaning.FAILED)


class Store:
    """An open database.

    Attributes:
        engine: as SQLAlchemy has it.
        sqlite: it is SQLite, not PostgreSQL.
        commits: held by whoever commits, on SQLite: one writer at a time.
        found: the version of our tables when it was opened; None if there were none.
    """

    found: int | None = None

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.sqlite = engine.dialect.name == "sqlite"
        self.commits = _commits(engine.sync_engine)
        self._met: WeakSet[BaseException] = WeakSet()
        self._asked: dict[object, float] = {}
        event.listen(engine.sync_engine, "handle_error", self._note)

    def close(self) -> None:
        """Let go of the engine; whoever made it disposes of it."""
        event.remove(self.engine.sync_engine, "handle_error", self._note)

    def _note(self, context: ExceptionContext) -> None:
        if context.sqlalchemy_exception is not None:
            self._met.add(context.sqlalchemy_exception)

    def __contains__(self, error: BaseException) -> bool:
        """Whether it is an error of this database, and not of another that a handler uses."""
        return error in self._met

    def met(self, error: BaseException) -> Meaning:
        """What an exception means that a handler let pass: it may be of another database, and so the handler's own."""
        return meaning_of(error) if error in self else Meaning.FAILED

    @property
    def name(self) -> str:
        """As people know it: the path of a SQLite file, else the URL without its password."""
        return name_of(self.engine.url)

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Wait for an answer that waits for nobody else."""
        question = object()
        self._asked[question] = monotonic()
        try:
            yield
        finally:
            del self._asked[question]

    @property
    def silence(self) -> str | None:
        """What to say of a database that keeps a connection open and does not answer; else None."""
        waited = monotonic() - min(self._asked.values(), default=monotonic())
        return f"no connection to {self.name}, or no answer from it, for {waited:.0f} s" if waited > SILENT else None

    @asynccontextmanager
    async def committing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction of our own, short and writing."""
        async with self.engine.connect() as connection, self.in_turn():  # in this order, as handlers do
            await begin(connection)
            yield connection
            await connection.commit()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one moment, however many statements look."""
        async with self.engine.connect() as connection:
            if not self.sqlite:
                await connection.execution_options(isolation_level="REPEATABLE READ")
            await begin(connection)
            yield connection

    @asynccontextmanager
    async def in_turn(self) -> AsyncIterator[None]:
        """Write while nobody else of this process does."""
        async with self.commits if self.sqlite else contextlib.nullcontext():
            yield


_all_commits: WeakKeyDictionary[Engine, asyncio.Lock] = WeakKeyDictionary()


def _commits(engine: Engine) -> asyncio.Lock:
    return _all_commits.setdefault(engine, asyncio.Lock())


def _driver(connection: AsyncConnection) -> Any:
    sync = connection.sync_connection
    assert sync is not None, "the connection is open"
    return sync.connection.driver_connection


def in_transaction(connection: AsyncConnection) -> bool:
    """Whether the database has one, whatever SQLAlchemy believes: SQL can end it, and SQLite does on a full disk."""
    driver = _driver(connection)
    return bool(driver.in_transaction if connection.dialect.name == "sqlite" else driver.is_in_transaction())


async def begin(connection: AsyncConnection, *, to_write: bool = False) -> None:
    """Begin a transaction on SQLite. Its driver would begin one before the first write only, and read outside of it.

    Args:
        to_write: take the write lock at once. Else it sees the database as it is when it is first used.
    """
    await connection.begin()
    if connection.dialect.name != "sqlite":
        return
    if to_write and in_transaction(connection):  # an engine's own hook began it
        await _driver(connection).rollback()
    if not in_transaction(connection):
        await _directly(connection, "BEGIN IMMEDIATE" if to_write else "BEGIN")


async def _directly(connection: AsyncConnection, statement: str, values: Sequence[Any] = ()) -> list[Any]:
    """By aiosqlite itself: one visit to the connection's thread, where SQLAlchemy makes three or four."""
    try:
        return list(await _driver(connection).execute_fetchall(statement, values))
    except ValueError as error:  # it was closed under us
        await connection.invalidate()
        raise OSError(str(error)) from None


def insert_if_new(table: Table, store: Store) -> Any:
    """An insert that does nothing where a row of that key is."""
    dialect: Any = sqlite if store.sqlite else postgresql
    return dialect.insert(table).on_conflict_do_nothing()


class Statement:
    """One that belongs to every handling, and so is made in the shortest way.

    Args:
        statement: with a named parameter for each value.
        store: where it will be made.
    """

    def __init__(self, statement: Select[Any] | Insert, store: Store) -> None:
        self._statement = statement
        dialect = store.engine.dialect
        compiled: Any = statement.compile(dialect=dialect)
        self._sql = str(compiled)
        self._names = compiled.positiontup
        types = {name: parameter.type for name, parameter in compiled.binds.items()}
        self._written = {name: it.dialect_impl(dialect).bind_processor(dialect) for name, it in types.items()}

    async def first(self, connection: AsyncConnection, values: Mapping[str, Any]) -> Any:
        """The first row that it finds, or None."""
        if connection.dialect.name != "sqlite":
            return (await connection.execute(self._statement, values)).first()
        return next(iter(await _directly(connection, self._sql, self._plain(values))), None)

    async def changed(self, connection: AsyncConnection, values: Mapping[str, Any]) -> int:
        """How many rows it changed."""
        if connection.dialect.name != "sqlite":
            return (await connection.execute(self._statement, values)).rowcount
        before = _driver(connection).total_changes
        await _directly(connection, self._sql, self._plain(values))
        return int(_driver(connection).total_changes - before)

    def _plain(self, values: Mapping[str, Any]) -> list[Any]:
        """As SQLAlchemy would write them."""
        return [write(values[it]) if (write := self._written[it]) else values[it] for it in self._names]


def in_memory(url: URL) -> bool:
    """Whether a SQLite database is no file."""
    return _path(url) in {"", ":memory:"} or url.query.get("mode") == "memory"


def _path(url: URL) -> str:
    """Of a SQLite file, which may be written as a URI."""
    database = url.database or ""
    return unquote(urlsplit(database).path) if database.startswith("file:") else database


def name_of(url: URL) -> str:
    """A database as people know it, without its password, wherever that stands."""
    if url.get_backend_name() == "sqlite" and not in_memory(url):
        return str(Path(_path(url)).resolve())  # a link is the same database
    return url.difference_update_query(SECRETS).render_as_string(hide_password=True)


@asynccontextmanager
async def open_store(
    database: Database, *, timeout: float, handlers: int = 1, create: bool | None = None
) -> AsyncIterator[Store]:
    """A database, reached and found to have our tables, for as long as the context lasts.

    Args:
        database: a URL, an engine, or a function that returns either.
        timeout: seconds in which it must answer.
        handlers: how many transactions there are at a time.
        create: whether to create missing tables, and to bring older ones up to date; None: on SQLite.

    Raises:
        DatabaseUnusable: it is not supported, does not answer, refuses us, or has no tables or others.
    """
    if callable(database):
        found = database()
        database = await found if isinstance(found, Awaitable) else found
    engine, ours = _engine(database, handlers)
    store = Store(engine)
    try:
        await _check(store, timeout, store.sqlite if create is None else create)
        yield store
    finally:
        store.close()
        if ours:
            await engine.dispose()


def _engine(database: str | AsyncEngine, handlers: int) -> tuple[AsyncEngine, bool]:
    """The engine, and whether it was made here."""
    if isinstance(database, AsyncEngine):
        if f"{database.dialect.name}+{database.dialect.driver}" not in EXTRAS:
            raise _unsupported(database.dialect.name)
        if isinstance(database.pool, StaticPool):
            raise DatabaseUnusable(
                "An engine with one connection for all (StaticPool, as SQLAlchemy makes it for a database in memory) "
                "cannot tell one transaction from another. Give the URL instead of the engine."
            )
        return database, False
    if not isinstance(database, str):
        raise DatabaseUnusable(
            f"A database is given as its URL (str) or an AsyncEngine, not as {type(database).__name__}."
        )
    url = url_of(database)
    try:
        return make_engine(url, handlers), True
    except ImportError as error:
        install = f"pip install 'business-events[{EXTRAS[url.drivername]}]'"
        raise DatabaseUnusable(f"The driver of {name_of(url)} is not installed ({error.name}): {install}.") from None
    except (SQLAlchemyError, NoSuchModuleError, ValueError, TypeError) as error:
        raise DatabaseUnusable(f"The database {name_of(url)} cannot be used: {error}") from None


def url_of(database: str) -> URL:
    """A database's URL, read.

    Raises:
        DatabaseUnusable: it is none, or that of a database that is not supported.
    """
    try:
        url = make_url(database)
    except (ArgumentError, ValueError):  # its message would repeat the URL, or a part of it
        raise DatabaseUnusable(
            "A database's URL is not of the form postgresql+asyncpg://user:password@host/name or "
            "sqlite+aiosqlite:///path."
        ) from None
    url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
    if url.drivername not in EXTRAS:
        raise _unsupported(url.drivername)
    if "sslmode" in url.query and url.get_backend_name() == "postgresql":
        raise DatabaseUnusable(f"The driver of {name_of(url)} knows no sslmode=. Write ssl=: ?ssl=require, say.")
    return url


def _unsupported(drivername: str) -> DatabaseUnusable:
    return DatabaseUnusable(
        f"A database by {drivername!r} is not supported. SQLite is, as sqlite+aiosqlite:///path, and PostgreSQL, as "
        "postgresql+asyncpg://user:password@host/name."
    )


def make_engine(url: URL, handlers: int) -> AsyncEngine:
    """An engine as `Store` wants it. On SQLite: a fair wait for other processes."""
    if url.get_backend_name() != "sqlite":
        return create_async_engine(
            url, pool_size=handlers + SPARE, max_overflow=0, pool_pre_ping=True, hide_parameters=True
        )
    engine = create_async_engine(
        url,
        hide_parameters=True,  # an error's text goes into log lines and dead letters
        poolclass=AsyncAdaptedQueuePool,
        pool_size=1 if in_memory(url) else handlers + SPARE,  # each connection to memory is a database of its own
        max_overflow=0,
        pool_timeout=BUSY_TIMEOUT,
        connect_args={"timeout": BUSY_TIMEOUT},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own

    return engine


async def _check(store: Store, timeout: float, create: bool) -> None:
    """Reach it, and look at its tables."""
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(_NotYet),
        stop=stop_after_delay(timeout),
        wait=wait_random(0, 0.1) if store.sqlite else wait_random_exponential(multiplier=0.1, max=2),
        reraise=True,
    )
    try:
        if store.sqlite:
            await asyncio.to_thread(_make_folder if create else _find_file, store.engine.url)
        async with asyncio.timeout(timeout + 1):
            await retrying(_check_once, store, create)
    except TimeoutError:
        raise DatabaseUnusable(f"The database {store.name} did not answer within {timeout:g} s.") from None
    except _NotYet as error:
        hint = "" if store.sqlite else ". Is it running, and is its address right?"
        raise DatabaseUnusable(f"The database {store.name} cannot be used: {error}{hint}") from None
    except DatabaseUnusable as error:
        raise DatabaseUnusable(f"The database {store.name} cannot be used: {error}.") from None


class _NotYet(Exception):
    """It may answer in a moment."""


async def _check_once(store: Store, create: bool) -> None:
    try:
        if store.sqlite and create:
            # It stays so: else nobody commits while anybody reads. SQLite does not wait for writers here: try often.
            async with store.engine.connect() as connection:
                await _directly(connection, "PRAGMA journal_mode=WAL")
        if create:
            async with store.committing() as connection:
                store.found = await connection.run_sync(tables.make)
            return
        async with store.engine.connect() as connection:
            await connection.run_sync(_refuse_autocommit)
            store.found = await connection.run_sync(tables.found_version)
        tables.check_version(store.found)
    except DatabaseUnusable:
        raise
    except Exception as error:
        why = in_words(error)
        if meaning_of(error) is Meaning.FAILED or (store.sqlite and meaning_of(error) is Meaning.AWAY):
            raise DatabaseUnusable(why) from None
        raise _NotYet(why) from None


def _refuse_autocommit(connection: Connection) -> None:
    driver: Any = connection.connection.dbapi_connection
    if connection.dialect.name == "postgresql" and driver.autocommit:
        raise DatabaseUnusable("its engine is set to AUTOCOMMIT, so it has no transactions")


def in_words(error: BaseException) -> str:
    """A failure of the database, without the statement and its parameters: they may be secret, or huge."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return f"{str(original).strip() or type(original).__name__}"[:500]


def _find_file(url: URL) -> None:
    refuse_schema()
    if not in_memory(url) and not Path(name_of(url)).exists():  # it would be created by being looked at
        raise DatabaseUnusable("there is no such file")


def refuse_schema() -> None:
    """SQLite has none. Raises :exc:`DatabaseUnusable`."""
    if tables.SCHEMA:
        raise DatabaseUnusable("BROKER_DATABASE_SCHEMA is for PostgreSQL; SQLite has no schemas")


def _make_folder(url: URL) -> None:
    refuse_schema()
    if not in_memory(url):
        try:
            Path(name_of(url)).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseUnusable(f"its folder cannot be made: {error}") from None


def check_inbox_age(seconds: float, least: float, why: str) -> None:
    """Refuse an inbox that forgets sooner than an event can come back.

    Raises:
        ContractError: with the least there must be.
    """
    if seconds < least:
        raise ContractError(
            f"BROKER_INBOX_MAX_AGE is {seconds / 86400:g} days, but an event can come back after "
            f"{least / 86400:.1f} days: {why}. Set it to more, or to nothing: then it is computed."
        )
