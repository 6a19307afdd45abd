"""Order: copies that never go back, orders checked against them, and a status that no order of arrival can corrupt."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from decimal import Decimal
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import Context, Event
from broker.events import uuid7
from broker.testing import Harness
from services import order
from services.contracts import (
    AddressChanged,
    CatalogItemChanged,
    CustomerDetailsChanged,
    NewOrderPlaced,
    OrderDispatched,
    OrderPacked,
)
from services.contracts.storage import Database, open_database
from services.order import copies, orders
from services.order.orders import NotKnownYet, Refused, WantedLine, WantedOrder
from services.order.store import Base
from tests.services import making
from tests.services.commands import Commands, outgoing
from tests.waiting import until

ADA, EVE, LAMP, CHAIR, DOLLARS, HOME, EVES = (uuid4() for _ in range(7))
KNOWN: list[Event] = [
    making.customer(ADA),
    making.customer(EVE, name="Eve"),
    making.item(LAMP, price="19.90"),
    making.item(CHAIR, price="0.10", name="Chair"),
    making.item(DOLLARS, currency="USD"),
    making.address(ADA, HOME),
    making.address(EVE, EVES),
]


@pytest.fixture
async def database(data: Path) -> AsyncIterator[Database]:
    """The order service's database, with copies of two customers, three items and two addresses."""
    async with open_database(order.Settings().database, Base.metadata) as database:
        await take(database, KNOWN)
        yield database


async def take(database: Database, events: Iterable[Event]) -> None:
    """Handle events as they arrive."""
    handlers = {
        CustomerDetailsChanged: order.copy_customer,
        CatalogItemChanged: order.copy_item,
        AddressChanged: order.copy_address,
        OrderPacked: order.record_status,
        OrderDispatched: order.record_status,
    }
    for event in events:
        async with database.write() as session:
            await handlers[type(event)](event, Context(transaction=session))  # type: ignore[operator]


def wanted(*lines: tuple[UUID, int], customer: UUID = ADA, address: UUID = HOME) -> WantedOrder:
    return WantedOrder(
        customer_id=customer,
        address_id=address,
        lines=tuple(WantedLine(item_id=item, quantity=quantity) for item, quantity in lines or [(LAMP, 1)]),
    )


async def test_a_copy_is_what_its_owner_told(database: Database) -> None:
    known = await copies.everything(database)
    assert {*map(str, known.customers), *map(str, known.items), *map(str, known.addresses)} == set(map(str, KNOWN))


REVISIONS = st.lists(st.integers(1, 8), min_size=1, max_size=12)


@settings(max_examples=12, deadline=None)
@given(customers=REVISIONS, items=REVISIONS, addresses=REVISIONS)
def test_a_copy_never_goes_back(customers: list[int], items: list[int], addresses: list[int]) -> None:
    """Whatever order the revisions arrive in, and however often: the newest that has arrived stands, always."""
    arriving: list[Event] = [
        *(making.customer(ADA, revision, name=f"Ada {revision}") for revision in customers),
        *(making.item(LAMP, revision, price=f"{revision}.00") for revision in items),
        *(making.address(ADA, HOME, revision, city=f"City {revision}") for revision in addresses),
    ]

    async def arrive() -> None:
        with TemporaryDirectory() as folder:
            async with open_database(f"sqlite+aiosqlite:///{folder}/order.db", Base.metadata) as database:
                newest: dict[type[Event], Event] = {}
                for event in arriving:
                    await take(database, [event])
                    known = newest.setdefault(type(event), event)
                    if event.model_dump()["revision"] > known.model_dump()["revision"]:
                        newest[type(event)] = event
                    stored = await copies.everything(database)
                    assert [*stored.customers, *stored.items, *stored.addresses] == list(newest.values())

    asyncio.run(arrive())


async def test_an_equal_revision_changes_nothing(database: Database) -> None:
    await take(database, [making.customer(ADA, 1, name="Somebody else")])
    [ada] = [customer for customer in (await copies.everything(database)).customers if customer.customer_id == ADA]
    assert ada.name == "Ada Lovelace"


async def test_an_order_has_the_names_and_prices_of_now(database: Database) -> None:
    before = await orders.place(database, wanted((LAMP, 2), (CHAIR, 3)))
    await take(database, [making.item(LAMP, 2, price="25.00", name="Desk lamp")])
    after = await orders.place(database, wanted((LAMP, 2), (CHAIR, 3)))
    assert (str(before.total), str(after.total)) == ("40.10 EUR", "50.30 EUR")
    assert [line.name for line in after.lines] == ["Desk lamp", "Chair"]
    assert await orders.everything(database) == [before, after]
    assert await orders.find(database, before.order_id) == before


@settings(max_examples=12, deadline=None)
@given(
    lines=st.lists(
        st.tuples(st.decimals(0, Decimal("99999.99"), places=2), st.integers(1, 1000)), min_size=1, max_size=5
    )
)
def test_a_total_is_exact(lines: list[tuple[Decimal, int]]) -> None:
    async def total() -> Decimal:
        with TemporaryDirectory() as folder:
            async with open_database(f"sqlite+aiosqlite:///{folder}/order.db", Base.metadata) as database:
                items = [making.item(price=str(price)) for price, _ in lines]
                await take(database, [*KNOWN, *items])
                chosen = [(item.item_id, quantity) for item, (_, quantity) in zip(items, lines, strict=True)]
                placed = await orders.place(database, wanted(*chosen))
                return orders.PlacedOrder.model_validate_json(placed.model_dump_json()).total.amount

    assert asyncio.run(total()) == sum(price * quantity for price, quantity in lines)


@pytest.mark.parametrize(
    ("order_wanted", "why"),
    [
        (wanted(customer=uuid4()), "no customer"),
        (wanted(address=uuid4()), "no address"),
        (wanted((uuid4(), 1)), "no item"),
        (wanted((LAMP, 1), (uuid4(), 1)), "no item"),
        (wanted(address=EVES), "not one of the customer"),
        (wanted((LAMP, 0)), "at least 1"),
        (wanted((LAMP, 1), (CHAIR, -1)), "at least 1"),
        (wanted((LAMP, 10**6 + 1)), "of one item"),
        (wanted((LAMP, 10**30)), "of one item"),
        (wanted((LAMP, 1), (DOLLARS, 1)), "EUR and USD"),
        (wanted(*[(LAMP, 10**6)] * 600), "total"),
        (WantedOrder(customer_id=ADA, address_id=HOME, lines=()), "at least one line"),
    ],
)
async def test_what_cannot_be_ordered_is_refused_and_not_stored(
    database: Database, order_wanted: WantedOrder, why: str
) -> None:
    with pytest.raises(Refused, match=why):
        await orders.place(database, order_wanted)
    assert await orders.everything(database) == []


async def test_only_what_may_still_arrive_is_not_known_yet(database: Database) -> None:
    with pytest.raises(NotKnownYet):
        await orders.place(database, wanted(customer=uuid4()))
    with pytest.raises(Refused) as refused:
        await orders.place(database, wanted(address=EVES))
    assert not isinstance(refused.value, NotKnownYet)


@pytest.mark.parametrize("steps", [*permutations(["placed", "packed", "dispatched"])])
async def test_the_status_does_not_depend_on_the_order_of_arrival(
    database: Database, steps: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later facts may come before the order is known at all."""
    order_id = uuid4()
    monkeypatch.setattr(orders, "uuid4", lambda: order_id)
    arrived: set[str] = set()
    for step in steps:
        if step == "placed":
            await orders.place(database, wanted())
        else:
            event = OrderPacked(order_id=order_id) if step == "packed" else OrderDispatched(order_id=order_id)
            await take(database, [event])
        arrived.add(step)
        known = await orders.find(database, order_id)
        if "placed" not in arrived:
            assert known is None
            continue
        assert known is not None
        reached = [status for status in ("placed", "packed", "dispatched") if status in arrived]
        assert [fact.status for fact in known.history] == reached
        assert known.status == reached[-1]


async def test_facts_about_an_order_of_somebody_else_show_nowhere(database: Database) -> None:
    await take(database, [OrderPacked(order_id=uuid4()), OrderDispatched(order_id=uuid4())])
    assert await orders.everything(database) == []


async def test_duplicates_change_nothing() -> None:
    placed_elsewhere = OrderPacked(order_id=uuid4())
    async with Harness(order.service) as shop:
        for event in [*KNOWN, placed_elsewhere] * 2:
            await shop.publish(event)
        await shop.settled()
        assert shop.dead("order") == []
    async with open_database(order.Settings().database, Base.metadata) as database:
        assert len((await copies.everything(database)).items) == 3


async def test_orders_are_listed_and_told_of_as_they_were_placed(database: Database) -> None:
    placed = []
    for _ in range(3):
        placed.append(await orders.place(database, wanted()))
        # the ids of events know milliseconds
        await until(lambda: uuid7().int >> 80 > placed[-1].event_id.int >> 80, every=0.001)
    assert await orders.everything(database) == placed
    async with Harness(order.service) as shop:
        await shop.settled()
        told = shop.published(NewOrderPlaced)
    assert {event.order_id for event in told} == {one.order_id for one in placed}
    assert {(event.lines, event.total) for event in told} == {(one.lines, one.total) for one in placed}


# The commands


@pytest.fixture
def run() -> Commands:
    """The commands of a service that knows `KNOWN`."""

    async def know() -> None:
        async with open_database(order.Settings().database, Base.metadata) as database:
            await take(database, KNOWN)

    asyncio.run(know())
    return Commands()


PLACE = ["place", "--customer", str(ADA), "--address", str(HOME), "--line", f"{LAMP}=2"]


def test_placing_stores_the_order_with_its_event_and_prints(run: Commands) -> None:
    placed = run.json("order", *PLACE, "--line", f"{CHAIR}=1")
    [told] = outgoing("order")
    assert (told["type"], told["source"], told["id"]) == ("New Order Placed", "order", placed["event_id"])
    assert told["data"] == {field: placed[field] for field in told["data"]}
    assert placed["total"] == {"amount": "39.90", "currency": "EUR"}
    assert placed["status"] == "placed"
    assert run.json("order", "list") == [placed]
    assert run.json("order", "show", placed["order_id"]) == placed
    assert "39.90 EUR" in run("order", "show", placed["order_id"]).stdout
    assert run("order", "list").exit_code == 0
    assert run("order", *PLACE).stdout.startswith("Placed order ")


def test_a_refused_order_is_not_told_of(run: Commands) -> None:
    result = run("order", *PLACE, "--line", f"{LAMP}=0")
    assert (result.exit_code, result.stdout, outgoing("order")) == (2, "", [])
    assert result.stderr == "A quantity is at least 1.\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["place"],
        ["place", "--customer", str(ADA)],
        ["place", "--customer", str(ADA), "--address", str(HOME)],
        [*PLACE, "--file", "-"],
        [*PLACE, "--line", "lamp"],
        [*PLACE, "--line", f"{LAMP}=two"],
        [*PLACE, "--wait", "-1"],
        ["show", "one"],
        ["show", str(uuid4())],
    ],
)
def test_calling_it_wrongly_is_exit_code_2(arguments: list[str], run: Commands) -> None:
    assert (run("order", *arguments, stdin="").exit_code, outgoing("order")) == (2, [])


def test_many_are_placed_from_lines_and_a_refused_line_stops_nobody(run: Commands) -> None:
    good = wanted((LAMP, 1)).model_dump_json()
    result = run(
        "order",
        "place",
        "--file",
        "-",
        "--json",
        stdin=f"{good}\nnonsense\n\n{wanted((LAMP, 0)).model_dump_json()}\n{good}",
    )
    printed = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 2
    assert [line.get("line") for line in printed] == [None, 2, 4, None]
    assert printed[2]["refused"] == "A quantity is at least 1."
    assert "line 4: A quantity is at least 1." in result.stderr
    assert [event["data"]["order_id"] for event in outgoing("order")] == [
        printed[0]["order_id"],
        printed[3]["order_id"],
    ]


def test_waiting_for_a_customer_whose_event_is_on_its_way(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    place, late = orders.place, making.customer()
    refused = 0

    async def place_and_let_it_arrive(database: Database, order: WantedOrder) -> orders.PlacedOrder:
        nonlocal refused
        try:
            return await place(database, order)
        except NotKnownYet:
            refused += 1
            await take(database, [late, making.address(late.customer_id, late.customer_id)])
            raise

    monkeypatch.setattr(orders, "place", place_and_let_it_arrive)
    customer = str(late.customer_id)
    arguments = ["place", "--customer", customer, "--address", customer, "--line", f"{LAMP}=1"]
    assert run("order", *arguments, "--wait", "30").exit_code == 0
    assert refused == 1


def test_not_waiting_refuses_at_once(run: Commands) -> None:
    assert run("order", "place", "--customer", str(uuid4()), *PLACE[3:]).exit_code == 2


def test_the_copies_can_be_looked_at(run: Commands) -> None:
    known = run.json("order", "copies")
    assert [len(known[kind]) for kind in ("customers", "items", "addresses")] == [2, 3, 2]
    assert "Ada Lovelace" in run("order", "copies").stdout
