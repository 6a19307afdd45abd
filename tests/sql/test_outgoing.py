"""``session.add(Outgoing(...))``: the whole outbox, for programs that are no services."""

from __future__ import annotations

import json
import sqlite3
from typing import Any
from uuid import uuid4

import pytest
from pydantic import JsonValue
from sqlalchemy import create_engine, select
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from broker import Context, ContractError, Event, Service
from broker.envelope import decode
from broker.events import id_of
from broker.sql import Outgoing
from broker.sql.tables import outbox
from broker.testing import Harness
from tests.parcels import ParcelLost, ParcelSent, ParcelWeighed, weighed
from tests.sql.effects import effects, settings, stored


class AnythingSaid(Event, name="Anything Said", key="anything.said"):
    """It may hold what JSON cannot."""

    what: JsonValue


async def bodies(database: AsyncEngine) -> list[dict[str, Any]]:
    async with database.connect() as connection:
        return [json.loads(body) for body in await connection.scalars(select(outbox.c.body).order_by(outbox.c.id))]


async def test_it_is_stored_with_the_transaction(database_url: str, database: AsyncEngine) -> None:
    event = weighed(7)
    async with AsyncSession(database) as session, session.begin():
        session.add(Outgoing(event, source="web"))
        await session.execute(effects.insert().values(parcel_id=event.parcel_id, grams=7))
    (body,) = await bodies(database)
    assert (body["id"], body["source"], body["type"]) == (str(id_of(event)), "web", "Parcel Weighed")
    assert body["correlationid"] == body["id"]
    assert await stored(database) == (1, 0, 1)


async def test_what_is_rolled_back_or_never_committed_is_never_published(
    database_url: str, database: AsyncEngine
) -> None:
    async with AsyncSession(database) as session:
        session.add(Outgoing(weighed(), source="web"))
        await session.flush()
        await session.rollback()
        session.add(Outgoing(weighed(), source="web"))
        await session.flush()
    assert await stored(database) == (0, 0, 0)


def test_a_sync_session_does_as_well(sqlite_url: str) -> None:
    engine = create_engine(make_url(sqlite_url).set(drivername="sqlite"))
    with Session(engine) as session, session.begin():
        session.add_all(Outgoing(weighed(number), source="web") for number in range(3))
    engine.dispose()
    connection = sqlite3.connect(str(make_url(sqlite_url).database))
    found = connection.execute("SELECT body FROM broker_outbox ORDER BY id").fetchall()
    connection.close()
    assert [json.loads(body)["data"]["grams"] for (body,) in found] == [0, 1, 2]


async def test_id_and_story_may_be_said(database_url: str, database: AsyncEngine) -> None:
    event_id, story = uuid4(), uuid4()
    async with AsyncSession(database) as session, session.begin():
        session.add(Outgoing(weighed(), source="web", id=event_id, correlation_id=story))
    (body,) = await bodies(database)
    assert (body["id"], body["correlationid"]) == (str(event_id), str(story))
    assert "causationid" not in body


@pytest.mark.parametrize("said", [True, False])
async def test_in_a_handler_it_takes_the_story_along_unless_another_is_said(
    database_url: str, database: AsyncEngine, said: bool
) -> None:
    service, story, other = Service("packing", database=database_url), uuid4(), uuid4()

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> ParcelSent:
        more = {"correlation_id": other} if said else {}
        context.transaction.add(Outgoing(ParcelLost(parcel_id=event.parcel_id), source="packing", **more))
        return ParcelSent(parcel_id=event.parcel_id)

    async with Harness(service, settings=settings(relay=False)) as shop:
        event_id = await shop.publish(weighed(), correlation_id=story)
        from tests.waiting import until

        await until(lambda: _outbox(database))
    lost, sent = await bodies(database)
    assert (lost["type"], sent["type"]) == ("Parcel Lost", "Parcel Sent")
    assert sent["correlationid"] == str(story)
    assert lost["correlationid"] == str(other if said else story)
    assert lost.get("causationid") == (None if said else str(event_id))


async def _outbox(database: AsyncEngine) -> bool:
    return (await stored(database))[2] == 2


async def test_what_is_stored_is_what_a_broker_would_send(database_url: str, database: AsyncEngine) -> None:
    event = weighed(7)
    async with AsyncSession(database) as session, session.begin():
        session.add(Outgoing(event, source="web"))
    async with database.connect() as connection:
        row = (await connection.execute(select(outbox))).one()
    envelope = decode(row.body, key=row.key, content_type=None, headers={})
    assert envelope.decode(ParcelWeighed) == event
    assert (row.size, row.event_id, row.correlation_id) == (len(row.body), envelope.id, envelope.id)
    assert row.added_at.tzinfo is not None
    assert (row.added_at, row.set_aside_at) == (envelope.time, None)


@pytest.mark.parametrize("source", ["", "x" * 256, "two\nlines", None, 7])
def test_a_source_that_cannot_be_one_is_refused(source: Any) -> None:
    with pytest.raises(ContractError, match="source="):
        Outgoing(weighed(), source=source)


@pytest.mark.parametrize("event", [None, "Parcel Weighed", {"grams": 1}, ParcelWeighed])
def test_what_is_no_event_is_refused(event: Any) -> None:
    with pytest.raises(ContractError, match="Only an Event can be published"):
        Outgoing(event, source="web")


def test_what_cannot_be_written_as_json_is_refused() -> None:
    with pytest.raises(ContractError, match="cannot be written as JSON"):
        Outgoing(AnythingSaid(what="\ud800"), source="web")


async def test_rows_read_back_can_be_looked_at(database_url: str, database: AsyncEngine) -> None:
    async with AsyncSession(database) as session, session.begin():
        session.add(Outgoing(weighed(), source="web"))
    async with AsyncSession(database) as session:
        (row,) = await session.scalars(select(Outgoing))
        assert row.source == "web"  # type: ignore[attr-defined]
