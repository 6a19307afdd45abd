"""The whole shop, in memory, on SQLite and on PostgreSQL: what its services promise each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from broker import Retry, Service
from broker.testing import Harness
from services import address, catalog, crm, customer, dispatch, order, packing, reporting
from services.contracts import NewOrderPlaced, OrderDispatched, OrderPacked
from services.contracts.storage import open_database
from services.crm import records
from services.order import copies, orders
from services.reporting import levels
from tests.services import making
from tests.waiting import until

SHOP = (
    customer.service,
    catalog.service,
    address.service,
    order.service,
    packing.service,
    dispatch.service,
    crm.service,
    reporting.service,
)
SEQUENCE = {
    ("New Order Placed", "packing"),
    ("New Order Placed", "crm"),
    ("New Order Placed", "reporting"),
    ("Order Packed", "order"),
    ("Order Packed", "crm"),
    ("Order Packed", "reporting"),
    ("Order Packed", "dispatch"),
    ("Order Dispatched", "order"),
    ("Order Dispatched", "crm"),
    ("Order Dispatched", "reporting"),
}
"""Placing one order: which event each service handles. No arrow more, and none less."""

SUBSCRIBES = {
    "customer": set(),
    "catalog": set(),
    "address": set(),
    "order": {
        "Customer Details Changed",
        "Catalog Item Changed",
        "Address Changed",
        "Order Packed",
        "Order Dispatched",
    },
    "packing": {"New Order Placed"},
    "dispatch": {"Order Packed"},
    "crm": {"Customer Details Changed", "New Order Placed", "Order Packed", "Order Dispatched"},
    "reporting": {"New Order Placed", "Order Packed", "Order Dispatched"},
}
PUBLISHES = {
    "customer": {"Customer Details Changed"},
    "catalog": {"Catalog Item Changed"},
    "address": {"Address Changed"},
    "order": {"New Order Placed"},
    "packing": {"Order Packed"},
    "dispatch": {"Order Dispatched"},
    "crm": set(),
    "reporting": set(),
}


@pytest.fixture(params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest, data: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each service has a database of its own."""
    if request.param == "postgresql":
        create: Callable[[], str] = request.getfixturevalue("postgres_url")
        for service in SHOP:
            monkeypatch.setenv(f"{service.name.upper()}_DATABASE", create())
    return str(request.param)


async def in_outbox(data: Path, count: int) -> None:
    """Wait until the e-mails of so many orders are written."""
    await until(lambda: len(list((data / "outbox").glob("*.eml"))) >= count)


def handled(shop: Harness) -> Counter[tuple[str, str]]:
    """How often each service handled each event, read from the story."""
    lines = [line.split(maxsplit=2) for line in shop.story.splitlines() if " handled " in line]
    return Counter((event, who) for who, _, rest in lines if (event := rest.rpartition(" attempt ")[0].strip()))


@pytest.mark.parametrize("service", SHOP, ids=lambda service: service.name)
def test_a_service_subscribes_and_publishes_what_it_should(service: Service) -> None:
    service.check()
    taken = {event.__contract__.name for handler in service.subscribes for event in handler.events}
    assert taken == SUBSCRIBES[service.name]
    assert {event.__contract__.name for event in service.publishes} == PUBLISHES[service.name]


def test_fourteen_pairs_need_five_queues() -> None:
    assert sum(len(events) for events in SUBSCRIBES.values()) == 14
    assert sum(bool(service.subscribes) for service in SHOP) == 5


async def test_one_order_is_exactly_this_sequence(data: Path, databases: str) -> None:
    ada, lamp = making.customer(), making.item()
    home = making.address(ada.customer_id)
    async with Harness(*SHOP) as shop:
        for known in (ada, lamp, home):
            await shop.publish(known)
        await shop.settled()
        before = handled(shop)
        async with open_database(order.Settings().database, order.store.Base.metadata) as database:
            line = orders.WantedLine(item_id=lamp.item_id, quantity=2)
            placed = await orders.place(
                database,
                orders.WantedOrder(customer_id=ada.customer_id, address_id=home.address_id, lines=(line,)),
            )
            await shop.settled()
            known_order = await orders.find(database, placed.order_id)
        assert handled(shop) - before == Counter(SEQUENCE)
        [told] = shop.published(NewOrderPlaced)
        assert (told.order_id, told.lines, told.total) == (placed.order_id, placed.lines, placed.total)
        assert shop.published(OrderPacked) == [OrderPacked(order_id=placed.order_id)]
        assert shop.published(OrderDispatched) == [OrderDispatched(order_id=placed.order_id)]
        assert known_order is not None
        assert [reached.status for reached in known_order.history] == ["placed", "packed", "dispatched"]
        await in_outbox(data, 1)
    assert [path.name for path in (data / "outbox").iterdir()] == [f"{placed.order_id}.eml"]


async def test_every_event_three_times_changes_nothing(data: Path, databases: str) -> None:
    ada = making.customer()
    placed = [making.placed(ada.customer_id, total="10.10") for _ in range(5)]
    async with Harness(*SHOP) as shop:
        for event in [ada, *placed]:
            for _ in range(3):
                await shop.publish(event)
        await shop.settled()
        packed = {packed.order_id: packed for packed in shop.published(OrderPacked)}
        assert len(shop.published(OrderPacked)) == len(shop.published(OrderDispatched)) == len(packed) == 5
        for event in [ada, *placed]:
            await shop.publish(event)
        await shop.settled()
        await shop.advance(hours=1)
        assert len(shop.published(OrderPacked)) == len(shop.published(OrderDispatched)) == 5
        assert not any(shop.dead(service) for service in ("order", "packing", "dispatch", "crm", "reporting"))
        await in_outbox(data, 5)
    async with open_database(reporting.Settings().database, reporting.store.Base.metadata) as database:
        now = await levels.measure(database, timedelta(minutes=1))
        assert (now.placed, now.packed, now.dispatched) == (5, 5, 5)
        assert {currency: str(amount) for currency, amount in now.revenue.items()} == {"EUR": "50.50"}
        assert [line.status for line in await levels.orders(database)] == ["dispatched"] * 5
    async with open_database(crm.Settings().database, crm.store.Base.metadata) as database:
        [record] = await records.everybody(database)
        assert {found.order_id for found in record.orders} == {order.order_id for order in placed}
        assert all(found.status == "dispatched" for found in record.orders)
    assert len(list((data / "outbox").iterdir())) == 5


async def test_copies_never_go_back_whatever_comes_at_once(databases: str) -> None:
    """Ten revisions of one customer, ten of one item, all at the same time."""
    ada, lamp = making.customer(), making.item()
    async with Harness(order.service, crm.service) as shop:
        for revision in (7, 2, 10, 1, 9, 4, 8, 3, 6, 5):
            await shop.publish(making.customer(ada.customer_id, revision, name=f"Ada {revision}"))
            await shop.publish(making.item(lamp.item_id, revision, price=f"{revision}.00"))
        await shop.settled()
        await shop.advance(hours=1)
        assert shop.dead("order") == shop.dead("crm") == []
    async with open_database(order.Settings().database, order.store.Base.metadata) as database:
        known = await copies.everything(database)
    assert [(c.revision, c.name) for c in known.customers] == [(10, "Ada 10")]
    assert [(i.revision, str(i.price)) for i in known.items] == [(10, "10.00 EUR")]
    async with open_database(crm.Settings().database, crm.store.Base.metadata) as database:
        assert [record.name for record in await records.everybody(database)] == ["Ada 10"]


async def test_a_service_that_is_down_costs_the_others_nothing() -> None:
    """Packing is not there: everybody else has handled the order."""
    ada = making.customer()
    async with Harness(order.service, crm.service, reporting.service, dispatch.service) as shop:
        await shop.publish(ada)
        await shop.settled()
        await shop.publish(making.placed(ada.customer_id))
        await shop.settled()
        assert shop.published(OrderPacked) == []
        assert [shop.dead(service) for service in ("order", "crm", "reporting", "dispatch")] == [[]] * 4


def test_the_crms_ladder_is_quick_at_first() -> None:
    assert isinstance(crm.service.retry, Retry)
    assert str(crm.service.retry.delays[0]) == "1s"
