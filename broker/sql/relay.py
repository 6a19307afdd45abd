"""The relay: publishes what is in the outbox, and removes it once RabbitMQ has confirmed it.

Order is kept for each subject: its events are published one after the other, in the order in which they were added;
those of different subjects together. An event whose transaction began after another's commit follows it. PostgreSQL
shows no finer order, since its numbers are drawn before they are committed.

Only one relay has an event in hand. On PostgreSQL relays take shares of the outbox, *lanes*, by ``FOR UPDATE SKIP
LOCKED``; all events about a subject are in one lane. On SQLite one relay has all of it, and holds a lock on a file
beside the database for as long as it lives.

What can never be published (too large, no permission) is set aside with its reason, and blocks nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from logging import DEBUG
from typing import Any

from sqlalchemy import Row, event
from sqlalchemy.orm import Session
from structlog.typing import FilteringBoundLogger

from broker.envelope import CONTENT_TYPE
from broker.errors import AccessRefused, BrokerError, ContractError, TooLarge
from broker.publisher import Broker
from broker.sql.database import Meaning, Store, in_words, meaning_of
from broker.sql.outbox import PostgresOutbox, SqliteOutbox, count_waiting
from broker.sql.tables import ADDED, CAUSE
from broker.transport import Message

POLL = {"sqlite": 0.1, "postgresql": 1.0}
"""Seconds after which it looks by itself. It is woken by commits in its process, and by PostgreSQL."""
AT_A_TIME = 2
"""Hands of a relay on PostgreSQL, each with a share of the outbox: one publishes while the other reads."""
MANY = 10
"""Rows in one hand from which on the other looks for more meanwhile."""
LONGEST_PAUSE = 2.0
"""Seconds between tries, at most, while RabbitMQ confirms nothing or the database is away."""
FAREWELL = 5.0
"""Seconds for which a stopping relay goes on publishing."""
FORGET = 10.0
"""Seconds after its next try was due, for which a subject that was not published counts as waiting."""
LISTEN_AGAIN = 1.0
"""Seconds until a lost connection to be woken by is opened anew."""
MOST_STUCK = 10_000
"""Subjects that may wait on their own."""
AMQP_MOST = 255
"""Bytes of a name in AMQP."""
OF_ONE = (TooLarge, ContractError)
"""Refusals of one event, which would be refused again."""


_running: dict[Relay, asyncio.AbstractEventLoop] = {}
"""The relays of this process on SQLite, which tells nobody of a commit."""


@event.listens_for(Session, "after_commit")
def _wake_relays(session: Session) -> None:
    """Whichever thread commits, and whichever of the databases it is: a relay that finds nothing waits on."""
    if CAUSE not in session.info and session.info.pop(ADDED, False):  # a handler's is not committed yet
        for relay, loop in list(_running.items()):
            with suppress(RuntimeError):  # its loop has just ended
                loop.call_soon_threadsafe(relay.wake)


@dataclass(frozen=True, slots=True)
class Stuck:
    """A subject whose next event was not confirmed.

    Attributes:
        why: in words.
        tries: how often.
        until: it is not tried again before, on the loop's clock.
    """

    why: str
    tries: int
    until: float


class Relay:
    """Publishes what is in a database's outbox, until it is cancelled.

    Args:
        store: the database.
        broker: publishes.
        log: carries the name of who runs it.
    """

    def __init__(self, store: Store, broker: Broker, log: FilteringBoundLogger) -> None:
        self._store = store
        self._broker = broker
        self._log = log.bind()
        self._outbox = SqliteOutbox(store) if store.sqlite else PostgresOutbox(store)
        self._woken = asyncio.Event()
        self._stopping = asyncio.Event()
        self._problems: dict[int, str | None] = {}
        self._stuck: dict[int, Stuck] = {}

    def wake(self) -> None:
        """There is something to publish."""
        self._woken.set()

    async def count(self) -> int:
        """How many events wait to be published."""
        async with self._store.engine.connect() as connection:
            return await count_waiting(connection)

    def problems(self) -> list[str]:
        """What is wrong right now, in words."""
        return list(dict.fromkeys(problem for problem in self._problems.values() if problem))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """At work for as long as the context lasts; at its end what is left is published, if RabbitMQ takes it soon."""
        publishing = [asyncio.create_task(self._run(hand)) for hand in range(1 if self._store.sqlite else AT_A_TIME)]
        listening = asyncio.create_task(self._listen())
        if self._store.sqlite:
            _running[self] = asyncio.get_running_loop()
        try:
            yield
        finally:
            _running.pop(self, None)
            listening.cancel()
            self._stopping.set()
            self.wake()
            await asyncio.wait(publishing, timeout=FAREWELL)  # what is under way is published and removed
            for task in publishing:
                task.cancel()
            await asyncio.gather(*publishing, listening, return_exceptions=True)
            await self._outbox.close()

    async def _listen(self) -> None:
        """Be woken by whoever adds something. What is missed meanwhile, polling finds."""
        told = False
        while True:
            try:
                await self._outbox.listen(self.wake)
                told = False
            except Exception as error:
                if meaning_of(error) is Meaning.FAILED and not told:  # else the rounds meet it, and tell
                    self._log.warning("relay is not woken", error=in_words(error))
                    told = True
            await asyncio.sleep(LISTEN_AGAIN)

    async def _run(self, hand: int) -> None:
        poll, pause = POLL["sqlite" if self._store.sqlite else "postgresql"], 0.0
        while True:
            self._woken.clear()
            problem, moved = None, False
            try:
                moved = await self._round()
            except BrokerError as error:
                problem = f"the outbox cannot be published: {error}"
            except Exception as error:
                problem = f"the outbox in {self._store.name} cannot be read: {in_words(error)}"
                if meaning_of(error) is Meaning.FAILED and problem not in self._problems.values():
                    self._log.exception("unexpected", error=in_words(error))
            self._note(hand, problem or self._waiting())
            if self._stopping.is_set() and not moved:
                self._woken.set()  # for the other hand, if there is one
                return
            if problem is not None:
                pause = min(2 * pause + 0.1, LONGEST_PAUSE)
                await _happens(self._stopping, pause)
                continue
            pause = 0.0
            if not moved:
                await self._until_woken(poll)

    async def _until_woken(self, within: float) -> None:
        """Wait until there is something to do, and no other hand has begun to do it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while not self._woken.is_set():
                    await self._woken.wait()

    def _note(self, hand: int, problem: str | None) -> None:
        before = self.problems()
        self._problems[hand] = problem
        if problem is not None and not before:
            self._log.warning("relay waits", error=problem)
        elif before and not self.problems():
            self._log.info("relay goes on")

    async def _round(self) -> bool:
        """Publish some; whether there was anything.

        Raises:
            BrokerError: why nothing was confirmed.
        """
        now = asyncio.get_running_loop().time()
        besides = [subject for subject, stuck in self._stuck.items() if stuck.until > now]
        async with self._outbox.take(besides) as taken:
            if not taken.rows:
                return False
            if len(taken.rows) >= MANY:
                self._woken.set()  # for the other hand
            sending = Sending(self._broker, taken.rows)
            await sending.ended()
            await taken.conclude(sending.done, sending.refused)
        self._tell(sending)
        self._note_stuck(sending)
        if sending.stuck and not sending.done and not sending.refused:
            raise next(iter(sending.stuck.values()))
        return True

    def _note_stuck(self, sending: Sending) -> None:
        """Subjects whose next event was not confirmed wait for a while, and hold up no others."""
        now = asyncio.get_running_loop().time()
        if len(self._stuck) > MOST_STUCK:  # it is not they, it is RabbitMQ
            self._stuck.clear()
        for row in sending.done:
            self._stuck.pop(row.subject_hash, None)
        for subject, error in sending.stuck.items():
            tries = self._stuck[subject].tries + 1 if subject in self._stuck else 1
            pause = min(0.1 * 2 ** min(tries, 10), LONGEST_PAUSE)
            self._stuck[subject] = Stuck(f"the outbox cannot be published: {error}", tries, now + pause)

    def _waiting(self) -> str | None:
        """Why some subjects wait, if any do. Those that another relay published are forgotten after a while."""
        now = asyncio.get_running_loop().time()
        for subject in [subject for subject, stuck in self._stuck.items() if stuck.until + FORGET <= now]:
            del self._stuck[subject]
        return next((stuck.why for stuck in self._stuck.values()), None)

    def _tell(self, sending: Sending) -> None:
        for row, reason in sending.refused:
            self._log.error("set aside", **_described(row), error=reason)
        if self._log.is_enabled_for(DEBUG):
            for row in sending.done:
                self._log.debug("published", key=row.key, **_described(row))


async def _happens(event: asyncio.Event, within: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(within):
            await event.wait()


def _described(row: Row[Any]) -> dict[str, str]:
    return {
        "event_name": row.name,
        "event_id": str(row.event_id),
        "correlation_id": str(row.correlation_id),
        "source": row.source,
    }


class Sending:
    """Rows being published: those of one subject one after the other, subjects together.

    Attributes:
        done: those that RabbitMQ has confirmed.
        refused: those that never will be, with the reason.
        stuck: why another was not confirmed, by subject. It, and those of its subject after it, are left as they are.
        abandoned: nobody waits any more.
    """

    def __init__(self, broker: Broker, rows: Iterable[Row[Any]]) -> None:
        self._broker = broker
        self._all = asyncio.get_running_loop().create_future()
        self.done: list[Row[Any]] = []
        self.refused: list[tuple[Row[Any], str]] = []
        self.stuck: dict[int, Exception] = {}
        self.abandoned = False
        subjects: dict[int, deque[Row[Any]]] = {}
        for row in rows:
            subjects.setdefault(row.subject_hash, deque()).append(row)
        self._under_way = len(subjects)
        for subject in subjects.values():
            self.publish_next(subject)

    async def ended(self) -> None:
        """Return when all have an answer."""
        try:
            await self._all
        finally:
            self.abandoned = True

    def publish_next(self, subject: deque[Row[Any]]) -> None:
        """Publish the next event of a subject, if it has one left."""
        settings = self._broker.settings
        while subject:
            row = subject.popleft()
            try:
                if row.size > settings.max_message_bytes:
                    raise TooLarge(
                        f"{row.size} bytes are more than BROKER_MAX_MESSAGE_BYTES={settings.max_message_bytes}"
                    )
                check_texts(row)
                return self._broker.forward(message_of(row, settings.exchange), UnderWay(self, subject, row))
            except OF_ONE as error:
                self.refuse(row, error)
        self._under_way -= 1
        if not self._under_way and not self._all.done():
            self._all.set_result(None)
        return None

    def refuse(self, row: Row[Any], error: Exception) -> None:
        """One can never be published."""
        self.refused.append((row, f"{type(error).__name__}: {error}"))


class UnderWay:
    """One row: told how its publish ended, as a `broker.transport.Waiter`."""

    __slots__ = ("_over", "_row", "_sending", "_subject")

    def __init__(self, sending: Sending, subject: deque[Row[Any]], row: Row[Any]) -> None:
        self._sending = sending
        self._subject = subject
        self._row = row
        self._over = False

    def done(self) -> bool:
        return self._over or self._sending.abandoned

    def set_result(self, result: None, /) -> None:
        self._over = True
        self._sending.done.append(self._row)
        self._sending.publish_next(self._subject)

    def set_exception(self, error: Exception, /) -> None:
        self._over = True
        if is_of_one(error):
            self._sending.refuse(self._row, error)
        else:
            self._sending.stuck[self._row.subject_hash] = error
            self._subject.clear()  # those after it wait, too
        self._sending.publish_next(self._subject)


def is_of_one(error: Exception) -> bool:
    """Whether it is a refusal of one event, which would be refused again. One of the exchange concerns all of them."""
    return isinstance(error, OF_ONE) or (isinstance(error, AccessRefused) and error.of_key)


def check_texts(row: Row[Any]) -> None:
    """Refuse what no event of ours has, but a statement of somebody else may have put there.

    Raises:
        ContractError: AMQP has no room for it.
    """
    for what, text in (("name", row.name), ("key", row.key), ("source", row.source)):
        if len(text.encode()) > AMQP_MOST:
            raise ContractError(f"its {what} has {len(text.encode())} bytes; {AMQP_MOST} is the most")


def message_of(row: Row[Any], exchange: str) -> Message:
    """A row as it is sent: as `Broker.message` made it."""
    return Message(
        exchange=exchange,
        key=row.key,
        body=row.body,
        content_type=CONTENT_TYPE,
        type=row.name,
        correlation_id=str(row.correlation_id),
        app_id=row.source,
        timestamp=row.added_at,
    )
