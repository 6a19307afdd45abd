"""Three RabbitMQ nodes on this machine, joined to one cluster."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Self
from urllib.parse import urlsplit
from uuid import uuid4

import httpx

from broker.tools.node import Node, Watchdog, _epmd, free_ports, login, wait_until

SIZE = 3
PATIENCE = 120.0
"""Seconds that a node may take to start, three of them on one machine."""
_CONFIG = """\
cluster_partition_handling = pause_minority
"""
"""As RabbitMQ recommends for quorum queues."""
NOTICED = 10
"""Seconds after which members give up a silent one (``net_ticktime``). With RabbitMQ's default, 60, whoever connects to
another node meanwhile waits for so long: the others ask the silent one, too, before they declare a binding."""


class Member(Node):
    """One node of a cluster. The cluster has the Erlang port mapper; the one that each node starts ends at once."""

    def __init__(self, name: str, cookie: str, epmd: int) -> None:
        super().__init__()
        self.name = f"{name}@localhost"
        self._cookie = cookie
        self._epmd = epmd

    @property
    def _ports(self) -> tuple[int, ...]:
        return super()._ports[:-1]

    def _write_configuration(self) -> None:
        super()._write_configuration()
        with (self.folder / "rabbitmq.conf").open("a") as file:
            file.write(_CONFIG)
        cookie = self.folder / "home" / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(self._cookie)
            cookie.chmod(0o400)

    def _environment(self) -> dict[str, str]:
        inherited = super()._environment()
        more = f"{inherited['RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS']} -kernel net_ticktime {NOTICED}"
        return inherited | {"RABBITMQ_NODENAME": self.name, "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": more}

    def join(self, other: Member) -> None:
        """Become a member of the other's cluster."""
        for words in (["stop_app"], ["join_cluster", other.name], ["start_app"]):
            self.control(*words, timeout=PATIENCE)


class Cluster:
    """Use it in a ``with`` statement."""

    def __init__(self) -> None:
        (self._epmd,) = free_ports(1)
        cookie = uuid4().hex
        self.members = [Member(name, cookie, self._epmd) for name in ("one", "two", "three")]
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        """All hosts, the default virtual host."""
        parts = [urlsplit(member.url) for member in self.members]
        hosts = ",".join(part.netloc.rpartition("@")[2] for part in parts)
        return f"amqp://guest:guest@{hosts}/"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start_epmd(stack)
            for member in self.members:
                stack.callback(member.close)
            self.each(lambda member: member.start(PATIENCE))
            for member in self.members[1:]:
                member.join(self.members[0])
            self.until_whole()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _start_epmd(self, stack: ExitStack) -> None:
        environment = {"ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_EPMD_PORT": str(self._epmd)}
        epmd = stack.enter_context(subprocess.Popen([_epmd()], env=environment, stdin=subprocess.DEVNULL))
        stack.callback(Watchdog(f"kill -9 {epmd.pid}").release)
        stack.callback(epmd.kill)

    def each(self, do: Callable[[Member], object]) -> None:
        """Do something with all members at the same time."""
        with ThreadPoolExecutor(SIZE) as pool:
            list(pool.map(do, self.members))

    def restore(self) -> None:
        """Start who does not run, after a test that failed."""
        for member in self.members:
            if not member.pid:
                member.start(PATIENCE)

    def until_whole(self) -> None:
        """Wait until every member sees all others, and every queue has all its members."""
        wait_until(self._whole, PATIENCE, "The cluster did not come together", every=0.5)

    def _whole(self) -> bool:
        return all(self._sees_all(member) for member in self.members)

    def _sees_all(self, member: Member) -> bool:
        try:
            nodes = self.ask(member, "nodes").json()
            queues = self.ask(member, "queues").json()
        except (httpx.HTTPError, ValueError):
            return False
        return (
            len(nodes) == SIZE
            and all(node.get("running") and not node.get("partitions") for node in nodes)
            and all(len(queue.get("online", [])) == SIZE for queue in queues)
        )

    def ask(self, member: Member, path: str) -> httpx.Response:
        """Something of the management API."""
        answer = httpx.get(f"{member.management_url}/api/{path}", auth=login(member.url), timeout=5)
        return answer.raise_for_status()

    def leader(self, vhost: str, queue: str) -> Member:
        """Who leads a queue."""
        name = self.ask(self.members[0], f"queues/{vhost}/{queue}").json()["leader"]
        return next(member for member in self.members if member.name == name)
