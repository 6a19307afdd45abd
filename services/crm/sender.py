"""Sending the follow-up e-mails that the handlers have stored.

An e-mail's way, as its row tells::

    waiting ──▶ written into the outbox folder ──▶ claimed ──▶ sent by SMTP ──▶ sent
       ▲                                              │            └─ no answer: in doubt
       └────────────── refused: later again ──────────┘

Writing the file can be repeated: it has the order's id for a name, and the same bytes. Sending cannot. So whoever sends
claims the e-mail first, and commits that; of several processes one succeeds. If it dies before it has noted the
server's answer, or the connection breaks before there is one, nobody can know whether the e-mail went out: it stays
*in doubt*, and is not sent again unless a person says so (``python -m services.crm release ORDER``). So an order's
e-mail is sent at most once, and one that may not have been sent is seen in ``list`` and ``show``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from uuid import UUID

import structlog
from pydantic import SecretStr
from sqlalchemy import select, update
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random_exponential

from services.contracts.storage import Database, may_pass
from services.crm import follow_up
from services.crm.store import FollowUp

log = structlog.get_logger(service="crm")
POLL = 0.2
"""Seconds between two looks for what is waiting."""
LONGEST_PAUSE = 3600
"""Seconds between two tries to send one e-mail, at most. After the first it is one second, then twice as long."""
CLAIM = timedelta(minutes=2)
"""Sending takes less. Whoever claimed an e-mail longer ago than that has died."""


class State(StrEnum):
    """How far an e-mail has come."""

    WAITING = "waiting"
    SENDING = "sending"
    IN_DOUBT = "in doubt"
    SENT = "sent"


def state_of(row: FollowUp) -> State:
    """How far an e-mail has come."""
    if row.sent_at is not None:
        return State.SENT
    if row.claimed_at is None:
        return State.WAITING
    return State.SENDING if datetime.now(UTC) - row.claimed_at < CLAIM and row.reason is None else State.IN_DOUBT


class Sender:
    """Sends what waits, until it is told to stop. Any number of them may share a database.

    Args:
        database: holds the e-mails.
        outbox: the folder into which each is written.
        smtp_url: where each is sent, see `follow_up.send`; None: nowhere.
    """

    def __init__(self, database: Database, outbox: Path, smtp_url: SecretStr | None) -> None:
        self._database = database
        self._outbox = outbox
        self._smtp_url = smtp_url
        self._stop = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """At work for as long as the context lasts; what is being sent then is finished.

        Raises:
            OutboxUnusable: the folder cannot be written.
        """
        await asyncio.to_thread(follow_up.prepare, self._outbox)
        work = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self._stop.set()
            await work

    async def _run(self) -> None:
        while not self._stop.is_set():
            try:
                for row in await waiting(self._database):
                    if not self._stop.is_set():
                        await self._send(row)
            except Exception as error:
                if not may_pass(error):
                    log.exception("unexpected", error=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL):
                    await self._stop.wait()

    async def _send(self, row: FollowUp) -> None:
        """Write an e-mail, and send it, unless another process does."""
        try:
            await asyncio.to_thread(follow_up.write, row.message, follow_up.outbox_path(self._outbox, row.order_id))
            if self._smtp_url is not None:
                if not await claim(self._database, row.order_id):
                    return
                await asyncio.to_thread(follow_up.send, row.message, self._smtp_url)
        except follow_up.NoAnswer as error:
            log.error("e-mail in doubt", order_id=str(row.order_id), error=str(error))  # noqa: TRY400
            await note(self._database, row.order_id, reason=str(error))
        except (OSError, ValueError) as error:
            log.warning("e-mail not sent", order_id=str(row.order_id), error=str(error))
            pause = timedelta(seconds=min(2.0**row.tries, LONGEST_PAUSE))
            due_at = datetime.now(UTC) + pause
            why = f"{type(error).__name__}: {error}"
            await note(self._database, row.order_id, claimed_at=None, due_at=due_at, tries=row.tries + 1, reason=why)
        else:
            await note(self._database, row.order_id, sent_at=datetime.now(UTC), reason=None)


async def waiting(database: Database) -> Sequence[FollowUp]:
    """Some e-mails that are due."""
    due = select(FollowUp).where(
        FollowUp.sent_at.is_(None), FollowUp.claimed_at.is_(None), FollowUp.due_at <= datetime.now(UTC)
    )
    async with database.read() as session:
        return (await session.scalars(due.order_by(FollowUp.due_at).limit(100))).all()


async def claim(database: Database, order_id: UUID) -> bool:
    """Claim the sending of an e-mail; False if somebody has."""
    statement = update(FollowUp).where(
        FollowUp.order_id == order_id, FollowUp.sent_at.is_(None), FollowUp.claimed_at.is_(None)
    )
    async with database.write() as session:
        claimed = await session.scalars(
            statement.values(claimed_at=datetime.now(UTC), reason=None).returning(FollowUp.order_id)
        )
        return claimed.first() is not None


async def release(database: Database, order_id: UUID) -> State | None:
    """Let an e-mail in doubt be sent again; returns how far it had come, None if there is none for that order.

    One that is in no doubt is left alone.
    """
    async with database.write() as session:
        row = await session.get(FollowUp, order_id, with_for_update=True)
        if row is None:
            return None
        state = state_of(row)
        if state is State.IN_DOUBT:
            row.claimed_at, row.due_at, row.reason = None, datetime.now(UTC), None
        return state


@retry(retry=retry_if_exception(may_pass), wait=wait_random_exponential(max=2), stop=stop_after_delay(30), reraise=True)
async def note(database: Database, order_id: UUID, **what: datetime | int | str | None) -> None:
    """Note how far an e-mail has come; again, if the database is away just then."""
    async with database.write() as session:
        await session.execute(update(FollowUp).where(FollowUp.order_id == order_id).values(**what))
