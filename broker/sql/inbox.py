"""One delivery, one transaction: inbox, the handler's effects, outbox.

The way of one delivery through `SqlTransactions.run`::

    is it in the inbox?  ── yes ──▶ a duplicate: nothing is done
          │ no
    the handler runs, with a session on this connection as ``context.transaction``
          │ it raised: all is rolled back, the retry ladder goes on
    flush · inbox entry · outbox rows · COMMIT
          │ another writer was faster, or the database is away: rolled back, and the same again as a whole
    the delivery is acknowledged; the relay is woken

The inbox is read first and written last. On SQLite nothing is locked meanwhile, so other handlers run; one that has
read and was overtaken by another's commit runs again, and after a few times alone.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, NamedTuple, NoReturn
from uuid import UUID
from weakref import WeakValueDictionary

from sqlalchemy import Connection, bindparam, delete, event, insert, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util import await_only
from structlog.typing import FilteringBoundLogger

from broker.envelope import Envelope
from broker.errors import ContractError
from broker.publisher import Broker, Publication
from broker.sql.database import (
    REFUSED_STATES,
    Meaning,
    Statement,
    Store,
    begin,
    in_transaction,
    in_words,
    insert_if_new,
    meaning_of,
    state_of,
)
from broker.sql.relay import Relay
from broker.sql.tables import ADDED, CAUSE, inbox, known_as, outbox, row

Handle = Callable[[AsyncSession], Awaitable[Sequence[Publication]]]

KEY = (inbox.c.service, inbox.c.source, inbox.c.event_id)
PATIENCE = 3
"""How often a transaction on SQLite may be overtaken before it runs alone."""
MOST = 20
"""How often a transaction may be overtaken before that counts as the handler's failure."""
PRUNE_EVERY = 3600.0
"""Seconds."""
PRUNE_AT_ONCE = 200
READS = re.compile(r"\s*(SELECT|VALUES|EXPLAIN|PRAGMA|BEGIN|SAVEPOINT|RELEASE|ROLLBACK)\b", re.IGNORECASE)
"""Statements that need no write lock. Others may: so few words that nothing that writes begins with them."""
NOT_YOURS = (
    "A handler does not end its transaction: it is committed when the handler has succeeded, with the inbox and "
    "what it publishes. To undo everything, raise; to undo a part, use context.transaction.begin_nested()."
)


class HandlersSession(Session):
    """A session that is ended by us alone."""

    def commit(self) -> NoReturn:
        """Refused."""
        raise ContractError(NOT_YOURS)

    rollback = close = reset = invalidate = prepare = commit

    def begin(self, nested: bool = False) -> SessionTransaction:
        """A savepoint; the transaction itself has begun."""
        if not nested:
            raise ContractError(NOT_YOURS)
        return super().begin(nested=True)


def _not_yours(_: Connection) -> NoReturn:
    raise ContractError(NOT_YOURS)


class Entry(NamedTuple):
    """An inbox entry, to be found or made."""

    service: str
    source: str
    event_id: UUID
    digest: bytes


class Phase(Enum):
    """Where in a delivery something went wrong, and so who is to blame."""

    BEFORE = "the database"
    HANDLING = "the handler, or the database"
    AFTER = "the database, or what the handler wrote"


class Again(Exception):
    """The same again, as a whole."""

    def __init__(self, meaning: Meaning, error: BaseException) -> None:
        super().__init__(str(error))
        self.meaning = meaning
        self.error = error


class Turn:
    """A transaction's turn to write, on SQLite: one writer at a time. It ends with the ``async with``.

    A handler's first writing statement takes SQLite's write lock. So the turn is taken before it: whoever had the turn
    without the lock, and whoever had the lock without the turn, would wait for each other.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stack = AsyncExitStack()
        self._taken = False

    async def __aenter__(self) -> Turn:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def take(self) -> None:
        """Wait for it, if it is not taken already."""
        if not self._taken:
            await self._stack.enter_async_context(self._store.in_turn())
            self._taken = True

    def take_before_writing(self, connection: AsyncConnection) -> None:
        """From now on, every statement of a connection that may write waits for it."""

        def before(_: Connection, __: object, statement: str, *rest: object) -> None:
            if not self._taken and not READS.match(statement):
                await_only(self.take())

        event.listen(connection.sync_connection, "before_cursor_execute", before)


class SqlTransactions:
    """`broker.transactions.Transactions` on a database.

    Args:
        store: the database.
        broker: of the service; makes messages.
        relay: publishes what is in the outbox, if this process does.
        log: carries the service's name.
    """

    def __init__(self, store: Store, broker: Broker, relay: Relay, log: FilteringBoundLogger) -> None:
        self._store = store
        self._broker = broker
        self._relay = relay
        self._log = log
        self._busy: WeakValueDictionary[tuple[str, UUID], asyncio.Lock] = WeakValueDictionary()
        self._away: str | None = None
        self._look_up = Statement(select(inbox.c.digest).where(*(it == bindparam(it.name) for it in KEY)), store)
        self._enter = Statement(insert_if_new(inbox, store), store)

    async def run(self, envelope: Envelope, handle: Handle, *, again: bool = False) -> bool:
        """As `broker.transactions.Transactions.run`."""
        entry = Entry(self._broker.source, known_as(envelope.source), envelope.id, envelope.digest)
        lock = self._busy.setdefault((entry.source, entry.event_id), asyncio.Lock())
        async with lock:  # a duplicate that comes meanwhile waits, and finds it handled
            overtaken, tries, collided = 0, 0, False
            while True:
                try:
                    handled = await self._once(entry, envelope, handle, alone=overtaken >= PATIENCE, again=again)
                except Again as rolled_back:
                    if rolled_back.meaning is Meaning.OVERTAKEN:
                        overtaken, tries = overtaken + 1, 0
                        if overtaken > MOST:
                            raise rolled_back.error from None
                        await asyncio.sleep(_pause(overtaken, 0.002, 0.2))
                    elif rolled_back.meaning is Meaning.COLLIDED:
                        if collided:
                            raise rolled_back.error from None
                        collided = True
                    else:
                        tries += 1
                        self._note_away(rolled_back.error)
                        await asyncio.sleep(_pause(tries, 0.1, 2))
                    continue
                except Exception:  # the handler's: the database was there
                    self._note_away(None)
                    raise
                self._note_away(None)
                return handled

    async def _once(self, entry: Entry, envelope: Envelope, handle: Handle, *, alone: bool, again: bool) -> bool:
        """One try.

        Raises:
            Again: it was rolled back for the database's sake.
            Exception: what the handler raised, or what is wrong with what it did.
        """
        phase = Phase.BEFORE
        try:
            async with AsyncExitStack() as stack:
                with self._store.asked():
                    connection = await stack.enter_async_context(self._store.engine.connect())
                    if not again and await self._is_known(connection, entry):
                        return False
                async with Turn(self._store) as turn:
                    begun = await self._begin(connection, turn, alone=alone)
                    transaction = connection.get_transaction()
                    session = _session(connection, envelope)
                    try:
                        phase = Phase.HANDLING
                        publications = await handle(session)
                        rows = [self._row(publication) for publication in publications]
                        await turn.take()
                        await session.flush()
                        await session.run_sync(Session.commit)  # ends the session's part alone
                        if transaction is None or not transaction.is_active or begun > in_transaction(connection):
                            raise ContractError(NOT_YOURS)
                        event.remove(connection.sync_connection, "commit", _not_yours)
                        phase = Phase.AFTER
                        done = await self._finish(connection, entry, rows, again=again)
                        if done and (rows or ADDED in session.info):
                            self._relay.wake()
                        return done
                    finally:
                        await session.run_sync(Session.close)
        except Exception as error:
            meaning = self._meaning(error, phase)
            ours = phase is Phase.HANDLING and meaning in (Meaning.FAILED, Meaning.COLLIDED) and error in self._store
            if ours and not again and await self._is_known_by_now(entry):
                return False  # another process handled a duplicate meanwhile, and the handler met what it had stored
            if meaning is not Meaning.FAILED:
                raise Again(meaning, error) from None
            raise

    async def _begin(self, connection: AsyncConnection, turn: Turn, *, alone: bool) -> bool:
        """Begin the transaction, which the handler does not end; whether the driver knows by now that it has begun."""
        if self._store.sqlite and alone:
            await turn.take()
        if not connection.in_transaction():  # or the handler's session would have, and end, its own
            await begin(connection, to_write=alone)
        if self._store.sqlite:
            turn.take_before_writing(connection)
        event.listen(connection.sync_connection, "commit", _not_yours)
        return in_transaction(connection)

    async def _finish(
        self, connection: AsyncConnection, entry: Entry, rows: list[dict[str, Any]], *, again: bool
    ) -> bool:
        """Write the inbox entry and the outbox, and commit; False if another process has handled it meanwhile."""
        if again:
            await connection.execute(delete(inbox).where(tuple_(*KEY) == tuple_(*entry[:3])))
        if not await self._enter.changed(connection, {**entry._asdict(), "handled_at": datetime.now(UTC)}):
            return False
        if rows:
            await connection.execute(insert(outbox), rows)
        await connection.commit()
        return True

    async def _is_known(self, connection: AsyncConnection, entry: Entry) -> bool:
        found = await self._look_up.first(connection, entry._asdict())
        if found is not None and found[0] != entry.digest:
            self._log.warning(
                "duplicate differs",
                event_id=str(entry.event_id),
                source=entry.source,
                error="an event was handled under this id, with other data; the first one stands",
            )
        return found is not None

    async def _is_known_by_now(self, entry: Entry) -> bool:
        try:
            async with self._store.engine.connect() as connection:
                return await self._is_known(connection, entry)
        except Exception as error:
            raise Again(self._meaning(error, Phase.BEFORE), error) from None

    def _meaning(self, error: Exception, phase: Phase) -> Meaning:
        if phase is Phase.BEFORE:  # no handler can be blamed: a login is refused, or a table is gone, say
            return Meaning.OVERTAKEN if meaning_of(error) is Meaning.OVERTAKEN else Meaning.AWAY
        if phase is Phase.AFTER:  # nor here, if our own statements are refused
            return Meaning.AWAY if state_of(error).startswith(REFUSED_STATES) else meaning_of(error)
        found = (self._store.met(cause) for cause in _causes(error))
        return next((meaning for meaning in found if meaning is not Meaning.FAILED), Meaning.FAILED)

    def _row(self, publication: Publication) -> dict[str, Any]:
        message = self._broker.message(publication)
        return row(publication, self._broker.source, message.body, message.timestamp or datetime.now(UTC))

    def _note_away(self, error: BaseException | None) -> None:
        why = None if error is None else in_words(error)
        if why is None and self._away is not None:
            self._log.info("database back", database=self._store.name)
        elif why is not None and self._away is None:
            self._log.warning("database away", database=self._store.name, error=why)
        self._away = why

    async def unpublished(self) -> int:
        return await self._relay.count()

    def problems(self) -> list[str]:
        away = [f"the database {self._store.name} cannot be used: {self._away}"] if self._away else []
        away += [self._store.silence] if self._store.silence else []
        return [*away, *(problem for problem in self._relay.problems() if not away)]


def _session(connection: AsyncConnection, envelope: Envelope) -> AsyncSession:
    return AsyncSession(
        bind=connection,
        sync_session_class=HandlersSession,
        expire_on_commit=False,
        close_resets_only=False,
        join_transaction_mode="rollback_only",
        info={CAUSE: envelope},
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception, and those that led to it."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _pause(tries: int, first: float, most: float) -> float:
    """Seconds to wait before the next try: random, growing, capped."""
    return random.uniform(0, min(first * 2 ** min(tries, 20), most))  # noqa: S311  (no secret)


# -- forgetting ----------------------------------------------------------------------------------------------------


async def keep_pruning(store: Store, service: str, max_age: float, log: FilteringBoundLogger) -> None:
    """Remove a service's inbox entries once they are older than ``max_age`` seconds, now and every hour."""
    while True:
        try:
            removed = await prune(store, service, datetime.now(UTC) - timedelta(seconds=max_age))
            if removed:
                log.info("pruned", entries=removed)
        except Exception as error:
            log.warning("not pruned", error=in_words(error))
        await asyncio.sleep(PRUNE_EVERY)


async def prune(store: Store, service: str, before: datetime) -> int:
    """Remove a service's entries from before a time, a few in each transaction, and at work half of the time at most,
    so that handlers get their turns."""
    some = select(*KEY).where(inbox.c.service == service, inbox.c.handled_at < before)
    some = some.order_by(inbox.c.handled_at).limit(PRUNE_AT_ONCE)
    statement = delete(inbox).where(tuple_(*KEY).in_(some))
    removed = 0
    clock = asyncio.get_running_loop().time
    while True:
        began = clock()
        async with store.committing() as connection:
            found = (await connection.execute(statement)).rowcount
        removed += found
        if found < PRUNE_AT_ONCE:
            return removed
        await asyncio.sleep(clock() - began)
