"""What mypy --strict says to users' code: nothing when it is right, and exactly what is wrong when it is not.

Each line that is wrong ends with ``# E: code``. Users have no plugin of pydantic's; the project has: both must see it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PRELUDE = """\
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

from broker import Broker, Context, Envelope, Event, Reject, Retry, Service
from broker.testing import Harness

class OrderPlaced(Event, name="Order Placed", key="order.placed", version=1, subject="order_id"):
    order_id: UUID
    lines: int = 1

class OrderPacked(Event):
    order_id: UUID

class OrderSent(Event):
    order_id: UUID

service = Service("packing", publishes=[OrderPacked], retry=Retry("1s", never=[KeyError]))
"""

GOOD = {
    "handlers": """
@service.on(OrderPlaced)
async def plain(order: OrderPlaced) -> None: ...

@service.on(OrderPlaced, retry=Retry("1s"))
async def with_context(order: OrderPlaced, context: Context) -> OrderPacked:
    event_id: UUID = await context.publish(OrderPacked(order_id=order.order_id))
    context.publish(OrderPacked(order_id=event_id))
    if context.attempt > 3:
        raise Reject("too often")
    return OrderPacked(order_id=order.order_id)

@service.on(OrderPlaced)
def in_a_thread(order: OrderPlaced) -> OrderPacked | None:
    return None

@service.on(OrderPlaced)
async def several(order: OrderPlaced) -> list[OrderPacked]:
    return []

@service.on(OrderPlaced)
async def mixed(order: OrderPlaced) -> Iterable[OrderPacked | OrderSent]:
    return []

@service.on(OrderPlaced)
async def yielding(order: OrderPlaced) -> AsyncIterator[OrderPacked]:
    yield OrderPacked(order_id=order.order_id)

@service.on(OrderPlaced)
def yielding_in_a_thread(order: OrderPlaced) -> Iterator[OrderPacked]:
    yield OrderPacked(order_id=order.order_id)

async def unit_test() -> None:
    packed: OrderPacked = await with_context(OrderPlaced(order_id=uuid4()), Context())
""",
    "several events": """
@service.on(OrderPlaced, OrderPacked)
async def two(event: OrderPlaced | OrderPacked) -> None: ...

@service.on(OrderPlaced, OrderPacked, OrderSent)
async def three(event: OrderPlaced | OrderPacked | OrderSent, context: Context) -> None: ...

class A(Event): ...

@service.on(A, OrderPlaced, OrderPacked, OrderSent)
async def four(event: A | OrderPlaced | OrderPacked | OrderSent) -> None: ...

@service.on(OrderPlaced, OrderPacked)
async def wider(event: Event) -> None: ...
""",
    "patterns": """
@service.on("order.*")
async def watch(envelope: Envelope) -> None:
    order: OrderPlaced = envelope.decode(OrderPlaced)
    event: Event = envelope.decode()
""",
    "around and lifespan": """
@service.around
async def timing(context: Context, handle: Callable[[], Awaitable[None]]) -> None:
    await handle()

@asynccontextmanager
async def lifespan(service: Service) -> AsyncIterator[dict[str, int]]:
    yield {}

other = Service("crm", lifespan=lifespan)
""",
    "publishing": """
async def publish() -> None:
    async with Broker(source="shop") as broker:
        event_id: UUID = await broker.publish(OrderPlaced(order_id=uuid4()), correlation_id=uuid4())
        ids: list[UUID] = await broker.publish_many([OrderPlaced(order_id=uuid4())])
        await broker.publish_many(OrderPlaced(order_id=uuid4()) for _ in range(3))

async def test() -> None:
    async with Harness(service) as shop:
        await shop.publish(OrderPlaced(order_id=uuid4()))
        await shop.settled()
        packed: list[OrderPacked] = shop.published(OrderPacked)
        reasons: list[str] = [letter.reason for letter in shop.dead("packing")]
""",
}

BAD = {
    "a payload of a wrong type": """
OrderPlaced(order_id="seven")  # E: arg-type
OrderPlaced(order_id=uuid4(), lines="many")  # E: arg-type
""",
    "a missing or unknown field": """
OrderPlaced()  # E: call-arg
OrderPlaced(order_id=uuid4(), colour="red")  # E: call-arg
""",
    "a handler of another event": """
@service.on(OrderPlaced)  # E: arg-type
async def handle(order: OrderPacked) -> None: ...
""",
    "a handler of one of two": """
@service.on(OrderPlaced, OrderPacked)  # E: arg-type
async def handle(order: OrderPlaced) -> None: ...
""",
    "a handler of an event under a pattern": """
@service.on("order.*")  # E: arg-type
async def handle(order: OrderPlaced) -> None: ...
""",
    "a handler of too much": """
@service.on(OrderPlaced)  # E: arg-type
async def handle(order: OrderPlaced, context: Context, more: int) -> None: ...
""",
    "a handler with another second argument": """
@service.on(OrderPlaced)  # E: arg-type
async def handle(order: OrderPlaced, context: int) -> None: ...
""",
    "a handler that returns what is no event": """
@service.on(OrderPlaced)  # E: type-var
async def handle(order: OrderPlaced) -> int:
    return 7
""",
    "returning another event than declared": """
@service.on(OrderPlaced)
async def handle(order: OrderPlaced) -> OrderPacked:
    return OrderSent(order_id=order.order_id)  # E: return-value
""",
    "publishing what is no event": """
async def publish(broker: Broker, context: Context) -> None:
    await broker.publish("order.placed")  # E: arg-type
    await broker.publish(OrderPlaced)  # E: arg-type
    await broker.publish_many([1, 2])  # E: list-item list-item
    context.publish({"order_id": 1})  # E: arg-type
""",
    "a subscription to what is no event": """
service.on(int)  # E: type-var
service.on(7)  # E: call-overload
""",
    "around the wrong way": """
@service.around  # E: type-var
async def timing(context: Context) -> None: ...
""",
}

PLUGIN = """\
[tool.mypy]
plugins = ["pydantic.mypy"]
[tool.pydantic-mypy]
init_typed = true
init_forbid_extra = true
"""


@pytest.fixture(scope="module", params=["without a plugin", "with pydantic's plugin"])
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What mypy says to each snippet, as ``line: code``. One run for all of them: it takes its time to start."""
    folder: Path = tmp_path_factory.mktemp("snippets")
    (folder / "pyproject.toml").write_text(PLUGIN if "with " in request.param else "[tool.mypy]\n")
    files = {what: folder / f"snippet_{number}.py" for number, what in enumerate([*GOOD, *BAD])}
    for what, code in {**GOOD, **BAD}.items():
        files[what].write_text(PRELUDE + code)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-pretty", "--hide-error-context", "--no-error-summary"]
    done = subprocess.run(
        [*command, "--config-file", "pyproject.toml", *(path.name for path in files.values())],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert not [line for line in done.stdout.splitlines() if not line.startswith("snippet_")], done.stdout
    errors = re.findall(r"^(snippet_\d+\.py):(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.MULTILINE)
    return {
        what: [f"{line}: {code}" for name, line, code in errors if name == path.name] for what, path in files.items()
    }


def expected(code: str) -> list[str]:
    return [
        f"{number}: {error}"
        for number, line in enumerate((PRELUDE + code).splitlines(), 1)
        if "# E: " in line
        for error in line.rpartition("# E: ")[2].split()
    ]


@pytest.mark.parametrize("what", GOOD)
def test_what_is_right(said: dict[str, list[str]], what: str) -> None:
    assert said[what] == []


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong(said: dict[str, list[str]], what: str) -> None:
    assert expected(BAD[what])
    assert said[what] == expected(BAD[what])
