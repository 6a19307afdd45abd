"""Customer, catalog and address: they own their entities, and tell of every change with its revision, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from pydantic import ValidationError

from broker import Service
from broker.testing import Harness
from services import address, catalog, customer
from services.address import addresses
from services.catalog import items
from services.contracts import CustomerDetailsChanged, Money
from services.contracts.storage import Database, open_database
from services.customer import customers

EUR = "EUR"


@pytest.fixture
async def database(data: Path) -> AsyncIterator[Database]:
    """The database of the customer service."""
    async with open_database(customer.Settings().database, customer.store.Base.metadata) as database:
        yield database


@pytest.fixture
async def catalog_database(data: Path) -> AsyncIterator[Database]:
    async with open_database(catalog.Settings().database, catalog.store.Base.metadata) as database:
        yield database


@pytest.fixture
async def address_database(data: Path) -> AsyncIterator[Database]:
    async with open_database(address.Settings().database, address.store.Base.metadata) as database:
        yield database


def ada(customer_id: UUID | None = None) -> customers.NewCustomer:
    return customers.NewCustomer(name="Ada", email="ada@example.com", customer_id=customer_id or uuid4())


async def test_a_customer_is_added_as_revision_one_and_changed_as_the_next(database: Database) -> None:
    [added] = await customers.add(database, [ada()])
    assert (added.revision, added.name, added.email) == (1, "Ada", "ada@example.com")
    changed = await customers.change(database, added.customer_id, email="ada@lovelace.example")
    assert (changed.customer_id, changed.revision) == (added.customer_id, 2)
    assert (changed.name, changed.email) == ("Ada", "ada@lovelace.example")
    assert await customers.everything(database) == [changed]


async def test_an_item_keeps_what_is_not_changed(catalog_database: Database) -> None:
    new = items.NewItem(name="Lamp", price=Money(amount=Decimal("19.90"), currency=EUR))
    [added] = await items.add(catalog_database, [new])
    dearer = await items.change(catalog_database, added.item_id, amount="21.50")
    renamed = await items.change(catalog_database, added.item_id, name="Desk lamp")
    assert (dearer.name, str(dearer.price), dearer.revision) == ("Lamp", "21.50 EUR", 2)
    assert (renamed.name, str(renamed.price), renamed.revision) == ("Desk lamp", "21.50 EUR", 3)
    assert await items.everything(catalog_database) == [renamed]


async def test_an_address_stays_its_customers(address_database: Database) -> None:
    owner = uuid4()
    new = addresses.NewAddress(customer_id=owner, street="A 1", city="Berlin", postcode="10115", country="DE")
    [added] = await addresses.add(address_database, [new])
    moved = await addresses.change(address_database, added.address_id, city="Wien", country="AT")
    assert (moved.customer_id, moved.street, moved.city, moved.country, moved.revision) == (
        owner,
        "A 1",
        "Wien",
        "AT",
        2,
    )
    assert await addresses.everything(address_database) == [moved]


async def test_all_are_added_or_none(database: Database) -> None:
    first = ada()
    await customers.add(database, [first])
    with pytest.raises(customers.Refused, match=str(first.customer_id)):
        await customers.add(database, [ada(), first])
    twin = uuid4()
    with pytest.raises(customers.Refused, match=str(twin)):
        await customers.add(database, [ada(twin), ada(twin)])
    assert [known.customer_id for known in await customers.everything(database)] == [first.customer_id]


async def test_what_does_not_exist_cannot_change(
    database: Database, catalog_database: Database, address_database: Database
) -> None:
    unknown = uuid4()
    with pytest.raises(customers.Refused, match=f"no customer {unknown}"):
        await customers.change(database, unknown, name="Eve")
    with pytest.raises(items.Refused, match=f"no item {unknown}"):
        await items.change(catalog_database, unknown, name="Lamp")
    with pytest.raises(addresses.Refused, match=f"no address {unknown}"):
        await addresses.change(address_database, unknown, city="Wien")


async def test_a_change_that_cannot_be_stores_nothing(database: Database) -> None:
    [added] = await customers.add(database, [ada()])
    with pytest.raises(ValidationError):
        await customers.change(database, added.customer_id, email="nowhere")
    assert await customers.everything(database) == [added]


async def test_no_revision_is_given_twice(database: Database) -> None:
    """Two commands change one customer at the same time."""
    [added] = await customers.add(database, [ada()])
    async with open_database(customer.Settings().database, customer.store.Base.metadata) as other:
        changed = await asyncio.gather(
            *(
                customers.change(each, added.customer_id, name=f"Ada {n}")
                for n in range(10)
                for each in (database, other)
            )
        )
    assert sorted(event.revision for event in changed) == list(range(2, 22))
    [last] = await customers.everything(database)
    assert last == max(changed, key=lambda event: event.revision)


async def test_everything_comes_in_the_order_of_ids(database: Database) -> None:
    await customers.add(database, [ada() for _ in range(5)])
    ids = [known.customer_id for known in await customers.everything(database)]
    assert ids == sorted(ids, key=str)


async def test_a_change_is_stored_and_told_or_neither(database: Database) -> None:
    """What the commands stored while the service did not run is published by its process, once, in order."""
    [added] = await customers.add(database, [ada()])
    changed = await customers.change(database, added.customer_id, name="Ada Lovelace")
    with pytest.raises(customers.Refused):
        await customers.add(database, [ada(), ada(added.customer_id)])
    async with Harness(customer.service) as shop:
        await shop.settled()
        assert shop.published(CustomerDetailsChanged) == [added, changed]
        assert await customers.announce(database) == 1
        await shop.settled()
        assert shop.published(CustomerDetailsChanged) == [added, changed, changed]
    async with Harness(customer.service) as shop:
        await shop.settled()
        assert shop.published(CustomerDetailsChanged) == []


@pytest.mark.parametrize("service", [customer.service, catalog.service, address.service], ids=lambda it: it.name)
async def test_an_owners_process_listens_to_nothing_and_creates_its_database(data: Path, service: Service) -> None:
    async with Harness(service) as shop:
        await shop.settled()
    assert service.subscribes == []
    assert (data / f"{service.name}.db").exists()
