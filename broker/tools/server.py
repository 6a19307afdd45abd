"""A RabbitMQ to try things on: for the tests and the demo.

It is looked for in this order, and the first way that works is taken:

1. ``BROKER_URL``: the RabbitMQ that somebody points at;
2. a Docker engine: the image ``rabbitmq:4-management``;
3. the ``rabbitmq-server`` of this machine, as a private node in a temporary folder (:mod:`broker.tools.node`);
4. on Debian and Ubuntu, as root: the same, after installing it with apt.

A way that does not work is named, with the reason, and the next one is tried. A RabbitMQ that already runs on the
machine is never touched, unless ``BROKER_URL`` points at it. What was started here ends with the ``with`` block.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias
from urllib.parse import quote, unquote, urlsplit

from pydantic import SecretStr, ValidationError

from broker.errors import ConnectionFailed
from broker.settings import Settings, hosts_of, readable
from broker.tools.container import IMAGE, TICKS, ContainerNode
from broker.tools.management import DEFAULT_PORT
from broker.tools.node import (
    START_TIMEOUT,
    Node,
    NodeFailed,
    Watchdog,
    amqp_version,
    answers,
    free_ports,
    installed,
    login,
    management_answers,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

MINIMUM = (3, 10)
"""The oldest RabbitMQ that this project works on."""

PULL_TIMEOUT = 300.0
"""Seconds that fetching the image may take."""

INSTALL_TIMEOUT = 600.0
"""Seconds that installing with apt may take."""

POLICY = Path("/usr/sbin/policy-rc.d")
"""Debian asks this program, if it is there, whether it may start a service."""

HELP = """There is no RabbitMQ to use.
Start Docker, or install rabbitmq-server (Debian, Ubuntu: apt-get install rabbitmq-server),
or point at one: BROKER_URL=amqp://user:password@host:5672/"""

Say: TypeAlias = "Callable[[str], None]"
Engine: TypeAlias = Literal["compose", "testcontainers"]


@dataclass(frozen=True)
class Server:
    """A RabbitMQ that answers."""

    url: str
    """Where to connect, login included: never print it."""
    management_url: str
    """Address of the management UI and its HTTP API, without the login."""
    origin: str
    """Where it came from, for people."""
    version: str
    stop_command: str = ""
    """A shell command that ends it, when it was started here and may be kept."""
    ours: bool = True
    """Whether it was started here. One that somebody pointed at holds what is not ours."""
    api_login: tuple[str, str] | None = None
    """User and password of the management API, where they are not those of ``url``."""

    @property
    def login(self) -> tuple[str, str]:
        """User and password of the management API: never print them."""
        return self.api_login or login(self.url)

    @property
    def api_url(self) -> str:
        """Address of the management API, login included: never print it."""
        user, password = (quote(part, safe="") for part in self.login)
        parts = urlsplit(self.management_url)
        return parts._replace(netloc=f"{user}:{password}@{parts.netloc}").geturl()


@dataclass(frozen=True)
class Way:
    """One way of getting a RabbitMQ. ``open`` raises :exc:`NotAvailable` when it does not work here."""

    name: str
    open: Callable[[], AbstractContextManager[Server]]


class NotAvailable(Exception):
    """A way of getting a RabbitMQ does not work here; the message says why."""


class NoServer(ConnectionFailed):
    """No way of getting a RabbitMQ works here."""


@contextlib.contextmanager
def rabbitmq(
    *, docker: Engine | None = None, say: Say = print, keep: Callable[[], bool] = lambda: False
) -> Iterator[Server]:
    """Find or start a RabbitMQ, and end it afterwards if it was started here.

    Args:
        docker: how to use a Docker engine: ``compose`` takes the ``docker-compose.yml`` of the current folder,
            ``testcontainers`` the package of that name; None leaves Docker out.
        say: is told, line by line, which ways do not work and what is being done.
        keep: asked at the end: whether to leave running what was started here (``Server.stop_command`` ends it).

    Raises:
        NoServer: no way works. The message says what helps.
    """
    ways = [Way("BROKER_URL", pointed_at)] if is_pointed_at() else []
    if docker == "compose":
        ways.append(Way("Docker", lambda: compose(Path("docker-compose.yml"), say, keep)))
    elif docker == "testcontainers":
        ways.append(Way("Docker", container))
    ways.append(Way("rabbitmq-server on this machine", lambda: private_node(keep)))
    ways.append(Way("rabbitmq-server from apt", lambda: from_apt(say, keep)))
    with first_of(ways, say) as server:
        yield server


@contextlib.contextmanager
def first_of(ways: Sequence[Way], say: Say) -> Iterator[Server]:
    """The server of the first way that works; names the others and why they do not."""
    with contextlib.ExitStack() as stack:
        yield _first(ways, say, stack)


def _first(ways: Sequence[Way], say: Say, stack: contextlib.ExitStack) -> Server:
    for way in ways:
        try:
            with contextlib.ExitStack() as attempt:
                server = attempt.enter_context(way.open())
                refuse_old(server.version)
                stack.push(attempt.pop_all())
                return server
        except NotAvailable as why:
            say(_not_this(way.name, why))
    raise NoServer(HELP)


def refuse_old(version: str) -> None:
    """Raises :exc:`NotAvailable` for a version below :data:`MINIMUM`."""
    try:
        numbers = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        raise NotAvailable(f"it calls itself version {version!r}, which is no version of RabbitMQ") from None
    if numbers < MINIMUM:
        raise NotAvailable(f"it is version {version}; {'.'.join(map(str, MINIMUM))} or later is needed")


def is_pointed_at() -> bool:
    """Whether ``BROKER_URL`` is set."""
    try:
        return "url" in Settings().model_fields_set
    except ValidationError:
        return True  # then `pointed_at` says what is wrong with it


@contextlib.contextmanager
def pointed_at() -> Iterator[Server]:
    """The RabbitMQ that ``BROKER_URL`` names."""
    try:
        settings = Settings()
    except ValidationError as error:
        raise NotAvailable(
            "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors(include_input=False))
        ) from None
    url = settings.url.get_secret_value()
    if (version := amqp_version(url)) is None:
        raise NotAvailable(f"no RabbitMQ answers at {readable(url)}")
    parts = urlsplit((settings.management_url or SecretStr(_default_management(url))).get_secret_value())
    server = Server(
        url=url,
        management_url=parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/"),
        origin=f"BROKER_URL ({readable(url)})",
        version=version,
        ours=False,
        api_login=(unquote(parts.username), unquote(parts.password or "")) if parts.username else None,
    )
    if not management_answers(server.management_url, server.login):
        raise NotAvailable(
            f"its management API at {server.management_url} does not take the login: "
            "is the management plugin enabled, and has the user the tag administrator? (BROKER_MANAGEMENT_URL)"
        )
    yield server


def _default_management(url: str) -> str:
    return f"http://{urlsplit(hosts_of(url)[0]).hostname}:{DEFAULT_PORT}"


@contextlib.contextmanager
def private_node(keep: Callable[[], bool] = lambda: False) -> Iterator[Server]:
    """The ``rabbitmq-server`` of this machine, as a node of our own."""
    try:
        node = Node()
    except NodeFailed as why:
        raise NotAvailable(str(why)) from None
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: node.release() if keep() else node.close())
        try:
            start(node)
        except NodeFailed as why:
            node.close()
            raise NotAvailable(str(why).rstrip(".")) from None
        version = amqp_version(node.url) or "unknown"
        yield Server(node.url, node.management_url, f"a private node of {node.program}", version, node.stop_command)


def node_to_break(say: Say = print) -> Node | ContainerNode:
    """A node of our own, started, that tests may stop, kill and freeze: private, in a container, or private after apt.

    The caller closes it. Raises :exc:`NoServer` when no way works.
    """
    ways: tuple[tuple[str, Callable[[], Node | ContainerNode]], ...] = (
        ("rabbitmq-server on this machine", Node),
        ("Docker", lambda: _container_node(say)),
        ("rabbitmq-server from apt", lambda: _installed_node(say)),
    )
    for name, make in ways:
        try:
            return _started(make())
        except (NodeFailed, NotAvailable) as why:
            say(_not_this(name, why))
    raise NoServer(HELP)


def _container_node(say: Say) -> ContainerNode:
    _check_engine(["docker", "version"])
    _fetch_image(say)
    return ContainerNode()


def _installed_node(say: Say) -> Node:
    install(say)
    return Node()


def _not_this(name: str, why: Exception) -> str:
    return f"RabbitMQ: {name} does not work: {str(why).rstrip('.')}. Trying the next way."


def _started(node: Node | ContainerNode) -> Node | ContainerNode:
    try:
        if isinstance(node, Node):
            start(node)
        else:
            node.start()
    except BaseException:
        node.close()
        raise
    return node


def start(node: Node, attempts: int = 3) -> None:
    """Start a new node; again on other ports when somebody took one of them meanwhile."""
    for attempt in range(1, attempts + 1):
        try:
            node.start()
        except NodeFailed:
            if attempt == attempts or not node.lost_a_port():
                raise
            node.move()
        else:
            return


@contextlib.contextmanager
def from_apt(say: Say, keep: Callable[[], bool] = lambda: False) -> Iterator[Server]:
    """On Debian and Ubuntu, as root: install ``rabbitmq-server`` and use it as a private node."""
    install(say)
    with private_node(keep) as server:
        yield server


def install(say: Say) -> None:
    """Install ``rabbitmq-server`` with apt, starting nothing; raises :exc:`NotAvailable` where that is not possible."""
    with contextlib.suppress(NodeFailed):
        installed()
        raise NotAvailable("it is installed already, and did not work")
    if shutil.which("apt-get") is None:
        raise NotAvailable("this is neither Debian nor Ubuntu")
    if os.geteuid() != 0:
        raise NotAvailable("that needs root")
    say("RabbitMQ: installing rabbitmq-server with apt-get (a minute or two); no system service is started.")
    with no_system_services(POLICY):
        _apt("update")
        _apt("install", "--yes", "--no-install-recommends", "rabbitmq-server")


def _apt(*arguments: str) -> None:
    command = ["apt-get", "--quiet", "--quiet", "-o", "DPkg::Lock::Timeout=120", *arguments]
    run(command, INSTALL_TIMEOUT, {**os.environ, "DEBIAN_FRONTEND": "noninteractive"})


@contextlib.contextmanager
def no_system_services(policy: Path) -> Iterator[None]:
    """While installing, Debian starts no service: this is what its ``policy-rc.d`` is for. An existing one stays."""
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)


@contextlib.contextmanager
def compose(file: Path, say: Say, keep: Callable[[], bool] = lambda: False) -> Iterator[Server]:
    """The service ``rabbitmq`` of a compose file, as a project of its own with ports of its own."""
    if not file.is_file():
        raise NotAvailable(f"there is no {file.name} in this folder")
    _check_engine(["docker", "compose", "version"])
    _fetch_image(say)
    (port,) = free_ports(1)
    project = f"business-events-demo-{os.getpid()}"
    command = ["docker", "compose", "--project-name", project, "--file", str(file.resolve())]
    environment = {
        **os.environ,
        "RABBITMQ_UI_PORT": str(port),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": TICKS,
        "RABBITMQ_HEALTH_INTERVAL": "1h",  # each check starts an Erlang of its own; here we look ourselves
    }
    down = [*command, "down", "--volumes", "--timeout", "5"]
    watchdog = Watchdog(shlex.join(down))

    def end() -> None:
        if not keep():
            try:
                run(down, 60, environment)
            except NotAvailable as why:
                say(f"RabbitMQ: its container may still run ({why}). It is ended by: {shlex.join(down)}")
        watchdog.release()  # only now: until here it would take over

    with contextlib.ExitStack() as stack:
        stack.callback(end)
        run([*command, "up", "--detach", "rabbitmq"], START_TIMEOUT, environment)
        address = run([*command, "port", "rabbitmq", "5672"], 30, environment).strip()
        yield _ready(f"amqp://guest:guest@{address}/", f"http://127.0.0.1:{port}", "docker compose", shlex.join(down))


@contextlib.contextmanager
def container() -> Iterator[Server]:
    """A container that the package testcontainers starts and removes."""
    try:
        from testcontainers.core.container import DockerContainer  # only the extra `test` has it
    except ImportError:
        raise NotAvailable("the Python package testcontainers is not installed") from None
    _check_engine(["docker", "version"])
    _fetch_image(lambda _: None)
    box = DockerContainer(IMAGE).with_exposed_ports(5672, 15672)
    box = box.with_env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", TICKS)
    try:
        box.start()
    except Exception as why:  # the engine's, requests' and testcontainers' own errors have no common class
        with contextlib.suppress(Exception):
            box.stop()
        raise NotAvailable(f"the container does not start: {first_line(str(why))}") from None
    try:
        host = box.get_container_host_ip()
        url = f"amqp://guest:guest@{host}:{box.get_exposed_port(5672)}/"
        yield _ready(url, f"http://{host}:{box.get_exposed_port(15672)}", "a container (testcontainers)")
    finally:
        box.stop()


def _check_engine(command: list[str]) -> None:
    if shutil.which("docker") is None:
        raise NotAvailable("there is no docker command")
    run(command, 30)
    run(["docker", "info", "--format", "{{.ServerVersion}}"], 30)


def _fetch_image(say: Say) -> None:
    with contextlib.suppress(NotAvailable):
        run(["docker", "image", "inspect", IMAGE], 30)
        return
    say(f"RabbitMQ: fetching the image {IMAGE}.")
    run(["docker", "pull", "--quiet", IMAGE], PULL_TIMEOUT)


def _ready(url: str, management_url: str, origin: str, stop_command: str = "") -> Server:
    try:
        wait_until(
            lambda: answers(management_url, url),
            START_TIMEOUT,
            f"the RabbitMQ of the image {IMAGE} did not answer within {START_TIMEOUT:.0f} s",
        )
    except NodeFailed as why:
        raise NotAvailable(str(why).rstrip(".")) from None
    return Server(url, management_url, f"{origin}, image {IMAGE}", amqp_version(url) or "unknown", stop_command)


def run(command: list[str], timeout: float, environment: dict[str, str] | None = None) -> str:
    """Run a command and return what it printed; raises :exc:`NotAvailable` with its last words when it fails."""
    shown = " ".join(command[:2])
    try:
        done = subprocess.run(  # noqa: S603 - the commands are written in this module
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except OSError as why:
        raise NotAvailable(f"{shown}: {why.strerror}") from None
    except subprocess.TimeoutExpired:
        raise NotAvailable(f"{shown} did not end within {timeout:.0f} s") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise NotAvailable(f"{shown} failed: {words[-1].strip() if words else f'status {done.returncode}'}")
    return done.stdout


def first_line(text: str) -> str:
    """The first line that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
