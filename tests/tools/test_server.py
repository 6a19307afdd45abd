"""Finding a RabbitMQ: the ways in their order, what does not work is named, what is not ours is left alone."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from broker.tools import node as node_module
from broker.tools import server as server_module
from broker.tools.node import Node, free_ports
from broker.tools.server import (
    NoServer,
    NotAvailable,
    Server,
    Way,
    compose,
    container,
    first_line,
    first_of,
    no_system_services,
    node_to_break,
    pointed_at,
    private_node,
    rabbitmq,
    refuse_old,
)

Script = Callable[[str, str], None]


@pytest.fixture
def said() -> list[str]:
    """What people were told."""
    return []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """A machine on which nothing is installed but the given scripts: ``machine("docker", "exit 1")``."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(node_module, "_SBIN", ())
    for name in ("BROKER_URL", "BROKER_MANAGEMENT_URL"):
        monkeypatch.delenv(name, raising=False)

    def add(name: str, script: str) -> None:
        path = programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return add


def _way(name: str, version: str, ended: list[str]) -> Way:
    @contextlib.contextmanager
    def open_it() -> Iterator[Server]:
        try:
            yield Server("amqp://host/", "http://host:15672", name, version)
        finally:
            ended.append(name)

    return Way(name, open_it)


def _broken(name: str, why: str) -> Way:
    @contextlib.contextmanager
    def open_it() -> Iterator[Server]:
        raise NotAvailable(why)
        yield

    return Way(name, open_it)


# -- the order, and what is said --------------------------------------------------------------------------------------


def test_the_first_way_that_works_is_taken_and_the_others_named(said: list[str]) -> None:
    ended: list[str] = []
    ways = [_broken("one", "no network"), _way("two", "3.9.27", ended), _way("three", "3.10.0", ended)]
    with first_of([*ways, _way("four", "4.0", ended)], said.append) as found:
        assert found.origin == "three"
        assert ended == ["two"], "a server that is refused is ended before the next way is tried"
    assert ended == ["two", "three"]
    assert said == [
        "RabbitMQ: one does not work: no network. Trying the next way.",
        "RabbitMQ: two does not work: it is version 3.9.27; 3.10 or later is needed. Trying the next way.",
    ]


def test_without_any_the_help_is_given(said: list[str]) -> None:
    with pytest.raises(NoServer, match="BROKER_URL=amqp://") as error, first_of([_broken("one", "no")], said.append):
        pytest.fail("there is none")
    assert error.value.exit_code == 3


@pytest.mark.parametrize("version", ["3.10.0", "3.10.8", "4.0.5", "4.3"])
def test_supported_versions(version: str) -> None:
    refuse_old(version)


@pytest.mark.parametrize("version", ["3.9.27", "2.8.7", "unknown", ""])
def test_refused_versions(version: str) -> None:
    with pytest.raises(NotAvailable):
        refuse_old(version)


def test_a_bare_machine_names_every_way(machine: Script, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_URL", f"amqp://guest:hunter2@127.0.0.1:{free_ports(1)[0]}/")
    with pytest.raises(NoServer), rabbitmq(docker="compose", say=said.append):
        pytest.fail("there is none")
    url, docker, installed, apt = said
    assert "BROKER_URL does not work: no RabbitMQ answers at 127.0.0.1" in url
    assert "hunter2" not in url
    assert "Docker does not work: there is no docker command" in docker
    assert "on this machine does not work: there is no rabbitmq-server" in installed
    assert "from apt does not work: this is neither Debian nor Ubuntu" in apt


def test_a_node_to_break_names_every_way(machine: Script, said: list[str]) -> None:
    with pytest.raises(NoServer):
        node_to_break(said.append)
    assert [line.split(" does not work")[0] for line in said] == [
        "RabbitMQ: rabbitmq-server on this machine",
        "RabbitMQ: Docker",
        "RabbitMQ: rabbitmq-server from apt",
    ]


# -- BROKER_URL -------------------------------------------------------------------------------------------------------


def test_what_broker_url_points_at_is_not_ours(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_URL", server.url)
    monkeypatch.setenv("BROKER_MANAGEMENT_URL", server.api_url)
    with rabbitmq(docker=None) as found:
        assert (found.url, found.management_url, found.version) == (server.url, server.management_url, server.version)
        assert not found.ours
        assert found.login == server.login
        assert "guest" not in found.origin


@pytest.mark.parametrize("login", ["guest:wrong", "nobody:guest"])
def test_a_login_that_management_refuses_is_named(login: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    host = urlsplit(server.url).netloc.rpartition("@")[2]
    monkeypatch.setenv("BROKER_URL", f"amqp://{login}@{host}/")
    monkeypatch.setenv("BROKER_MANAGEMENT_URL", server.management_url)
    with pytest.raises(NotAvailable, match="does not take the login"), pointed_at():
        pytest.fail("it must be refused")


def test_an_address_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_URL", "http://user:hunter2@host/")
    with pytest.raises(NotAvailable, match="not of the form amqp://") as refused, pointed_at():
        pytest.fail("it must be refused")
    assert "hunter2" not in str(refused.value)


def test_management_is_looked_for_beside_the_first_host(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_URL", server.url)
    monkeypatch.delenv("BROKER_MANAGEMENT_URL", raising=False)
    monkeypatch.setattr(server_module, "DEFAULT_PORT", urlsplit(server.management_url).port)
    with pointed_at() as found:
        assert found.management_url == server.management_url


# -- Docker -----------------------------------------------------------------------------------------------------------

FAKE_COMPOSE = """\
echo "$@" >>"{log}"
case "$*" in
  *" port rabbitmq 5672") echo {address};;
  *" up "*) {up};;
  *" down "*) {down};;
esac
"""


@pytest.fixture
def fake_compose(machine: Script, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """A docker command whose compose "starts" the RabbitMQ of this test run: ``fake_compose(up, down)``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docker-compose.yml").touch()
    parts = urlsplit(server.url)
    monkeypatch.setattr(server_module, "free_ports", lambda _: [urlsplit(server.management_url).port])
    monkeypatch.setattr(
        server_module,
        "answers",
        lambda management_url, _: management_url == f"http://127.0.0.1:{urlsplit(server.management_url).port}",
    )

    def add(up: str, down: str) -> None:
        log, address = tmp_path / "log", parts.netloc.rpartition("@")[2]
        machine("docker", FAKE_COMPOSE.format(log=log, address=address, up=up, down=down))

    return add


def test_compose_starts_and_ends_a_project_of_its_own(fake_compose: Script, tmp_path: Path, said: list[str]) -> None:
    fake_compose("true", "true")
    with rabbitmq(docker="compose", say=said.append) as found:
        assert found.ours
        assert found.origin == "docker compose, image rabbitmq:4-management"
        assert "down --volumes" in found.stop_command
        assert "down" not in (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().count("down --volumes") == 1
    assert said == []


def test_compose_may_be_kept(fake_compose: Script, tmp_path: Path) -> None:
    fake_compose("true", "true")
    with compose(tmp_path / "docker-compose.yml", print, keep=lambda: True):
        pass
    assert "down" not in (tmp_path / "log").read_text()


def test_compose_that_does_not_start_is_cleared_away(fake_compose: Script, tmp_path: Path) -> None:
    fake_compose("echo no space left on device >&2; exit 1", "true")
    with (
        pytest.raises(NotAvailable, match="docker compose failed: no space left"),
        compose(tmp_path / "docker-compose.yml", print),
    ):
        pytest.fail("it must not start")
    assert "down --volumes" in (tmp_path / "log").read_text()


def test_compose_that_does_not_end_is_said(fake_compose: Script, tmp_path: Path, said: list[str]) -> None:
    fake_compose("true", "exit 1")
    with compose(tmp_path / "docker-compose.yml", said.append):
        pass
    assert "may still run" in said[0]


def test_without_a_compose_file_docker_is_not_used(tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match=r"no docker-compose\.yml"), compose(tmp_path / "docker-compose.yml", print):
        pytest.fail("there is none")


def test_an_engine_that_does_not_run_is_named(machine: Script, tmp_path: Path) -> None:
    (tmp_path / "docker-compose.yml").touch()
    machine("docker", 'case "$1" in info) echo Cannot connect to the Docker daemon >&2; exit 1;; esac')
    with pytest.raises(NotAvailable, match="Cannot connect"), compose(tmp_path / "docker-compose.yml", print):
        pytest.fail("it does not run")


def test_an_image_that_cannot_be_had_is_named(machine: Script, tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "docker-compose.yml").touch()
    machine("docker", 'case "$1" in image) exit 1;; pull) echo no such host >&2; exit 1;; esac')
    with (
        pytest.raises(NotAvailable, match="docker pull failed: no such host"),
        compose(tmp_path / "docker-compose.yml", said.append),
    ):
        pytest.fail("it cannot be had")
    assert said == ["RabbitMQ: fetching the image rabbitmq:4-management."]


class FakeContainer:
    """What is used of testcontainers' DockerContainer."""

    fails = False
    stopped = 0

    def __init__(self, image: str) -> None:
        assert image == "rabbitmq:4-management"

    def with_exposed_ports(self, *ports: int) -> FakeContainer:
        return self

    def with_env(self, name: str, value: str) -> FakeContainer:
        return self

    def start(self) -> None:
        if self.fails:
            raise RuntimeError("\nthe image of Ryuk cannot be had\nat all")

    def stop(self) -> None:
        type(self).stopped += 1

    def get_container_host_ip(self) -> str:
        return "127.0.0.1"

    def get_exposed_port(self, port: int) -> int:
        return port


@pytest.fixture
def testcontainers(machine: Script, monkeypatch: pytest.MonkeyPatch) -> type[FakeContainer]:
    """A machine with a Docker engine, and testcontainers that starts nothing."""
    machine("docker", "true")
    fake = type("Container", (FakeContainer,), {})
    module = types.ModuleType("testcontainers.core.container")
    module.DockerContainer = fake  # type: ignore[attr-defined]  # a stand-in
    monkeypatch.setitem(sys.modules, "testcontainers.core.container", module)
    monkeypatch.setattr(server_module, "answers", lambda *_: True)
    monkeypatch.setattr(server_module, "amqp_version", lambda *_: "4.0.5")
    return fake


def test_testcontainers_starts_and_ends_a_container(testcontainers: type[FakeContainer]) -> None:
    with rabbitmq(docker="testcontainers") as found:
        assert found.url == "amqp://guest:guest@127.0.0.1:5672/"
        assert found.management_url == "http://127.0.0.1:15672"
        assert testcontainers.stopped == 0
    assert testcontainers.stopped == 1


def test_a_container_that_does_not_start_is_named(testcontainers: type[FakeContainer]) -> None:
    testcontainers.fails = True
    with pytest.raises(NotAvailable, match=r"the image of Ryuk cannot be had$"), container():
        pytest.fail("it must not start")


def test_a_container_that_does_not_answer_is_ended(
    testcontainers: type[FakeContainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "answers", lambda *_: False)
    monkeypatch.setattr(server_module, "START_TIMEOUT", 0.1)
    with pytest.raises(NotAvailable, match="did not answer"), container():
        pytest.fail("it does not answer")
    assert testcontainers.stopped == 1


def test_without_testcontainers_docker_is_not_used(machine: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "testcontainers.core.container", None)
    with pytest.raises(NotAvailable, match="testcontainers is not installed"), container():
        pytest.fail("it is not installed")


# -- on this machine, and from apt ------------------------------------------------------------------------------------


def test_a_server_that_does_not_start_is_named_and_cleared_away(machine: Script, tmp_path: Path) -> None:
    machine("rabbitmq-server", "echo Erlang is too old; exit 1")
    machine("epmd", "true")
    with pytest.raises(NotAvailable, match=r"Erlang is too old$"), private_node():
        pytest.fail("it must not start")


@pytest.mark.parametrize("kept", [True, False])
def test_a_private_node_may_be_kept(kept: bool, machine: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("rabbitmq-server", "exec /bin/sleep 600")
    machine("epmd", "true")
    monkeypatch.setattr(Node, "_answers", lambda _: True)
    with private_node(keep=lambda: kept) as found:
        folder = Path(found.stop_command.split()[-1])
    assert folder.exists() == kept
    subprocess.run(["/bin/sh", "-c", f"PATH=/usr/bin:/bin; {found.stop_command} 2>/dev/null"], check=True)
    assert not folder.exists()


@pytest.fixture
def apt(machine: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Debian, as root, whose apt-get writes down what it is told, and whether services would start meanwhile."""
    policy = tmp_path / "policy-rc.d"
    log = tmp_path / "apt"
    machine("apt-get", f'echo "$@" >>{log}; {policy} || echo "no service is started ($?)" >>{log}')
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(server_module, "POLICY", policy)
    return log


def test_apt_is_announced_and_starts_no_service(apt: Path, said: list[str]) -> None:
    with pytest.raises(NoServer), rabbitmq(docker=None, say=said.append):
        pytest.fail("this apt installs nothing")
    update, first, install, second = apt.read_text().splitlines()
    assert update.endswith("update")
    assert install.endswith("install --yes --no-install-recommends rabbitmq-server")
    assert first == second == "no service is started (101)"
    assert not (apt.parent / "policy-rc.d").exists()
    assert said[1] == (
        "RabbitMQ: installing rabbitmq-server with apt-get (a minute or two); no system service is started."
    )


def test_apt_needs_root(apt: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(NoServer), rabbitmq(docker=None, say=said.append):
        pytest.fail("nothing is installed")
    assert "that needs root" in said[1]
    assert not apt.exists()


def test_apt_is_not_asked_for_what_is_there(machine: Script, apt: Path, said: list[str]) -> None:
    machine("rabbitmq-server", "exit 1")
    machine("epmd", "true")
    with pytest.raises(NoServer), rabbitmq(docker=None, say=said.append):
        pytest.fail("it does not start")
    assert "it is installed already, and did not work" in said[1]
    assert not apt.exists()


def test_a_policy_that_is_there_stays(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("the administrator's")
    with no_system_services(policy):
        assert policy.read_text() == "the administrator's"
    assert policy.read_text() == "the administrator's"


def test_a_command_that_takes_too_long_is_named() -> None:
    with pytest.raises(NotAvailable, match=r"sleep 60 did not end within 0 s"):
        server_module.run(["sleep", "60"], 0.1)


def test_a_command_that_is_not_there_is_named() -> None:
    with pytest.raises(NotAvailable, match="No such file"):
        server_module.run(["/no/such/command"], 1)


def test_the_first_line_that_says_something() -> None:
    assert first_line("\n  \n one\ntwo") == "one"
    assert first_line("") == "no reason given"
