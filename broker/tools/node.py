"""A RabbitMQ node of our own: in a temporary folder, on ports of its own, for tests and the demo.

It shares nothing with a RabbitMQ that already runs on the machine: node name, data, logs, plugins, Erlang cookie and
the Erlang port mapper (epmd) are its own. It listens on the loopback interface alone. All of it ends with
:meth:`Node.close`, and also when the process that started it dies in whatever way: see :class:`Watchdog`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote, urlsplit

import httpx

from broker.errors import BrokerError
from broker.settings import hosts_of

if TYPE_CHECKING:
    from collections.abc import Callable

START_TIMEOUT = 90.0
"""Seconds that a node may take until it answers; a slow machine under load needs about 20."""

STOP_TIMEOUT = 30.0
"""Seconds that a node may take to stop by itself before it is killed."""

# Below Linux's ephemeral range: a client that reconnects to a dead node cannot take its port meanwhile.
_PORTS = range(20000, 30000)
_SBIN = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/opt/homebrew/bin")
_ADVANCED = "-kernel inet_dist_use_interface {127,0,0,1} -rabbit quorum_tick_interval 500"
_CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{amqp}
management.tcp.ip = 127.0.0.1
management.tcp.port = {management}
disk_free_limit.absolute = 10MB
log.console = false
"""


class NodeFailed(BrokerError):
    """A node did not start, or did not do what it was told."""


class Watchdog:
    """Runs a shell command when this process has died without calling :meth:`release`.

    A small shell waits at the end of a pipe; the operating system closes the pipe with us, ``kill -9`` included.
    Nothing else cleans up after that.

    Attributes:
        group: the process group that the shell leads; others may join it. In the command, it is ``-$$``.
    """

    _SCRIPT = 'trap "" INT TERM HUP; read -r word || eval "$1"'

    def __init__(self, command: str) -> None:
        self._shell = subprocess.Popen(  # noqa: S603 - the command is ours
            ["/bin/sh", "-c", self._SCRIPT, "watchdog", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        self.group = self._shell.pid

    def release(self) -> None:
        """Let the shell end without running the command. Calling it again does nothing."""
        if self._shell.stdin is None or self._shell.stdin.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            self._shell.stdin.write(b"released\n")
            self._shell.stdin.flush()
        with contextlib.suppress(BrokenPipeError):
            self._shell.stdin.close()
        self._shell.wait()


class Node:
    """A private RabbitMQ node. Use it in a ``with`` statement, or call :meth:`start` and :meth:`close`.

    :meth:`stop` and :meth:`kill` keep the data and the ports, so :meth:`start` afterwards is a restart. ``program`` is
    the ``rabbitmq-server`` to start; without it the one installed on this machine.

    Raises :exc:`NodeFailed` when no RabbitMQ is installed, or the node does not answer in time.
    """

    def __init__(self, program: Path | None = None) -> None:
        self.program = program or installed()
        self.folder = Path(tempfile.mkdtemp(prefix="rabbitmq-"))
        self._amqp, self._management, self._distribution, self._epmd = free_ports(4)
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: Watchdog | None = None

    @property
    def url(self) -> str:
        """Where to connect, login included (guest, which RabbitMQ takes from this machine only)."""
        return f"amqp://guest:guest@127.0.0.1:{self._amqp}/"

    @property
    def management_url(self) -> str:
        """Address of the management UI and its HTTP API, without the login."""
        return f"http://127.0.0.1:{self._management}"

    @property
    def pid(self) -> int:
        """The process group of the node and its epmd; 0 when it does not run."""
        return self._process.pid if self._process else 0

    @property
    def stop_command(self) -> str:
        """A shell command that ends the node and removes its folder."""
        return f"kill -9 -{self.pid}; rm -rf {shlex.quote(str(self.folder))}"  # the form that every sh takes

    def start(self, timeout: float = START_TIMEOUT) -> None:
        """Start the node, again with the same data if it ran before; returns when AMQP and management answer."""
        if self._process is not None:
            raise NodeFailed(f"The node already runs (process {self.pid}).")
        self._write_configuration()
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - the program that `installed` found
                ["/bin/sh", "-c", '"$1" & exec "$2"', "rabbitmq", _epmd(), str(self.program)],
                env=self._environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._watchdog = Watchdog(self.stop_command)
        try:
            wait_until(self._answers, timeout, f"RabbitMQ did not answer within {timeout:.0f} s")
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Stop it in an orderly way, as a system would; data and ports are kept."""
        if self._process is None:
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT)
        self.kill()

    def kill(self) -> None:
        """``kill -9``: the node and its epmd end at once; data and ports are kept."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        wait_until(
            lambda: group_ended(process.pid) or not self.lost_a_port(), STOP_TIMEOUT, "The node outlived kill -9"
        )
        if self._watchdog is not None:
            self._watchdog.release()

    def restart(self) -> None:
        """:meth:`stop` and :meth:`start`."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open and nothing answers."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """The end of :meth:`pause`."""
        os.killpg(self.pid, signal.SIGCONT)

    def control(self, *arguments: str, timeout: float = 60.0) -> str:
        """Run ``rabbitmqctl`` on this node and return what it printed."""
        command = [str(self.program.with_name("rabbitmqctl")), "--quiet", *arguments]
        done = subprocess.run(  # noqa: S603 - the program beside the server, on a node of our own
            command,
            env=self._environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise NodeFailed(f"rabbitmqctl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def lost_a_port(self) -> bool:
        """Whether somebody else listens on one of the ports of a node that does not run."""
        return not all(map(bindable, self._ports))

    def move(self) -> None:
        """Take other ports; only for a node that does not run."""
        self._amqp, self._management, self._distribution, self._epmd = free_ports(4)

    def close(self) -> None:
        """End it and remove its folder. Calling it again does nothing."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def release(self) -> None:
        """Let the node outlive this process; from here on :attr:`stop_command` is the only way to end it."""
        if self._process is not None:
            self._process.returncode = 0  # Python would warn, at its own end, that it still runs
        if self._watchdog is not None:
            self._watchdog.release()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def _ports(self) -> tuple[int, ...]:
        return (self._amqp, self._management, self._distribution, self._epmd)

    def _write_configuration(self) -> None:
        for name in ("home", "data", "log"):
            (self.folder / name).mkdir(exist_ok=True)
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        (self.folder / "rabbitmq.conf").write_text(_CONFIG.format(amqp=self._amqp, management=self._management))

    def _environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_", "NOTIFY_"))}
        own = {
            "HOME": "home",
            "ERL_CRASH_DUMP": "log/erl_crash.dump",
            "RABBITMQ_CONFIG_FILE": "rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": "advanced.config",
            "RABBITMQ_CONF_ENV_FILE": "environment",  # none: the machine's own is for its own node
            "RABBITMQ_ENABLED_PLUGINS_FILE": "enabled_plugins",
            "RABBITMQ_GENERATED_CONFIG_DIR": "generated",
            "RABBITMQ_LOG_BASE": "log",
            "RABBITMQ_MNESIA_BASE": "data",
            "RABBITMQ_PID_FILE": "pid",
            "RABBITMQ_SCHEMA_DIR": "schema",
        }
        return {
            **inherited,
            **{name: str(self.folder / path) for name, path in own.items()},
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd),
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_NODENAME": "business-events@localhost",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ADVANCED,
        }

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise NodeFailed(f"rabbitmq-server ended with status {self._process.returncode}: {self._last_words()}")
        return answers(self.management_url, self.url)

    def _last_words(self) -> str:
        words = (self.folder / "output").read_text(errors="replace").strip().splitlines()
        return " ".join(line.strip() for line in words[-5:] if line.strip()) or "it said nothing"


def installed() -> Path:
    """The ``rabbitmq-server`` program of this machine; raises :exc:`NodeFailed` when there is none.

    Debian's ``/usr/sbin/rabbitmq-server`` is a wrapper that changes to the user of the machine's own node and drops
    our environment; the program itself lies beside the wrapper's real place.
    """
    found = shutil.which("rabbitmq-server", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN]))
    if found is None:
        raise NodeFailed("there is no rabbitmq-server on this machine")
    real = Path(found).resolve()
    beside = real.with_name("rabbitmq-server")
    if not os.access(beside, os.X_OK):
        raise NodeFailed(f"{found} leads to {real}, and no rabbitmq-server that can be started lies beside it")
    return beside


def _epmd() -> str:
    found = shutil.which("epmd", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN]))
    if found is None:
        raise NodeFailed("Erlang's epmd is not on the PATH")
    return found


def group_ended(group: int) -> bool:
    """Whether no process of this process group is left. Zombies that nobody reaps count as left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def free_ports(count: int) -> list[int]:
    """So many different ports of the loopback interface that nobody listens on now."""
    return list(itertools.islice(filter(bindable, random.sample(_PORTS, len(_PORTS))), count))


def bindable(port: int) -> bool:
    """Whether nobody listens on this port of the loopback interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections in TIME_WAIT do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_until(condition: Callable[[], bool], timeout: float, message: str, every: float = 0.05) -> None:
    """Return as soon as the condition holds; raises :exc:`NodeFailed` with the message after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise NodeFailed(f"{message}.")
        time.sleep(every)


def amqp_version(url: str, timeout: float = 2.0) -> str | None:
    """The version that RabbitMQ tells before any login, or None when nothing at the URL's first host speaks AMQP."""
    parts = urlsplit(hosts_of(url)[0])
    tls = parts.scheme == "amqps"
    address = (parts.hostname or "localhost", parts.port or (5671 if tls else 5672))
    try:
        with contextlib.ExitStack() as stack:
            link: socket.socket = stack.enter_context(socket.create_connection(address, timeout))
            if tls:
                link = stack.enter_context(ssl.create_default_context().wrap_socket(link, server_hostname=address[0]))
            link.sendall(b"AMQP\x00\x00\x09\x01")
            greeting = link.recv(4096)
    except OSError:
        return None
    return version_in(greeting)


def version_in(greeting: bytes) -> str | None:
    """RabbitMQ's version, if that is how it greets."""
    found = re.search(rb"\x07versionS\x00\x00\x00.([0-9.]+)", greeting, re.DOTALL)
    return found[1].decode() if found else None


def management_answers(management_url: str, user: tuple[str, str], timeout: float = 2.0) -> bool:
    """Whether the management HTTP API takes this user and password."""
    try:
        return httpx.get(f"{management_url}/api/overview", auth=user, timeout=timeout).is_success
    except httpx.HTTPError:
        return False


def answers(management_url: str, url: str) -> bool:
    """Whether a node has started: management takes the URL's login, and AMQP greets."""
    return management_answers(management_url, login(url)) and amqp_version(url) is not None


def login(url: str) -> tuple[str, str]:
    """User and password of an AMQP URL; guest, as RabbitMQ has it, where it names none."""
    parts = urlsplit(hosts_of(url)[0])
    return unquote(parts.username or "guest"), unquote(parts.password or "guest")
