"""A private node: it shares nothing, can be killed and started again, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.tools import node as node_module
from broker.tools.node import Node, NodeFailed, Watchdog, amqp_version, bindable, free_ports, installed, login
from broker.tools.server import Server, install, start
from tests.leftovers import Mark
from tests.waiting import until

STARTS_A_NODE = """
import time
from broker.tools.node import Node
node = Node()
node.start()
print(node.folder, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True, scope="module")
def _rabbitmq_server(server: Server) -> None:
    """A machine whose RabbitMQ comes from Docker may have no rabbitmq-server yet."""
    try:
        installed()
    except NodeFailed:
        install(print)


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Mark:
    """What this test starts carries a mark."""
    mark = Mark()
    for name, value in mark.environment.items():
        monkeypatch.setenv(name, value)
    return mark


@pytest.fixture
def listener() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


async def test_a_node_is_killed_frozen_started_again_and_leaves_nothing(mark: Mark) -> None:
    node = Node()
    others = await asyncio.to_thread(_mark_of_others)
    await asyncio.to_thread(node.start)
    try:
        assert amqp_version(node.url) is not None
        assert len(mark.processes()) > 1
        await asyncio.to_thread(node.control, "add_vhost", "kept")
        with pytest.raises(NodeFailed, match="already runs"):
            node.start()

        await asyncio.to_thread(node.kill)
        assert amqp_version(node.url) is None
        await asyncio.to_thread(node.start)
        assert "kept" in await asyncio.to_thread(node.control, "list_vhosts")

        node.pause()
        assert amqp_version(node.url, timeout=0.5) is None
        node.resume()
        assert amqp_version(node.url) is not None
        with pytest.raises(NodeFailed, match="rabbitmqctl delete_vhost nowhere"):
            await asyncio.to_thread(node.control, "delete_vhost", "nowhere")
    finally:
        await asyncio.to_thread(node.close)
    await until(lambda: not mark.processes())
    assert not node.folder.exists()
    assert all(map(bindable, node._ports))
    assert await asyncio.to_thread(_mark_of_others) == others, "another node of this machine was touched"
    node.close()  # once more does nothing


def _mark_of_others() -> bool:
    """Whether the machine's own port mapper runs, where it has one."""
    return not bindable(4369)


async def test_a_node_ends_with_the_process_that_started_it(mark: Mark) -> None:
    words = (sys.executable, "-c", STARTS_A_NODE)
    owner = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    assert owner.stdout is not None
    folder = Path((await owner.stdout.readline()).decode().strip())
    assert len(mark.processes()) > 2
    owner.kill()
    await owner.wait()
    await until(lambda: not mark.processes() and not folder.exists())


async def test_a_port_that_somebody_took_is_left_to_them_and_a_released_node_goes_on_until_its_stop_command(
    listener: int, mark: Mark, monkeypatch: pytest.MonkeyPatch
) -> None:
    amqp, management, epmd = free_ports(3)
    offered = iter([[amqp, management, listener, epmd], free_ports(4)])  # the third is the one for other nodes
    monkeypatch.setattr(node_module, "free_ports", lambda _: next(offered))
    node = Node()
    await asyncio.to_thread(start, node)
    assert listener not in node._ports
    node.release()
    assert amqp_version(node.url) is not None

    stopping = await asyncio.create_subprocess_shell(node.stop_command)
    await stopping.wait()
    await until(lambda: not mark.processes())
    assert not node.folder.exists()
    node.close()


def test_a_server_that_does_not_start_says_why(tmp_path: Path, mark: Mark) -> None:
    program = tmp_path / "rabbitmq-server"
    program.write_text("#!/bin/sh\necho Erlang is too old\nexit 3\n")
    program.chmod(0o755)
    node = Node(program)
    with pytest.raises(NodeFailed, match="ended with status 3: Erlang is too old"):
        node.__enter__()
    assert not node.folder.exists()
    assert not mark.processes()


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, mark: Mark) -> None:
    program = tmp_path / "rabbitmq-server"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    node = Node(program)
    with pytest.raises(NodeFailed, match="did not answer"):
        node.start(timeout=0.2)
    node.close()
    assert not mark.processes()


def test_the_wrapper_of_debian_leads_to_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "lib" / "bin"
    real.mkdir(parents=True)
    commands = tmp_path / "sbin"
    commands.mkdir()
    wrapper = real / "rabbitmq-script-wrapper"
    wrapper.touch(mode=0o755)
    (commands / "rabbitmq-server").symlink_to(wrapper)
    monkeypatch.setenv("PATH", str(commands))
    with pytest.raises(NodeFailed, match="no rabbitmq-server that can be started"):
        installed()
    (real / "rabbitmq-server").touch(mode=0o755)
    assert installed() == real / "rabbitmq-server"


def test_nothing_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(node_module, "_SBIN", ())
    with pytest.raises(NodeFailed, match="no rabbitmq-server on this machine"):
        Node()
    program = tmp_path / "rabbitmq-server"
    program.touch(mode=0o755)
    node = Node()
    with pytest.raises(NodeFailed, match="epmd"):
        node.__enter__()
    assert not node.folder.exists()


async def test_a_watchdog_acts_only_for_the_dead(tmp_path: Path) -> None:
    released, acted = tmp_path / "released", tmp_path / "acted"
    watchdog = Watchdog(f"touch {released}")
    watchdog.release()
    watchdog.release()
    dies = f"import os; from broker.tools.node import Watchdog; Watchdog('touch {acted}'); os.kill(os.getpid(), 9)"
    dying = await asyncio.create_subprocess_exec(sys.executable, "-c", dies)
    await dying.wait()
    await until(acted.exists)
    assert not released.exists()


def test_amqp_version_of_what_is_no_rabbitmq(listener: int) -> None:
    assert amqp_version(f"amqp://127.0.0.1:{listener}/", timeout=0.1) is None
    assert amqp_version(f"amqps://127.0.0.1:{listener}/", timeout=0.1) is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://host", ("guest", "guest")),
        ("amqp://a%40b:c%2Fd@one:1,two:2/v", ("a@b", "c/d")),
    ],
)
def test_the_login_of_an_address(url: str, expected: tuple[str, str]) -> None:
    assert login(url) == expected
