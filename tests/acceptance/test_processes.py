"""Service processes on a real RabbitMQ: told to stop, killed, doubled, replaced, cut off."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from broker import Broker, Event
from broker.tools.node import Node, free_ports
from services.contracts import Line, Money, NewOrderPlaced
from tests.acceptance.conftest import Start
from tests.acceptance.running import BROKER, Process
from tests.waiting import until


class ParcelArrived(Event, name="Parcel Arrived", key="parcel.arrived"):
    """As the sorting service declares it, too."""

    number: int


class CrateLost(Event, name="Crate Lost", key="crate.lost"):
    """As the newer sorting service declares it, too."""

    number: int


SORTING = """
import asyncio
import os
from pathlib import Path

from broker import Event, Retry, Service


class ParcelArrived(Event, name="Parcel Arrived", key="parcel.arrived"):
    number: int


class ParcelSent(Event, name="Parcel Sent", key="parcel.sent"):
    number: int


service = Service("sorting", retry=Retry(*["100ms"] * 50))


def note(what, number):
    with open("notes", "a") as notes:
        notes.write(f"{what} {number} {os.getpid()}\\\\n")


@service.on(ParcelArrived)
async def sort(parcel: ParcelArrived) -> ParcelSent:
    note("begun", parcel.number)
    while Path("closed").exists():
        await asyncio.sleep(0.01)
    note("done", parcel.number)
    return ParcelSent(number=parcel.number)
""".replace("\\\\", "\\")
"""Notes in a file what it does. While there is a file ``closed``, it does not get on."""

NEWER = (
    SORTING
    + """

class CrateLost(Event, name="Crate Lost", key="crate.lost"):
    number: int


@service.on(CrateLost)
async def search(crate: CrateLost) -> None:
    note("done", 1000 + crate.number)
"""
)


@dataclass(frozen=True)
class Sorting:
    """The sorting service's folder, and ways to run it."""

    folder: Path
    url: str
    start_process: Start

    def start(self, module: str = "sorting", **environ: str) -> Process:
        return self.start_process(BROKER, "run", module, url=self.url, folder=self.folder, environ=environ)

    async def publish(self, *events: Event) -> None:
        async with Broker(self.url, source="scales") as broker:
            await broker.publish_many(events)

    def close(self) -> None:
        (self.folder / "closed").touch()

    def open(self) -> None:
        (self.folder / "closed").unlink()

    def notes(self, what: str) -> Counter[int]:
        """How often it noted that about each number."""
        return Counter(int(number) for said, number, _ in self._notes() if said == what)

    def pids(self, what: str) -> set[int]:
        """The processes that noted that."""
        return {int(pid) for said, _, pid in self._notes() if said == what}

    def _notes(self) -> list[list[str]]:
        file = self.folder / "notes"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def sorting(tmp_path: Path, vhost_url: str, start: Start) -> Sorting:
    (tmp_path / "sorting.py").write_text(SORTING)
    (tmp_path / "newer.py").write_text(NEWER)
    return Sorting(tmp_path, vhost_url, start)


def parcels(*numbers: int) -> list[Event]:
    return [ParcelArrived(number=number) for number in numbers]


# -- ending ----------------------------------------------------------------------------------------------------------


async def test_sigterm_finishes_what_is_in_hand(sorting: Sorting) -> None:
    sorting.close()
    process = sorting.start()
    await process.logged("started")
    await sorting.publish(*parcels(1, 2, 3))
    await until(lambda: len(sorting.notes("begun")) == 3)
    process.signal(signal.SIGTERM)
    await process.logged("draining")
    assert not sorting.notes("done")

    sorting.open()
    assert await process.ended() == 0
    assert [line["event"] for line in process.lines()][-1] == "stopped"
    assert len(process.lines("published")) == len(process.lines("handled")) == 3

    again = sorting.start()
    await sorting.publish(*parcels(4))
    await until(lambda: sorting.notes("done")[4] == 1)
    assert sorting.notes("begun") == sorting.notes("done") == Counter([1, 2, 3, 4])
    assert len((await again.logged("handled")) and again.lines("handled")) == 1


async def test_sigterm_under_load_loses_nothing_and_repeats_nothing(sorting: Sorting) -> None:
    everything = range(400)
    first = sorting.start(BROKER_CONCURRENCY="4")
    await first.logged("started")
    publishing = asyncio.create_task(sorting.publish(*parcels(*everything)))
    await first.logged("handled", 50)
    first.signal(signal.SIGTERM)
    assert await first.ended() == 0

    await publishing
    sorting.start()
    await until(lambda: len(sorting.notes("done")) == len(everything), timeout=60)
    assert sorting.notes("begun") == sorting.notes("done") == Counter(everything)


async def test_a_second_sigterm_ends_it_at_once(sorting: Sorting) -> None:
    sorting.close()
    process = sorting.start()
    await process.logged("started")
    await sorting.publish(*parcels(1))
    await until(lambda: sorting.notes("begun")[1] == 1)
    process.signal(signal.SIGTERM)
    await process.logged("draining")
    process.signal(signal.SIGTERM)
    assert await process.ended() == 128 + signal.SIGTERM

    sorting.open()
    sorting.start()
    await until(lambda: sorting.notes("done")[1] == 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_can_be_stopped_while_it_waits_for_rabbitmq(
    sorting: Sorting, start: Start, number: signal.Signals
) -> None:
    (port,) = free_ports(1)
    nowhere = f"amqp://guest:guest@127.0.0.1:{port}/"
    environ = {"BROKER_CONNECT_TIMEOUT": "600"}
    process = start(BROKER, "run", "sorting", url=nowhere, folder=sorting.folder, environ=environ)
    await process.logged("connecting")
    process.signal(number)
    assert await process.ended(timeout=20) == 0


async def test_what_a_killed_process_had_in_hand_comes_again(sorting: Sorting) -> None:
    sorting.close()
    process = sorting.start()
    await process.logged("started")
    await sorting.publish(*parcels(*range(20)))
    await until(lambda: len(sorting.notes("begun")) == 10)  # BROKER_CONCURRENCY
    process.kill()
    assert not sorting.notes("done")

    sorting.open()
    again = sorting.start()
    await until(lambda: len(sorting.notes("done")) == 20)
    assert sorting.notes("done") == Counter(range(20))
    assert not again.lines("dead")


# -- two processes of one service ------------------------------------------------------------------------------------


async def test_two_processes_share_the_queue(sorting: Sorting) -> None:
    sorting.close()
    for process in (sorting.start(BROKER_CONCURRENCY="2"), sorting.start(BROKER_CONCURRENCY="2")):
        await process.logged("started")
    await sorting.publish(*parcels(*range(100)))
    await until(lambda: len(sorting.pids("begun")) == 2)
    sorting.open()
    await until(lambda: len(sorting.notes("done")) == 100)
    assert sorting.notes("done") == Counter(range(100))
    assert len(sorting.pids("done")) == 2


async def test_an_old_and_a_new_process_on_one_queue(sorting: Sorting) -> None:
    """The old one gets events that only the new one handles: they find their way, and nothing is dead."""
    new, old = sorting.start("newer"), sorting.start("sorting")
    for process in (new, old):
        await process.logged("started")
    lost = [CrateLost(number=number) for number in range(40)]
    await sorting.publish(*lost, *parcels(*range(40)))  # interleaved, one of two in turn could get all of one kind
    await until(lambda: len(sorting.notes("done")) == 80, timeout=60)
    assert sorting.notes("done") == Counter([*range(40), *range(1000, 1040)])
    assert "Unhandled" in (await old.logged("retrying"))["error"]
    assert not new.lines("retrying")
    assert not old.lines("dead") + new.lines("dead")


# -- health ----------------------------------------------------------------------------------------------------------


async def test_health_tells_of_an_outage_and_of_its_end(
    sorting: Sorting, start: Start, node: Callable[[], Node]
) -> None:
    rabbit = await asyncio.to_thread(node)
    environ = {"BROKER_HEALTH_PORT": "0"}
    process = start(BROKER, "run", "sorting", url=rabbit.url, folder=sorting.folder, environ=environ)
    port = (await process.logged("health"))["port"]
    await process.logged("started")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:

        async def ready() -> int:
            return (await client.get("/ready")).status_code

        healthy = await client.get("/ready")
        assert (healthy.status_code, healthy.json()) == (200, {"status": "ok", "reasons": []})

        await asyncio.to_thread(rabbit.stop)
        assert await ready() == 503
        reasons = (await client.get("/ready")).json()["reasons"]
        assert any("(publish) is not connected" in reason for reason in reasons)
        assert any("(consume) is not connected" in reason for reason in reasons)
        assert (await client.get("/live")).status_code == 200

        await asyncio.to_thread(rabbit.start)

        async def well() -> bool:
            return await ready() == 200

        await until(well, timeout=90)
    async with Broker(rabbit.url, source="scales") as broker:
        await broker.publish(ParcelArrived(number=1))
    await until(lambda: sorting.notes("done")[1] == 1)


async def test_a_probe_is_answered_while_starting_and_while_stopping(sorting: Sorting, start: Start) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def asked(process: Process, path: str) -> tuple[int, list[str]]:
        port = (await process.logged("health"))["port"]
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{port}/{path}")
        return answer.status_code, answer.json()["reasons"]

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        nowhere = f"amqp://guest:guest@127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        environ = {"BROKER_HEALTH_PORT": "0"}
        starting = start(BROKER, "run", "sorting", url=nowhere, folder=sorting.folder, environ=environ)
        code, reasons = await asked(starting, "ready")
        assert (code, reasons[0]) == (503, "starting")
        assert (await asked(starting, "live"))[0] == 200
        starting.kill()

    sorting.close()
    process = sorting.start(BROKER_HEALTH_PORT="0")
    await process.logged("started")
    await sorting.publish(*parcels(1))
    await until(lambda: sorting.notes("begun")[1] == 1)
    process.signal(signal.SIGTERM)
    await process.logged("draining")
    assert await asked(process, "ready") == (503, ["stopping"])
    assert (await asked(process, "live"))[0] == 200
    sorting.open()
    assert await process.ended() == 0


# -- a disk that is not as it should be ------------------------------------------------------------------------------


def an_order() -> NewOrderPlaced:
    price = Money(amount="19.90", currency="EUR")
    line = Line(item_id=uuid4(), name="Lamp", quantity=1, price=price)
    return NewOrderPlaced(order_id=uuid4(), customer_id=uuid4(), address_id=uuid4(), lines=(line,), total=price)


async def test_a_database_that_cannot_be_opened_ends_the_process_and_events_wait(
    tmp_path: Path, vhost_url: str, start: Start
) -> None:
    def packing(database: Path) -> Process:
        environ = {"PACKING_DATABASE": f"sqlite+aiosqlite:///{database}"}
        return start(sys.executable, "-m", "services.packing", url=vhost_url, environ=environ)

    first = packing(tmp_path / "packing.db")
    await first.logged("started")
    first.signal(signal.SIGTERM)
    assert await first.ended() == 0
    order = an_order()
    async with Broker(vhost_url, source="order") as broker:
        event_id = await broker.publish(order)

    (tmp_path / "file").touch()  # where a folder should be: even root cannot write below it
    broken = packing(tmp_path / "file" / "packing.db")
    assert await broken.ended() == 7  # DatabaseUnusable
    assert str(tmp_path / "file") in broken.lines("failed")[0]["error"]
    assert not broken.lines("handled")

    mended = packing(tmp_path / "packing.db")
    assert (await mended.logged("handled"))["event_id"] == str(event_id)
