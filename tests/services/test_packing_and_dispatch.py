"""Packing and dispatch: they work, then tell; a duplicate is no second work and no second event."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from broker import Context, Event, Service
from broker.testing import Harness
from services import dispatch, packing
from services.contracts import OrderDispatched, OrderPacked
from services.contracts.storage import open_database
from tests.services import making
from tests.waiting import counted

ORDER = making.placed()
BOTH = pytest.mark.parametrize(
    ("service", "cause", "effect"),
    [
        (packing.service, ORDER, OrderPacked(order_id=ORDER.order_id)),
        (dispatch.service, OrderPacked(order_id=ORDER.order_id), OrderDispatched(order_id=ORDER.order_id)),
    ],
)


@BOTH
async def test_it_does_its_work_and_tells(service: Service, cause: Event, effect: Event) -> None:
    async with Harness(service) as shop:
        await shop.publish(cause)
        await shop.settled()
        assert shop.published(type(effect)) == [effect]


@BOTH
async def test_a_duplicate_is_not_worked_on_and_not_told_again(
    service: Service, cause: Event, effect: Event, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{service.name.upper()}_WORKING_TIME", "0.0625")
    slept = counted(monkeypatch, asyncio, "sleep")
    async with Harness(service) as shop:
        event_id = await shop.publish(cause)
        await shop.settled()
        await shop.publish(cause, id=event_id)
        await shop.settled()
        assert shop.published(type(effect)) == [effect]
        assert shop.dead(service.name) == []
    async with Harness(service) as shop:  # another process
        await shop.publish(cause, id=event_id)
        await shop.settled()
        assert shop.published(type(effect)) == []
    assert slept.count((0.0625,)) == 1, "its working time"
    table = {"packing": "packed_orders", "dispatch": "dispatched_orders"}[service.name]
    with closing(sqlite3.connect(data / f"{service.name}.db")) as connection:
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (1,)


async def test_working_takes_the_time_that_is_set() -> None:
    settings = packing.Settings(working_time=0.1)
    async with open_database(settings.database, packing.store.Base.metadata) as database, database.write() as session:
        began = time.monotonic()
        told = await packing.pack(ORDER, Context(resources=settings, transaction=session))
        assert told == OrderPacked(order_id=ORDER.order_id)
        assert time.monotonic() - began >= 0.1
        assert await session.get(packing.store.PackedOrder, ORDER.order_id) is not None


def test_a_working_time_is_not_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKING_WORKING_TIME", "-1")
    with pytest.raises(ValueError, match="working_time"):
        packing.Settings()
