"""A RabbitMQ for the tests: found once a session, and a fresh virtual host for each test that wants one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
import structlog

from broker.events import declared
from broker.tools.node import login
from broker.tools.server import NoServer, Server, node_to_break, rabbitmq

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from broker.tools.container import ContainerNode
    from broker.tools.node import Node

pytest_plugins = ["tests.postgres", "tests.users"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--uvloop`` runs the tests' own event loops on uvloop. Services choose by themselves."""
    parser.addoption("--uvloop", action="store_true", help="run the tests' event loops on uvloop")


class OnUvloop:
    """A plugin of pytest-asyncio's."""

    def pytest_asyncio_loop_factories(self) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
        """How event loops are made."""
        import uvloop

        return {"uvloop": uvloop.new_event_loop}


def pytest_configure(config: pytest.Config) -> None:
    """Do as the options say. Coverage is of the processes that run tests: those that they start would be slower."""
    if hasattr(config, "workerinput"):
        for name in [name for name in os.environ if name.startswith("COVERAGE_PROCESS_")]:
            del os.environ[name]
    if config.getoption("--uvloop"):
        config.pluginmanager.register(OnUvloop())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long rows may take long, but not forever."""
    for item in items:
        if item.get_closest_marker("full"):
            item.add_marker(pytest.mark.timeout(7200))


def pytest_collection_finish() -> None:
    """Two test modules that declare the same event would depend on which of them is imported first."""
    seen: dict[str, str] = {}
    for event in declared():
        where = seen.setdefault(event.__contract__.name, event.__module__)
        if where != event.__module__:
            raise pytest.UsageError(
                f"{event.__module__} and {where} both declare {event.__contract__.name!r}: give one another name"
            )


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Show what one of several processes has said."""
    for line in getattr(node, "workeroutput", {}).get("said", ()):
        print(f"\n{node.gateway.id}: {line.strip()}", end="", flush=True)  # noqa: T201 - it belongs beside pytest's lines


def say(request: pytest.FixtureRequest, line: str) -> None:
    """Show people what a session runs on."""
    if hasattr(request.config, "workeroutput"):
        request.config.workeroutput.setdefault("said", []).append(line)
        return
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{line}", end="", flush=True)  # noqa: T201 - it belongs beside pytest's own lines


@pytest.fixture(autouse=True)
def lines() -> Iterator[list[dict[str, Any]]]:
    """Every line logged during the test, unless what it runs sets logging up for itself, as commands do."""
    capture = structlog.testing.LogCapture()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, capture],
        wrapper_class=structlog.make_filtering_bound_logger("debug"),
        cache_logger_on_first_use=False,
    )
    yield capture.entries  # type: ignore[misc]  # structlog's own mapping type
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The RabbitMQ of this test run. Tests that need one fail when there is none: they never skip."""
    try:
        with rabbitmq(docker="testcontainers", say=lambda line: say(request, line)) as found:
            say(request, f"RabbitMQ {found.version}: {found.origin}\n")
            yield found
    except NoServer as why:
        pytest.fail(str(why), pytrace=False)


@pytest.fixture
def url(server: Server) -> str:
    """Where RabbitMQ is, its default virtual host: shared by all tests, so prefer ``vhost_url``."""
    return server.url


@pytest.fixture
def vhost_url(server: Server) -> Iterator[str]:
    """The URL of a virtual host that is this test's alone, deleted afterwards."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    with httpx.Client(base_url=f"{server.management_url}/api", auth=server.login, timeout=30) as api:
        api.put(f"/vhosts/{name}").raise_for_status()
        user = quote(login(server.url)[0], safe="")
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        api.put(f"/permissions/{name}/{user}", json=everything).raise_for_status()
        yield urlsplit(server.url)._replace(path=f"/{name}").geturl()
        api.delete(f"/vhosts/{name}").raise_for_status()


@pytest.fixture
def node(request: pytest.FixtureRequest) -> Iterator[Callable[[], Node | ContainerNode]]:
    """Starts nodes for a test that stops, kills or freezes RabbitMQ, ``rabbit = node()``. They end with the test."""
    with contextlib.ExitStack() as stack:

        def start() -> Node | ContainerNode:
            started = node_to_break(lambda line: say(request, line))
            stack.callback(started.close)
            return started

        yield start
