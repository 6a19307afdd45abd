"""The RabbitMQ that a row may break, and the record that a row leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from time import monotonic
from uuid import uuid4

import pytest

from broker.tools.management import Management
from tests.faults.kinds import KINDS, loop_name, start
from tests.faults.world import AnyNode, World

REPORT = pytest.StashKey[pytest.TestReport]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rabbitmq",
        choices=KINDS,
        default="any",
        help="the RabbitMQ to break: any that can be had, the one installed here, or one in a container",
    )
    parser.addoption(
        "--direct", choices=("on", "off"), default="on", help="BROKER_DIRECT of all that is broken: own frames, or not"
    )
    parser.addoption("--results", type=Path, help="file to which each row's result is appended, a line of JSON each")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[REPORT] = report
    return report


class Nodes:
    """One node for all rows, for as long as it is well: a row that failed may have left it in any state."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._node: AnyNode | None = None

    def get(self) -> AnyNode:
        """A node that runs."""
        if self._node is None:
            self._node = start(self._kind)
        return self._node

    def close(self) -> None:
        """End it; the next row gets another."""
        node, self._node = self._node, None
        if node is not None:
            node.close()


@pytest.fixture(scope="session")
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    nodes = Nodes(request.config.getoption("--rabbitmq", default="any"))
    yield nodes
    nodes.close()


@pytest.fixture
async def world(request: pytest.FixtureRequest, nodes: Nodes, tmp_path: Path) -> AsyncIterator[World]:
    """A world for one row: a virtual host of its own on the node, and no process yet."""
    node = await asyncio.to_thread(nodes.get)
    vhost = f"faults-{uuid4().hex[:8]}"
    began = monotonic()
    direct = request.config.getoption("--direct", default="on") == "on"
    async with Management(node.url, node.management_url, timeout=60) as administrator:
        await administrator.create_vhost(vhost)
        url = f"{node.url}{vhost}"
        async with Management(url, node.management_url, timeout=60) as management:
            world = World(node, url, management, tmp_path, direct=direct)
            world.result |= {"version": await management.version(), "loop": loop_name(), "direct": world.direct}
            try:
                yield world
            finally:
                await world.close()
                passed = request.node.stash[REPORT].passed if REPORT in request.node.stash else False
                _record(request, world, passed=passed, took=monotonic() - began)
                if passed:
                    await administrator.delete_vhost(vhost)
                else:
                    _tell(request, world)
                    await asyncio.to_thread(nodes.close)


def _record(request: pytest.FixtureRequest, world: World, *, passed: bool, took: float) -> None:
    file: Path | None = request.config.getoption("--results", default=None)
    marker = request.node.get_closest_marker("row")
    assert marker is not None, "each test of a world is a row of the matrix: @pytest.mark.row(name, injected)"
    values = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    name, injected = (text.format(**values) for text in marker.args)
    if file is not None:
        row = {"row": name, "injected": injected, "passed": passed, "took": round(took, 1), **world.result}
        with file.open("a") as results:
            results.write(f"{json.dumps(row)}\n")


def _tell(request: pytest.FixtureRequest, world: World) -> None:
    """What the processes said last, beside the failure."""
    kept = [("publisher", world.publisher), *((f"subscriber {n}", one) for n, one in enumerate(world.subscribers))]
    report = request.node.stash.get(REPORT, None)
    for name, process in kept:
        if process is not None and report is not None:
            report.sections.append((f"{name}, exit codes {process.codes}", process.err[-6000:]))
