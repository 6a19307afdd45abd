"""A RabbitMQ node of our own in a container, for machines that have Docker and no ``rabbitmq-server``.

It takes the same verbs as :class:`broker.tools.node.Node`: it can be killed, frozen, and started again on the same
ports and data. Its ports are open on the loopback interface alone. It ends with :meth:`ContainerNode.close`, and also
when the process that started it dies.
"""

from __future__ import annotations

import subprocess
from uuid import uuid4

from broker.tools.node import START_TIMEOUT, STOP_TIMEOUT, NodeFailed, Watchdog, answers, free_ports, wait_until

IMAGE = "rabbitmq:4-management"
TICKS = "-rabbit quorum_tick_interval 500"
"""Counts of messages are that fresh (ms), see :mod:`broker.tools.management`."""


class ContainerNode:
    """A private RabbitMQ node in a container; raises :exc:`NodeFailed` as :class:`~broker.tools.node.Node` does."""

    def __init__(self) -> None:
        self._name = f"business-events-{uuid4().hex[:12]}"
        self._amqp, self._management = free_ports(2)
        self._watchdog: Watchdog | None = None

    @property
    def url(self) -> str:
        """Where to connect, login included."""
        return f"amqp://guest:guest@127.0.0.1:{self._amqp}/"

    @property
    def management_url(self) -> str:
        """Address of the management UI and its HTTP API, without the login."""
        return f"http://127.0.0.1:{self._management}"

    def start(self, timeout: float = START_TIMEOUT) -> None:
        """Start the node, again with the same data if it ran before; returns when AMQP and management answer."""
        if self._watchdog is None:
            self._create()
        docker("start", self._name)
        wait_until(
            lambda: answers(self.management_url, self.url), timeout, f"{IMAGE} did not answer in {timeout:.0f} s"
        )

    def _create(self) -> None:
        self._watchdog = Watchdog(f"docker rm --force --volumes {self._name}")
        publish = [f"--publish=127.0.0.1:{self._amqp}:5672", f"--publish=127.0.0.1:{self._management}:15672"]
        ticks = f"--env=RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS={TICKS}"
        # Its data belongs to a node of this host name.
        docker("create", f"--name={self._name}", "--hostname=rabbitmq", *publish, ticks, IMAGE)

    def stop(self) -> None:
        """Stop it in an orderly way; data and ports are kept."""
        docker("stop", f"--time={STOP_TIMEOUT:.0f}", self._name)

    def kill(self) -> None:
        """``kill -9``; data and ports are kept."""
        docker("kill", self._name)

    def restart(self) -> None:
        """:meth:`stop` and :meth:`start`."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers."""
        docker("pause", self._name)

    def resume(self) -> None:
        """The end of :meth:`pause`."""
        docker("unpause", self._name)

    def control(self, *arguments: str, timeout: float = 60.0) -> str:
        """Run ``rabbitmqctl`` on this node and return what it printed."""
        return docker("exec", self._name, "rabbitmqctl", "--quiet", *arguments, timeout=timeout)

    def close(self) -> None:
        """End it and remove its data. Calling it again does nothing."""
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            docker("rm", "--force", "--volumes", self._name)
            watchdog.release()


def docker(*arguments: str, timeout: float = 60.0) -> str:
    """Run ``docker`` and return what it printed; raises :exc:`NodeFailed` with its last words."""
    try:
        done = subprocess.run(  # noqa: S603 - the commands are written here
            ["docker", *arguments],  # noqa: S607 - docker is wherever its users have it
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as why:
        raise NodeFailed(f"docker {arguments[0]}: {why}") from None
    if done.returncode:
        raise NodeFailed(f"docker {arguments[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
