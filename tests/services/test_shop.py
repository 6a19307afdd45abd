"""The whole shop, in memory: what its services promise each other."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from broker import Retry, Service
from broker.testing import Harness
from services import address, catalog, crm, customer, dispatch, order, packing, reporting
from services.contracts import NewOrderPlaced, OrderDispatched, OrderPacked
from services.contracts.storage import open_database
from services.crm import records
from services.reporting import levels
from tests.services import making

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


async def test_one_order_is_exactly_this_sequence(data: Path) -> None:
    ada = making.customer()
    placed = making.placed(ada.customer_id)
    async with Harness(*SHOP) as shop:
        await shop.publish(ada)
        await shop.settled()
        before = handled(shop)
        await shop.publish(placed)
        await shop.settled()
        assert handled(shop) - before == Counter(SEQUENCE)
        assert shop.published(NewOrderPlaced) == [placed]
        assert shop.published(OrderPacked) == [OrderPacked(order_id=placed.order_id)]
        assert shop.published(OrderDispatched) == [OrderDispatched(order_id=placed.order_id)]
    assert [path.name for path in (data / "outbox").iterdir()] == [f"{placed.order_id}.eml"]


async def test_every_event_twice_changes_nothing(data: Path) -> None:
    """Orders placed, everything told again with the same and with other ids: nothing counts twice."""
    ada = making.customer()
    orders = [making.placed(ada.customer_id, total="10.10") for _ in range(5)]
    async with Harness(*SHOP) as shop:
        for event in [ada, *orders]:
            event_id = await shop.publish(event)
            await shop.publish(event, id=event_id)
            await shop.publish(event.model_copy(update={}))
        await shop.settled()
        for told in [*orders, *(OrderPacked(order_id=placed.order_id) for placed in orders)]:
            await shop.publish(told.model_copy())
        await shop.settled()
        await shop.advance(hours=1)
        assert not any(shop.dead(service) for service in ("order", "packing", "dispatch", "crm", "reporting"))
    async with open_database(reporting.Settings().database, reporting.store.Base.metadata) as database:
        now = await levels.measure(database, timedelta(minutes=1))
        assert (now.placed, now.packed, now.dispatched) == (5, 5, 5)
        assert {currency: str(amount) for currency, amount in now.revenue.items()} == {"EUR": "50.50"}
    async with open_database(crm.Settings().database, crm.store.Base.metadata) as database:
        [record] = await records.everybody(database)
        assert {found.order_id for found in record.orders} == {placed.order_id for placed in orders}
        assert all(found.status == "dispatched" for found in record.orders)
    assert len(list((data / "outbox").iterdir())) == 5


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
