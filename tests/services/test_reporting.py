"""Reporting: nothing counts twice, nothing is missing, and the view is at most a second behind."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from io import StringIO
from itertools import pairwise, permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from broker import Context, Event
from broker.testing import Harness
from services import reporting
from services.contracts import NewOrderPlaced, OrderDispatched, OrderPacked
from services.contracts.storage import Database, open_database
from services.reporting import __main__ as command
from services.reporting import levels, view
from services.reporting.levels import BARS, Bar, Levels, Times, Took
from services.reporting.store import Base
from tests.services import making
from tests.services.commands import Commands
from tests.waiting import counted, until

MINUTE = timedelta(minutes=1)


@pytest.fixture
async def database(data: Path) -> AsyncIterator[Database]:
    async with open_database(reporting.Settings().database, Base.metadata) as database:
        yield database


async def tell(database: Database, event: Event, at: datetime | None = None) -> None:
    """Handle an event that happened at this time."""
    async with database.write() as session:
        context = Context(transaction=session, time=at or datetime.now(UTC))
        if isinstance(event, NewOrderPlaced):
            await reporting.placed(event, context)
        elif isinstance(event, OrderPacked | OrderDispatched):
            await reporting.progressed(event, context)


def story(order: NewOrderPlaced) -> list[Event]:
    return [order, OrderPacked(order_id=order.order_id), OrderDispatched(order_id=order.order_id)]


@pytest.mark.parametrize("order", [*permutations(range(3))])
async def test_what_is_counted_does_not_depend_on_the_order_of_arrival(
    database: Database, order: tuple[int, ...]
) -> None:
    began = datetime.now(UTC) - MINUTE / 2
    events = story(making.placed())
    for which in order:
        await tell(database, events[which], began + timedelta(seconds=which))
    now = await levels.measure(database, MINUTE)
    assert (now.placed, now.packed, now.dispatched) == (1, 1, 1)
    assert now.revenue == {"EUR": Decimal("39.80")}
    assert now.times == Times(
        placed_to_packed=Took(median=1.0, p95=1.0), packed_to_dispatched=Took(median=1.0, p95=1.0)
    )
    [line] = await levels.orders(database)
    assert line.status == "dispatched"


async def test_an_order_counts_for_what_is_known_of_it(database: Database) -> None:
    order_id = uuid4()
    await tell(database, OrderDispatched(order_id=order_id))
    now = await levels.measure(database, MINUTE)
    assert (now.placed, now.packed, now.dispatched, now.revenue) == (0, 0, 1, {})
    [line] = await levels.orders(database)
    assert (line.order_id, line.total, line.placed_at) == (order_id, None, None)


@settings(max_examples=10, deadline=None)
@given(
    totals=st.lists(
        st.tuples(st.sampled_from(["EUR", "USD", "CHF"]), st.decimals(0, Decimal("9999999999.99"), places=2)),
        max_size=20,
    )
)
def test_revenue_is_exact_for_each_currency(totals: list[tuple[str, Decimal]]) -> None:
    async def revenue() -> dict[str, Decimal]:
        with TemporaryDirectory() as folder:
            async with open_database(f"sqlite+aiosqlite:///{folder}/reporting.db", Base.metadata) as database:
                for currency, amount in totals:
                    await tell(database, making.placed(total=str(amount), currency=currency))
                return (await levels.measure(database, MINUTE)).revenue

    expected: dict[str, Decimal] = defaultdict(Decimal)
    for currency, amount in totals:
        expected[currency] += amount
    assert asyncio.run(revenue()) == expected


async def test_the_bars_hold_what_happened_lately(database: Database) -> None:
    now = datetime.now(UTC)
    for seconds in (1, 1, 20, 50, 3600):
        await tell(database, making.placed(), now - timedelta(seconds=seconds))
    await tell(database, making.placed(), now + timedelta(seconds=30))  # a clock that is ahead
    measured = await levels.measure(database, MINUTE)
    bars = measured.levels
    assert len(bars) == BARS
    assert {after.start - before.start for before, after in pairwise(bars)} == {MINUTE / BARS}
    assert bars[-1].start <= measured.as_of < bars[-1].start + MINUTE / BARS
    assert sum(bar.placed for bar in bars) == 5
    assert sum(bar.placed for bar in bars[-2:]) == 3
    assert sum(bar.packed + bar.dispatched for bar in bars) == 0


async def test_half_are_faster_than_the_median_and_95_of_100_than_p95(database: Database) -> None:
    began = datetime.now(UTC)
    for hundredth in range(1, 101):
        order = making.placed()
        await tell(database, order, began)
        await tell(database, OrderPacked(order_id=order.order_id), began + timedelta(milliseconds=10 * hundredth))
    took = (await levels.measure(database, MINUTE)).times.placed_to_packed
    assert took is not None
    assert (round(took.median, 3), took.p95) == (0.505, 0.95)


async def test_duplicates_change_nothing(data: Path) -> None:
    orders = [making.placed() for _ in range(10)]
    async with Harness(reporting.service) as shop:
        for event in [event for order in orders for event in reversed(story(order))]:
            event_id = await shop.publish(event)
            await shop.publish(event, id=event_id)
        await shop.settled()
        assert shop.dead("reporting") == []
    with closing(sqlite3.connect(data / "reporting.db")) as connection:
        counted = connection.execute("SELECT status, count(*) FROM facts GROUP BY status ORDER BY status")
        assert counted.fetchall() == [("dispatched", 10), ("packed", 10), ("placed", 10)]


# What is drawn


def drawn(*bars: tuple[int, int, int]) -> Levels:
    return Levels(
        placed=1234,
        packed=1200,
        dispatched=1100,
        revenue={"CHF": Decimal("10.00"), "EUR": Decimal("1234567.89")},
        times=Times(placed_to_packed=Took(median=0.05, p95=0.1), packed_to_dispatched=None),
        levels=[
            Bar(start=datetime(2025, 6, 1, tzinfo=UTC), placed=placed, packed=packed, dispatched=dispatched)
            for placed, packed, dispatched in bars
        ],
        as_of=datetime(2025, 6, 1, 12, 30, tzinfo=UTC),
    )


def test_the_view_shows_figures_and_charts() -> None:
    console = Console(width=120, record=True, file=StringIO())
    console.print(view.draw(drawn((8, 0, 0), (4, 1, 0)), MINUTE))
    text = console.export_text()
    for said in ("1234", "1200", "1100", "10.00 CHF + 1,234,567.89 EUR", "0.05 s", "0.10 s", "12:30:00 UTC", "████"):
        assert said in text


def test_a_bar_is_as_high_as_its_count() -> None:
    assert view.bars([0, 1, 2, 4], 2) == ["      ██", "  ▄▄████"]
    assert view.bars([0, 0], 1) == ["    "]
    assert view.bars([], 1) == [""]


def test_whatever_is_not_zero_can_be_seen() -> None:
    assert view.bars([1, 100_000], 1) == ["▁▁██"]


# The commands


def test_the_levels_as_json(data: Path) -> None:
    async def fill() -> UUID:
        async with open_database(reporting.Settings().database, Base.metadata) as database:
            order = making.placed()
            for event in story(order):
                await tell(database, event)
            return order.order_id

    order_id = asyncio.run(fill())
    run = Commands()
    shown = run.json("reporting", "show")
    assert (shown["placed"], shown["packed"], shown["dispatched"]) == (1, 1, 1)
    assert shown["revenue"] == {"EUR": "39.80"}
    assert set(shown["times"]) == {"placed_to_packed", "packed_to_dispatched"}
    [line] = run.json("reporting", "list")
    assert (line["order_id"], line["status"]) == (str(order_id), "dispatched")
    assert line["total"] == {"amount": "39.80", "currency": "EUR"}
    assert "Ordering levels" in run("reporting", "show").stdout
    assert "39.80" in run("reporting", "list").stdout


@pytest.mark.parametrize("arguments", [["show", "--watch", "--json"], ["show", "--over", "0"], ["nonsense"]])
def test_calling_it_wrongly_is_exit_code_2(arguments: list[str]) -> None:
    assert Commands()("reporting", *arguments).exit_code == 2


async def test_watching_is_at_most_a_second_behind(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a terminal: a line whenever a figure changes."""
    assert command.REFRESH <= 0.5, "a look that is under way is followed by one that sees it"
    looked = counted(monkeypatch, levels, "measure")
    watching = asyncio.create_task(command.keep_showing(MINUTE))
    try:
        for count in (0, 1, 2, 3):
            if count:
                await tell(database, making.placed())
            looked.clear()
            await until(lambda: len(looked) > 1)
            assert f"placed {count} " in capsys.readouterr().out
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_a_terminal_is_drawn_again_and_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=100, height=40, force_terminal=True, record=True, file=StringIO())
    monkeypatch.setattr(command, "Console", lambda: console)
    watching = asyncio.create_task(command.keep_showing(MINUTE))
    try:
        await tell(database, making.placed(total="77.70"))
        await until(lambda: "77.70 EUR" in console.export_text(clear=False))
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def test_json_holds_decimals_as_text() -> None:
    assert json.loads(drawn().model_dump_json())["revenue"] == {"CHF": "10.00", "EUR": "1234567.89"}
