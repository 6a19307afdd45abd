"""The outbox as relays take from it: some rows at a time, in the order they were added, held by one relay alone."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    Row,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.errors import DatabaseUnusable
from broker.sql.database import Store, in_memory, name_of
from broker.sql.tables import CHANNEL, LANES, lanes, outbox, waiting

AT_ONCE = 2000
"""Rows taken at a time, at most."""
BYTES_AT_ONCE = 8_000_000
"""Bytes of them, at most, but for a single one that is larger."""
LANES_AT_ONCE = LANES // 4
"""Lanes that a relay takes at a time, so that others find some."""

Refused = Sequence[tuple[Row[Any], str]]
"""Rows that can never be published, with the reason."""


@dataclass
class Taken:
    """Rows that nobody else has.

    Attributes:
        rows: in the order they were added.
        connection: the transaction that holds them; None where none does.
    """

    store: Store
    rows: Sequence[Row[Any]]
    connection: AsyncConnection | None = None

    async def conclude(self, done: Sequence[Row[Any]], refused: Refused) -> None:
        """Remove what was published, and set aside what never will be."""
        if not done and not refused:
            return
        async with AsyncExitStack() as stack:
            if (connection := self.connection) is None:
                connection = await stack.enter_async_context(self.store.committing())
            if done:
                await _remove(connection, [row.id for row in done])
            for row, reason in refused:
                aside = update(outbox).where(outbox.c.id == row.id)
                await connection.execute(aside.values(set_aside_at=datetime.now(UTC), reason=reason))


async def _remove(connection: AsyncConnection, ids: list[int]) -> None:
    """Delete rows, by one statement that is the same for any number of them."""
    if connection.dialect.name == "sqlite":
        numbers = func.json_each(bindparam("ids")).table_valued("value")
        await connection.execute(
            delete(outbox).where(outbox.c.id.in_(select(numbers.c.value))), {"ids": json.dumps(ids)}
        )
    else:
        chosen = outbox.c.id == func.any(bindparam("ids", type_=ARRAY(BigInteger)))
        await connection.execute(delete(outbox).where(chosen), {"ids": ids})


def _next(which: ColumnElement[bool]) -> Select[Any]:
    """The first rows that wait, up to a number of them and of their bytes."""
    first = select(outbox.c.id, outbox.c.size).where(waiting, which).order_by(outbox.c.id).limit(AT_ONCE).subquery()
    place = func.row_number().over(order_by=first.c.id).label("place")
    summed = select(first.c.id, place, func.sum(first.c.size).over(order_by=first.c.id).label("bytes")).subquery()
    fitting = select(summed.c.id).where(or_(summed.c.bytes <= BYTES_AT_ONCE, summed.c.place == 1))
    its = outbox.c
    columns = (its.id, its.subject_hash, its.event_id, its.source, its.name, its.key, its.correlation_id)
    return select(*columns, its.body, its.size, its.added_at).where(its.id.in_(fitting)).order_by(its.id)


NOT_IN_JSON = outbox.c.subject_hash.not_in(select(func.json_each(bindparam("besides")).table_valued("value").c.value))
NOT_IN_ARRAY = outbox.c.subject_hash != func.all(bindparam("besides", type_=ARRAY(BigInteger)))
"""Not about the subjects that wait for their next try: however many events they have, others are found."""
ANY = _next(NOT_IN_JSON)
OF_LANES = _next(and_(outbox.c.lane == func.any(bindparam("lanes", type_=ARRAY(BigInteger))), NOT_IN_ARRAY))
FREE_LANES = (
    select(lanes.c.lane)
    .where(exists().where(outbox.c.lane == lanes.c.lane, waiting, NOT_IN_ARRAY))
    .order_by(func.random())
    .limit(LANES_AT_ONCE)
    .with_for_update(skip_locked=True)
)


async def count_waiting(connection: AsyncConnection) -> int:
    """How many events wait to be published."""
    found: int = (await connection.execute(select(func.count()).select_from(outbox).where(waiting))).scalar_one()
    return found


class PostgresOutbox:
    """Shared by any number of relays, by lanes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: list[AsyncConnection] = []

    @asynccontextmanager
    async def take(self, besides: Sequence[int]) -> AsyncIterator[Taken]:
        """Rows of some lanes that no other relay has in hand, but of some subjects.

        The transaction that holds them ends with the context.
        """
        async with AsyncExitStack() as stack:
            with self._store.asked():
                if self._kept:
                    stack.push_async_exit(connection := self._kept.pop())
                else:
                    connection = await stack.enter_async_context(self._store.engine.connect())
                    # whatever else the engine is set to: rows are looked for after their lanes are locked
                    await connection.execution_options(isolation_level="READ COMMITTED")
                    await connection.run_sync(Connection.detach)  # it is kept, and not one of the pool's any more
                found = [lane for (lane,) in await connection.execute(FREE_LANES, {"besides": besides})]
                some = {"lanes": found, "besides": besides}
                rows = (await connection.execute(OF_LANES, some)).all() if found else []
            yield Taken(self._store, rows, connection)
            await connection.commit()
            stack.pop_all()
            self._kept.append(connection)

    async def listen(self, wake: Callable[[], None]) -> None:
        """Call back now, and whenever somebody has added something; returns when the connection is lost.

        Raises what the database, or its driver, raises.
        """
        lost = asyncio.Event()
        async with self._store.engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await connection.run_sync(Connection.detach)  # it is not one of the pool's any more
            driver.add_termination_listener(lambda _: lost.set())
            await driver.add_listener(CHANNEL, lambda *_: wake())
            try:
                wake()
                await lost.wait()
            finally:
                driver.terminate()

    async def close(self) -> None:
        """Let go of the connections."""
        while self._kept:
            await self._kept.pop().close()


_turns: WeakKeyDictionary[Engine, asyncio.Lock] = WeakKeyDictionary()


class SqliteOutbox:
    """For one relay at a time: that of the process which holds a lock on the file ``<database>-relay``.

    The lock is SQLite's own, so the system releases it when the process ends, however it ends.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._turn = _turns.setdefault(store.engine.sync_engine, asyncio.Lock())
        self._lock: sqlite3.Connection | None = None

    @asynccontextmanager
    async def take(self, besides: Sequence[int]) -> AsyncIterator[Taken]:
        """The first rows, but of some subjects, if no other relay is at work."""
        async with self._turn:  # several services of one process may share an engine
            rows: Sequence[Row[Any]] = []
            if self._lock is not None or await asyncio.to_thread(self._acquire):
                async with self._store.engine.connect() as connection:
                    rows = (await connection.execute(ANY, {"besides": json.dumps(besides)})).all()
            yield Taken(self._store, rows)

    def _acquire(self) -> bool:
        if in_memory(self._store.engine.url):
            return True
        file = f"{name_of(self._store.engine.url)}-relay"
        with ExitStack() as stack:
            try:
                lock = sqlite3.connect(file, timeout=0, isolation_level=None, check_same_thread=False)
                stack.callback(lock.close)
                lock.execute("BEGIN EXCLUSIVE")
                if not os.access(file, os.W_OK):  # then several may have it
                    raise DatabaseUnusable(f"the lock of relays, {file}, cannot be taken: it cannot be written.")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                    return False
                raise DatabaseUnusable(f"the lock of relays, {file}, cannot be taken: {error}.") from None
            stack.pop_all()
        self._lock = lock
        return True

    async def listen(self, wake: Callable[[], None]) -> None:
        """SQLite tells nobody."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Let another relay work."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
