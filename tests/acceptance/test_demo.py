"""The demo as people run it: its verdict, its exit status, and that it leaves nothing behind, however it ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from broker.tools.management import Management
from broker.tools.server import Server
from broker.tools.story import Arrow
from services.demo import sequence
from services.demo.acts import load, portions
from services.demo.lines import LogFile
from services.demo.processes import SERVICES
from services.demo.view import Row, plain
from tests.leftovers import Mark
from tests.stories import order, troubled
from tests.waiting import until

PATIENCE = 90.0


class Demo:
    """A demo that runs, and what it has printed."""

    def __init__(self, process: asyncio.subprocess.Process, mark: Mark, folder: Path) -> None:
        self.process = process
        self.mark = mark
        self.folder = folder
        self.printed = ""

    async def until_printed(self, pattern: str) -> re.Match[str]:
        """Read on until a line matches, or the output ends."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while line := (await self.process.stdout.readline()).decode():
                self.printed += line
                if match := re.search(pattern, line):
                    return match
        raise AssertionError(f"never printed: {pattern}\n{self.printed}")

    async def ended(self) -> int:
        """Read to the end; returns the exit status."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            self.printed += (await self.process.stdout.read()).decode()
            return await self.process.wait()

    async def leaves_nothing(self) -> None:
        """No process that it started, RabbitMQ included, runs on."""
        await until(lambda: not self.mark.processes())


Play = Callable[..., Awaitable[Demo]]


@pytest.fixture
async def play(server: Server, tmp_path: Path) -> AsyncIterator[Play]:
    """Starts a demo on the RabbitMQ of this test run, or on one of its own: ``await play("--orders=3")``."""
    started: list[Demo] = []

    async def play(*arguments: str, own_rabbitmq: bool = False, **variables: str) -> Demo:
        mark, folder = Mark(), tmp_path / str(len(started))
        unwanted = ("BROKER_", "COVERAGE_")  # measuring so many processes takes longer than the demo
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
        where = {} if own_rabbitmq else {"BROKER_URL": server.url, "BROKER_MANAGEMENT_URL": server.api_url}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.demo", "--no-docker", f"--folder={folder}", *arguments),
            env={**inherited, **where, **mark.environment, **variables},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        started.append(Demo(process, mark, folder))
        return started[-1]

    yield play
    for demo in started:
        if demo.process.returncode is None:
            os.killpg(demo.process.pid, signal.SIGKILL)
            await demo.process.wait()
        for pid in demo.mark.processes():
            os.kill(pid, signal.SIGKILL)


async def test_a_demo_from_beginning_to_end(play: Play, server: Server) -> None:
    demo = await play(ORDERS="4")
    assert await demo.ended() == 0, demo.printed
    assert "4 placed · 4 packed · 4 dispatched · 4 e-mails · 0 lost · 0 twice" in demo.printed
    assert demo.printed.rstrip().endswith("point to point: 14 queues · here: 5, one for each service that listens"), (
        "the verdict is the last word"
    )
    assert "10 arrows, as designed: none more, none less" in demo.printed
    assert "one dead letter, in order.dead: Malformed: 'Catalog Item Changed'" in demo.printed
    assert re.search(r"packing +– killed +[1-9]", demo.printed), "the table shows it dead, and its queue growing"
    pages = [(demo.folder / name).read_text() for name in ("story.html", "map.html")]
    assert all(str(demo.folder / name) in demo.printed for name in ("story.html", "map.html"))
    assert all("<title>" in page and "Order Dispatched" in page for page in pages)
    (email,) = re.findall(r"for example (.*\.eml)", demo.printed)
    assert email in {str(path) for path in demo.folder.rglob("*.eml")}
    assert "guest:" not in demo.printed, "no address with a password"
    await demo.leaves_nothing()
    async with Management(server.url, server.api_url) as management:
        with pytest.raises(Exception, match="404"):
            await _other_vhost(management, demo.printed).queues()


async def test_orders_that_nobody_could_tell_of_are_told_of_later(play: Play) -> None:
    """Order's process is dead, its command goes on: stored is stored."""
    demo = await play("--kill=order", ORDERS="4")
    assert await demo.ended() == 0, demo.printed
    assert "stored, and told when it runs again" in demo.printed
    assert "4 placed · 4 packed · 4 dispatched · 4 e-mails · 0 lost · 0 twice" in demo.printed


def _other_vhost(management: Management, printed: str) -> Management:
    """The virtual host that the demo named must be gone."""
    (management.vhost,) = re.findall(r"virtual host (business-events-demo-\w+)", printed)
    return management


async def test_kept_running_until_told_to_stop(play: Play) -> None:
    demo = await play(ORDERS="1", KEEP="1", own_rabbitmq=True)
    assert await demo.ended() == 0, demo.printed
    assert "1 placed · 1 packed · 1 dispatched · 1 e-mails · 0 lost · 0 twice" in demo.printed
    (script,) = re.findall(r"Stop it with: sh (.*)", demo.printed)
    commands = " ".join(demo.mark.processes().values())
    assert all(f"services.{name}" in commands for name in SERVICES)
    assert "rabbit" in commands
    stopping = await asyncio.create_subprocess_exec("sh", script)
    assert await stopping.wait() == 0
    await demo.leaves_nothing()
    assert '"event": "stopped"' in (demo.folder / "crm.log").read_text(), "an orderly stop"


@pytest.mark.parametrize(
    ("number", "line", "own_rabbitmq", "status"),
    [
        (signal.SIGINT, r"^2\.", True, 130),  # while the processes start
        (signal.SIGTERM, "first order visible", False, 130),
        (signal.SIGKILL, r"^2\.", True, -9),
    ],
)
async def test_interrupted_it_leaves_nothing(
    play: Play, number: signal.Signals, line: str, own_rabbitmq: bool, status: int
) -> None:
    demo = await play(own_rabbitmq=own_rabbitmq)
    await demo.until_printed(line)
    os.killpg(demo.process.pid, number)  # as a terminal does
    assert await demo.ended() == status, demo.printed
    assert "Traceback" not in demo.printed
    await demo.leaves_nothing()


async def test_a_process_that_dies_by_itself_fails_the_demo(play: Play) -> None:
    demo = await play()
    await demo.until_printed("first order visible")
    (crm,) = [pid for pid, command in demo.mark.processes().items() if "-m services.crm" in command]
    os.kill(crm, signal.SIGKILL)
    assert await demo.ended() == 1
    assert "FAILED: crm ended with status -9" in demo.printed
    await demo.leaves_nothing()


async def test_a_virtual_host_in_use_is_not_touched(play: Play, server: Server, vhost_url: str) -> None:
    user = f"test-{uuid4().hex[:8]}"
    async with Management(vhost_url, server.api_url) as management:
        await management.create_user(user, "word", tags="management")  # who may not create a virtual host
        await management.permit(user)
        await management._send("PUT", f"/queues/{management.vhost}/packing", {"durable": True})
        try:
            address = vhost_url.replace("//guest:guest@", f"//{user}:word@")
            demo = await play(BROKER_URL=address, BROKER_MANAGEMENT_URL=server.management_url)
            assert await demo.ended() == 1
            assert "holds packing; the demo needs an empty one" in demo.printed
            assert [queue.name for queue in await management.queues()] == ["packing"]
        finally:
            await management.delete_user(user)


async def test_called_wrongly(play: Play) -> None:
    demo = await play("--kill=nobody")
    assert await demo.ended() == 2
    assert "none of customer, catalog" in demo.printed.replace("\n", " ")


# -- the sequence -----------------------------------------------------------------------------------------------------


def test_the_services_declare_what_an_order_leads_to() -> None:
    declared = sequence.declared(load(name) for name in SERVICES)
    assert declared >= sequence.ORDER_STORY
    assert len({(arrow.event, arrow.subscriber) for arrow in declared}) == 14


def test_a_story_as_it_should_be_has_no_differences() -> None:
    arrows = sequence.handled(order().told())
    assert len(arrows) == 10
    assert sequence.differences(arrows) == []


def test_what_waits_or_failed_is_no_arrow() -> None:
    assert sequence.handled(troubled().told()) == [
        Arrow("order", "New Order Placed", "reporting"),
        Arrow("order", "New Order Placed", "packing"),
        Arrow("packing", "Order Packed", "reporting"),
    ]


def test_each_difference_is_named() -> None:
    missing, *rest = sorted(sequence.ORDER_STORY)
    stray = Arrow("crm", "E-mail Sent", "order")
    assert sequence.differences([*rest, stray, rest[0]]) == [
        f"missing: {missing}",
        "not expected: crm ─ E-mail Sent → order",
        f"2 times: {rest[0]}",
    ]


# -- its parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "expected"), [(1, (1, 0)), (2, (1, 1)), (3, (1, 1)), (20, (7, 6)), (1000, (334, 333))]
)
def test_about_a_third_of_the_orders_comes_while_the_victim_is_dead(count: int, expected: tuple[int, int]) -> None:
    assert portions(count) == expected


def test_a_log_file_gives_each_complete_line_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogFile(path)
    assert log.new_lines() == []
    assert log.last_words() == ""
    path.write_text('{"event": "started", "timestamp": "2025-01-01T00:00:00Z", "new": 1}\nTraceback …\n{"event": "han')
    assert [line.event for line in log.new_lines()] == ["started"]
    with path.open("a") as file:
        file.write('dled", "timestamp": "2025-01-01T00:00:01Z"}\n')
    (line,) = log.new_lines()
    assert line.timestamp == datetime(2025, 1, 1, second=1, tzinfo=UTC)
    assert log.new_lines() == []
    assert "handled" in log.last_words()


def test_the_plain_table_has_a_line_for_each_service() -> None:
    rows = [Row("packing", None, "killed", 7, 13, "New Order Placed"), Row("customer", 4711, "running", None, None, "")]
    assert plain(rows) == [
        "service        pid state     waiting handled  last event",
        "packing          – killed          7      13  New Order Placed",
        "customer      4711 running         –       –  ",
    ]
