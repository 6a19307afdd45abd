"""The README's loyalty service, taken from the README word for word, beside the shop."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest

from broker import Broker, Event
from broker.tools.management import Management
from broker.tools.server import Server
from services.contracts import CustomerDetailsChanged, Line, Money, NewOrderPlaced
from services.demo import processes
from tests.acceptance.conftest import Start
from tests.acceptance.running import BROKER, ROOT, command
from tests.waiting import until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with the two files that the README shows."""
    blocks = re.findall(r"^```python\n(# (\S*loyalty\.py)\n.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert [name for _, name in blocks] == ["loyalty.py", "test_loyalty.py"]
    for text, name in blocks:
        (tmp_path / name).write_text(text)
    return tmp_path


class Standing(NamedTuple):
    """What stands on RabbitMQ."""

    exchanges: frozenset[str]
    queues: frozenset[str]
    bindings: frozenset[tuple[str, str, str]]


async def standing(management: Management) -> Standing:
    return Standing(
        frozenset(exchange.name for exchange in await management.exchanges()),
        frozenset(queue.name for queue in await management.queues()),
        frozenset((b.source, b.destination, b.key) for b in await management.bindings() if b.source),
    )


async def test_its_own_test_passes(folder: Path) -> None:
    passed = await command(sys.executable, "-m", "pytest", "-q", url="amqp://nobody:nobody@127.0.0.1:1/", folder=folder)
    assert passed.code == 0, passed.out + passed.err
    assert "2 passed" in passed.out


async def test_it_works_beside_the_shop_which_does_not_change(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, server: Server, vhost_url: str, start: Start
) -> None:
    told = processes.environment(tmp_path_factory.mktemp("data"), vhost_url)
    listening = {
        name: start(sys.executable, "-m", f"services.{name}", url=vhost_url, environ=told)
        for name in processes.LISTENERS
    }
    for process in listening.values():
        await process.logged("started")

    async with Management(vhost_url, server.management_url) as management:
        customer, order = an_order()
        await publish(vhost_url, customer)
        await listening["crm"].logged("handled")  # else it would try the order again, from a retry queue

        async def recorded() -> bool:
            return ("events.handled", "events.log", "#") in (await standing(management)).bindings

        await until(recorded)
        shop = await standing(management)
        assert len(shop.queues) == 2 * len(processes.LISTENERS) + 1

        loyalty = start(BROKER, "run", "loyalty", url=vhost_url, folder=folder)
        await loyalty.logged("started")
        more = await standing(management)
        assert more.exchanges - shop.exchanges == {"loyalty"}
        assert more.queues - shop.queues == {"loyalty", "loyalty.dead"}
        assert more.bindings - shop.bindings == {
            ("events", "loyalty", "order.placed"),
            ("events", "loyalty", "order.dispatched"),
            ("loyalty", "loyalty", "loyalty"),
            ("loyalty", "loyalty.dead", "loyalty.dead"),
        }
        assert shop.exchanges < more.exchanges
        assert shop.queues < more.queues
        assert shop.bindings < more.bindings

        await publish(vhost_url, order)
        earned = await loyalty.logged("published")
        assert earned["event_name"] == "Loyalty Points Earned"
        await until(lambda: len(loyalty.lines("handled")) == 2)
        assert not loyalty.lines("dead")
        if not loyalty.lines("retrying"):  # Order Dispatched did not overtake New Order Placed
            assert await standing(management) == more


def an_order() -> list[Event]:
    customer, price = uuid4(), Money(amount="19.90", currency="EUR")
    return [
        CustomerDetailsChanged(customer_id=customer, revision=1, name="Ada", email="ada@example.com"),
        NewOrderPlaced(
            order_id=uuid4(),
            customer_id=customer,
            address_id=uuid4(),
            lines=(Line(item_id=uuid4(), name="Lamp", quantity=1, price=price),),
            total=price,
        ),
    ]


async def publish(url: str, event: Event) -> None:
    async with Broker(url, source="order") as broker:
        await broker.publish(event)
